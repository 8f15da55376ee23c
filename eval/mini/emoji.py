"""Text to image: single emoji in a named style, found again among all emoji of the world by EfficientNet-Lite0."""

from functools import cached_property

import numpy as np
import torch
from PIL import Image

from ...data.image_files import to_pixels
from ...data.world.evaluation import emoji_prompt_set
from ...data.world.icons import EMOJI_STYLES, World
from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ...processing.image_loading_evotok import load_image
from ..suite import Evaluation
from ..teachers import EfficientNetTeacher
from ..text_to_image.images import in_numbered_folders
from ..text_to_image.retrieval import Gallery
from .figures import Part
from .generation import Cell, draw_cell, through


EMOJI_CELLS = (
    Cell("emoji", "_cfg7.5", False),
    Cell("emoji_cfg1", "_cfg1", False, guidance_scale=1.0),
)


class EmojiRetrieval:
    """Judges single emoji: which emoji of the world, in any style, is nearest by features of EfficientNet-Lite0.

    Args:
        evaluation: as [`Composition`]'s.
        world: the emoji.
        device: of the network.
    """

    def __init__(self, evaluation: Evaluation, world: World, device: torch.device):
        self.evaluation, self.workers, self.world = evaluation, evaluation.workers, world
        self.device = device
        self.prompts = emoji_prompt_set(world, evaluation.options.emoji)

    @cached_property
    def network(self) -> EfficientNetTeacher:
        """The judge."""
        return EfficientNetTeacher().to(self.device)

    @cached_property
    def gallery(self) -> Gallery:
        """All emoji in all styles, on white."""
        shown = [(emoji, style) for style in EMOJI_STYLES for emoji in range(len(self.world.emoji_names))]
        images = [self.world.emoji_image(emoji, style) for emoji, style in shown]
        return Gallery(self._features(images), [emoji for emoji, _ in shown], [style for _, style in shown])

    def measure(self, cell: Cell) -> Part:
        """Top-1 and top-5 of the emoji asked for, among all of them."""
        wanted = in_numbered_folders([prompt.text for prompt in self.prompts], 1)
        name = f"pictures/{cell.name}"
        draw_cell(self.evaluation, cell, name, wanted)
        found = self._find([load_image(self.evaluation.folder / name / picture.file) for picture in wanted])
        figures = {f"t2i_top{k}_train{cell.suffix}": found[f"top{k}"] for k in (5, 1)}
        figures[f"t2i_top5_train{cell.suffix}_same_style"] = found["top5_same_style"]
        figures[f"t2i_top5_train{cell.suffix}_n"] = len(self.prompts)
        return Part(figures)

    def measure_ceiling(self, tokenizer: EvoTokVQModel) -> Part:
        """The same of the emoji asked for after the image tokenizer, and by chance."""
        found = self._find([through(tokenizer, self.world.emoji_image(p.emoji, p.style)) for p in self.prompts])
        chance = 5 / len(self.world.emoji_names)
        return Part({"t2i_top5_train_ceiling": found["top5"], "t2i_top5_train_chance": chance})

    def _find(self, images: list[Image.Image]) -> dict[str, float]:
        return self.gallery.find(
            self._features(images), [p.emoji for p in self.prompts], [p.style for p in self.prompts]
        )

    @torch.inference_mode()
    def _features(self, images: list[Image.Image]) -> torch.Tensor:
        batches = [images[start : start + 64] for start in range(0, len(images), 64)]

        def embed(batch: list[Image.Image]) -> torch.Tensor:
            pixels = torch.stack([to_pixels(np.asarray(image)) for image in batch])
            return self.network.pooled(pixels.to(self.device)).cpu()

        return torch.cat(self.workers.map(embed, batches, "features of emoji"))
