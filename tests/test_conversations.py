"""LLaVA-format files: both kinds of images, what is refused, and where the message says so."""

import json
import os

import pytest
from PIL import Image

from evotok.data.conversations import load_conversations, read_conversations
from evotok.data.image_files import resolve_file
from evotok.processing.image_loading_evotok import load_image


ASK = {"from": "human", "value": "<image>\nWhat is this?"}
ANSWER = {"from": "gpt", "value": "A cat."}
RECORD = {"id": "7", "image": "a/7.png", "conversations": [ASK, ANSWER]}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    for name in ("a/7.png", "8.png"):
        Image.new("RGB", (4, 4), "red").save(tmp_path / "images" / name)
    Image.new("RGB", (4, 4), "blue").save(tmp_path / "secret.png")
    return tmp_path / "images"


def write(folder, *records, name="data.jsonl"):
    path = folder / name
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) if name.endswith("l") else "[" + ",".join(lines) + "]", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_images_in_either_turn(folder, name):
    drawing = {
        "image": ["8.png", "a/7.png"],
        "conversations": [
            {"from": "system", "value": "Be kind."},
            {"from": "human", "value": "Make <image> red."},
            {"from": "gpt", "value": "<image>"},
        ],
    }
    plain = {"id": 9, "conversations": [{"from": "human", "value": "Hi"}, ANSWER]}
    first, second, third = read_conversations(write(folder, RECORD, drawing, plain, name=name))
    assert first["id"] == "7" and first["images"] == [str(folder / "a/7.png")]
    image = {"type": "image", "text": None}
    assert first["messages"] == [
        {"role": "user", "content": [image, {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    ]
    texts = [[part["text"] for part in message["content"]] for message in second["messages"]]
    assert texts == [["Be kind."], ["Make", None, "red."], [None]]
    assert second["images"] == [str(folder / "8.png"), str(folder / "a/7.png")]
    assert third["images"] == [] and third["id"] == "9"


@pytest.mark.parametrize(
    "record",
    [
        {"video": "a.mp4", "conversations": [{"from": "human", "value": "<video>\nWhat?"}, ANSWER]},
        {"conversations": [{"from": "human", "value": "<video>\nWhat?"}, ANSWER]},
        {"audio": "a.wav", "conversations": [{"from": "human", "value": "What?"}, ANSWER]},
    ],
)
def test_records_of_something_else_are_no_text(folder, record):
    with pytest.raises(ValueError, match="data.jsonl:1: .*(video|audio).*leave the record out"):
        list(read_conversations(write(folder, record)))


def test_data_set_leaves_images_undecoded_and_sees_edits(folder, tmp_path):
    (folder / "a/7.png").write_bytes(b"corrupt")
    path = write(folder, RECORD)
    for count in (1, 2):
        data = load_conversations(path, cache_dir=tmp_path / "cache")
        assert len(data) == count
        assert data[0]["images"] == [{"bytes": None, "path": str(folder / "a/7.png")}]
        write(folder, RECORD, {**RECORD, "image": "8.png"})
    assert load_image(data[1]["images"][0]).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(ValueError, match=r"data\.jsonl:2: .*make them agree"):
        load_conversations(write(folder, RECORD, {**RECORD, "image": []}), cache_dir=tmp_path / "cache")


def changed(**kwargs):
    return {**RECORD, **kwargs}


BAD = {
    "not json": ("{", "invalid JSON"),
    "no object": ("[1]", "a record is"),
    "no turns": ({"id": 1}, "key 'conversations' is missing"),
    "empty turns": (changed(conversations=[]), "at least one turn"),
    "turns no list": (changed(conversations="hi"), "at least one turn"),
    "turn no object": (changed(conversations=["hi"]), "a turn is"),
    "no role": (changed(conversations=[{"value": "<image>"}]), "key 'from' is missing"),
    "no value": (changed(conversations=[{"from": "gpt"}]), "key 'value' is missing"),
    "unknown role": (changed(conversations=[{**ASK, "from": "robot"}]), "unknown role 'robot'.*human, gpt or system"),
    "role no string": (changed(conversations=[{**ASK, "from": ["human"]}]), "unknown role"),
    "value no string": (changed(conversations=[{**ASK, "value": 3}]), "must be a string"),
    "half a surrogate": (changed(conversations=[{**ASK, "value": "<image>\ud83d"}]), "surrogate"),
    "image no string": (changed(image=[3]), "file name"),
    "image an object": (changed(image={"a": 1}), "file name"),
    "image without mark": (changed(conversations=[ANSWER]), "0 <image> marks for 1 images"),
    "mark without image": (changed(image=None), "1 <image> marks for 0 images"),
    "absolute": (changed(image="/etc/passwd"), "outside"),
    "dotdot": (changed(image="../secret.png"), "outside"),
    "hidden dotdot": (changed(image="a/../../secret.png"), "outside"),
    "link to a file": (changed(image="link.png"), "outside"),
    "link to a folder": (changed(image="up/secret.png"), "outside"),
    "the folder": (changed(image="."), "outside"),
    "null byte": (changed(image="a\0.png"), "no file name"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_records_are_named_by_line(folder, case):
    os.symlink(folder.parent / "secret.png", folder / "link.png")
    os.symlink(folder.parent, folder / "up")
    record, reason = BAD[case]
    path = write(folder, RECORD, "", record)
    with pytest.raises(ValueError, match=reason) as error:
        list(read_conversations(path))
    assert str(error.value).startswith(f"{path}:3: ") and len(str(error.value).splitlines()) == 1


def test_links_inside_the_folder_are_fine(folder):
    os.symlink(folder / "8.png", folder / "again.png")
    assert resolve_file(folder, "again.png") == str(folder / "8.png")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("data.json", b'{"id": 1}', "not a list"),
        ("data.json", b'[{"id": 1}]', "record 0: key 'conversations' is missing"),
        ("data.json", b"[" * 100_000, "nested too deeply|invalid JSON"),
        ("data.json", b"\xff\xfe", "not UTF-8"),
        ("data.jsonl", b"\xff\xfe", "data.jsonl:1: not UTF-8"),
        ("data.csv", b"", "not .json or .jsonl"),
    ],
)
def test_bad_files(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    for read in (read_conversations, load_conversations):
        with pytest.raises(ValueError, match=reason):
            list(read(tmp_path / name))
        with pytest.raises(ValueError, match="no such file|not .json"):
            list(read(tmp_path / ("missing" + name)))
