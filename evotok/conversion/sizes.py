"""Derives the configuration of a checkpoint of the release from the shapes of its tensors.

No shape gives the number of heads and the size of images: they are options of the user, or in the arguments saved with
the weights, or assumed to be those of the release or of the SigLIP encoder of that width. With a wrong one the model
loads, and its codes are wrong: `assumed_sizes` lists those that were assumed.
"""

import math
import re
from typing import Any, NamedTuple

from transformers import Qwen2Config

from evotok import EvoTokDepthDecoderConfig, EvoTokVQConfig
from evotok.conversion.sources import DEPTH_DECODER, LANGUAGE_MODEL, TOKENIZER, Piece


RELEASED_HEADS = {"encoder_heads": 16, "semantic_heads": 12, "depth_heads": 40}
# Of the published SigLIP and SigLIP2 encoders, by their width.
_SIGLIP_HEADS = {768: 12, 1024: 16, 1152: 16, 1536: 16}
# Widths of encoder and depth decoder in the release's checkpoints.
_RELEASED_WIDTHS = {"encoder": (1024, 1152), "depth": (2560,)}
# Patch size and side of the grid -> side of the image: 384 is no multiple of 14, and the last 6 pixels are not used.
_RELEASED_IMAGE_SIZES = {(16, 16): 256, (14, 27): 384}
_TEACHER = re.compile(r"siglip2?_(\d+)")
_NORM_GROUPS = 32


class Choices(NamedTuple):
    """Sizes given by the user; None for those of the arguments in the checkpoint, or of the release."""

    encoder_heads: int | None = None
    semantic_heads: int | None = None
    depth_heads: int | None = None
    image_size: int | None = None
    pixel_levels: int | None = None


class _Shapes:
    """Shapes of the tensors of a piece, which raise a ValueError for a tensor that is missing or of another rank."""

    def __init__(self, piece: Piece):
        self.piece = piece

    def __call__(self, name: str, rank: int) -> tuple[int, ...]:
        tensor = self.piece.tensors.get(name)
        if tensor is None:
            raise ValueError(
                f"{self.piece.origin}: the {self.piece.part} lacks {name}: damaged, or not of the release's format. "
                "Copy it again."
            )
        if tensor.ndim != rank or 0 in tensor.shape:
            raise ValueError(
                f"{self.piece.origin}: {name} has shape {tuple(tensor.shape)} instead of {rank} dimensions. "
                "Copy it again."
            )
        return tuple(tensor.shape)

    def count(self, prefix: str) -> int:
        """Counts the indices after `prefix`, which must be 0, 1, 2 and so on."""
        pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
        found = {int(match[1]) for match in map(pattern.match, self.piece.tensors) if match}
        if found != set(range(len(found))) or not found:
            raise ValueError(
                f"{self.piece.origin}: of {prefix}N the numbers {sorted(found)[:8]} are there, which should be 0, 1, 2 "
                "and so on: damaged, or not of the release's format. Copy it again."
            )
        return len(found)


def tokenizer_config(piece: Piece, choices: Choices, pixel_levels: int | None = None) -> EvoTokVQConfig:
    """Derives the configuration of the image tokenizer.

    Args:
        piece: of `TOKENIZER`.
        choices: of the user.
        pixel_levels: levels of the depth decoder, if there is one.

    Raises:
        ValueError: sizes that contradict each other, a choice or a default.
    """
    assert piece.part == TOKENIZER
    shapes = _Shapes(piece)
    known = {name: value for name, value in piece.facts.items() if isinstance(value, int) and value > 0}
    known |= {name: value for name, value in choices._asdict().items() if value is not None}
    encoder, grid_size = _encoder_fields(shapes, choices, known)
    levels = shapes.count("quantize.codebooks.")
    rows, codebook_dim = shapes("quantize.codebooks.0.weight", 2)
    pixel_levels = choices.pixel_levels or pixel_levels or min(known.get("pixel_levels", 4), levels)
    if pixel_levels > levels:
        raise ValueError(f"{piece.origin}: {pixel_levels} of {levels} levels for pixels: give --pixel-levels.")
    return EvoTokVQConfig(
        encoder_config=encoder,
        codebook_size=rows - 1,
        codebook_dim=codebook_dim,
        num_codebooks=levels,
        num_pixel_codebooks=pixel_levels,
        codebook_keeps_sums="quantize.codebooks.0.embed_ema" in piece.tensors,
        **_semantic_fields(shapes, known),
        **_pixel_fields(shapes, grid_size, encoder["image_size"]),
    )


def _encoder_fields(shapes: _Shapes, choices: Choices, known: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Derives the encoder's configuration and the side of its grid."""
    origin = shapes.piece.origin
    width, _, patch_size, _ = shapes("encoder_vqkd.embeddings.patch_embedding.weight", 4)
    positions, _ = shapes("encoder_vqkd.embeddings.position_embedding.weight", 2)
    grid_size = math.isqrt(positions)
    if grid_size**2 != positions:
        raise ValueError(f"{origin}: the encoder has {positions} positions, which are no square grid.")
    image_size = _image_size(shapes.piece, choices, patch_size, grid_size)
    layers = shapes.count("encoder_vqkd.encoder.layers.")
    if layers < 2:
        raise ValueError(f"{origin}: the encoder has one layer, and the last one is never used: damaged.")
    heads = known.get("encoder_heads", _SIGLIP_HEADS.get(width, RELEASED_HEADS["encoder_heads"]))
    if width % heads:
        raise ValueError(f"{origin}: {heads} heads do not divide the encoder's width {width}: give --encoder-heads.")
    fields = {
        "model_type": "siglip_vision_model",
        "hidden_size": width,
        "intermediate_size": shapes("encoder_vqkd.encoder.layers.0.mlp.fc1.weight", 2)[0],
        "num_hidden_layers": layers - 1,
        "num_attention_heads": heads,
        "image_size": image_size,
        "patch_size": patch_size,
        "vision_use_head": False,
    }
    return fields, grid_size


def _semantic_fields(shapes: _Shapes, known: dict[str, Any]) -> dict[str, Any]:
    """Derives the fields of the semantic decoder."""
    width = shapes("decoder_vqkd.cls_token", 3)[2]
    inner = shapes("decoder_vqkd.blocks.0.attn.q_bias", 1)[0]
    heads = known.get("semantic_heads", RELEASED_HEADS["semantic_heads"])
    if width // heads * heads != inner:
        fitting = [str(n) for n in range(1, width + 1) if width // n * n == inner]
        raise ValueError(
            f"{shapes.piece.origin}: {heads} heads do not make the semantic decoder's inner width {inner} of "
            f"{width}: give --semantic-heads, which can be {', '.join(fitting) or 'nothing: damaged'}."
        )
    return {
        "semantic_hidden_size": width,
        "semantic_num_hidden_layers": shapes.count("decoder_vqkd.blocks."),
        "semantic_num_attention_heads": heads,
        "semantic_mlp_ratio": shapes("decoder_vqkd.blocks.0.mlp.fc1.weight", 2)[0] / width,
        "semantic_feature_dim": shapes("decode_task_layer.2.weight", 2)[0],
    }


def _pixel_fields(shapes: _Shapes, grid_size: int, image_size: int) -> dict[str, Any]:
    """Derives the fields of the pixel decoder."""
    blocks = shapes.count("decoder.conv_blocks.")
    widths = [shapes(f"decoder.conv_blocks.{i}.res.0.conv1.weight", 4)[0] for i in range(blocks)]
    base = math.gcd(*widths)
    if base % _NORM_GROUPS:
        raise ValueError(
            f"{shapes.piece.origin}: the pixel decoder's widths {widths} are no multiples of its {_NORM_GROUPS} groups."
        )
    return {
        "pixel_latent_channels": shapes("post_quant_conv.weight", 4)[0],
        "pixel_base_channels": base,
        "pixel_channel_multipliers": [width // base for width in reversed(widths)],
        "pixel_num_res_blocks": shapes.count("decoder.conv_blocks.0.res.") - 1,
        "pixel_norm_groups": _NORM_GROUPS,
        "pixel_resize": grid_size * 2 ** (blocks - 1) != image_size,
    }


def _image_size(piece: Piece, choices: Choices, patch_size: int, grid_size: int) -> int:
    if choices.image_size is not None and choices.image_size // patch_size != grid_size:
        raise ValueError(
            f"--image-size {choices.image_size}: patches of {patch_size} pixels make a grid of "
            f"{choices.image_size // patch_size}, but the encoder's positions one of {grid_size}."
        )
    texts = [value for value in piece.facts.values() if isinstance(value, str)]
    teachers = [int(match[1]) for match in map(_TEACHER.fullmatch, texts) if match]
    known = [choices.image_size, *teachers, piece.facts.get("image_size")]
    fitting = (size for size in known if isinstance(size, int) and size // patch_size == grid_size)
    return next(fitting, _RELEASED_IMAGE_SIZES.get((patch_size, grid_size), grid_size * patch_size))


def depth_decoder_config(piece: Piece, choices: Choices, facts: dict[str, Any]) -> EvoTokDepthDecoderConfig:
    """Derives the configuration of the depth decoder, with the arguments in the tokenizer's file; raises ValueError as
    `tokenizer_config`."""
    assert piece.part == DEPTH_DECODER
    shapes = _Shapes(piece)
    width, codebook_dim = shapes("in_mlp_1.weight", 2)
    heads = choices.depth_heads or _positive(facts.get("depth_heads")) or RELEASED_HEADS["depth_heads"]
    if width % heads:
        raise ValueError(
            f"{piece.origin}: {heads} heads do not divide the depth decoder's width {width}: give --depth-heads."
        )
    return EvoTokDepthDecoderConfig(
        codebook_size=shapes("classifiers.0.1.weight", 2)[0],
        codebook_dim=codebook_dim,
        num_codebooks=shapes("pos_emb_d", 3)[1],
        backbone_hidden_size=shapes("in_mlp_2.weight", 2)[1],
        hidden_size=width,
        intermediate_size=shapes("head_transformer.blocks.0.mlp.0.weight", 2)[0],
        num_hidden_layers=shapes.count("head_transformer.blocks."),
        num_attention_heads=heads,
    )


def assumed_sizes(
    piece: Piece, choices: Choices, config: EvoTokVQConfig, depth: EvoTokDepthDecoderConfig | None
) -> dict[str, int]:
    """Returns the sizes that neither the user nor the arguments in the tokenizer's file gave, as in `Choices`."""
    known = {name for name, value in choices._asdict().items() if value is not None}
    known |= {name for name, value in piece.facts.items() if _positive(value)}
    if any(isinstance(value, str) and _TEACHER.fullmatch(value) for value in piece.facts.values()):
        known.add("image_size")
    sizes = {
        "encoder_heads": config.encoder_config.num_attention_heads,
        "semantic_heads": config.semantic_num_attention_heads,
        "image_size": config.image_size,
        "pixel_levels": config.num_pixel_codebooks,
    }
    if depth is not None:
        sizes["depth_heads"] = depth.num_attention_heads
        known.add("pixel_levels")  # as many as the depth decoder has
    return {name: value for name, value in sizes.items() if name not in known}


def is_released(config: EvoTokVQConfig, depth: EvoTokDepthDecoderConfig | None) -> bool:
    """Returns whether encoder and depth decoder have widths of the release, whose heads are known."""
    widths = {"encoder": config.encoder_config.hidden_size} | ({} if depth is None else {"depth": depth.hidden_size})
    return all(width in _RELEASED_WIDTHS[name] for name, width in widths.items())


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def language_model_config(piece: Piece) -> Qwen2Config:
    """Reads the configuration of the language model from the `config.json` beside its weights.

    Raises:
        ValueError: there is none, or it lacks a field.
    """
    assert piece.part == LANGUAGE_MODEL
    fields: dict[str, Any] = piece.facts
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps")
    missing = [name for name in needed if not isinstance(fields.get(name), (int, float))]
    if missing:
        raise ValueError(
            f"{piece.origin}: config.json is missing or lacks {', '.join(missing)}: give the folder that the language "
            "model was saved in."
        )
    kept = {name: fields[name] for name in Qwen2Config.__annotations__ if fields.get(name) is not None}
    kept.pop("rope_scaling", None)  # deprecated: becomes `rope_parameters` below
    kept["vocab_size"] = _Shapes(piece)("model.embed_tokens.weight", 2)[0]
    if "rope_parameters" not in kept:  # as Transformers 4 writes it
        scaling = fields.get("rope_scaling") or {"rope_type": "default"}
        kept["rope_parameters"] = scaling | {"rope_theta": float(fields.get("rope_theta", 10000.0))}
    return Qwen2Config(**kept)
