"""Finds the parts of a model in files and folders of the release, by the names of the tensors.

Tensors stay on disk (memory-mapped) until they are used.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from evotok.commands.checkpoints import check_files
from evotok.conversion.torch_files import read_torch_file
from evotok.data.errors import reason


TOKENIZER, DEPTH_DECODER, PROJECTOR = "tokenizer", "depth decoder", "projector"
LANGUAGE_MODEL = "language model"

# Part -> prefix of its tensors in a whole model.
_PREFIXES = {
    TOKENIZER: re.compile(r"(model\.)?vision_tower\.vision_tower\."),
    DEPTH_DECODER: re.compile(r"((model\.)?vision_tower\.)?rqtransformer\."),
    PROJECTOR: re.compile(r"(model\.)?mm_projector\."),
    LANGUAGE_MODEL: re.compile(r"(?=model\.(embed_tokens|layers|norm|rotary_emb)\.|lm_head\.)"),
}
# Part -> its tensors in a file of its own, without a prefix.
_ALONE = {
    TOKENIZER: re.compile(
        r"(encoder_vqkd|encode_task_layer|quantize|scaling_layer|decoder_vqkd|decode_task_layer|post_quant_conv|decoder)\."
    ),
    DEPTH_DECODER: re.compile(r"(in_mlp_[12]|head_transformer|classifiers)\.|pos_emb_d$"),
}
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")  # DistributedDataParallel, torch.compile
_EMBEDDING = "model.embed_tokens.weight"
_TORCH_FILES = ("last.pt", "rqtransformer.bin", "mm_projector.bin")
_MODEL_FILES = ("*.safetensors", "*model*.bin", "*model*.pt")


class Piece(NamedTuple):
    """A part of the model in one file or folder.

    Args:
        part: `TOKENIZER`, `DEPTH_DECODER`, `PROJECTOR` or `LANGUAGE_MODEL`.
        origin: the file or folder.
        tensors: by name without the prefix of the part; a projector may have `model.embed_tokens.weight` too.
        facts: arguments of the training for a file, `config.json` for a folder.
    """

    part: str
    origin: Path
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def find_pieces(sources: list[str]) -> list[Piece]:
    """Reads the pieces of all sources, in their order.

    Raises:
        ValueError: a source is missing, damaged or harmful, or has tensors of no part.
    """
    pieces = []
    for source in map(Path, sources):
        if source.is_dir():
            found = _read_tree(source)
        elif source.is_file():
            found = _pieces_of(source, *_read_file(source))
        else:
            raise ValueError(f"{source}: no such file or folder.")
        if not found:
            wanted = ", ".join(_TORCH_FILES + _MODEL_FILES)
            raise ValueError(
                f"{source}: no weights of the release in it. Looked for {wanted}, here and one folder below."
            )
        pieces += found
    return pieces


def _read_tree(folder: Path) -> list[Piece]:
    """Reads the pieces of a folder; without a language model in it, of its folders too, but for those of EvoTok."""
    check_files(str(folder), folder)
    if _is_ours(folder):
        raise ValueError(
            f"{folder}: a checkpoint of EvoTok already; --to-reference converts it to the release's format."
        )
    pieces = _read_folder(folder)
    if not any(piece.part == LANGUAGE_MODEL for piece in pieces):
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                check_files(str(path), path)
                pieces += [] if _is_ours(path) else _read_folder(path)
    return pieces


def _is_ours(folder: Path) -> bool:
    return str(_read_config(folder).get("model_type")).startswith("evotok")


def _read_folder(folder: Path) -> list[Piece]:
    tensors: dict[str, Tensor] = {}
    for path in _shards(folder):
        shard, _ = _read_file(path)
        if twice := tensors.keys() & shard.keys():
            raise ValueError(f"{path}: {min(twice)} is in another file of this folder too. Remove what is left over.")
        tensors |= shard
    pieces = _pieces_of(folder, tensors, _read_config(folder)) if tensors else []
    for name in _TORCH_FILES:
        if (folder / name).is_file():
            pieces += _pieces_of(folder / name, *_read_file(folder / name))
    return pieces


def _shards(folder: Path) -> list[Path]:
    """Lists the weight files of the model in a folder: those of an index, or all; safetensors first."""
    for pattern in _MODEL_FILES:
        indices = sorted(folder.glob(f"{pattern}.index.json"))
        if len(indices) > 1:
            raise ValueError(f"{folder}: {len(indices)} weight indices, {indices[0].name} and others: keep one.")
        if indices:
            return _indexed_shards(indices[0])
        if paths := sorted(folder.glob(pattern)):
            return paths
    return []


def _indexed_shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{index}: damaged, or no index of weights. Copy it again.") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{index}: names {name!r}, which is no file of this folder. Copy the folder again.")
        if not (index.parent / name).is_file():
            raise ValueError(f"{index.parent / name}: this shard is missing. Copy the folder again.")
    return [index.parent / name for name in names]


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: damaged, not JSON of one object. Copy it again.")
    return config


def _read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads the tensors of a file, by names without wrappers, and the arguments saved with them."""
    if path.suffix == ".safetensors":
        try:
            weights, facts = load_file(path), None
        except (SafetensorError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path}: cannot be read ({reason(error, 120)}). Copy it again.") from None
    else:
        content = read_torch_file(path)
        if not isinstance(content, dict):
            raise ValueError(f"{path}: holds a {type(content).__name__}: it should be a dict of weights.")
        chosen = (content[name] for name in ("ema", "model", "state_dict") if isinstance(content.get(name), dict))
        weights, facts = next(filter(None, chosen), content), content.get("args")
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        name = _WRAPPERS.sub("", str(name))
        _check_tensor(path, name, tensor)
        if name in tensors:
            raise ValueError(f"{path}: {name} occurs with and without a wrapper's prefix: remove one of them.")
        tensors[name] = tensor.detach()
    facts = vars(facts) if isinstance(facts, argparse.Namespace) else facts
    return tensors, facts if isinstance(facts, dict) else {}


def _check_tensor(path: Path, name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise ValueError(
            f"{path}: {name[:80]} is a {type(tensor).__name__} instead of a tensor: give weights of the release."
        )
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not plain or tensor.is_complex():
        raise ValueError(
            f"{path}: {name} is no plain tensor of numbers but {tensor.dtype}, {tensor.layout}. Save it as one."
        )
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        raise ValueError(
            f"{path}: {name} has shape {tuple(tensor.shape)}, but the file holds "
            f"{tensor.untyped_storage().nbytes()} bytes for it: damaged. Copy it again."
        )


def _pieces_of(origin: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> list[Piece]:
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, rest = _split_prefix(name) or (_only_part(tensors), name)
        if part is None:
            raise ValueError(
                f"{origin}: {name} belongs to no part of the release's format: give what the release wrote."
            )
        rest = rest.replace("encoder_vqkd.vision_model.", "encoder_vqkd.", 1)  # Transformers 4
        if parts.setdefault(part, {}).setdefault(rest, tensor) is not tensor:
            raise ValueError(f"{origin}: {name} occurs under two prefixes: remove one of them.")
    if PROJECTOR in parts and parts.get(LANGUAGE_MODEL, {}).keys() == {_EMBEDDING}:  # mm_projector.bin
        parts[PROJECTOR] |= parts.pop(LANGUAGE_MODEL)
    return [Piece(part, origin, tensors, facts) for part, tensors in parts.items()]


def _split_prefix(name: str) -> tuple[str, str] | None:
    for part, prefix in _PREFIXES.items():
        if match := prefix.match(name):
            return part, name[match.end() :]
    for part, own_names in _ALONE.items():
        if own_names.match(name):
            return part, name
    return None


def _only_part(tensors: dict[str, Tensor]) -> str | None:
    """Returns the part of a file of one part, so that an unknown tensor in it is reported as of that part."""
    parts = {found[0] for found in map(_split_prefix, tensors) if found}
    return parts.pop() if len(parts) == 1 and LANGUAGE_MODEL not in parts else None


def of_part(pieces: list[Piece], part: str) -> Iterator[Piece]:
    """Iterates over the pieces of a part; files before folders, which may have less of it than its own file."""
    return iter(sorted((piece for piece in pieces if piece.part == part), key=lambda piece: piece.origin.is_dir()))
