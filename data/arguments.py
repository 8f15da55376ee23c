"""The section `data` of a recipe: the data set, or a mixture of sources."""

import reprlib
from dataclasses import dataclass, field
from typing import Any

from .yaml_files import build_section


@dataclass
class SourceArguments:
    """One source of a mixture."""

    source: str
    """A name of `data/sources/`, or `codes` for what `evotok encode-dataset` wrote."""
    path: str | None = None
    """Its folder, or a hub id; the published data set when left out."""
    image_folder: str | None = None
    """Where its images lie, if not in `path`."""
    weight: float | int | None = None
    """How often it is drawn beside the others; the source's own weight when left out."""


@dataclass
class DataArguments:
    """What it is trained on."""

    name: str = "world"
    """`world` (the embedded one), `folder` (images, for the tokenizer), `llava` (JSON or JSONL in LLaVA's format), or
    `mixture`."""
    path: str | None = None
    """Folder of images, LLaVA file, or folder of the world's drawings."""
    sources: list[SourceArguments] = field(default_factory=list)
    """What a `mixture` is drawn from, streamed; `training.max_steps` says how long."""
    pool_batches: int = 32
    """Batches' worth of samples that each reader of a mixture shuffles and sorts by length at once."""
    image_folder: str | None = None
    """Where the images of a LLaVA file lie; its own folder when left out."""
    mixture: dict[str, float | int] = field(default_factory=dict)
    """Weights of the kinds of samples (world)."""
    block: int = 1
    """Samples in a row that all generate images, or all answer (world): batches of one form need little padding. With
    `training.train_sampling_strategy: sequential`."""
    caption_dropout: float = 0.0
    """Share of text-to-image samples whose text is emptied, for classifier-free guidance."""
    code_noise: float = 0.0
    """Mean share of a picture's positions that show another's codes while it is learnt, so that the prompt is read;
    0.5 at most (gen stage)."""
    max_length: int = 2048
    """Tokens a sample may have, image positions included."""
    sample_prompts: list[str] = field(default_factory=list)
    """Prompts drawn as one PNG at every save (gen stage)."""
    validation_path: str | None = None
    """Folder of images, however deep, that are held back and measured every `training.eval_steps` (tokenizer stage);
    the embedded world holds back icon families of its own."""
    validation_samples: int = 1000
    """At most so many of them, evenly picked."""


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
