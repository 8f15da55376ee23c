"""`evotok measure`: everything that EvoTok-mini promises, on a checkpoint, over the emoji world.

`results.json` is flat: beside a figure `X` stand, where there is such a thing, `X_target` (at least this was aimed at),
`X_baseline` (what no skill reaches), and `X_n` (samples). It is written whenever a figure is ready, and the model card
with it: a measurement that was cut off goes on where it stopped, and what is there already for the same weights, data
and options is not measured again, unless `--restart`.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

import evotok
from evotok.commands.checkpoints import find_checkpoint, load_multimodal
from evotok.commands.files import new_files
from evotok.eval.generation import Gallery, generate_images, round_pixels
from evotok.eval.reconstruction import evaluate_reconstruction
from evotok.eval.suite import sha256, versions
from evotok.eval.understanding import answer_questions, score_answers
from evotok.model_card import read_results, render_card
from evotok.modeling_evotok.generation_evotok import IMAGE_GENERATION_DEFAULTS
from evotok.modeling_evotok.modeling_evotok import EvoTokForConditionalGeneration
from evotok.modeling_evotok.quantization_evotok import codebook_usage
from evotok.processing.processing_evotok import EvoTokProcessor
from evotok.suite_sections import read_suites
from evotok.training.emoji.evaluation import evaluation_set
from evotok.training.emoji.prompts import caption
from evotok.training.emoji.vocabulary import SPLITS
from evotok.training.emoji.world import Drawing, EmojiWorld
from evotok.training.emoji_tasks import TASKS
from evotok.training.teachers import EfficientNetTeacher
from evotok.training.tokenizer_data import emoji_pixels, to_pixels


TARGETS = {
    "psnr_new_concept_depth4": 22.5,
    "codebook_usage_min": 0.50,
    "qa_name_new_pair": 0.60,
    "qa_group_new_concept": 0.55,
    "qa_color": 0.85,
    "qa_yes_no": 0.80,
    "qa_count": 0.80,
    "t2i_top5_train_cfg7.5": 0.80,
    "t2i_top5_new_pair_cfg7.5": 0.30,
}
SEMANTIC_DEPTHS = (4, 8, 12, 16)
CALIBRATION = 512  # training drawings that centre the teacher, as in the tokenizer stage
T2I_SPLITS = ("train", "new_pair")
GUIDANCE_SCALES = (1.0, 2.0, 4.0, 7.5, 10.0)
HEADLINE_SCALES = (1.0, 7.5)
GALLERY_STYLES = ("noto", "twemoji", "fluent_flat", "fluent_3d")


@dataclass(frozen=True)
class Options:
    """How much is measured. `None` is all there is."""

    drawings: int | None = None
    """Drawings of each split for the tokenizer, evenly picked."""
    questions: int = 512
    """Questions of each kind, where there are as many."""
    images: int = 256
    """Pictures of each headline cell: CFG 7.5 and 1, with the checkpoint's guard."""
    table_images: int = 128
    """Pictures of each other cell of the table."""
    batch_size: int = 64
    """Questions, or prompts, at a time."""
    seed: int = 0
    """Of the questions and of the sampling."""


QUICK = Options(drawings=64, questions=32, images=16, table_images=8, batch_size=16)


@dataclass
class Run:
    """A measurement under way; `save` writes the results so far."""

    model: EvoTokForConditionalGeneration
    processor: EvoTokProcessor
    world: EmojiWorld
    options: Options
    results: dict[str, Any]
    save: Callable[[], None] = lambda: None

    def pixels(self, drawings: Sequence[Drawing]) -> Iterator[torch.Tensor]:
        """Drawings on white, (B, 3, H, W) in [-1, 1] on the model's device."""
        for start in tqdm(range(0, len(drawings), 64), "drawings", leave=False, disable=None):
            images = [to_pixels(self.world.image(drawing)) for drawing in drawings[start : start + 64]]
            yield torch.stack(images).to(self.model.device)

    def record(self, figures: dict[str, Any]) -> None:
        """Add figures, each with its target beside it."""
        for name, value in figures.items():
            self.results[name] = value
            if name in TARGETS:
                self.results[f"{name}_target"] = TARGETS[name]
        self.save()


def pick_evenly(drawings: list[Drawing], count: int | None) -> list[Drawing]:
    """`count` drawings from all over the list; all of them when there are fewer, or `count` is None."""
    count = min(count or len(drawings), len(drawings))
    return [drawings[i * len(drawings) // count] for i in range(count)]


# --- tokenizer -------------------------------------------------------------------------------------------------------


def measure_tokenizer(run: Run) -> None:
    """PSNR and semantic cosine on drawings of unseen concepts, and the use of every codebook on all drawings."""
    tokenizer = run.model.model.vq_model
    teacher = EfficientNetTeacher(tokenizer.config.grid_size).to(run.model.device)
    if tokenizer.config.semantic_feature_dim != teacher.FEATURE_DIM:
        raise ValueError(
            f"semantic_feature_dim is {tokenizer.config.semantic_feature_dim}, the EfficientNet-Lite0 teacher's is "
            f"{teacher.FEATURE_DIM}: measure a checkpoint of the mini recipes, or leave the tokenizer out with --only."
        )
    calibration = emoji_pixels(run.world, "train", CALIBRATION).to(run.model.device)
    teacher.calibrate(calibration)
    held_out = pick_evenly(run.world.drawings("new_concept"), run.options.drawings)
    depths = [depth for depth in SEMANTIC_DEPTHS if depth <= tokenizer.config.num_codebooks]
    scores = evaluate_reconstruction(tokenizer, run.pixels(held_out), teacher, depths)
    run.record({k.replace("_depth", "_new_concept_depth"): v for k, v in scores.items() if "_depth" in k})
    baseline = _cosine_of_mean(teacher, calibration, run.pixels(held_out))
    run.record({"semantic_cosine_new_concept_baseline": baseline, "psnr_new_concept_n": len(held_out)})

    drawings = [d for split in SPLITS for d in pick_evenly(run.world.drawings(split), run.options.drawings)]
    used = {name: values.tolist() for name, values in codebook_usage(_count_codes(run, drawings)).items()}
    run.record({"codebook_usage_min": min(used["usage"]), "codebook_usage_n": len(drawings)})
    run.record({f"codebook_{name}": values for name, values in used.items()})


@torch.inference_mode()
def _cosine_of_mean(teacher: EfficientNetTeacher, calibration: torch.Tensor, batches: Iterator[torch.Tensor]) -> float:
    """What a decoder gets that answers the average training features of each position, whatever the image."""
    mean = sum(teacher(batch).sum(0) for batch in calibration.split(64)) / len(calibration)  # (N, S)
    return torch.cat([torch.cosine_similarity(teacher(batch), mean, dim=-1) for batch in batches]).mean().item()


@torch.inference_mode()
def _count_codes(run: Run, drawings: Sequence[Drawing]) -> torch.LongTensor:
    """How often each code is chosen, (D, K)."""
    tokenizer = run.model.model.vq_model
    size = tokenizer.config.codebook_size
    counts = torch.zeros(tokenizer.config.num_codebooks, size, dtype=torch.long)
    for batch in run.pixels(drawings):
        levels = tokenizer.encode(batch).flatten(0, 1).T.cpu()  # (D, B N)
        counts += torch.stack([torch.bincount(level, minlength=size) for level in levels])
    return counts


# --- questions -------------------------------------------------------------------------------------------------------


def measure_questions(run: Run) -> None:
    """Accuracy on each kind of question, beside that of the commonest answer."""
    for figure, (kind, split) in tqdm(TASKS.items(), "questions", leave=False, disable=None):
        if f"{figure}_n" in run.results:
            continue
        records = evaluation_set(run.world, kind, split, run.options.questions, run.options.seed)
        scores = score_answers(records, answer_questions(run.model, run.processor, records, run.options.batch_size))
        run.record({figure: scores.accuracy, f"{figure}_baseline": scores.baseline, f"{figure}_n": scores.n})


# --- text to image ---------------------------------------------------------------------------------------------------


def _pooled(teacher: EfficientNetTeacher, batches: Iterator[torch.Tensor]) -> torch.Tensor:
    return torch.cat([teacher.pooled(batch).cpu() for batch in batches])


def build_gallery(run: Run, teacher: EfficientNetTeacher) -> Gallery:
    """Every concept in every trained style, held-out drawings among them."""
    drawings = [Drawing(concept, style) for style in GALLERY_STYLES for concept in run.world.concepts]
    features = _pooled(teacher, run.pixels(drawings))
    return Gallery(features, [d.concept.index for d in drawings], [d.style for d in drawings])


def _find(gallery: Gallery, features: torch.Tensor, drawings: Sequence[Drawing]) -> dict[str, float]:
    return gallery.find(features, [d.concept.index for d in drawings], [d.style for d in drawings])


def prompted_drawings(world: EmojiWorld, split: str, count: int) -> list[Drawing]:
    """Familiar drawings of a split: evenly picked, or where there are fewer than `count`, one after the other again."""
    drawings = pick_evenly(world.drawings(split, familiar=True), count)
    return [drawings[i % len(drawings)] for i in range(count)]


def t2i_cells(guard: float, options: Options) -> list[dict[str, Any]]:
    """What to generate: dicts of split, guidance_scale, guidance_min_p and images, the headline first."""
    cells = []
    for min_p in dict.fromkeys((guard, 0.0)):
        for scale in GUIDANCE_SCALES:
            headline = min_p == guard and scale in HEADLINE_SCALES
            images = options.images if headline else options.table_images
            for split in T2I_SPLITS:
                cell = {"split": split, "guidance_scale": scale, "guidance_min_p": min_p, "images": images}
                cells.append((not headline, cell))
    return [cell for _, cell in sorted(cells, key=lambda pair: pair[0])]


def measure_t2i(run: Run) -> None:
    """Whether the concept asked for is found in the pictures: over splits, guidance scales, with and without guard."""
    teacher = EfficientNetTeacher().to(run.model.device)
    gallery = build_gallery(run, teacher)
    run.record({"t2i_top5_chance": 5 / len(run.world.concepts)} | _ceilings(run, teacher, gallery))
    guard = float(run.model.generation_config.guidance_min_p or 0.0)
    table = run.results.setdefault("t2i_table", [])
    for cell in tqdm(t2i_cells(guard, run.options), "pictures", leave=False, disable=None):
        if any(cell.items() <= row.items() for row in table):
            continue
        started = time.perf_counter()
        drawings = prompted_drawings(run.world, cell["split"], cell["images"])
        pictures = generate_images(
            run.model,
            run.processor,
            [caption(drawing) for drawing in drawings],
            cell["guidance_scale"],
            cell["guidance_min_p"],
            batch_size=run.options.batch_size,
            seed=run.options.seed,
        )
        rate = len(drawings) / (time.perf_counter() - started)
        batches = (batch.to(run.model.device) for batch in pictures.split(64))
        scores = _find(gallery, _pooled(teacher, batches), drawings)
        table.append(cell | scores | {"images_per_second": round(rate, 2)})
        run.record(_headline(table[-1], guard))


def _ceilings(run: Run, teacher: EfficientNetTeacher, gallery: Gallery) -> dict[str, float]:
    """Top-1 and top-5 of the drawings asked for, encoded and decoded: what the tokenizer lets through."""
    tokenizer, figures = run.model.model.vq_model, {}
    for split in T2I_SPLITS:
        drawings = pick_evenly(run.world.drawings(split, familiar=True), run.options.images)
        with torch.inference_mode():
            copies = (round_pixels(tokenizer.decode_pixels(tokenizer.encode(b))) for b in run.pixels(drawings))
            scores = _find(gallery, _pooled(teacher, copies), drawings)
        figures |= {f"t2i_{name}_{split}_ceiling": scores[name] for name in ("top1", "top5")}
    return figures


def _headline(row: dict[str, Any], guard: float) -> dict[str, Any]:
    """The figures of a row of the table that stand on their own, none for most rows."""
    if row["guidance_scale"] not in HEADLINE_SCALES or row["guidance_min_p"] != guard:
        return {}
    cell = f"{row['split']}_cfg{row['guidance_scale']:g}"
    figures = {f"t2i_top{k}_{cell}{kind}": row[f"top{k}{kind}"] for kind in ("", "_same_style") for k in (5, 1)}
    return figures | {f"t2i_top5_{cell}_n": row["images"]}


# --- the whole -------------------------------------------------------------------------------------------------------

SECTIONS = {  # name -> function, how its figures begin, options that it depends on
    "tokenizer": (measure_tokenizer, ("psnr_", "semantic_", "codebook_"), ("drawings",)),
    "qa": (measure_questions, ("qa_",), ("questions", "batch_size", "seed")),
    "t2i": (measure_t2i, ("t2i_",), ("images", "table_images", "batch_size", "seed")),
}


def measure(
    checkpoint: str | Path,
    options: Options | None = None,
    sections: Sequence[str] = tuple(SECTIONS),
    out: str | Path | None = None,
    restart: bool = False,
) -> dict[str, Any]:
    """Measure sections of a checkpoint and write the results; beside the checkpoint also the model card made of them.

    Args:
        checkpoint: folder of a model of 64 px images, or `mini`.
        out: file of the results; `results.json` of the checkpoint when None.
        restart: forget what these sections have in the file.

    Returns:
        All that the file holds.

    Raises:
        ValueError: no such checkpoint, a file that holds no results.
    """
    found, options, world = find_checkpoint(str(checkpoint)), options or Options(), EmojiWorld()
    folder = found.folder
    path = folder / "results.json" if out is None else Path(out)
    model, processor = load_multimodal(str(checkpoint))
    if model.config.vq_config.image_size != world.size:
        size = model.config.vq_config.image_size
        raise ValueError(f"{checkpoint}: images of {size} px, but the emoji have {world.size}: give a mini model.")
    results = _begin(path, found.weights, model, world)

    def save() -> None:
        with new_files(path.parent, overwrite=True) as reserve:
            reserve(path.name).write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            if path == folder / "results.json":
                suites = read_suites(folder, results["checkpoint_sha256"])
                reserve("README.md").write_text(render_card(results, model.config, suites), encoding="utf-8")

    measurement = Run(model, processor, world, options, results, save)
    for name in sections:
        function, prefixes, depends_on = SECTIONS[name]
        settings = {key: getattr(options, key) for key in depends_on} | _circumstances(model, name)
        state = results["sections"].get(name, {})
        if restart or state.get("settings") != settings:
            for key in [key for key in results if key.startswith(prefixes)]:
                del results[key]
            state = {"settings": settings, "finished": False, "seconds": 0.0}
            results["sections"][name] = state
        if not state["finished"]:
            _measure_section(function, measurement, state)
    save()
    return results


def _measure_section(function: Callable[[Run], None], run: Run, state: dict[str, Any]) -> None:
    spent, started = state["seconds"], time.perf_counter()
    state["threads"] = torch.get_num_threads()
    try:
        function(run)
        state["finished"] = True
    finally:
        state["seconds"] = round(spent + time.perf_counter() - started, 1)
        run.save()


def _circumstances(model: EvoTokForConditionalGeneration, section: str) -> dict[str, Any]:
    """What else a figure depends on."""
    values = {"device": model.device.type, "dtype": str(model.model.language_model.dtype).removeprefix("torch.")}
    if section == "tokenizer":
        return {"device": model.device.type, "dtype": str(model.model.vq_model.dtype).removeprefix("torch.")}
    if section == "t2i":
        values |= {name: getattr(model.generation_config, name, None) for name in IMAGE_GENERATION_DEFAULTS}
        del values["guidance_scale"]  # each cell has its own
    return values


def _begin(path: Path, weights: list[Path], model: EvoTokForConditionalGeneration, world: EmojiWorld) -> dict[str, Any]:
    """The results in the file if they are of these weights and data, else none but what identifies them."""
    parts = {"tokenizer": model.model.vq_model, "language_model": model.model.language_model}
    parts |= {"depth_decoder": model.depth_decoder, "all": model}
    results: dict[str, Any] = {
        "checkpoint_sha256": sha256(*weights),
        "data_sha256": sha256(world.root / "emoji.json"),
        "data": {"concepts": len(world.concepts), "familiar": len(world.familiar)},
        "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
        "versions": versions(evotok.__version__),
        "sections": {},
    }
    if path.is_file():
        before = read_results(path)
        if all(before.get(key) == results[key] for key in ("checkpoint_sha256", "data_sha256")):
            return results | before | {"versions": results["versions"]}
    return results


def main(argv: list[str] | None = None) -> int:
    """The command on its own: the exit code."""
    from evotok.cli import main as command_line

    return command_line(["measure", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
