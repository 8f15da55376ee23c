"""Variants of the image tokenizer for the paper's ablations (Tables 4 and 5).

Each has the parts, the codes (B, N, D) and the methods of [`EvoTokVQModel`] that training and measuring use. Entangled
pixels and semantics need no class: both decoders use all of `num_codebooks` levels.
"""

from copy import deepcopy
from typing import Self

import torch
from torch import nn
from transformers import AutoModel

from ...modeling_evotok.configuration_evotok import EvoTokVQConfig
from ...modeling_evotok.decoders_evotok import EvoTokTanhProjection
from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel, EvoTokVQOutput
from ...modeling_evotok.quantization_evotok import EvoTokResidualVectorQuantizer, disable_autocast


class ReversedVQModel(EvoTokVQModel):
    """Semantic to pixel: the first `num_pixel_codebooks` levels are decoded to semantics, all levels to pixels."""

    _auto_class = None

    def forward(self, pixel_values: torch.Tensor, **kwargs) -> EvoTokVQOutput:
        """Encodes and decodes as [`EvoTokVQModel`], with the levels of the two decoders exchanged."""
        features, _ = self._encode_features(pixel_values, **kwargs)
        quantized = self.quantizer(features)
        return EvoTokVQOutput(
            vq_loss=quantized.loss,
            codes=quantized.codes,
            reconstruction=self._to_pixels(quantized.semantic_features),
            semantic_features=self._to_semantics(quantized.pixel_features),
        )

    def decode_pixels(self, codes: torch.Tensor, depth: int | None = None) -> torch.Tensor:
        """Decodes pixels from the first `depth` levels, all by default: (B, N, d) -> (B, 3, H, W)."""
        return self._to_pixels(self._sum_levels(codes, depth or codes.shape[-1]))

    def decode_semantics(self, codes: torch.Tensor, depth: int | None = None) -> torch.Tensor:
        """Decodes semantics from the first `depth` levels, `num_pixel_codebooks` by default: (B, N, d) -> (B, N, S)."""
        return self._to_semantics(
            self._sum_levels(codes, depth or min(self.config.num_pixel_codebooks, codes.shape[-1]))
        )


class _TwoTrajectoriesVQModel(EvoTokVQModel):
    """A latent space and a trajectory each for pixels and semantics, together with as many levels as the method.

    The first `num_pixel_codebooks` of the codes are those of the pixels, the others those of the semantics.
    """

    _auto_class = None

    def __init__(self, config: EvoTokVQConfig):
        super().__init__(config)
        levels = config.num_pixel_codebooks
        self.pixel_to_latent = EvoTokTanhProjection(config.encoder_config.hidden_size, config.codebook_dim)
        self.pixel_quantizer = _quantizer(config, levels)
        self.quantizer = _quantizer(config, config.num_codebooks - levels)

    def _encode_twice(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes images (B, 3, H, W) in [-1, 1] to the latents of pixels and semantics, each (B, N, C)."""
        raise NotImplementedError

    def forward(self, pixel_values: torch.Tensor) -> EvoTokVQOutput:
        """Encodes and decodes as [`EvoTokVQModel`]; each latent has the whole commitment loss of Eq. 7."""
        pixels, semantics = self._encode_twice(pixel_values)
        pixels, semantics = self.pixel_quantizer(pixels), self.quantizer(semantics)
        return EvoTokVQOutput(
            vq_loss=pixels.loss + semantics.loss,
            codes=torch.cat([pixels.codes, semantics.codes], dim=-1),
            reconstruction=self._to_pixels(pixels.semantic_features),  # all of its levels
            semantic_features=self._to_semantics(semantics.semantic_features),
        )

    @torch.no_grad()
    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encodes images to codes, of pixels before those of semantics: (B, 3, H, W) in [-1, 1] -> (B, N, D) int64."""
        with disable_autocast(pixel_values.device.type):
            pixels, semantics = self._encode_twice(pixel_values)
            return torch.cat([self.pixel_quantizer.encode(pixels), self.quantizer.encode(semantics)], dim=-1)

    def decode_pixels(self, codes: torch.Tensor, depth: int | None = None) -> torch.Tensor:
        """Decodes pixels from their levels among the first `depth`: (B, N, d) -> (B, 3, H, W)."""
        levels = self.config.num_pixel_codebooks
        return self._to_pixels(self.pixel_quantizer.decode_codes(codes[..., : min(depth or levels, levels)]))

    def decode_semantics(self, codes: torch.Tensor, depth: int | None = None) -> torch.Tensor:
        """Decodes semantics from their levels among the first `depth`: (B, N, d) -> (B, N, S)."""
        codes = codes[..., self.config.num_pixel_codebooks : depth]
        if codes.shape[-1] == 0:  # the empty sum
            return self._to_semantics(torch.zeros(*codes.shape[:-1], self.config.codebook_dim, device=codes.device))
        return self._to_semantics(self.quantizer.decode_codes(codes))


class LayersVQModel(_TwoTrajectoriesVQModel):
    """Different layers of one encoder, as in DualToken: pixels after half of its layers, semantics after all."""

    def __init__(self, config: EvoTokVQConfig):
        super().__init__(config)
        self.post_init()

    def _encode_twice(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        semantics, encoded = self._encode_features(pixel_values, output_hidden_states=True)
        assert encoded.hidden_states is not None
        half = self.config.encoder_config.num_hidden_layers // 2
        return self.pixel_to_latent(encoded.hidden_states[half]), semantics


class BranchesVQModel(_TwoTrajectoriesVQModel):
    """Different branches, as in TokenFlow: two encoders of the same size without shared weights."""

    @classmethod
    def from_pretrained_encoder(cls, encoder: str, **config_kwargs) -> Self:
        """Builds the model as [`EvoTokVQModel.from_pretrained_encoder`]; both encoders start from the checkpoint."""
        model = super().from_pretrained_encoder(encoder, **config_kwargs)
        model.pixel_tower.load_state_dict(model.vision_tower.state_dict())
        return model

    def __init__(self, config: EvoTokVQConfig):
        super().__init__(config)
        self.pixel_tower = AutoModel.from_config(config.encoder_config)
        self.pixel_tower.post_layernorm = nn.Identity()
        self.post_init()

    def _encode_twice(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        semantics, _ = self._encode_features(pixel_values)
        return self.pixel_to_latent(self.pixel_tower(pixel_values.clamp(-1, 1)).last_hidden_state), semantics


def _quantizer(config: EvoTokVQConfig, levels: int) -> EvoTokResidualVectorQuantizer:
    config = deepcopy(config)
    config.num_codebooks = config.num_pixel_codebooks = levels
    return EvoTokResidualVectorQuantizer(config)


VARIANTS: dict[str, type[EvoTokVQModel]] = {
    "reversed": ReversedVQModel,
    "layers": LayersVQModel,
    "branches": BranchesVQModel,
}
