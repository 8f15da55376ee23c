"""`evotok plan`: what a recipe will take, before anything is downloaded or rented."""

import argparse
from typing import TYPE_CHECKING, Any

from evotok.commands.numbers import at_least_one
from evotok.commands.terminal import add_json, say, waiting


if TYPE_CHECKING:
    from evotok.training.planning.plan import Plan

EXAMPLES = """  evotok plan configs/paper/sft.yaml
  evotok plan configs/paper/gen.yaml --gpus 64 --gpu h200 --mfu 0.45
  evotok plan configs/paper/low-memory/gen.yaml --gpus 1 --gpu rtx4090"""
FRAMEWORK_BYTES = 2e9
"""What CUDA, NCCL and torch take of a GPU before a model does."""
_SCALES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, such as configs/paper/sft.yaml")
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="changes to the recipe")
    parser.add_argument(
        "--gpus", type=at_least_one, metavar="N", help="how many (default: as many as the recipe is written for)"
    )
    parser.add_argument(
        "--gpu", default="h100", metavar="KIND", help="which: h100 (default), h200, a100-80g, rtx4090 ..."
    )
    parser.add_argument(
        "--mfu", type=float, default=0.4, help="share of the GPU's peak that useful work reaches (default 0.4)"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print the plan."""
    from evotok.commands.train import find_recipe
    from evotok.training.planning.gpus import GPUS
    from evotok.training.planning.plan import make_plan

    if options.gpu not in GPUS:
        raise ValueError(f"--gpu {options.gpu}: not one of {', '.join(GPUS)}.")
    if not 0 < options.mfu <= 1:
        raise ValueError(f"--mfu {options.mfu} must be in (0, 1].")
    with waiting("Planning"):
        plan = make_plan(find_recipe(options.recipe), options.overrides, options.gpus, GPUS[options.gpu], options.mfu)
        facts = {"recipe": options.recipe, "gpu": options.gpu} | _facts(plan)
    if options.json:
        say(options, facts, ())
    else:
        _print_plan(facts)
    return 0


def _facts(plan: "Plan") -> dict[str, Any]:
    """The plan as JSON can hold it; memory and sizes in bytes, and what is not known is None."""
    computing, sending = plan.seconds_a_step(plan.gpus, plan.stage)
    tokens = plan.tokens_a_sample * plan.batch
    memory = [
        memory._asdict()
        | {
            "zero_stage": stage,
            "offload": bool(plan.offload and stage),
            "checkpointing": checkpointing,
            "total": memory.total,
            "fits": memory.total + FRAMEWORK_BYTES < plan.gpu.memory,
            "chosen": (checkpointing, stage) == (plan.checkpointing, plan.stage),
        }
        for (checkpointing, stage), memory in plan.memory.items()
    ]
    scaling = []
    for gpus in _SCALES:
        seconds = plan.seconds_a_step(gpus, plan.stage)
        scaling.append(
            {
                "gpus": gpus,
                "memory_total": plan.memory_on(gpus, plan.stage, plan.checkpointing).total,
                "sent_a_step_zero2": plan.sent_a_step(gpus, 2),
                "sent_a_step_zero3": None if plan.recipe.stage == "tokenizer" else plan.sent_a_step(gpus, 3),
                "computing_seconds": seconds[0],
                "sending_seconds": seconds[1],
                "days": plan.days(gpus),
            }
        )
    return {
        "stage": plan.recipe.stage,
        "gpus": plan.gpus,
        "mfu": plan.mfu,
        "parameters": {name: {"all": total, "trained": trained} for name, (total, trained) in plan.parts.items()}
        | {"all": {"all": plan.parameters, "trained": plan.trainable}},
        "memory": memory,
        "samples_a_step": plan.batch,
        "samples_a_step_of_recipe": plan.recipe_batch,
        "operations_a_step": plan.flops_a_sample * plan.batch,
        "tokens_a_step": tokens,
        "computing_seconds": computing,
        "sending_seconds": sending,
        "steps": plan.steps,
        "tokens": None if plan.steps is None else tokens * plan.steps,
        "days": plan.days(plan.gpus),
        "checkpoint_bytes": plan.checkpoint_bytes,
        "dataset_bytes": plan.dataset_bytes,
        "code_bytes": plan.code_bytes,
        "warning": plan.warning,
        "scaling": scaling,
    }


def _print_plan(facts: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(width=120, soft_wrap=True)
    console.print(f"{facts['recipe']}: stage {facts['stage']} on {facts['gpus']} x {facts['gpu']}\n", highlight=False)
    for table in (_parameters(facts), _memory(facts), _run(facts), _scaling(facts)):
        console.print(table)
    if facts["samples_a_step"] != facts["samples_a_step_of_recipe"]:
        console.print(
            f"A step has {facts['samples_a_step']:,} samples here, but {facts['samples_a_step_of_recipe']:,} in the "
            "recipe, which its steps and learning rate are\nfor. Change training.per_device_train_batch_size, "
            "training.gradient_accumulation_steps or training.max_steps.\n",
            highlight=False,
        )
    if facts["warning"]:
        console.print(f"{facts['warning']}\n", highlight=False)
    console.print(
        "Memory is for the fullest batch: every row of max_length tokens, all its text learned. Time is for average "
        "rows.\nThe frameworks' own memory, 1 to 2 GB, comes on top; LPIPS and the discriminator are not counted.",
        highlight=False,
    )


def _table(title: str, *columns: str):
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def _parameters(facts: dict[str, Any]):
    table = _table("Parameters", "part", "all", "trained")
    for name, count in facts["parameters"].items():
        table.add_row(name, f"{count['all']:,}", f"{count['trained']:,}" if count["trained"] else "frozen")
    return table


def _memory(facts: dict[str, Any]):
    parts = ("weights", "gradients", "optimizer", "buffers", "activations")
    table = _table("Memory on one GPU, GB", "", *parts, "all", "fits")
    for row in facts["memory"]:
        name = "plain" if row["zero_stage"] is None else f"ZeRO-{row['zero_stage']}"
        name += " + offload" if row["offload"] else ""
        name += ", checkpointing" if row["checkpointing"] else ""
        table.add_row(
            f"{name} (the recipe)" if row["chosen"] else name,
            *(f"{row[part] / 1e9:.1f}" for part in (*parts, "total")),
            "yes" if row["fits"] else "no",
            style="bold" if row["chosen"] else None,
        )
    return table


def _run(facts: dict[str, Any]):
    table = _table("The run", "", "")
    rows = {
        "samples a step, on all GPUs": f"{facts['samples_a_step']:,}",
        "operations a step": f"{facts['operations_a_step'] / 1e15:,.2f} PFLOP",
        "tokens a step, images included": f"{facts['tokens_a_step']:,.0f}",
        f"a step at an MFU of {facts['mfu']:g}": (
            f"{facts['computing_seconds']:.2f} s computing, {facts['sending_seconds']:.2f} s sending"
        ),
    }
    if facts["steps"] is not None:
        rows["steps"] = f"{facts['steps']:,}"
        rows["tokens in all"] = f"{facts['tokens'] / 1e9:,.1f} G"
        rows["days"] = f"{facts['days']:,.1f}"
    rows["a checkpoint"] = _bytes(facts["checkpoint_bytes"])
    if facts["dataset_bytes"]:
        rows["the data sets, roughly"] = _bytes(facts["dataset_bytes"])
    if facts["code_bytes"]:
        rows["their pictures to draw, as codes"] = _bytes(facts["code_bytes"])
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _scaling(facts: dict[str, Any]):
    columns = ("GPUs", "GB each", "sent a step: ZeRO-0 to 2", "ZeRO-3", "computing, s", "sending, s", "days")
    table = _table("From 1 to 512 GPUs", *columns)
    for row in facts["scaling"]:
        table.add_row(
            str(row["gpus"]),
            f"{row['memory_total'] / 1e9:.1f}",
            _bytes(row["sent_a_step_zero2"]),
            "" if row["sent_a_step_zero3"] is None else _bytes(row["sent_a_step_zero3"]),
            f"{row['computing_seconds']:.2f}",
            f"{row['sending_seconds']:.2f}",
            "" if row["days"] is None else f"{row['days']:,.1f}",
        )
    return table


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
