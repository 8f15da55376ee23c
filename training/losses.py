"""Losses of the tokenizer stage (paper, Eq. 5 to 7): a dict of terms, to be weighted by a dict of weights."""

import torch
import torch.nn.functional as F


def semantic_loss(features: torch.Tensor, target: torch.Tensor, folds: int = 1) -> torch.Tensor:
    """One minus the cosine per position, mean over positions; with `folds` > 1 the same over slices of the channels
    is added.

    Args:
        features, target: (B, N, S).
        folds: slices of the channels; must divide S when above 1.
    """
    loss = 1 - F.cosine_similarity(features.float(), target.float(), dim=-1).mean()
    if folds > 1:
        sliced = (x.float().unflatten(-1, (folds, -1)) for x in (features, target))
        loss = loss + 1 - F.cosine_similarity(*sliced, dim=-1).mean()
    return loss


def weighted_sum(terms: dict[str, torch.Tensor], weights: dict[str, float]) -> torch.Tensor:
    """Sum of the terms, each times the weight of the same name."""
    return sum(weights[name] * term for name, term in terms.items())
