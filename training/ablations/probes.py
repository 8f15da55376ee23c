"""Measures tokenizers on scenes of held-out icon styles: how much of the pixels and the meaning is in their codes."""

import torch

from ...data.image_files import to_pixels
from ...data.world.icons import load_world
from ...data.world.images import held_out_scenes, patch_labels
from ...data.world.scenes import render_with_masks
from ...eval.frechet import FeatureStatistics, frechet_distance
from ...eval.metrics import feature_cosine, psnr, ssim
from ...eval.probes import linear_probe
from ...eval.teachers import SiglipTeacher
from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ...modeling_evotok.quantization_evotok import codebook_usage


class Probes:
    """Measures tokenizers on held-out scenes, and reads things and colours from the semantics that they decode.

    Which thing, and which colour, is at a patch? A linear probe says it of the decoded semantics; it is fitted for each
    tokenizer in the same way, on scenes of icon families that were trained on.

    Args:
        encoder: folder of the vision tower that tokenizers start from, and that teaches them.
        data: folder of the world's drawings; the embedded ones when None.
        images: held-out scenes that are measured; twice as many are for the probes to learn from.
        batch_size: images at a time.

    Attributes:
        references: accuracy of the teacher's own features, and of always the commonest answer.
    """

    def __init__(self, encoder: str, data: str | None, images: int, batch_size: int = 64):
        world = load_world(data)
        self.batch_size = batch_size
        self.teacher = SiglipTeacher.from_pretrained(encoder)
        scenes = {
            "taught": held_out_scenes(world, "train", 2 * images),
            "held_out": held_out_scenes(world, "test", images),
        }
        self.pixels, self.labels = {}, {}
        for name, own in scenes.items():
            rendered = [render_with_masks(world, scene) for scene in own]
            self.pixels[name] = torch.stack([to_pixels(image) for image, _ in rendered])
            labels = [patch_labels(scene, masks) for scene, (_, masks) in zip(own, rendered, strict=True)]
            self.labels[name] = {
                kind: torch.stack([torch.as_tensor(one[kind]) for one in labels]) for kind in ("things", "colors")
            }
        features = {name: self._through(self.teacher, pixels) for name, pixels in self.pixels.items()}
        self._target = features["held_out"]
        self._real = FeatureStatistics.of(self._target.mean(1))
        self.references = {f"{name} teacher": value for name, value in self._read(features).items()}
        shown = self.labels["held_out"]["things"]
        for name, kind in (("thing", "things"), ("color", "colors")):
            counts = self.labels["held_out"][kind][shown > 0].bincount()
            self.references[f"{name} baseline"] = (counts.max() / counts.sum()).item()

    @torch.inference_mode()
    def measure(self, model: EvoTokVQModel, pixel_levels: int) -> dict[str, float]:
        """Figures of a tokenizer in evaluation mode.

        Args:
            pixel_levels: the first levels of the codes, of which pixels are decoded.

        Returns:
            `psnr`, `ssim`, `fd` and `cosine` of the held-out scenes, accuracy of `thing` and `color` at their patches,
            `pixel_bits` (entropy of the pixels' levels at a position, level by level) and the number of `parameters`.
        """
        semantics, found = {}, {}
        for name, pixels in self.pixels.items():
            codes = self._through(model.encode, pixels.to(model.device))
            semantics[name] = self._through(model.decode_semantics, codes).cpu()
            if name == "held_out":
                fake = self._through(model.decode_pixels, codes).cpu().clamp(-1, 1)
                unit = (fake + 1) / 2, (pixels + 1) / 2
                found["psnr"] = psnr(*unit).mean().item()
                found["ssim"] = ssim(*unit).mean().item()
                pooled = self._through(self.teacher, fake).mean(1)
                found["fd"] = frechet_distance(FeatureStatistics.of(pooled), self._real)
                found["cosine"] = feature_cosine(semantics[name], self._target).mean().item()
                found["pixel_bits"] = _bits(codes[..., :pixel_levels], model.config.codebook_size)
        return found | self._read(semantics) | {"parameters": sum(p.numel() for p in model.parameters())}

    def _through(self, function, inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat([function(batch) for batch in inputs.split(self.batch_size)])

    def _read(self, features: dict[str, torch.Tensor]) -> dict[str, float]:
        """Accuracy of both probes at patches with a thing: name of a set of scenes -> (I, N, S)."""
        shown = {name: self.labels[name]["things"] > 0 for name in features}
        known, asked = (features[name][shown[name]] for name in ("taught", "held_out"))
        accuracies = {}
        for name, kind in (("thing", "things"), ("color", "colors")):
            labels, answers = (self.labels[part][kind][shown[part]] - 1 for part in ("taught", "held_out"))
            accuracies[name] = linear_probe(known, labels, asked, answers, penalty=_PENALTY)
        return accuracies


_PENALTY = 1e-3  # patches are many: what is fitted needs hardly any


def _bits(codes: torch.Tensor, codebook_size: int) -> float:
    levels = codes.flatten(0, 1).T  # (levels, images x positions)
    counts = torch.stack([level.bincount(minlength=codebook_size) for level in levels])
    return codebook_usage(counts)["perplexity"].log2().sum().item()
