"""Pictures of a benchmark's prompts in a folder, each generated once, whoever generates it.

The seed of a picture depends on its place in the list of pictures and the options alone: so a run that was cut off, one
of many processes, and servers that run the model generate what one process does.
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
from ..suite import Evaluation, SuiteOptions
from .retrieval import generate_images


DRAWN = "drawn.json"
SERVED_AT_ONCE = 8
"""Pictures asked of servers between two steps of the progress bar, for each request that they have open."""
_SETTINGS = ("seed", "guidance_scale", "guidance_min_p")
_FORMATS = {".png": {"format": "PNG"}, ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0}}


@dataclass
class DrawingOptions(SuiteOptions):
    """What a suite that generates pictures can be told."""

    images: int = 4
    """Pictures of each prompt."""
    guidance_scale: float = 7.5
    """Weight of the prompt, the paper's by default; 1: no guidance."""
    guidance_min_p: float | None = None
    """Least probability, as a share of the best code's, from which on guidance may choose a code; the checkpoint's own
    when left out."""
    engine: str | None = None
    """Addresses of servers that run the checkpoint (`evotok serve`), with commas between them, to generate the pictures
    by; in this process when left out."""

    def __post_init__(self):
        super().__post_init__()
        if self.images < 1:
            raise ValueError(f"images={self.images} must be at least 1.")
        if self.guidance_scale < 0:
            raise ValueError(f"guidance_scale={self.guidance_scale} must be 0 or more.")
        if self.guidance_min_p is not None and not 0 <= self.guidance_min_p <= 1:
            raise ValueError(f"guidance_min_p={self.guidance_min_p} must be between 0 and 1.")


@dataclass(frozen=True)
class Wanted:
    """A picture to draw."""

    prompt: str
    file: str
    """Its place in the folder; the suffix says the format, `.png` or `.jpeg`."""


def draw_missing(evaluation: Evaluation, wanted: Mapping[str, Sequence[Wanted]]) -> str:
    """Draw what folders of the results lack, all processes together; the model is loaded if there is anything to draw.

    The sampling values are the checkpoint's own but for `guidance_scale`. Pictures of another checkpoint, of other
    prompts or options go first: whoever asks for them anew has said `--restart`.

    Args:
        wanted: name of the folder -> pictures in it.

    Returns:
        In what precision they were drawn, now or earlier; more than one, if a run went on elsewhere.

    Raises:
        ValueError: a folder is not ours, or a picture in it cannot be read; nothing has been drawn then.
    """
    options, workers = evaluation.options, evaluation.workers
    folders = {evaluation.folder / name: pictures for name, pictures in wanted.items()}
    if workers.is_main:
        for folder, pictures in folders.items():
            _prepare(folder, pictures, evaluation)
    workers.wait()
    missing = []
    for folder, pictures in folders.items():
        check_pictures(folder / picture.file for picture in pictures if (folder / picture.file).exists())
        for index, picture in enumerate(pictures):
            if not (folder / picture.file).exists():
                missing.append(Order(picture.prompt, picture_seed(options.seed, index), folder / picture.file))
    workers.wait()  # until all have looked
    if missing:
        _draw(evaluation, missing, list(folders))
    return ", ".join(sorted({dtype for folder in folders for dtype in _read_note(folder).get("dtypes", [])}))


class Order(NamedTuple):
    """A picture that is missing."""

    prompt: str
    seed: int
    path: Path


def _draw(evaluation: Evaluation, missing: Sequence[Order], folders: Sequence[Path]) -> None:
    """Generates pictures, in this process or by servers."""
    options, workers = evaluation.options, evaluation.workers
    sampling = {"guidance_scale": options.guidance_scale, "guidance_min_p": options.guidance_min_p}
    if evaluation.servers is not None:
        size, dtype = SERVED_AT_ONCE * evaluation.servers.at_once, "served"

        def draw(batch: Sequence[Order]) -> None:
            values = {name: value for name, value in sampling.items() if value is not None}
            orders = [(order.prompt, order.seed) for order in batch]
            for index, image in evaluation.servers.generate_images(orders, **values):
                save_whole(image, batch[index].path)
    else:
        model, processor = evaluation.load()
        size, dtype = options.batch_size, str(model.dtype).removeprefix("torch.")

        def draw(batch: Sequence[Order]) -> None:
            prompts, seeds = [order.prompt for order in batch], [order.seed for order in batch]
            pixels = generate_images(model, processor, prompts, batch_size=size, seeds=seeds, **sampling)
            for image, order in zip(processor.post_process_image_generation(pixels), batch, strict=True):
                save_whole(image, order.path)

    if workers.is_main:
        for folder in folders:
            note = _read_note(folder)
            _write_note(folder, note | {"dtypes": sorted({*note.get("dtypes", []), dtype})})
    workers.map(draw, [missing[start : start + size] for start in range(0, len(missing), size)], "pictures")
    workers.wait()


def picture_seed(seed: int, index: int) -> int:
    """Of a picture's generator: neighbours share nothing."""
    return random.Random(f"{seed}/{index}").getrandbits(63)


def save_whole(image: Image.Image, path: Path) -> None:
    """Write a picture that appears under its name when it is complete."""
    with atomic_file(path) as part:
        image.save(part, **_FORMATS[path.suffix])


def check_pictures(paths: Iterable[Path]) -> None:
    """Raises ValueError for the first file that is no picture."""
    for path in paths:
        try:
            load_image(path)
        except EvoTokImageError as error:
            raise ValueError(f"{error} Or remove it, and it is drawn again.") from None


def _prepare(folder: Path, wanted: Sequence[Wanted], evaluation: Evaluation) -> None:
    """A folder for pictures of this checkpoint, these prompts and options, with those that it has already."""
    listed = json.dumps([[picture.prompt, picture.file] for picture in wanted])
    settings = {name: getattr(evaluation.options, name) for name in _SETTINGS}
    settings["checkpoint_sha256"] = evaluation.checkpoint_sha256
    # The other sampling values are among these.
    settings["checkpoint_settings"] = evaluation.files.get("checkpoint_settings")
    settings["pictures_sha256"] = hashlib.sha256(listed.encode()).hexdigest()
    note = _read_note(folder)
    if {name: value for name, value in note.items() if name != "dtypes"} == settings:
        return
    if folder.exists():
        if not (folder / DRAWN).is_file() and any(folder.iterdir()):
            raise ValueError(f"{folder}: has files, but no {DRAWN}: move them elsewhere, pictures are drawn here.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    _write_note(folder, settings)


def _read_note(folder: Path) -> dict[str, Any]:
    """What pictures of a folder were drawn from, and in what precision; nothing if that is not known."""
    try:
        note = json.loads((folder / DRAWN).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


def _write_note(folder: Path, note: dict[str, Any]) -> None:
    with atomic_file(folder / DRAWN) as part:
        part.write_text(json.dumps(note) + "\n", encoding="utf-8")


# --- GenEval's layout ------------------------------------------------------------------------------------------------


def in_numbered_folders(prompts: Sequence[str], images: int) -> list[Wanted]:
    """Pictures of all prompts as GenEval lays them out: `00000/samples/0000.png`."""
    return [
        Wanted(prompt, f"{index:05d}/samples/{copy:04d}.png")
        for index, prompt in enumerate(prompts)
        for copy in range(images)
    ]


def write_metadata(folder: Path, records: Sequence[dict[str, Any]]) -> None:
    """`00000/metadata.jsonl` and so on, beside the pictures, for scorers that read GenEval's layout."""
    for index, record in enumerate(records):
        path = folder / f"{index:05d}" / "metadata.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record) + "\n", encoding="utf-8")
