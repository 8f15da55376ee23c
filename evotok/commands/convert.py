"""`evotok convert`: checkpoints of the paper's release become ours, and ours theirs."""

import argparse

from evotok.commands.files import new_folder
from evotok.commands.numbers import at_least_one
from evotok.commands.terminal import add_json, say, waiting


EXAMPLES = """  evotok convert last.pt --out tokenizer
  evotok convert last.pt understanding/ generation/ --out evotok-7b
  evotok convert last.pt rqtransformer.bin mm_projector.bin Qwen2.5-7B-Instruct/ --out stage1
  evotok convert evotok-7b --to-reference --out release"""

_SIZES = {
    "--encoder-heads": "attention heads of the encoder (those of the SigLIP of its width, or 16)",
    "--semantic-heads": "attention heads of the semantic decoder (12)",
    "--depth-heads": "attention heads of the depth decoder (40)",
    "--image-size": "side of the images in pixels (as the teacher's name says, 256 or 384)",
    "--pixel-levels": "levels that pixels are decoded from (4)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="files and folders of the release that make one model: last.pt, rqtransformer.bin, mm_projector.bin, "
        "folders of language models, or one folder of all that; with --to-reference a checkpoint of ours",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--to-reference", action="store_true", help="write the release's format instead of reading it")
    parser.add_argument(
        "--language-model",
        choices=["understanding", "generation"],
        help="whose language model to keep if the two were trained apart",
    )
    sizes = parser.add_argument_group("what stands in no tensor (the release's values)")
    for name, text in _SIZES.items():
        sizes.add_argument(name, type=at_least_one, metavar="N", help=text)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Convert one way or the other; the folder appears when all of it is written."""
    from huggingface_hub.errors import StrictDataclassError

    from evotok.commands.checkpoints import quiet_libraries

    quiet_libraries()
    try:
        return _export(options) if options.to_reference else _import(options)
    except StrictDataclassError as error:
        raise ValueError(f"{options.sources[0]}: sizes that make no model ({' '.join(str(error).split())}).") from None


def _import(options: argparse.Namespace) -> int:
    from evotok.conversion.import_reference import import_reference
    from evotok.conversion.sizes import Choices

    choices = Choices(**{name: getattr(options, name) for name in Choices._fields})
    with new_folder(options.out) as folder, waiting("Converting"):
        model = import_reference(options.sources, choices, options.language_model)
        model.save(folder)
    numbers = sum(tensor.numel() for tensor in model.tensors.values())
    lines = [f"{options.out}: {numbers:,} numbers converted"]
    if model.fresh:
        lines.append(f"not in the sources, drawn anew and to be trained: {', '.join(model.fresh)}")
    if model.assumed:
        words = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in model.assumed.items())
        whose = "as in the release" if model.is_released else "a guess, for these are no sizes of the release"
        lines.append(f"assumed, because no file says it, {whose}: {words}. With other true values codes are wrong.")
    facts = {"folder": options.out, "numbers": numbers, "fresh": list(model.fresh)}
    say(options, facts | ({"assumed": model.assumed} if model.assumed else {}), lines)
    return 0


def _export(options: argparse.Namespace) -> int:
    from pathlib import Path

    from evotok.commands.checkpoints import find_checkpoint
    from evotok.conversion.export_reference import export_reference

    if len(options.sources) != 1:
        raise ValueError(f"--to-reference takes one checkpoint of ours, not {len(options.sources)} sources.")
    checkpoint = find_checkpoint(options.sources[0])
    if checkpoint.base is not None:
        raise ValueError(f"{options.sources[0]}: adapters. `evotok export` them first, and give the result.")
    with new_folder(options.out) as folder, waiting("Converting"):
        export_reference(checkpoint.folder, folder, final=Path(options.out).absolute())
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    say(options, {"folder": options.out, "files": files}, [f"{options.out}: written in the release's format"])
    return 0
