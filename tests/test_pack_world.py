"""tools/pack_world.py without its packages: masks, sheets, and the attribution of icons and emoji images."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from evotok.data.world.icons import EMOJI_STYLES, _tiles
from tools import pack_world
from tools.pack_world import differences, emoji_images, lay_out, licenses_text, normalize, pack, render_icon, shape_of


def test_icons_become_masks_of_their_ink_without_margins():
    image = Image.new("RGBA", (5, 1))
    for x, color in enumerate([(0, 0, 0, 255), (60, 60, 60, 200), (255, 255, 255, 255), (127, 127, 127, 255)]):
        image.putpixel((x, 0), color)
    assert shape_of(image).tolist() == [[255, 200, 0, 128, 0]], "white cuts holes"
    alpha = np.zeros((96, 96), np.uint8)
    alpha[10:42, 50:66] = 255  # twice as high as wide
    alpha[80, 5] = 16  # a trace of a margin
    mask = normalize(alpha, 64)
    assert mask.shape == (64, 64)
    covered = mask > 127
    assert covered.any(1).all() and covered.any(0).sum() == 32 and covered[:, 16:48].all()


def test_render_icon_turns_the_parent_of_an_alias(monkeypatch):
    seen = []

    def render(body, view, size):
        seen.append((body, view))
        return Image.new("RGBA", (size, size), "red")

    monkeypatch.setattr(pack_world, "render_svg", render)
    icons = {
        "width": 24,
        "height": 20,
        "icons": {"a": {"body": "<a/>"}, "wide": {"body": "<b/>", "width": 40, "left": 2}},
    }
    icons["aliases"] = {"b": {"parent": "a", "hFlip": True, "rotate": 1}}
    for name in ("a", "b", "wide"):
        assert render_icon(icons, name, 8).size == (8, 8)
    assert seen == [("<a/>", (0, -2, 24, 24)), ("<a/>", (0, -2, 24, 24)), ("<b/>", (2, -10, 40, 40))]


def archive(path, **files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            member = tarfile.TarInfo("package/" + name.replace("__", "/").replace("_json", ".json"))
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_emoji_images_are_found_by_their_code(tmp_path, monkeypatch):
    colors = {"<house/>": "blue", "<bin/>": "green"}
    monkeypatch.setattr(
        pack_world, "render_svg", lambda body, view, size: Image.new("RGBA", (size, size), colors[body])
    )
    manifest = {"emoji": [["house", "1F3E0"], ["bin", "1F5D1-FE0F"]]}
    icons = {"icons": {"house": {"body": "<house/>"}, "wastebasket": {"body": "<bin/>"}}}
    path = archive(tmp_path / "a.tgz", icons_json=icons, chars_json={"1f3e0": "house", "1f5d1": "wastebasket"})
    images = emoji_images(manifest, path, 4)
    assert images.shape == (2, 4, 4, 4) and images[:, 0, 0].tolist() == [[0, 0, 255, 255], [0, 128, 0, 255]]
    picture = io.BytesIO()
    Image.new("RGBA", (16, 16), (9, 9, 9, 0)).save(picture, "WEBP", lossless=True, exact=True)
    with tarfile.open(tmp_path / "b.tgz", "w:gz") as tar:
        for code in ("1f3e0", "1f5d1"):
            member = tarfile.TarInfo(f"package/assets/{code}.webp")
            member.size = len(picture.getvalue())
            tar.addfile(member, io.BytesIO(picture.getvalue()))
    assert not emoji_images(manifest, tmp_path / "b.tgz", 4).any(), "invisible colours are black"


def test_lay_out_and_differences_agree(tmp_path):
    tiles = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 4), dtype=np.uint8)
    tiles[..., 3] |= 1
    sheet = lay_out(tiles, columns=3)
    assert sheet.size == (24, 24)
    sheet.save(tmp_path / "a.webp", lossless=True)
    assert (_tiles(tmp_path / "a.webp", "RGBA", 8, 3, 7) == tiles).all()
    assert differences(sheet, tmp_path / "a.webp", 8) == 0
    other = tiles.copy()
    other[4, 2, 3, 0] ^= 1
    assert differences(lay_out(other, 3), tmp_path / "a.webp", 8) == 1
    other = tiles.copy()
    other[:2, ..., 3] = 0
    lay_out(other, 3).save(tmp_path / "b.webp", lossless=True)
    other[:2, ..., :3] = 7
    assert differences(lay_out(other, 3), tmp_path / "b.webp", 8) == 0, "invisible colours do not count"
    assert differences(lay_out(tiles[:3], 3), tmp_path / "a.webp", 8) == 3


def test_licenses_text_equals_the_committed_one(world):
    manifest = json.loads((world.root / "world.json").read_text(encoding="utf-8"))
    text = licenses_text(manifest)
    assert (world.root / "LICENSES.md").read_text(encoding="utf-8") == text
    lines = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    used = {manifest["styles"][style]["set"]: manifest["styles"][style] for _, style, _, _ in manifest["drawings"]}
    assert len(used) > 100 and set(used) | {f"{style}.webp" for style in EMOJI_STYLES} == set(lines)
    for name, style in used.items():
        assert all(style[key] in lines[name] for key in ("title", "author", "licence")), name
        assert f"## {style['licence']}\n" in text
    for style in manifest["styles"]:
        style["licence"] = "LGPL"
    with pytest.raises(KeyError, match="LGPL"):
        licenses_text(manifest)


def test_pack_writes_or_compares_a_folder(tmp_path, monkeypatch):
    style = dict.fromkeys(("author_url", "licence_url", "upstream_version"), "")
    style |= {"set": "s", "title": "S", "author": "A", "licence": "MIT"}
    manifest = {"size": 64, "columns": 2, "emoji_columns": 2, "emoji": [["a", "1F3E0"]], "styles": [style]}
    manifest["drawings"] = [[0, 0, 1.0, "icon"], [0, 0, 1.0, "icon"]]
    (tmp_path / "world.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(pack_world, "fetch", lambda package, folder: package)
    monkeypatch.setattr(pack_world, "icon_masks", lambda m, archive: np.full((2, 64, 64), 200, np.uint8))
    monkeypatch.setattr(pack_world, "emoji_images", lambda m, archive, size: np.full((1, 64, 64, 4), 99, np.uint8))
    assert pack(tmp_path, tmp_path, write=True) == 0 and pack(tmp_path, tmp_path, write=False) == 0
    monkeypatch.setattr(pack_world, "icon_masks", lambda m, archive: np.full((2, 64, 64), 201, np.uint8))
    assert pack(tmp_path, tmp_path, write=False) == 2
    assert len(list(tmp_path.glob("*.webp"))) == 6
