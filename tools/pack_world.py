"""Builds the sheets of `assets/world` from the npm packages of the icons and emoji, and its `LICENSES.md`.

    python tools/pack_world.py [--cache FOLDER]            # compare with what is committed
    python tools/pack_world.py --write [--cache FOLDER]    # replace it

`assets/world/world.json` lists the icons with their sets; it is only read. Needs `npm` for 125 MB of packages and
`pip install numpy pillow resvg-py`.
"""

import argparse
import io
import json
import logging
import subprocess
import sys
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


logger = logging.getLogger("pack_world")

ROOT = Path(__file__).resolve().parents[1] / "assets" / "world"
ICONS = "@iconify/json@2.2.535"
EMOJI = {  # sheet -> npm package
    "noto": "@iconify-json/noto@1.2.9",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "fluent_flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "fluent_3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "openmoji": "@iconify-json/openmoji@1.2.29",
}
RENDERED = 96  # pixels that an icon is rendered at, with its margins
INK = 16  # alpha above which a pixel is not margin
DARK = 70  # luminance below which a colour is ink; white, with which some icons cut holes, is not
_DEFAULTS = {"left": 0, "top": 0, "width": 16, "height": 16}  # of the Iconify format
_FLIPS = (("hFlip", Image.Transpose.FLIP_LEFT_RIGHT), ("vFlip", Image.Transpose.FLIP_TOP_BOTTOM))


def fetch(package: str, folder: Path) -> Path:
    """Fetches the archive of an npm package (name@version) into `folder`, unless it is there.

    Raises:
        RuntimeError: npm cannot fetch it.
    """
    path = folder / (package.lstrip("@").replace("/", "-").replace("@", "-") + ".tgz")
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", package, "--pack-destination", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not path.is_file():
            raise RuntimeError(f"npm could not fetch {package}: {done.stderr.strip()}")
    return path


def read_members(archive: Path, names: set[str]) -> dict[str, bytes]:
    """Reads files of an npm archive by their path in the package; missing ones are left out."""
    found = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.removeprefix("package/")
            if name in names:
                found[name] = tar.extractfile(member).read()
    return found


def render_svg(body: str, view: tuple[float, float, float, float], size: int) -> Image.Image:
    """Renders the body of an SVG as an RGBA image of `size` x `size` pixels."""
    from resvg_py import svg_to_bytes  # not installed with the package

    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{" ".join(map(str, view))}" width="{size}" height="{size}">{body}</svg>'
    )
    png = svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    return Image.open(io.BytesIO(png)).convert("RGBA")


def render_icon(icons: dict[str, Any], name: str, size: int) -> Image.Image:
    """Renders an icon of an Iconify set, or one of its aliases, as an RGBA image."""
    alias = icons.get("aliases", {}).get(name)
    if alias is not None:
        image = render_icon(icons, alias["parent"], size)
        for field, flip in _FLIPS:
            image = image.transpose(flip) if alias.get(field) else image
        return image.rotate(-90 * alias.get("rotate", 0))
    icon = icons["icons"][name]
    left, top, width, height = (icon.get(key, icons.get(key, default)) for key, default in _DEFAULTS.items())
    side = max(width, height)
    return render_svg(icon["body"], (left - (side - width) / 2, top - (side - height) / 2, side, side), size)


def shape_of(image: Image.Image) -> np.ndarray:
    """Computes the ink at every pixel of a rendered icon: RGBA -> (H, W) uint8."""
    luminance = np.asarray(image.convert("RGB").convert("L")).astype(np.float32)
    ink = np.where(luminance < DARK, 255, 255 - luminance)
    return np.round(np.asarray(image)[..., 3] * ink / 255).astype(np.uint8)


def normalize(alpha: np.ndarray, size: int) -> np.ndarray:
    """Cuts the margins of an alpha mask, pads it to a square and resizes it: (H, W) uint8 -> (size, size) uint8."""
    rows, columns = np.where(alpha > INK)
    cropped = alpha[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    height, width = cropped.shape
    side = max(height, width)
    square = np.zeros((side, side), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = cropped
    filter_ = Image.Resampling.BOX if side >= 2 * size else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(square).resize((size, size), filter_))


def icon_masks(manifest: dict[str, Any], archive: Path) -> np.ndarray:
    """Renders the masks of all icons of the manifest, (I, size, size) uint8."""
    sets = sorted({style["set"] for style in manifest["styles"]})
    files = read_members(archive, {f"json/{name}.json" for name in sets})
    icons = {name: json.loads(files[f"json/{name}.json"]) for name in sets}
    masks = []
    for _, style, _, name in manifest["drawings"]:
        image = render_icon(icons[manifest["styles"][style]["set"]], name, RENDERED)
        masks.append(normalize(shape_of(image), manifest["size"]))
    return np.stack(masks)


def _key(hexcode: str) -> str:
    """Normalizes a hexcode, which the packages write differently: lower case, without the variation selector."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def emoji_images(manifest: dict[str, Any], archive: Path, size: int) -> np.ndarray:
    """Renders all emoji of the manifest in one style, (I, size, size, 4) uint8, black where alpha is 0."""
    codes = [_key(code) for _, code in manifest["emoji"]]
    files = read_members(archive, {"icons.json", "chars.json"})
    if files:
        icons = json.loads(files["icons.json"])
        names = {_key(code): name for code, name in json.loads(files["chars.json"]).items()}
        images = [render_icon(icons, names[code], size) for code in codes]
    else:
        images = [_scaled(archive, code, size) for code in codes]
    stacked = np.stack([np.asarray(image) for image in images])
    return np.where(stacked[..., 3:] > 0, stacked, 0)


@cache
def _image_files(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.name.startswith("package/assets/") and member.isfile()]
        return {_key(Path(member.name).stem): tar.extractfile(member).read() for member in members}


def _scaled(archive: Path, code: str, size: int) -> Image.Image:
    with Image.open(io.BytesIO(_image_files(archive)[code])) as image:
        premultiplied = image.convert("RGBA").convert("RGBa")  # otherwise hidden colours bleed into the edges
    return premultiplied.resize((size, size), Image.Resampling.BOX).convert("RGBA")


def lay_out(tiles: np.ndarray, columns: int) -> Image.Image:
    """Arranges tiles, (I, H, W) or (I, H, W, 4) uint8, on a sheet in reading order."""
    count, height, width, *channels = tiles.shape
    rows = -(-count // columns)
    sheet = np.zeros((rows * columns, height, width, *channels), np.uint8)
    sheet[:count] = tiles
    sheet = sheet.reshape(rows, columns, height, width, *channels).swapaxes(1, 2)
    return Image.fromarray(sheet.reshape(rows * height, columns * width, *channels))


def differences(sheet: Image.Image, path: Path, size: int) -> int:
    """Counts the tiles of a sheet that differ from a file in any bit, except in colours where alpha is 0."""
    with Image.open(path) as image:
        committed = np.asarray(image.convert(sheet.mode))
    made = np.asarray(sheet)
    if committed.shape != made.shape:
        return made.shape[0] * made.shape[1] // size**2
    differs = committed != made
    if sheet.mode == "RGBA":
        hidden = (committed[..., 3] == 0) & (made[..., 3] == 0)
        differs = (differs & ~hidden[..., None]).any(-1)
    rows, columns = differs.shape[0] // size, differs.shape[1] // size
    return int(differs.reshape(rows, size, columns, size).any((1, 3)).sum())


ATTRIBUTION = {  # sheet -> title, author, source, licence
    "noto": ("Noto Emoji", "Google LLC", "https://github.com/googlefonts/noto-emoji", "Apache-2.0"),
    "twemoji": (
        "Twemoji",
        "Twitter, Inc. and other contributors; maintained by jdecked",
        "https://github.com/jdecked/twemoji",
        "CC-BY-4.0",
    ),
    "fluent_flat": (
        "Fluent Emoji (flat)",
        "Microsoft Corporation",
        "https://github.com/microsoft/fluentui-emoji",
        "MIT",
    ),
    "fluent_3d": (
        "Fluent Emoji (3D)",
        "Microsoft Corporation; packaged by LobeHub",
        "https://github.com/microsoft/fluentui-emoji",
        "MIT",
    ),
    "openmoji": (
        "OpenMoji",
        "OpenMoji, the open-source emoji project of HfG Schwaebisch Gmuend",
        "https://github.com/hfg-gmuend/openmoji",
        "CC-BY-SA-4.0",
    ),
}
_CHANGES = """
Every icon set and every emoji style keeps the licence of its art. Changes made: of an icon its shape was rendered, cut
to its margins and scaled to 64x64 pixels, without its colours; emoji were rendered or scaled to 64x64 pixels; all were
put together on one sheet a file (`tools/pack_world.py`). `openmoji.webp` is an adaptation of OpenMoji under
CC-BY-SA-4.0; it is a file of its own, and nothing else is made of it. `world.json` names the set of each icon.
"""
_COPYRIGHT = """
Twemoji: Copyright Twitter, Inc. and other contributors. Fluent Emoji: Copyright (c) Microsoft Corporation; packaging
copyright (c) 2023 LobeHub. OpenMoji: all emojis designed by OpenMoji, the open-source emoji and icon project.
"""
_BSD = """
Redistribution and use in source and binary forms, with or without modification, are permitted provided that the
following conditions are met: (1) Redistributions of source code must retain the copyright notice above, this list of
conditions and the following disclaimer. (2) Redistributions in binary form must reproduce the copyright notice above,
this list of conditions and the following disclaimer in the documentation and/or other materials provided with the
distribution. (3) Neither the name of the copyright holder nor the names of its contributors may be used to endorse or
promote products derived from this software without specific prior written permission.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED WARRANTIES,
INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE
DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL,
SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR
SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY,
WHETHER IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE OF
THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.
"""
_ISC = """
Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is hereby granted,
provided that the above copyright notice and this permission notice appear in all copies.

THE SOFTWARE IS PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES WITH REGARD TO THIS SOFTWARE INCLUDING ALL
IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR ANY SPECIAL, DIRECT,
INDIRECT, OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, WHETHER IN AN
ACTION OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF OR IN CONNECTION WITH THE USE OR PERFORMANCE OF
THIS SOFTWARE.
"""
_MIT = """
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
LICENCES = {  # licence -> its text, or the address of it
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0; the text is in `LICENSE` of this repository.",
    "BSD-3-Clause": _BSD,
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "ISC": _ISC,
    "MIT": _MIT,
    "OFL-1.1": "https://openfontlicense.org/open-font-license-official-text/; no font is made of these shapes.",
    "Unlicense": "https://unlicense.org/",
}


def licenses_text(manifest: dict[str, Any]) -> str:
    """Builds `LICENSES.md`: a line for every icon set that occurs and every emoji style, then the licences.

    Raises:
        KeyError: a licence that is not in `LICENCES`.
    """
    used = {manifest["styles"][style]["set"]: manifest["styles"][style] for _, style, _, _ in manifest["drawings"]}
    rows = [
        (
            f"`{name}`",
            f"{style['title']} {style['upstream_version'] or ''}".strip(),
            style["author"],
            style["author_url"] or "",
            f"[{style['licence']}]({style['licence_url']})" if style["licence_url"] else style["licence"],
        )
        for name, style in sorted(used.items())
    ]
    emoji = [
        (f"`{sheet}.webp`", f"{title}, npm `{EMOJI[sheet]}`", author, source, licence)
        for sheet, (title, author, source, licence) in ATTRIBUTION.items()
    ]
    needed = {style["licence"] for style in used.values()} | {line[3] for line in ATTRIBUTION.values()}
    source = f"Icons are from the npm package `{ICONS}`, which names author and licence of every set."
    parts = ["# Licences of the icons and emoji images", _CHANGES.strip(), source]
    parts += ["## Icon sets (`icons.webp`)", _table("set", rows)]
    parts += ["## Emoji", _table("file", emoji), _COPYRIGHT.strip()]
    parts += [f"## {name}\n\n{LICENCES[name].strip()}" for name in sorted(needed)]
    return "\n\n".join(parts) + "\n"


def _table(first: str, rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {first} | title and version | author | source | licence |", "| --- | --- | --- | --- | --- |"]
    return "\n".join(lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows])


def pack(folder: Path, archives: Path, write: bool) -> int:
    """Builds all sheets and `LICENSES.md` of a folder with `world.json`; returns the number of tiles and files that
    differ from those in the folder."""
    manifest = json.loads((folder / "world.json").read_text(encoding="utf-8"))
    size = manifest["size"]
    sheets = {"icons": lay_out(icon_masks(manifest, fetch(ICONS, archives)), manifest["columns"])}
    for style, package in EMOJI.items():
        sheets[style] = lay_out(emoji_images(manifest, fetch(package, archives), size), manifest["emoji_columns"])
    total = 0
    for name, sheet in sheets.items():
        path = folder / f"{name}.webp"
        if write:
            sheet.save(path, lossless=True, method=6, quality=100)
        changed = differences(sheet, path, size)
        total += changed
        logger.info("%s: %d x %d px, %d tiles differ", path.name, *sheet.size, changed)
    text, path = licenses_text(manifest), folder / "LICENSES.md"
    if write:
        path.write_text(text, encoding="utf-8")
    same = path.is_file() and path.read_text(encoding="utf-8") == text
    logger.info("%s: %s", path.name, "as it should be" if same else "differs")
    return total + (not same)


def main() -> int:
    """Runs the command line; exit code 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT, help="with world.json (default: assets/world)")
    parser.add_argument("--cache", type=Path, default=Path("runs/npm"), help="keeps the packages (default: runs/npm)")
    parser.add_argument("--write", action="store_true", help="replace the files instead of comparing with them")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return min(1, pack(options.folder, options.cache, options.write))


if __name__ == "__main__":
    sys.exit(main())
