"""Converts a checkpoint of the release into one of EvoTok: the image tokenizer alone, or all parts as one model.

Tensors are read while their shard is written: a model of 7B needs the memory of one shard and of the image tokenizer,
which is kept in fp32.
"""

from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evotok import (
    EvoTokConfig,
    EvoTokDepthDecoder,
    EvoTokDepthDecoderConfig,
    EvoTokForConditionalGeneration,
    EvoTokProcessor,
    EvoTokVQConfig,
    EvoTokVQModel,
)
from evotok.conversion.key_maps import (
    DEPTH_RULES,
    LANGUAGE_RULES,
    PROJECTOR_RULES,
    TOKENIZER_RULES,
    add_prefix,
    convert_from_reference,
    select_prefix,
)
from evotok.conversion.language import (
    EMBEDDING,
    LM_HEAD,
    assign_image_tokens,
    choose_language_model,
    first_difference,
    pad_tables,
)
from evotok.conversion.sizes import (
    Choices,
    assumed_sizes,
    depth_decoder_config,
    is_released,
    language_model_config,
    tokenizer_config,
)
from evotok.conversion.sources import DEPTH_DECODER, LANGUAGE_MODEL, PROJECTOR, TOKENIZER, Piece, find_pieces, of_part
from evotok.modeling_evotok.modeling_evotok import EvoTokMultiModalProjector


_SHARD = "2GB"
_MODES = {"semantic_projector": "understanding", "pixel_projector": "generation"}


class Imported(NamedTuple):
    """A converted model.

    Args:
        model: on the meta device, for its config and `save_pretrained`.
        tensors: its state dict, mostly still on disk.
        processor: if the source has a text tokenizer.
        fresh: parts that no source has, which are initialized at random.
        assumed: sizes that are not in the sources, by the names of `Choices`.
        is_released: whether all widths are of the release, whose sizes are known.
    """

    model: PreTrainedModel
    tensors: dict[str, Tensor]
    processor: EvoTokProcessor | None
    fresh: list[str]
    assumed: dict[str, int] = {}
    is_released: bool = True

    def save(self, folder: Path) -> None:
        """Saves config, weights, code and processor."""
        self.model.save_pretrained(folder, state_dict=dict(self.tensors), max_shard_size=_SHARD)
        if self.processor is not None:
            self.processor.save_pretrained(folder)


def import_reference(sources: list[str], choices: Choices, mode: str | None = None) -> Imported:
    """Converts files and folders of the release that make one model.

    Args:
        sources: see `find_pieces`.
        choices: sizes that the shapes of tensors do not give.
        mode: `"understanding"` or `"generation"`: which language model to take if the two differ.

    Raises:
        ValueError: a part is missing, damaged or unknown, or two pieces of it differ.
    """
    pieces = find_pieces(sources)
    tokenizer = _single_piece(pieces, TOKENIZER)
    if tokenizer is None:
        raise ValueError(f"{', '.join(sources)}: no image tokenizer among the sources: give last.pt as well.")
    depth = _single_piece(pieces, DEPTH_DECODER)
    depth_config = None if depth is None else depth_decoder_config(depth, choices, tokenizer.facts)
    vq_config = tokenizer_config(tokenizer, choices, depth_config and depth_config.num_codebooks)
    if all(piece.part == TOKENIZER for piece in pieces):
        with torch.device("meta"):
            model = EvoTokVQModel(vq_config)
        imported = Imported(model, _tokenizer_tensors(tokenizer, model.state_dict()), None, [])
    else:
        imported = _merge(pieces, tokenizer, vq_config, depth, depth_config, mode)
    assumed = assumed_sizes(tokenizer, choices, vq_config, depth_config)
    return imported._replace(assumed=assumed, is_released=is_released(vq_config, depth_config))


def _merge(
    pieces: list[Piece],
    tokenizer: Piece,
    vq_config: EvoTokVQConfig,
    depth: Piece | None,
    depth_config: EvoTokDepthDecoderConfig | None,
    mode: str | None,
) -> Imported:
    projectors = _projectors(pieces, vq_config)
    language = choose_language_model(pieces, mode, {_MODES[k]: _folder(v) for k, v in projectors.items()})
    text_config = language_model_config(language)
    understanding = projectors.get("semantic_projector")
    framed = understanding is not None and bool(_config_around(pieces, understanding).get("mm_use_im_start_end"))
    with_image_tokens = framed or "pixel_projector" in projectors
    rows = text_config.vocab_size
    tokens = assign_image_tokens(_text_folder(pieces, language), rows, vq_config, with_image_tokens, framed)
    text_config.vocab_size = tokens.rows
    language = language._replace(tensors=pad_tables(language.tensors, tokens.rows))
    config = EvoTokConfig(
        vq_config=vq_config.to_dict(),
        depth_decoder_config=None if depth_config is None else depth_config.to_dict(),
        text_config=text_config.to_dict(),
        tie_word_embeddings=text_config.tie_word_embeddings,
        **cast("dict[str, Any]", tokens.ids),
    )
    dtype = language.tensors[EMBEDDING].dtype
    for piece in filter(None, [depth, *projectors.values()]):
        dtype = torch.promote_types(dtype, next(iter(piece.tensors.values())).dtype)
    with torch.device("meta"):
        model = EvoTokForConditionalGeneration(config)
        model.model.vq_model.stays_in_fp32 = False  # the saved config has the dtype of its weights
        model.to(dtype)
    state = model.state_dict()

    tensors = add_prefix("model.vq_model.", _tokenizer_tensors(tokenizer, select_prefix(state, "model.vq_model.")))
    tensors |= _language_tensors(language, state, tied=config.tie_word_embeddings)
    tensors |= _projector_tensors(projectors, config, state, dtype)
    tensors |= add_prefix(
        "depth_decoder.", _depth_tensors(depth, config, select_prefix(state, "depth_decoder."), dtype)
    )
    fresh = [name for name in _MODES if name not in projectors] + ["depth_decoder"] * (depth is None)
    return Imported(model, tensors, tokens.processor, fresh)


def _single_piece(pieces: list[Piece], part: str) -> Piece | None:
    """Returns the piece of a part, which may be in several sources: from its own file before a model's folder."""
    found = list(of_part(pieces, part))
    for other in found[1:]:
        common = found[0].tensors.keys() & other.tensors.keys()
        # Counters change wherever the tokenizer is trained on.
        common = {name for name in common if not name.endswith(("_ema", ".step", "codebook_used"))}
        if name := first_difference(found[0], other, common):
            raise ValueError(
                f"{found[0].origin} and {other.origin}: the {part}s differ in {name}: give sources of one model."
            )
    return found[0] if found else None


def _projectors(pieces: list[Piece], vq_config: EvoTokVQConfig) -> dict[str, Piece]:
    """Returns the projectors by EvoTok's names: by their input width, or by the model around them if that is equal."""
    widths = {"semantic_projector": vq_config.semantic_feature_dim, "pixel_projector": vq_config.codebook_dim}
    found: dict[str, Piece] = {}
    for piece in of_part(pieces, PROJECTOR):
        weight = piece.tensors.get("0.weight")
        width = weight.shape[1] if weight is not None and weight.ndim == 2 else None
        names = [name for name, wanted in widths.items() if wanted == width]
        if not names:
            raise ValueError(
                f"{piece.origin}: a projector of inputs {width} wide, where semantics have "
                f"{widths['semantic_projector']} and codes {widths['pixel_projector']}: give the files of one model."
            )
        if len(names) == 2:
            names = names[1:] if _is_for_generation(pieces, _folder(piece)) else names[:1]
        [name] = names
        seen = found.setdefault(name, piece)
        common = seen.tensors.keys() - {EMBEDDING}
        if differing := first_difference(seen, piece, common):
            raise ValueError(
                f"{seen.origin} and {piece.origin}: two projectors for {_MODES[name]}, which differ in {differing}: "
                "give one."
            )
    return found


def _folder(piece: Piece) -> Path:
    """Returns the folder of a piece."""
    return piece.origin if piece.origin.is_dir() else piece.origin.parent


def _config_around(pieces: list[Piece], inner: Piece) -> dict:
    """Returns `config.json` of the model in the folder of a piece."""
    return next((piece.facts for piece in pieces if piece.origin == _folder(inner)), {})


def _is_for_generation(pieces: list[Piece], folder: Path) -> bool:
    """Returns whether the model of a folder is for generation, by its depth decoder or its config."""
    mine = [piece for piece in pieces if _folder(piece) == folder]
    return any(piece.part == DEPTH_DECODER or piece.facts.get("mm_with_depth_transformer") is True for piece in mine)


def _text_folder(pieces: list[Piece], chosen: Piece) -> Path:
    """Returns the folder of the language model with the most tokens, for its text tokenizer."""
    candidates = list(of_part(pieces, LANGUAGE_MODEL))
    largest = max(candidates, key=lambda piece: (len(piece.tensors[EMBEDDING]), piece.origin == chosen.origin))
    return _folder(largest)


def _tokenizer_tensors(piece: Piece, ours: dict[str, Tensor]) -> dict[str, Tensor]:
    for name in ("scaling_layer.shift", "scaling_layer.scale"):
        constant = piece.tensors.get(name)
        if constant is not None and not bool((constant.float() == 0.5).all()):
            raise ValueError(f"{piece.origin}: {name} is not 0.5 throughout, the only value that is supported.")
    # The encoder's last layer is in no forward pass: the output of the layer before it is quantized.
    used = sum(name.startswith("vision_tower.encoder.layers.") and name.endswith("layer_norm1.bias") for name in ours)
    unused = rf"encoder_vqkd\.encoder\.layers\.{used}\..+"
    found = convert_from_reference("tokenizer", TOKENIZER_RULES, piece.tensors, ours, unused, piece.origin)
    return {
        name: tensor.to(ours[name].dtype if not tensor.is_floating_point() else torch.float32)
        for name, tensor in found.items()
    }


def _language_tensors(piece: Piece, state: dict[str, Tensor], tied: bool) -> dict[str, Tensor]:
    ours = add_prefix("language_model.", select_prefix(state, "model.language_model."))
    ours |= {} if tied else {LM_HEAD: state[LM_HEAD]}
    found = convert_from_reference(
        "language model", LANGUAGE_RULES, piece.tensors, ours, r"lm_head\.weight" if tied else "", piece.origin
    )
    return {name if name.startswith("lm_head.") else f"model.{name}": tensor for name, tensor in found.items()}


def _projector_tensors(
    projectors: dict[str, Piece], config: EvoTokConfig, state: dict[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Converts the projectors; those of no source are initialized at random."""
    tensors: dict[str, Tensor] = {}
    for name, piece in projectors.items():
        wanted = select_prefix(state, f"model.{name}.")
        found = {key: tensor for key, tensor in piece.tensors.items() if key != EMBEDDING}
        found = convert_from_reference("projector", PROJECTOR_RULES, found, wanted, "", piece.origin)
        tensors |= add_prefix(f"model.{name}.", found)
    widths = {
        "semantic_projector": config.vq_config.semantic_feature_dim,
        "pixel_projector": config.vq_config.codebook_dim,
    }
    for name in (name for name in _MODES if name not in projectors):
        tensors |= add_prefix(f"model.{name}.", _init_projector(config, widths[name], dtype))
    return tensors


def _depth_tensors(
    depth: Piece | None, config: EvoTokConfig, ours: dict[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Converts the depth decoder; one of no source is initialized at random."""
    if depth is None:
        torch.manual_seed(0)
        return EvoTokDepthDecoder(config.depth_decoder_config).to(dtype).state_dict()
    # The release has a classifier for each level, and runs those of the pixel levels.
    dead = range(config.vq_config.num_pixel_codebooks, config.vq_config.num_codebooks)
    unused = "|".join(rf"classifiers\.{level}\.[01]\.(weight|bias)" for level in dead)
    return convert_from_reference("depth decoder", DEPTH_RULES, depth.tensors, ours, unused, depth.origin)


def _init_projector(config: EvoTokConfig, width: int, dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(0)
    projector = EvoTokMultiModalProjector(config, width)
    for layer in (projector.linear_1, projector.linear_2):
        nn.init.normal_(layer.weight, std=config.initializer_range)
        nn.init.zeros_(layer.bias)
    return projector.to(dtype).state_dict()
