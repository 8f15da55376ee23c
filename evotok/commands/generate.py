"""`evotok generate`: generates images from text."""

import random
import sys
from typing import Annotated

import typer

from evotok.app.examples import WORLD_PROMPTS
from evotok.commands.checkpoints import find_checkpoint, load_multimodal
from evotok.commands.files import check_folder, safe_name, save_images
from evotok.commands.options import (
    Checkpoint,
    GuidanceMinP,
    GuidanceScale,
    Json,
    Seed,
    Temperature,
    TopK,
    TopP,
    require_texts,
)
from evotok.commands.terminal import print_results, progress


EXAMPLES = f"""  evotok generate mini --prompt "{WORLD_PROMPTS[0]}"
  evotok generate mini --prompt "{WORLD_PROMPTS[1]}" "{WORLD_PROMPTS[3]}" --num-images 4 --seed 7 --out images"""
BATCH = 32


def run(
    checkpoint: Checkpoint,
    prompt: Annotated[
        list[str],
        typer.Option(metavar="TEXT...", callback=require_texts, help="prompt of the images; several may follow"),
    ],
    num_images: Annotated[int, typer.Option(metavar="N", min=1, help="images of each prompt")] = 1,
    out: Annotated[str, typer.Option(metavar="DIR", help="folder for the images")] = "generated",
    seed: Seed = None,
    guidance_scale: GuidanceScale = None,
    guidance_min_p: GuidanceMinP = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    as_json: Json = False,
) -> None:
    """Generate images from text.

    Sampling values left out are those of the checkpoint's generation_config.json.
    """
    check_folder(out)
    find_checkpoint(checkpoint)
    sampling = {
        "guidance_scale": guidance_scale,
        "guidance_min_p": guidance_min_p,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
    }
    sampling = {name: value for name, value in sampling.items() if value is not None}
    from evotok.inference import generate_images

    model, processor = load_multimodal(checkpoint)
    is_random = seed is None
    if seed is None:
        seed = random.randrange(2**32)
    if model.generation_config.guidance_scale is not None:
        sampling.setdefault("guidance_scale", model.generation_config.guidance_scale)
    prompts = [text for text in prompt for _ in range(num_images)]
    steps = -(-len(prompts) // BATCH) * model.config.vq_config.num_positions
    with progress(steps, "position", "Generating") as bar:
        images = generate_images(
            model, processor, prompts, batch_size=BATCH, seed=seed, callback=lambda *_: bar.update(), **sampling
        )
    for image, text in zip(images, prompts, strict=True):
        image.info = {"prompt": text, "seed": seed, "checkpoint": checkpoint} | sampling
    if is_random and not as_json:
        print(f"seed {seed}", file=sys.stderr)
    names = (f"{safe_name(text)}-seed{seed}" for text in prompts)
    paths = [str(path) for path in save_images(out, zip(names, images, strict=True))]
    files = [{"file": path, "prompt": text} for path, text in zip(paths, prompts, strict=True)]
    print_results(as_json, {"seed": seed, "sampling": sampling, "images": files}, paths)
