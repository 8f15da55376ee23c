"""`evotok plan`: estimates memory, time and bytes of a recipe, before anything is downloaded or rented."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evotok.commands.options import Json, Overrides, Recipe, require_share
from evotok.commands.recipes import check_recipe
from evotok.commands.terminal import print_results, waiting


if TYPE_CHECKING:
    from evotok.training.planning.gpus import Gpu
    from evotok.training.planning.plan import Plan
    from evotok.training.planning.serving import ServingPlan

EXAMPLES = """  evotok plan configs/paper/sft.yaml
  evotok plan configs/paper/gen.yaml --gpus 64 --gpu h200 --mfu 0.45
  evotok plan configs/paper/low-memory/gen.yaml --gpus 1 --gpu rtx4090
  evotok plan configs/paper/gen.yaml --serve --gpu l40s"""
FRAMEWORK_BYTES = 2e9
"""Memory of a GPU that CUDA, NCCL and torch take before a model."""
_SCALES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_SERVED_AT_ONCE = (1, 4, 16, 64, 256)


def complete_gpu() -> list[str]:
    """Returns the kinds of GPUs."""
    from evotok.training.planning.gpus import GPUS

    return list(GPUS)


def check_gpu(kind: str) -> str:
    """Raises BadParameter for an unknown kind of GPU."""
    known = complete_gpu()
    if kind not in known:
        near = get_close_matches(kind, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"not one of {', '.join(known)}"
        raise typer.BadParameter(f"{kind!r}: {hint}")
    return kind


def run(
    recipe: Recipe,
    overrides: Overrides = None,
    gpus: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="number of GPUs; the recipe's by default")
    ] = None,
    gpu: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            callback=check_gpu,
            autocompletion=complete_gpu,
            help="kind of GPU: h100, h200, a100-80g, rtx4090 ...",
        ),
    ] = "h100",
    mfu: Annotated[
        float,
        typer.Option(
            metavar="X",
            min=0,
            max=1,
            callback=require_share,
            help="model FLOPs utilization, as share of the GPU's peak",
        ),
    ] = 0.4,
    serve: Annotated[
        bool, typer.Option("--serve", help="plan serving instead: weights, caches, images a second")
    ] = False,
    bandwidth: Annotated[
        float | None, typer.Option(metavar="GB/S", min=0.1, help="of the memory, with --serve; the GPU's by default")
    ] = None,
    as_json: Json = False,
) -> None:
    """Estimate what a recipe takes: memory, operations, days, bytes; no weights needed."""
    path, words = check_recipe(recipe, overrides or ())
    if bandwidth is not None and not serve:
        raise ValueError("--bandwidth requires --serve: training is planned by operations.")
    with waiting("Planning"):
        from evotok.training.planning.gpus import GPUS
        from evotok.training.planning.plan import make_plan
        from evotok.training.planning.serving import plan_serving

        kind = GPUS[gpu]
        if bandwidth is not None:
            kind = kind._replace(memory_bandwidth=bandwidth * 1e9)
        if serve:
            facts = _serving_facts(plan_serving(path, words), kind, mfu)
        else:
            facts = _facts(make_plan(path, words, gpus, kind, mfu))
    facts = {"recipe": recipe, "gpu": gpu} | facts
    if as_json:
        print_results(as_json, facts, ())
    elif serve:
        _print_serving(facts)
    else:
        _print_plan(facts)


def _serving_facts(plan: "ServingPlan", gpu: "Gpu", mfu: float) -> dict[str, Any]:
    """Returns the plan of serving as JSON values; sizes in bytes, speeds as upper limits."""
    fit = plan.images_that_fit(gpu.memory - FRAMEWORK_BYTES)
    speed = (gpu.memory_bandwidth, gpu.flops * mfu)
    batches = [
        {
            "at_once": batch,
            "images_a_second": plan.images_a_second(batch, *speed),
            "tokens_a_second": plan.tokens_a_second(batch, *speed),
            "cache": batch * plan.cache_image,
            "fits": batch <= fit,
        }
        for batch in _SERVED_AT_ONCE
    ]
    return plan._asdict() | {
        "cache_image": plan.cache_image,
        "cache_chat": plan.cache_chat,
        "bandwidth": gpu.memory_bandwidth,
        "mfu": mfu,
        "images_that_fit": fit,
        "batches": batches,
    }


def _facts(plan: "Plan") -> dict[str, Any]:
    """Returns the plan as JSON values; memory and sizes in bytes, None for unknown ones."""
    computing, sending = plan.seconds_a_step(plan.gpus, plan.stage)
    model = plan.model
    tokens = model.tokens_a_row * plan.batch
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
                "sent_a_step_zero3": plan.sent_a_step(gpus, 3) if 3 in model.zero_stages else None,
                "computing_seconds": seconds[0],
                "sending_seconds": seconds[1],
                "days": plan.days(gpus),
            }
        )
    return {
        "stage": plan.recipe.stage,
        "gpus": plan.gpus,
        "mfu": plan.mfu,
        "parameters": {name: {"all": total, "trained": trained} for name, (total, trained) in model.parts.items()}
        | {"all": {"all": plan.parameters, "trained": plan.trainable}},
        "memory": memory,
        "samples_a_step": plan.batch,
        "samples_a_step_of_recipe": plan.recipe_batch,
        "operations_a_step": model.flops_a_row * plan.batch,
        "tokens_a_step": tokens,
        "computing_seconds": computing,
        "sending_seconds": sending,
        "steps": plan.steps,
        "tokens": None if plan.steps is None else tokens * plan.steps,
        "days": plan.days(plan.gpus),
        "checkpoint_bytes": plan.checkpoint_bytes,
        "dataset_bytes": plan.dataset_bytes,
        "code_bytes": plan.code_bytes,
        "warning": model.warning,
        "scaling": scaling,
    }


def _print_serving(facts: dict[str, Any]) -> None:
    console = _console(f"{facts['recipe']}: served in bfloat16 on one {facts['gpu']}")
    rows = {
        "weights": _bytes(facts["weights"]),
        f"cache of an image, guided, {facts['image_tokens']} tokens in two rows": _bytes(facts["cache_image"]),
        f"cache of a chat about an image, {facts['chat_tokens']} tokens": _bytes(facts["cache_chat"]),
        "cache of one more token": _bytes(facts["cache_token"]),
        "images at once that fit": f"{facts['images_that_fit']:,}",
    }
    console.print(_table("Requirements", ("", ""), rows.items()))
    batches = [
        (
            str(row["at_once"]),
            _bytes(row["cache"]),
            "yes" if row["fits"] else "no",
            f"{row['images_a_second']:,.2f}",
            f"{row['tokens_a_second']:,.0f}",
        )
        for row in facts["batches"]
    ]
    title = f"At {facts['bandwidth'] / 1e9:,.0f} GB/s and an MFU of {facts['mfu']:g}, at most"
    console.print(_table(title, ("at once", "caches of images", "fit", "images/s", "tokens/s of chats"), batches))
    console.print(
        "Prefill of prompts and decoding of pixels are not counted. Replicas on more GPUs multiply the figures of one."
    )


def _print_plan(facts: dict[str, Any]) -> None:
    console = _console(f"{facts['recipe']}: stage {facts['stage']} on {facts['gpus']} x {facts['gpu']}")
    for table in (_parameters(facts), _memory(facts), _run(facts), _scaling(facts)):
        console.print(table)
    if facts["samples_a_step"] != facts["samples_a_step_of_recipe"]:
        console.print(
            f"A step has {facts['samples_a_step']:,} rows here, but {facts['samples_a_step_of_recipe']:,} in the "
            "recipe, for which its steps and learning\nrate were chosen. Change training.per_device_train_batch_size, "
            "training.gradient_accumulation_steps or training.max_steps.\n"
        )
    if facts["warning"]:
        console.print(f"{facts['warning']}\n")
    console.print(
        "Memory is for the largest batch: every row of max_length tokens, all its text as targets. Time is for average "
        "rows.\nThe frameworks' own memory (1 to 2 GB), LPIPS and the discriminator are not counted."
    )


def _console(heading: str):
    from rich.console import Console

    console = Console(width=120, soft_wrap=True, highlight=False)
    console.print(f"{heading}\n")
    return console


def _table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]], bold: int | None = None):
    """Builds a table, with the row of this number in bold."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for number, row in enumerate(rows):
        table.add_row(*row, style="bold" if number == bold else None)
    return table


def _parameters(facts: dict[str, Any]):
    rows = [
        (name, f"{count['all']:,}", f"{count['trained']:,}" if count["trained"] else "frozen")
        for name, count in facts["parameters"].items()
    ]
    return _table("Parameters", ("part", "all", "trained"), rows)


def _memory(facts: dict[str, Any]):
    parts, rows = ("weights", "gradients", "optimizer", "buffers", "activations"), []
    for row in facts["memory"]:
        name = "plain" if row["zero_stage"] is None else f"ZeRO-{row['zero_stage']}"
        name += " + offload" if row["offload"] else ""
        name += ", checkpointing" if row["checkpointing"] else ""
        name += " (the recipe)" if row["chosen"] else ""
        rows.append((name, *(f"{row[part] / 1e9:.1f}" for part in (*parts, "total")), "yes" if row["fits"] else "no"))
    chosen = next((number for number, row in enumerate(facts["memory"]) if row["chosen"]), None)
    return _table("Memory on one GPU, GB", ("", *parts, "all", "fits"), rows, bold=chosen)


def _run(facts: dict[str, Any]):
    rows = {
        "rows a step, on all GPUs": f"{facts['samples_a_step']:,}",
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
        rows["their images to generate, as codes"] = _bytes(facts["code_bytes"])
    return _table("The run", ("", ""), rows.items())


def _scaling(facts: dict[str, Any]):
    columns = ("GPUs", "GB each", "sent a step: ZeRO-0 to 2", "ZeRO-3", "computing, s", "sending, s", "days")
    rows = [
        (
            str(row["gpus"]),
            f"{row['memory_total'] / 1e9:.1f}",
            _bytes(row["sent_a_step_zero2"]),
            "" if row["sent_a_step_zero3"] is None else _bytes(row["sent_a_step_zero3"]),
            f"{row['computing_seconds']:.2f}",
            f"{row['sending_seconds']:.2f}",
            "" if row["days"] is None else f"{row['days']:,.1f}",
        )
        for row in facts["scaling"]
    ]
    return _table("From 1 to 512 GPUs", columns, rows)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
