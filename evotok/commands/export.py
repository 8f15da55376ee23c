"""`evotok export`: a trained checkpoint as a folder to share: half the size, with code, processor, sampling values."""

import argparse
import shutil
from pathlib import Path


EXAMPLES = """  evotok export runs/mini/gen --out assets/evotok-mini --guidance-min-p 0.3
  evotok export runs/paper/gen --out evotok-7b"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from evotok.commands.checkpoints import HELP

    parser.add_argument("checkpoint", help=HELP)
    parser.add_argument("--out", required=True, help="folder to write; files of an older export in it are replaced")
    dtypes = ["bfloat16", "float16", "float32"]
    parser.add_argument("--dtype", default="bfloat16", choices=dtypes, help="of the weights")
    parser.add_argument("--guidance-min-p", type=float, help="plausibility guard saved as the default (0 = none)")
    parser.add_argument("--top-k", type=int, help="number of codes to sample from, saved as the default")
    parser.add_argument("--temperature", type=float, help="sampling temperature of images, saved as the default")


def run(options: argparse.Namespace) -> int:
    import torch

    from evotok.commands.checkpoints import load_multimodal

    model, processor = load_multimodal(options.checkpoint)
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: this is a file, give a folder to write to.")
    fields = {
        "guidance_min_p": options.guidance_min_p,
        "image_top_k": options.top_k,
        "image_temperature": options.temperature,
    }
    for name, value in fields.items():
        if value is not None:
            setattr(model.generation_config, name, value)
    model.to(getattr(torch, options.dtype))
    # Near codes tie in half precision: the codebooks stay whole, at a fortieth of the size.
    model.model.vq_model.quantizer.float()
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        model.save_pretrained(part)
        processor.save_pretrained(part)
        out.mkdir(parents=True, exist_ok=True)
        for path in part.iterdir():
            path.replace(out / path.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    print(f"{out}: {size / 1e6:.1f} MB of weights")
    return 0
