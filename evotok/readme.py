"""Fills the generated blocks of README.md, `<!-- name -->` to `<!-- /name -->`, from the files that they speak of.

python -m evotok.readme
"""

import re
import sys
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
    return {"usage": USAGE, "results": results_table(results)}


def main() -> int:
    path = Path(__file__).resolve().parents[1] / "README.md"
    with new_files(path.parent, overwrite=True) as reserve:
        reserve(path.name).write_text(fill(path.read_text(encoding="utf-8"), blocks()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
