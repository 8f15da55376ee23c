"""`MultimodalTrainer` and a plain `Trainer`: a step is the same however its rows are split over processes and
accumulated batches."""

import json
from pathlib import Path

import pytest
import torch
from drills import Server
from test_loss_terms_evotok import ROWS, build_learner, inputs_of
from test_training import ROOT, needs_deepspeed
from transformers import Trainer, TrainingArguments

from evotok.training.multimodal_trainer import MultimodalTrainer
from evotok.training.train import prepare_process


TRAINERS = {"ours": MultimodalTrainer, "plain": Trainer}
# Numbers of `ROWS`, whose numbers of targets differ. Two processes get every other one: text alone on the one and
# images alone on the other, text alone on both, images on both.
ORDERS = {"mixed": [0, 1, 2, 3], "apart": [0, 2, 1, 3], "text": [0, 1, 1, 0], "images": [2, 3, 3, 2]}
ZERO2 = str(ROOT / "configs/deepspeed/zero2.json")
TERMS = ("loss", "text_loss", "image_loss", "image_loss_level1", "image_loss_level2", "grad_norm")


def two_steps(trainer: str, order: str, folder, pixels, batch: int, accumulation: int, deepspeed: str | None = None):
    """What is logged of two steps on the same rows, and the sum of each parameter after them."""
    prepare_process(bool(deepspeed))
    engine = {"accelerator_config": {"use_configured_state": True}, "deepspeed": deepspeed} if deepspeed else {}
    arguments = TrainingArguments(
        str(folder), max_steps=2, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        learning_rate=1e-3, logging_steps=1, report_to="none", disable_tqdm=True, use_cpu=True, save_strategy="no",
        remove_unused_columns=False, train_sampling_strategy="sequential", **engine,
    )  # fmt: skip
    model = build_learner()
    learner = TRAINERS[trainer](
        model, arguments, lambda numbers: inputs_of(numbers, pixels), train_dataset=ORDERS[order] * 2
    )
    learner.train()
    logged = [entry for entry in learner.state.log_history if "loss" in entry]
    steps = [{name: entry[name] for name in TERMS if name in entry} for entry in logged]
    sums = {name: tensor.double().sum().item() for name, tensor in model.state_dict().items() if "vq_model" not in name}
    return steps, sums


def evaluated(trainer: str, rows: list[int], folder, pixels, batch: int) -> dict:
    """The losses that `evaluate` and `predict` give, and the shapes of what `predict` puts together."""
    arguments = TrainingArguments(
        str(folder), per_device_eval_batch_size=batch, report_to="none", disable_tqdm=True, use_cpu=True,
        remove_unused_columns=False,
    )  # fmt: skip
    given = {"data_collator": lambda numbers: inputs_of(numbers, pixels), "args": arguments}
    loss = TRAINERS[trainer](build_learner(), **given, eval_dataset=rows).evaluate()["eval_loss"]
    measurer = TRAINERS[trainer](
        build_learner(), **given, compute_metrics=lambda result: {"rows": len(result.label_ids)}
    )
    result = measurer.predict(rows)
    shapes = [list(result.predictions.shape), list(result.label_ids.shape), result.metrics["test_rows"]]
    return {"losses": [loss, result.metrics["test_loss"]], "shapes": shapes}


def evaluated_both(trainer: str, folder, pixels, processes: int) -> dict[str, dict]:
    """Of all rows in one batch, and of batches of one with one that is left over."""
    return {
        "whole": evaluated(trainer, [0, 1, 2, 3], folder, pixels, 4 // processes),
        "rest": evaluated(trainer, [0, 2, 1, 3, 1], folder, pixels, 1),
    }


def on_processes(folder: Path, cases: list[tuple[str, str]], pixels: torch.Tensor, deepspeed: str | None) -> None:
    """In a process of several, each of which accumulates two batches of one row and writes a file of JSON."""
    results = [two_steps(*case, folder, pixels, 1, 2, deepspeed) for case in cases]
    if deepspeed is None:
        results += [evaluated_both(trainer, folder, pixels, 2) for trainer in TRAINERS]
    (folder / f"rank{torch.distributed.get_rank()}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


def whole(trainer, order, folder, pixels):
    """The same two steps, all rows of each in one batch."""
    steps, sums = two_steps(trainer, order, folder, pixels, batch=4, accumulation=1)
    assert steps[1]["loss"] < steps[0]["loss"]
    return steps, sums


def check(result, expected):
    for step, wanted in zip(result[0], expected[0], strict=True):
        assert step == pytest.approx(wanted, rel=2e-4)
    assert result[1] == pytest.approx(expected[1], abs=1e-3)


def test_a_step_of_one_batch_is_the_models_own_loss(tmp_path, pixels):
    with torch.no_grad():
        own = build_learner()(**inputs_of(ORDERS["mixed"], pixels))
    steps, _ = whole("ours", "mixed", tmp_path, pixels)
    for name in ("loss", "text_loss", "image_loss"):
        assert steps[0][name] == pytest.approx(own[name].item(), abs=1e-4), name


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("trainer", TRAINERS)
def test_accumulated_batches_are_one_batch(tmp_path, pixels, trainer, order):
    expected = whole(trainer, order, tmp_path, pixels)
    for batch, accumulation in ((2, 2), (1, 4)):
        check(two_steps(trainer, order, tmp_path, pixels, batch, accumulation), expected)


ALL = [(trainer, order) for trainer in TRAINERS for order in ORDERS]


@pytest.mark.parametrize(
    ("cases", "deepspeed"),
    [
        pytest.param(ALL, None, id="two processes"),
        pytest.param(
            [("ours", "mixed")], str(ROOT / "configs/deepspeed/zero2.json"), id="ZeRO-2", marks=needs_deepspeed
        ),
    ],
)
def test_processes_are_one_batch(tmp_path, pixels, cases, deepspeed):
    ended = Server(tmp_path).call(on_processes, tmp_path, cases, pixels, deepspeed)
    assert ended.codes == [0, 0], ended.said[-3000:]
    of_ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    for number, case in enumerate(cases):
        expected = whole(*case, tmp_path, pixels)
        for results in of_ranks:
            check(results[number], expected)
    if deepspeed is None:
        for number, trainer in enumerate(TRAINERS, start=len(cases)):
            expected = evaluated_both(trainer, tmp_path, pixels, 1)
            for results in of_ranks:
                check_evaluated(results[number], expected)


def check_evaluated(found, expected):
    longest = max(map(len, ROWS))
    for name, rows in (("whole", 4), ("rest", 5)):
        assert found[name]["shapes"] == [[rows, longest, 128], [rows, longest], rows]
        assert all(0 < loss < float("inf") for loss in found[name]["losses"])
    assert found["whole"]["losses"] == pytest.approx(expected["whole"]["losses"], rel=1e-4)


def test_batches_of_any_kind_are_evaluated_and_predicted(tmp_path, pixels):
    with torch.no_grad():
        own = build_learner().eval()(**inputs_of([0, 1, 2, 3], pixels)).loss.item()
    found = {trainer: evaluated_both(trainer, tmp_path, pixels, 1) for trainer in TRAINERS}
    assert found["ours"]["whole"]["losses"] == pytest.approx([own, own], rel=1e-4)
    for trainer in TRAINERS:
        check_evaluated(found[trainer], found[trainer])
