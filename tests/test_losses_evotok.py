"""Losses: the blockwise cross-entropy equals the plain one, and shares of a step add up however its rows are split."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import build_tiny_model
from test_modeling_evotok import GENERATED_IMAGE, INPUT_IMAGE, batch_of
from transformers import Trainer, TrainingArguments

from evotok.modeling_evotok import losses_evotok
from evotok.modeling_evotok.losses_evotok import linear_cross_entropy


# Text only, an input image, a generated image, two generated images: other numbers of targets of both kinds in each.
ROWS = [
    [3, 4, 5, 6, 7, 8, 9, 10],
    [3, *INPUT_IMAGE, 5],
    [3, *GENERATED_IMAGE, 5],
    [6, *GENERATED_IMAGE, 7, *GENERATED_IMAGE, 8, 9],
]
ALL = [0, 1, 2, 3]


# --- linear_cross_entropy ---------------------------------------------------------------------------------------------


def plain_cross_entropy(states, weight, bias, targets):
    return F.cross_entropy(F.linear(states, weight, bias).float(), targets, reduction="sum")


def loss_and_gradients(function, tensors, targets):
    copies = [None if t is None else t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]
    loss = function(*copies, targets) / len(targets)
    loss.backward()
    return loss.detach(), [None if t is None else t.grad for t in copies]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_cross_entropy_equals_the_plain_one(monkeypatch, dtype, autocast):
    monkeypatch.setattr(losses_evotok, "_BLOCK_ROWS", 4)
    torch.manual_seed(0)
    tensors = [torch.randn(*shape).to(dtype).requires_grad_(True) for shape in ((10, 8), (20, 8), (20,))]
    targets = torch.randint(20, (10,))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        for parts in (tensors, [tensors[0], tensors[1].detach(), None]):  # all trained; frozen without bias
            loss, gradients = loss_and_gradients(linear_cross_entropy, parts, targets)
            expected, references = loss_and_gradients(plain_cross_entropy, parts, targets)
            torch.testing.assert_close(loss, expected)
            tolerance = {"atol": 2e-2, "rtol": 2e-2} if autocast or dtype == torch.bfloat16 else {}
            torch.testing.assert_close(gradients, references, **tolerance)
        with torch.no_grad():
            assert not linear_cross_entropy(*tensors, targets).requires_grad


def test_linear_cross_entropy_holds_one_block_of_logits(monkeypatch):
    monkeypatch.setattr(losses_evotok, "_BLOCK_ROWS", 4)
    rows = []
    monkeypatch.setattr(F, "linear", lambda x, *args, linear=F.linear: rows.append(len(x)) or linear(x, *args))
    states, weight = torch.randn(10, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)
    linear_cross_entropy(states, weight, None, torch.randint(20, (10,))).backward()
    assert rows == [4, 4, 2], "each row once, and none in the backward pass"


# --- losses of the model ----------------------------------------------------------------------------------------------


def build_learner():
    """Builds a tiny model in training mode, without dropout."""
    model = build_tiny_model().train()
    for layer in model.depth_decoder.layers:
        layer.dropout.p = 0.0
    return model


@pytest.fixture
def model():
    return build_learner()


def inputs_of(numbers: list[int], pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Builds a batch of some of the rows, with their images."""
    inputs, generated = {1: [0]}, {2: [1], 3: [2, 3]}
    batch = batch_of([ROWS[number] for number in numbers])
    for name, images in (("pixel_values", inputs), ("generation_pixel_values", generated)):
        if which := [image for number in numbers for image in images.get(number, [])]:
            batch[name] = pixels[which]
    return batch


def test_count_targets_counts_text_and_positions(model, pixels):
    batch = inputs_of(ALL, pixels)
    ids, labels = batch["input_ids"], batch["labels"]
    assert model.count_targets(ids, labels).tolist() == [7 + 3 + 3 + 7, 3 * 16]
    labels[3] = -100
    shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
    assert model.count_targets(ids, labels).tolist() == model.count_targets(ids, labels, shifted).tolist() == [13, 16]


@pytest.mark.parametrize("apart", [True, False], ids=["counted apart", "counted together"])
@pytest.mark.parametrize("split", [[[0], [1], [2], [3]], [[3], [0, 1, 2]]], ids=str)
def test_shares_sum_to_the_loss_of_the_batch(model, pixels, split, apart):
    whole = inputs_of(ALL, pixels)
    text, positions = model.count_targets(whole["input_ids"], whole["labels"])
    counts = {"num_items_in_batch": text, "num_image_positions_in_batch": positions}
    counts = counts if apart else {"num_items_in_batch": text + positions}
    expected = model(**whole, **({} if apart else counts))
    expected.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    sums = dict.fromkeys(("loss", "text_loss", "image_loss", "image_level_losses"), 0.0)
    for numbers in split:
        share = model(**inputs_of(numbers, pixels), **counts)
        share.loss.backward()
        sums = {name: total + (share[name] if share.get(name) is not None else 0.0) for name, total in sums.items()}
    torch.testing.assert_close(sums, {name: expected[name] for name in sums})
    for name, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, atol=1e-4, rtol=1e-3)


def train_one_step(model, tmp_path, pixels, batch, accumulation, **kwargs):
    """Trains one step with a plain `Trainer`: the logged loss and all weights."""
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        optim="sgd", learning_rate=0.1, max_grad_norm=0.0, logging_steps=1, report_to="none", disable_tqdm=True,
        use_cpu=True, save_strategy="no", remove_unused_columns=False, train_sampling_strategy="sequential", **kwargs,
    )  # fmt: skip
    model = copy.deepcopy(model)
    trainer = Trainer(model, arguments, lambda numbers: inputs_of(numbers, pixels), train_dataset=ALL)
    trainer.train()
    return trainer.state.log_history[0]["loss"], model.state_dict()


def test_plain_trainer_accumulates_to_the_step_of_one_batch(model, pixels, tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(losses_evotok.logger, "warning_once", warnings.append)
    loss, weights = train_one_step(model, tmp_path, pixels, batch=4, accumulation=1)
    assert "both losses are divided by it" in warnings[0]
    other_loss, other = train_one_step(model, tmp_path, pixels, batch=1, accumulation=4)
    assert other_loss == pytest.approx(loss, abs=1e-4)
    torch.testing.assert_close(other, weights, atol=1e-5, rtol=1e-4)


def test_text_only_losses_are_refused(model, pixels, tmp_path):
    """These are label smoothing of `Trainer`, and TRL's trainers, which call the base model or omit the labels."""
    with pytest.raises(ValueError, match="label_smoothing_factor or compute_loss_func"):
        train_one_step(model, tmp_path, pixels, 4, 1, label_smoothing_factor=0.1)
    batch = inputs_of([2], pixels)
    del batch["labels"]
    for learner in (model.model, model):
        with pytest.raises(ValueError, match="images in the assistant's messages"):
            learner(**batch)
    with torch.no_grad():
        model.model(**batch)
    model.eval().model(**batch)


def test_trainer_predicts_logits_of_batches_of_any_kind(model, pixels, tmp_path):
    arguments = TrainingArguments(
        str(tmp_path), per_device_eval_batch_size=1, report_to="none", use_cpu=True, remove_unused_columns=False,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, lambda numbers: inputs_of(numbers, pixels), compute_metrics=lambda _: {"a": 1})
    result = trainer.predict(ALL)
    longest = max(map(len, ROWS))
    assert result.predictions.shape == (4, longest, 128) and result.label_ids.shape == (4, longest)
    assert result.metrics["test_a"] == 1 and result.metrics["test_loss"] > 0
    expected = model(**inputs_of([0], pixels)).logits[0].detach()
    torch.testing.assert_close(torch.from_numpy(result.predictions[0, : len(ROWS[0])]), expected)
