"""The loss of a step is the same however its rows are split over batches, accumulated or on processes."""

import copy

import pytest
import torch
from conftest import build_tiny_model
from test_modeling_evotok import DRAWN, SEEN, batch_of
from transformers import Trainer, TrainingArguments

from evotok.modeling_evotok import loss_terms_evotok


# Text only, an image in, one out, two out: other numbers of targets of both kinds in every row.
ROWS = [[3, 4, 5, 6, 7, 8, 9, 10], [3, *SEEN, 5], [3, *DRAWN, 5], [6, *DRAWN, 7, *DRAWN, 8, 9]]
SPLITS = [[[0, 1, 2, 3]], [[0], [1], [2], [3]], [[0, 2], [1, 3]], [[3], [0, 1, 2]]]


def build_learner():
    """A tiny model in training mode, without dropout."""
    model = build_tiny_model().train()
    for layer in model.depth_decoder.layers:
        layer.dropout.p = 0.0
    return model


@pytest.fixture
def model():
    return build_learner()


def inputs_of(numbers: list[int], pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """A batch of some of the rows, with the images that belong to them."""
    seen, drawn = {1: [0]}, {2: [1], 3: [2, 3]}
    batch = batch_of([ROWS[number] for number in numbers])
    for name, images in (("pixel_values", seen), ("generation_pixel_values", drawn)):
        if which := [image for number in numbers for image in images.get(number, [])]:
            batch[name] = pixels[which]
    return batch


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_targets_are_counted_apart(model, pixels):
    batch = inputs_of([0, 1, 2, 3], pixels)
    text, positions = model.count_targets(batch["input_ids"], batch["labels"]).tolist()
    assert (text, positions) == (7 + 3 + 3 + 7, 3 * 16)
    batch["labels"][3] = -100
    assert model.count_targets(batch["input_ids"], batch["labels"]).tolist() == [13, 16]
    shifted = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    assert model.count_targets(batch["input_ids"], batch["labels"], shifted).tolist() == [13, 16]


@pytest.mark.parametrize("apart", [True, False], ids=["counted apart", "counted together"])
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_shares_add_up_to_the_loss_of_the_whole(model, pixels, split, apart):
    whole = inputs_of([0, 1, 2, 3], pixels)
    text, positions = model.count_targets(whole["input_ids"], whole["labels"])
    counts = {"num_items_in_batch": text, "num_image_positions_in_batch": positions}
    counts = counts if apart else {"num_items_in_batch": text + positions}
    expected = model(**whole, **({} if apart else counts))
    expected.loss.backward()
    wanted = gradients(model)
    model.zero_grad()
    sums = dict.fromkeys(("loss", "text_loss", "image_loss", "image_level_losses"), 0.0)
    for numbers in split:
        share = model(**inputs_of(numbers, pixels), **counts)
        share.loss.backward()
        sums = {name: total + (share[name] if share.get(name) is not None else 0.0) for name, total in sums.items()}
    for name, total in sums.items():
        torch.testing.assert_close(total, expected[name], msg=lambda text, name=name: f"{name}: {text}")
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-4, rtol=1e-3)


def test_without_counts_both_are_means_of_the_pass(model, pixels):
    output = model(**inputs_of([0, 2, 3], pixels))
    torch.testing.assert_close(output.loss, output.text_loss + output.image_loss)
    torch.testing.assert_close(output.image_loss, output.image_level_losses.mean())


def train_one_step(model, tmp_path, pixels, batch, accumulation, **kwargs):
    """Logged loss, and all weights after one step of a plain `Trainer`."""
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        optim="sgd", learning_rate=0.1, max_grad_norm=0.0, logging_steps=1, report_to="none", disable_tqdm=True,
        use_cpu=True, save_strategy="no", remove_unused_columns=False, train_sampling_strategy="sequential", **kwargs,
    )  # fmt: skip
    model = copy.deepcopy(model)
    trainer = Trainer(model, arguments, lambda numbers: inputs_of(numbers, pixels), train_dataset=[0, 1, 2, 3])
    trainer.train()
    return trainer.state.log_history[0]["loss"], model.state_dict()


def test_a_plain_trainer_accumulates_to_the_same_step(model, pixels, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(loss_terms_evotok.logger, "warning_once", said.append)
    loss, weights = train_one_step(model, tmp_path, pixels, batch=4, accumulation=1)
    assert "both losses are divided by it" in said[0]
    for batch, accumulation in ((2, 2), (1, 4)):
        other_loss, other = train_one_step(model, tmp_path, pixels, batch, accumulation)
        assert other_loss == pytest.approx(loss, abs=1e-4)
        for name, tensor in weights.items():
            torch.testing.assert_close(other[name], tensor, atol=1e-5, rtol=1e-4)


def test_a_loss_that_knows_text_alone_is_refused(model, pixels, tmp_path):
    with pytest.raises(ValueError, match="label_smoothing_factor or compute_loss_func"):
        train_one_step(model, tmp_path, pixels, 4, 1, label_smoothing_factor=0.1)


def test_images_are_not_learnt_from_hidden_states(model, pixels):
    """TRL's trainers call the model without heads, or without labels where they smooth them."""
    batch = inputs_of([2], pixels)
    del batch["labels"]
    for learner in (model.model, model):
        with pytest.raises(ValueError, match="images in assistant turns"):
            learner(**batch)
    with torch.no_grad():
        model.model(**batch)
    model.eval().model(**batch)


def test_predictions_are_logits_of_every_batch(model, pixels, tmp_path):
    """Whether a batch has images or not, of any size: what `Trainer.predict` puts together."""
    arguments = TrainingArguments(
        str(tmp_path), per_device_eval_batch_size=1, report_to="none", use_cpu=True, remove_unused_columns=False,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, lambda numbers: inputs_of(numbers, pixels), compute_metrics=lambda _: {"a": 1})
    result = trainer.predict([0, 1, 2, 3])
    longest = max(map(len, ROWS))
    assert result.predictions.shape == (4, longest, 128) and result.label_ids.shape == (4, longest)
    assert result.metrics["test_a"] == 1 and result.metrics["test_loss"] > 0
    torch.testing.assert_close(
        torch.from_numpy(result.predictions[0, : len(ROWS[0])]), model(**inputs_of([0], pixels)).logits[0].detach()
    )
