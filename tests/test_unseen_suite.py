"""`evotok eval unseen`: how the mini model fares on other pictures, with made-up ones in their place."""

import json

import numpy as np
import pytest
from PIL import Image

from evotok.cli import main
from evotok.eval.suites.unseen import PHOTOGRAPHS, SETS, Options, check, stamp_questions
from evotok.training.emoji.world import EmojiWorld
from evotok.training.image_sets import folder_images


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Stamps with captions, and photographs of the right names."""
    place, random = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    for name, caption in (("frog", "A frog.\nfr.utf8=Une grenouille."), ("yacht", "Some yacht!"), ("mute", None)):
        path = place / "stamps" / "animals" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (20, 50, 4), dtype=np.uint8)).save(path)
        if caption:
            path.with_suffix(".txt").write_text(caption)
    (place / "photographs").mkdir()
    for name in (name for names in PHOTOGRAPHS.values() for name in names):
        Image.fromarray(random.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(place / "photographs" / name)
    return place


def test_every_set_is_measured(place, capsys):
    words = [f"{name}={place / name}" for name in ("stamps", "photographs")]
    assert main(["eval", "unseen", "mini", *words, "limit=4", "--out", str(place / "out"), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    rows = results["tables"]["reconstruction"]
    assert [row["n"] for row in rows] == [4, 4, 4, 3, 4]
    assert all(row["psnr"] > 0 and -1 <= row["semantic_cosine"] <= 1 for row in rows)
    figures = results["figures"]
    assert figures["psnr_train"] > figures["psnr_photographs"], "noise is no emoji"
    asked = {(row["pictures"], row["question"]): row["n"] for row in results["tables"]["answers"]}
    assert asked["Tux Paint stamps", "What is this?"] == 1 and len(asked) == 8
    assert 0 <= figures["qa_name_openmoji"] <= 1 and figures["qa_group_stamps_n"] == 1
    assert results["data"].keys() == {"train", "new_concept", *SETS}
    assert Image.open(place / "out" / "unseen.png").height > 500


def test_stamps_are_asked_about_where_an_emoji_has_their_name(place):
    world = EmojiWorld()
    stamps = folder_images("stamps", sorted((place / "stamps").rglob("*.png")), padded=True)
    [record] = stamp_questions(world, stamps, "name")
    assert record["answer"] == "frog" and record["images"][0].size == (64, 64)
    [record] = stamp_questions(world, stamps, "group")
    assert record["answer"] == "animals & nature"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stamps": "nowhere"}, r"nowhere: no stamps there: .*sets=\[openmoji,photographs\].*apt-get install tuxpaint"),
        ({"sets": ["photographs"], "photographs": "nowhere"}, r"astronaut.png: no photographs there: .*sets=\[\]"),
    ],
)
def test_what_is_missing_is_named_with_the_command(given, message):
    with pytest.raises(ValueError, match=message):
        check(Options(**given), ["mini"])


def test_unknown_sets():
    with pytest.raises(ValueError, match="unknown 'clipart': choose among openmoji, stamps, photographs"):
        Options(sets=["clipart"])


def test_missing_extra(monkeypatch):
    monkeypatch.setattr("evotok.eval.suites.unseen.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'evotok\[eval\]'"):
        check(Options(sets=["openmoji"]), ["mini"])
