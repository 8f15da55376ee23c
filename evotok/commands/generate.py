"""`evotok generate`: images from text."""

import argparse
import random
import sys

from evotok.commands.checkpoints import HELP, load_multimodal
from evotok.commands.files import check_folder, safe_name, save_images
from evotok.commands.numbers import at_least_one, seed
from evotok.commands.terminal import add_json, progress, say


EXAMPLES = """  evotok generate mini --prompt "a frog, noto style"
  evotok generate mini --prompt "a pizza" "two cats on a blue background" --num-images 4 --seed 7 --out pictures"""
BATCH = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command; sampling values left out are the checkpoint's own."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=HELP)
    parser.add_argument("--prompt", nargs="+", required=True, metavar="TEXT", help="what to draw; several for several")
    parser.add_argument("--num-images", type=at_least_one, default=1, metavar="N", help="images of each prompt (1)")
    parser.add_argument("--out", default="generated", metavar="DIR", help="folder for the images (generated)")
    parser.add_argument("--seed", type=seed, metavar="N", help="for the same images again; random by default")
    sampling = parser.add_argument_group("sampling", "left out: as the checkpoint's generation_config.json says")
    sampling.add_argument("--guidance-scale", type=float, metavar="X", help="weight of the prompt; 1: no guidance")
    sampling.add_argument(
        "--guidance-min-p", type=float, metavar="P", help="least share of the likeliest code's probability; 0: no guard"
    )
    sampling.add_argument("--temperature", type=float, metavar="T", help="0: always the likeliest code")
    sampling.add_argument("--top-k", type=int, metavar="K", help="draw among the K likeliest codes; 0: all")
    sampling.add_argument("--top-p", type=float, metavar="P", help="draw among the likeliest of mass P; 1: all")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Draw everything, then write everything; prints the paths."""

    from evotok.eval.generation import generate_images
    from evotok.modeling_evotok.sampling_evotok import EvoTokCodeSampler

    check_folder(options.out)
    names = ("guidance_scale", "guidance_min_p", "temperature", "top_k", "top_p")
    sampling = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    EvoTokCodeSampler(**sampling)  # refuses values out of range before the model is loaded
    model, processor = load_multimodal(options.checkpoint)
    seed = random.randrange(2**32) if options.seed is None else options.seed
    if model.generation_config.guidance_scale is not None:
        sampling.setdefault("guidance_scale", model.generation_config.guidance_scale)
    prompts = [prompt for prompt in options.prompt for _ in range(options.num_images)]
    steps = -(-len(prompts) // BATCH) * model.config.vq_config.num_positions
    with progress(steps, "position", "Drawing") as bar:
        pixels = generate_images(
            model, processor, prompts, batch_size=BATCH, seed=seed, callback=lambda *_: bar.update(), **sampling
        )
    images = processor.post_process_image_generation(pixels)
    for image, prompt in zip(images, prompts, strict=True):
        image.info = {"prompt": prompt, "seed": seed, "checkpoint": options.checkpoint} | sampling
    if options.seed is None and not options.json:
        print(f"seed {seed}", file=sys.stderr)
    names = (f"{safe_name(prompt)}-seed{seed}" for prompt in prompts)
    paths = [str(path) for path in save_images(options.out, zip(names, images, strict=True))]
    drawn = [{"file": path, "prompt": prompt} for path, prompt in zip(paths, prompts, strict=True)]
    say(options, {"seed": seed, "sampling": sampling, "images": drawn}, paths)
    return 0
