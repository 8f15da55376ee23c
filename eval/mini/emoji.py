"""Text to image: single emoji in a named style, retrieved among all emoji of the world by EfficientNet-Lite0.

Shapes: I images, D width of the features, G images of the gallery, E emoji in it.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ...data.image_files import to_pixels
from ...data.world.evaluation import emoji_prompt_set
from ...data.world.icons import EMOJI_STYLES, World
from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ...processing.image_loading_evotok import load_image
from ..sequences import map_batches
from ..suite import Evaluation, Report
from ..teachers import EfficientNetTeacher
from ..text_to_image.geneval_layout import image_file
from .generation import Variant, generate_variant, reconstruct


EMOJI_VARIANTS = (Variant("emoji", "_cfg7.5"), Variant("emoji_cfg1", "_cfg1", guidance_scale=1.0))


class EmojiRetrieval:
    """Retrieves the emoji of generated images among all emoji of the world in all styles.

    Args:
        evaluation: its options are those of the suite.
        world: whose emoji are the gallery.
        device: of EfficientNet-Lite0.
    """

    def __init__(self, evaluation: Evaluation, world: World, device: torch.device):
        self.evaluation, self.world, self.device = evaluation, world, device
        self.prompts = emoji_prompt_set(world, evaluation.options.emoji)

    @cached_property
    def network(self) -> EfficientNetTeacher:
        """Returns the network whose pooled features are compared."""
        return EfficientNetTeacher().to(self.device)

    @cached_property
    def gallery(self) -> "Gallery":
        """Returns the gallery of all emoji in all styles, on white."""
        shown = [(emoji, style) for style in EMOJI_STYLES for emoji in range(len(self.world.emoji_names))]
        images = [self.world.emoji_image(emoji, style) for emoji, style in shown]
        return Gallery(self._features(images), [emoji for emoji, _ in shown], [style for _, style in shown])

    def measure(self, variant: Variant) -> Report:
        """Measures how often the prompt's emoji is the nearest one, and among the five nearest."""
        generate_variant(self.evaluation, variant, [prompt.text for prompt in self.prompts])
        folder = self.evaluation.folder / "pictures" / variant.name
        found = self._find([load_image(folder / image_file(index)) for index in range(len(self.prompts))])
        figures = {f"t2i_top{k}_train{variant.suffix}": found[f"top{k}"] for k in (5, 1)}
        figures[f"t2i_top5_train{variant.suffix}_same_style"] = found["top5_same_style"]
        figures[f"t2i_top5_train{variant.suffix}_n"] = len(self.prompts)
        return Report(figures)

    def measure_ceiling(self, tokenizer: EvoTokVQModel) -> Report:
        """Measures the same for the emoji themselves after the image tokenizer, and by chance."""
        found = self._find([reconstruct(tokenizer, self.world.emoji_image(p.emoji, p.style)) for p in self.prompts])
        chance = 5 / len(self.world.emoji_names)
        return Report({"t2i_top5_train_ceiling": found["top5"], "t2i_top5_train_chance": chance})

    def _find(self, images: list[Image.Image]) -> dict[str, float]:
        return self.gallery.find(
            self._features(images), [p.emoji for p in self.prompts], [p.style for p in self.prompts]
        )

    @torch.inference_mode()
    def _features(self, images: list[Image.Image]) -> torch.Tensor:
        def embed(batch: Sequence[Image.Image]) -> torch.Tensor:
            pixels = torch.stack([to_pixels(np.asarray(image)) for image in batch])
            return self.network.pooled(pixels.to(self.device)).cpu()

        return torch.stack(map_batches(self.evaluation.workers, embed, images, 64, "features of emoji"))


class Gallery:
    """Images of emoji in several styles, among which images are retrieved by the cosine of standardized features.

    Args:
        features: (G, D) of the network.
        emoji: that each image shows.
        styles: of each image.
    """

    def __init__(self, features: torch.Tensor, emoji: Sequence[int], styles: Sequence[str]):
        self.reference, self.features = features, standardize(features, features)
        self.emoji, self.styles = torch.tensor(emoji), list(styles)

    def find(self, features: torch.Tensor, emoji: Sequence[int], styles: Sequence[str]) -> dict[str, float]:
        """Measures how often images are retrieved as the emoji that they should show.

        Args:
            features: (I, D) of the network.
            emoji, styles: that each image should show.

        Returns:
            `top1` and `top5` among the whole gallery; `top1_same_style` and `top5_same_style` among the images of the
            style that each should have.
        """
        features, wanted = standardize(features, self.reference), torch.tensor(emoji)
        ranks = retrieval_ranks(features, self.features, self.emoji, wanted)
        same_style = torch.empty_like(ranks)
        for style in set(styles):
            asked = torch.tensor([other == style for other in styles])
            there = torch.tensor([other == style for other in self.styles])
            same_style[asked] = retrieval_ranks(features[asked], self.features[there], self.emoji[there], wanted[asked])
        kinds = {"": ranks, "_same_style": same_style}
        return {f"top{k}{suffix}": (kind <= k).float().mean().item() for suffix, kind in kinds.items() for k in (1, 5)}


def standardize(features: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Standardizes each channel of features (I, D) by its mean and deviation in `reference` (G, D)."""
    return (features - reference.mean(0)) / (reference.std(0) + 1e-6)


def retrieval_ranks(
    features: torch.Tensor, gallery_features: torch.Tensor, gallery_emoji: torch.Tensor, wanted: torch.Tensor
) -> torch.Tensor:
    """Returns the rank, from 1, of the emoji that each image should show, among the emoji of a gallery.

    The score of an emoji is the best cosine of its images. An emoji that is not strictly worse counts as better, so
    that constant images, and features that are not finite, have the last rank.

    Args:
        features: (I, D).
        gallery_features: (G, D).
        gallery_emoji: (G,) int64, the emoji of each image of the gallery.
        wanted: (I,) int64, emoji of the gallery.

    Returns:
        (I,) int64 in 1 .. E.
    """
    similarity = F.normalize(features.float(), dim=-1) @ F.normalize(gallery_features.float(), dim=-1).T  # (I, G)
    distinct, index_of = gallery_emoji.unique(return_inverse=True)  # (E,), (G,)
    scores = similarity.new_full((len(features), len(distinct)), -torch.inf)
    scores.scatter_reduce_(1, index_of.expand_as(similarity), similarity, "amax")  # (I, E)
    own = scores.gather(1, torch.searchsorted(distinct, wanted)[:, None])
    return (~(scores < own)).sum(1)
