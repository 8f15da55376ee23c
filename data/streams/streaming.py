"""From the sources of a recipe to a stream of batches, and the loader that a killed run goes on with."""

import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainingArguments
from transformers.utils import logging

from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ..arguments import DataArguments, SourceArguments
from ..codes.shards import ShardInfo, check_tokenizer, open_codes, to_record
from ..errors import one_line
from ..sources import SOURCES
from .mixture import Part, RecordStream


logger = logging.get_logger(__name__)

CODES = "codes"


def open_part(source: SourceArguments) -> tuple[Part, ShardInfo | None]:
    """One source of a recipe, and what its codes are of, if it is one of codes.

    Raises:
        ValueError: no such source, or nothing where it should lie.
    """
    if source.source == CODES:
        if source.path is None:
            raise ValueError("data.sources: codes need `path`, the folder that `evotok encode-dataset` wrote.")
        rows, info = open_codes(source.path)
        name = f"{CODES} {info.source}".strip()
        return Part(name, rows, functools.partial(to_record, info=info), source.weight or 1.0), info
    if source.source not in SOURCES:
        raise ValueError(f"data.sources: {source.source!r} is not one of {', '.join([*SOURCES, CODES])}.")
    adapter = SOURCES[source.source]
    rows, folder = adapter.open(source.path, source.image_folder)
    weight = adapter.weight if source.weight is None else source.weight
    return Part(adapter.name, rows, functools.partial(adapter.convert, folder=folder), weight), None


def open_parts(data: DataArguments, vq_model: EvoTokVQModel | None = None, image_processor: Any = None) -> list[Part]:
    """All sources of a mixture; codes are checked against the tokenizer and how its images are prepared.

    Raises:
        ValueError: as [`open_part`]; codes of another tokenizer, or where none is, or beside pictures to be drawn.
    """
    opened = [open_part(source) for source in data.sources]
    from_codes = any(source.source == CODES for source in data.sources)
    if from_codes:
        if vq_model is None:
            raise ValueError("data.sources: the tokenizer stage learns from images, not from codes.")
        mine = ShardInfo.of(vq_model, image_processor)
        for source, (_, info) in zip(data.sources, opened, strict=True):
            if info is not None:
                check_tokenizer(info, mine, f"data.sources: {source.path}")
    parts = [part for part, _ in opened]
    drawn = {source.source for source in data.sources if source.source != CODES}
    drawn = sorted(name for name in drawn if SOURCES[name].task != "understanding")
    if drawn and from_codes:
        raise ValueError(
            f"data.sources: codes beside pictures to be drawn ({', '.join(drawn)}), but a batch has one kind or the "
            "other: encode these as well with `evotok encode-dataset`, or leave the codes out."
        )
    return parts


def build_stream(
    data: DataArguments,
    arguments: TrainingArguments,
    collate: Callable[[list[dict]], dict[str, Any]],
    length_of: Callable[[dict], int] | None = None,
    vq_model: EvoTokVQModel | None = None,
    image_processor: Any = None,
) -> RecordStream:
    """The stream of this process.

    Raises:
        ValueError: as [`open_parts`], or a recipe that does not say how many steps to take.
    """
    if arguments.max_steps <= 0:
        raise ValueError("a stream of samples never ends: set training.max_steps.")
    return RecordStream(
        open_parts(data, vq_model, image_processor),
        collate,
        batch_size=arguments.train_batch_size,
        length_of=length_of,
        seed=arguments.seed,
        rank=arguments.process_index,
        world_size=arguments.world_size,
        pool_batches=data.pool_batches,
    )


def record_length(record: dict, num_image_tokens: int) -> int:
    """About how many tokens a record has: every image in full, and a token for every four characters."""
    parts = [part for message in record["messages"] for part in message["content"]]
    texts = sum(len(part["text"]) for part in parts if part["type"] == "text")
    return texts // 4 + num_image_tokens * sum(part["type"] == "image" for part in parts)


class ResumableLoader:
    """The loader of a stream, whose state goes with every checkpoint, one file a rank.

    Args:
        stream: of this process.
        arguments: of the training; workers and rank are taken from there.
    """

    def __init__(self, stream: RecordStream, arguments: TrainingArguments):
        try:
            from torchdata.stateful_dataloader import StatefulDataLoader
        except ImportError:
            raise ImportError("streams of samples resume with torchdata: pip install 'evotok[train]'.") from None
        self.stream = stream
        self.layout = {"ranks": arguments.world_size, "workers": arguments.dataloader_num_workers}
        # What a pool is made of: by another recipe there is no such place in it.
        self.layout |= {"batch_size": stream.batch_size, "pool_batches": stream.pool_batches}
        self.layout["sources"] = [part.name for part in stream.parts]
        self.name = f"data_state_{arguments.process_index}.pt"
        self.loader: DataLoader = StatefulDataLoader(
            stream,
            batch_size=None,
            num_workers=arguments.dataloader_num_workers,
            pin_memory=arguments.dataloader_pin_memory,
            prefetch_factor=arguments.dataloader_prefetch_factor,
            # A loader that begins draws a seed for its workers. From the generator that a checkpoint has just brought
            # back, that would be one draw too many: dropout would fall elsewhere than in a run that was not killed.
            generator=torch.Generator().manual_seed(arguments.seed),
        )

    def save(self, folder: str | Path) -> None:
        """Write this rank's state."""
        torch.save({"layout": self.layout, "loader": self.loader.state_dict()}, Path(folder) / self.name)

    def load(self, folder: str | Path, step: int) -> None:
        """Go on where a checkpoint was written; by other ranks, workers, batches or sources, in a new order from here.

        Raises:
            ValueError: something else lies there.
        """
        path = Path(folder) / self.name
        try:
            state = torch.load(path, weights_only=True)
        except FileNotFoundError:  # of fewer ranks
            state = {"layout": None, "loader": None}
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"{path}: damaged ({one_line(error)}): give the run another checkpoint.") from None
        if not isinstance(state, dict) or not {"layout", "loader"} <= state.keys():
            raise ValueError(f"{path}: no state of data: give the run another checkpoint.")
        if state["layout"] == self.layout:
            self.loader.load_state_dict(state["loader"])
            return
        logger.warning(
            f"{path}: no data state of {self.layout}: samples are drawn in a new order from step {step} on, and some "
            "may come again before all have been seen."
        )
        self.stream.restart = step
