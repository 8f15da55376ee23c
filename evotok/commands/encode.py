"""`evotok encode`: images to codes."""

import argparse

from evotok.commands.checkpoints import HELP, load_tokenizer
from evotok.commands.codes import Codes, write_codes
from evotok.commands.files import check_file
from evotok.commands.terminal import add_json, progress, say


EXAMPLES = """  evotok encode mini cat.png dog.jpg --out pets.safetensors
  evotok decode mini pets.safetensors --depth 2 --out depth2"""
BATCH = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=f"{HELP}; an image tokenizer alone will do")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files of any common kind")
    parser.add_argument("--out", required=True, metavar="FILE", help="file of codes to write, *.safetensors")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Encode batch by batch; the file is written when all images are."""
    from pathlib import Path

    import numpy as np

    from evotok.processing.image_loading_evotok import load_image
    from evotok.training.fingerprint import fingerprint

    if Path(options.out).suffix != ".safetensors":
        raise ValueError(f"--out {options.out}: the name of a file of codes must end in .safetensors.")
    check_file(options.out)
    model, image_processor = load_tokenizer(options.checkpoint)
    batches = []
    with progress(len(options.images), "image", "Encoding") as bar:
        for start in range(0, len(options.images), BATCH):
            images = [load_image(path) for path in options.images[start : start + BATCH]]
            pixels = image_processor(images, return_tensors="pt")["pixel_values"]
            batches.append(model.encode(pixels.to(model.device)).cpu().numpy().astype(np.uint16))
            bar.update(len(images))
    codes = np.concatenate(batches)  # (I, N, D)
    names = [Path(path).name for path in options.images]
    write_codes(options.out, Codes(codes, names, fingerprint(model)))
    images, positions, levels = codes.shape
    facts = {"file": options.out, "images": names, "positions": positions, "levels": levels}
    say(options, facts, [f"{options.out}: {images} images x {positions} positions x {levels} levels"])
    return 0
