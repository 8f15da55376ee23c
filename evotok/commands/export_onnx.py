"""`evotok export-onnx`: writes the image tokenizer of a checkpoint as ONNX files, for programs without torch."""

from typing import Annotated

import typer

from evotok.commands.checkpoints import find_checkpoint, load_tokenizer
from evotok.commands.files import add_files, check_folder
from evotok.commands.options import Json, TokenizerCheckpoint
from evotok.commands.terminal import print_results, waiting


EXAMPLES = """  evotok export-onnx mini --out mini-onnx
  evotok export-onnx runs/paper/tokenizer --out tokenizer-onnx"""


def run(
    checkpoint: TokenizerCheckpoint,
    out: Annotated[str, typer.Option(metavar="DIR", help="folder to write; an older export is replaced")],
    as_json: Json = False,
) -> None:
    """Write the image tokenizer of a checkpoint as ONNX files.

    The settings of its image processor are written beside them.
    """
    check_folder(out)
    find_checkpoint(checkpoint)
    from evotok.tokenizer_graphs import GRAPHS, write_onnx

    with add_files(out, [f"{name}.onnx.data" for name in GRAPHS]) as part:
        model, image_processor = load_tokenizer(checkpoint)
        with waiting("Writing the graphs"):
            paths = write_onnx(model.float().cpu(), part)
        image_processor.save_pretrained(part)
        sizes = {path.name: path.stat().st_size for path in paths}
    line = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items())
    print_results(as_json, {"folder": out, "bytes": sizes}, [f"{out}: {line}"])
