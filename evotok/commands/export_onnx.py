"""`evotok export-onnx`: the image tokenizer of a checkpoint as ONNX files, for programs without Python or torch."""

import argparse

from evotok.commands.checkpoints import HELP, load_tokenizer
from evotok.commands.files import filled_folder
from evotok.commands.terminal import add_json, say, waiting


EXAMPLES = """  evotok export-onnx mini --out mini-onnx
  evotok export-onnx runs/paper/tokenizer --out tokenizer-onnx"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=f"{HELP}; an image tokenizer alone will do")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; an older export is replaced")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Graphs, and the settings of the image processor that makes pixels for them."""
    from evotok.tokenizer_graphs import GRAPHS, write_onnx

    with filled_folder(options.out, [f"{name}.onnx.data" for name in GRAPHS]) as part:
        model, image_processor = load_tokenizer(options.checkpoint)
        with waiting("Writing the graphs"):
            paths = write_onnx(model.float().cpu(), part)
        image_processor.save_pretrained(part)
        sizes = {path.name: path.stat().st_size for path in paths}
    line = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items())
    say(options, {"folder": options.out, "bytes": sizes}, [f"{options.out}: {line}"])
    return 0
