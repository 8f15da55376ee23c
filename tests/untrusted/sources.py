"""Data sets: rows that name files outside, files that expand without end, damaged rows, texts that move the cursor."""

import gzip
import json
import os
import tarfile
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from evotok.data.code_shards import FORMAT, open_codes
from evotok.data.collators import ImageCollator
from evotok.data.conversations import load_conversations
from evotok.data.errors import one_line
from evotok.data.image_files import MAX_ASPECT, folder_pixels
from evotok.data.mixture import MixtureSource
from evotok.data.sources import SOURCES
from evotok.processing.image_loading_evotok import load_image
from untrusted.case import Group, Workspace, case, kind, run_command
from untrusted.images import noise, saved
from untrusted.materials import DEEP


ADDRESS = "http://127.0.0.1:9/a.png"
PICTURE = saved(noise())


def read(_: Workspace, given: tuple[str, Callable | None]) -> list[Image.Image]:
    """Reads all images of a source in `data`; `after` runs when its files are known."""
    name, after = given
    source = SOURCES[name]
    rows, folder = source.open("data")
    if after is not None:
        after()
    opened = MixtureSource(name, rows, lambda row: source.convert(row, folder), 1.0)
    try:
        return [load_image(image) for row in map(opened.convert, rows) for image in row["images"]]
    except OSError as error:
        raise ValueError(one_line(error)) from None


def row(image: Any, name: str = "parquet-pairs", **fields):
    """Returns a `make` of a parquet file of one row, in a folder with an image and a link that leads out."""

    def make(workspace: Workspace) -> tuple[str, None]:
        workspace.write("data/a.png", PICTURE)
        workspace.link("data/link.png", workspace.outside / "canary.png")
        content = {"image": image} | (fields or {"caption": "a wall"})
        pq.write_table(pa.Table.from_pylist([content]), workspace.path / "data" / "data.parquet")
        return name, None

    return make


def parquet(build: Callable[[], dict], **options: Any):
    """Returns a `make` of a parquet file of these columns."""

    def make(workspace: Workspace) -> tuple[str, None]:
        (workspace.path / "data").mkdir()
        pq.write_table(pa.table(build()), workspace.path / "data" / "a.parquet", **options)
        return "parquet-pairs", None

    return make


def tar(build: Callable[[], bytes]):
    return lambda workspace: (workspace.write("data/a.tar", build()), ("webdataset-pairs", None))[1]


def shared(value: Any, count: int) -> pa.Array:
    """Returns a column of one value that takes the space of one."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([value]))


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def sparse() -> bytes:
    """Returns a tar of 3 KB that stands for 8 GB of zeros."""
    block = bytearray(header("a.png", 0, tarfile.GNUTYPE_SPARSE))
    block[483:495] = b"%011o\0" % 8_000_000_000
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(1024)


def gzipped() -> bytes:
    return gzip.compress(header("a.png", 2_000_000_000) + bytes(20_000_000))


def large() -> bytes:
    """Returns a tar whose member of gigabytes is not there."""
    return header("a.png", 8_000_000_000) + bytes(1024)


def page_of_zeros() -> dict:
    return {"image": [bytes(70_000_000)], "caption": ["a"]}


def shared_image() -> dict:
    return {"image": shared(PICTURE + bytes(30_000_000), 250), "caption": ["a"] * 250}


def shared_caption() -> dict:
    return {"image": [PICTURE] * 250, "caption": shared("x" * 32_000_000, 250)}


def long_list() -> dict:
    values = pa.ListArray.from_arrays(pa.array([0, 20_000_000], pa.int32()), pa.nulls(20_000_000, pa.int8()))
    return {"image": [PICTURE], "caption": values}


def caption(text: str | None):
    """Returns a `make` of an image and its text, or of a link to a text outside."""

    def make(workspace: Workspace) -> tuple[str, None]:
        workspace.write("data/a.png", PICTURE)
        if text is None:
            workspace.link("data/a.txt", workspace.outside / "recipe.yaml")
        else:
            workspace.write("data/a.txt", text)
        return "image-folder", None

    return make


def removed_early(workspace: Workspace) -> tuple[str, Callable]:
    """Removes a file between the listing and the reading."""
    kept = workspace.path.parent / "kept.tar"
    path = workspace.path / "data" / "a.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w"):
        pass
    path.rename(kept)
    path.symlink_to(kept)
    return "webdataset-pairs", kept.unlink


def is_picture(images: list) -> None:
    assert [image.size for image in images] == [noise().size]


MESSAGES = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}]
NOT_FETCHED = f"image '{ADDRESS}' is an address, which is not fetched: download it into …"
OUTSIDE = "{} is outside of …: move it there, or set the image folder"
SOURCE = [
    kind("address", NOT_FETCHED)(
        case("caption", row({"bytes": b"", "path": ADDRESS})),
        case("conversation", row({"bytes": None, "path": ADDRESS}, "llava-onevision", id="1", conversations=MESSAGES)),
    ),
    kind("file outside the folder", OUTSIDE)(
        case("absolute path", row({"bytes": None, "path": "/etc/passwd"}), "image '/etc/passwd'"),
        case("link", row({"bytes": None, "path": "link.png"}), "image 'link.png'"),
        case("link to a text", caption(None), "text '…/data/a.txt'"),
    ),
    kind("bytes beside an address", "the image")(row({"bytes": PICTURE, "path": ADDRESS}), check=is_picture),
    kind("length of a text", "{} characters of text, over the limit of 200,000 of a row: shorten it", limit="200,000 characters")(
        case("file beside an image", caption("x" * 1_000_000), "200,001"),
        case("column of 32 MB that all rows share", parquet(shared_caption, compression="zstd"), "32,000,000"),
    ),
    kind("tar that expands", "data/a.tar: damaged, the rest is skipped ({}): copy it again", limit="256 MB a sample; 64 MB + 20 × the file")(
        case("sparse file", tar(sparse), "a.png is a sparse file"),
        case("gzipped zeros", tar(gzipped), "2,000,000,512 bytes from … compressed ones"),
        case("member of gigabytes", tar(large), "… over the limit of 256,000,000 bytes"),
    ),
    kind("parquet that expands", "data/a.parquet: damaged, the rest is skipped ({}): copy it again", limit="64 MB + 20 × the file")(
        case("page of zeros", parquet(page_of_zeros, compression="zstd", use_dictionary=False), "image: a page of 70,… bytes from … on the disk"),
        case("image of 30 MB that all rows share", parquet(shared_image, compression="zstd"), "rows of … bytes from … on the disk"),
        case("list of equal numbers", parquet(long_list), "caption.list.element: … values from … on the disk"),
    ),
    kind("file that is removed before it is read", "data/a.tar: cannot be read (No such file or directory): put it back, or leave it out.")(removed_early),
]

TURN = {"from": "human", "value": "<image>\nWhat is this?"}
LLAVA_ROW = {"id": "7", "image": "cat.png", "conversations": [TURN]}
LONG = [TURN | {"value": "<image>" + "x" * 199_994}]


def load(_: Workspace, path: str) -> list[dict]:
    """Reads all rows of a file; the cache of the library lies beside the workspace."""
    return list(load_conversations(path, None, cache_dir="../cache"))


def llava_file(content: str):
    return lambda workspace: workspace.write("a.jsonl", content)


def llava_row(**fields: Any):
    """A file of two rows, of which the second is changed."""

    def make(workspace: Workspace) -> str:
        workspace.write("cat.png", PICTURE)
        workspace.link("up", workspace.outside)
        workspace.link("cycle.png", "cycle.png")
        return workspace.write("a.jsonl", f"{json.dumps(LLAVA_ROW)}\n{json.dumps(LLAVA_ROW | fields)}")

    return make


LLAVA = [
    kind("file of something else", "a.jsonl:{}.")(
        case("pipe", lambda workspace: os.mkfifo(workspace.path / "a.jsonl") or "a.jsonl", " no such file: check the path"),
        case("JSON nested deeply", llava_file(DEEP), "1: nested too deeply: remove it"),
        case("number of 5000 digits", llava_file('{"id": ' + "9" * 5000 + "}"), "1: holds a number of thousands of digits: remove it"),
    ),
    kind("row", "a.jsonl:2: {}.", limit="200,000 characters")(
        case("address", llava_row(image=ADDRESS), NOT_FETCHED),
        case("folder that leads out", llava_row(image="up/red.png"), OUTSIDE.format("image 'up/red.png'")),
        case("link to itself", llava_row(image="cycle.png"), "image 'cycle.png' is no file name (…): correct it"),
        case("long text", llava_row(conversations=LONG), "200,001 characters of text, over the limit of 200,000 of a row: shorten it"),
    ),
]


def crop(_: Workspace, folder: str) -> Any:
    """Reads a folder of images to validate on."""
    return folder_pixels(folder, 64, 10)


def collate(_: Workspace, given: list[dict]) -> Any:
    """Collates batches of one image each."""
    collator = ImageCollator(32)
    return [collator([row]) for row in given]


def one_good_image(workspace: Workspace) -> list[dict]:
    workspace.write("a.png", PICTURE)
    workspace.write("b.png", b"no image")
    return [{"id": name, "index": n, "images": [f"{name}.png"]} for n, name in enumerate(["a", *["b"] * 100])]


def shard(**fields: Any):
    """Returns a `make` of a code shard whose metadata have other fields, or are `text`."""

    def make(workspace: Workspace) -> str:
        (workspace.path / "codes").mkdir()
        info = {"tokenizer": "a", "positions": 16, "levels": 4} | fields
        schema = pa.schema([("key", pa.string())], {"format": FORMAT, "info": fields.get("text", json.dumps(info))})
        pq.write_table(pa.table({"key": ["a"]}, schema=schema), workspace.path / "codes" / "a.parquet")
        return "codes"

    return make


def escapes(workspace: Workspace) -> list[str]:
    """Writes a recipe whose data have a caption with escape sequences."""
    (workspace.path / "data").mkdir()
    row = {"image": {"bytes": PICTURE, "path": None}, "caption": "a\x1b[2J\x1b]0;title\x07 wall\x9b31m \u202edlrow"}
    pq.write_table(pa.Table.from_pylist([row]), workspace.path / "data" / "data.parquet")
    data = {"name": "mixture", "sources": [{"source": "parquet-pairs", "path": "data"}]}
    workspace.write("recipe.yaml", yaml.safe_dump({"stage": "gen", "data": data}))
    return ["data", "check", "recipe.yaml", "--out", "out"]


def moves_no_cursor(printed: str) -> None:
    assert "\\x1b[2J" in printed and not set(printed) & set("\x1b\x07\x9b\u202e"), printed


STRIPS = [
    kind("strip to be cropped to a square", "60000 x 1 pixels: the aspect ratio is limited to 20: crop it.", limit=f"aspect ratio {MAX_ASPECT}")(
        lambda workspace: (workspace.write("data/a.png", saved(Image.new("L", (60_000, 1)))), "data")[1]
    )
]
BARREN = [
    kind(
        "batches without a usable image",
        "Nothing in the last 32 batches can be used, {'image': 32} so far: check that the files of the data set exist, and run the command again: it resumes from the last checkpoint.",
        limit="32 batches in a row",
    )(one_good_image)
]
SHARDS = [
    kind("metadata of a shard", "codes/a.parquet: incomplete or damaged code shard: remove it and encode again.")(
        case("nested deeply", shard(text=DEEP)), case("another type", shard(positions="many"))
    )
]
PRINTED = [kind("caption with escape sequences", "printed as `\\x1b[2J`")(escapes, check=moves_no_cursor)]

GROUPS = [
    Group("Data sets", "sources of a recipe", read, SOURCE),
    Group("Data sets", "`load_conversations`", load, LLAVA),
    Group("Data sets", "images to validate on", crop, STRIPS),
    Group("Data sets", "batches of a training", collate, BARREN),
    Group("Data sets", "code shards", lambda _, given: open_codes(given), SHARDS),
    Group("Data sets", "`evotok data check`", run_command, PRINTED),
]
