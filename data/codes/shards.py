"""Images as codes on a disk: parquet shards that one tokenizer wrote once, and every later stage reads.

A shard has the columns `key` and `caption` (text) and `codes`, (N * L) little-endian uint16, N positions by the L
levels that pictures are drawn from: 2,048 bytes an image at the paper's 256 x 4. What no row repeats is in the schema's
metadata: format, shape, fingerprint of the tokenizer, how images were prepared, source, number of images skipped.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ..atomic_files import whole_file
from ..sources.parquet import read_parquet
from ..sources.rows import Rows
from ..sources.source import to_draw
from ..yaml_files import check_types
from .fingerprint import fingerprint, preparation


FORMAT = "evotok-code-shard-1"
_ROWS_A_GROUP = 4096


@dataclass(frozen=True)
class ShardInfo:
    """What holds for all codes of a shard."""

    tokenizer: str
    """`fingerprint` of the tokenizer."""
    positions: int
    levels: int
    source: str = ""
    skipped: int = 0
    """Images of the source that could not be read."""
    preparation: dict[str, Any] = field(default_factory=dict)
    """`preparation` of the image processor."""

    @classmethod
    def of(cls, model: EvoTokVQModel, image_processor: Any, source: str = "") -> "ShardInfo":
        """What holds for the codes that this tokenizer writes. All of its encoder is hashed: ask once."""
        shape = model.config.num_positions, model.config.num_pixel_codebooks
        return cls(fingerprint(model), *shape, source, preparation=preparation(image_processor))

    @property
    def maker(self) -> tuple:
        """Codes of equal maker mean the same, and come from equal pictures."""
        return self.tokenizer, self.positions, self.levels, self.preparation

    @classmethod
    def read(cls, path: str | Path) -> "ShardInfo":
        """From a shard's metadata.

        Raises:
            ValueError: not a shard of codes, or a damaged one.
        """
        try:
            metadata = pq.read_schema(path).metadata or {}
        except pa.ArrowException:
            metadata = None
        if metadata is not None and metadata.get(b"format") != FORMAT.encode():
            raise ValueError(f"{path}: not a shard of codes. `evotok encode-dataset` writes them.")
        try:
            info = cls(**json.loads(metadata[b"info"]))
            check_types(vars(info), get_type_hints(cls), str(path))
        except (KeyError, TypeError, ValueError, RecursionError):
            raise ValueError(f"{path}: not a whole shard of codes: remove it and encode again.") from None
        return info


class ShardWriter:
    """Writes one shard, row group by row group; it takes its name when closed without an error.

    Args:
        path: of the shard.
        info: what holds for all of it; `skipped` is known at the end, and given to `close`.
    """

    def __init__(self, path: str | Path, info: ShardInfo):
        self.path, self.info = Path(path), info
        size = 2 * info.positions * info.levels
        self.schema = pa.schema([("key", pa.string()), ("caption", pa.string()), ("codes", pa.binary(size))])
        self.tables: list[pa.Table] = []

    def write(self, keys: list[str], captions: list[str], codes: np.ndarray) -> None:
        """Add images: codes (I, N, L) of any integer type.

        Raises:
            ValueError: codes of another shape than `info` says, or that do not fit 16 bits.
        """
        if codes.shape != (len(keys), self.info.positions, self.info.levels):
            raise ValueError(f"codes of shape {codes.shape}, not {(len(keys), self.info.positions, self.info.levels)}.")
        if codes.size and not 0 <= codes.min() <= codes.max() <= 0xFFFF:
            raise ValueError(f"codes run from {codes.min()} to {codes.max()}: 16 bits hold 0 to 65,535.")
        rows = [row.tobytes() for row in codes.astype("<u2")]
        self.tables.append(pa.Table.from_arrays([keys, captions, rows], schema=self.schema))

    def close(self, skipped: int) -> None:
        """Write the file and give it its name."""
        info = asdict(self.info) | {"skipped": skipped}
        schema = self.schema.with_metadata({"format": FORMAT, "info": json.dumps(info)})
        table = pa.concat_tables([schema.empty_table(), *(table.cast(schema) for table in self.tables)])
        with whole_file(self.path) as part:
            pq.write_table(table, part, compression="zstd", use_dictionary=False, row_group_size=_ROWS_A_GROUP)


def open_codes(folder: str | Path) -> tuple[Rows, ShardInfo]:
    """The rows `{"key", "caption", "codes"}` of a folder of shards, codes as bytes, and what holds for all of them.

    Raises:
        ValueError: no shard there, a damaged one, or shards of more than one tokenizer or shape.
    """
    paths = sorted(Path(folder).glob("*.parquet"))
    if not paths:
        raise ValueError(f"{folder}: no shards of codes (*.parquet). `evotok encode-dataset` writes them.")
    infos = [ShardInfo.read(path) for path in paths]
    first = infos[0]
    for path, info in zip(paths, infos, strict=True):
        if info.maker != first.maker:
            raise ValueError(
                f"{path}: by another tokenizer than {paths[0].name}, or of images prepared in another way: keep a "
                "folder for each."
            )
    return Rows([str(path) for path in paths], read_parquet), first


def to_record(row: dict, info: ShardInfo) -> dict:
    """The record of a row: the caption asks, the codes (1, N, L) answer."""
    record = to_draw(row["key"], row["caption"], row["codes"])
    codes = np.frombuffer(row["codes"], "<u2").reshape(1, info.positions, info.levels)
    return record | {"images": [], "codes": codes}


def check_tokenizer(info: ShardInfo, mine: ShardInfo, where: str) -> None:
    """Refuse codes that mean something else to a tokenizer, which would write `mine`.

    Raises:
        ValueError: they were written by another one, have too few levels, or are of images prepared in another way.
    """
    if info.tokenizer != mine.tokenizer:
        raise ValueError(
            f"{where}: codes by the tokenizer {info.tokenizer[:12]}, but this model's is {mine.tokenizer[:12]}: encode "
            "the images again, or start from the checkpoint they were encoded with."
        )
    if info.levels != mine.levels:
        raise ValueError(
            f"{where}: codes of {info.levels} levels, but this model draws {mine.levels}: encode the images again."
        )
    other = [name for name, value in mine.preparation.items() if info.preparation.get(name) != value]
    if other:
        theirs, ours = (json.dumps({name: made.preparation.get(name) for name in other}) for made in (info, mine))
        raise ValueError(
            f"{where}: codes of images prepared with {theirs}, but this model's are with {ours}: encode the images "
            "again, or start from the checkpoint they were encoded with."
        )
