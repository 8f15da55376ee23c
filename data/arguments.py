"""The section `data` of a recipe: a data set, or a mixture of sources."""

import reprlib
from dataclasses import dataclass, field
from typing import Any

from .yaml_files import build_section


@dataclass
class SourceArguments:
    """One source of a mixture."""

    source: str
    """A name of `data/sources/`, or `codes` for code shards written by `evotok encode-dataset`."""
    path: str | None = None
    """Its folder, or a Hub id; the published data set when left out."""
    image_folder: str | None = None
    """Folder of its images, if not `path`."""
    weight: float | int | None = None
    """How often it is sampled, relative to the other sources; the source's own weight when left out."""


@dataclass
class DataArguments:
    """The data of a training."""

    name: str = "world"
    """`world` (the embedded one), `folder` (images, for the tokenizer), `llava` (JSON or JSONL in LLaVA's format), or
    `mixture`."""
    path: str | None = None
    """Folder of images, LLaVA file, or folder of the world's icons."""
    sources: list[SourceArguments] = field(default_factory=list)
    """Sources of a `mixture`, streamed without end: `training.max_steps` is required."""
    pool_batches: int = 32
    """Batches that each reader of a mixture shuffles and sorts by length at once."""
    image_folder: str | None = None
    """Folder of the images of a LLaVA file; its own folder when left out."""
    mixture: dict[str, float | int] = field(default_factory=dict)
    """Weights of the kinds of rows (world)."""
    block: int = 1
    """Consecutive rows of one form: images to generate, questions in keywords, or other texts (world). Such batches
    need little padding. Use it with `training.train_sampling_strategy: sequential`."""
    caption_dropout: float = 0.0
    """Share of text-to-image rows whose prompt is emptied, for classifier-free guidance."""
    code_noise: float = 0.0
    """Mean share of an image's positions whose input codes are replaced by another image's in training, so that the
    prompt is used; 0.5 at most (gen stage)."""
    max_length: int = 2048
    """Maximum number of tokens of a row, image positions included."""
    sample_prompts: list[str] = field(default_factory=list)
    """Prompts whose images are generated as one PNG at every save (gen stage)."""
    validation_path: str | None = None
    """Folder of validation images, subfolders included, measured every `training.eval_steps` (tokenizer stage); the
    embedded world has held-out icon families for that."""
    validation_samples: int = 1000
    """Maximum number of validation images, evenly picked."""


def build_sources(given: Any, where: str) -> list[SourceArguments]:
    """Builds the sources of a mixture from the list of a recipe.

    Raises:
        ValueError: not a list, a source without name, or a weight that is not above 0.
    """
    if not isinstance(given, list):
        raise ValueError(f"{where}: data.sources is a list of sources, each with `source` and maybe `path`, `weight`.")
    for source in given:
        if not isinstance(source, dict) or "source" not in source:
            raise ValueError(f"{where}: data.sources: {reprlib.repr(source)} has no `source`, the name of one.")
    sources = [build_section(SourceArguments, source, f"{where}: data.sources") for source in given]
    for source in sources:
        if source.weight is not None and not source.weight > 0:
            raise ValueError(f"{where}: data.sources: weight {source.weight} of {source.source} is not above 0.")
    return sources
