"""Reads conversations in LLaVA's format, JSON or JSONL, with images in either turn.

    {"id": "7", "image": "a/7.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                                                      {"from": "gpt", "value": "A cat."}]}

`<image>` in a human turn is an image given, in a gpt turn an image to be written.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value
from datasets.exceptions import DatasetGenerationError

from .image_files import resolve_image


ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

MAX_TEXT = 200_000  # characters of a record: tens of thousands of tokens
MAX_TURNS = 10_000

# Line breaks beside the mark are LLaVA's way to set images apart, no part of what is said.
_IMAGE_MARK = re.compile(r"\s*<image>\s*")

_SURROGATE = re.compile("[\ud800-\udfff]")

_PART = {"type": Value("string"), "text": Value("string")}
_FEATURES = Features(
    {
        "id": Value("string"),
        "messages": List({"role": Value("string"), "content": List(_PART)}),
        "images": List(Image(decode=False)),  # one corrupt file must not end a run: decoded by the collator
    }
)


def load_conversations(path: str | Path, image_folder: str | Path | None = None, **kwargs: Any) -> Dataset:
    """The records of [`read_conversations`] as a memory-mapped data set with columns `id`, `messages` and `images`.

    Args:
        path: JSON (a list) or JSONL (one record a line) in LLaVA's format.
        image_folder: where the images lie; the folder of the file if left out.
        kwargs: for `datasets.Dataset.from_generator`, such as `cache_dir`.

    Raises:
        ValueError: as [`read_conversations`].
    """
    path = Path(path)
    _check_suffix(path)
    stat = path.stat()  # in the arguments, so that an edited file is not answered from the cache
    arguments = {"path": path, "image_folder": image_folder, "stamp": (stat.st_size, stat.st_mtime_ns)}
    try:
        return Dataset.from_generator(_generate, features=_FEATURES, gen_kwargs=arguments, **kwargs)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


def read_conversations(path: str | Path, image_folder: str | Path | None = None) -> Iterator[dict]:
    """Yields `{"id", "messages", "images"}` for each record of a LLaVA file, one at a time.

    Args:
        path: JSON (a list) or JSONL (one record a line).
        image_folder: where the images lie; the folder of the file if left out. No image outside is ever opened.

    Yields:
        `messages` as [`EvoTokProcessor`] takes them and `images` as paths, in reading order; none is opened here.

    Raises:
        ValueError: for what is no such file; the message names file, line (record, for JSON) and what to do.
    """
    path = Path(path)
    folder = Path(image_folder if image_folder is not None else path.parent).resolve()
    if not folder.is_dir():
        raise ValueError(f"{image_folder}: no such folder: give the one that the images lie in.")
    where = None
    for where, record in read_json_records(path):
        try:
            yield _convert(record, folder)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"key {error} is missing: add it" if isinstance(error, KeyError) else error
            raise ValueError(f"{where}: {reason}.") from None
    if where is None:
        raise ValueError(f"{path}: no records in it: give at least one.")


def _generate(path: Path, image_folder: str | Path | None, stamp: tuple) -> Iterator[dict]:
    yield from read_conversations(path, image_folder)


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".json", ".jsonl"):
        raise ValueError(f"{path}: not .json or .jsonl: give conversations in LLaVA's format.")
    if not path.is_file():
        raise ValueError(f"{path}: no such file: check the path.")


def read_json_records(path: Path) -> Iterator[tuple[str, Any]]:
    """Where a record of a JSON list or of JSONL stands, and the record.

    Raises:
        ValueError: no such file, or not JSON; the message names the line.
    """
    _check_suffix(path)
    if path.suffix == ".json":
        records = _parse(path.read_bytes(), str(path))
        if not isinstance(records, list):
            raise ValueError(f"{path}: not a list of records: put [ ] around them, or name the file .jsonl.")
        for index, record in enumerate(records):
            yield f"{path}: record {index}", record
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{path}:{number}", _parse(line, f"{path}:{number}")


def _parse(data: bytes, where: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: invalid JSON ({error}): mend or remove it.") from None
    except UnicodeDecodeError:
        raise ValueError(f"{where}: not UTF-8: save the file as UTF-8.") from None
    except RecursionError:
        raise ValueError(f"{where}: nested too deeply: remove it.") from None
    except ValueError:  # Python reads no integer of more than 4300 digits
        raise ValueError(f"{where}: holds a number of thousands of digits: remove it.") from None


def _convert(record: Any, folder: Path) -> dict:
    if not isinstance(record, dict):
        kind = type(record).__name__
        raise TypeError(f'a record is {{"image": ..., "conversations": [...]}}, not {kind}: correct it')
    check_modalities(record)
    turns = record["conversations"]
    names = record.get("image") or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError('"image" must be a file name or a list of file names')
    messages = [_convert_turn(turn) for turn in _check_turns(turns)]
    num_marks = count_marks(messages)
    if num_marks != len(names):
        raise ValueError(f'{num_marks} <image> marks for {len(names)} images in "image": make them agree')
    images = [resolve_image(folder, name) for name in names]
    name = str(record.get("id", ""))
    if _SURROGATE.search(name):
        raise ValueError('"id" holds half of a surrogate pair, which is no text: remove it')
    return {"id": name, "messages": messages, "images": images}


def check_modalities(record: dict) -> None:
    """Raises ValueError for a record of something else than text and images, whose marks would be learnt as text."""
    for key in ("video", "videos", "audio"):
        if record.get(key):
            raise ValueError(f'"{key}" is nothing that is learnt from, only text and images are: leave the record out')


def _check_turns(turns: Any) -> list:
    if not isinstance(turns, list) or not turns:
        raise TypeError('"conversations" must be a list of at least one turn')
    if len(turns) > MAX_TURNS:
        raise ValueError(f"{len(turns):,} turns, over the limit of {MAX_TURNS:,} of a conversation: split it")
    check_length(*(turn.get("value") for turn in turns if isinstance(turn, dict)))
    return turns


def count_marks(messages: list[dict]) -> int:
    """Images that messages ask for."""
    return sum(part["type"] == "image" for message in messages for part in message["content"])


def convert_turns(turns: Any, num_images: int) -> list[dict]:
    """Messages of LLaVA's turns; marks that public files forgot go before the first question.

    Raises:
        ValueError: no turns, an unknown role, or more marks than images.
    """
    try:
        messages = [_convert_turn(turn) for turn in _check_turns(turns)]
    except TypeError as error:
        raise ValueError(str(error)) from None
    missing = num_images - count_marks(messages)
    if missing < 0:
        raise ValueError(f"{num_images - missing} <image> marks for {num_images} images")
    if missing:
        asked = next((message for message in messages if message["role"] == "user"), messages[0])
        asked["content"][:0] = [{"type": "image", "text": None} for _ in range(missing)]
    return messages


def check_length(*texts: Any) -> None:
    """Raises ValueError for a record with more text than any model reads at once; what is no text does not count."""
    length = sum(len(text) for text in texts if isinstance(text, str))
    if length > MAX_TEXT:
        raise ValueError(f"{length:,} characters of text, over the limit of {MAX_TEXT:,} of a record: shorten it")


def _convert_turn(turn: Any) -> dict:
    if not isinstance(turn, dict):
        raise TypeError(f'a turn is {{"from": ..., "value": ...}}, not {type(turn).__name__}: correct it')
    role, value = turn["from"], turn["value"]
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f'unknown role {role!r} in "from": use human, gpt or system')
    if not isinstance(value, str):
        raise TypeError(f'"value" must be a string, not {type(value).__name__}')
    if _SURROGATE.search(value):
        raise ValueError('"value" holds half of a surrogate pair, which is no text: remove it')
    if "<video>" in value:
        raise ValueError('"value" holds <video>, but only text and images are learnt: leave the record out')
    content = []
    for index, text in enumerate(_IMAGE_MARK.split(value)):
        if index:
            content.append({"type": "image", "text": None})
        if text:
            content.append({"type": "text", "text": text})
    return {"role": ROLES[role], "content": content}
