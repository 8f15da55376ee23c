"""Sections of the model card of EvoTok-mini with the results of `evotok eval`."""

from typing import Any

from evotok.cards.suites import COMMANDS, HARNESS, MINI
from evotok.data.world.evaluation import QUESTION_SETS
from evotok.data.world.prompts import TASKS
from evotok.eval.results import markdown_table


TOKENIZER = {  # prefix of figures -> label with the last number of the name, digits
    "psnr_new_style_depth": ("PSNR at depth {}, dB", 2),
    "semantic_gain_": ("gain of the cosine to the teacher, from the pixel levels to depth {}", 3),
    "probe_gain_": ("gain of the probe's accuracy, from the pixel levels to depth {}", 3),
    "probe_share_": ("accuracy of the probe at depth {}, share of the teacher's", 3),
}
VARIANTS = {  # suffix of `geneval_overall` -> label
    "": "seen pairs, CFG 7.5",
    "_held": "held-out pairs, CFG 7.5",
    "_held_no_min_p": "held-out pairs, CFG 7.5 without `guidance_min_p`",
    "_held_cfg1": "held-out pairs, CFG 1",
}
EMOJI = {  # figure -> label
    "t2i_top5_train_cfg7.5": "CFG 7.5",
    "t2i_top5_train_cfg1": "CFG 1",
    "t2i_top5_train_ceiling": "the emoji themselves, through the image tokenizer",
}


def results_sections(suites: dict[str, dict[str, Any]]) -> str:
    """Renders the sections of the suites as Markdown.

    Args:
        suites: suite -> its results, those of `mini` included.
    """
    results = suites[MINI]
    figures, tables = results["figures"], results["tables"]
    sections = [
        _tokenizer(figures, tables),
        _questions(figures),
        _harness(suites),
        _composition(figures),
        _emoji(figures),
        _how_measured(results),
    ]
    return "\n\n".join(section for section in sections if section)


def _value(figures: dict[str, float], name: str, digits: int = 3) -> str:
    return f"{figures[name]:.{digits}f}" if name in figures else ""


def _judged(figures: dict[str, float], name: str) -> list[str]:
    """Returns two cells: the target, and whether it is met."""
    target = figures.get(f"{name}_target")
    return ["", ""] if target is None else [f"{target:g}", "yes" if figures[name] >= target else "**no**"]


def _tokenizer(figures: dict[str, float], tables: dict[str, list[dict[str, Any]]]) -> str:
    if "levels" not in tables:
        return ""
    rows = [
        [
            label.format(name.rpartition("_")[2].removeprefix("depth")),
            _value(figures, name, digits),
            *_judged(figures, name),
        ]
        for prefix, (label, digits) in TOKENIZER.items()
        for name in figures
        if name.startswith(prefix) and name[-1].isdecimal()
    ]
    header = ("depth", "PSNR, dB", "cosine to the teacher", "probe")
    levels = []
    for row in tables["levels"]:
        shown = ((row["psnr"], 2), (row["semantic_cosine"], 3), (row["probe"], 3))
        levels.append([str(row["depth"]), *("" if value == "" else f"{value:.{digits}f}" for value, digits in shown)])
    return f"""\
### Image tokenizer, {figures["psnr_new_style_n"]:,} scenes in held-out styles

{markdown_table(("", "value", "target", "met"), rows)}

{markdown_table(header, levels)}

The probe reads the thing at a patch from decoded semantics. It is fitted on the features of the vision tower, on which
its accuracy is {_value(figures, "probe_teacher")}; always the commonest thing: {_value(figures, "probe_baseline")}. The
cosine of the teacher's mean features is {_value(figures, "semantic_cosine_baseline")}. Of the least used level
{_value(figures, "codebook_usage_min", 2)} of the codes occur in these scenes."""


def _questions(figures: dict[str, float]) -> str:
    rows = [
        [asked.description, f"{figures[f'{name}_n']:,}", _value(figures, name), *_judged(figures, name)]
        + [_value(figures, f"{name}_continuous"), _value(figures, f"{name}_baseline")]
        for name, asked in QUESTION_SETS.items()
        if f"{name}_n" in figures
    ]
    if not rows:
        return ""
    header = ("question", "n", "accuracy", "target", "met", "continuous features", "commonest answer")
    return f"""\
### Questions

{markdown_table(header, rows)}

Scenes in held-out styles, unless the table states another one. Greedy answers, exact match but for case, space and
punctuation. *Continuous features*: the same model with the vision tower's features in place of those of the codes."""


def _harness(suites: dict[str, dict[str, Any]]) -> str:
    """Renders the section of the same questions, scored by lmms-eval; empty without its results."""
    if HARNESS not in suites:
        return ""
    figures, version = suites[HARNESS]["figures"], suites[HARNESS]["versions"]["lmms-eval"]
    rows = [
        [asked.description, f"{figures[f'{name}_n']:,}", f"{figures[name]:.3f}"]
        for name, asked in QUESTION_SETS.items()
        if name in figures
    ]
    return f"""\
### The same questions through lmms-eval

{markdown_table(("question", "n", "exact match"), rows)}

Asked and scored by [lmms-eval](https://github.com/EvolvingLMMs-Lab/lmms-eval) {version}, to which EvoTok is a plugin:
`{COMMANDS[HARNESS]}`."""


def _composition(figures: dict[str, float]) -> str:
    if "geneval_overall" not in figures:
        return ""
    header = ("task", "seen pairs", "target", "met", "held-out pairs", "target", "met")
    rows = []
    for task in ("overall", *TASKS):
        seen, held = f"geneval_{task}", f"geneval_{task}_held"
        cells = [_value(figures, seen), *_judged(figures, seen), _value(figures, held), *_judged(figures, held)]
        rows.append([task.replace("_", " "), *cells])
    compared = [
        [label, f"{figures[f'geneval_overall{suffix}_n']:,}", _value(figures, f"geneval_overall{suffix}")]
        for suffix, label in VARIANTS.items()
        if f"geneval_overall{suffix}" in figures
    ]
    for suffix, pairs in (("", "seen"), ("_held", "held-out")):
        real = f"real scenes of {pairs} pairs"
        compared.append([f"{real}: accuracy of the detector", "", _value(figures, f"geneval_detector{suffix}")])
        compared.append([f"{real} after the image tokenizer", "", _value(figures, f"geneval_ceiling{suffix}")])
    return f"""\
### Text to image, GenEval's tasks in the world

{markdown_table(header, rows)}

{markdown_table(("images", "n", "overall"), compared)}

An image counts when it shows all that its prompt determines (background, things, their number, colours and relation)
and nothing else, by a detector without learned weights. {_guidance(figures)}"""


def _guidance(figures: dict[str, float]) -> str:
    guided, plain = (figures.get(f"geneval_overall_held{suffix}") for suffix in ("", "_cfg1"))
    if guided is None or plain is None:
        return ""
    better = "better" if guided > plain else "**not** better"
    return f"CFG 7.5 is {better} than CFG 1 on held-out pairs: {guided:.3f} and {plain:.3f}."


def _emoji(figures: dict[str, float]) -> str:
    rows = []
    for name, label in EMOJI.items():
        if name in figures:
            count = figures.get(f"{name}_n")
            n, same = "" if count is None else f"{count:,}", _value(figures, f"{name}_same_style")
            rows.append([label, n, _value(figures, name), *_judged(figures, name), same])
    if not rows:
        return ""
    return f"""\
### Text to image, single emoji in a named style

{markdown_table(("images", "n", "top-5", "target", "met", "top-5 in that style"), rows)}

Prompts name a thing and a style of the training set (`a heart, noto style`). An image counts when its emoji is among
the five nearest of all emoji in all styles, by pooled features of EfficientNet-Lite0. Chance is
{_value(figures, "t2i_top5_train_chance")}."""


def _how_measured(results: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    options = ", ".join(
        f"{name} {' '.join(value) if isinstance(value, list) else value}"
        for name, value in results["options"].items()
        if value not in ("", [])
    )
    return f"""\
### How this was measured

`{COMMANDS[MINI]}`, with {options}, on {results["device"]} in {results["dtype"]}. Weights (sha256)
`{results["checkpoint_sha256"][:16]}`; {versions}."""
