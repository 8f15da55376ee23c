"""A checkpoint of the release becomes one of ours: the tokenizer alone, or everything merged into one model.

Tensors are looked at one shard at a time, while they are written: a model of 7B needs the memory of one shard and of
the image tokenizer, which is kept in fp32.
"""

from pathlib import Path
from typing import NamedTuple

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
    to_ours,
)
from evotok.conversion.language import (
    EMBEDDING,
    choose_language_model,
    first_difference,
    grow_tables,
    place_tokens,
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
    """A model of ours on the meta device, the tensors it is to have, and what goes along.

    Args:
        model: for its config and its saving.
        tensors: its state dict, mostly still on disk.
        processor: where the source has a text tokenizer.
        fresh: parts that no source has, which are drawn as for a new model.
        assumed: sizes that nothing in the sources says, by the names of `Choices`.
        is_released: whether all widths are of the release, so that what is assumed is known to be so.
    """

    model: PreTrainedModel
    tensors: dict[str, Tensor]
    processor: EvoTokProcessor | None
    fresh: list[str]
    assumed: dict[str, int] = {}
    is_released: bool = True

    def save(self, folder: Path) -> None:
        """Write config, weights, code and processor; every shard is read when it is written."""
        self.model.save_pretrained(folder, state_dict=dict(self.tensors), max_shard_size=_SHARD)
        if self.processor is not None:
            self.processor.save_pretrained(folder)


def import_reference(sources: list[str], choices: Choices, mode: str | None = None) -> Imported:
    """What the sources make together.

    Args:
        sources: files and folders; see `find_pieces`.
        choices: what the shapes do not say.
        mode: `"understanding"` or `"generation"`, whose language model to take where two differ.

    Raises:
        ValueError: a part is missing, damaged, unknown, or there twice and different.
    """
    pieces = find_pieces(sources)
    tokenizer = _the_one(pieces, TOKENIZER)
    if tokenizer is None:
        raise ValueError(f"{', '.join(sources)}: no image tokenizer among the sources: give last.pt as well.")
    depth = _the_one(pieces, DEPTH_DECODER)
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
    tokens = place_tokens(_text_folder(pieces, language), rows, vq_config, with_image_tokens, framed)
    text_config.vocab_size = tokens.rows
    language = language._replace(tensors=grow_tables(language.tensors, tokens.rows))
    config = EvoTokConfig(
        vq_config=vq_config.to_dict(),
        depth_decoder_config=None if depth_config is None else depth_config.to_dict(),
        text_config=text_config.to_dict(),
        tie_word_embeddings=text_config.tie_word_embeddings,
        **tokens.ids,
    )
    dtype = language.tensors[EMBEDDING].dtype
    for piece in filter(None, [depth, *projectors.values()]):
        dtype = torch.promote_types(dtype, next(iter(piece.tensors.values())).dtype)
    with torch.device("meta"):
        model = EvoTokForConditionalGeneration(config)
        model.model.vq_model.stays_in_fp32 = False  # its dtype is the one that the saved config will say
        model.to(dtype)
    state = model.state_dict()

    tensors = _prefixed("model.vq_model.", _tokenizer_tensors(tokenizer, _below(state, "model.vq_model.")))
    tensors |= _language_tensors(language, state, tied=config.tie_word_embeddings)
    fresh = [name for name in _MODES if name not in projectors]
    for name, piece in projectors.items():
        wanted = _below(state, f"model.{name}.")
        found = {key: tensor for key, tensor in piece.tensors.items() if key != EMBEDDING}
        found = to_ours("projector", PROJECTOR_RULES, found, wanted, "", piece.origin)
        tensors |= _prefixed(f"model.{name}.", found)
    for name in fresh:
        width = vq_config.semantic_feature_dim if name == "semantic_projector" else vq_config.codebook_dim
        tensors |= _prefixed(f"model.{name}.", _drawn_projector(config, width, dtype))
    if depth is None:
        fresh.append("depth_decoder")
        torch.manual_seed(0)
        drawn = EvoTokDepthDecoder(config.depth_decoder_config).to(dtype).state_dict()
        tensors |= _prefixed("depth_decoder.", drawn)
    else:
        # The release makes a classifier for each of all levels, and runs those of the levels that are written.
        dead = range(vq_config.num_pixel_codebooks, vq_config.num_codebooks)
        unused = "|".join(rf"classifiers\.{level}\.[01]\.(weight|bias)" for level in dead)
        wanted = _below(state, "depth_decoder.")
        found = to_ours("depth decoder", DEPTH_RULES, depth.tensors, wanted, unused, depth.origin)
        tensors |= _prefixed("depth_decoder.", found)
    return Imported(model, tensors, tokens.processor, fresh)


def _the_one(pieces: list[Piece], part: str) -> Piece | None:
    """The piece of a part that is there once, or several times alike: a file of its own before a model's folder."""
    found = list(of_part(pieces, part))
    for other in found[1:]:
        common = found[0].tensors.keys() & other.tensors.keys()
        # Counters go on counting wherever the tokenizer runs.
        common = {name for name in common if not name.endswith(("_ema", ".step", "codebook_used"))}
        if name := first_difference(found[0], other, common):
            raise ValueError(
                f"{found[0].origin} and {other.origin}: the {part}s differ in {name}: give sources of one model."
            )
    return found[0] if found else None


def _projectors(pieces: list[Piece], vq_config: EvoTokVQConfig) -> dict[str, Piece]:
    """Projectors by our names: the width that they read tells semantics from codes, the model around them if not."""
    widths = {"semantic_projector": vq_config.semantic_feature_dim, "pixel_projector": vq_config.codebook_dim}
    found: dict[str, Piece] = {}
    for piece in of_part(pieces, PROJECTOR):
        weight = piece.tensors.get("0.weight")
        width = weight.shape[1] if weight is not None and weight.ndim == 2 else None
        names = [name for name, wanted in widths.items() if wanted == width]
        if not names:
            raise ValueError(
                f"{piece.origin}: a projector of inputs {width} wide, where semantics have "
                f"{widths['semantic_projector']} and codes {widths['pixel_projector']}."
            )
        if len(names) == 2:
            names = names[1:] if _draws(pieces, _folder(piece)) else names[:1]
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
    return piece.origin if piece.origin.is_dir() else piece.origin.parent


def _config_around(pieces: list[Piece], inner: Piece) -> dict:
    """`config.json` of the model that a part, as a file or inside the model, lies with."""
    return next((piece.facts for piece in pieces if piece.origin == _folder(inner)), {})


def _draws(pieces: list[Piece], folder: Path) -> bool:
    """Whether a folder's model is one for generation: it has a depth decoder, or its config says so."""
    mine = [piece for piece in pieces if _folder(piece) == folder]
    return any(piece.part == DEPTH_DECODER or piece.facts.get("mm_with_depth_transformer") is True for piece in mine)


def _text_folder(pieces: list[Piece], chosen: Piece) -> Path:
    """The folder whose text tokenizer to take: of the language models, the one with the most tokens."""
    candidates = list(of_part(pieces, LANGUAGE_MODEL))
    largest = max(candidates, key=lambda piece: (len(piece.tensors[EMBEDDING]), piece.origin == chosen.origin))
    return _folder(largest)


def _tokenizer_tensors(piece: Piece, ours: dict[str, Tensor]) -> dict[str, Tensor]:
    for name in ("scaling_layer.shift", "scaling_layer.scale"):
        constant = piece.tensors.get(name)
        if constant is not None and not bool((constant.float() == 0.5).all()):
            raise ValueError(f"{piece.origin}: {name} is not 0.5 throughout, which this model is built for.")
    # The encoder's last layer runs in no forward pass: its output is not what is quantised.
    used = sum(name.startswith("vision_tower.encoder.layers.") and name.endswith("layer_norm1.bias") for name in ours)
    unused = rf"encoder_vqkd\.encoder\.layers\.{used}\..+"
    found = to_ours("tokenizer", TOKENIZER_RULES, piece.tensors, ours, unused, piece.origin)
    return {
        name: tensor.to(ours[name].dtype if not tensor.is_floating_point() else torch.float32)
        for name, tensor in found.items()
    }


def _language_tensors(piece: Piece, state: dict[str, Tensor], tied: bool) -> dict[str, Tensor]:
    ours = _below(state, "model.", "language_model.") | _below(state, "", "lm_head.")
    if tied:
        del ours["lm_head.weight"]
    found = to_ours(
        "language model", LANGUAGE_RULES, piece.tensors, ours, r"lm_head\.weight" if tied else "", piece.origin
    )
    return {name if name.startswith("lm_head.") else f"model.{name}": tensor for name, tensor in found.items()}


def _drawn_projector(config: EvoTokConfig, width: int, dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(0)
    projector = EvoTokMultiModalProjector(config, width)
    for layer in (projector.linear_1, projector.linear_2):
        nn.init.normal_(layer.weight, std=config.initializer_range)
        nn.init.zeros_(layer.bias)
    return projector.to(dtype).state_dict()


def _below(state: dict[str, Tensor], prefix: str, then: str = "") -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix + then)}


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}
