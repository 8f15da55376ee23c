"""`evotok export`: a trained checkpoint as a folder to share: half the size, with code, processor, values and card.

The folder is what the Hub wants: `hf upload NAME FOLDER`, or `push_to_hub` of the model and the processor it loads as.
"""

import argparse
import shutil
from pathlib import Path

from evotok.commands.checkpoints import HELP, find_checkpoint, load_multimodal
from evotok.commands.files import filled_folder
from evotok.commands.terminal import add_json, say, waiting


EXAMPLES = """  evotok export runs/mini/gen --out assets/evotok-mini --guidance-min-p 0.6
  evotok export runs/paper/gen --out evotok-7b --base-model Qwen/Qwen2.5-7B-Instruct google/siglip2-large-patch16-256
  evotok export runs/paper/low-memory/gen --out evotok-7b-lora    # adapters, merged into what they were trained on"""

# Of an export with more or fewer files; beside the new weights they would be loaded in their place.
OUTDATED = ("model*.safetensors", "model*.safetensors.index.json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help=HELP)
    parser.add_argument("--out", required=True, help="folder to write; files of an older export in it are replaced")
    dtypes = ["bfloat16", "float16", "float32"]
    parser.add_argument("--dtype", default="bfloat16", choices=dtypes, help="of the weights")
    parser.add_argument("--guidance-min-p", type=float, help="plausibility guard saved as the default (0 = none)")
    parser.add_argument("--top-k", type=int, help="number of codes to sample from, saved as the default")
    parser.add_argument("--temperature", type=float, help="sampling temperature of images, saved as the default")
    card = "for the metadata of the card, if neither OUT nor the checkpoint has a README.md"
    parser.add_argument("--license", default="apache-2.0", help=f"of the weights; {card}")
    parser.add_argument("--base-model", nargs="+", default=[], metavar="ID", help=f"Hub ids it was made of; {card}")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    import torch

    from evotok.modeling_evotok.sampling_evotok import EvoTokCodeSampler

    out = Path(options.out)
    fields = {"guidance_min_p": options.guidance_min_p, "top_k": options.top_k, "temperature": options.temperature}
    EvoTokCodeSampler(**{name: value for name, value in fields.items() if value is not None})  # refuses bad values
    with filled_folder(out, OUTDATED) as part:
        model, processor = load_multimodal(options.checkpoint)
        _set_sampling(model.generation_config, processor, options)
        # The tokenizer's weights, too: loaded, they compute in fp32 again. Near codes tie in half precision: codebooks
        # stay whole, at a fortieth of the size.
        model.model.vq_model.stays_in_fp32 = False
        model.to(getattr(torch, options.dtype))
        with waiting("Writing the weights"):
            model.save_pretrained(part)
            processor.save_pretrained(part)
        checkpoint = find_checkpoint(options.checkpoint)
        card = checkpoint.folder / "README.md"
        if not (out / "README.md").exists():
            if card.exists() and checkpoint.base is None:  # beside adapters it is PEFT's, of the adapters
                shutil.copyfile(card, part / card.name)
            else:
                from evotok.checkpoint_card import render_checkpoint_card

                text = render_checkpoint_card(model, out.resolve().name, options.license, options.base_model)
                (part / card.name).write_text(text, encoding="utf-8")
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    facts = {"folder": str(out), "dtype": options.dtype, "weights_bytes": size}
    say(options, facts, [f"{out}: {size / 1e6:.1f} MB of weights"])
    return 0


def _set_sampling(generation_config, processor, options: argparse.Namespace) -> None:
    """The values that the command line gives, and the unconditional prompt: pipelines know no other than the saved."""
    fields = {
        "guidance_min_p": options.guidance_min_p,
        "image_top_k": options.top_k,
        "image_temperature": options.temperature,
    }
    for name, value in fields.items():
        if value is not None:
            setattr(generation_config, name, value)
    silence = [{"role": "user", "content": ""}]
    inputs = processor.apply_chat_template(silence, generation_mode="image", tokenize=True, return_dict=True)
    generation_config.image_negative_prompt_ids = list(inputs["negative_prompt_ids"][0])
