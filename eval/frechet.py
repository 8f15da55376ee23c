"""The Frechet distance between two sets of images, over the features of any network (Heusel et al. 2017).

With Inception's features it is FID; with any others it goes by another name, for the numbers do not compare.

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
    """Sums over features in float64, from which mean and covariance follow; those of parts add up to the whole's."""

    count: torch.Tensor
    """() int64."""
    total: torch.Tensor
    """(D,) float64."""
    products: torch.Tensor
    """(D, D) float64: sum of outer products."""

    @classmethod
    def empty(cls, width: int) -> "FeatureStatistics":
        """Of no images."""
        zeros = {"total": torch.zeros(width), "products": torch.zeros(width, width)}
        return cls(torch.tensor(0), **{name: value.double() for name, value in zeros.items()})

    @classmethod
    def of(cls, features: torch.Tensor) -> "FeatureStatistics":
        """Of features (I, D)."""
        statistics = cls.empty(features.shape[1])
        statistics.add(features)
        return statistics

    def add(self, features: torch.Tensor) -> None:
        """Take in features (B, D)."""
        features = features.double().cpu()
        self.count += len(features)
        self.total += features.sum(0)
        self.products += features.T @ features

    def __add__(self, other: "FeatureStatistics") -> "FeatureStatistics":
        return FeatureStatistics(self.count + other.count, self.total + other.total, self.products + other.products)

    def mean_and_covariance(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(D,) and the unbiased (D, D).

        Raises:
            ValueError: fewer than two images.
        """
        if self.count < 2:
            raise ValueError(f"{int(self.count)} images have no covariance: give at least 2.")
        mean = self.total / self.count
        return mean, (self.products - self.count * torch.outer(mean, mean)) / (self.count - 1)


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), never below 0.

    The last trace is the sum of the singular values of C1^(1/2) C2^(1/2): no root is taken of what rounding has made
    negative, so that fewer images than features, whose covariances are singular, do no harm to the arithmetic.

    Raises:
        ValueError: a side of fewer than two images, or features that are not finite.
    """
    (mean, covariance), (other_mean, other_covariance) = first.mean_and_covariance(), second.mean_and_covariance()
    if not all(value.isfinite().all() for value in (covariance, other_covariance)):
        raise ValueError("Features hold NaN or infinite values: check the network's weights, and the decoded images.")
    overlap = torch.linalg.svdvals(_root(covariance) @ _root(other_covariance)).sum()
    distance = (mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2 * overlap
    return max(distance.item(), 0.0)


def _root(covariance: torch.Tensor) -> torch.Tensor:
    """The symmetric root of a symmetric matrix without negative eigenvalues but for rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


class StatisticsCache:
    """Statistics of images that do not change, kept from one evaluation to the next.

    Args:
        folder: made when something is stored.
        network: what gave the features: name, version of its weights, size that it looks at.
        images: fingerprint of the pixels.
    """

    def __init__(self, folder: str | Path, network: str, images: str):
        key = hashlib.sha256(f"{network}\n{images}".encode()).hexdigest()
        self.path = Path(folder) / f"{key}.safetensors"

    def read(self) -> FeatureStatistics | None:
        """What was stored, or None; a damaged file counts as none."""
        try:
            return FeatureStatistics(**load_file(self.path))
        except (OSError, SafetensorError, TypeError):
            return None

    def write(self, statistics: FeatureStatistics) -> None:
        """Store; a reader finds the whole file or none."""
        with atomic_file(self.path) as part:
            save_file(vars(statistics), part)


class FrechetMeter:
    """Measures originals against their copies at several depths, in batches dealt out to processes.

    Args:
        features: images (B, 3, H, W) in [-1, 1] -> (B, D).
        width: D.
        cache: of the originals' statistics; where it has them, originals are not looked at again.
        depths: what the copies are told apart by.
        workers: all of them make this meter, and call `distances`, together.
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
        self._known = workers.once(cache.read)  # no process may see another file
        self._originals = FeatureStatistics.empty(width)
        self._copies = {depth: FeatureStatistics.empty(width) for depth in depths}

    def add_originals(self, pixels: torch.Tensor) -> None:
        """Images (B, 3, H, W) in [-1, 1]."""
        if self._known is None:
            self._originals.add(self.features(pixels))

    def add_copies(self, depth: int, pixels: torch.Tensor) -> None:
        """The same images, decoded."""
        self._copies[depth].add(self.features(pixels))

    def distances(self) -> dict[int, float]:
        """By depth, over the images of all processes; originals that are new go into the cache."""
        if self._known is None:
            self._known = self._whole(self._originals)
            if self.workers.is_main:
                self.cache.write(self._known)
        return {depth: frechet_distance(self._known, self._whole(copies)) for depth, copies in self._copies.items()}

    def _whole(self, part: FeatureStatistics) -> FeatureStatistics:
        first, *others = self.workers.gather(part)
        return sum(others, start=first)
