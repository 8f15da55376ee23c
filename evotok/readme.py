"""Fills the generated blocks of README and docs, `<!-- name -->` to `<!-- /name -->`, from the files they speak of.

python -m evotok.readme
"""

import ast
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from evotok.commands.checkpoints import find_asset
from evotok.commands.files import new_files
from evotok.eval.mini.figures import TARGETS
from evotok.model_card import USAGE
from evotok.suite_sections import MINI, read_suite


LABELS = {
    "psnr_new_style_depth4": "reconstruction of scenes in held-out styles, PSNR of 4 levels, dB",
    "semantic_gain_4_16": "cosine to the teacher, level 16 minus level 4",
    "probe_gain_4_16": "things read from decoded semantics, level 16 minus level 4",
    "probe_share_16": "things read from decoded semantics at level 16, share of the teacher's accuracy",
    "qa_name_new_style": "names one thing in held-out styles",
    "qa_color": "names the color of a thing",
    "qa_yes_no": "answers yes or no",
    "qa_count": "counts, 1 to 4",
    "qa_position": "says where a thing is",
    "geneval_overall": "GenEval's tasks in the world, seen pairs, CFG 7.5",
    "geneval_overall_held": "GenEval's tasks in the world, held-out pairs of thing and color, CFG 7.5",
    "geneval_detector": "the detector on real scenes",
    "geneval_ceiling": "real scenes after the image tokenizer",
    "t2i_top5_train_cfg7.5": "emoji in a named style, top-5 of all emoji, CFG 7.5",
}


ROOT = Path(__file__).resolve().parents[1]
TRAJECTORY = ROOT / "docs" / "results" / "trajectory" / "results.json"
MEMORY, RATES = (ROOT / "docs" / "results" / "training" / name for name in ("memory.json", "rates.json"))
WORKS = {  # of `evotok.training.planning.rates`
    "encode-mini": "PNG files of 64 pixels to codes, EvoTok-mini's tokenizer",
    "encode-paper": "PNG files of 256 pixels to codes, a tokenizer of the paper's size",
    "read-records": "shards to records",
    "read-stream": "shards to batches of records, shuffled and resumable",
    "read-batches": "shards to what the model takes, captions as tokens",
}
ENGINE = {  # rows of `evotok bench` -> the work, what it is beside if the row does not say, how many times faster
    "search": ("16 codes of 4,096 vectors among 32,768", "", lambda row: row["ratio"]),
    "residual_vq": ("the same", "", lambda row: row["ratio"]),
    "train_step": ("the same, and learning from them", "the search alone", lambda row: 1 / row["over_search"]),
    "position": ("4 codes of 16 rows, depth decoder 2,560 wide", "", lambda row: row["ratio"]),
    "one_prompt": ("an image, guided, by {}", "", lambda row: row["ratio"]),
    "eight_prompts": ("eight images, guided, by {}", "eight calls of one", lambda row: row["speedup"]),
    "compiled": ("an image, guided, by {}, compiled", "not compiled", lambda row: 1 / row["over_plain"]),
    "image": ("loss of 8 images, 4 x 32,768 classes", "", lambda row: 1 / row["time_ratio"]),
    "text": ("loss of 256 labels in 1,024 tokens, 151,936 classes", "", lambda row: 1 / row["time_ratio"]),
}
DEPTHS_SHOWN = (1, 2, 3, 4, 8, 16)
DEPTH_FIGURES = {  # of the suite `trajectory` -> heading, digits
    "psnr": ("PSNR, dB", 1),
    "fd": ("Frechet distance", 0),
    "similarity_pixels": ("semantics of the reconstruction", 3),
    "similarity_semantics": ("decoded semantics", 3),
    "probe": ("things read by the probe", 3),
}
CLUSTER_LABELS = {"thing": "with the thing", "color": "with its colour", "background": "with the background"}
# Folders in the order of reading, with what they are, and whether the tree lists their files.
TREE = {
    "evotok": ("public names, command line, demo, model card", True),
    "evotok/commands": ("one file a command, and what they share", True),
    "evotok/app": ("the page of `evotok app`", True),
    "evotok/serving": ("the server of `evotok serve`", True),
    "evotok/vllm": ("the plugin for vLLM, and the engine `vllm` of `evotok serve`", True),
    "evotok/conversion": ("checkpoints of the paper's release, and the way back", True),
    "modeling_evotok": ("the model; a saved checkpoint carries these files", True),
    "processing": ("from text and images to tensors and back; carried too", True),
    "data": ("images in folders, and the embedded world", True),
    "data/world": ("drawings, scenes, questions, prompts and splits of the embedded world", True),
    "training": ("recipes, losses, trainers", True),
    "training/sources": ("the data sets that the paper names, each behind an adapter", True),
    "training/planning": ("what a recipe will cost, before a weight is loaded", True),
    "eval": ("metrics as pure functions, and what suites share", True),
    "eval/suites": ("one file for each suite of `evotok eval`", True),
    "eval/mini": ("the parts of the suite `mini`", True),
    "eval/benchmarks": ("the engine against a plain reference and the machine's limits", True),
    "configs/mini": ("recipes of EvoTok-mini, stage by stage", False),
    "configs/mini/cuda": ("the same on one GPU, each with a limit of minutes", False),
    "configs/paper": ("recipes at the paper's size", False),
    "configs/ablations": ("the rows of the paper's ablations, as differences from the method", False),
    "configs/eval": ("options of the suites of `evotok eval`", False),
    "configs/deepspeed": ("how many GPUs share what", False),
    "tools": ("what developers run; not installed", True),
    "assets/world": ("the drawings of the embedded world, with their licences", False),
    "assets/vision-mini": ("the vision tower that EvoTok-mini starts from", False),
    "assets/evotok-mini": ("the embedded checkpoint, with its figures and card", False),
    "docs": ("explanations, guides, notebooks; `make docs` builds them with the API reference", False),
    "tests": ("one file a source file, and tests of promises: checkpoints, recipes, documents", False),
}


def folders() -> str:
    """The repository's folders with one line each, as a Markdown block."""
    return "\n".join(["```text", *(f"{folder + '/':<20} {summary}" for folder, (summary, _) in TREE.items()), "```"])


def file_tree() -> str:
    """The folders of code with their files, as a Markdown block: one line each, what a file says of itself."""
    lines = []
    for folder, (_, listed) in TREE.items():
        if not listed:
            continue
        lines.append(f"{folder}/")
        for path in sorted((ROOT / folder).glob("*.py")):
            said = textwrap.shorten(first_sentence(path), 86, placeholder=" ...")
            if path.name != "__init__.py":
                lines.append(f"    {path.name:<27} {said}")
    return "\n".join(["```text", *lines, "```"])


def first_sentence(path: Path) -> str:
    """The docstring of a file up to the first full stop."""
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    paragraph = " ".join((said or "").partition("\n\n")[0].split())
    return re.split(r"(?<!Eq)(?<!Sec)\. ", paragraph)[0].rstrip(".")


def results_table(results: dict) -> str:
    """Measured figures beside their targets and baselines, as Markdown; what is not measured is left out."""
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
    """Figures of the suite `trajectory` by depth, and where their gain comes from, as Markdown."""
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
    """Share of what a figure gains from depth 1 to 16 that it has gained by depth 4."""
    first, pixels, last = (rows[depth][name] for depth in (1, 4, 16))
    return (pixels - first) / (last - first)


def clusters_table(results: dict[str, Any]) -> str:
    """Agreement of clusters with what the images show, by depth, as Markdown."""
    lines = [f"| levels | {' | '.join(CLUSTER_LABELS.values())} |", "| --- |" + " --- |" * len(CLUSTER_LABELS)]
    lines += [
        f"| {row['depth']} | {' | '.join(f'{row[label]:.2f}' for label in CLUSTER_LABELS)} |"
        for row in results["tables"]["clusters"]
    ]
    return "\n".join(lines)


def chain_table() -> str:
    """Budgets of the stages of EvoTok-mini in the order of training, on CPU cores and on a GPU, as Markdown."""
    from evotok.training.chain import read_chain

    lines = ["| recipe | steps x samples | on a GPU | minutes on a GPU, at most |", "| --- | --- | --- | --- |"]
    minutes = 0.0
    for recipe, gpu in zip(*(read_chain(ROOT / "configs" / folder) for folder in ("mini", "mini/cuda")), strict=True):
        name = Path(recipe.training["output_dir"]).name
        minutes += gpu.max_minutes
        lines.append(f"| `{name}.yaml` | {_budget(recipe)} | {_budget(gpu)} | {gpu.max_minutes:g} |")
    return "\n".join([*lines, f"| all | | | {minutes:g} |"])


def _budget(recipe: Any) -> str:
    steps, samples = (recipe.training[name] for name in ("max_steps", "per_device_train_batch_size"))
    return f"{steps:,} x {samples}"


def memory_table(rows: list[dict[str, Any]]) -> str:
    """Peak memory as planned and as measured, by case, as Markdown."""
    lines = ["| run | planned, MB | measured, MB | planned beside measured |", "| --- | --- | --- | --- |"]
    for row in sorted(rows, key=lambda row: row["name"]):
        planned, measured = row["planned_bytes"], row["measured_bytes"]
        lines.append(
            f"| `{row['name']}` | {planned / 1e6:,.0f} | {measured / 1e6:,.0f} | {planned / measured - 1:+.1%} |"
        )
    return "\n".join(lines)


def rates_table(rows: list[dict[str, Any]]) -> str:
    """Images a second of one process, by what is done with them, as Markdown."""
    lines = ["| from, to | images/s |", "| --- | --- |"]
    rates = {row["name"]: row["images_per_second"] for row in rows}
    lines += [f"| {work} | {rates[name]:,.{0 if rates[name] >= 10 else 2}f} |" for name, work in WORKS.items()]
    return "\n".join(lines)


def engine_table() -> str:
    """What `evotok bench` measured, by machine and work, as Markdown."""
    heading = ["machine", "work", "takes", "beside", "times faster", "times the floor"]
    lines = [f"| {' | '.join(heading)} |", "|" + " --- |" * len(heading)]
    for path in sorted((ROOT / "docs" / "results" / "engine").glob("*.json")):
        for row in json.loads(path.read_text(encoding="utf-8")):
            lines += [_engine_line(row)] if row["name"] in ENGINE else []
    return "\n".join(lines)


def _engine_line(row: dict[str, Any]) -> str:
    work, reference, faster = ENGINE[row["name"]]
    work = work.format("the 7B model" if row["size"] == "paper" else "a model of 180M parameters")
    machine = row["machine"] if row["device"] == "cuda" else f"{row['threads']} cores of {row['machine']}"
    seconds = row["seconds"]
    takes = f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
    floor = f"{row['floor_multiple']:.2f}" if "floor_multiple" in row else ""
    cells = [machine, work, takes, reference or row["reference"], f"{faster(row):.3g}", floor]
    return f"| {' | '.join(cells)} |"


def sources_table() -> str:
    """The data sets that a mixture can be drawn from, as Markdown."""
    from evotok.training.sources import SOURCES

    lines = ["| source | for | where | rows | licence |", "| --- | --- | --- | --- | --- |"]
    for source in SOURCES.values():
        rows = f"{source.num_samples:,}" if source.num_samples else ""
        where = f"`{source.hub_id}`" if source.hub_id else "your folder"
        task = "preferences" if source.preferences else source.task
        lines.append(f"| `{source.name}` | {task} | {where} | {rows} | {source.licence} |")
    return "\n".join(lines)


def fill(text: str, blocks: dict[str, str]) -> str:
    """`text` with every named block replaced.

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
    """Every generated block, by document."""
    results = read_suite(find_asset("evotok-mini") / "results.json", MINI)["figures"]
    trajectory, memory, rates = (json.loads(path.read_text(encoding="utf-8")) for path in (TRAJECTORY, MEMORY, RATES))
    return {
        "README.md": {"usage": USAGE, "results": results_table(results), "folders": folders(), "tree": file_tree()},
        "docs/tokenizer.md": {"depths": depths_table(trajectory), "clusters": clusters_table(trajectory)},
        "docs/train.md": {"chain": chain_table(), "memory": memory_table(memory)},
        "docs/engine.md": {"engine": engine_table()},
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
