"""Frechet distance between two sets of images, over the features of any network (Heusel et al. 2017).

Over Inception's features it is FID; over those of another network it has another name, since the values differ.

Not torchmetrics' `FrechetInceptionDistance`: it takes the root of the product of both covariances, which for no more
images than features (the usual case here) gives other digits and values below 0, and it keeps no statistics of the
originals from one evaluation to the next.

Shapes: B images, D width of the features.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..data.atomic_files import atomic_file
from ..data.processes import Workers


@dataclass
class FeatureStatistics:
    """Sums over features in float64, from which mean and covariance follow; statistics of disjoint sets are added."""

    count: torch.Tensor
    """() int64."""
    total: torch.Tensor
    """(D,) float64."""
    products: torch.Tensor
    """(D, D) float64: sum of outer products."""

    @classmethod
    def empty(cls, width: int) -> "FeatureStatistics":
        """Returns the statistics of no images."""
        return cls(torch.tensor(0), torch.zeros(width).double(), torch.zeros(width, width).double())

    @classmethod
    def of(cls, features: torch.Tensor) -> "FeatureStatistics":
        """Computes the statistics of features (B, D)."""
        statistics = cls.empty(features.shape[1])
        statistics.add(features)
        return statistics

    def add(self, features: torch.Tensor) -> None:
        """Adds features (B, D)."""
        features = features.double().cpu()
        self.count += len(features)
        self.total += features.sum(0)
        self.products += features.T @ features

    def __add__(self, other: "FeatureStatistics") -> "FeatureStatistics":
        return FeatureStatistics(self.count + other.count, self.total + other.total, self.products + other.products)

    def mean_and_covariance(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the mean (D,) and the unbiased covariance (D, D).

        Raises:
            ValueError: fewer than two images.
        """
        if self.count < 2:
            raise ValueError(f"{int(self.count)} images have no covariance: give at least 2.")
        mean = self.total / self.count
        return mean, (self.products - self.count * torch.outer(mean, mean)) / (self.count - 1)


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """Computes |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)); 0 where rounding makes it negative.

    The last trace is the sum of the singular values of C1^(1/2) C2^(1/2): roots of symmetric matrices alone, whose
    negative eigenvalues are rounding errors, so that singular covariances lose no digits.

    Raises:
        ValueError: fewer than two images in a set, or features that are not finite.
    """
    (mean, covariance), (other_mean, other_covariance) = first.mean_and_covariance(), second.mean_and_covariance()
    if not all(value.isfinite().all() for value in (covariance, other_covariance)):
        raise ValueError("Features hold NaN or infinite values: check the network's weights, and the decoded images.")
    overlap = torch.linalg.svdvals(_root(covariance) @ _root(other_covariance)).sum()
    distance = (mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2 * overlap
    return max(distance.item(), 0.0)


def _root(covariance: torch.Tensor) -> torch.Tensor:
    """Returns the symmetric root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


class StatisticsCache:
    """File with the statistics of one set of images, kept from one evaluation to the next.

    Args:
        folder: created when something is stored.
        network: name of the feature network, version of its weights, size of its input.
        images: fingerprint of the pixels.
    """

    def __init__(self, folder: str | Path, network: str, images: str):
        key = hashlib.sha256(f"{network}\n{images}".encode()).hexdigest()
        self.path = Path(folder) / f"{key}.safetensors"

    def read(self) -> FeatureStatistics | None:
        """Returns the stored statistics; None where there are none or the file is damaged."""
        try:
            return FeatureStatistics(**load_file(self.path))
        except (OSError, SafetensorError, TypeError):
            return None

    def write(self, statistics: FeatureStatistics) -> None:
        """Stores statistics in one atomic write."""
        with atomic_file(self.path) as part:
            save_file(vars(statistics), part)


class FrechetMeter:
    """Meter of the distance between originals and their reconstructions at several depths.

    Args:
        features: images (B, 3, H, W) in [-1, 1] -> (B, D).
        width: D.
        cache: of the originals' statistics; where it has them, the network does not process the originals.
        depths: of the reconstructions.
        workers: all processes create the meter and call `distances` together.
    """

    def __init__(
        self,
        features: Callable[[torch.Tensor], torch.Tensor],
        width: int,
        cache: StatisticsCache,
        depths: Sequence[int],
        workers: Workers,
    ):
        self.features, self.cache, self.workers = features, cache, workers
        self._cached = workers.once(cache.read)  # the same file on all processes
        self._originals = FeatureStatistics.empty(width)
        self._reconstructions = {depth: FeatureStatistics.empty(width) for depth in depths}

    def add_originals(self, pixels: torch.Tensor) -> None:
        """Adds original images (B, 3, H, W) in [-1, 1]."""
        if self._cached is None:
            self._originals.add(self.features(pixels))

    def add_reconstructions(self, depth: int, pixels: torch.Tensor) -> None:
        """Adds the same images, decoded at a depth."""
        self._reconstructions[depth].add(self.features(pixels))

    def distances(self) -> dict[int, float]:
        """Computes the distance at each depth over the images of all processes; stores the originals' statistics."""
        if self._cached is None:
            self._cached = self._gather(self._originals)
            if self.workers.is_main:
                self.cache.write(self._cached)
        gathered = {depth: self._gather(own) for depth, own in self._reconstructions.items()}
        return {depth: frechet_distance(self._cached, own) for depth, own in gathered.items()}

    def _gather(self, statistics: FeatureStatistics) -> FeatureStatistics:
        first, *others = self.workers.gather(statistics)
        return sum(others, start=first)
