"""Code shards: images as codes in parquet files, which a tokenizer wrote once and every later stage reads.

A shard has the columns `key` and `caption` (text) and `codes`, (N * L) little-endian uint16, N positions by the L pixel
levels: 2,048 bytes an image at the paper's 256 x 4. The schema's metadata has the format and, as `ShardInfo`, the
shape, the hash of the tokenizer, the preparation of the images, the source and the number of images skipped.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from .atomic_files import atomic_file
from .sources.parquet import read_parquet
from .sources.rows import Rows
from .sources.source import generation_row
from .yaml_files import check_types


FORMAT = "evotok-code-shard-1"
_HASH_PREFIX = "evotok-codes-1"  # another one would make all files of codes those of another tokenizer
_ROWS_A_GROUP = 4096
_PREPARATION = (
    "size", "resample", "do_resize", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std",
)  # fmt: skip


def tokenizer_hash(model: EvoTokVQModel) -> str:
    """Computes the SHA-256 of encoder and codebooks: image tokenizers of equal hash give the same codes, whatever their
    decoders."""
    digest = hashlib.sha256(f"{_HASH_PREFIX}/{model.config.image_size}".encode())
    encoder = ("vision_tower.", "to_latent.")
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(encoder) or (name.startswith("quantizer.") and name.endswith(".weight")):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().data)
    return digest.hexdigest()


def image_preparation(image_processor: Any) -> dict[str, Any]:
    """Returns the settings of an image processor that change the pixels, as JSON values."""
    settings = image_processor.to_dict()
    return json.loads(json.dumps({name: settings.get(name) for name in _PREPARATION}))


@dataclass(frozen=True)
class ShardInfo:
    """Properties of all codes of a shard."""

    tokenizer: str
    """Of [`tokenizer_hash`]."""
    positions: int
    levels: int
    source: str = ""
    skipped: int = 0
    """Number of images of the source that could not be read."""
    preparation: dict[str, Any] = field(default_factory=dict)
    """Of [`image_preparation`]."""

    @classmethod
    def of(cls, model: EvoTokVQModel, image_processor: Any, source: str = "") -> "ShardInfo":
        """Builds the properties of the codes that an image tokenizer writes. Its whole encoder is hashed, which takes
        seconds for a large one."""
        shape = model.config.num_positions, model.config.num_pixel_codebooks
        return cls(tokenizer_hash(model), *shape, source, preparation=image_preparation(image_processor))

    @property
    def origin(self) -> tuple:
        """Returns the fields that must be equal for two shards to be used together."""
        return self.tokenizer, self.positions, self.levels, self.preparation

    @classmethod
    def read(cls, path: str | Path) -> "ShardInfo":
        """Reads the metadata of a shard.

        Raises:
            ValueError: not a code shard, or a damaged one.
        """
        try:
            metadata = pq.read_schema(path).metadata or {}
        except pa.ArrowException:
            metadata = None
        if metadata is not None and metadata.get(b"format") != FORMAT.encode():
            raise ValueError(f"{path}: not a code shard: give a folder that `evotok encode-dataset` wrote.")
        try:
            info = cls(**json.loads((metadata or {})[b"info"]))
            check_types(vars(info), get_type_hints(cls), str(path))
        except (KeyError, TypeError, ValueError, RecursionError):
            raise ValueError(f"{path}: incomplete or damaged code shard: remove it and encode again.") from None
        return info


class ShardWriter:
    """Writes one shard; the file appears when it is closed.

    Args:
        path: of the shard.
        info: of its codes; `skipped` is given to `close`.
    """

    def __init__(self, path: str | Path, info: ShardInfo):
        self.path, self.info = Path(path), info
        size = 2 * info.positions * info.levels
        self.schema = pa.schema([("key", pa.string()), ("caption", pa.string()), ("codes", pa.binary(size))])
        self.tables: list[pa.Table] = []

    def write(self, keys: list[str], captions: list[str], codes: np.ndarray) -> None:
        """Adds images.

        Args:
            keys: of each image.
            captions: of each image.
            codes: (I, N, L) of any integer type.

        Raises:
            ValueError: codes of another shape than in `info`, or that do not fit into 16 bits.
        """
        if codes.shape != (len(keys), self.info.positions, self.info.levels):
            raise ValueError(f"codes of shape {codes.shape}, not {(len(keys), self.info.positions, self.info.levels)}.")
        if codes.size and not 0 <= codes.min() <= codes.max() <= 0xFFFF:
            raise ValueError(f"codes run from {codes.min()} to {codes.max()}: 16 bits hold 0 to 65,535.")
        rows = [row.tobytes() for row in codes.astype("<u2")]
        self.tables.append(pa.Table.from_arrays([keys, captions, rows], schema=self.schema))

    def close(self, skipped: int) -> None:
        """Writes the file."""
        info = asdict(self.info) | {"skipped": skipped}
        schema = self.schema.with_metadata({"format": FORMAT, "info": json.dumps(info)})
        table = pa.concat_tables([schema.empty_table(), *(table.cast(schema) for table in self.tables)])
        with atomic_file(self.path) as part:
            pq.write_table(table, part, compression="zstd", use_dictionary=False, row_group_size=_ROWS_A_GROUP)


def open_codes(folder: str | Path) -> tuple[Rows, ShardInfo]:
    """Opens a folder of shards as rows `{"key", "caption", "codes"}`, codes as bytes; returns also their properties.

    Raises:
        ValueError: no shard, a damaged one, or shards of more than one tokenizer or shape.
    """
    paths = sorted(Path(folder).glob("*.parquet"))
    if not paths:
        raise ValueError(f"{folder}: no code shards (*.parquet): give a folder that `evotok encode-dataset` wrote.")
    infos = [ShardInfo.read(path) for path in paths]
    first = infos[0]
    for path, info in zip(paths, infos, strict=True):
        if info.origin != first.origin:
            raise ValueError(
                f"{path}: written by another tokenizer than {paths[0].name}, or from images prepared in another "
                "way: use one folder for each."
            )
    return Rows([str(path) for path in paths], read_parquet), first


def code_row(row: dict, info: ShardInfo) -> dict:
    """Converts a row of a shard to one for the collator, with codes (1, N, L) instead of the generated image."""
    codes = np.frombuffer(row["codes"], "<u2").reshape(1, info.positions, info.levels)
    return generation_row(row["key"], row["caption"], row["codes"]) | {"images": [], "codes": codes}


def check_tokenizer(info: ShardInfo, expected: ShardInfo, where: str) -> None:
    """Checks that code shards were written with this model's tokenizer.

    Raises:
        ValueError: another tokenizer, another number of levels, or images prepared in another way.
    """
    if info.tokenizer != expected.tokenizer:
        raise ValueError(
            f"{where}: codes by the tokenizer {info.tokenizer[:12]}, but this model's is {expected.tokenizer[:12]}: "
            "encode the images again, or start from the checkpoint they were encoded with."
        )
    if info.levels != expected.levels:
        raise ValueError(
            f"{where}: codes of {info.levels} levels, but this model generates {expected.levels}: encode the images "
            "again."
        )
    other = [name for name, value in expected.preparation.items() if info.preparation.get(name) != value]
    if other:
        theirs, ours = (json.dumps({name: made.preparation.get(name) for name in other}) for made in (info, expected))
        raise ValueError(
            f"{where}: codes of images prepared with {theirs}, but this model's are with {ours}: encode the images "
            "again, or start from the checkpoint they were encoded with."
        )
