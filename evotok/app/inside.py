"""The tab Look inside: an image decoded from the first levels of its codes, the codes as maps, and swapped levels.

Shapes: N positions in a grid of h x w, D levels, C width of a codebook entry, K entries.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import gradio as gr
import pandas as pd
import torch
from PIL import Image

from evotok.app.events import DECODING, FILES, IMMEDIATE, enlarge, input_image, show_errors
from evotok.app.examples import Examples
from evotok.app.limits import STATE_SECONDS, open_upload
from evotok.data.image_files import to_unit_range
from evotok.eval.metrics import feature_cosine, psnr


class Inspection(NamedTuple):
    """An encoded image.

    Args:
        codes: (N, D) int64 on the CPU.
        images: decoded from the first 1, 2, ... pixel levels.
        psnr: of each, in dB.
        similarity: cosine of the decoded semantics at depth 1 .. D to those at depth D, mean over the positions.
        maps: an image for each level, a cell for each position, similar codes in similar colours.
    """

    codes: torch.Tensor
    images: list[Image.Image]
    psnr: list[float]
    similarity: list[float]
    maps: list[Image.Image]


class SwappedImage(NamedTuple):
    """An image with some levels of another, and the cosine of its decoded semantics to those of both."""

    image: Image.Image
    to_own: float
    to_other: float


@torch.inference_mode()
def inspect(model, processor, image: Image.Image) -> Inspection:
    """Encodes an image, and decodes it at every depth."""
    tokenizer = model.model.vq_model
    pixels = processor.image_processor([image], return_tensors="pt")["pixel_values"].to(model.device)
    codes = tokenizer.encode(pixels)  # (1, N, D)
    decoded = [tokenizer.decode_pixels(codes, depth) for depth in range(1, tokenizer.config.num_pixel_codebooks + 1)]
    semantics = [tokenizer.decode_semantics(codes, depth) for depth in range(1, codes.shape[-1] + 1)]
    return Inspection(
        codes=codes[0].cpu(),
        images=[processor.post_process_image_generation(decoded_pixels)[0] for decoded_pixels in decoded],
        psnr=[psnr(to_unit_range(decoded_pixels), to_unit_range(pixels)).item() for decoded_pixels in decoded],
        similarity=[feature_cosine(features, semantics[-1]).item() for features in semantics],
        maps=map_codes(tokenizer, codes[0]),
    )


def map_codes(tokenizer, codes: torch.Tensor, cell: int = 16) -> list[Image.Image]:
    """Renders codes (N, D) as an image for each level, with a square of `cell` pixels for each position.

    The colour of a code is the rank of its entry along the three principal axes of the codebook: all colours are used,
    and similar entries have similar colours.
    """
    side, images = tokenizer.config.grid_size, []
    for level, codebook in enumerate(tokenizer.quantizer.codebooks[: codes.shape[-1]]):
        entries = codebook.weight.float()  # (K, C)
        entries = entries - entries.mean(0)
        _, axes = torch.linalg.eigh(entries.T @ entries)  # ascending
        ranks = (entries @ axes[:, -3:]).argsort(0).argsort(0)  # (K, 3) in 0 .. K - 1
        colors = 40 + ranks * 200 // len(entries)  # neither black nor white
        grid = colors[codes[:, level]].view(side, side, 3).to(torch.uint8).cpu().numpy()
        images.append(Image.fromarray(grid).resize((side * cell, side * cell), Image.Resampling.NEAREST))
    return images


@torch.inference_mode()
def swap(
    model, processor, first: torch.Tensor, second: torch.Tensor, levels: Sequence[int]
) -> tuple[SwappedImage, SwappedImage]:
    """Decodes two images whose codes at some levels are swapped.

    Args:
        first, second: (N, D).
        levels: from 1 to D, as the checkboxes of Gradio have checked.
    """
    tokenizer = model.model.vq_model
    pair = torch.stack([first, second]).to(model.device)  # (2, N, D)
    swapped, chosen = pair.clone(), [level - 1 for level in levels]
    swapped[..., chosen] = pair.flip(0)[..., chosen]
    images = processor.post_process_image_generation(tokenizer.decode_pixels(swapped))
    before, after = tokenizer.decode_semantics(pair), tokenizer.decode_semantics(swapped)
    own = feature_cosine(after, before).tolist()
    other = feature_cosine(after, before.flip(0)).tolist()
    one, two = (SwappedImage(*values) for values in zip(images, own, other, strict=True))
    return one, two


def build_inside_tab(model, processor, examples: Examples) -> gr.Image:
    """Builds the tab; returns the field of the input image."""
    config = model.config.vq_config
    levels, depths = config.num_codebooks, config.num_pixel_codebooks
    first, second = gr.State(None, time_to_live=STATE_SECONDS), gr.State(None, time_to_live=STATE_SECONDS)
    paths = [[path] for path in examples.images]
    with gr.Row(equal_height=False):
        with gr.Column(min_width=280):
            gr.Markdown(examples.scope.inside, elem_classes="hint", elem_id="inside-scope")
            source = input_image(label="Image", height=280, elem_id="source")
            if paths:
                gr.Examples(paths, source, label="Try one", elem_id="inside-examples")
        with gr.Column(min_width=280):
            decoded = gr.Image(
                label="Decoded", height=280, format="png", interactive=False, buttons=["download"], elem_id="decoded"
            )
            depth = gr.Slider(1, depths, depths, step=1, label="Levels decoded", elem_id="depth", buttons=[])
            figure = gr.Markdown("", elem_classes="hint", elem_id="figure")
        with gr.Column(min_width=280):
            plot = gr.LinePlot(
                x="level", y="similarity", x_title="levels", y_title="cosine", x_lim=[1, levels], x_axis_format="d",
                height=280, label="Semantics", elem_id="plot", buttons=[],
            )  # fmt: skip
            gr.Markdown(f"Semantics of the first levels, compared with those of all {levels}.", elem_classes="hint")
    gr.Markdown(
        "### Codes, level by level\nA square is a position; similar codes have similar colours.", elem_classes="hint"
    )
    maps = gr.Gallery(
        show_label=False, columns=8, height="auto", format="png", object_fit="contain", interactive=False, buttons=[],
        elem_id="maps",
    )  # fmt: skip
    gr.Markdown(
        f"### Swap codes with another image\nThe first {depths} levels code the pixels, all {levels} the semantics.",
        elem_classes="hint",
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=260):
            other = input_image(label="Other image", height=220, elem_id="other")
            if paths:
                gr.Examples(paths, other, label="Try one", elem_id="other-examples")
        with gr.Column(scale=2, min_width=260):
            which = gr.CheckboxGroup(list(range(1, levels + 1)), value=[1], label="Levels to swap", elem_id="levels")
            swapped = gr.Gallery(
                show_label=False, columns=2, height="auto", format="png", object_fit="contain", interactive=False,
                buttons=[], elem_id="swapped",
            )  # fmt: skip
            likeness = gr.Markdown("", elem_classes="hint", elem_id="likeness")

    nothing = None, None, "", None, []

    def encode(file: dict[str, Any] | None) -> tuple[Inspection | None, Any]:
        path = (file or {}).get("path")
        return inspect(model, processor, open_upload(path, source.GRADIO_CACHE)) if path else None, gr.skip()

    def encode_first(file: dict[str, Any] | None, depth: int) -> tuple:
        found, field = encode(file)
        if found is None:
            return *nothing, field
        frame = pd.DataFrame({"level": range(1, levels + 1), "similarity": found.similarity})
        lowest = math.floor(10 * min(found.similarity)) / 10
        captions = [(image, f"{level}") for level, image in enumerate(found.maps, start=1)]
        return found, *_show_depth(found, depth), gr.LinePlot(frame, y_lim=[lowest, 1]), captions, field

    def show_swapped(first: Inspection | None, second: Inspection | None, which: list[int]) -> tuple[list, str]:
        if first is None or second is None:
            return [], ""
        pair = swap(model, processor, first.codes, second.codes, sorted(which))
        texts = [f"{one.to_own:.2f} to before and {one.to_other:.2f} to the other image" for one in pair]
        return [enlarge(one.image) for one in pair], (
            f"Cosine of the semantics of the first image now: {texts[0]}; of the second: {texts[1]}."
        )

    # A refused image clears its field: otherwise the results of the image before would be shown with it.
    encoded = source.change(
        show_errors(encode_first, (*nothing, None)), [source, depth], [first, decoded, figure, plot, maps, source],
        **FILES, **DECODING,
    )  # fmt: skip
    also = other.change(show_errors(encode, (None, None)), other, [second, other], **FILES, **DECODING)
    depth.change(show_errors(_show_depth), [first, depth], [decoded, figure], **IMMEDIATE)
    for follow in (encoded.then, also.then, which.change):
        follow(show_errors(show_swapped), [first, second, which], [swapped, likeness], **DECODING)
    return source


def _show_depth(found: Inspection | None, depth: float) -> tuple[Image.Image | None, str]:
    """Returns the image decoded at a depth, and its PSNR as text."""
    if found is None:
        return None, ""
    depth = int(depth)
    text = f"{depth} of {len(found.images)} levels · PSNR {found.psnr[depth - 1]:.1f} dB"
    return enlarge(found.images[depth - 1]), text
