"""`evotok data check` on sources with faults of every kind."""

import json

import yaml
from test_sources import MESSAGES, picture, write_images, write_parquet

from evotok.cli import main


def recipe(tmp_path, *sources):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"stage": "sft", "data": {"name": "mixture", "sources": list(sources)}}))
    return str(path)


def test_data_check_reports_rows_and_shows_images(tmp_path, capsys):
    images, llava = tmp_path / "pictures", tmp_path / "llava"
    write_images(images, *(f"red-{n}.png" for n in range(3)))
    (images / "bad.png").write_bytes(b"no")
    llava.mkdir()
    (llava / "1.png").write_bytes(picture("blue"))
    rows = [
        {"id": "1", "image": "1.png", "conversations": MESSAGES},
        {"id": "2", "image": "1.png", "conversations": []},
    ]
    (llava / "blip_laion_cc_sbu_558k.json").write_text(json.dumps(rows))
    pair = {"image": {"bytes": picture(), "path": None}, "question": "Why?", "chosen": "Red.", "rejected": "Blue."}
    write_parquet(tmp_path / "pairs/a.parquet", [pair])
    path = recipe(
        tmp_path,
        {"source": "image-folder", "path": str(images), "weight": 2},
        {"source": "llava-pretrain", "path": str(llava)},
        {"source": "rlaif-v", "path": str(tmp_path / "pairs")},
    )
    assert main(["data", "check", path, "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    for line in (
        *("image-folder, weight 2", "3 images, 40 x 30 to 40 x 30 pixels", "skipped 1", "bad.png"),
        *("2 rows read: 1 usable", "at least one message", "user: <image>What colour?", "558,128 rows published"),
        *("user: <image>Why?", "assistant: Red.", "rejected: Blue."),
    ):
        assert line in out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"image-folder.png", "llava-pretrain.png", "rlaif-v.png"}


def test_data_check_exits_with_2_after_all_sources(tmp_path, capsys):
    images = tmp_path / "pictures"
    write_images(images, "red.png")
    path = recipe(tmp_path, {"source": "cambrian", "path": "nowhere"}, {"source": "image-folder", "path": str(images)})
    assert main(["data", "check", path, "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert "image-folder, weight 1" in captured.out
    assert "cannot be used: cambrian: no folder 'nowhere': download" in captured.err
    assert "1 of 2 sources" in captured.err
    assert main(["data", "check", path, "--out", str(tmp_path / "again"), "--json"]) == 2
    facts = json.loads(capsys.readouterr().out)
    bad, good = facts["sources"]
    assert bad["source"] == "cambrian" and "no folder 'nowhere'" in bad["error"]
    assert good["records"] == good["rows"] == good["pictures"] == 1 and good["sizes"] == [[40, 30], [40, 30]]
    assert facts["pictures"] == [str(tmp_path / "again" / "image-folder.png")]
    assert main(["data", "check", "configs/mini/sft.yaml"]) == 2
    assert "data.name is 'world'" in capsys.readouterr().err
