"""`evotok convert`: converts checkpoints of the paper's release into those of EvoTok, and back."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from evotok.commands.checkpoints import find_checkpoint, quiet_libraries
from evotok.commands.files import check_new_folder, new_folder
from evotok.commands.options import Json
from evotok.commands.terminal import print_results, waiting


if TYPE_CHECKING:
    from evotok.conversion.sizes import Choices


EXAMPLES = """  evotok convert last.pt --out tokenizer
  evotok convert last.pt understanding/ generation/ --out evotok-7b
  evotok convert last.pt rqtransformer.bin mm_projector.bin Qwen2.5-7B-Instruct/ --out stage1
  evotok convert evotok-7b --to-reference --out release"""

LanguageModel = Literal["understanding", "generation"]


def _size(text: str) -> Any:
    """Builds the option of a size that the shapes of tensors do not give."""
    return typer.Option(metavar="N", min=1, help=text, rich_help_panel="Sizes that no tensor shows (release's values)")


def run(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="files and folders of the release that make one model: last.pt, rqtransformer.bin, mm_projector.bin, "
            "folders of language models, or one folder with all of them; with --to-reference a checkpoint of EvoTok",
        ),
    ],
    out: Annotated[str, typer.Option(metavar="DIR", help="folder to create")],
    to_reference: Annotated[
        bool, typer.Option("--to-reference", help="write the release's format instead of reading it")
    ] = False,
    language_model: Annotated[
        LanguageModel | None, typer.Option(help="which language model to keep if the two differ")
    ] = None,
    encoder_heads: Annotated[
        int | None, _size("attention heads of the encoder (those of the SigLIP of its width, or 16)")
    ] = None,
    semantic_heads: Annotated[int | None, _size("attention heads of the semantic decoder (12)")] = None,
    depth_heads: Annotated[int | None, _size("attention heads of the depth decoder (40)")] = None,
    image_size: Annotated[
        int | None, _size("side of the images in pixels (from the teacher's name, 256 or 384)")
    ] = None,
    pixel_levels: Annotated[int | None, _size("levels that pixels are decoded from (4)")] = None,
    as_json: Json = False,
) -> None:
    """Convert checkpoints of the paper's release into those of EvoTok, or back."""
    check_new_folder(out)
    if to_reference:
        if len(sources) != 1:
            raise ValueError(f"--to-reference takes one checkpoint of EvoTok, not {len(sources)} sources.")
        find_checkpoint(sources[0])
    from huggingface_hub.errors import StrictDataclassError

    from evotok.conversion.sizes import Choices
    from evotok.data.errors import reason

    quiet_libraries()
    try:
        if to_reference:
            _export(sources[0], out, as_json)
        else:
            choices = Choices(
                encoder_heads=encoder_heads,
                semantic_heads=semantic_heads,
                depth_heads=depth_heads,
                image_size=image_size,
                pixel_levels=pixel_levels,
            )
            _import(sources, choices, language_model, out, as_json)
    except StrictDataclassError as error:
        raise ValueError(f"{sources[0]}: sizes that make no model ({reason(error, 400)}).") from None


def _import(sources: list[str], choices: "Choices", language_model: str | None, out: str, as_json: bool) -> None:
    from evotok.conversion.import_reference import import_reference

    with new_folder(out) as folder, waiting("Converting"):
        model = import_reference(sources, choices, language_model)
        model.save(folder)
    numbers = sum(tensor.numel() for tensor in model.tensors.values())
    lines = [f"{out}: {numbers:,} numbers converted"]
    if model.fresh:
        lines.append(f"not in the sources, initialized at random and to be trained: {', '.join(model.fresh)}")
    if model.assumed:
        words = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in model.assumed.items())
        whose = "as in the release" if model.is_released else "a guess, because these are not the sizes of the release"
        lines.append(f"assumed, because no file has it, {whose}: {words}. If they are wrong, the codes are wrong.")
    facts = {"folder": out, "numbers": numbers, "fresh": list(model.fresh)}
    print_results(as_json, facts | ({"assumed": model.assumed} if model.assumed else {}), lines)


def _export(source: str, out: str, as_json: bool) -> None:
    from evotok.conversion.export_reference import export_reference

    checkpoint = find_checkpoint(source)
    if checkpoint.base is not None:
        raise ValueError(f"{source}: adapters. `evotok export` them first, and give the result.")
    with new_folder(out) as folder, waiting("Converting"):
        export_reference(checkpoint.folder, folder, final=Path(out).absolute())
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    print_results(as_json, {"folder": out, "files": files}, [f"{out}: written in the release's format"])
