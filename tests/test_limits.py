"""Limits of the input of visitors of the page."""

from pathlib import Path

import pytest
from PIL import Image

from evotok.app.limits import (
    MAX_SIDE,
    STATE_SECONDS,
    TIME_LIMIT,
    WAITING_OF_ADDRESS,
    WAITING_OF_SESSION,
    check_number,
    open_upload,
)


def test_limits_equal_the_documented_ones():
    text = (Path(__file__).parents[1] / "docs/command-line.md").read_text(encoding="utf-8").replace("\n", " ")
    assert (TIME_LIMIT, WAITING_OF_ADDRESS, WAITING_OF_SESSION, STATE_SECONDS) == (120, 8, 4, 3600)
    assert "for at most two minutes" in text and "after an hour" in text
    assert "At most eight requests of one address and four of one tab" in text


def test_open_upload_converts_and_shrinks(tmp_path):
    path = tmp_path / "wide.png"
    Image.new("RGBA", (3000, 30), (0, 0, 0, 0)).save(path)
    image = open_upload(str(path), str(tmp_path))
    assert image.mode == "RGB" and image.width == MAX_SIDE and image.getpixel((0, 0)) == (255, 255, 255)


def test_open_upload_error_has_the_file_name_without_folder(tmp_path):
    bomb, text, cut = tmp_path / "bomb.png", tmp_path / "page.png", tmp_path / "cut.png"
    Image.new("1", (6000, 6000)).save(bomb)
    text.write_text("<html>")
    cut.write_bytes(bomb.read_bytes()[:200])
    for path, reason in ((bomb, "over the limit of 24 Mpx"), (text, "not an image"), (cut, "over the limit|cannot")):
        with pytest.raises(ValueError, match=f"^{path.name}: .*({reason})") as refused:
            open_upload(str(path), str(tmp_path))
        assert str(tmp_path) not in str(refused.value) and "max_pixels" not in str(refused.value)


def test_open_upload_refuses_files_outside_of_the_folder(tmp_path):
    (tmp_path / "uploads").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "mine.png")
    (tmp_path / "uploads" / "link.png").symlink_to(tmp_path / "mine.png")
    for name in ("mine.png", "uploads/../mine.png", "uploads/link.png", "uploads/missing.png", "uploads"):
        with pytest.raises(ValueError, match=f"^{Path(name).name}: was not uploaded to this page"):
            open_upload(str(tmp_path / name), str(tmp_path / "uploads"))


@pytest.mark.parametrize("value", [True, "7", float("inf"), -1])
def test_check_number_refuses_other_values(value):
    with pytest.raises(ValueError, match="Guidance is .*: give a number from 0 to 3"):
        check_number(value, 0, 3, "Guidance")
