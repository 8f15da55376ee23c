"""`evotok encode`: encodes images to codes."""

import os
from pathlib import Path
from typing import Annotated

import typer

from evotok.commands.checkpoints import find_checkpoint, load_tokenizer
from evotok.commands.codes import Codes, write_codes
from evotok.commands.files import check_file
from evotok.commands.options import Json, TokenizerCheckpoint
from evotok.commands.terminal import print_results, progress


EXAMPLES = """  evotok encode mini cat.png dog.jpg --out pets.safetensors
  evotok decode mini pets.safetensors --depth 2 --out depth2"""
BATCH = 32


def run(
    checkpoint: TokenizerCheckpoint,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="image files of any common format")],
    out: Annotated[str, typer.Option(metavar="FILE", help="file of codes to write, *.safetensors")],
    as_json: Json = False,
) -> None:
    """Encode images to the codes of the image tokenizer."""
    if Path(out).suffix != ".safetensors":
        raise ValueError(f"--out {out}: the name of a file of codes must end in .safetensors.")
    check_file(out)
    find_checkpoint(checkpoint)
    from evotok.processing.image_loading_evotok import load_image

    for path in images:
        if not os.path.isfile(path):
            load_image(path)  # raises the error, before torch is imported
    import numpy as np

    from evotok.data.code_shards import tokenizer_hash

    model, image_processor = load_tokenizer(checkpoint)
    batches = []
    with progress(len(images), "image", "Encoding") as bar:
        for start in range(0, len(images), BATCH):
            batch = [load_image(path) for path in images[start : start + BATCH]]
            pixels = image_processor(batch, return_tensors="pt")["pixel_values"]
            batches.append(model.encode(pixels.to(model.device)).cpu().numpy().astype(np.uint16))
            bar.update(len(batch))
    codes = np.concatenate(batches)  # (I, N, D)
    names = [Path(path).name for path in images]
    write_codes(out, Codes(codes, names, tokenizer_hash(model)))
    count, positions, levels = codes.shape
    facts = {"file": out, "images": names, "positions": positions, "levels": levels}
    print_results(as_json, facts, [f"{out}: {count} images x {positions} positions x {levels} levels"])
