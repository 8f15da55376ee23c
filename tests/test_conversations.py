"""LLaVA-format files: images in the messages of either role, and what is refused, with its line."""

import json

import pytest
from PIL import Image

from evotok.data.conversations import IndexedRows, load_conversations, read_conversations
from evotok.processing.image_loading_evotok import load_image


ASK = {"from": "human", "value": "<image>\nWhat is this?"}
ANSWER = {"from": "gpt", "value": "A cat."}
ROW = {"id": "7", "image": "a/7.png", "conversations": [ASK, ANSWER]}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    for name in ("a/7.png", "8.png"):
        Image.new("RGB", (4, 4), "red").save(tmp_path / "images" / name)
    return tmp_path / "images"


def write(folder, *rows, name="data.jsonl"):
    path = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) if name.endswith("l") else "[" + ",".join(lines) + "]", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_read_conversations_converts_marks_of_either_role(folder, name):
    edit = {
        "image": ["8.png", "a/7.png"],
        "conversations": [
            {"from": "system", "value": "Be kind."},
            {"from": "human", "value": "Make <image> red."},
            {"from": "gpt", "value": "<image>"},
        ],
    }
    plain = {"id": 9, "conversations": [{"from": "human", "value": "Hi"}, ANSWER]}
    first, second, third = read_conversations(write(folder, ROW, edit, plain, name=name))
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


def test_load_conversations_decodes_no_image_and_reads_edited_files_again(folder, tmp_path):
    (folder / "a/7.png").write_bytes(b"corrupt")
    path = write(folder, ROW)
    for count in (1, 2):
        data = load_conversations(path, cache_dir=tmp_path / "cache")
        assert len(data) == count
        assert data[0]["images"] == [{"bytes": None, "path": str(folder / "a/7.png")}]
        write(folder, ROW, {**ROW, "image": "8.png"})
    assert load_image(data[1]["images"][0]).getpixel((0, 0)) == (255, 0, 0)
    assert IndexedRows(data)[1]["index"] == 1 and len(IndexedRows(data)) == 2
    with pytest.raises(ValueError, match=r"data\.jsonl:2: .*make them agree"):
        load_conversations(write(folder, ROW, {**ROW, "image": []}), cache_dir=tmp_path / "cache")


def row_of(*given, **kwargs):
    return {**ROW, "conversations": list(given), **kwargs}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "invalid JSON"),
        ("[1]", "a row is"),
        ({"id": 1}, "key 'conversations' is missing"),
        (row_of(), "at least one message"),
        (row_of("hi"), "a message is"),
        (row_of({"value": "<image>"}), "key 'from' is missing"),
        (row_of({**ASK, "from": ["robot"]}), "unknown role .*human, gpt or system"),
        (row_of({**ASK, "value": 3}), "must be a string"),
        (row_of({**ASK, "value": "<image>\ud83d"}), "surrogate"),
        (row_of(ASK, id="\ud83d"), '"id" holds half of a surrogate'),
        (row_of(ASK, image={"a": 1}), "file name"),
        (row_of(ANSWER), "0 <image> marks for 1 images"),
        (row_of(ASK, image="../secret.png"), "is outside of"),
        (row_of(ASK, video="a.mp4"), '"video": only text and images .*leave the row out'),
        (row_of({"from": "human", "value": "<video>"}, image=None), "<video>.*leave the row out"),
    ],
)
def test_read_conversations_names_the_line_of_a_bad_row(folder, row, message):
    path = write(folder, ROW, "", row)
    with pytest.raises(ValueError, match=message) as error:
        list(read_conversations(path))
    assert str(error.value).startswith(f"{path}:3: ") and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.json", b'{"id": 1}', "not a list"),
        ("data.json", b'[{"id": 1}]', "row 0: key 'conversations' is missing"),
        ("data.json", b"[" * 100_000, "nested too deeply|invalid JSON"),
        ("data.json", b"[]", "no rows in it"),
        ("data.jsonl", b"\xff\xfe", "data.jsonl:1: not UTF-8"),
        ("data.jsonl", b"9" * 5000, "data.jsonl:1: holds a number of thousands of digits"),
        ("data.csv", b"", "not .json or .jsonl"),
    ],
)
def test_read_conversations_refuses_other_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    for read in (read_conversations, load_conversations):
        with pytest.raises(ValueError, match=message):
            list(read(tmp_path / name))
        with pytest.raises(ValueError, match="no such file|not .json"):
            list(read(tmp_path / ("missing" + name)))
