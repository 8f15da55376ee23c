"""Fills the generated blocks of README.md, `<!-- name -->` to `<!-- /name -->`, from the files that they speak of.

python -m evotok.readme
"""

import ast
import re
import sys
import textwrap
from pathlib import Path

from evotok.commands.checkpoints import find_asset
from evotok.commands.files import new_files
from evotok.measure import TARGETS
from evotok.model_card import USAGE, read_results


LABELS = {
    "psnr_new_concept_depth4": "reconstruction of things never seen, PSNR at depth 4, dB",
    "codebook_usage_min": "codes in use, least used of the 16 levels",
    "qa_name_new_pair": "names things in a style unseen for them",
    "qa_group_new_concept": "names the group of things never seen",
    "qa_color": "names the color",
    "qa_yes_no": "answers yes or no",
    "qa_count": "counts, 1 to 4",
    "t2i_top5_train_cfg7.5": "draws what it saw in training, top-5 of 1,461 at CFG 7.5",
    "t2i_top5_new_pair_cfg7.5": "draws unseen pairs of thing and style, top-5 of 1,461 at CFG 7.5",
}


ROOT = Path(__file__).resolve().parents[1]
# Folders of the tree, in the order of reading, with what they are and the files that speak for themselves.
TREE = {
    "evotok": ("the face: public names, command line, demo, measurement, model card", "*.py"),
    "evotok/commands": ("one file a command, and what they share", "*.py"),
    "evotok/app": ("the page of `evotok app`", "*.py"),
    "evotok/conversion": ("checkpoints of the paper's release, and the way back", "*.py"),
    "modeling_evotok": ("the model; a saved checkpoint carries these files", "*.py"),
    "processing": ("from text and images to tensors and back; carried too", "*.py"),
    "training": ("recipes, data, losses, trainers", "*.py"),
    "training/sources": ("the data sets that the paper names, each behind an adapter", "*.py"),
    "training/planning": ("what a recipe will cost, before a weight is loaded", "*.py"),
    "training/emoji": ("the embedded world that EvoTok-mini learns", "*.py"),
    "eval": ("metrics as pure functions, and what suites share", "*.py"),
    "eval/suites": ("one file for each suite of `evotok eval`", "*.py"),
    "eval/benchmarks": ("the engine against a plain reference and the machine's limits", "*.py"),
    "configs/mini": ("recipes of EvoTok-mini, stage by stage", "*.yaml"),
    "configs/paper": ("recipes at the paper's size", "*.yaml"),
    "configs/ablations": ("the rows of the paper's ablations, as differences from the method", "*.yaml"),
    "configs/eval": ("options of the suites of `evotok eval`", "*.yaml"),
    "configs/deepspeed": ("how many GPUs share what", ""),
    "assets/emoji": ("the emoji sheets, with their licences", ""),
    "assets/evotok-mini": ("the embedded checkpoint, with its figures and card", ""),
    "docs": ("explanations, guides, notebooks; `make docs` builds them with the API reference", ""),
    "tests": ("one file a source file, and tests of promises: checkpoints, recipes, documents", ""),
}


def file_tree() -> str:
    """The repository's folders and files with one line each, as a Markdown block: what each file says of itself."""
    lines = []
    for folder, (summary, pattern) in TREE.items():
        lines.append(f"{folder + '/':<31} {summary}")
        for path in sorted((ROOT / folder).glob(pattern)) if pattern else ():
            said = textwrap.shorten(first_sentence(path), 86, placeholder=" ...")
            if path.name != "__init__.py":
                lines.append(f"    {path.name:<27} {said}")
    return "\n".join(["```text", *lines, "```"])


def first_sentence(path: Path) -> str:
    """What a file says of itself: its docstring, or its first comment, up to the first full stop."""
    text = path.read_text(encoding="utf-8")
    said = ast.get_docstring(ast.parse(text)) if path.suffix == ".py" else text.splitlines()[0].lstrip("# ")
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
    return "\n".join(lines)


def fill(text: str, blocks: dict[str, str]) -> str:
    """`text` with every named block replaced.

    Raises:
        ValueError: a block is not there.
    """
    for name, content in blocks.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"README.md has no block <!-- {name} -->.")
        text = pattern.sub(lambda match, content=content: f"{match[1]}\n{content}\n\n{match[2]}", text)
    return text


def blocks() -> dict[str, str]:
    """Every generated block of the README."""
    results = read_results(find_asset("evotok-mini") / "results.json")
    return {"usage": USAGE, "results": results_table(results), "tree": file_tree()}


def main() -> int:
    path = ROOT / "README.md"
    with new_files(path.parent, overwrite=True) as reserve:
        reserve(path.name).write_text(fill(path.read_text(encoding="utf-8"), blocks()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
