"""`evotok data check`: reads the first rows of every source of a recipe and prints a summary."""

import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import typer

from evotok.commands.files import check_folder, save_images
from evotok.commands.options import Json, Overrides, Recipe
from evotok.commands.recipes import check_recipe
from evotok.commands.terminal import print_results, progress


EXAMPLES = """  evotok data check configs/paper/sft.yaml
  evotok data check configs/paper/gen.yaml --records 200 --out check"""
_IMAGES, _SIDE = 8, 384


def run(
    action: Annotated[Literal["check"], typer.Argument(help="read the first rows of every source")],
    recipe: Recipe,
    overrides: Overrides = None,
    records: Annotated[int, typer.Option(metavar="N", min=1, help="rows of each source")] = 64,
    out: Annotated[str, typer.Option(metavar="DIR", help="folder for sheets of images")] = "data-check",
    as_json: Json = False,
) -> None:
    """Check the data of a recipe: read the first rows of every source.

    Exits with 2 if one of them cannot be used.
    """
    check_folder(out)
    path, words = check_recipe(recipe, overrides or ())
    from evotok.data.errors import escape_controls, one_line
    from evotok.training.recipes import read_recipe

    data = read_recipe(path, words).data
    if data.name != "mixture":
        raise ValueError(f"{recipe}: data.name is {data.name!r}; only the sources of a mixture are checked.")
    found, sheets = [], []
    with progress(len(data.sources), "source", "Checking") as bar:
        for source in data.sources:
            try:
                facts, cells = _check(source, records)
                if not as_json:
                    bar.write(escape_controls(_report(facts)))
            except (ValueError, OSError) as error:
                facts, cells = {"source": source.source, "error": one_line(error)}, []
                bar.write(escape_controls(f"{source.source}\n  cannot be used: {facts['error']}"), file=sys.stderr)
            found.append(facts)
            if cells:
                sheets.append((source.source, _sheet(source.source, cells)))
            bar.update()
    paths = [str(path) for path in save_images(out, sheets, overwrite=True)] if sheets else []
    print_results(as_json, {"sources": found, "pictures": paths}, paths)
    failed = sum("error" in facts for facts in found)
    if failed:
        raise ValueError(f"{failed} of {len(found)} sources of {recipe} cannot be used.")


def _check(source, limit: int) -> tuple[dict[str, Any], list]:
    """Returns facts about the first rows of a source, and its first images with their texts."""
    from evotok.data.errors import one_line, row_reason
    from evotok.data.sources import SOURCES
    from evotok.data.stream_loader import open_source
    from evotok.processing.image_loading_evotok import EvoTokImageError, load_image

    opened, info = open_source(source)
    known = SOURCES.get(source.source)
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    sizes, lengths, cells, first = [], [], [], None
    for raw in islice(opened.rows, limit):
        counts["rows"] += 1
        try:
            row = opened.convert(raw)
        except (KeyError, TypeError, ValueError) as error:
            reasons[row_reason(error)] += 1
            continue
        texts = _texts(row)
        first = first or texts
        lengths.append(sum(len(text) for _, text in texts))
        counts["text alone"] += not row["images"] and "codes" not in row
        for image in row["images"]:
            try:
                image = load_image(image)
            except EvoTokImageError as error:
                reasons[one_line(error)] += 1
                continue
            sizes.append(image.size)
            if len(cells) < _IMAGES:
                cells.append((_pad(image), texts))
    if not counts["rows"]:
        raise ValueError("no rows")
    if not lengths:
        reason = next(iter(reasons))
        raise ValueError(f"none of the first {counts['rows']} rows can be used ({reason}): check `path`.")
    facts = {
        "source": source.source,
        "weight": opened.weight,
        "shards": len(opened.rows.shards),
        "licence": known.licence if known else None,
        "samples_published": known.num_rows if known else None,
        "codes": info and {"positions": info.positions, "levels": info.levels, "tokenizer": info.tokenizer},
        "rows": counts["rows"],
        "records": len(lengths),
        "text_alone": counts["text alone"],
        "characters": {"least": min(lengths), "most": max(lengths), "median": median(lengths)},
        "pictures": len(sizes),
        "sizes": [pick(sizes, key=lambda size: size[0] * size[1]) for pick in (min, max)] if sizes else [],
        "skipped": dict(reasons.most_common()),
        "first": [{"role": role, "text": text} for role, text in first or []],
    }
    return facts, cells


def _texts(row: dict) -> list[tuple[str, str]]:
    texts = [
        (message["role"], "".join(part["text"] or "<image>" for part in message["content"]))
        for message in row["messages"]
    ]
    return [*texts, ("rejected", row["rejected"])] if "rejected" in row else texts


def _report(facts: dict[str, Any]) -> str:
    lines = [f"{facts['source']}, weight {facts['weight']:g}, {facts['shards']:,} shards"]
    if facts["licence"] is not None:
        published = f"{facts['samples_published']:,} rows published; " if facts["samples_published"] else ""
        lines.append(f"  {published}licence: {facts['licence']}")
    if facts["codes"]:
        codes = facts["codes"]
        lines.append(f"  codes {codes['positions']} x {codes['levels']} by the tokenizer {codes['tokenizer'][:12]}")
    characters = facts["characters"]
    lines.append(
        f"  {facts['rows']} rows read: {facts['records']} usable, {facts['text_alone']} of text alone; "
        f"{characters['least']} to {characters['most']} characters, median {characters['median']:g}"
    )
    if facts["sizes"]:
        least, most = (f"{width} x {height}" for width, height in facts["sizes"])
        lines.append(f"  {facts['pictures']} images, {least} to {most} pixels")
    lines += [f"  skipped {count}: {reason[:160]}" for reason, count in list(facts["skipped"].items())[:5]]
    lines += [f"  {message['role']}: {' '.join(message['text'].split())[:100]}" for message in facts["first"][:3]]
    return "\n".join(lines)


def _pad(image: Any) -> Any:
    from PIL import ImageOps

    image = image.copy()
    image.thumbnail((_SIDE, _SIDE))  # at least one pixel wide and high
    return ImageOps.pad(image, (_SIDE, _SIDE), color="white")


def _sheet(name: str, cells: list) -> Any:
    from evotok.eval.plotting.sheets import Cell, Line, draw_sheet

    cells = [Cell(image, [Line(text[:60]) for _, text in texts[:2]]) for image, texts in cells]
    return draw_sheet(cells, columns=4, title=f"First images of {Path(name).name}")
