"""`evotok data check`: reads the first records of every source of a recipe and says what it found."""

import argparse
import sys
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any


EXAMPLES = """  evotok data check configs/paper/sft.yaml
  evotok data check configs/paper/gen.yaml --records 200 --out check"""
_PICTURES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("action", choices=["check"], help="read the first records of every source")
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file with `data.name: mixture`")
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="changes to the recipe")
    parser.add_argument("--records", type=int, default=64, metavar="N", help="records of each source (default 64)")
    parser.add_argument("--out", default="data-check", metavar="DIR", help="folder for the pictures of samples")


def run(options: argparse.Namespace) -> int:
    """Print a paragraph a source; exit code 2 if one of them cannot be used."""
    from evotok.commands.files import save_images
    from evotok.commands.train import find_recipe
    from evotok.training.arguments import read_recipe

    data = read_recipe(find_recipe(options.recipe), options.overrides).data
    if data.name != "mixture":
        raise ValueError(f"{options.recipe}: data.name is {data.name!r}; only the sources of a mixture are checked.")
    if options.records < 1:
        raise ValueError(f"--records {options.records} must be at least 1.")
    failed, sheets = 0, []
    for source in data.sources:
        try:
            report, cells = _check(source, options.records)
        except (ValueError, OSError) as error:
            failed += 1
            print(f"{source.source}\n  cannot be used: {' '.join(str(error).split())}", file=sys.stderr)
            continue
        print(report)
        if cells:
            sheets.append((source.source, _sheet(source.source, cells)))
    for path in save_images(options.out, sheets, overwrite=True) if sheets else ():
        print(path)
    if failed:
        raise ValueError(f"{failed} of {len(data.sources)} sources of {options.recipe} cannot be used.")
    return 0


def _check(source, limit: int) -> tuple[str, list]:
    """What the first records of a source are, and cells with the first pictures."""
    from itertools import islice

    from evotok.processing.image_loading_evotok import EvoTokImageError, load_image
    from evotok.training.streaming import open_part

    part, info = open_part(source)
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    sizes, lengths, cells, first = [], [], [], None
    for row in islice(part.rows, limit):
        counts["rows"] += 1
        try:
            record = part.convert(row)
        except (KeyError, TypeError, ValueError) as error:
            reasons[f"no column {error}" if isinstance(error, KeyError) else " ".join(str(error).split())] += 1
            continue
        texts = _texts(record)
        first = first or texts
        lengths.append(sum(len(text) for _, text in texts))
        counts["text alone"] += not record["images"] and "codes" not in record
        for image in record["images"]:
            try:
                image = load_image(image)
            except EvoTokImageError as error:
                reasons[" ".join(str(error).split())] += 1
                continue
            sizes.append(image.size)
            if len(cells) < _PICTURES:
                cells.append((image, texts))
    if not counts["rows"]:
        raise ValueError("no rows at all")
    if not lengths:
        reason = next(iter(reasons))
        raise ValueError(f"none of the first {counts['rows']} rows is a record ({reason}): is it the right folder?")
    return _report(source, part, info, counts, reasons, sizes, lengths, first), cells


def _texts(record: dict) -> list[tuple[str, str]]:
    said = [
        (message["role"], "".join(part["text"] or "<image>" for part in message["content"]))
        for message in record["messages"]
    ]
    return [*said, ("rejected", record["rejected"])] if "rejected" in record else said


def _report(source, part, info, counts, reasons, sizes, lengths, first) -> str:
    from evotok.training.sources import SOURCES

    adapter = SOURCES.get(source.source)
    lines = [f"{source.source}, weight {part.weight:g}, {part.rows.num_shards:,} shards"]
    if adapter:
        known = f"{adapter.num_samples:,} samples published; " if adapter.num_samples else ""
        lines.append(f"  {known}licence: {adapter.licence}")
    if info:
        lines.append(f"  codes {info.positions} x {info.levels} by the tokenizer {info.tokenizer[:12]}")
    lines.append(
        f"  {counts['rows']} rows read: {len(lengths)} records, {counts['text alone']} of text alone; "
        f"{min(lengths)} to {max(lengths)} characters, median {median(lengths):g}"
    )
    if sizes:
        sides = [" x ".join(map(str, pick(sizes, key=lambda size: size[0] * size[1]))) for pick in (min, max)]
        lines.append(f"  {len(sizes)} pictures, {sides[0]} to {sides[1]} pixels")
    lines += [f"  skipped {count}: {reason[:160]}" for reason, count in reasons.most_common(5)]
    lines += [f"  {role}: {' '.join(text.split())[:100]}" for role, text in (first or [])[:3]]
    return "\n".join(lines)


def _sheet(name: str, cells: list) -> Any:
    from PIL import ImageOps

    from evotok.eval.sheets import Cell, Line, draw_sheet

    drawn = [
        Cell(ImageOps.pad(image, (384, 384), color="white"), [Line(text[:60]) for _, text in texts[:2]])
        for image, texts in cells
    ]
    return draw_sheet(drawn, columns=4, title=f"First pictures of {Path(name).name}")
