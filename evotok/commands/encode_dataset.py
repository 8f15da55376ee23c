"""`evotok encode-dataset`: encodes a source to code shards, in one process or under torchrun."""

import os
from typing import Annotated

import typer

from evotok.commands.checkpoints import find_checkpoint, load_tokenizer
from evotok.commands.options import Json, TokenizerCheckpoint, complete_folder
from evotok.commands.terminal import print_results


EXAMPLES = """  evotok encode-dataset mini --source image-folder --path images --out codes
  torchrun --nproc-per-node 8 -m evotok.cli encode-dataset runs/paper/tokenizer --source blip3o-short --out codes"""


def run(
    checkpoint: TokenizerCheckpoint,
    source: Annotated[str, typer.Option(metavar="NAME", help="a data set of data/sources/")],
    out: Annotated[
        str,
        typer.Option(
            metavar="DIR", help="folder of the shards; continues where they end", autocompletion=complete_folder
        ),
    ],
    path: Annotated[
        str | None, typer.Option(metavar="DIR", help="its folder, or a Hub id; the published one when left out")
    ] = None,
    image_folder: Annotated[str | None, typer.Option(metavar="DIR", help="folder of its images, if not there")] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="images at once")] = 64,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="threads that decode images; one for each core by default")
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="compile the encoder: faster on a GPU, but rarely a code differs")
    ] = False,
    as_json: Json = False,
) -> None:
    """Encode a source to code shards, on all GPUs."""
    find_checkpoint(checkpoint)
    import torch
    from tqdm import tqdm

    from evotok.data.arguments import SourceArguments
    from evotok.data.code_encoding import CorpusEncoder
    from evotok.data.sources import SOURCES
    from evotok.data.stream_loader import open_source

    if source in SOURCES and SOURCES[source].task == "understanding":
        raise ValueError(f"--source {source}: conversations about images; codes are for images to generate.")
    rank, world_size = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    opened, _ = open_source(SourceArguments(source, path, image_folder))
    if torch.accelerator.is_available():  # otherwise each process would take memory of the first one, too
        torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", "0")))
    model, image_processor = load_tokenizer(checkpoint)
    encoder = CorpusEncoder(model, image_processor, opened, out, batch_size, threads, compiled)
    with tqdm(unit="image", disable=None if rank == 0 else True, leave=False) as progress:
        done = encoder.run(rank, world_size, progress.update)
    rates = {"images_per_second": done.images_per_second, "device_share": done.device_share}
    speed = f", {done.images_per_second:,.0f} images/s, {model.device.type} busy {done.device_share:.0%} of the time"
    line = (
        f"{out}: process {rank} of {world_size}: {done.images:,} images in {done.written} shards, "
        f"{done.skipped:,} skipped, {done.found} shards were there{speed if done.images else ''}"
    )
    print_results(as_json, {"folder": out, "process": rank, "processes": world_size} | done._asdict() | rates, [line])
