"""Sets of images to evaluate on: scenes of the embedded world, a folder, a data set of `datasets`; all are cropped to
their middle square."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.constants import HF_HOME
from PIL import Image

from ..processing.image_loading_evotok import EvoTokImageError, load_image
from .errors import reason
from .image_files import IMAGE_SUFFIXES, crop_square, image_files, row_image, to_pixels
from .processes import Workers
from .sequences import pick_evenly
from .world.icons import load_world
from .world.images import held_out_scenes
from .world.phrases import describe
from .world.scenes import render


WORLD = "world:"
WORLD_SCENES = 512
_BLOCK = 64


@dataclass(frozen=True)
class ImageSet:
    """Images by number, read when they are needed."""

    name: str
    names: Sequence[str]
    """Name of each image, for messages."""
    read: Callable[[int], Any]
    """Number of an image -> anything that `load_image` opens."""

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int, size: int) -> Image.Image:
        """Reads the middle square of an image, RGB, `size` x `size` pixels.

        Raises:
            EvoTokImageError: it cannot be read, or its aspect ratio is too large.
        """
        return crop_square(load_image(self.read(index)), size)

    def pixels(self, indices: Sequence[int], size: int) -> torch.Tensor:
        """Reads images as (B, 3, size, size) float32 in [-1, 1]."""
        return torch.stack([to_pixels(self.image(index, size)) for index in indices])

    def limited(self, count: int | None) -> "ImageSet":
        """Selects `count` evenly spaced images; all of them when None."""
        kept = pick_evenly(range(len(self)), count)
        return replace(self, names=[self.names[i] for i in kept], read=lambda index: self.read(kept[index]))


class ReadableImages(NamedTuple):
    """Result of [`check_images`]."""

    indices: list[int]
    """Numbers of the images that can be read."""
    unreadable: dict[str, str]
    """Name -> reason of those that cannot."""
    sha256: str
    """Of the pixels of all that can."""


def open_images(data: str, split: str = "validation", column: str = "") -> ImageSet:
    """Opens a set of images; none of them is decoded yet.

    Args:
        data: `world:<split>`, scenes with the icons of train, val or test; a folder with images, in subfolders or not;
            a data set of the Hub; or a folder with a data set, saved by `datasets` or in files that it reads.
        split: of a data set.
        column: of a data set; the first column of images when empty.

    Raises:
        ValueError: no such data, or no images in it.
    """
    if data.startswith(WORLD):
        return _world_images(data.removeprefix(WORLD))
    paths = image_files(data) if Path(data).is_dir() else []
    return folder_images(data, paths) if paths else _dataset_images(data, split, column)


def folder_images(name: str, paths: Sequence[Path]) -> ImageSet:
    """Builds a set of image files."""
    return ImageSet(name, [str(path) for path in paths], lambda index: paths[index])


def _world_images(split: str) -> ImageSet:
    world = load_world()
    scenes = held_out_scenes(world, split, WORLD_SCENES)
    names = [f"{split} {number}: {describe(world, scene)}" for number, scene in enumerate(scenes)]
    return ImageSet(f"{WORLD}{split}", names, lambda index: Image.fromarray(render(world, scenes[index])))


def _dataset_images(data: str, split: str, column: str) -> ImageSet:
    from datasets import Image as ImageFeature
    from datasets import load_dataset, load_from_disk

    folder = Path(data)
    try:
        if (folder / "state.json").is_file():
            rows = load_from_disk(data)
        elif (folder / "dataset_dict.json").is_file():
            rows = load_from_disk(data)[split]
        else:
            rows = load_dataset(data, split=split)
    except Exception as error:  # noqa: BLE001 - no such data set, offline, no such split: the correction is the same
        raise ValueError(
            f"{data!r}: neither a folder with images ({', '.join(sorted(IMAGE_SUFFIXES))}) nor a data set with a split "
            f"{split!r} ({reason(error, 160)}): correct data= or split=."
        ) from None
    of_images = [name for name, feature in rows.features.items() if isinstance(feature, ImageFeature)]
    column = column or next(iter(of_images), "")
    if column not in of_images:
        raise ValueError(
            f"{data}: {column!r} is no column of images: set column= to one of {', '.join(of_images) or 'another set'}."
        )
    if not len(rows):
        raise ValueError(f"{data}: split {split!r} has no rows: give another one.")
    rows = rows.select_columns(column).cast_column(column, ImageFeature(decode=False))
    # Rows of the Hub may name files that `datasets` has fetched.
    folder = folder if folder.is_dir() else Path(HF_HOME)

    def read(index: int) -> dict | str:
        try:
            return row_image(rows[index][column], folder)
        except ValueError as error:
            raise EvoTokImageError(f"{error}.") from None

    return ImageSet(data, [f"{data}[{index}]" for index in range(len(rows))], read)


def check_images(images: ImageSet, size: int, workers: Workers) -> ReadableImages:
    """Decodes and crops every image once, so that unreadable ones are known before a long evaluation begins.

    Raises:
        ValueError: none of them can be read.
    """

    def check(index: int) -> tuple[str, str]:
        try:
            return hashlib.sha256(images.image(index, size).tobytes()).hexdigest(), ""
        except EvoTokImageError as error:
            return "", str(error)

    blocks = [range(start, min(start + _BLOCK, len(images))) for start in range(0, len(images), _BLOCK)]
    found = list(chain(*workers.map(lambda block: [check(index) for index in block], blocks, "reading images")))
    unreadable = {images.names[index]: why for index, (digest, why) in enumerate(found) if not digest}
    if len(unreadable) == len(found):
        raise ValueError(
            f"{images.name}: none of its {len(found)} images can be read ({found[0][1]}): give other images."
        )
    readable = [index for index, (digest, _) in enumerate(found) if digest]
    content = "\n".join([str(size), *(digest for digest, _ in found if digest)])
    return ReadableImages(readable, unreadable, hashlib.sha256(content.encode()).hexdigest())
