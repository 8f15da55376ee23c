"""What an adapter is, and how rows lie on a disk or on the hub: parquet, webdataset tars, JSON beside images, images.

Nothing is decoded here: images stay paths or bytes, so that one corrupt file costs one sample in the collator.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, Features, IterableDataset, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from ..conversations import convert_turns, read_json_records, resolve_image


# Shards that a JSON file is cut into: as many readers may share it without skipping.
_JSON_SHARDS = 256
_IMAGES_A_SHARD = 10_000


@dataclass(frozen=True)
class Source:
    """One named data set.

    Args:
        name: as a recipe writes it.
        hub_id: where it is published.
        kind: `parquet` and `webdataset` are streamed from the hub or a folder; `json` needs a folder with the file
            and the images beside it, unpacked; `images` is a folder of nothing else.
        files: glob patterns of its files below the folder.
        convert: (row, folder of the images) -> record; raises `ValueError` or `KeyError` for a row that is none.
        task: `understanding` answers about images, `generation` draws them, `images` has no text worth learning.
        num_samples: rows, as published.
        num_bytes: of all files, roughly where the card does not say; for planning.
        weight: how often it is drawn beside the others of its stage: the millions of rows of its share.
        licence: what its card says; the rights to the images are often somebody else's.
        preferences: its records also have `rejected`, a worse last answer: for the dpo stage.
    """

    name: str
    hub_id: str
    kind: Literal["parquet", "webdataset", "json", "images"]
    files: tuple[str, ...]
    convert: Callable[[dict, Path | None], dict]
    task: Literal["understanding", "generation", "images"]
    num_samples: int
    num_bytes: int
    weight: float
    licence: str
    preferences: bool = False

    def open(self, path: str | None = None, image_folder: str | None = None) -> tuple[IterableDataset, Path | None]:
        """The rows as a stream, and the folder that image names are looked up in.

        Args:
            path: a folder, or a hub id; the published one when left out.
            image_folder: where the images of a `json` source lie; its folder when left out.

        Raises:
            ValueError: no such folder, none of the files in it, or a `json` source that is not on a disk.
        """
        path = path or self.hub_id
        if not path:
            raise ValueError(f"{self.name}: set `path` to the folder that it lies in.")
        folder = Path(path)
        if not folder.is_dir():
            if not self.hub_id:
                raise ValueError(f"{self.name}: no folder {path!r}: set `path` of the source to one.")
            if self.kind == "json" or path.count("/") != 1 or path.startswith((".", "/", "~")):
                raise ValueError(
                    f"{self.name}: no folder {path!r}: download https://huggingface.co/datasets/{self.hub_id}, unpack "
                    "it, and set `path` of the source."
                )
            patterns = [f"hf://datasets/{path}/{pattern}" for pattern in self.files]
            return load_dataset(self.kind, data_files=patterns, split="train", streaming=True).decode(False), None
        paths = sorted({found for pattern in self.files for found in folder.glob(pattern) if found.is_file()})
        if not paths:
            raise ValueError(f"{self.name}: {path} holds none of {', '.join(self.files)}: is it the right folder?")
        images = Path(image_folder) if image_folder else folder
        if self.kind == "images":
            # In a folder neighbours are alike, and a pool is far smaller than most folders.
            random.Random(0).shuffle(paths)
            rows = Dataset.from_dict({"path": [str(found) for found in paths]})
            return rows.to_iterable_dataset(num_shards=-(-len(rows) // _IMAGES_A_SHARD)), images
        if self.kind == "json":
            return _open_json(paths), images
        rows = load_dataset(self.kind, data_files=[str(found) for found in paths], split="train", streaming=True)
        return rows.decode(False), images


def _open_json(paths: list[Path]) -> IterableDataset:
    # Kept as text: columns of such files change their type from row to row. Memory-mapped, so that many readers share
    # one copy and resume in no time. The stamps are there so that an edited file is not answered from the cache.
    stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    if next(_json_lines(stamps), None) is None:
        raise ValueError(f"{', '.join(map(str, paths))}: no records in it.")
    try:
        rows = Dataset.from_generator(_json_lines, Features({"json": Value("string")}), gen_kwargs={"stamps": stamps})
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise
    return rows.to_iterable_dataset(num_shards=min(_JSON_SHARDS, len(rows)))


def _json_lines(stamps: list[tuple]) -> Iterator[dict[str, str]]:
    for path, *_ in stamps:
        for _, record in read_json_records(Path(path)):
            yield {"json": json.dumps(record, ensure_ascii=False)}


def json_row(row: dict) -> dict[str, Any]:
    """The row of a `json` source."""
    record = json.loads(row["json"])
    if not isinstance(record, dict):
        raise ValueError(f"a row is an object, not {type(record).__name__}")
    return record


def to_draw(identity: Any, caption: Any, image: Any, given: tuple | list = ()) -> dict:
    """The record of a picture to be drawn: the caption asks, after the images `given`, and `image` answers."""
    if isinstance(caption, (list, tuple)):
        caption = next((text for text in caption if text), None)
    if not isinstance(caption, str) or not caption.strip():
        raise ValueError("no caption")
    if not image:
        raise ValueError("no image")
    question = [{"type": "image", "text": None} for _ in given] + [{"type": "text", "text": caption.strip()}]
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": [{"type": "image", "text": None}]},
    ]
    return {"id": str(identity), "messages": messages, "images": [*given, image]}


def to_answer(identity: Any, turns: Any, images: list) -> dict:
    """The record of a conversation in LLaVA's turns, `[{"from", "value"}]`, about images or about none.

    Where turns hold fewer `<image>` marks than there are images, as old files do, the marks that lack go first.
    """
    return {"id": str(identity), "messages": convert_turns(turns, len(images)), "images": images}


def named_images(names: Any, folder: Path | None) -> list[str]:
    """Paths of the images a JSON row names: none, one or a list."""
    if not names:
        return []
    if folder is None:
        raise ValueError("image names but no folder")
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("image names are a text or a list of texts")
    return [resolve_image(folder, name) for name in names]


__all__ = ["Source", "json_row", "named_images", "to_answer", "to_draw"]
