"""Sets of images to measure on: scenes of the embedded world, a folder, a data set of `datasets`.

One crop for all of them: the shorter side resized to the size wanted (Pillow's bicubic filter, which is antialiased),
and of the longer side the middle.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub.constants import HF_HOME
from PIL import Image

from ..processing.image_loading_evotok import EvoTokImageError, load_image
from .image_files import IMAGE_SUFFIXES, crop_square, embedded_image, image_files
from .processes import Workers
from .world.drawings import World, load_world
from .world.images import held_out_scenes, to_pixels
from .world.phrases import describe
from .world.scenes import render


WORLD = "world:"
WORLD_SCENES = 512
MAX_ASPECT = 20.0  # a longer strip would have to be blown up to many times its size
_BLOCK = 64


@dataclass(frozen=True)
class ImageSet:
    """Images by number, opened when they are looked at."""

    name: str
    names: Sequence[str]
    """Of each image, for messages."""
    read: Callable[[int], Any]
    """Number -> whatever `load_image` opens."""

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int, size: int) -> Image.Image:
        """RGB picture of `size` x `size`.

        Raises:
            EvoTokImageError: it cannot be read, or is a strip.
        """
        image = load_image(self.read(index))
        if max(image.size) > MAX_ASPECT * min(image.size):
            raise EvoTokImageError(f"{image.width} x {image.height} is too long a strip: crop it.")
        return crop_square(image, size, (0.5, 0.5))

    def pixels(self, indices: Sequence[int], size: int) -> torch.Tensor:
        """Images as (B, 3, size, size) float32 in [-1, 1]."""
        return torch.stack([to_pixels(np.asarray(self.image(index, size))) for index in indices])


class Readable(NamedTuple):
    """What `look_through` found: numbers of the images that can be read, name -> reason of those that cannot, and a
    fingerprint of all pixels read."""

    indices: list[int]
    unreadable: dict[str, str]
    sha256: str


def open_images(data: str, split: str = "validation", column: str = "") -> ImageSet:
    """A set of images, none of them decoded yet.

    Args:
        data: `world:<split>`, scenes of the icon families of train, val or test; a folder, whose images may lie in
            folders of their own, as those of ImageNet do; a data set of the Hub; or a folder with one, saved or in
            files that `datasets` reads.
        split: of a data set.
        column: of a data set; the first one of images when empty.

    Raises:
        ValueError: no such thing, or no images in it.
    """
    if data.startswith(WORLD):
        return world_images(load_world(), data.removeprefix(WORLD))
    paths = image_files(data) if Path(data).is_dir() else []
    return folder_images(data, paths) if paths else _dataset_images(data, split, column)


def world_images(world: World, split: str, count: int = WORLD_SCENES) -> ImageSet:
    """Scenes of solid drawings of a split, always the same.

    Raises:
        ValueError: unknown split.
    """
    scenes = held_out_scenes(world, split, count)
    names = [f"{split} {number}: {describe(world, scene)}" for number, scene in enumerate(scenes)]
    return ImageSet(f"{WORLD}{split}", names, lambda index: Image.fromarray(render(world, scenes[index])))


def folder_images(name: str, paths: Sequence[Path]) -> ImageSet:
    """Files."""
    return ImageSet(name, [str(path) for path in paths], lambda index: paths[index])


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
    except Exception as error:  # noqa: BLE001 - no such thing, offline, no such split: the mend is the same
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"{data!r}: neither a folder with images ({', '.join(sorted(IMAGE_SUFFIXES))}) nor a data set with a split "
            f"{split!r} ({reason}): correct data= or split=."
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
            return embedded_image(rows[index][column], folder)
        except ValueError as error:
            raise EvoTokImageError(f"{error}.") from None

    return ImageSet(data, [f"{data}[{index}]" for index in range(len(rows))], read)


def limited(images: ImageSet, limit: int | None) -> ImageSet:
    """`limit` images from all over the set; all of them where there are no more."""
    if limit is None or limit >= len(images):
        return images
    kept = [index * len(images) // limit for index in range(limit)]
    return replace(images, names=[images.names[i] for i in kept], read=lambda index: images.read(kept[index]))


def look_through(images: ImageSet, size: int, workers: Workers) -> Readable:
    """Decode and crop every image once, so that all that is wrong with them is known before anything long begins.

    Raises:
        ValueError: not one of them can be read.
    """

    def examine(index: int) -> tuple[str, str]:
        try:
            return hashlib.sha256(images.image(index, size).tobytes()).hexdigest(), ""
        except EvoTokImageError as error:
            return "", str(error)

    blocks = [range(start, min(start + _BLOCK, len(images))) for start in range(0, len(images), _BLOCK)]
    found = list(chain(*workers.map(lambda block: [examine(index) for index in block], blocks, "reading images")))
    unreadable = {images.names[index]: reason for index, (digest, reason) in enumerate(found) if not digest}
    if len(unreadable) == len(found):
        raise ValueError(f"{images.name}: none of its {len(found)} images can be read ({found[0][1]})")
    readable = [index for index, (digest, _) in enumerate(found) if digest]
    content = "\n".join([str(size), *(digest for digest, _ in found if digest)])
    return Readable(readable, unreadable, hashlib.sha256(content.encode()).hexdigest())
