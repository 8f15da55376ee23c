"""Reads conversations in LLaVA's format, JSON or JSONL, with images in the messages of either role.

    {"id": "7", "image": "a/7.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                                                      {"from": "gpt", "value": "A cat."}]}

`<image>` in a human message is an input image, in a gpt message an image to be generated. A row of the result is
`{"id", "messages", "images"}`: messages as [`EvoTokProcessor`] takes them, images as paths, in reading order.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value
from datasets.exceptions import DatasetGenerationError
from torch.utils.data import Dataset as TorchDataset

from .image_files import resolve_file


ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

MAX_TEXT = 200_000  # characters of a row: tens of thousands of tokens
MAX_MESSAGES = 10_000

# Line breaks beside the mark set images apart in LLaVA's files; they are not part of the text.
_IMAGE_MARK = re.compile(r"\s*<image>\s*")
_SURROGATE = re.compile("[\ud800-\udfff]")
_FEATURES = Features(
    {
        "id": Value("string"),
        "messages": List(
            {"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})}
        ),
        "images": List(Image(decode=False)),  # the collator decodes them, so that a corrupt file does not end a run
    }
)


class IndexedRows(TorchDataset):
    """Data set whose rows have their position as `index`, the seed of what is random about them.

    Args:
        rows: another data set of dicts.
    """

    def __init__(self, rows):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index] | {"index": index}


def load_conversations(path: str | Path, image_folder: str | Path | None = None, **kwargs: Any) -> Dataset:
    """Loads the rows of [`read_conversations`] as a memory-mapped data set.

    Args:
        path: JSON (a list) or JSONL (one row a line) in LLaVA's format.
        image_folder: folder of the images; that of the file when left out.
        kwargs: for `datasets.Dataset.from_generator`, such as `cache_dir`.

    Raises:
        ValueError: as [`read_conversations`].
    """
    path = Path(path)
    _check_suffix(path)
    stat = path.stat()  # part of the cache's key, so that an edited file is read again
    arguments = {"path": path, "image_folder": image_folder, "stamp": (stat.st_size, stat.st_mtime_ns)}
    return cached_rows(_generate, _FEATURES, arguments, **kwargs)


def cached_rows(generator: Any, features: Features, arguments: dict[str, Any], **kwargs: Any) -> Dataset:
    """Builds a memory-mapped data set from a generator, cached by its arguments.

    Raises:
        ValueError: that the generator raises.
    """
    try:
        return Dataset.from_generator(generator, features=features, gen_kwargs=arguments, **kwargs)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


def read_conversations(path: str | Path, image_folder: str | Path | None = None) -> Iterator[dict]:
    """Yields the rows of a LLaVA file, one at a time; no image is opened.

    Args:
        path: JSON (a list) or JSONL (one row a line).
        image_folder: folder of the images, which must be inside of it; that of the file when left out.

    Raises:
        ValueError: a file of another form; the message names file, line (row, for JSON) and correction.
    """
    path = Path(path)
    folder = Path(image_folder if image_folder is not None else path.parent).resolve()
    if not folder.is_dir():
        raise ValueError(f"{image_folder}: no such folder: give the folder of the images.")
    where = None
    for where, row in read_json_rows(path):
        try:
            yield _convert(row, folder)
        except (KeyError, TypeError, ValueError) as error:
            message = f"key {error} is missing: add it" if isinstance(error, KeyError) else error
            raise ValueError(f"{where}: {message}.") from None
    if where is None:
        raise ValueError(f"{path}: no rows in it: give at least one.")


def _generate(path: Path, image_folder: str | Path | None, stamp: tuple) -> Iterator[dict]:
    yield from read_conversations(path, image_folder)


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".json", ".jsonl"):
        raise ValueError(f"{path}: not .json or .jsonl: give conversations in LLaVA's format.")
    if not path.is_file():
        raise ValueError(f"{path}: no such file: check the path.")


def read_json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields the position in the file, for messages, and the value of every row of a JSON list or of JSONL.

    Raises:
        ValueError: no such file, or not JSON; the message names the line.
    """
    _check_suffix(path)
    if path.suffix == ".json":
        rows = _parse(path.read_bytes(), str(path))
        if not isinstance(rows, list):
            raise ValueError(f"{path}: not a list of rows: put [ ] around them, or name the file .jsonl.")
        for index, row in enumerate(rows):
            yield f"{path}: row {index}", row
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{path}:{number}", _parse(line, f"{path}:{number}")


def _parse(data: bytes, where: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: invalid JSON ({error}): correct or remove it.") from None
    except UnicodeDecodeError:
        raise ValueError(f"{where}: not UTF-8: save the file as UTF-8.") from None
    except RecursionError:
        raise ValueError(f"{where}: nested too deeply: remove it.") from None
    except ValueError:  # Python reads no integer of more than 4300 digits
        raise ValueError(f"{where}: holds a number of thousands of digits: remove it.") from None


def _convert(row: Any, folder: Path) -> dict:
    if not isinstance(row, dict):
        kind = type(row).__name__
        raise TypeError(f'a row is {{"image": ..., "conversations": [...]}}, not {kind}: correct it')
    check_modalities(row)
    llava_messages = row["conversations"]
    names = row.get("image") or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError('"image" must be a file name or a list of file names')
    messages = _convert_messages(llava_messages)
    num_marks = _count_images(messages)
    if num_marks != len(names):
        raise ValueError(f'{num_marks} <image> marks for {len(names)} images in "image": make them agree')
    images = [resolve_file(folder, name) for name in names]
    name = str(row.get("id", ""))
    if _SURROGATE.search(name):
        raise ValueError('"id" holds half of a surrogate pair, which is no text: remove it')
    return {"id": name, "messages": messages, "images": images}


def check_modalities(row: dict) -> None:
    """Raises ValueError for a row with video or audio, whose placeholders would be trained on as text."""
    for key in ("video", "videos", "audio"):
        if row.get(key):
            raise ValueError(f'"{key}": only text and images are supported: leave the row out')


def convert_messages(llava_messages: Any, num_images: int) -> list[dict]:
    """Converts LLaVA's messages to the processor's; marks that published files lack are put before the first question.

    Raises:
        ValueError: no messages, an unknown role, or more marks than images.
    """
    try:
        messages = _convert_messages(llava_messages)
    except TypeError as error:
        raise ValueError(str(error)) from None
    missing = num_images - _count_images(messages)
    if missing < 0:
        raise ValueError(f"{num_images - missing} <image> marks for {num_images} images")
    if missing:
        question = next((message for message in messages if message["role"] == "user"), messages[0])
        question["content"][:0] = [{"type": "image", "text": None} for _ in range(missing)]
    return messages


def check_length(*texts: Any) -> None:
    """Raises ValueError where texts, of which those that are no strings do not count, are too long for one row."""
    length = sum(len(text) for text in texts if isinstance(text, str))
    if length > MAX_TEXT:
        raise ValueError(f"{length:,} characters of text, over the limit of {MAX_TEXT:,} of a row: shorten it")


def _convert_messages(llava_messages: Any) -> list[dict]:
    if not isinstance(llava_messages, list) or not llava_messages:
        raise TypeError('"conversations" must be a list of at least one message')
    if len(llava_messages) > MAX_MESSAGES:
        count = len(llava_messages)
        raise ValueError(f"{count:,} messages, over the limit of {MAX_MESSAGES:,} of a conversation: split it")
    check_length(*(message.get("value") for message in llava_messages if isinstance(message, dict)))
    return [_convert_message(message) for message in llava_messages]


def _convert_message(message: Any) -> dict:
    if not isinstance(message, dict):
        raise TypeError(f'a message is {{"from": ..., "value": ...}}, not {type(message).__name__}: correct it')
    role, value = message["from"], message["value"]
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f'unknown role {role!r} in "from": use human, gpt or system')
    if not isinstance(value, str):
        raise TypeError(f'"value" must be a string, not {type(value).__name__}')
    if _SURROGATE.search(value):
        raise ValueError('"value" holds half of a surrogate pair, which is no text: remove it')
    if "<video>" in value:
        raise ValueError('"value" holds <video>, but only text and images are supported: leave the row out')
    content = []
    for index, text in enumerate(_IMAGE_MARK.split(value)):
        if index:
            content.append({"type": "image", "text": None})
        if text:
            content.append({"type": "text", "text": text})
    return {"role": ROLES[role], "content": content}


def _count_images(messages: list[dict]) -> int:
    return sum(part["type"] == "image" for message in messages for part in message["content"])
