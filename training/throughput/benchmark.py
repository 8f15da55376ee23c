"""Measures steps of training, with all that `evotok train` does in a step: loading, forward and backward pass,
optimizer, schedule, and the log.

The first steps are not counted. Operations are those of the model on the tokens that a batch has without padding, as
`evotok plan` counts them, and without recomputation. On a GPU steps are timed by events on it, so that no step waits
for the one before; waiting for data may then overlap with computing.
"""

import gc
import math
import statistics
import tempfile
import time
from collections.abc import Collection, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from ...data.errors import one_line
from ...eval.benchmarks.meters import MIB, Setting, peak_extra_mib, peak_flops
from ...eval.benchmarks.report import Row
from ...processing.processing_evotok import EvoTokProcessor
from ..deepspeed_setup import name_single_process, unsharded_weights
from ..multimodal import stages as multimodal
from ..planning.configs import tokenizer_fields
from ..planning.gpus import GPUS
from ..planning.plan import make_plan
from ..planning.profile import BatchShape
from ..recipes import Recipe, read_recipe
from ..tokenizer import stage as tokenizer
from ..train import training_arguments
from ..trainer import EvoTokTrainer
from . import materials
from .cases import CASES, Case, codes_folder, missing, overrides, recipe_path


SIZES = CASES
_WARM_UP = {"tiny": 1, "full": 3, "paper": 4}  # steps, in which caches are filled and blocks compiled
_IMAGES = ("pixel_values", "generation_pixel_values", "generation_codes")


class _Batch(NamedTuple):
    """Content of a step's batches; the counts are tensors, because reading one would wait for the device."""

    seconds: float
    rows: int
    tokens: torch.Tensor | int
    targets: torch.Tensor | None
    images: dict[str, int]


class _Clock(TrainerCallback):
    """Marks the end of every step."""

    def __init__(self, device: str):
        self.device = device
        self.marks: list[Any] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self._mark()

    def on_step_end(self, args, state, control, **kwargs):
        self._mark()

    def _mark(self) -> None:
        if self.device != "cuda":
            self.marks.append(time.perf_counter())
            return
        self.marks.append(torch.cuda.Event(enable_timing=True))
        self.marks[-1].record()

    def seconds(self) -> list[float]:
        """Returns the time of every step."""
        pairs = list(pairwise(self.marks))
        if self.device != "cuda":
            return [after - before for before, after in pairs]
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in pairs]


def run(setting: Setting, names: Collection[str] = ()) -> Iterator[Row]:
    """Measures row after row; `repeats` is the number of steps after the warm-up, of which the median counts.

    Args:
        names: rows to measure; all of the size when empty.

    Raises:
        ValueError: a name that is no row of the size.
    """
    shapes, known = materials.SHAPES[setting.size], [case.name for case in CASES[setting.size]]
    if unknown := set(names) - set(known):
        raise ValueError(f"{min(unknown)}: no row of the size {setting.size}: give some of {', '.join(known)}.")
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        materials.write_images(workspace / "images", shapes)
        materials.write_conversations(workspace / "conversations.json", workspace / "images", shapes)
        processor = materials.build_processor(shapes)
        materials.write_config(workspace / "model", shapes, processor)
        flops = peak_flops(setting.dtype, setting)
        for case in CASES[setting.size]:
            if names and case.name not in names:
                continue
            try:
                yield _row(case, workspace, processor, setting, flops)
            except RuntimeError as error:  # such as memory that is not enough: the other rows are measured all the same
                yield {"name": case.name, "note": f"not measured: {one_line(error)}"}


def _row(case: Case, workspace: Path, processor: EvoTokProcessor, setting: Setting, flops: float) -> Row:
    warm_up = _WARM_UP[setting.size]
    path, words = recipe_path(case), overrides(case, workspace, setting, warm_up + setting.repeats)
    recipe = read_recipe(path, words)
    if lacking := missing(case, setting, workspace):
        return {"name": case.name, "note": f"not measured: {lacking}"}
    if recipe.training.get("deepspeed"):
        name_single_process()
    arguments = training_arguments(recipe)
    set_seed(arguments.seed)
    clock, batches = _Clock(setting.device), []

    def train() -> None:
        clock.marks.clear()
        trainer = _build(case, recipe, arguments, workspace, processor, setting)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(clock)
        _watch(trainer, batches)
        trainer.train()

    peak = peak_extra_mib(train, setting.device)
    if peak is None:  # not measured on this system, and not run
        train()
    torch.compiler.reset()  # graphs keep the model
    gc.collect()
    if setting.device == "cuda":
        torch.cuda.empty_cache()
    measured = None if recipe.stage == "tokenizer" else _mean_shape(batches[warm_up:])
    plan = make_plan(path, words, 1, GPUS["h100"], mfu=1.0, measured=measured)  # of its GPU and MFU nothing is used
    seconds, data = (
        statistics.median(values[warm_up:]) for values in (clock.seconds(), [batch.seconds for batch in batches])
    )
    rows, steps = batches[0].rows, len(batches) - warm_up
    images = sum(sum(batch.images.values()) for batch in batches[warm_up:]) / steps
    computed = rows * plan.model.flops_a_row
    return {
        "name": case.name,
        "stage": recipe.stage,
        "rows_a_step": rows,
        "steps": steps,
        "seconds": seconds,
        "data_seconds": data,
        "data_share": data / seconds,
        "tokens_per_second": rows * plan.model.tokens_a_row / seconds,
        "images_per_second": images / seconds,
        "model_gflops_a_step": computed / 1e9,
        "matmul_gflops": flops / 1e9,
        "mfu": computed / seconds / flops,
        "peak_extra_mib": peak,
        "planned_mib": plan.memory[plan.checkpointing, plan.stage].total / MIB,
    }


def _build(
    case: Case,
    recipe: Recipe,
    arguments: TrainingArguments,
    workspace: Path,
    processor: EvoTokProcessor,
    setting: Setting,
) -> EvoTokTrainer:
    """Builds the trainer of a row: from the embedded weights at the size `full`, otherwise from random ones."""
    embedded = setting.size == "full"
    if recipe.stage == "tokenizer":
        if embedded:
            model = tokenizer.build_tokenizer(recipe)
        else:
            model = materials.build_tokenizer(tokenizer_fields(recipe, recipe_path(case)), setting.device)
        return tokenizer.assemble_trainer(recipe, arguments, model)
    with unsharded_weights(arguments):
        if embedded:
            model, processor = multimodal.build_multimodal(recipe)
        else:
            model = materials.build_model(workspace / "model", setting.device)
    if case.data == "codes":
        shapes = materials.SHAPES[setting.size]
        materials.write_codes(codes_folder(case, workspace), model.model.vq_model, processor, shapes)
    return multimodal.assemble_trainer(recipe, arguments, model, processor)


def _watch(trainer: EvoTokTrainer, batches: list[_Batch]) -> None:
    """Records the content of every step, and how long the trainer waits for it."""
    get_batches = trainer.get_batch_samples

    def timed(*args):
        start = time.perf_counter()
        samples, counts = get_batches(*args)
        if samples:
            batches.append(_content(samples, counts, time.perf_counter() - start))
        return samples, counts

    trainer.get_batch_samples = timed


def _content(samples: list[dict[str, Any]], counts: Any, seconds: float) -> _Batch:
    images = {name: sum(len(sample[name]) for sample in samples if name in sample) for name in _IMAGES}
    if "input_ids" not in samples[0]:
        return _Batch(seconds, images["pixel_values"], 0, None, images)
    tokens = torch.stack([sample["attention_mask"].sum() for sample in samples]).sum()
    return _Batch(seconds, sum(len(sample["input_ids"]) for sample in samples), tokens, counts, images)


def _mean_shape(batches: list[_Batch]) -> BatchShape:
    """Returns the mean shape of batches, without padding."""
    rows = batches[0].rows
    tokens, targets, given, *generated = (
        statistics.fmean(values)
        for values in (
            [float(batch.tokens) for batch in batches],
            [float(batch.targets[0]) for batch in batches if batch.targets is not None],
            *([batch.images[name] for batch in batches] for name in _IMAGES),
        )
    )
    return BatchShape(rows, math.ceil(tokens / rows), round(targets / rows), round(given), round(sum(generated)))
