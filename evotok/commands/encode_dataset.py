"""`evotok encode-dataset`: a corpus to shards of codes, on one process or under torchrun."""

import argparse
import os

from evotok.commands.checkpoints import HELP, load_tokenizer
from evotok.commands.numbers import at_least_one
from evotok.commands.terminal import add_json, say


EXAMPLES = """  evotok encode-dataset mini --source image-folder --path pictures --out codes
  torchrun --nproc-per-node 8 -m evotok.cli encode-dataset runs/paper/tokenizer --source blip3o-short --out codes"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=f"{HELP}; an image tokenizer alone will do")
    parser.add_argument("--source", required=True, metavar="NAME", help="a data set of training/sources/")
    parser.add_argument("--path", metavar="DIR", help="its folder, or a hub id; the published one when left out")
    parser.add_argument("--image-folder", metavar="DIR", help="where its images lie, if not there")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the shards; go on where they end")
    parser.add_argument("--batch-size", type=at_least_one, default=64, metavar="N", help="images at once (default 64)")
    parser.add_argument("--threads", type=at_least_one, default=4, metavar="N", help="that decode images (default 4)")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Encode this process's share of the shards; prints what was done."""
    import torch
    from tqdm import tqdm

    from evotok.training.arguments import SourceArguments
    from evotok.training.encoding import CorpusEncoder
    from evotok.training.sources import SOURCES
    from evotok.training.streaming import open_part

    if options.source in SOURCES and SOURCES[options.source].task == "understanding":
        raise ValueError(f"--source {options.source}: conversations about images; codes are of pictures to be drawn.")
    rank, world_size = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    part, _ = open_part(SourceArguments(options.source, options.path, options.image_folder))
    model, image_processor = load_tokenizer(options.checkpoint)
    if torch.accelerator.is_available():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        model.to(torch.device(torch.accelerator.current_accelerator().type, local))
    encoder = CorpusEncoder(model, image_processor, part, options.out, options.batch_size, options.threads)
    with tqdm(unit="image", disable=None if rank == 0 else True, leave=False) as progress:
        done = encoder.run(rank, world_size, progress.update)
    speed = f", {done.images / done.seconds:,.0f} images/s" if done.images else ""
    line = (
        f"{options.out}: process {rank} of {world_size}: {done.images:,} images in {done.written} shards, "
        f"{done.skipped:,} skipped, {done.found} shards were there{speed}"
    )
    say(options, {"folder": options.out, "process": rank, "processes": world_size} | done._asdict(), [line])
    return 0
