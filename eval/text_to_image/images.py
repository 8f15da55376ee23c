"""Images of prompts in folders of the results: each is generated once, by this process, by others, or by servers.

The seed of an image depends on the options and on its index in the list of images alone: an interrupted run that is
continued, several processes, and servers that run the model generate the images of one process.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ...data.atomic_files import atomic_file
from ...processing.image_loading_evotok import EvoTokImageError, load_image
from ..inference import generate_images
from ..sequences import split_batches
from ..suite import Evaluation, SuiteOptions, require_at_least


NOTE = "drawn.json"
"""File of a folder of images with the settings that they were generated with."""
REQUESTS_PER_STEP = 8
"""Images that servers generate in one step of the progress bar, for each request that they have open."""
_SETTINGS = ("seed", "guidance_scale", "guidance_min_p")
_FORMATS = {".png": {"format": "PNG"}, ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0}}


@dataclass
class GenerationOptions(SuiteOptions):
    """Options of a suite that generates images."""

    images: int = 4
    """Images of each prompt."""
    guidance_scale: float = 7.5
    """Guidance scale, the paper's by default; 1: no guidance."""
    guidance_min_p: float | None = None
    """Least probability of a code that guidance may choose, as a share of the likeliest code's; the checkpoint's own
    when left out."""
    engine: str | None = None
    """Addresses of servers that run the checkpoint (`evotok serve`), separated by commas, which generate the images;
    this process generates them when left out."""

    def __post_init__(self):
        super().__post_init__()
        require_at_least(self, 1, "images")
        if self.guidance_scale < 0:
            raise ValueError(f"guidance_scale={self.guidance_scale} must be 0 or more.")
        if self.guidance_min_p is not None and not 0 <= self.guidance_min_p <= 1:
            raise ValueError(f"guidance_min_p={self.guidance_min_p} must be between 0 and 1.")


@dataclass(frozen=True)
class PlannedImage:
    """Image that is planned for a folder."""

    prompt: str
    file: str
    """Path in the folder; the suffix is the format, `.png` or `.jpeg`."""


class MissingImage(NamedTuple):
    """Planned image that is not there yet."""

    prompt: str
    seed: int
    path: Path


def generate_missing(evaluation: Evaluation, planned: Mapping[str, Sequence[PlannedImage]]) -> str:
    """Generates the planned images that folders of the results lack; all processes call it together.

    The model is loaded where an image is missing. The sampling values are the checkpoint's own but for guidance.
    Images of another checkpoint, of other prompts or of other options are removed first.

    Args:
        planned: name of the folder -> its images.

    Returns:
        Precision that the images were generated in; several, where a run was continued in another one.

    Raises:
        ValueError: a folder with other files, or an image that cannot be read; nothing has been generated then.
    """
    options, workers = evaluation.options, evaluation.workers
    folders = {evaluation.folder / name: images for name, images in planned.items()}
    if workers.is_main:
        for folder, images in folders.items():
            _prepare(folder, images, evaluation)
    workers.wait()
    missing = []
    for folder, images in folders.items():
        check_generated_images(folder / image.file for image in images if (folder / image.file).exists())
        for index, image in enumerate(images):
            if not (folder / image.file).exists():
                missing.append(MissingImage(image.prompt, image_seed(options.seed, index), folder / image.file))
    workers.wait()  # every process has its list before the first image is written
    if missing:
        _generate(evaluation, missing, list(folders))
    return ", ".join(sorted({dtype for folder in folders for dtype in _read_note(folder).get("dtypes", [])}))


def _generate(evaluation: Evaluation, missing: Sequence[MissingImage], folders: Sequence[Path]) -> None:
    """Generates images in this process or by servers, and notes the precision."""
    options, workers = evaluation.options, evaluation.workers
    sampling = {"guidance_scale": options.guidance_scale, "guidance_min_p": options.guidance_min_p}
    if evaluation.servers is not None:
        size, dtype = REQUESTS_PER_STEP * evaluation.servers.at_once, "served"
        given = {name: value for name, value in sampling.items() if value is not None}

        def generate(batch: Sequence[MissingImage]) -> None:
            requests = [(image.prompt, image.seed) for image in batch]
            for index, image in evaluation.servers.generate_images(requests, **given):
                save_image(image, batch[index].path)
    else:
        assert evaluation.load is not None
        model, processor = evaluation.load()
        size, dtype = options.batch_size, str(model.dtype).removeprefix("torch.")

        def generate(batch: Sequence[MissingImage]) -> None:
            prompts, seeds, paths = zip(*batch, strict=True)
            images = generate_images(model, processor, prompts, batch_size=size, seeds=seeds, **sampling)
            for image, path in zip(images, paths, strict=True):
                save_image(image, path)

    if workers.is_main:
        for folder in folders:
            note = _read_note(folder)
            _write_note(folder, note | {"dtypes": sorted({*note.get("dtypes", []), dtype})})
    workers.map(generate, split_batches(missing, size), "images")
    workers.wait()


def image_seed(seed: int, index: int) -> int:
    """Returns the seed of an image's generator; those of neighbours are unrelated."""
    return random.Random(f"{seed}/{index}").getrandbits(63)


def save_image(image: Image.Image, path: Path) -> None:
    """Saves an image in one atomic write, in the format of the suffix."""
    with atomic_file(path) as part:
        image.save(part, **_FORMATS[path.suffix])


def check_generated_images(paths: Iterable[Path]) -> None:
    """Raises ValueError for the first file that cannot be read as an image."""
    for path in paths:
        try:
            load_image(path)
        except EvoTokImageError as error:
            raise ValueError(f"{error} Or remove it, and it is generated again.") from None


def _prepare(folder: Path, images: Sequence[PlannedImage], evaluation: Evaluation) -> None:
    """Creates a folder for images of these settings, or keeps it with the images of the same settings."""
    listed = json.dumps([[image.prompt, image.file] for image in images])
    settings = {name: getattr(evaluation.options, name) for name in _SETTINGS}
    settings["checkpoint_sha256"] = evaluation.checkpoint_sha256
    settings["checkpoint_settings"] = evaluation.files.get("checkpoint_settings")  # the other sampling values
    settings["pictures_sha256"] = hashlib.sha256(listed.encode()).hexdigest()
    note = _read_note(folder)
    if {name: value for name, value in note.items() if name != "dtypes"} == settings:
        return
    if folder.exists():
        if not (folder / NOTE).is_file() and any(folder.iterdir()):
            raise ValueError(f"{folder}: has files, but no {NOTE}: move them elsewhere, images are generated here.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    _write_note(folder, settings)


def _read_note(folder: Path) -> dict[str, Any]:
    """Reads the settings and the precision of a folder's images; an empty dict where they are unknown."""
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


def _write_note(folder: Path, note: dict[str, Any]) -> None:
    with atomic_file(folder / NOTE) as part:
        part.write_text(json.dumps(note) + "\n", encoding="utf-8")
