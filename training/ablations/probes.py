"""Measures tokenizers on scenes of held-out icon styles: pixels, and linear probes of the decoded semantics."""

import torch

from ...data.image_files import to_unit_range
from ...data.world.icons import load_world
from ...data.world.images import held_out_scenes
from ...eval.frechet import FeatureStatistics, frechet_distance
from ...eval.metrics import feature_cosine, psnr, ssim
from ...eval.probes import linear_probe
from ...eval.teachers import SiglipTeacher
from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ...modeling_evotok.quantization_evotok import codebook_usage
from ..backbones.vision import labelled_batch


_PENALTY = 1e-3  # patches are many: little regularization is needed
_LABELS = {"thing": "things", "color": "colors"}  # metric -> labels of a patch


class Probes:
    """Measures tokenizers on held-out scenes, and fits linear probes of things and colours at every patch.

    Probes are fitted on the decoded semantics of each tokenizer in the same way, on scenes of the training styles.

    Args:
        encoder: folder of the vision tower that tokenizers start from, which is also their teacher.
        data: folder of the world; the embedded one when None.
        images: number of test scenes; probes are fitted on twice as many.
        batch_size: images at a time.

    Attributes:
        references: accuracy of probes of the teacher's features, and of the most frequent label.
    """

    def __init__(self, encoder: str, data: str | None, images: int, batch_size: int = 64):
        world = load_world(data)
        self.batch_size = batch_size
        self.teacher = SiglipTeacher.from_pretrained(encoder)
        scenes = {
            "train": held_out_scenes(world, "train", 2 * images),
            "test": held_out_scenes(world, "test", images),
        }
        self.labels = {name: labelled_batch(world, own) for name, own in scenes.items()}
        self.pixels = {name: labels.pop("pixel_values") for name, labels in self.labels.items()}
        features = {name: self._batched(self.teacher, pixels) for name, pixels in self.pixels.items()}
        self._target = features["test"]
        self._real = FeatureStatistics.of(self._target.mean(1))
        self.references = {f"{name} teacher": value for name, value in self._probe(features).items()}
        visible = self.labels["test"]["things"] > 0
        for name, kind in _LABELS.items():
            counts = self.labels["test"][kind][visible].bincount()
            self.references[f"{name} baseline"] = (counts.max() / counts.sum()).item()

    @torch.inference_mode()
    def measure(self, model: EvoTokVQModel, pixel_levels: int) -> dict[str, float]:
        """Measures a tokenizer in evaluation mode.

        Args:
            pixel_levels: number of levels that pixels are decoded from.

        Returns:
            `psnr`, `ssim`, `fd` and `cosine` of the test scenes, accuracy of `thing` and `color` at their patches,
            `pixel_bits` (entropy of the pixels' levels at a position, level by level) and the number of `parameters`.
        """
        semantics, found = {}, {}
        for name, pixels in self.pixels.items():
            codes = self._batched(model.encode, pixels.to(model.device))
            semantics[name] = self._batched(model.decode_semantics, codes).cpu()
            if name == "test":
                fake = self._batched(model.decode_pixels, codes).cpu().clamp(-1, 1)
                unit = to_unit_range(fake), to_unit_range(pixels)
                found["psnr"] = psnr(*unit).mean().item()
                found["ssim"] = ssim(*unit).mean().item()
                pooled = self._batched(self.teacher, fake).mean(1)
                found["fd"] = frechet_distance(FeatureStatistics.of(pooled), self._real)
                found["cosine"] = feature_cosine(semantics[name], self._target).mean().item()
                found["pixel_bits"] = _bits(codes[..., :pixel_levels], model.config.codebook_size)
        return found | self._probe(semantics) | {"parameters": sum(p.numel() for p in model.parameters())}

    def _batched(self, function, inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat([function(batch) for batch in inputs.split(self.batch_size)])

    def _probe(self, features: dict[str, torch.Tensor]) -> dict[str, float]:
        """Returns the accuracy of both probes at patches with a thing.

        Args:
            features: (I, N, S) of the scenes `train` and `test`.
        """
        visible = {name: self.labels[name]["things"] > 0 for name in features}
        train, test = (features[name][visible[name]] for name in ("train", "test"))
        accuracies = {}
        for metric, kind in _LABELS.items():
            labels, answers = (self.labels[name][kind][visible[name]] - 1 for name in ("train", "test"))
            accuracies[metric] = linear_probe(train, labels, test, answers, penalty=_PENALTY)
        return accuracies


def _bits(codes: torch.Tensor, codebook_size: int) -> float:
    """Returns the sum of the entropies of all levels in bits: codes (I, N, L)."""
    levels = codes.flatten(0, 1).T  # (levels, images x positions)
    counts = torch.stack([level.bincount(minlength=codebook_size) for level in levels])
    return codebook_usage(counts)["perplexity"].log2().sum().item()
