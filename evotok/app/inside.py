"""The tab Look inside: what each level of the codes of an image says.

Shapes: N positions in a grid of h x w, D levels, S width of the semantics, C of a codebook entry, K entries.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image

from evotok.eval.metrics import feature_cosine, psnr


class Inspection(NamedTuple):
    """An image as codes.

    Args:
        codes: (N, D) int64 on the CPU.
        images: decoded from the first 1, 2, ... levels, as many as the pixels have.
        psnr: of each, in dB.
        similarity: cosine of the semantics at depth 1 .. D to those at depth D, mean over the positions.
        maps: one picture a level, a cell a position, similar codes in similar colours.
    """

    codes: torch.LongTensor
    images: list[Image.Image]
    psnr: list[float]
    similarity: list[float]
    maps: list[Image.Image]


class Mixture(NamedTuple):
    """An image with some levels of another: its picture, and how near its semantics are to those of both."""

    image: Image.Image
    to_own: float
    to_other: float


@torch.inference_mode()
def inspect(model, processor, image: Image.Image) -> Inspection:
    """Encode an image to all its levels, and decode every prefix of them."""
    tokenizer = model.model.vq_model
    pixels = processor.image_processor([image], return_tensors="pt")["pixel_values"].to(model.device)
    codes = tokenizer.encode(pixels)  # (1, N, D)
    decoded = [tokenizer.decode_pixels(codes, depth) for depth in range(1, tokenizer.config.num_pixel_codebooks + 1)]
    semantics = [tokenizer.decode_semantics(codes, depth) for depth in range(1, codes.shape[-1] + 1)]
    return Inspection(
        codes=codes[0].cpu(),
        images=[processor.post_process_image_generation(picture)[0] for picture in decoded],
        psnr=[psnr((picture + 1) / 2, (pixels + 1) / 2).item() for picture in decoded],
        similarity=[feature_cosine(features, semantics[-1]).item() for features in semantics],
        maps=code_maps(tokenizer, codes[0]),
    )


def code_maps(tokenizer, codes: torch.LongTensor, cell: int = 16) -> list[Image.Image]:
    """Codes (N, D) as one picture a level, a square of `cell` pixels a position.

    The colour of a code is where its entry lies along the three directions in which the entries of its level differ
    most, each in the order of the entries: all colours are used, and similar entries look alike.
    """
    side, pictures = tokenizer.config.grid_size, []
    for level, codebook in enumerate(tokenizer.quantizer.codebooks[: codes.shape[-1]]):
        entries = codebook.weight.float()  # (K, C)
        entries = entries - entries.mean(0)
        _, axes = torch.linalg.eigh(entries.T @ entries)  # ascending
        ranks = (entries @ axes[:, -3:]).argsort(0).argsort(0)  # (K, 3) in 0 .. K - 1
        colors = 40 + ranks * 200 // len(entries)  # neither black nor white
        grid = colors[codes[:, level]].view(side, side, 3).to(torch.uint8).cpu().numpy()
        pictures.append(Image.fromarray(grid).resize((side * cell, side * cell), Image.Resampling.NEAREST))
    return pictures


@torch.inference_mode()
def swap(
    model, processor, first: torch.LongTensor, second: torch.LongTensor, levels: Sequence[int]
) -> tuple[Mixture, Mixture]:
    """Both images with the codes of the other at the levels given, which count from 1.

    Args:
        first, second: (N, D).

    Raises:
        ValueError: a level that there is not.
    """
    tokenizer, depth = model.model.vq_model, first.shape[-1]
    wrong = [level for level in levels if not isinstance(level, int) or not 1 <= level <= depth]
    if wrong:
        raise ValueError(f"Level {str(wrong[0])[:20]}: the codes have levels 1 to {depth}.")
    pair = torch.stack([first, second]).to(model.device)  # (2, N, D)
    mixed, chosen = pair.clone(), [level - 1 for level in levels]
    mixed[..., chosen] = pair.flip(0)[..., chosen]
    images = processor.post_process_image_generation(tokenizer.decode_pixels(mixed))
    of_pair, of_mixed = tokenizer.decode_semantics(pair), tokenizer.decode_semantics(mixed)
    own = feature_cosine(of_mixed, of_pair).tolist()
    other = feature_cosine(of_mixed, of_pair.flip(0)).tolist()
    one, two = (Mixture(*values) for values in zip(images, own, other, strict=True))
    return one, two
