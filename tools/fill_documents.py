"""Fills the generated blocks of README and docs, `<!-- name -->` to `<!-- /name -->`, from recipes and results.

python -m tools.fill_documents
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from evotok.cards.mini import USAGE
from evotok.cards.suites import MINI, read_suite
from evotok.commands.checkpoints import find_asset
from evotok.commands.files import new_files
from evotok.eval.mini.targets import TARGETS


LABELS = {
    "psnr_new_style_depth4": "reconstruction of scenes in held-out styles, PSNR at depth 4, dB",
    "semantic_gain_4_16": "cosine to the teacher, depth 16 minus depth 4",
    "probe_gain_4_16": "accuracy of the probe on decoded semantics, depth 16 minus depth 4",
    "probe_share_16": "accuracy of the probe on decoded semantics at depth 16, share of the teacher's",
    "qa_name_new_style": "names one thing in held-out styles",
    "qa_color": "names the color of a thing",
    "qa_yes_no": "answers yes or no",
    "qa_count": "counts, 1 to 4",
    "qa_position": "names the place of a thing",
    "geneval_overall": "GenEval's tasks in the world, seen pairs, CFG 7.5",
    "geneval_overall_held": "GenEval's tasks in the world, held-out pairs, CFG 7.5",
    "geneval_detector": "the detector on real scenes",
    "geneval_ceiling": "real scenes after the image tokenizer",
    "t2i_top5_train_cfg7.5": "emoji in a named style, top-5 of all emoji, CFG 7.5",
}


ROOT = Path(__file__).resolve().parents[1]
TRAJECTORY = ROOT / "docs" / "results" / "trajectory" / "results.json"
MEMORY, RATES = (ROOT / "docs" / "results" / "training" / name for name in ("memory.json", "rates.json"))
WORKS = {  # of `tools.measure_rates`
    "encode-mini": "PNG files of 64 pixels to codes, EvoTok-mini's tokenizer",
    "encode-paper": "PNG files of 256 pixels to codes, a tokenizer of the paper's size",
    "read-records": "shards to rows",
    "read-stream": "shards to batches of rows, shuffled and resumable",
    "read-batches": "shards to model inputs, with tokenized captions",
}
ENGINE = {  # rows of `evotok bench` -> operation, reference where the row names none, how many times faster
    "search": ("16 codes of 4,096 vectors among 32,768", "", lambda row: row["ratio"]),
    "residual_vq": ("the same", "", lambda row: row["ratio"]),
    "train_step": ("the same, with codebook updates", "the search alone", lambda row: 1 / row["over_search"]),
    "train_step_graph": ("the same, as a CUDA graph", "the search alone", lambda row: 1 / row["over_search"]),
    "position": ("4 codes of 16 rows, depth decoder 2,560 wide", "", lambda row: row["ratio"]),
    "one_prompt": ("an image, guided, by {}", "", lambda row: row["ratio"]),
    "eight_prompts": ("eight images, guided, by {}", "eight calls of one", lambda row: row["speedup"]),
    "int8": ("an image, guided, by {}, weights in int8", "", lambda row: row["ratio"]),
    "compiled": ("an image, guided, by {}, compiled", "", lambda row: row["ratio"]),
    "int8_compiled": ("an image, guided, by {}, weights in int8, compiled", "", lambda row: row["ratio"]),
    "corpus": ("image files to code shards", "", lambda row: row["ratio"]),
    "corpus_compiled": ("the same, compiled", "not compiled", lambda row: 1 / row["over_plain"]),
    "image": ("loss of 8 images, 4 x 32,768 classes", "", lambda row: 1 / row["time_ratio"]),
    "text": ("loss of 256 labels in 1,024 tokens, 151,936 classes", "", lambda row: 1 / row["time_ratio"]),
}
ENGINE_PARTS = {  # rows of parts of `one_prompt`
    "language_model": "of it, the language model",
    "depth_layers": "of it, the layers of the depth decoder",
    "code_classifiers": "of it, the classifiers of codes",
    "other": "of it, projections, sampling and all between",
}
DEPTHS_SHOWN = (1, 2, 3, 4, 8, 16)
DEPTH_FIGURES = {  # of the suite `trajectory` -> heading, digits
    "psnr": ("PSNR, dB", 1),
    "fd": ("Frechet distance", 0),
    "similarity_pixels": ("semantics of the reconstruction", 3),
    "similarity_semantics": ("decoded semantics", 3),
    "probe": ("accuracy of the probe", 3),
}
CLUSTER_LABELS = {"thing": "with the thing", "color": "with its colour", "background": "with the background"}
FOLDERS = {  # in the order of reading
    "evotok": "public names, Auto classes, command line, demo, model card",
    "evotok/commands": "one file for each command",
    "evotok/app": "the page of `evotok app`",
    "evotok/serving": "the server of `evotok serve`",
    "evotok/vllm": "the vLLM plugin for `--engine vllm`",
    "evotok/cards": "model cards",
    "evotok/conversion": "conversion from and to the checkpoints of the paper's release",
    "modeling_evotok": "configurations, models, generation; saved with every checkpoint",
    "processing": "the processor: text and images to tensors and back; saved with every checkpoint",
    "data": "images, conversations, collators, mixtures, code shards; files and processes",
    "data/world": "the embedded world: icons, scenes, questions, prompts",
    "data/sources": "sources of training data, those of the paper among them",
    "training": "recipes, the registry of stages, the command, the trainer of all stages",
    "training/backbones": "the stages that train the vision tower and the language model of EvoTok-mini",
    "training/tokenizer": "the stage of the image tokenizer: losses, discriminator, EMA, trainer",
    "training/multimodal": "the stages of the multimodal model: trainer, LoRA, preferences",
    "training/resuming": "checkpoints of a training: manifest, lock, changes of the recipe",
    "training/throughput": "the benchmark of training, `evotok bench train`",
    "training/ablations": "the suite `ablations`, which trains other arrangements of the tokenizer",
    "training/planning": "estimates of memory, time and data for a recipe",
    "eval": "metrics as pure functions, and code that suites share",
    "eval/text_to_image": "benchmarks of text-to-image: prompts, generated images, detectors, verdicts",
    "eval/plotting": "style of plots, sheets of images",
    "eval/suites": "suites of `evotok eval`, one file each; `ablations` is in training/ablations/",
    "eval/mini": "the parts of the suite `mini`",
    "eval/benchmarks": "timings of `evotok bench`",
    "configs": "recipes (mini/, paper/, ablations/), options of suites (eval/), DeepSpeed configurations",
    "tools": "scripts for developers; not installed",
    "assets": "the embedded world and the checkpoint of EvoTok-mini, with their licences",
    "docs": "documentation and notebooks; `make docs` builds the site",
    "tests": "one file for each source file, and tests of documents, recipes and checkpoints",
}


def folders() -> str:
    """Returns the folders of the repository with one line each, as a Markdown block."""
    return "\n".join(["```text", *(f"{folder + '/':<20} {summary}" for folder, summary in FOLDERS.items()), "```"])


def results_table(results: dict) -> str:
    """Renders measured figures beside their targets and baselines, as Markdown; what is not measured is left out."""
    lines = ["| EvoTok-mini | measured | target | commonest answer |", "| --- | --- | --- | --- |"]
    for name, target in TARGETS.items():
        if name not in results:
            continue
        digits = 1 if name.startswith("psnr") else 2
        baseline = results.get(f"{name}_baseline")
        cells = [
            LABELS[name],
            f"{results[name]:.{digits}f}",
            f"{target:.{digits}f}",
            "" if baseline is None else f"{baseline:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    met = [results[name] >= target for name, target in TARGETS.items() if name in results]
    return "\n".join([*lines, "", f"Targets were set before training; {sum(met)} of {len(met)} are met."])


def depths_table(results: dict[str, Any]) -> str:
    """Renders the figures of the suite `trajectory` by depth, and where their gain comes from, as Markdown."""
    rows = {row["depth"]: row for row in results["tables"]["by_depth"]}
    lines = [f"| levels | {' | '.join(heading for heading, _ in DEPTH_FIGURES.values())} |"]
    lines.append("| --- |" + " --- |" * len(DEPTH_FIGURES))
    for depth in DEPTHS_SHOWN:
        cells = [f"{rows[depth][name]:.{digits}f}" for name, (_, digits) in DEPTH_FIGURES.items()]
        lines.append(f"| {depth} | {' | '.join(cells)} |")
    shares = [f"{gained(rows, name):.0%}" for name in DEPTH_FIGURES]
    lines.append(f"| of the change from 1 to 16, by level 4 | {' | '.join(shares)} |")
    return "\n".join(lines)


def gained(rows: dict[int, dict[str, float]], name: str) -> float:
    """Computes the share of what a figure gains from depth 1 to 16 that it has gained by depth 4."""
    first, pixels, last = (rows[depth][name] for depth in (1, 4, 16))
    return (pixels - first) / (last - first)


def clusters_table(results: dict[str, Any]) -> str:
    """Renders the agreement of clusters with what the images show, by depth, as Markdown."""
    lines = [f"| levels | {' | '.join(CLUSTER_LABELS.values())} |", "| --- |" + " --- |" * len(CLUSTER_LABELS)]
    lines += [
        f"| {row['depth']} | {' | '.join(f'{row[label]:.2f}' for label in CLUSTER_LABELS)} |"
        for row in results["tables"]["clusters"]
    ]
    return "\n".join(lines)


def stages_table() -> str:
    """Returns the registry of training stages as Markdown."""
    from evotok.training.stages import STAGES

    rows = [f"| `{stage.name}` | {stage.summary[0]} | {stage.summary[1]} |" for stage in STAGES.values()]
    return "\n".join(["| stage | trains | data |", "| --- | --- | --- |", *rows])


def chain_table() -> str:
    """Renders the budgets of the recipes of EvoTok-mini in the order of training, on CPUs and on a GPU, as Markdown."""
    from evotok.training.chain import read_chain

    lines = ["| recipe | steps x rows | on a GPU | minutes on a GPU, at most |", "| --- | --- | --- | --- |"]
    minutes = 0.0
    for recipe, gpu in zip(*(read_chain(ROOT / "configs" / folder) for folder in ("mini", "mini/cuda")), strict=True):
        name = Path(recipe.training["output_dir"]).name
        minutes += gpu.max_minutes
        lines.append(f"| `{name}.yaml` | {_budget(recipe)} | {_budget(gpu)} | {gpu.max_minutes:g} |")
    return "\n".join([*lines, f"| all | | | {minutes:g} |"])


def _budget(recipe: Any) -> str:
    steps, rows = (recipe.training[name] for name in ("max_steps", "per_device_train_batch_size"))
    return f"{steps:,} x {rows}"


def memory_table(rows: list[dict[str, Any]]) -> str:
    """Renders peak memory as planned and as measured, by case, as Markdown."""
    lines = ["| run | planned, MB | measured, MB | difference |", "| --- | --- | --- | --- |"]
    for row in sorted(rows, key=lambda row: row["name"]):
        planned, measured = row["planned_bytes"], row["measured_bytes"]
        lines.append(
            f"| `{row['name']}` | {planned / 1e6:,.0f} | {measured / 1e6:,.0f} | {planned / measured - 1:+.1%} |"
        )
    return "\n".join(lines)


def rates_table(rows: list[dict[str, Any]]) -> str:
    """Renders the images a second of one process, by what is done with them, as Markdown."""
    lines = ["| from, to | images/s |", "| --- | --- |"]
    rates = {row["name"]: row["images_per_second"] for row in rows}
    lines += [f"| {work} | {rates[name]:,.{0 if rates[name] >= 10 else 2}f} |" for name, work in WORKS.items()]
    return "\n".join(lines)


def engine_table(folder: Path = ROOT / "docs" / "results" / "engine") -> str:
    """Renders what `evotok bench` measured, by machine and work, as Markdown; rows without a time are left out."""
    heading = ["machine", "operation", "time", "compared with", "times faster", "times the floor"]
    lines = [f"| {' | '.join(heading)} |", "|" + " --- |" * len(heading)]
    for path in sorted(folder.glob("*.json")):
        for row in json.loads(path.read_text(encoding="utf-8")):
            shown = "seconds" in row and (row["name"] in ENGINE | ENGINE_PARTS or "mfu" in row)
            lines += [_engine_line(row)] if shown else []
    return "\n".join(lines)


def _engine_line(row: dict[str, Any]) -> str:
    floor = f"{row['floor_multiple']:.2f}" if "floor_multiple" in row else ""
    if "mfu" in row:  # the floor of a training step is the time of the model's operations
        cells, floor = [f"training step `{row['name']}`, {row['rows_a_step']} rows", "", ""], f"{1 / row['mfu']:.2f}"
    elif row["name"] in ENGINE_PARTS:
        cells = [ENGINE_PARTS[row["name"]], "", ""]
    else:
        work, reference, faster = ENGINE[row["name"]]
        work = work.format("the 7B model" if row["size"] == "paper" else "a model of 180M parameters")
        if "cold_seconds" in row:
            work += f", the first after {row['cold_seconds']:.0f} s, {row['warm_seconds']:.0f} s from the cache"
        cells = [work, reference or row["reference"], f"{faster(row):.3g}"]
    machine = row["machine"] if row["device"] == "cuda" else f"{row['threads']} cores of {row['machine']}"
    seconds = row["seconds"]
    takes = f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
    return f"| {' | '.join([machine, cells[0], takes, *cells[1:], floor])} |"


def sources_table() -> str:
    """Renders the data sets that can be sources of a mixture, as Markdown."""
    from evotok.data.sources import SOURCES

    lines = ["| source | for | where | rows | licence |", "| --- | --- | --- | --- | --- |"]
    for source in SOURCES.values():
        rows = f"{source.num_rows:,}" if source.num_rows else ""
        where = f"`{source.hub_id}`" if source.hub_id else "your folder"
        task = "preferences" if source.preferences else source.task
        lines.append(f"| `{source.name}` | {task} | {where} | {rows} | {source.licence} |")
    return "\n".join(lines)


def fill(text: str, blocks: dict[str, str]) -> str:
    """Returns `text` with every named block replaced.

    Raises:
        ValueError: a block is not there.
    """
    for name, content in blocks.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"There is no block <!-- {name} -->.")
        text = pattern.sub(lambda match, content=content: f"{match[1]}\n{content}\n\n{match[2]}", text)
    return text


def blocks() -> dict[str, dict[str, str]]:
    """Renders every generated block, by document."""
    results = read_suite(find_asset("evotok-mini") / "results.json", MINI)["figures"]
    trajectory, memory, rates = (json.loads(path.read_text(encoding="utf-8")) for path in (TRAJECTORY, MEMORY, RATES))
    return {
        "README.md": {"usage": USAGE, "results": results_table(results), "folders": folders()},
        "docs/tokenizer.md": {"depths": depths_table(trajectory), "clusters": clusters_table(trajectory)},
        "docs/train.md": {"stages": stages_table(), "chain": chain_table(), "memory": memory_table(memory)},
        "docs/performance.md": {"engine": engine_table()},
        "docs/data.md": {"sources": sources_table(), "rates": rates_table(rates)},
    }


def main() -> int:
    for document, own in blocks().items():
        path = ROOT / document
        with new_files(path.parent, overwrite=True) as reserve:
            reserve(path.name).write_text(fill(path.read_text(encoding="utf-8"), own), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
