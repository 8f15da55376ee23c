"""Losses of the tokenizer stage (paper, Eq. 5 to 7): a dict of terms, to be weighted by a dict of weights."""

import torch
import torch.distributed as dist
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


def adaptive_weight(
    pixel_loss: torch.Tensor, adversarial_loss: torch.Tensor, last_layer: torch.Tensor, limit: float = 1e4
) -> torch.Tensor:
    """Factor under which the adversarial loss pulls at the decoder's last layer as hard as the others (VQGAN, Eq. 7).

    Args:
        pixel_loss: scalar, the weighted sum of reconstruction and perceptual loss.
        adversarial_loss: scalar, not weighted.
        last_layer: the weight that both gradients are taken at, of any shape.
        limit: the factor is at most this.

    Returns:
        Scalar without gradient, the ratio of the norms of both gradients, those of the global batch.
    """
    terms = (pixel_loss, adversarial_loss)
    gradients = torch.stack([torch.autograd.grad(term, last_layer, retain_graph=True)[0].float() for term in terms])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(gradients)
        gradients /= dist.get_world_size()
    pixel, adversarial = gradients.flatten(1).norm(dim=1)
    return (pixel / (adversarial + 1e-4)).clamp(max=limit)
