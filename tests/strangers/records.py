"""Conversations in LLaVA's format: JSON and JSONL with every mistake there is, and images that lie elsewhere."""

import json
import os

from PIL import Image

from evotok.data.conversations import load_conversations
from strangers.case import Case, Group, Place


ASK = {"from": "human", "value": "<image>\nWhat is this?"}
ANSWER = {"from": "gpt", "value": "A cat."}
RECORD = {"id": "7", "image": "cat.png", "conversations": [ASK, ANSWER]}


def load(_: Place, given: tuple[str, str | None]) -> list[dict]:
    """All records of a file; the library's cache lies beside the place."""
    path, image_folder = given
    return list(load_conversations(path, image_folder, cache_dir="../cache"))


def raw(given: str, gets: str, name: str, content: bytes | str) -> Case:
    return Case(given, gets, lambda place: (place.write(name, content), None))


def record(given: str, gets: str, record, good=None) -> Case:
    """A file of two lines, of which the second is bad."""

    def make(place: Place) -> tuple[str, None]:
        Image.new("RGB", (4, 4), "red").save(place.path / "cat.png")
        os.symlink(place.outside / "canary.png", place.path / "link.png")
        os.symlink(place.outside, place.path / "up")
        os.symlink("circle.png", place.path / "circle.png")
        lines = [json.dumps(RECORD), record if isinstance(record, str) else json.dumps(record)]
        return place.write("data.jsonl", "\n".join(lines)), None

    return Case(given, gets, make, good)


def changed(**kwargs) -> dict:
    return RECORD | kwargs


def says(*texts: str | None):
    """Checks the texts of the second record, None for an image."""

    def check(records: list[dict]) -> None:
        said = [part["text"] for message in records[1]["messages"] for part in message["content"]]
        assert said == list(texts), said

    return check


CASES = [
    Case("no such file", "missing.jsonl: no such file: check the path.", lambda place: ("missing.jsonl", None)),
    Case(
        "folder",
        "a.json: no such file: check the path.",
        lambda place: ((place.path / "a.json").mkdir() or "a.json", None),
    ),
    Case(
        "pipe that never ends",
        "a.jsonl: no such file: check the path.",
        lambda place: (os.mkfifo(place.path / "a.jsonl") or "a.jsonl", None),
    ),
    Case(
        "link to itself",
        "a.jsonl: no such file: check the path.",
        lambda place: (place.link("a.jsonl", "a.jsonl"), None),
    ),
    Case(
        "folder of images that is missing",
        "missing: no such folder: give the folder of the images.",
        lambda place: (place.write("a.jsonl", json.dumps(RECORD)), "missing"),
    ),
    Case(
        "folder of images that is a file",
        "a.jsonl: no such folder: give the folder of the images.",
        lambda place: (place.write("a.jsonl", json.dumps(RECORD)), "a.jsonl"),
    ),
    raw("CSV", "data.csv: not .json or .jsonl: give conversations in LLaVA's format.", "data.csv", "id,image\n"),
    raw("empty JSON file", "data.json: invalid JSON (…): mend or remove it.", "data.json", ""),
    raw("empty JSONL file", "data.jsonl: no rows in it: give at least one.", "data.jsonl", ""),
    raw("list without rows", "data.json: no rows in it: give at least one.", "data.json", "[]"),
    raw(
        "one object in a JSON file",
        "data.json: not a list of rows: put [ ] around them, or name the file .jsonl.",
        "data.json",
        json.dumps(RECORD),
    ),
    raw(
        "JSONL named .json",
        "data.json: invalid JSON (…): mend or remove it.",
        "data.json",
        json.dumps(RECORD) + "\n" + json.dumps(RECORD),
    ),
    raw(
        "JSON list named .jsonl",
        'data.jsonl:1: a row is {"image": ..., "conversations": [...]}, not list: correct it.',
        "data.jsonl",
        json.dumps([RECORD]),
    ),
    raw("JSON cut short", "data.json: invalid JSON (…): mend or remove it.", "data.json", json.dumps([RECORD])[:50]),
    raw("JSON nested very deeply", "data.json: nested too deeply: remove it.", "data.json", "[" * 100_000),
    raw("JSONL nested very deeply", "data.jsonl:1: nested too deeply: remove it.", "data.jsonl", '{"a":' * 100_000),
    raw(
        "number of 5000 digits",
        "data.jsonl:1: holds a number of thousands of digits: remove it.",
        "data.jsonl",
        '{"id": ' + "9" * 5000 + "}",
    ),
    raw(
        "number of 5000 digits in a JSON file",
        "data.json: holds a number of thousands of digits: remove it.",
        "data.json",
        '[{"id": ' + "9" * 5000 + "}]",
    ),
    raw("JSON 3,000 deep", "data.json: nested too deeply: remove it.", "data.json", "[" * 3000 + "]" * 3000),
    record(
        "picture that is an address",
        "data.jsonl:2: image 'http://127.0.0.1:9/a.png' is an address, which is not fetched: download it into ….",
        changed(image="http://127.0.0.1:9/a.png"),
    ),
    record(
        "words of a novel",
        "data.jsonl:2: 200,001 characters of text, over the limit of 200,000 of a row: shorten it.",
        changed(conversations=[ASK | {"value": "<image>" + "x" * 199_994}, ANSWER | {"value": ""}]),
    ),
    raw("not UTF-8", "data.json: not UTF-8: save the file as UTF-8.", "data.json", b"\xff\xfe\x00"),
    raw(
        "UTF-16", "data.jsonl:1: not UTF-8: save the file as UTF-8.", "data.jsonl", json.dumps(RECORD).encode("utf-16")
    ),
    raw("null bytes", "data.jsonl:1: invalid JSON (…): mend or remove it.", "data.jsonl", b"\0" * 50),
    raw("picture", "data.json: not UTF-8: save the file as UTF-8.", "data.json", b"\x89PNG\r\n\x1a\n" + bytes(50)),
    record("line that is cut short", "data.jsonl:2: invalid JSON (…): mend or remove it.", json.dumps(RECORD)[:30]),
    record("line of two rows", "data.jsonl:2: invalid JSON (…): mend or remove it.", json.dumps(RECORD) * 2),
    record(
        "line that is a list",
        'data.jsonl:2: a row is {"image": ..., "conversations": [...]}, not list: correct it.',
        "[1]",
    ),
    record(
        "line that is null",
        'data.jsonl:2: a row is {"image": ..., "conversations": [...]}, not NoneType: correct it.',
        "null",
    ),
    record("row without turns", "data.jsonl:2: key 'conversations' is missing: add it.", {"id": 1}),
    record("no turns", 'data.jsonl:2: "conversations" must be a list of at least one turn.', changed(conversations=[])),
    record(
        "turns that are text",
        'data.jsonl:2: "conversations" must be a list of at least one turn.',
        changed(conversations="hi"),
    ),
    record(
        "turns that are null",
        'data.jsonl:2: "conversations" must be a list of at least one turn.',
        changed(conversations=None),
    ),
    record(
        "turn that is text",
        'data.jsonl:2: a turn is {"from": ..., "value": ...}, not str: correct it.',
        changed(conversations=["hi"]),
    ),
    record(
        "turn without role",
        "data.jsonl:2: key 'from' is missing: add it.",
        changed(conversations=[{"value": "<image>"}]),
    ),
    record(
        "turn without text", "data.jsonl:2: key 'value' is missing: add it.", changed(conversations=[{"from": "gpt"}])
    ),
    record(
        "role that does not exist",
        "data.jsonl:2: unknown role 'robot' in \"from\": use human, gpt or system.",
        changed(conversations=[ASK | {"from": "robot"}]),
    ),
    record(
        "role that is a list",
        "data.jsonl:2: unknown role ['human'] in \"from\": use human, gpt or system.",
        changed(conversations=[ASK | {"from": ["human"]}]),
    ),
    record(
        "text that is a number",
        'data.jsonl:2: "value" must be a string, not int.',
        changed(conversations=[ASK | {"value": 3}]),
    ),
    record(
        "text that is null",
        'data.jsonl:2: "value" must be a string, not NoneType.',
        changed(conversations=[ASK | {"value": None}]),
    ),
    record(
        "half a surrogate pair",
        'data.jsonl:2: "value" holds half of a surrogate pair, which is no text: remove it.',
        changed(conversations=[ASK | {"value": "<image>\ud83d"}]),
    ),
    record(
        "half a surrogate pair in the id",
        'data.jsonl:2: "id" holds half of a surrogate pair, which is no text: remove it.',
        changed(id="\ud83d"),
    ),
    record(
        "image that is a number", 'data.jsonl:2: "image" must be a file name or a list of file names.', changed(image=3)
    ),
    record(
        "images that are numbers",
        'data.jsonl:2: "image" must be a file name or a list of file names.',
        changed(image=[3]),
    ),
    record(
        "image that is an object",
        'data.jsonl:2: "image" must be a file name or a list of file names.',
        changed(image={"path": "cat.png"}),
    ),
    record(
        "image without mark",
        'data.jsonl:2: 0 <image> marks for 1 images in "image": make them agree.',
        changed(conversations=[ANSWER]),
    ),
    record(
        "mark without image",
        'data.jsonl:2: 1 <image> marks for 0 images in "image": make them agree.',
        changed(image=None),
    ),
    record(
        "two marks for one image",
        'data.jsonl:2: 2 <image> marks for 1 images in "image": make them agree.',
        changed(conversations=[ASK, ASK, ANSWER]),
    ),
    record(
        "absolute path",
        "data.jsonl:2: image '/etc/passwd' is outside of …: move it there, or set the image folder.",
        changed(image="/etc/passwd"),
    ),
    record(
        "path that climbs out",
        "data.jsonl:2: image '../outside/red.png' is outside of …: move it there, or set the image folder.",
        changed(image="../outside/red.png"),
    ),
    record(
        "path that climbs out from within",
        "data.jsonl:2: image 'a/../../outside/red.png' is outside of …: move it there, or set the image folder.",
        changed(image="a/../../outside/red.png"),
    ),
    record(
        "link that leads out",
        "data.jsonl:2: image 'link.png' is outside of …: move it there, or set the image folder.",
        changed(image="link.png"),
    ),
    record(
        "folder that leads out",
        "data.jsonl:2: image 'up/red.png' is outside of …: move it there, or set the image folder.",
        changed(image="up/red.png"),
    ),
    record(
        "image that is a link to itself",
        "data.jsonl:2: image 'circle.png' is no file name (…): correct it.",
        changed(image="circle.png"),
    ),
    record(
        "the folder itself",
        "data.jsonl:2: image '.' is outside of …: move it there, or set the image folder.",
        changed(image="."),
    ),
    record(
        "empty name",
        "data.jsonl:2: image '' is outside of …: move it there, or set the image folder.",
        changed(image=[""]),
    ),
    record(
        "name with a null byte",
        "data.jsonl:2: image 'a\\x00.png' is no file name (…): correct it.",
        changed(image="a\0.png"),
    ),
    record(
        "half a surrogate pair in the name",
        "data.jsonl:2: image '\\ud83d.png' is no file name (…): correct it.",
        changed(image="\ud83d.png"),
    ),
    record("Windows line ends", "they are ignored", json.dumps(RECORD) + "\r\n", says(None, "What is this?", "A cat.")),
    record(
        "mark of a user for a token: `<|image_pad|>`",
        "plain text until the processor mends it",
        changed(conversations=[ASK, {"from": "gpt", "value": "<|image_pad|>"}]),
        says(None, "What is this?", "<|image_pad|>"),
    ),
    record("keys that nobody knows", "they are ignored", changed(model="gpt"), says(None, "What is this?", "A cat.")),
    record("NaN for an id", "the text `nan`", changed(id=float("nan")), lambda records: None),
]

GROUPS = [Group("Conversations in LLaVA's format", "`load_conversations`", load, CASES)]
