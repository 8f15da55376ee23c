"""`evotok decode`: codes to images, from any prefix of their levels."""

import argparse
import sys

from evotok.commands.checkpoints import HELP, load_tokenizer
from evotok.commands.codes import read_codes
from evotok.commands.files import check_folder, safe_name, save_images
from evotok.commands.terminal import add_json, progress, say


EXAMPLES = """  evotok decode mini pets.safetensors --out pets
  evotok decode mini pets.safetensors --depth 1 --out pets"""
BATCH = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=f"{HELP}; of the tokenizer that wrote the codes")
    parser.add_argument("file", metavar="FILE", help="file of codes that `evotok encode` wrote")
    parser.add_argument("--depth", type=int, metavar="D", help="levels to decode; those of the pixels by default")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the images")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Decode everything, then write everything; prints the paths."""
    from pathlib import Path

    import torch

    from evotok.processing.image_loading_evotok import convert_to_images
    from evotok.training.fingerprint import fingerprint

    check_folder(options.out)
    content = read_codes(options.file)
    model, _ = load_tokenizer(options.checkpoint)
    if content.tokenizer != fingerprint(model):
        raise ValueError(
            f"{options.file}: written by another tokenizer than that of {options.checkpoint}. "
            "Decode with the checkpoint that encoded, or encode again."
        )
    levels, pixel_levels = content.codes.shape[-1], model.config.num_pixel_codebooks
    if levels > model.config.num_codebooks:
        raise ValueError(
            f"{options.file}: {levels} levels, but the tokenizer has {model.config.num_codebooks}: encode again."
        )
    depth = min(levels, pixel_levels) if options.depth is None else options.depth
    if not 1 <= depth <= levels:
        raise ValueError(f"--depth {depth}: these codes have {levels} levels, give 1 to {levels}.")
    if depth > pixel_levels:
        print(f"note: pixels were learned from {pixel_levels} levels; deeper ones carry meaning only.", file=sys.stderr)
    images = []
    with progress(len(content.names), "image", "Decoding") as bar, torch.inference_mode():
        for batch in torch.from_numpy(content.codes.astype("int64")).split(BATCH):
            try:
                images += convert_to_images(model.decode_pixels(batch.to(model.device), depth=depth))
            except ValueError as error:
                raise ValueError(f"{options.file}: {error}") from None
            bar.update(len(batch))
    names = (f"{safe_name(Path(name).stem)}-depth{depth}" for name in content.names)
    paths = save_images(options.out, list(zip(names, images, strict=True)), overwrite=True)
    say(options, {"depth": depth, "images": [str(path) for path in paths]}, map(str, paths))
    return 0
