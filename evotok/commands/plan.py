"""`evotok plan`: what a recipe will take, before anything is downloaded or rented."""

import argparse
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from evotok.training.planning.plan import Plan

EXAMPLES = """  evotok plan configs/paper/sft.yaml
  evotok plan configs/paper/gen.yaml --gpus 64 --gpu h200 --mfu 0.45
  evotok plan configs/paper/low-memory/gen.yaml --gpus 1 --gpu rtx4090"""
_SCALES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, such as configs/paper/sft.yaml")
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="changes to the recipe")
    parser.add_argument("--gpus", type=int, default=16, metavar="N", help="how many (default 16, as in the paper)")
    parser.add_argument(
        "--gpu", default="h100", metavar="KIND", help="which: h100 (default), h200, a100-80g, rtx4090 ..."
    )
    parser.add_argument(
        "--mfu", type=float, default=0.4, help="share of the GPU's peak that useful work reaches (default 0.4)"
    )


def run(options: argparse.Namespace) -> int:
    """Print the plan."""
    from evotok.commands.train import find_recipe
    from evotok.training.planning.gpus import GPUS
    from evotok.training.planning.plan import make_plan

    if options.gpu not in GPUS:
        raise ValueError(f"--gpu {options.gpu}: not one of {', '.join(GPUS)}.")
    if options.gpus < 1 or not 0 < options.mfu <= 1:
        raise ValueError(f"--gpus {options.gpus} must be at least 1 and --mfu {options.mfu} in (0, 1].")
    plan = make_plan(find_recipe(options.recipe), options.overrides, options.gpus, GPUS[options.gpu], options.mfu)
    _print_plan(plan, options)
    return 0


def _print_plan(plan: "Plan", options: argparse.Namespace) -> None:
    from rich.console import Console

    console = Console(width=120, soft_wrap=True)
    console.print(f"{options.recipe}: stage {plan.recipe.stage} on {plan.gpus} x {options.gpu}\n", highlight=False)
    for table in (_parameters(plan), _memory(plan), _run(plan), _scaling(plan)):
        console.print(table)
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


def _parameters(plan: "Plan"):
    table = _table("Parameters", "part", "all", "trained")
    for name, (total, trained) in [*plan.parts.items(), ("all", (plan.parameters, plan.trainable))]:
        table.add_row(name, f"{total:,}", f"{trained:,}" if trained else "frozen")
    return table


def _memory(plan: "Plan"):
    table = _table(
        "Memory on one GPU, GB", "", "weights", "gradients", "optimizer", "buffers", "activations", "all", "fits"
    )
    for (checkpointing, stage), memory in plan.memory.items():
        name = "plain" if stage is None else f"ZeRO-{stage}"
        name += " + offload" if plan.offload and stage else ""
        name += ", checkpointing" if checkpointing else ""
        chosen = (checkpointing, stage) == (plan.checkpointing, plan.stage)
        table.add_row(
            f"{name} (the recipe)" if chosen else name,
            *(f"{value / 1e9:.1f}" for value in (*memory, memory.total)),
            "yes" if memory.total + 2e9 < plan.gpu.memory else "no",
            style="bold" if chosen else None,
        )
    return table


def _run(plan: "Plan"):
    table = _table("The run", "", "")
    computing, sending = plan.seconds_a_step(plan.gpus, plan.stage)
    flops, tokens = plan.flops_a_sample * plan.batch, plan.tokens_a_sample * plan.batch
    rows = {
        "samples a step": f"{plan.batch:,}",
        "operations a step": f"{flops / 1e15:,.2f} PFLOP",
        "tokens a step, images included": f"{tokens:,.0f}",
        f"a step at an MFU of {plan.mfu:g}": f"{computing:.2f} s computing, {sending:.2f} s sending",
    }
    if plan.steps is not None:
        rows["steps"] = f"{plan.steps:,}"
        rows["tokens in all"] = f"{tokens * plan.steps / 1e9:,.1f} G"
        rows["days"] = f"{plan.days(plan.gpus):,.1f}"
    rows["a checkpoint"] = _bytes(plan.checkpoint_bytes)
    if plan.dataset_bytes:
        rows["the data sets, roughly"] = _bytes(plan.dataset_bytes)
    if plan.code_bytes:
        rows["their pictures to draw, as codes"] = _bytes(plan.code_bytes)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _scaling(plan: "Plan"):
    from evotok.training.planning.memory import communication

    table = _table(
        "From 1 to 512 GPUs",
        "GPUs",
        "GB each",
        "sent a step: ZeRO-1, 2",
        "ZeRO-3",
        "computing, s",
        "sending, s",
        "days",
    )
    for gpus in _SCALES:
        memory = plan.memory_on(gpus, plan.stage, plan.checkpointing)
        computing, sending = plan.seconds_a_step(gpus, plan.stage)
        days = plan.days(gpus)
        sent = (communication(plan.parameters, plan.trainable, stage, gpus) for stage in (2, 3))
        table.add_row(
            str(gpus),
            f"{memory.total / 1e9:.1f}",
            *map(_bytes, sent),
            f"{computing:.2f}",
            f"{sending:.2f}",
            "" if days is None else f"{days:,.1f}",
        )
    return table


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
