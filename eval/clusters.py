"""K-means and t-SNE of vectors, by scikit-learn (extra `eval`)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch


class Clusters(NamedTuple):
    """Clusters of I vectors."""

    assigned: np.ndarray
    """(I,) index of each vector's cluster."""
    distances: np.ndarray
    """(I,) distance to the centre of that cluster."""

    def largest(self, count: int) -> list[list[int]]:
        """Returns the members of the largest clusters, nearest to the centre first."""
        sizes = np.bincount(self.assigned)
        order = np.argsort(-sizes, kind="stable")[:count]
        nearest = np.argsort(self.distances, kind="stable")
        return [[int(i) for i in nearest if self.assigned[i] == index] for index in order]

    def agreement(self, labels: Sequence[str]) -> float:
        """Computes the adjusted mutual information with labels of the vectors: 0 by chance, 1 for equal partitions."""
        from sklearn.metrics import adjusted_mutual_info_score

        return float(adjusted_mutual_info_score(list(labels), self.assigned))


def cluster(vectors: torch.Tensor, count: int, seed: int) -> Clusters:
    """Computes K-means of vectors (I, F), the best of ten initializations."""
    from sklearn.cluster import KMeans

    values = vectors.float().numpy()
    means = KMeans(count, n_init=10, random_state=seed).fit(values)
    return Clusters(means.labels_, means.transform(values).min(1))


def project(vectors: torch.Tensor, seed: int) -> np.ndarray:
    """Projects vectors on a plane by t-SNE: (I, F) -> (I, 2)."""
    from sklearn.manifold import TSNE

    return TSNE(init="pca", random_state=seed).fit_transform(vectors.float().numpy())
