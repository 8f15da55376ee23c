"""Model card of EvoTok-mini, rendered from the results of `evotok eval` and `config.json` in its folder.

    evotok eval mini assets/evotok-mini --out docs/results/mini
    python -m evotok.cards.mini assets/evotok-mini docs/results/mini

The second command copies the results beside the checkpoint and renders `README.md`. Every measured number in the card
is one of theirs; sections without results are left out.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from evotok.cards.checkpoint import TAGS, USAGE, parts_table, render_template
from evotok.cards.results import results_sections
from evotok.cards.suites import COMMANDS, FILES, MINI, outdated_results, read_suite, read_suites
from evotok.commands.checkpoints import find_checkpoint
from evotok.commands.files import new_files
from evotok.eval.results import RESULTS, read_results
from evotok.eval.suite import sha256
from evotok.modeling_evotok.configuration_evotok import EvoTokConfig


HUB_RESULTS = {  # figure -> task of the Hub, metric, its name
    "psnr_new_style_depth4": ("image-feature-extraction", "psnr", "PSNR of 4 levels, held-out styles"),
    "probe_share_16": ("image-feature-extraction", "accuracy", "probe on decoded semantics, share of the teacher's"),
    "qa_name_new_style": ("visual-question-answering", "accuracy", "name, held-out styles"),
    "qa_color": ("visual-question-answering", "accuracy", "color of a thing"),
    "qa_yes_no": ("visual-question-answering", "accuracy", "yes or no"),
    "qa_count": ("visual-question-answering", "accuracy", "number of things"),
    "qa_position": ("visual-question-answering", "accuracy", "position"),
    "geneval_overall": ("text-to-image", "geneval", "GenEval's tasks, seen pairs"),
    "geneval_overall_held": ("text-to-image", "geneval", "GenEval's tasks, held-out pairs"),
}

TEMPLATE = """\
---
{{ card_data }}
---

# EvoTok-mini

A small multimodal model that answers questions about images of {{ size }} px and generates such images from text: one
checkpoint for both. It is EvoTok at a size that trains on two CPU cores, with the code and the order of training of the
large configuration.

{{ parts }}

## How to use it

{{ usage }}

## The world

48 things in hand-made icon styles, nine colours, scenes of one to four things on a coloured background, and colour
emoji in five styles. Held out from all training are icon styles (whole families of icon sets), one in eight pairs of
thing and colour, one in eight pairs of thing and relation, and the emoji style `openmoji`.

## Training

The recipes are in `configs/mini/`; `make mini` runs them in this order.

1. `vision-shapes.yaml`, `vision.yaml`: a `SiglipVisionModel` learns the thing and the colour at every patch, from large
   black icons to coloured scenes. It takes the place of SigLIP2.
2. `language.yaml`: a `Qwen2ForCausalLM` with its BPE tokenizer learns the texts of the world. It takes the place of
   Qwen2.5.
3. `tokenizer.yaml`: the image tokenizer. Its encoder starts from the vision tower, and a frozen copy of the tower is
   the teacher of the decoded semantics.
4. `pretrain.yaml`, `sft-keywords.yaml`, `sft.yaml`, `sft-places.yaml`, `gen-single.yaml`, `gen.yaml`,
   `gen-counts.yaml`: the multimodal model, from the tokenizer and the language model: first the semantic projector
   alone, then questions in keywords and in sentences, then text to image beside questions: first one kind of thing,
   then scenes. More than half of the rows of the last recipe are questions in keywords, for counts. The shipped weights
   were trained in more runs than there are recipes; `docs/train.md` has the differences.

## Results

The targets were set before training. {{ met }}

{{ results }}

## Data and licences

The weights are Apache-2.0. They were trained on icons of about 150 sets (MIT, Apache-2.0, CC-BY-4.0, OFL and others)
and on emoji at 64 px: Noto Emoji (Google, Apache-2.0), Twemoji (Twitter, Inc. and other contributors, CC-BY-4.0) and
Fluent Emoji, flat and 3D (Microsoft, MIT). OpenMoji (CC-BY-SA-4.0) was only used to measure. All sets, authors and
licences: `assets/world/LICENSES.md`. EfficientNet-Lite0 (Apache-2.0), which judges single emoji, is not part of this
checkpoint.

## Limits

- The model is limited to 48 names, nine colours and the sentences of its recipes, in English. It cannot process
  photographs, other words or open conversation.
- Scenes from text show one canonical icon of each thing, {{ thing_size }} px wide, in fixed places.
- The detector of generated scenes compares with these canonical icons; it measures no aesthetic quality.
- It was not tested for bias.
"""


def write_card(folder: Path) -> None:
    """Renders `README.md` of a checkpoint from the results beside it.

    Raises:
        ValueError: there are no results.
    """
    results = read_suite(folder / FILES[MINI], MINI)
    suites = read_suites(folder, results["checkpoint_sha256"])
    with new_files(folder, overwrite=True) as reserve:
        reserve("README.md").write_text(render_card(suites, EvoTokConfig.from_pretrained(folder)), encoding="utf-8")


def render_card(suites: dict[str, dict[str, Any]], config: EvoTokConfig) -> str:
    """Renders the card as Markdown with YAML metadata.

    Args:
        suites: results of `read_suites`, those of the suite `mini` included.
    """
    figures = suites[MINI]["figures"]
    data = ModelCardData(
        model_name="EvoTok-mini",
        language="en",
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="any-to-any",
        tags=TAGS,
        eval_results=hub_results(figures),
    )
    targets = [name for name in figures if f"{name}_target" in figures]
    met = sum(figures[name] >= figures[f"{name}_target"] for name in targets)
    return render_template(
        data,
        TEMPLATE,
        size=config.vq_config.image_size,
        thing_size=config.vq_config.image_size // 2,
        parts=parts_table(config, {row["part"]: row["parameters"] for row in suites[MINI]["tables"]["parameters"]}),
        usage=USAGE,
        met=f"{met} of {len(targets)} targets are met.",
        results=results_sections(suites),
    )


def hub_results(figures: dict[str, float]) -> list[EvalResult]:
    """Converts figures to the Hub's metadata."""
    return [
        EvalResult(
            task_type=task,
            dataset_type="evotok-world",
            dataset_name="world of EvoTok-mini",
            metric_type=metric,
            metric_name=name,
            metric_value=round(figures[figure], 4),
        )
        for figure, (task, metric, name) in HUB_RESULTS.items()
        if figure in figures
    ]


def copy_results(folder: Path, results: Path, weights: list[Path]) -> None:
    """Copies the `results.json` of a folder of results beside a checkpoint, under the name of its suite.

    Raises:
        ValueError: results of a suite that the card does not show, unfinished ones, or of other weights.
    """
    suite = read_results(results)["suite"]
    if suite not in FILES:
        raise ValueError(f"{results}: results of {suite}: the card shows those of {', '.join(COMMANDS)}.")
    path = results / RESULTS
    if read_suite(path, suite)["checkpoint_sha256"] != sha256(*weights):
        raise ValueError(f"{results}: results of other weights than those in {folder}: measure this checkpoint.")
    with new_files(folder, overwrite=True) as reserve:
        reserve(FILES[suite]).write_bytes(path.read_bytes())


def main(argv: list[str] | None = None) -> int:
    """Copies results beside a checkpoint and renders its card; returns the exit code."""
    parser = argparse.ArgumentParser(description="Render the model card of a checkpoint from results of evotok eval.")
    parser.add_argument("checkpoint", help="folder of a checkpoint, or mini")
    parser.add_argument("results", nargs="*", type=Path, help="folders of the suites mini and understanding")
    options = parser.parse_args(argv)
    try:
        checkpoint = find_checkpoint(options.checkpoint)
        for results in options.results:
            copy_results(checkpoint.folder, results, checkpoint.weights)
        write_card(checkpoint.folder)
        weights = read_suite(checkpoint.folder / FILES[MINI], MINI)["checkpoint_sha256"]
        lines = outdated_results(checkpoint.folder, weights)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    for line in lines:
        print(line, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
