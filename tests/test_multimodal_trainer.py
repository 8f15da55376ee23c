"""`MultimodalTrainer`: a step is the same however its rows are split over processes and accumulated batches."""

import json
from pathlib import Path

import pytest
import torch
from test_loss_terms_evotok import build_learner, inputs_of
from test_streaming import torchrun
from test_training import ROOT, needs_deepspeed
from transformers import TrainingArguments

from evotok.training.multimodal_trainer import MultimodalTrainer
from evotok.training.train import prepare_process


# Steps on four rows that have other numbers of targets, on two processes that each write a file of JSON.
SCRIPT = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from test_multimodal_trainer import main
main(*sys.argv[1:])
"""
TERMS = ("loss", "text_loss", "image_loss", "image_loss_level1", "image_loss_level2", "grad_norm")


def one_step(model, folder, pixels, batch: int, accumulation: int, deepspeed: str | None = None):
    """What is logged of two steps on the same rows, and the sum of each parameter after them."""
    prepare_process(bool(deepspeed))
    engine = {"accelerator_config": {"use_configured_state": True}, "deepspeed": deepspeed} if deepspeed else {}
    arguments = TrainingArguments(
        str(folder), max_steps=2, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        learning_rate=1e-3, logging_steps=1, report_to="none", disable_tqdm=True, use_cpu=True, save_strategy="no",
        remove_unused_columns=False, train_sampling_strategy="sequential", **engine,
    )  # fmt: skip
    trainer = MultimodalTrainer(
        model, arguments, lambda numbers: inputs_of(numbers, pixels), train_dataset=[0, 1, 2, 3] * 2
    )
    trainer.train()
    steps = [{name: entry[name] for name in TERMS} for entry in trainer.state.log_history if "loss" in entry]
    sums = {name: tensor.double().sum().item() for name, tensor in model.state_dict().items() if "vq_model" not in name}
    return steps, sums


def main(folder: str, batch: str, accumulation: str, deepspeed: str | None = None) -> None:
    """In a process of several."""
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    result = one_step(build_learner(), folder, pixels, int(batch), int(accumulation), deepspeed)
    rank = torch.distributed.get_rank()
    Path(folder, f"rank{rank}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


@pytest.fixture
def expected(tmp_path, pixels):
    model = build_learner()
    with torch.no_grad():
        own = model(**inputs_of([0, 1, 2, 3], pixels))
    steps, sums = one_step(model, tmp_path / "whole", pixels, batch=4, accumulation=1)
    for name in ("loss", "text_loss", "image_loss"):
        assert steps[0][name] == pytest.approx(own[name].item(), abs=1e-4), name
    assert steps[1]["loss"] < steps[0]["loss"]
    return steps, sums


def check(result, expected):
    for step, wanted in zip(result[0], expected[0], strict=True):
        assert step == pytest.approx(wanted, rel=2e-4)
    assert result[1] == pytest.approx(expected[1], abs=1e-3)


@pytest.mark.parametrize(("batch", "accumulation"), [(2, 2), (1, 4)])
def test_accumulated_batches_are_one_batch(expected, tmp_path, pixels, batch, accumulation):
    check(one_step(build_learner(), tmp_path / "split", pixels, batch, accumulation), expected)


@pytest.mark.parametrize(
    "words",
    [("1", "2"), pytest.param(("1", "2", ROOT / "configs/deepspeed/zero2.json"), marks=needs_deepspeed)],
    ids=["two processes", "ZeRO-2"],
)
def test_processes_are_one_batch(expected, tmp_path, words):
    script = tmp_path / "step.py"
    script.write_text(SCRIPT)
    done = torchrun(script, tmp_path / "run", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        check(json.loads((tmp_path / "run" / f"rank{rank}.json").read_text()), expected)
