"""One optimizer for `Trainer`: Muon for matrices, AdamW for the rest; loading a checkpoint keeps its settings."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import TrainingArguments

from .recipes import OptimizerArguments


# Rows of tables and classifiers are used one by one; latents must not move away from their codebooks.
_NOT_MATRICES = ("embed", "lm_head", "classifiers", "position", "to_latent")
_ENCODERS = ("vision_tower.", "pixel_tower.")  # of the tokenizer, and of its variant with two


class MuonAdamW(Optimizer):
    """Muon (orthogonalized momentum) for weight matrices, AdamW for all other parameters.

    On EvoTok-mini a step of Muon is worth about two of AdamW, and takes a tenth longer. Parameters must not be sharded.

    Args:
        matrices, others: parameters of each kind, or groups of them with a `scale`, a factor on their learning rate.
        matrix_lr: learning rate of Muon, a share of the spectral norm.
        lr, betas, eps: of AdamW.
        weight_decay: of AdamW.
    """

    def __init__(self, matrices, others, matrix_lr: float, lr: float, betas, eps: float, weight_decay: float):
        muon, adamw = (
            [{"params": g["params"], "lr": rate * g["scale"]} if isinstance(g, dict) else g for g in groups]
            for groups, rate in ((matrices, matrix_lr), (others, lr))
        )
        self._parts = [
            torch.optim.Muon(muon, lr=matrix_lr, weight_decay=0.0),
            torch.optim.AdamW(adamw, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay),
        ]
        super().__init__([group for part in self._parts for group in part.param_groups], defaults={})
        self._bind()

    def _bind(self) -> None:
        # One state and one list of groups for both parts: schedulers and checkpoints handle a single optimizer.
        groups = iter(self.param_groups)
        for part in self._parts:
            part.state, part.param_groups = self.state, [next(groups) for _ in part.param_groups]

    def step(self, closure=None):
        """Takes one step with both."""
        loss = None if closure is None else closure()
        for part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state, as in PyTorch."""
        super().load_state_dict(state_dict)
        self._bind()


def is_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Returns whether a parameter is a matrix that mixes features, by its name and shape."""
    return parameter.ndim == 2 and not any(word in name for word in _NOT_MATRICES)


def optimizer_choice(choice: OptimizerArguments, arguments: TrainingArguments) -> tuple | None:
    """Returns the `optimizer_cls_and_kwargs` of `Trainer` for the optimizer of a recipe, None for Trainer's own.

    Raises:
        ValueError: an unknown optimizer, or Muon for parameters that are sharded.
    """
    if choice.name == "trainer":
        if choice.encoder_scale != 1.0:
            raise ValueError("optimizer.encoder_scale is for optimizer.name muon: choose it, or leave the scale out.")
        return None
    if choice.name != "muon":
        raise ValueError(f"optimizer.name {choice.name!r} is not one of trainer, muon.")
    if arguments.deepspeed or arguments.fsdp:
        raise ValueError(
            "optimizer.name muon needs unsharded matrices: leave DeepSpeed and FSDP out, or choose trainer."
        )
    kwargs = {
        "matrix_lr": choice.matrix_learning_rate,
        "lr": arguments.learning_rate,
        "betas": (arguments.adam_beta1, arguments.adam_beta2),
        "eps": arguments.adam_epsilon,
        "weight_decay": arguments.weight_decay,
    }
    return functools.partial(_builder, choice.encoder_scale), kwargs


def _builder(encoder_scale: float):
    # Trainer calls an optimizer that needs the model twice: for this function, and then with the model.
    def build(model: nn.Module, **kwargs) -> MuonAdamW:
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        groups = []
        for matrices in (True, False):
            kind = [(name, p) for name, p in trained if is_matrix(name, p) == matrices]
            if encoder_scale == 1.0:
                groups.append([p for _, p in kind])
                continue
            encoder = [p for name, p in kind if name.startswith(_ENCODERS)]
            rest = [p for name, p in kind if not name.startswith(_ENCODERS)]
            groups.append([{"params": rest, "scale": 1.0}, {"params": encoder, "scale": encoder_scale}])
        return MuonAdamW(*groups, **kwargs)

    return build


def group_settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Returns the settings of every parameter group, such as weight decay, but the learning rates."""
    state = ("params", "lr", "initial_lr")
    return [{key: value for key, value in group.items() if key not in state} for group in optimizer.param_groups]


@contextmanager
def keep_settings(
    optimizer: Optimizer, scheduler: LRScheduler, groups: list[dict[str, Any]] | None = None
) -> Iterator[None]:
    """Keeps learning rates, weight decay and the like as they were built while a state is loaded inside.

    Only moments and counts are loaded; the learning rates are those of the step that the loaded schedule is at.

    Args:
        groups: as [`group_settings`] returned them before something else was loaded.
    """
    groups = groups or group_settings(optimizer)
    rates = list(scheduler.base_lrs) if isinstance(scheduler, LambdaLR) else None
    yield
    for group, own in zip(optimizer.param_groups, groups, strict=True):
        group.update(own)
    if rates is None:
        return
    factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
    scheduler.base_lrs = rates
    scheduler._last_lr = [rate * factor for rate, factor in zip(rates, factors, strict=True)]
    for group, rate, now in zip(optimizer.param_groups, rates, scheduler._last_lr, strict=True):
        group.update(initial_lr=rate, lr=now)
