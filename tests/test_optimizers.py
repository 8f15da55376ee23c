"""Muon with AdamW as one optimizer, and settings that are kept when a state is loaded."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments

from evotok.training.optimizers import MuonAdamW, is_matrix, keep_settings, optimizer_choice
from evotok.training.recipes import OptimizerArguments


SETTINGS = {"matrix_lr": 0.02, "lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def build_optimizer(model, **choice) -> MuonAdamW:
    factory, _ = optimizer_choice(OptimizerArguments("muon", **choice), TrainingArguments("out"))
    return factory()(model, **SETTINGS)


def build(seed=0):
    torch.manual_seed(seed)
    model = nn.ModuleDict({"embed": nn.Embedding(8, 6), "mix": nn.Linear(6, 4), "classifiers": nn.Linear(4, 8)})
    return model, build_optimizer(model)


def train(model, optimizers, steps):
    tokens = torch.arange(8)
    for _ in range(steps):
        logits = model["classifiers"](model["mix"](model["embed"](tokens)))
        model.zero_grad()
        nn.functional.cross_entropy(logits, tokens.roll(1)).backward()
        for optimizer in optimizers:
            optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def test_muon_updates_the_matrices_that_mix_features():
    model, optimizer = build()
    matrices, others = (group["params"] for group in optimizer.param_groups)
    assert [p.shape for p in matrices] == [(4, 6)]
    assert len(matrices) + len(others) == len(list(model.parameters()))
    assert not is_matrix("model.embed_tokens.weight", torch.zeros(2, 2)) and not is_matrix("norm", torch.zeros(2))


def test_step_equals_separate_muon_and_adamw():
    model, optimizer = build()
    start, apart = copy.deepcopy(model.state_dict()), copy.deepcopy(model)
    rest = [p for name, p in apart.named_parameters() if name != "mix.weight"]
    pair = [
        torch.optim.Muon([apart["mix"].weight], lr=0.02, weight_decay=0.0),
        torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1),
    ]
    train(apart, pair, 3)
    train(model, [optimizer], 3)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, apart.state_dict()[name]) and not torch.equal(tensor, start[name])


def test_state_is_saved_with_the_schedule_and_resumes_bit_equal(tmp_path):
    model, optimizer = build()
    schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    train(model, [optimizer], 2)
    schedule.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    resumed, other = build(seed=1)
    resumed.load_state_dict(model.state_dict())
    other.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert [group["lr"] for group in other.param_groups] == [0.01, 0.0005]
    for one, two in zip(train(model, [optimizer], 2), train(resumed, [other], 2), strict=True):
        assert torch.equal(one, two)


def test_encoder_scale_lowers_the_rates_of_both_towers():
    torch.manual_seed(0)
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("vision_tower", "pixel_tower", "mix")})
    optimizer = build_optimizer(model, encoder_scale=0.25)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, expected in (("mix", [0.02, 1e-3]), ("vision_tower", [0.005, 2.5e-4]), ("pixel_tower", [0.005, 2.5e-4])):
        assert [rates[id(p)] for p in (model[name].weight, model[name].bias)] == pytest.approx(expected), name
    schedule = LambdaLR(optimizer, lambda step: 0.5)
    assert schedule.get_last_lr() == pytest.approx([0.01, 0.0025, 5e-4, 1.25e-4])


def test_optimizer_choice_refuses_conflicting_options():
    arguments = TrainingArguments("out")
    assert optimizer_choice(OptimizerArguments(), arguments) is None
    with pytest.raises(ValueError, match="'mion' is not one of trainer, muon"):
        optimizer_choice(OptimizerArguments("mion"), arguments)
    with pytest.raises(ValueError, match=r"optimizer\.encoder_scale is for optimizer\.name muon"):
        optimizer_choice(OptimizerArguments(encoder_scale=0.5), arguments)
    arguments.deepspeed = "zero2.json"
    with pytest.raises(ValueError, match="needs unsharded matrices"):
        optimizer_choice(OptimizerArguments("muon"), arguments)


def test_keep_settings_keeps_rates_and_decay_as_built():
    def build(rate):
        optimizer = torch.optim.AdamW(nn.Linear(2, 2).parameters(), lr=rate, weight_decay=rate)
        return optimizer, LambdaLR(optimizer, lambda step: 0.97**step)

    optimizer, scheduler = build(0.1)
    for _ in range(7):
        optimizer.step()
        scheduler.step()
    saved = optimizer.state_dict(), scheduler.state_dict()
    for rate in (0.1, 0.3):
        other, schedule = build(rate)
        with keep_settings(other, schedule):
            other.load_state_dict(saved[0])
            schedule.load_state_dict(saved[1])
        [group] = other.param_groups
        assert (group["lr"], group["weight_decay"], schedule.base_lrs) == (rate * 0.97**7, rate, [rate])
        assert schedule.get_last_lr() == [group["lr"]] and schedule.last_epoch == 7
