"""What an adapter is, and where its rows lie: in a folder or on the hub."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfFileSystem

from ..conversations import check_length, convert_turns
from ..errors import one_line
from ..image_files import resolve_image
from .parquet import read_parquet
from .rows import Rows, image_rows, json_rows
from .tars import read_tar


_READ = {"parquet": read_parquet, "webdataset": read_tar}


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

    def open(self, path: str | None = None, image_folder: str | None = None) -> tuple[Rows, Path | None]:
        """The rows, and the folder that image names are looked up in.

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
        if folder.is_dir():
            paths = sorted({found for pattern in self.files for found in folder.glob(pattern) if found.is_file()})
        else:
            paths = self._on_the_hub(path)
        if not paths:
            raise ValueError(f"{self.name}: {path} holds none of {', '.join(self.files)}: is it the right folder?")
        images = Path(image_folder) if image_folder else folder if folder.is_dir() else None
        if self.kind == "images":
            return image_rows(paths), images
        if self.kind == "json":
            return json_rows(paths), images
        return Rows([str(found) for found in paths], _READ[self.kind]), images

    def _on_the_hub(self, path: str) -> list[str]:
        if not self.hub_id:
            raise ValueError(f"{self.name}: no folder {path!r}: set `path` of the source to one.")
        if self.kind == "json" or path.count("/") != 1 or path.startswith((".", "/", "~")):
            raise ValueError(
                f"{self.name}: no folder {path!r}: download https://huggingface.co/datasets/{self.hub_id}, unpack "
                "it, and set `path` of the source."
            )
        try:
            files = HfFileSystem()
            found = {name for pattern in self.files for name in files.glob(f"datasets/{path}/{pattern}")}
        except Exception as error:  # noqa: BLE001 - offline, unknown, gated: the mend is the same
            raise ValueError(
                f"{self.name}: no folder {path!r}, and the Hub does not give it ({one_line(error)})."
            ) from None
        return [f"hf://{name}" for name in sorted(found)]


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
    check_length(caption)
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
