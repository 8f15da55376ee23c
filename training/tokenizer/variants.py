"""Other arrangements of the image tokenizer, which the paper's ablations compare the method with (Tables 4 and 5).

Each keeps the parts, the codes (B, N, D) and the methods of [`EvoTokVQModel`]: training and measuring need no more,
and nothing else is promised. Entangled pixels and semantics need no class: both decoders read all of `num_codebooks`
levels.
"""

from copy import deepcopy

import torch
from torch import nn
from transformers import AutoModel

from ...modeling_evotok.configuration_evotok import EvoTokVQConfig
from ...modeling_evotok.decoders_evotok import EvoTokTanhProjection
from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel, EvoTokVQOutput
from ...modeling_evotok.quantization_evotok import EvoTokResidualVectorQuantizer, disable_autocast


class ReversedVQModel(EvoTokVQModel):
    """Semantic to pixel: the first `num_pixel_codebooks` levels are decoded to semantics, all of them to pixels."""

    _auto_class = None

    def forward(self, pixel_values: torch.FloatTensor, **kwargs) -> EvoTokVQOutput:
        """As [`EvoTokVQModel`], with the two decoders' places in the trajectory exchanged."""
        features, _ = self._encode_features(pixel_values, **kwargs)
        quantized = self.quantizer(features)
        return EvoTokVQOutput(
            vq_loss=quantized.loss,
            codes=quantized.codes,
            reconstruction=self._to_pixels(quantized.semantic_features),
            semantic_features=self._to_semantics(quantized.pixel_features),
        )

    def decode_pixels(self, codes: torch.LongTensor, depth: int | None = None) -> torch.FloatTensor:
        """Image of the first `depth` levels, all by default: (B, N, d) -> (B, 3, H, W)."""
        return self._to_pixels(self._sum_levels(codes, depth or codes.shape[-1]))

    def decode_semantics(self, codes: torch.LongTensor, depth: int | None = None) -> torch.FloatTensor:
        """Semantics of the first `depth` levels, `num_pixel_codebooks` by default: (B, N, d) -> (B, N, S)."""
        return self._to_semantics(
            self._sum_levels(codes, depth or min(self.config.num_pixel_codebooks, codes.shape[-1]))
        )


class _TwoTrajectoriesVQModel(EvoTokVQModel):
    """Pixels and semantics each have a latent space and a trajectory of their own, together as long as the method's.

    The first `num_pixel_codebooks` of the codes are the pixels', the others the semantics'.
    """

    _auto_class = None

    def __init__(self, config: EvoTokVQConfig):
        super().__init__(config)
        levels = config.num_pixel_codebooks
        self.pixel_to_latent = EvoTokTanhProjection(config.encoder_config.hidden_size, config.codebook_dim)
        self.pixel_quantizer = _quantizer(config, levels)
        self.quantizer = _quantizer(config, config.num_codebooks - levels)

    def _encode_twice(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, H, W) in [-1, 1] -> latents of the pixels and of the semantics, each (B, N, C)."""
        raise NotImplementedError

    def forward(self, pixel_values: torch.FloatTensor) -> EvoTokVQOutput:
        """As [`EvoTokVQModel`]; each latent is bound to its codebooks by the whole of Eq. 7."""
        pixels, semantics = self._encode_twice(pixel_values)
        pixels, semantics = self.pixel_quantizer(pixels), self.quantizer(semantics)
        return EvoTokVQOutput(
            vq_loss=pixels.loss + semantics.loss,
            codes=torch.cat([pixels.codes, semantics.codes], dim=-1),
            reconstruction=self._to_pixels(pixels.semantic_features),  # all levels of its own
            semantic_features=self._to_semantics(semantics.semantic_features),
        )

    @torch.no_grad()
    def encode(self, pixel_values: torch.FloatTensor) -> torch.LongTensor:
        """Codes of images, the pixels' before the semantics': (B, 3, H, W) in [-1, 1] -> (B, N, D) int64."""
        with disable_autocast(pixel_values.device.type):
            pixels, semantics = self._encode_twice(pixel_values)
            return torch.cat([self.pixel_quantizer.encode(pixels), self.quantizer.encode(semantics)], dim=-1)

    def decode_pixels(self, codes: torch.LongTensor, depth: int | None = None) -> torch.FloatTensor:
        """Image of those among the first `depth` levels that are the pixels': (B, N, d) -> (B, 3, H, W)."""
        levels = self.config.num_pixel_codebooks
        return self._to_pixels(self.pixel_quantizer.decode_codes(codes[..., : min(depth or levels, levels)]))

    def decode_semantics(self, codes: torch.LongTensor, depth: int | None = None) -> torch.FloatTensor:
        """Semantics of those among the first `depth` levels that are the semantics': (B, N, d) -> (B, N, S)."""
        codes = codes[..., self.config.num_pixel_codebooks : depth]
        if codes.shape[-1] == 0:  # the sum of none
            return self._to_semantics(torch.zeros(*codes.shape[:-1], self.config.codebook_dim, device=codes.device))
        return self._to_semantics(self.quantizer.decode_codes(codes))


class LayersVQModel(_TwoTrajectoriesVQModel):
    """Different layers of one encoder, as DualToken has it: pixels after half of its layers, semantics after all."""

    def __init__(self, config: EvoTokVQConfig):
        super().__init__(config)
        self.post_init()

    def _encode_twice(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        semantics, encoded = self._encode_features(pixel_values, output_hidden_states=True)
        half = self.config.encoder_config.num_hidden_layers // 2
        return self.pixel_to_latent(encoded.hidden_states[half]), semantics


class BranchesVQModel(_TwoTrajectoriesVQModel):
    """Different branches, as TokenFlow has it: two encoders of the same size that share nothing."""

    @classmethod
    def from_pretrained_encoder(cls, encoder: str, **config_kwargs) -> "BranchesVQModel":
        """As [`EvoTokVQModel.from_pretrained_encoder`]; both encoders start from the checkpoint."""
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
