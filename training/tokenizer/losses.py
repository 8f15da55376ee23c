"""Losses of the tokenizer stage and its PatchGAN discriminator (paper, Eq. 5 to 7)."""

from collections.abc import Mapping
from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn


def semantic_loss(features: torch.Tensor, target: torch.Tensor, folds: int = 1) -> torch.Tensor:
    """Returns one minus the cosine of each position, mean over positions; with `folds` > 1 the same over slices of the
    channels is added.

    Args:
        features, target: (B, N, S).
        folds: slices of the channels; must divide S when above 1.
    """
    loss = 1 - F.cosine_similarity(features.float(), target.float(), dim=-1).mean()
    if folds > 1:
        sliced = (x.float().unflatten(-1, (folds, -1)) for x in (features, target))
        loss = loss + 1 - F.cosine_similarity(*sliced, dim=-1).mean()
    return loss


def weighted_sum(terms: Mapping[str, torch.Tensor], weights: Mapping[str, float | torch.Tensor]) -> torch.Tensor:
    """Returns the sum of the terms, at least one, each times the weight of the same name."""
    return cast(torch.Tensor, sum(weights[name] * term for name, term in terms.items()))


def adaptive_weight(
    pixel_loss: torch.Tensor, adversarial_loss: torch.Tensor, last_layer: torch.Tensor, limit: float = 1e4
) -> torch.Tensor:
    """Returns the factor that gives the adversarial loss a gradient as large as that of the other pixel losses at the
    decoder's last layer (VQGAN, Eq. 7).

    Args:
        pixel_loss: scalar, the weighted sum of reconstruction and perceptual loss.
        adversarial_loss: scalar, not weighted.
        last_layer: the weight that both gradients are taken at, of any shape.
        limit: the factor is at most this.

    Returns:
        Scalar without gradient, the ratio of the norms of both gradients over the global batch.
    """
    terms = (pixel_loss, adversarial_loss)
    gradients = torch.stack([torch.autograd.grad(term, last_layer, retain_graph=True)[0].float() for term in terms])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(gradients)
        gradients /= dist.get_world_size()
    pixel, adversarial = gradients.flatten(1).norm(dim=1)
    return (pixel / (adversarial + 1e-4)).clamp(max=limit)


class PatchDiscriminator(nn.Module):
    """PatchGAN discriminator. GroupNorm instead of BatchNorm: small batches, no state between ranks.

    Args:
        channels: width after the first convolution, doubled at each further one up to 8 times.
        num_layers: strided convolutions; each doubles the patch.
    """

    def __init__(self, channels: int = 64, num_layers: int = 3):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for index in range(1, num_layers + 1):
            wider = channels * min(2**index, 8)
            stride = 2 if index < num_layers else 1
            layers += [
                nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(min(32, wider // 4), wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, padding=1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns one logit for each patch: (B, 3, H, W) -> (B, 1, h, w)."""
        return self.layers(pixels)


def discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Returns the hinge loss of the discriminator: real above 1, fake below -1."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """Returns the hinge loss of the generator, minus the mean logit of its patches."""
    return -fake_logits.mean()
