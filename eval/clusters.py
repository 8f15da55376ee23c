"""Vectors in groups and on a plane: K-means and t-SNE, with scikit-learn (extra `eval`)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch


class Clusters(NamedTuple):
    """What K-means finds in I vectors."""

    assigned: np.ndarray
    """(I,) cluster of each vector."""
    distances: np.ndarray
    """(I,) to the centre of its cluster."""

    def largest(self, count: int) -> list[list[int]]:
        """Members of the largest clusters, nearest to the centre first."""
        sizes = np.bincount(self.assigned)
        order = np.argsort(-sizes, kind="stable")[:count]
        nearest = np.argsort(self.distances, kind="stable")
        return [[int(i) for i in nearest if self.assigned[i] == index] for index in order]

    def agreement(self, labels: Sequence[str]) -> float:
        """Adjusted mutual information with labels of the vectors: 0 by chance, 1 if each gives the other."""
        from sklearn.metrics import adjusted_mutual_info_score

        return float(adjusted_mutual_info_score(list(labels), self.assigned))


def cluster(vectors: torch.Tensor, count: int, seed: int) -> Clusters:
    """K-means of (I, F) in `count` clusters, the best of ten beginnings."""
    from sklearn.cluster import KMeans

    values = vectors.float().numpy()
    means = KMeans(count, n_init=10, random_state=seed).fit(values)
    return Clusters(means.labels_, means.transform(values).min(1))


def project(vectors: torch.Tensor, seed: int) -> np.ndarray:
    """t-SNE: (I, F) -> (I, 2)."""
    from sklearn.manifold import TSNE

    return TSNE(init="pca", random_state=seed).fit_transform(vectors.float().numpy())
