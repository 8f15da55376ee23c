"""What the emoji world asks of a tokenizer: how much of the pixels, and of the meaning, is left in its codes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch

from ..eval.frechet import FeatureStatistics, frechet_distance
from ..eval.metrics import feature_cosine, psnr, ssim
from ..eval.probes import linear_probe, retrieval
from ..eval.suite import sha256
from ..modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ..modeling_evotok.quantization_evotok import codebook_usage
from .arguments import Recipe
from .emoji.world import Drawing, EmojiWorld
from .taught_images import calibrated_teacher, features_sha256, teacher_features, to_bytes
from .tokenizer_data import to_pixels


Item = TypeVar("Item")


class Probes:
    """Held-out drawings, and two questions to the semantics decoded of them.

    Which *group* is a thing in that was never trained on? A linear probe, fitted on drawings that were, says it. Which
    *concept* does a drawing show in a style held out? Its nearest neighbour among the concepts' other styles says it.

    Args:
        recipe: of a tokenizer that learns from the emoji world.
        images: drawings held out that are measured at most, for either question.
        folder: keeps the teacher's features of them.
        batch_size: images at a time.

    Attributes:
        drawings: `held_out` (`new_concept`), `taught` to the linear probe, `asked` (`new_pair`), `seen` in training.
        references: accuracy of the teacher's own features, of the commonest group, of chance.
        fingerprints: name of the data -> SHA-256; the teacher's features are among it.
    """

    def __init__(self, recipe: Recipe, images: int, folder: Path, batch_size: int = 64):
        world = EmojiWorld(recipe.data.path)
        encoder = recipe.model.config["encoder_config"]
        self.batch_size = batch_size
        self.teacher = calibrated_teacher(recipe.data.path, encoder["image_size"] // encoder["patch_size"])
        self.drawings = _drawings(world, images)
        self.pixels = {
            name: torch.stack([to_pixels(world.image(drawing)) for drawing in drawings])
            for name, drawings in self.drawings.items()
        }
        self.labels = {
            name: torch.tensor([_label(world, name, drawing) for drawing in drawings])
            for name, drawings in self.drawings.items()
        }
        said = {name: teacher_features(self.teacher, to_bytes(pixels), folder) for name, pixels in self.pixels.items()}
        features = {name: own.float() for name, own in said.items()}
        self._target = features["held_out"]
        self._real = FeatureStatistics.of(self._pooled(self.pixels["held_out"]))
        accuracies = self._ask({name: own.mean(1) for name, own in features.items()})
        self.references = {f"{name} teacher": value for name, value in accuracies.items()}
        self.references["group baseline"] = self.labels["held_out"].bincount().max().item() / len(self._target)
        self.references["concept baseline"] = 1 / len(self.labels["asked"].unique())
        self.fingerprints = {
            "emoji": sha256(*sorted(path for path in world.root.iterdir() if path.is_file())),
            "probed_features": features_sha256(*said.values()),
        }

    @torch.inference_mode()
    def measure(self, model: EvoTokVQModel, pixel_levels: int) -> dict[str, float]:
        """Figures of a tokenizer in evaluation mode.

        Args:
            pixel_levels: the first levels of the codes, of which pixels are decoded.

        Returns:
            `psnr`, `ssim`, `fd` and `cosine` of the held-out drawings, accuracy on `group` and `concept`, `pixel_bits`
            (entropy of the pixels' levels at a position, level by level) and the number of `parameters`.
        """
        means, found = {}, {}
        for name, pixels in self.pixels.items():
            codes = self._through(model.encode, pixels.to(model.device))
            semantics = self._through(model.decode_semantics, codes).cpu()
            means[name] = semantics.mean(1)
            if name == "held_out":
                fake = self._through(model.decode_pixels, codes).cpu().clamp(-1, 1)
                unit = (fake + 1) / 2, (pixels + 1) / 2
                found["psnr"] = psnr(*unit).mean().item()
                found["ssim"] = ssim(*unit).mean().item()
                found["fd"] = frechet_distance(FeatureStatistics.of(self._pooled(fake)), self._real)
                found["cosine"] = feature_cosine(semantics, self._target).mean().item()
                found["pixel_bits"] = _bits(codes[..., :pixel_levels], model.config.codebook_size)
        return found | self._ask(means) | {"parameters": sum(p.numel() for p in model.parameters())}

    def _through(self, function, inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat([function(batch) for batch in inputs.split(self.batch_size)])

    def _pooled(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._through(self.teacher.pooled, pixels.to(self.teacher.mean.device)).cpu()

    def _ask(self, features: dict[str, torch.Tensor]) -> dict[str, float]:
        """Accuracy on both questions: name of a set of drawings -> (I, S)."""
        questions = {"group": (linear_probe, "taught", "held_out"), "concept": (retrieval, "seen", "asked")}
        return {
            question: answer(features[known], self.labels[known], features[asked], self.labels[asked])
            for question, (answer, known, asked) in questions.items()
        }


def _drawings(world: EmojiWorld, images: int) -> dict[str, list[Drawing]]:
    train, asked = world.drawings("train"), evenly(world.drawings("new_pair"), images)
    concepts = {drawing.concept.index for drawing in asked}
    return {
        "held_out": evenly(world.drawings("new_concept"), images),
        "taught": evenly(train, 2 * images),
        "asked": asked,
        "seen": [drawing for drawing in train if drawing.concept.index in concepts],
    }


def evenly(items: Sequence[Item], limit: int) -> list[Item]:
    """At most `limit` items, from all over the sequence."""
    count = min(limit, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _label(world: EmojiWorld, name: str, drawing: Drawing) -> int:
    concept = drawing.concept
    return concept.index if name in ("asked", "seen") else world.groups.index(concept.group)


def _bits(codes: torch.Tensor, codebook_size: int) -> float:
    levels = codes.flatten(0, 1).T  # (levels, images x positions)
    counts = torch.stack([level.bincount(minlength=codebook_size) for level in levels])
    return codebook_usage(counts)["perplexity"].log2().sum().item()
