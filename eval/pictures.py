"""Pictures of a benchmark's prompts in a folder, each drawn once, whoever draws it.

A batch is what is drawn from one generator. Which pictures are in it and how the generator is begun depend on the list
of pictures and the options alone: so a run that was cut off and one of many processes draw what one process draws.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..processing.image_loading_evotok import EvoTokImageError, load_image
from .files import whole_file
from .generation import generate_images
from .suite import Evaluation, SuiteOptions


DRAWN = "drawn.json"
_SETTINGS = ("seed", "batch_size", "guidance_scale", "guidance_min_p")
_FORMATS = {".png": {"format": "PNG"}, ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0}}


@dataclass
class DrawingOptions(SuiteOptions):
    """What a suite that draws can be told; another `batch_size` gives other pictures."""

    images: int = 4
    """Pictures of each prompt."""
    guidance_scale: float = 7.5
    """Weight of the prompt, the paper's by default; 1: no guidance."""
    guidance_min_p: float | None = None
    """Least probability, as a share of the best code's, from which on guidance may choose a code; the checkpoint's own
    when left out."""

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
        for index, start in enumerate(range(0, len(pictures), options.batch_size)):
            batch = pictures[start : start + options.batch_size]
            if not all((folder / picture.file).exists() for picture in batch):
                missing.append((folder, index, batch))
    workers.wait()  # until all have looked
    if missing:
        _draw(evaluation, missing)
    return ", ".join(sorted({dtype for folder in folders for dtype in _read_note(folder).get("dtypes", [])}))


def _draw(evaluation: Evaluation, missing: Sequence[tuple[Path, int, Sequence[Wanted]]]) -> None:
    """Batches, each with its folder and its number there."""
    options, workers = evaluation.options, evaluation.workers
    model, processor = evaluation.load()
    if workers.is_main:
        for folder in {folder for folder, _, _ in missing}:
            note = _read_note(folder)
            dtypes = {*note.get("dtypes", []), str(model.dtype).removeprefix("torch.")}
            _write_note(folder, note | {"dtypes": sorted(dtypes)})

    def draw(item: tuple[Path, int, Sequence[Wanted]]) -> None:
        folder, index, batch = item
        pixels = generate_images(
            model,
            processor,
            [picture.prompt for picture in batch],
            options.guidance_scale,
            options.guidance_min_p,
            batch_size=len(batch),
            seed=batch_seed(options.seed, index),
        )
        for image, picture in zip(processor.post_process_image_generation(pixels), batch, strict=True):
            save_whole(image, folder / picture.file)

    workers.map(draw, missing, "pictures")
    workers.wait()


def batch_seed(seed: int, index: int) -> int:
    """Of the generator of a batch: neighbours share nothing."""
    return random.Random(f"{seed}/{index}").getrandbits(63)


def save_whole(image: Image.Image, path: Path) -> None:
    """Write a picture that appears under its name when it is complete."""
    with whole_file(path) as part:
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
    with whole_file(folder / DRAWN) as part:
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
