"""Muon for matrices, AdamW for the rest, as one optimizer that `Trainer` can drive, save and resume."""

import functools
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from .recipes import OptimizerArguments


# Tables and classifiers look their rows up one by one; latents must not run away from their codebooks.
_NOT_MATRICES = ("embed", "lm_head", "classifiers", "position", "to_latent")
_ENCODERS = ("vision_tower.", "pixel_tower.")  # of the tokenizer, and of its variant with two


class MuonAdamW(torch.optim.Optimizer):
    """Weight matrices learn by Muon (orthogonalised momentum), everything else by AdamW.

    On EvoTok-mini a step of Muon is worth about two of AdamW, and costs a tenth more. It needs whole matrices: sharded
    parameters are not for it.

    Args:
        matrices, others: parameters of each kind, or groups of them with a `scale`, a factor on their learning rate.
        matrix_lr: step of the matrices, a share of their spectral norm.
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
        # One state and one list of groups for both parts: schedulers and checkpoints see a single optimizer.
        groups = iter(self.param_groups)
        for part in self._parts:
            part.state, part.param_groups = self.state, [next(groups) for _ in part.param_groups]

    def step(self, closure=None):
        """One step of both."""
        loss = None if closure is None else closure()
        for part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in PyTorch."""
        super().load_state_dict(state_dict)
        self._bind()


def is_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter is a matrix that mixes features, by its name and shape."""
    return parameter.ndim == 2 and not any(word in name for word in _NOT_MATRICES)


def optimizer_choice(choice: OptimizerArguments, arguments: TrainingArguments) -> dict[str, Any]:
    """Arguments of `Trainer` that make it use the optimizer of a recipe.

    Raises:
        ValueError: an optimizer that is not known, or Muon for parameters that are sharded.
    """
    if choice.name == "trainer":
        if choice.encoder_scale != 1.0:
            raise ValueError("optimizer.encoder_scale is for optimizer.name muon: choose it, or leave the scale out.")
        return {}
    if choice.name != "muon":
        raise ValueError(f"optimizer.name {choice.name!r} is not one of trainer, muon.")
    if arguments.deepspeed or arguments.fsdp:
        raise ValueError("optimizer.name muon needs whole matrices: leave DeepSpeed and FSDP out, or choose trainer.")
    kwargs = {
        "matrix_lr": choice.matrix_learning_rate,
        "lr": arguments.learning_rate,
        "betas": (arguments.adam_beta1, arguments.adam_beta2),
        "eps": arguments.adam_epsilon,
        "weight_decay": arguments.weight_decay,
    }
    return {"optimizer_cls_and_kwargs": (functools.partial(_factory, choice.encoder_scale), kwargs)}


def _factory(encoder_scale: float):
    # Trainer's form for optimizers that need the model: called once for a builder, which is called with the model.
    def build(model: nn.Module, **kwargs) -> MuonAdamW:
        learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        groups = []
        for wanted in (True, False):
            kind = [(name, p) for name, p in learning if is_matrix(name, p) == wanted]
            if encoder_scale == 1.0:
                groups.append([p for _, p in kind])
                continue
            encoder = [p for name, p in kind if name.startswith(_ENCODERS)]
            rest = [p for name, p in kind if not name.startswith(_ENCODERS)]
            groups.append([{"params": rest, "scale": 1.0}, {"params": encoder, "scale": encoder_scale}])
        return MuonAdamW(*groups, **kwargs)

    return build
