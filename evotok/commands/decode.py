"""`evotok decode`: decodes codes to images, at any depth."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from evotok.commands.checkpoints import find_checkpoint, load_tokenizer
from evotok.commands.codes import read_codes
from evotok.commands.files import check_folder, safe_name, save_images
from evotok.commands.options import Json, TokenizerCheckpoint
from evotok.commands.terminal import print_results, progress


EXAMPLES = """  evotok decode mini pets.safetensors --out pets
  evotok decode mini pets.safetensors --depth 1 --out pets"""
BATCH = 32


def run(
    checkpoint: TokenizerCheckpoint,
    file: Annotated[str, typer.Argument(metavar="FILE", help="file of codes that `evotok encode` wrote")],
    out: Annotated[str, typer.Option(metavar="DIR", help="folder for the images")],
    depth: Annotated[
        int | None, typer.Option(metavar="D", help="levels to decode; those of the pixels by default")
    ] = None,
    as_json: Json = False,
) -> None:
    """Decode codes to images, at any depth."""
    check_folder(out)
    content = read_codes(file)
    levels: int = content.codes.shape[-1]
    if depth is not None and not 1 <= depth <= levels:
        raise ValueError(f"--depth {depth}: these codes have {levels} levels, give 1 to {levels}.")
    find_checkpoint(checkpoint)
    import torch

    from evotok.data.code_shards import tokenizer_hash
    from evotok.processing.image_loading_evotok import convert_to_images

    model, _ = load_tokenizer(checkpoint)
    if content.tokenizer != tokenizer_hash(model):
        raise ValueError(
            f"{file}: written by another tokenizer than that of {checkpoint}. "
            "Decode with the checkpoint that encoded, or encode again."
        )
    pixel_levels = model.config.num_pixel_codebooks
    if levels > model.config.num_codebooks:
        raise ValueError(f"{file}: {levels} levels, but the tokenizer has {model.config.num_codebooks}: encode again.")
    depth = min(levels, pixel_levels) if depth is None else depth
    if depth > pixel_levels:
        print(f"note: the first {pixel_levels} levels code the pixels, the others the semantics only.", file=sys.stderr)
    images = []
    with progress(len(content.names), "image", "Decoding") as bar, torch.inference_mode():
        for batch in torch.from_numpy(content.codes.astype("int64")).split(BATCH):
            try:
                images += convert_to_images(model.decode_pixels(batch.to(model.device), depth=depth))
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from None
            bar.update(len(batch))
    names = (f"{safe_name(Path(name).stem)}-depth{depth}" for name in content.names)
    paths = save_images(out, list(zip(names, images, strict=True)), overwrite=True)
    print_results(as_json, {"depth": depth, "images": [str(path) for path in paths]}, map(str, paths))
