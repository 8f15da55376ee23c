"""Text-to-image: whether the concept of a prompt is retrieved from its image.

Retrieval takes features of any network: the network is chosen by the caller.

Shapes: I images, D width of the features, G drawings in the gallery, C concepts in it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def round_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """What 8 bits keep of pixels, about [-1, 1]: clipped and rounded, of the same shape, float32."""
    return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def standardize(features: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """(I, D) with each channel centred and scaled by the mean and deviation it has in `reference` (G, D)."""
    return (features - reference.mean(0)) / (reference.std(0) + 1e-6)


def retrieval_ranks(
    features: torch.Tensor, gallery_features: torch.Tensor, gallery_concepts: torch.Tensor, wanted: torch.Tensor
) -> torch.Tensor:
    """Rank, from 1, of the concept that each image should show, among the concepts of a gallery.

    A concept scores the best cosine over its drawings. Whatever is not strictly worse counts as better, so that images
    that all look the same, or features that are not finite, gain nothing.

    Args:
        features: (I, D).
        gallery_features: (G, D).
        gallery_concepts: (G,) int64, which concept each drawing shows.
        wanted: (I,) int64, the concept that each image should show.

    Returns:
        (I,) int64 in 1 .. C.

    Raises:
        ValueError: a wanted concept is not in the gallery.
    """
    similarity = F.normalize(features.float(), dim=-1) @ F.normalize(gallery_features.float(), dim=-1).T  # (I, G)
    concepts, concept_of = gallery_concepts.unique(return_inverse=True)  # (C,), (G,)
    missing = ~torch.isin(wanted, concepts)
    if missing.any():
        raise ValueError(f"Concept {int(wanted[missing][0])} is not in the gallery: add a drawing of it.")
    scores = similarity.new_full((len(features), len(concepts)), -torch.inf)
    scores.scatter_reduce_(1, concept_of.expand_as(similarity), similarity, "amax")  # (I, C)
    own = scores.gather(1, torch.searchsorted(concepts, wanted)[:, None])
    return (~(scores < own)).sum(1)


def topk(ranks: torch.Tensor, k: int) -> float:
    """Share of ranks (I,) that are at most k."""
    return (ranks <= k).float().mean().item()


class Gallery:
    """Drawings in which pictures are looked up; features are standardised on the whole gallery.

    Args:
        features: (G, D), as the network gives them.
        concepts: what each drawing shows.
        styles: how each is drawn.
    """

    def __init__(self, features: torch.Tensor, concepts: Sequence[int], styles: Sequence[str]):
        self.reference, self.features = features, standardize(features, features)
        self.concepts, self.styles = torch.tensor(concepts), list(styles)

    def find(self, features: torch.Tensor, concepts: Sequence[int], styles: Sequence[str]) -> dict[str, float]:
        """How often the concept asked for is found.

        Args:
            features: (I, D) of pictures, as the network gives them.
            concepts, styles: what each should show, and in which style.

        Returns:
            `top1` and `top5` among all drawings; `top1_same_style` and `top5_same_style`, stricter, among the drawings
            of the style asked for.
        """
        features, wanted = standardize(features, self.reference), torch.tensor(concepts)
        ranks = retrieval_ranks(features, self.features, self.concepts, wanted)
        same_style = torch.empty_like(ranks)
        for style in set(styles):
            asked = torch.tensor([other == style for other in styles])
            drawn = torch.tensor([other == style for other in self.styles])
            same_style[asked] = retrieval_ranks(
                features[asked], self.features[drawn], self.concepts[drawn], wanted[asked]
            )
        kinds = {"": ranks, "_same_style": same_style}
        return {f"top{k}{suffix}": topk(kind, k) for suffix, kind in kinds.items() for k in (1, 5)}
