"""Opens the sources of a recipe as a stream of batches, and loads it so that a killed run resumes exactly."""

import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainingArguments
from transformers.utils import logging

from ..modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from .arguments import DataArguments, SourceArguments
from .code_shards import ShardInfo, check_tokenizer, code_row, open_codes
from .errors import reason
from .mixture import MixtureSource, MixtureStream
from .sources import SOURCES


logger = logging.get_logger(__name__)

CODES = "codes"


def open_source(source: SourceArguments) -> tuple[MixtureSource, ShardInfo | None]:
    """Opens one source of a recipe; returns also what its codes are of, if it has code shards.

    Raises:
        ValueError: an unknown source, or no data in its folder.
    """
    if source.source == CODES:
        if source.path is None:
            raise ValueError("data.sources: codes need `path`, the folder that `evotok encode-dataset` wrote.")
        rows, info = open_codes(source.path)
        converter = functools.partial(code_row, info=info)
        return MixtureSource(f"{CODES} {info.source}".strip(), rows, converter, source.weight or 1.0), info
    if source.source not in SOURCES:
        raise ValueError(f"data.sources: {source.source!r} is not one of {', '.join([*SOURCES, CODES])}.")
    known = SOURCES[source.source]
    rows, folder = known.open(source.path, source.image_folder)
    weight = known.weight if source.weight is None else source.weight
    return MixtureSource(known.name, rows, functools.partial(known.convert, folder=folder), weight), None


def open_mixture(
    data: DataArguments, vq_model: EvoTokVQModel | None = None, image_processor: Any = None
) -> list[MixtureSource]:
    """Opens all sources of a mixture.

    Args:
        data: of a recipe.
        vq_model, image_processor: that code shards must have been written with; None where codes cannot be used.

    Raises:
        ValueError: as [`open_source`]; codes of another tokenizer, or together with images to be generated.
    """
    opened = [open_source(source) for source in data.sources]
    has_codes = any(source.source == CODES for source in data.sources)
    if has_codes:
        if vq_model is None:
            raise ValueError("data.sources: the stage tokenizer is trained on images: remove the source codes.")
        expected = ShardInfo.of(vq_model, image_processor)
        for source, (_, info) in zip(data.sources, opened, strict=True):
            if info is not None:
                check_tokenizer(info, expected, f"data.sources: {source.path}")
    generated = {source.source for source in data.sources if source.source != CODES}
    generated = sorted(name for name in generated if SOURCES[name].task != "understanding")
    if generated and has_codes:
        raise ValueError(
            f"data.sources: codes beside images to be generated ({', '.join(generated)}), but a batch has one kind or "
            "the other: encode these as well with `evotok encode-dataset`, or leave the codes out."
        )
    return [source for source, _ in opened]


def build_stream(
    data: DataArguments,
    arguments: TrainingArguments,
    collate: Callable[[list[dict]], dict[str, Any]],
    length_of: Callable[[dict], int] | None = None,
    vq_model: EvoTokVQModel | None = None,
    image_processor: Any = None,
) -> MixtureStream:
    """Builds the stream of this process.

    Raises:
        ValueError: as [`open_mixture`], or a recipe without a number of steps.
    """
    if arguments.max_steps <= 0:
        raise ValueError("a stream never ends: set training.max_steps.")
    return MixtureStream(
        open_mixture(data, vq_model, image_processor),
        collate,
        batch_size=arguments.train_batch_size,
        length_of=length_of,
        seed=arguments.seed,
        rank=arguments.process_index,
        world_size=arguments.world_size,
        pool_batches=data.pool_batches,
    )


def estimate_length(row: dict, num_image_tokens: int) -> int:
    """Estimates the number of tokens of a row: all of every image, and one for four characters of text."""
    parts = [part for message in row["messages"] for part in message["content"]]
    texts = sum(len(part["text"]) for part in parts if part["type"] == "text")
    return texts // 4 + num_image_tokens * sum(part["type"] == "image" for part in parts)


class ResumableLoader:
    """Loader of a stream, whose state is saved with every checkpoint, one file for each process.

    Args:
        stream: of this process.
        arguments: of the training.
    """

    def __init__(self, stream: MixtureStream, arguments: TrainingArguments):
        try:
            from torchdata.stateful_dataloader import StatefulDataLoader
        except ImportError:
            raise ImportError("streams resume with torchdata: pip install 'evotok[train]'.") from None
        self.stream = stream
        # What the position in a pool depends on: with other values it does not exist.
        self.layout = {
            "ranks": arguments.world_size,
            "workers": arguments.dataloader_num_workers,
            "batch_size": stream.batch_size,
            "pool_batches": stream.pool_batches,
            "sources": [source.name for source in stream.sources],
        }
        self.name = f"data_state_{arguments.process_index}.pt"
        self.loader: DataLoader = StatefulDataLoader(
            stream,
            batch_size=None,
            num_workers=arguments.dataloader_num_workers,
            pin_memory=arguments.dataloader_pin_memory,
            prefetch_factor=arguments.dataloader_prefetch_factor,
            # A loader takes a seed for its workers from torch's generator, which a checkpoint has just restored:
            # without a generator of its own, dropout would differ from that of a run that was not killed.
            generator=torch.Generator().manual_seed(arguments.seed),
        )

    def save(self, folder: str | Path) -> None:
        """Writes the state of this process."""
        torch.save({"layout": self.layout, "loader": self.loader.state_dict()}, Path(folder) / self.name)

    def load(self, folder: str | Path, step: int) -> None:
        """Restores the state of a checkpoint; one of other processes, workers, batches or sources gives a new order.

        Raises:
            ValueError: the file is damaged or has no state.
        """
        path = Path(folder) / self.name
        try:
            state = torch.load(path, weights_only=True)
        except FileNotFoundError:  # written by fewer processes
            state = {"layout": None, "loader": None}
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"{path}: damaged ({reason(error)}): give the run another checkpoint.") from None
        if not isinstance(state, dict) or not {"layout", "loader"} <= state.keys():
            raise ValueError(f"{path}: no state of data: give the run another checkpoint.")
        if state["layout"] == self.layout:
            self.loader.load_state_dict(state["loader"])
            return
        logger.warning(
            f"{path}: no data state of {self.layout}: rows come in a new order from step {step} on, and some may come "
            "again before all have been seen."
        )
        self.stream.restart = step
