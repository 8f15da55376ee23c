"""Targets of the figures of the suite `mini`, which were set before training."""

from ...data.world.prompts import TASKS


TARGETS = {  # figure -> least value that is aimed at
    "psnr_new_style_depth4": 24.0,
    "semantic_gain_4_16": 0.04,
    "probe_gain_4_16": 0.08,
    "probe_share_16": 0.96,
    "qa_name_new_style": 0.85,
    "qa_color": 0.95,
    "qa_yes_no": 0.88,
    "qa_count": 0.93,
    "qa_position": 0.90,
    "geneval_overall": 0.90,
    "geneval_overall_held": 0.85,
    "geneval_detector": 0.98,
    "geneval_ceiling": 0.95,
    "t2i_top5_train_cfg7.5": 0.90,
}
LEAST_TASK = 0.75
"""Least value of each `geneval_<task>`, of seen and of held-out pairs."""


def with_targets(figures: dict[str, float]) -> dict[str, float]:
    """Returns the figures, each followed by its target where it has one."""
    result: dict[str, float] = {}
    for name, value in figures.items():
        result[name] = value
        task = name.removeprefix("geneval_").removesuffix("_held")
        if name in TARGETS:
            result[f"{name}_target"] = TARGETS[name]
        elif name.startswith("geneval_") and task in TASKS:
            result[f"{name}_target"] = LEAST_TASK
    return result
