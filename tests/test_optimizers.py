import copy

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from evotok.training.optimizers import MuonAdamW, is_matrix, optimizer_choice
from evotok.training.recipes import OptimizerArguments


SETTINGS = {"matrix_lr": 0.02, "lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def build(seed=0):
    torch.manual_seed(seed)
    model = nn.ModuleDict({"embed": nn.Embedding(8, 6), "mix": nn.Linear(6, 4), "classifiers": nn.Linear(4, 8)})
    factory, _ = optimizer_choice(OptimizerArguments("muon"), TrainingArguments("out"))["optimizer_cls_and_kwargs"]
    return model, factory()(model, **SETTINGS)


def train(model, optimizer, steps):
    tokens = torch.arange(8)
    for _ in range(steps):
        logits = model["classifiers"](model["mix"](model["embed"](tokens)))
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, tokens.roll(1)).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def test_matrices_that_mix_features_go_to_muon_and_nothing_is_forgotten():
    model, optimizer = build()
    matrices, others = (group["params"] for group in optimizer.param_groups)
    assert [p.shape for p in matrices] == [(4, 6)]
    assert len(matrices) + len(others) == len(list(model.parameters()))
    assert not is_matrix("model.embed_tokens.weight", torch.zeros(2, 2)) and not is_matrix("norm", torch.zeros(2))


def test_both_parts_learn_as_they_do_alone():
    model, optimizer = build()
    start, alone = copy.deepcopy(model.state_dict()), copy.deepcopy(model)
    rest = [p for name, p in alone.named_parameters() if name != "mix.weight"]
    pair = [
        torch.optim.Muon([alone["mix"].weight], lr=0.02, weight_decay=0.0),
        torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1),
    ]
    tokens = torch.arange(8)
    for _ in range(3):
        loss = nn.functional.cross_entropy(alone["classifiers"](alone["mix"](alone["embed"](tokens))), tokens.roll(1))
        alone.zero_grad()
        loss.backward()
        for part in pair:
            part.step()
    train(model, optimizer, 3)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, alone.state_dict()[name]) and not torch.equal(tensor, start[name])


def test_schedules_reach_both_parts_and_a_resumed_run_is_the_same(tmp_path):
    model, optimizer = build()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    train(model, optimizer, 2)
    schedule.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    resumed, other = build(seed=1)
    resumed.load_state_dict(model.state_dict())
    other.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert [group["lr"] for group in other.param_groups] == [0.01, 0.0005]
    for one, two in zip(train(model, optimizer, 2), train(resumed, other, 2), strict=True):
        assert torch.equal(one, two)


def test_choices_are_checked():
    assert optimizer_choice(OptimizerArguments(), TrainingArguments("out")) == {}
    with pytest.raises(ValueError, match="'mion' is not one of trainer, muon"):
        optimizer_choice(OptimizerArguments("mion"), TrainingArguments("out"))
    sharded = TrainingArguments("out")
    sharded.deepspeed = "zero2.json"
    with pytest.raises(ValueError, match="needs whole matrices"):
        optimizer_choice(OptimizerArguments("muon"), sharded)
    assert isinstance(build()[1], MuonAdamW)


@pytest.mark.parametrize("tower", ["vision_tower", "pixel_tower"])
def test_towers_that_are_trained_already_learn_at_a_share_of_the_rates(tower):
    torch.manual_seed(0)
    model = nn.ModuleDict({tower: nn.Linear(6, 4), "mix": nn.Linear(4, 4)})
    choice, arguments = OptimizerArguments("muon", encoder_scale=0.25), TrainingArguments("out")
    factory, _ = optimizer_choice(choice, arguments)["optimizer_cls_and_kwargs"]
    optimizer = factory()(model, **SETTINGS)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = [rates[id(p)] for part in (model["mix"], model[tower]) for p in (part.weight, part.bias)]
    assert found == pytest.approx([0.02, 1e-3, 0.005, 2.5e-4])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert schedule.get_last_lr() == pytest.approx([0.01, 0.0025, 5e-4, 1.25e-4])
    before = [p.detach().clone() for p in model.parameters()]
    model["mix"](model[tower](torch.ones(2, 6))).square().sum().backward()
    optimizer.step()
    moved = [(after - start).norm().item() for after, start in zip(model.parameters(), before, strict=True)]
    assert all(distance > 0 for distance in moved) and moved[1] < 0.5 * moved[3]


def test_a_scale_of_the_encoder_needs_muon():
    with pytest.raises(ValueError, match=r"optimizer\.encoder_scale is for optimizer\.name muon"):
        optimizer_choice(OptimizerArguments(encoder_scale=0.5), TrainingArguments("out"))
