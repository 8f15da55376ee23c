"""Data sources: where the rows of a data set are, in a folder or on the Hub, and how a row is converted."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfFileSystem

from ..conversations import check_length, convert_messages
from ..errors import reason
from ..image_files import resolve_file
from .parquet import read_parquet
from .rows import Rows, image_rows, json_rows
from .tars import read_tar


_READ = {"parquet": read_parquet, "webdataset": read_tar}


@dataclass(frozen=True)
class Source:
    """One named data set.

    Args:
        name: in recipes.
        hub_id: on the Hub; empty for data of the user.
        kind: `parquet` and `webdataset` are streamed from the Hub or a folder; `json` needs a folder with the file and
            the unpacked images; `images` is a folder of images.
        files: glob patterns of its files below the folder.
        convert: (row of the data set, folder of the images) -> row `{"id", "messages", "images"}` for the collators;
            raises `ValueError` or `KeyError` for a row that cannot be converted.
        task: `understanding` answers about images, `generation` generates them, `images` has no useful text.
        num_rows: as published.
        num_bytes: of all files, estimated where the card does not give it; for planning.
        weight: in a mixture, by default: the millions of rows of its share.
        licence: as its card gives it; the rights to the images are often other people's.
        preferences: its rows also have `rejected`, a worse last answer, for the dpo stage.
    """

    name: str
    hub_id: str
    kind: Literal["parquet", "webdataset", "json", "images"]
    files: tuple[str, ...]
    convert: Callable[..., dict]
    task: Literal["understanding", "generation", "images"]
    num_rows: int
    num_bytes: int
    weight: float
    licence: str
    preferences: bool = False

    def open(self, path: str | None = None, image_folder: str | None = None) -> tuple[Rows, Path | None]:
        """Opens the rows; returns them and the folder of the images that they name.

        Args:
            path: a folder, or a Hub id; the published one when left out.
            image_folder: of the images of a `json` source; its folder when left out.

        Raises:
            ValueError: no such folder, none of the files in it, or a `json` source that is not on a disk.
        """
        path = path or self.hub_id
        if not path:
            raise ValueError(f"{self.name}: set `path` to its folder.")
        folder = Path(path)
        if folder.is_dir():
            paths = sorted({found for pattern in self.files for found in folder.glob(pattern) if found.is_file()})
        else:
            paths = self._on_the_hub(path)
        if not paths:
            raise ValueError(f"{self.name}: {path} holds none of {', '.join(self.files)}: check `path`.")
        images = Path(image_folder) if image_folder else folder if folder.is_dir() else None
        if self.kind == "images":
            return image_rows(paths), images
        if self.kind == "json":
            return json_rows([Path(found) for found in paths]), images
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
        except Exception as error:  # noqa: BLE001 - offline, unknown, gated: the correction is the same
            raise ValueError(
                f"{self.name}: no folder {path!r}, and it cannot be listed on the Hub ({reason(error)}): "
                "set `path` to a folder."
            ) from None
        return [f"hf://{name}" for name in sorted(found)]


def parse_json(row: dict) -> dict[str, Any]:
    """Parses the row of a `json` source."""
    parsed = json.loads(row["json"])
    if not isinstance(parsed, dict):
        raise ValueError(f"a row is an object, not {type(parsed).__name__}")
    return parsed


def generation_row(name: Any, caption: Any, image: Any, input_images: tuple | list = ()) -> dict:
    """Builds the row of an image to be generated from a caption and maybe input images.

    Raises:
        ValueError: no caption, one that is too long, or no image.
    """
    if isinstance(caption, (list, tuple)):
        caption = next((text for text in caption if text), None)
    if not isinstance(caption, str) or not caption.strip():
        raise ValueError("no caption")
    if not image:
        raise ValueError("no image")
    check_length(caption)
    prompt = [{"type": "image", "text": None} for _ in input_images] + [{"type": "text", "text": caption.strip()}]
    messages = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": [{"type": "image", "text": None}]},
    ]
    return {"id": str(name), "messages": messages, "images": [*input_images, image]}


def conversation_row(name: Any, llava_messages: Any, images: list) -> dict:
    """Builds the row of a conversation in LLaVA's messages `[{"from", "value"}]`, about images or text alone.

    Raises:
        ValueError: as [`convert_messages`].
    """
    return {"id": str(name), "messages": convert_messages(llava_messages, len(images)), "images": images}


def named_images(names: Any, folder: Path | None) -> list[str]:
    """Resolves the names of images in a JSON row, none, one or a list, to paths below the folder."""
    if not names:
        return []
    if folder is None:
        raise ValueError("image names but no folder")
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("image names are a text or a list of texts")
    return [resolve_file(folder, name) for name in names]
