"""The suite `ablations`: trains and measures the tokenizers of the paper's Tables 4 and 5 on the embedded world."""

import hashlib
import json
import os
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from ...data.atomic_files import atomic_file
from ...data.world.icons import load_world
from ...eval.plotting.sheets import BLUE, RED
from ...eval.plotting.style import figure, save
from ...eval.suite import Evaluation, Report, SuiteOptions, require_at_least, require_packages, sha256
from ..recipes import Recipe, read_recipe
from ..tokenizer.stage import model_class
from ..train import train
from .generator import PROMPTS, SCENES, generated_share
from .orderings import Claim, compare, spread, summarize
from .probes import Probes


TAKES = ""


class TableRow(NamedTuple):
    """A row of the tables: one tokenizer."""

    label: str
    pixel_levels: int
    semantic_levels: int
    strategy: str
    """Its name in Table 5."""


ROWS = {  # name of its recipe
    "entangled": TableRow("entangled (4, 4)", 4, 4, "no decoupling"),
    "semantic-to-pixel": TableRow("semantic to pixel (16, 4)", 16, 4, ""),
    "pixel-to-semantic": TableRow("pixel to semantic (4, 16)", 4, 16, "pixel to semantic (the method)"),
    "layers": TableRow("different layers", 4, 12, "different layers of one encoder"),
    "branches": TableRow("different branches", 4, 12, "different branches, two encoders"),
}
METHOD = "pixel-to-semantic"
TABLE_4 = ("entangled", "semantic-to-pixel", "pixel-to-semantic")
TABLE_5 = ("entangled", "layers", "branches", "pixel-to-semantic")


def _paper(rows: tuple[str, ...], *values: float) -> dict[str, float]:
    return dict(zip(rows, values, strict=True))


CLAIMS_4 = [
    Claim("fd", "rFID", _paper(TABLE_4, 0.66, 0.44, 0.55), higher_is_better=False),
    Claim("psnr", "PSNR", _paper(TABLE_4, 22.96, 24.39, 23.60)),
    Claim("ssim", "SSIM", _paper(TABLE_4, 0.76, 0.79, 0.77)),
    # SEEDBench, GQA and MME put the rows in the same order.
    Claim("thing", "GQA", _paper(TABLE_4, 58.0, 60.9, 61.3)),
    Claim("color", "GQA", _paper(TABLE_4, 58.0, 60.9, 61.3)),
    Claim("generated", "GenEval", _paper(TABLE_4, 0.64, 0.60, 0.67)),
]
CLAIMS_5 = [Claim("fd", "rFID", _paper(TABLE_5, 0.66, 0.59, 0.68, 0.55), higher_is_better=False)]
METRICS = {  # name -> title of its plot
    "psnr": "Pixels: PSNR in dB, more is better",
    "ssim": "Pixels: SSIM, more is better",
    "fd": "Pixels: Frechet distance, less is better",
    "cosine": "Semantics: cosine to the teacher, more is better",
    "thing": "Semantics: things read by a probe, more is better",
    "color": "Semantics: colours read by a probe, more is better",
    "generated": "Generation: labels generated right, more is better",
    "pixel_bits": "Generation: bits a position, less is easier",
}


@dataclass
class Options(SuiteOptions):
    """Options of the suite."""

    batch_size: int = 64
    """Images at a time when measuring; training uses that of the recipes."""
    steps: int = 1200
    """Training steps of every tokenizer."""
    generator_steps: int = 300
    """Training steps of every generator."""
    seeds: int = 3
    """Number of trainings of each row, at the seeds `seed`, `seed` + 1, ..."""
    images: int = 512
    """Number of test scenes; the probes are fitted on twice as many."""
    encoder: str | None = None
    """Vision tower that all rows start from, also their teacher; that of the recipes, the embedded one, by default."""
    recipes: str | None = None
    """Folder of the five recipes; the shipped `configs/ablations` when left out."""
    work: str = "runs/ablations"
    """Folder of trained models and finished rows."""

    def __post_init__(self):
        super().__post_init__()
        require_at_least(self, 1, "steps", "generator_steps", "seeds", "images")


def check(options: Options, inputs: list[str]) -> dict[str, str]:
    """Returns the fingerprint of the recipes.

    Raises:
        ValueError: a recipe that differs in more than its model, a missing extra, or several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("evotok eval ablations trains in one process: run it without torchrun.")
    recipes = {name: _recipe(options, name, options.seed) for name in ROWS}
    for name, recipe in recipes.items():
        model_class(recipe)
        if recipe.stage != "tokenizer" or recipe.data.name != "world" or recipe.loss.teacher != "siglip":
            raise ValueError(
                f"{_recipes(options) / name}.yaml: must be of stage tokenizer, on data.name world, with loss.teacher "
                "siglip."
            )
    _refuse_unequal(options, recipes)
    encoder = recipes[METHOD].model.encoder_checkpoint
    if encoder is None or not (Path(encoder) / "config.json").is_file():
        raise ValueError(
            f"encoder={encoder}: no vision tower there: give the folder of one, such as assets/vision-mini."
        )
    require_packages("torchmetrics", "matplotlib")
    return {"recipes": _digest({name: asdict(recipe) for name, recipe in recipes.items()})}


def run(evaluation: Evaluation) -> Report:
    """Trains the rows that are not finished, measures them, and compares them with the paper."""
    options, device = evaluation.options, evaluation.workers.state.device
    recipe = _recipe(options, METHOD, options.seed)
    data = _fingerprints(recipe)
    assert recipe.model.encoder_checkpoint is not None  # `check` refuses None
    probes = Probes(recipe.model.encoder_checkpoint, recipe.data.path, options.images, options.batch_size)
    depends = depends_on(data, device, evaluation.versions)
    depends |= {"images": options.images, "generator_steps": options.generator_steps}
    jobs = [(name, options.seed + seed) for seed in range(options.seeds) for name in ROWS]
    results = evaluation.workers.map(lambda job: _row(options, probes, device, depends, *job), jobs, "Ablations")
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ROWS}
    for (name, _), found in zip(jobs, results, strict=True):
        runs[name].append(found)
    claims = {"table 4": compare(CLAIMS_4, runs), "table 5": compare(CLAIMS_5, runs)}
    evaluation.folder.mkdir(parents=True, exist_ok=True)
    _write_recipes(options, evaluation.folder / "recipes.yaml")
    for suffix in ("png", "svg"):
        _plot(evaluation.folder / f"ablations.{suffix}", runs)
    figures = {
        f"{metric} {name}": sum(one[metric] for one in own) / len(own)
        for name, own in runs.items()
        for metric in METRICS
    }
    for verdict in ("holds", "undecided", "reversed"):
        figures[f"orderings {verdict}"] = sum(row["verdict"] == verdict for rows in claims.values() for row in rows)
    return Report(
        figures | probes.references,
        {
            "table_4": [_line(name, runs[name]) for name in TABLE_4],
            "table_5": [_line(name, runs[name], ROWS[name].strategy) for name in TABLE_5],
            "orderings": [{"table": table} | row for table, rows in claims.items() for row in rows],
            "runs": [{"row": name, "seed": seed} | found for (name, seed), found in zip(jobs, results, strict=True)],
        },
        data=data,
        images={"ablations.svg": "each figure of each row: mean over seeds, and a dot for every seed"},
        notes=[
            *_notes(options, recipe, probes),
            *summarize(claims["table 4"], "Table 4"),
            *summarize(claims["table 5"], "Table 5"),
        ],
        dtype=_dtype(recipe),
    )


def _fingerprints(recipe: Recipe) -> dict[str, str]:
    """Returns the SHA-256 of the world and of the vision tower that the rows start from."""
    assert recipe.model.encoder_checkpoint is not None
    world, encoder = load_world(recipe.data.path).root, Path(recipe.model.encoder_checkpoint)
    return {
        "world": sha256(*sorted(path for path in world.iterdir() if path.suffix in (".json", ".webp"))),
        "encoder": sha256(*sorted(encoder.glob("*.safetensors")), encoder / "config.json"),
    }


def depends_on(data: dict[str, str], device: torch.device, versions: dict[str, str]) -> dict[str, Any]:
    """Returns what a row depends on beside its recipe: data, kind of device, releases."""
    releases = {name: versions[name] for name in ("evotok", "torch", "transformers")}
    return {"data": data, "device": device.type, "versions": releases}


def _row(
    options: Options, probes: Probes, device: torch.device, depends: dict[str, Any], name: str, seed: int
) -> dict[str, float]:
    """Returns the metrics of one training, from its file if it is finished."""
    recipe = _recipe(options, name, seed)
    digest = _digest(depends | {"recipe": asdict(recipe)})
    recipe.training["output_dir"] = str(Path(options.work) / f"{name}-{seed}-{digest[:12]}")
    path = Path(recipe.training["output_dir"]) / "measured.json"
    found = _measured(path)
    if found is None:
        with redirect_stdout(sys.stderr):  # stdout has only the results
            train(recipe)
            model = model_class(recipe).from_pretrained(path.parent).to(device)
            levels = ROWS[name].pixel_levels
            found = probes.measure(model, levels)
            found["generated"] = generated_share(
                model, levels, load_world(recipe.data.path), options.generator_steps, seed, path.parent
            )
        with atomic_file(path) as part:
            part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _measured(path: Path) -> dict[str, float] | None:
    """Reads the metrics of a finished row; None for a damaged file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.keys() == {*METRICS, "parameters"} else None


def _recipes(options: Options) -> Path:
    return Path(options.recipes) if options.recipes else Path(__file__).resolve().parents[2] / "configs" / "ablations"


def _recipe(options: Options, name: str, seed: int) -> Recipe:
    words = [f"training.max_steps={options.steps}", f"training.seed={seed}", "training.report_to=none"]
    if options.encoder:
        words.append(f"model.encoder_checkpoint={options.encoder}")
    return read_recipe(_recipes(options) / f"{name}.yaml", words)


def _refuse_unequal(options: Options, recipes: dict[str, Recipe]) -> None:
    """Raises ValueError for a recipe that differs from the method's in more than its folder and its model."""

    def shared(recipe: Recipe) -> dict[str, Any]:
        sections = {key: asdict(getattr(recipe, key)) for key in ("data", "loss", "optimizer")}
        sections["model"] = {"encoder_checkpoint": recipe.model.encoder_checkpoint}
        sections["training"] = {key: value for key, value in recipe.training.items() if key != "output_dir"}
        return {f"{section}.{key}": value for section, own in sections.items() for key, value in own.items()}

    method = shared(recipes[METHOD])
    for name, recipe in recipes.items():
        own = shared(recipe)
        for key in sorted({*own, *method}):
            if own.get(key) != method.get(key):
                raise ValueError(
                    f"{_recipes(options) / name}.yaml: {key} is {own.get(key)}, in {METHOD}.yaml {method.get(key)}: "
                    "rows are compared on the same data, loss, optimizer and training: make them equal."
                )


def _dtype(recipe: Recipe) -> str:
    """Returns the precision of the training; weights are float32, in which rows are measured."""
    half = next((name for name in ("bf16", "fp16") if recipe.training.get(name)), None)
    return {"bf16": "bfloat16 autocast", "fp16": "float16 autocast", None: "float32"}[half]


def _line(name: str, runs: list[dict[str, float]], strategy: str = "") -> dict[str, str | float]:
    """Returns a row of a table: mean and deviation of each metric, beside those of the paper."""
    row = ROWS[name]
    first = {"strategy": strategy} if strategy else {"row": row.label}
    line = first | {
        "L_pix": row.pixel_levels,
        "L_sem": row.semantic_levels,
        "weights": f"{runs[0]['parameters'] / 1e6:.2f} M",
    }
    line |= {metric: spread([run[metric] for run in runs]) for metric in METRICS}
    claims = CLAIMS_5 if strategy else [*CLAIMS_4[:4], CLAIMS_4[-1]]
    return line | {f"{claim.paper_metric} in the paper": claim.paper[name] for claim in claims}


def _write_recipes(options: Options, path: Path) -> None:
    """Writes the five recipes with bases and overrides applied."""
    recipes = {name: asdict(_recipe(options, name, options.seed)) for name in ROWS}
    with atomic_file(path) as part:
        part.write_text(yaml.safe_dump(recipes, sort_keys=False), encoding="utf-8")


def _notes(options: Options, recipe: Recipe, probes: Probes) -> list[str]:
    seeds, own = ", ".join(map(str, range(options.seed, options.seed + options.seeds))), probes.references
    return [
        f"Five tokenizers, each trained at seed {seeds}: {options.steps} steps of "
        f"{recipe.training['per_device_train_batch_size']} images of the embedded world, without LPIPS and without a "
        "discriminator. All encoders start from the embedded vision tower, whose frozen copy is the "
        "teacher; all else starts from random weights. `recipes.yaml` has the rest. Rows of one seed are trained on "
        "the same images in the same order.",
        "`different layers` and `different branches` have two trajectories: their commitment loss is the sum of two, "
        "each of which weighs as much as the one of the other rows. `different branches` has a second encoder, which "
        "starts from the same vision tower.",
        "The paper's rows start from SigLIP2 and are trained on millions of photographs, with a language model on each "
        "of them: an ordering that holds or fails here is a result on this small world, and no test of the paper.",
        f"`psnr`, `ssim` (data range 1), `fd` and `cosine` are of {options.images} scenes in held-out icon styles. "
        "`fd` is the Frechet distance over pooled features of the vision tower, and no FID. `cosine` is that of the "
        "decoded semantics to the features of the teacher.",
        "`thing` and `color` are in the place of the paper's understanding benchmarks: accuracies of a linear probe of "
        "the decoded semantics at every patch with a thing. It is fitted for each row in the same way, on twice as "
        f"many scenes of training styles. On the teacher's features they are {own['thing teacher']:.3f} and "
        f"{own['color teacher']:.3f}, for the most frequent label {own['thing baseline']:.3f} and "
        f"{own['color baseline']:.3f}.",
        "`generated` is in the place of the paper's generation benchmarks: a small generator with a depth decoder, "
        f"trained on each row's pixel codes for {options.generator_steps} steps, generates the scenes of {PROMPTS} "
        f"labels (thing, colour, background) that were not among the {SCENES} of its training; a scene is right if "
        "none of another thing or colour is nearer. `pixel_bits` is the entropy of the levels that it generates at one "
        "position, each level by itself; the paper has no figure of it.",
    ]


def _plot(path: Path, runs: dict[str, list[dict[str, float]]]) -> None:
    labels = [ROWS[name].label for name in runs]
    with figure(4, 2, width=5.6, height=2.3) as (canvas, axes):
        for axis, (metric, title) in zip(axes.flat, METRICS.items(), strict=True):
            for index, (name, own) in enumerate(runs.items()):
                values, color = [run[metric] for run in own], RED if name == METHOD else BLUE
                axis.plot(values, [index] * len(values), "o", color=color, alpha=0.5)
                axis.plot(sum(values) / len(values), index, "|", color=color, markersize=16, markeredgewidth=3)
            axis.set_yticks(range(len(labels)), labels)
            axis.set_ylim(len(labels) - 0.5, -0.5)
            axis.set_title(title)
        canvas.suptitle("Ablations on the embedded world: a dot is a seed, a bar their mean, red the method")
        save(canvas, path)
