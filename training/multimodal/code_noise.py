"""Noise on the pictures that a model is shown while it learns to draw them.

A picture that is learnt by heart is known by its first codes, and the prompt is then no longer read. Where some of the
codes shown are another picture's, only the prompt can tell what comes next. The codes to be written stay as they are.
"""

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


def add_code_noise(pixel_projector: nn.Module, share: float) -> RemovableHandle:
    """From now on, in training mode, exchange positions among the pictures that the language model is shown.

    Each picture has its own rate, uniform from 0 to 2 * `share`: nearly clean ones are among them, as in generation.

    Args:
        pixel_projector: its input are features (I, N, C) of I pictures with N positions.
        share: mean share of positions that show another position's feature, in [0, 0.5].

    Raises:
        ValueError: `share` out of range.
    """
    if not 0.0 <= share <= 0.5:
        raise ValueError(f"data.code_noise={share} must be in [0, 0.5]: some pictures get twice as much.")

    def exchange(module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        if not module.training:
            return None
        [features] = inputs
        rows = features.flatten(0, -2)
        others = rows[torch.randperm(rows.shape[0], device=rows.device)].view_as(features)
        rates = 2 * share * torch.rand(features.shape[0], 1, 1, device=features.device)
        noisy = torch.rand(*features.shape[:-1], 1, device=features.device) < rates
        return (torch.where(noisy, others, features),)

    return pixel_projector.register_forward_pre_hook(exchange)
