"""`evotok export`: writes a trained checkpoint as a folder to share: half the size, with code, processor and card.

Upload the folder with `hf upload NAME FOLDER`, or load it and call `push_to_hub` of the model and the processor.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from evotok.commands.checkpoints import find_checkpoint, load_multimodal
from evotok.commands.files import add_files, check_folder
from evotok.commands.options import Checkpoint, GuidanceMinP, Json, Temperature, TopK
from evotok.commands.terminal import print_results, waiting


EXAMPLES = """  evotok export mini --out evotok-mini    # the embedded checkpoint, to load without this package
  evotok export runs/paper/gen --out evotok-7b --base-model Qwen/Qwen2.5-7B-Instruct google/siglip2-large-patch16-256
  evotok export runs/paper/low-memory/gen --out evotok-7b-lora    # adapters, merged into their checkpoint"""

# Files of an older export: its weights would be loaded instead of the new ones, and its code is of another version.
OUTDATED = ("model*.safetensors", "model*.safetensors.index.json", "*_evotok*.py")


_CARD = "for the metadata of the card, if neither OUT nor the checkpoint has a README.md"


def run(
    checkpoint: Checkpoint,
    out: Annotated[str, typer.Option(metavar="OUT", help="folder to write; files of an older export are replaced")],
    dtype: Annotated[Literal["bfloat16", "float16", "float32"], typer.Option(help="of the weights")] = "bfloat16",
    guidance_min_p: GuidanceMinP = None,
    top_k: TopK = None,
    temperature: Temperature = None,
    license_name: Annotated[
        str, typer.Option("--license", metavar="NAME", help=f"of the weights; {_CARD}")
    ] = "apache-2.0",
    base_model: Annotated[
        list[str] | None, typer.Option(metavar="ID...", help=f"Hub ids of its base models; {_CARD}")
    ] = None,
    with_code: Annotated[
        bool, typer.Option("--code/--no-code", help="include the model's code, to load it without this package")
    ] = True,
    as_json: Json = False,
) -> None:
    """Write a trained checkpoint as one folder to share.

    Sampling values that are given become its defaults.
    """
    target = check_folder(out)
    find_checkpoint(checkpoint)
    import torch

    from evotok.modeling_evotok.sampling_evotok import EvoTokCodeSampler

    values = {"guidance_min_p": guidance_min_p, "top_k": top_k, "temperature": temperature}
    EvoTokCodeSampler(**{name: value for name, value in values.items() if value is not None})  # refuses bad values
    sampling = {"guidance_min_p": guidance_min_p, "image_top_k": top_k, "image_temperature": temperature}
    with add_files(target, OUTDATED) as part:
        model, processor = load_multimodal(checkpoint)
        _set_sampling(model.generation_config, processor, sampling)
        # The tokenizer is saved in half precision too, and computes in fp32 again when loaded. Its codebooks stay in
        # fp32, at a fortieth of the size: similar codes tie in half precision.
        model.model.vq_model.stays_in_fp32 = False
        model.to(getattr(torch, dtype))
        with waiting("Writing the weights"):
            model.save_pretrained(part)
            processor.save_pretrained(part)
        if not with_code:
            remove_code(part)
        found = find_checkpoint(checkpoint)
        card = found.folder / "README.md"
        if not (target / "README.md").exists():
            if card.exists() and found.base is None:  # beside adapters it is PEFT's card of the adapters
                shutil.copyfile(card, part / card.name)
            else:
                from evotok.cards.checkpoint import render_checkpoint_card

                text = render_checkpoint_card(model, target.resolve().name, license_name, base_model or [])
                (part / card.name).write_text(text, encoding="utf-8")
    size = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    facts = {"folder": str(target), "dtype": dtype, "weights_bytes": size}
    print_results(as_json, facts, [f"{target}: {size / 1e6:.1f} MB of weights"])


def remove_code(folder: Path) -> None:
    """Removes the code from a saved checkpoint, and the `auto_map` entries that name it from its configs."""
    for path in folder.glob("*.py"):
        path.unlink()
    for path in folder.glob("*config.json"):
        content = json.loads(path.read_text("utf-8"), object_hook=_drop_auto_map)
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _drop_auto_map(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != "auto_map"}


def _set_sampling(generation_config, processor, sampling: dict[str, Any]) -> None:
    """Sets the sampling values of the command line, and the negative prompt, which pipelines take from the config."""
    from evotok.modeling_evotok.sampling_evotok import TEXT_GENERATION_DEFAULTS

    for name, value in sampling.items():
        if value is not None:
            setattr(generation_config, name, value)
    if generation_config.do_sample is None and generation_config.temperature is None:  # trained by an earlier version
        generation_config.update(**TEXT_GENERATION_DEFAULTS)
    silence = [{"role": "user", "content": ""}]
    inputs = processor.apply_chat_template(silence, generation_mode="image", tokenize=True, return_dict=True)
    generation_config.image_negative_prompt_ids = list(inputs["negative_prompt_ids"][0])
