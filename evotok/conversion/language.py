"""Merges the language models of the release: their tensors, tables of embeddings, image tokens and text tokenizers."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoTokenizer

from evotok import EvoTokProcessor, EvoTokVQConfig
from evotok.conversion.sources import LANGUAGE_MODEL, PROJECTOR, Piece, of_part
from evotok.data.errors import reason


EMBEDDING, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Appended to Qwen2.5's tokenizer by the release, in this order; a model for understanding may have the first alone.
APPENDED = ("[PAD]", "<im_start>", "<im_end>")
SYSTEM_PROMPT = "You are a helpful assistant."
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
# Qwen2.5's ids of <|vision_start|>, <|vision_end|>, <|image_pad|> and <|video_pad|>.
_QWEN_TOKENS = {
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "image_generation_token_id": 151656,
}


class Tokens(NamedTuple):
    """Ids of the image tokens for the config, rows of the tables, and the processor if there is a text tokenizer."""

    ids: dict[str, int]
    rows: int
    processor: EvoTokProcessor | None


def choose_language_model(pieces: list[Piece], mode: str | None, folders: dict[str, Path]) -> Piece:
    """Chooses the language model of the merged checkpoint, and adds rows of the tables that only another one has.

    Args:
        pieces: of all sources.
        mode: `"understanding"` or `"generation"`: which language model to take if they differ.
        folders: of the modes that have a projector.

    Raises:
        ValueError: there is none, or they differ and `mode` is None.
    """
    candidates = list(of_part(pieces, LANGUAGE_MODEL))
    if not candidates:
        parts = ", ".join(f"{piece.part} ({piece.origin})" for piece in pieces)
        raise ValueError(f"no language model: found {parts}. Give the folder of the language model as well.")
    chosen, *others = sorted(candidates, key=lambda piece: -_rows(piece))
    if mode is not None:
        wanted = [piece for piece in candidates if piece.origin == folders.get(mode)]
        if not wanted:
            raise ValueError(f"--language-model {mode}: no such language model beside a projector for {mode}.")
        chosen = wanted[0]
        others = [piece for piece in candidates if piece is not chosen]
    tensors = dict(chosen.tensors)
    for other in others:
        differing = first_difference(chosen, other)
        if differing and mode is None:
            raise ValueError(
                f"{chosen.origin} and {other.origin}: their language models differ ({differing}), and one checkpoint "
                "holds one: give --language-model understanding or --language-model generation."
            )
        for name in (EMBEDDING, LM_HEAD):
            if name in tensors and name in other.tensors and other.tensors[name].shape[1:] == tensors[name].shape[1:]:
                more = other.tensors[name][tensors[name].shape[0] :]
                tensors[name] = torch.cat([tensors[name], more.to(tensors[name].dtype)]) if len(more) else tensors[name]
    return chosen._replace(tensors=_with_trained_rows(tensors, pieces))


def _rows(piece: Piece) -> int:
    table = piece.tensors.get(EMBEDDING)
    if table is None or table.ndim != 2:
        raise ValueError(f"{piece.origin}: the language model lacks {EMBEDDING}: damaged, or a shard is missing.")
    return table.shape[0]


def first_difference(one: Piece, other: Piece, names: set[str] | None = None) -> str | None:
    """Returns the name of a tensor in which two pieces differ, rounded to the shorter dtype; None if there is none.

    Of tables the rows that both have are compared.
    """
    for name in sorted(one.tensors.keys() | other.tensors.keys() if names is None else names):
        if name not in one.tensors or name not in other.tensors:
            return name
        a, b = one.tensors[name], other.tensors[name]
        if name in (EMBEDDING, LM_HEAD) and a.ndim == b.ndim == 2:
            rows = min(len(a), len(b))
            a, b = a[:rows], b[:rows]
        dtype = min((a.dtype, b.dtype), key=lambda dtype: dtype.itemsize)
        if a.shape != b.shape or not torch.equal(a.to(dtype), b.to(dtype)):
            return name
    return None


def _with_trained_rows(tensors: dict[str, Tensor], pieces: list[Piece]) -> dict[str, Tensor]:
    """Replaces the table of embeddings by that of `mm_projector.bin`, in which start and end tokens were trained.

    The output table gets as many rows; new ones are the mean of the others, as in the release. Spare rows of a base
    model behind its last token are cut off first, as in the release.
    """
    trained = [piece for piece in of_part(pieces, PROJECTOR) if EMBEDDING in piece.tensors]
    if not trained:
        return tensors
    table = trained[0].tensors[EMBEDDING]
    if table.ndim != 2 or table.shape[1] != tensors[EMBEDDING].shape[1]:
        raise ValueError(
            f"{trained[0].origin}: {EMBEDDING} has shape {tuple(table.shape)}, but the language model's is "
            f"{tuple(tensors[EMBEDDING].shape)}: give the files of one model."
        )
    tensors = tensors | {EMBEDDING: table.to(tensors[EMBEDDING].dtype)}
    if LM_HEAD in tensors:
        head = tensors[LM_HEAD]
        head = head if len(head) <= len(table) else head[: len(table) - len(APPENDED)]
        more = head.float().mean(0, keepdim=True).to(head.dtype).expand(len(table) - len(head), -1)
        tensors[LM_HEAD] = torch.cat([head, more]) if len(more) else head
    return tensors


def pad_tables(tensors: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Pads both tables with zero rows, up to `rows`."""
    tables = {name: tensors[name] for name in (EMBEDDING, LM_HEAD) if name in tensors and len(tensors[name]) < rows}
    padded = {
        name: torch.cat([table, table.new_zeros(rows - len(table), table.shape[1])]) for name, table in tables.items()
    }
    return tensors | padded


def assign_image_tokens(
    folder: Path, rows: int, vq_config: EvoTokVQConfig, with_image_tokens: bool, framed: bool
) -> Tokens:
    """Assigns EvoTok's four image tokens to ids of the release's vocabulary.

    Start and end of generated images are `<im_start>` and `<im_end>`, the last two rows. Placeholders are special
    tokens of Qwen2.5 that the release does not use; a vocabulary without them gets new rows.

    Args:
        folder: of the language model, with or without a text tokenizer.
        rows: of its tables.
        vq_config: of the image tokenizer.
        with_image_tokens: whether the model was trained with `<im_start>` and `<im_end>`.
        framed: whether input images are between start and end tokens too.

    Raises:
        ValueError: the text tokenizer cannot be read.
    """
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        ids, end = {}, rows
        for name, token_id in _QWEN_TOKENS.items():
            if with_image_tokens and name.startswith("vision_"):
                ids[name] = rows - 2 if name.startswith("vision_start") else rows - 1
            elif rows > max(_QWEN_TOKENS.values()):
                ids[name] = token_id
            else:
                ids[name], end = end, end + 1
        return Tokens(ids, end, None)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # noqa: BLE001 - untrusted files raise any type
        raise ValueError(
            f"{folder}: the text tokenizer cannot be read ({reason(error, 160)}). Copy its files again."
        ) from None
    known = tokenizer.get_vocab()
    absent = [token for token in APPENDED if token not in known]
    if with_image_tokens and absent and len(tokenizer) + len(absent) == rows:
        tokenizer.add_tokens(absent, special_tokens=True)
        known = tokenizer.get_vocab()
    names: dict[str, Any] = {}
    if with_image_tokens and "<im_start>" in known and "<im_end>" in known:
        names |= {"vision_start_token": "<im_start>", "vision_end_token": "<im_end>"}
    if "<|image_gen|>" not in known and "<|video_pad|>" in known:
        names["image_generation_token"] = "<|video_pad|>"
    processor = EvoTokProcessor.from_parts(
        tokenizer, vq_config.image_size, vq_config.num_positions, system_prompt=SYSTEM_PROMPT, **names
    )
    if not framed:
        processor.chat_template = processor.build_template(delimit_input_images=False)
    return Tokens(dict(processor.token_ids), max(rows, len(tokenizer)), processor)
