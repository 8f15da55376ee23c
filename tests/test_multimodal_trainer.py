"""`MultimodalTrainer` and a plain `Trainer`: a step does not depend on how rows are split over processes and
accumulated batches."""

import json
from pathlib import Path

import pytest
import torch
from conftest import build_chat_model
from drills import Server
from PIL import Image
from test_losses_evotok import ROWS, build_learner, inputs_of
from test_training import ROOT, needs_deepspeed
from torch import nn
from transformers import Trainer, TrainingArguments

from evotok.training.deepspeed_setup import start_process_group
from evotok.training.multimodal.trainer import MultimodalTrainer, add_code_noise


TRAINERS = {"ours": MultimodalTrainer, "plain": Trainer}
# Indices into `ROWS`, whose numbers of targets differ. Of two processes each gets every other one: text alone on one
# and images alone on the other, text alone on both, images on both.
ORDERS = {"mixed": [0, 1, 2, 3], "apart": [0, 2, 1, 3], "text": [0, 1, 1, 0], "images": [2, 3, 3, 2]}
TERMS = ("loss", "text_loss", "image_loss", "image_loss_level1", "image_loss_level2", "grad_norm")


def two_steps(trainer: str, order: str, folder, pixels, batch: int, accumulation: int, deepspeed: str | None = None):
    """Returns the logs of two steps on the same rows, and the sum of each parameter after them."""
    engine = {}
    if deepspeed:
        start_process_group()
        engine = {"accelerator_config": {"use_configured_state": True}, "deepspeed": deepspeed}
    arguments = TrainingArguments(
        str(folder), max_steps=2, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        learning_rate=1e-3, logging_steps=1, report_to="none", disable_tqdm=True, use_cpu=True, save_strategy="no",
        remove_unused_columns=False, train_sampling_strategy="sequential", **engine,
    )  # fmt: skip
    model = build_learner()
    learner = TRAINERS[trainer](model, arguments, lambda rows: inputs_of(rows, pixels), train_dataset=ORDERS[order] * 2)
    learner.train()
    logged = [entry for entry in learner.state.log_history if "loss" in entry]
    steps = [{name: entry[name] for name in TERMS if name in entry} for entry in logged]
    sums = {name: tensor.double().sum().item() for name, tensor in model.state_dict().items() if "vq_model" not in name}
    return steps, sums


def evaluate_rows(trainer: str, rows: list[int], folder, pixels, batch: int) -> dict:
    """Returns the losses of `evaluate` and `predict`, and the shapes of the gathered predictions."""
    arguments = TrainingArguments(
        str(folder), per_device_eval_batch_size=batch, report_to="none", disable_tqdm=True, use_cpu=True,
        remove_unused_columns=False,
    )  # fmt: skip
    common = {"data_collator": lambda rows: inputs_of(rows, pixels), "args": arguments}
    loss = TRAINERS[trainer](build_learner(), **common, eval_dataset=rows).evaluate()["eval_loss"]
    measurer = TRAINERS[trainer](
        build_learner(), **common, compute_metrics=lambda result: {"rows": len(result.label_ids)}
    )
    result = measurer.predict(rows)
    shapes = [list(result.predictions.shape), list(result.label_ids.shape), result.metrics["test_rows"]]
    return {"losses": [loss, result.metrics["test_loss"]], "shapes": shapes}


def evaluate_both(trainer: str, folder, pixels, processes: int) -> dict[str, dict]:
    """Evaluates all rows in one batch, and batches of one with a remainder."""
    return {
        "whole": evaluate_rows(trainer, [0, 1, 2, 3], folder, pixels, 4 // processes),
        "rest": evaluate_rows(trainer, [0, 2, 1, 3, 1], folder, pixels, 1),
    }


def on_processes(folder: Path, cases: list[tuple[str, str]], pixels: torch.Tensor, deepspeed: str | None) -> None:
    """Runs in one of several processes, each of which accumulates two batches of one row; writes a file of JSON."""
    results = [two_steps(*case, folder, pixels, 1, 2, deepspeed) for case in cases]
    if deepspeed is None:
        results += [evaluate_both(trainer, folder, pixels, 2) for trainer in TRAINERS]
    (folder / f"rank{torch.distributed.get_rank()}.json").write_text(json.dumps(results))


def one_batch(trainer, order, folder, pixels):
    """Returns the same two steps with all rows of each in one batch."""
    steps, sums = two_steps(trainer, order, folder, pixels, batch=4, accumulation=1)
    assert steps[1]["loss"] < steps[0]["loss"]
    return steps, sums


def check(result, expected):
    for step, other in zip(result[0], expected[0], strict=True):
        assert step == pytest.approx(other, rel=2e-4)
    assert result[1] == pytest.approx(expected[1], abs=1e-3)


def check_evaluated(found, expected):
    longest = max(map(len, ROWS))
    for name, rows in (("whole", 4), ("rest", 5)):
        assert found[name]["shapes"] == [[rows, longest, 128], [rows, longest], rows]
        assert all(0 < loss < float("inf") for loss in found[name]["losses"])
    assert found["whole"]["losses"] == pytest.approx(expected["whole"]["losses"], rel=1e-4)


def test_step_of_one_batch_has_the_loss_of_the_model(tmp_path, pixels):
    with torch.no_grad():
        own = build_learner()(**inputs_of(ORDERS["mixed"], pixels))
    steps, _ = one_batch("ours", "mixed", tmp_path, pixels)
    for name in ("loss", "text_loss", "image_loss"):
        assert steps[0][name] == pytest.approx(own[name].item(), abs=1e-4), name


@pytest.mark.parametrize("order", ["mixed", "images"])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_accumulated_batches_equal_one_batch(tmp_path, pixels, trainer, order):
    expected = one_batch(trainer, order, tmp_path, pixels)
    for batch, accumulation in ((2, 2), (1, 4)):
        check(two_steps(trainer, order, tmp_path, pixels, batch, accumulation), expected)


@pytest.mark.parametrize(
    ("cases", "deepspeed"),
    [
        pytest.param([(trainer, order) for trainer in TRAINERS for order in ORDERS], None, id="two processes"),
        pytest.param(
            [("ours", "mixed")], str(ROOT / "configs/deepspeed/zero2.json"), id="ZeRO-2", marks=needs_deepspeed
        ),
    ],
)
def test_two_processes_equal_one_batch(tmp_path, pixels, cases, deepspeed):
    ended = Server(tmp_path).call(on_processes, tmp_path, cases, pixels, deepspeed)
    assert ended.codes == [0, 0], ended.output[-3000:]
    of_ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    for number, case in enumerate(cases):
        expected = one_batch(*case, tmp_path, pixels)
        for results in of_ranks:
            check(results[number], expected)
    if deepspeed is None:
        for number, trainer in enumerate(TRAINERS, start=len(cases)):
            expected = evaluate_both(trainer, tmp_path, pixels, 1)
            for results in of_ranks:
                check_evaluated(results[number], expected)


def test_evaluate_has_the_loss_of_the_model(tmp_path, pixels):
    with torch.no_grad():
        own = build_learner().eval()(**inputs_of([0, 1, 2, 3], pixels)).loss.item()
    found = evaluate_rows("ours", [0, 1, 2, 3], tmp_path, pixels, 4)
    assert found["losses"] == pytest.approx([own, own], rel=1e-4)


def test_samples_at_checkpoints_do_not_change_the_training(tmp_path):
    trained = []
    for prompts in ([], ["a cat", "the red one, a cat"]):
        model, processor = build_chat_model()
        shown = [{"type": "image", "image": Image.linear_gradient("L").convert("RGB")}]
        chat = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": shown}]
        batch = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
        arguments = TrainingArguments(
            str(tmp_path / f"{len(prompts)}"), max_steps=2, save_steps=1, learning_rate=1e-3, report_to="none",
            disable_tqdm=True, use_cpu=True, remove_unused_columns=False,
        )  # fmt: skip
        learner = MultimodalTrainer(
            model, arguments, lambda rows, batch=batch: {**batch, "labels": batch["input_ids"]}, train_dataset=[0] * 16,
            processing_class=processor, sample_prompts=prompts, code_noise=0.5,
        )  # fmt: skip
        learner.train()
        trained.append(model.state_dict())
    assert trained[0].keys() == trained[1].keys()
    assert all(torch.equal(tensor, trained[1][name]) for name, tensor in trained[0].items())
    sheets = sorted(path.name for path in (tmp_path / "2/samples").iterdir())
    assert sheets == ["step-0000001.png", "step-0000002.png"] and not (tmp_path / "0/samples").exists()


def test_code_noise_changes_positions_in_training_only():
    torch.manual_seed(0)
    module = nn.Identity()
    add_code_noise(module, 0.25)
    features = torch.arange(64 * 64.0).view(64, 64, 1)
    noisy = module.train()(features)
    assert (noisy != features).float().mean().item() == pytest.approx(0.25, abs=0.05)
    assert set(noisy.flatten().tolist()) <= set(features.flatten().tolist())
    assert torch.equal(module.eval()(features), features)
    with pytest.raises(ValueError, match=r"data\.code_noise=0\.6 must be in \[0, 0\.5\]"):
        add_code_noise(module, 0.6)
