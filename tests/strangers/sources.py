"""Data sets of strangers: rows that name what lies elsewhere, files that expand without end, texts that move the cursor."""

import gzip
import json
import tarfile
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from evotok.data.code_shards import FORMAT, open_codes
from evotok.data.collators import ImageCollator
from evotok.data.errors import one_line
from evotok.data.image_files import folder_pixels
from evotok.data.mixture import MixtureSource
from evotok.data.sources import SOURCES
from evotok.processing.image_loading_evotok import load_image
from strangers.case import Case, Group, Place, run_command
from strangers.images import noise, saved


ADDRESS = "http://127.0.0.1:9/a.png"
LISTED = "move it there, or set the image folder"


def read(_: Place, given: tuple[str, Callable | None]) -> list:
    """All pictures of a source, as training reads them; `after` is done when its files are known."""
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


def rows(given: str, gets: str, row: dict[str, Any], name: str = "parquet-pairs", good=None) -> Case:
    """A parquet file of one row, beside a picture; one that links lead to lies outside."""

    def make(place: Place) -> tuple[str, None]:
        place.write("data/a.png", saved(noise()))
        place.link("data/link.png", place.outside / "canary.png")
        pq.write_table(pa.Table.from_pylist([row]), place.path / "data" / "data.parquet")
        return name, None

    return Case(given, gets, make, good)


def table(given: str, gets: str, build: Callable[[], pa.Table], **options: Any) -> Case:
    """A parquet file that is built when it is needed."""

    def make(place: Place) -> tuple[str, None]:
        (place.path / "data").mkdir()
        pq.write_table(build(), place.path / "data" / "bomb.parquet", **options)
        return "parquet-pairs", None

    return Case(given, gets, make)


def tar(given: str, gets: str, build: Callable[[], bytes]) -> Case:
    """A tar that is built when it is needed."""
    return Case(given, gets, lambda place: (place.write("data/bomb.tar", build()), ("webdataset-pairs", None))[1])


def shared(value: Any, count: int) -> pa.Array:
    """A column of one value, which takes the bytes of one."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([value]))


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def sparse() -> bytes:
    """3 KB that stand for 8 GB of nothing."""
    block = bytearray(header("a.png", 0, tarfile.GNUTYPE_SPARSE))
    block[483:495] = b"%011o\0" % 8_000_000_000
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(1024)


def caption(place: Place, text: str | None, link: bool = False) -> tuple[str, None]:
    """A folder with one picture, and the text beside it."""
    place.write("data/a.png", saved(noise()))
    if link:
        place.link("data/a.txt", place.outside / "recipe.yaml")
    elif text is not None:
        place.write("data/a.txt", text)
    return "image-folder", None


def gone(place: Place) -> tuple[str, Callable]:
    """A file that goes when it is known, and is back when it was missed."""
    kept = place.path.parent / "kept.tar"
    path = place.path / "data" / "a.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w"):
        pass
    path.rename(kept)
    path.symlink_to(kept)
    return "webdataset-pairs", kept.unlink


def says_bytes(pictures: list) -> None:
    assert [picture.size for picture in pictures] == [noise().size]


PICTURE = saved(noise())
OUTSIDE = f"… is outside of …: {LISTED}"
CASES = [
    rows(
        "row whose picture is an address",
        f"image '{ADDRESS}' is an address, which is not fetched: download it into …",
        {"image": {"bytes": None, "path": ADDRESS}, "caption": "a wall"},
    ),
    rows(
        "row whose picture is an address alone",
        f"image '{ADDRESS}' is an address, which is not fetched: download it into …",
        {"image": ADDRESS, "caption": "a wall"},
    ),
    rows(
        "row whose picture is an address, its bytes being none",
        f"image '{ADDRESS}' is an address, which is not fetched: download it into …",
        {"image": {"bytes": b"", "path": ADDRESS}, "caption": "a wall"},
    ),
    rows(
        "conversation about an address",
        f"image '{ADDRESS}' is an address, which is not fetched: download it into …",
        {
            "id": "1",
            "image": {"bytes": None, "path": ADDRESS},
            "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}],
        },
        "llava-onevision",
    ),
    rows(
        "row whose picture is a file of the machine",
        f"image '/etc/passwd' {OUTSIDE.removeprefix('… ')}",
        {"image": {"bytes": None, "path": "/etc/passwd"}, "caption": "a wall"},
    ),
    rows(
        "row whose picture climbs out",
        f"image '../../outside/red.png' {OUTSIDE.removeprefix('… ')}",
        {"image": {"bytes": None, "path": "../../outside/red.png"}, "caption": "a wall"},
    ),
    rows(
        "row whose picture is a link that leads out",
        f"image 'link.png' {OUTSIDE.removeprefix('… ')}",
        {"image": {"bytes": None, "path": "link.png"}, "caption": "a wall"},
    ),
    rows(
        "row whose picture lies in its folder",
        "the picture",
        {"image": {"bytes": None, "path": "a.png"}, "caption": "a wall"},
        good=says_bytes,
    ),
    rows(
        "row that brings bytes beside an address",
        "the picture of the bytes",
        {"image": {"bytes": PICTURE, "path": ADDRESS}, "caption": "a wall"},
        good=says_bytes,
    ),
    Case(
        "text beside a picture that is a link leading out",
        f"text '…/data/a.txt' {OUTSIDE.removeprefix('… ')}",
        lambda place: caption(place, None, link=True),
    ),
    Case(
        "text beside a picture of a million letters",
        "200,001 characters of text, over the limit of 200,000 of a row: shorten it",
        lambda place: caption(place, "x" * 1_000_000),
    ),
    tar(
        "sparse tar",
        "data/bomb.tar: damaged, the rest of it is passed over (a.png is a sparse file): copy it again",
        sparse,
    ),
    tar(
        "gzipped tar of zeros",
        "data/bomb.tar: damaged, the rest of it is passed over (2,000,000,512 bytes from … compressed ones): copy it again",
        lambda: gzip.compress(header("a.png", 2_000_000_000) + bytes(20_000_000)),
    ),
    tar(
        "tar with a name of gigabytes",
        "data/bomb.tar: damaged, the rest of it is passed over (a header of 2,000,000,000 bytes): copy it again",
        lambda: header("x", 2_000_000_000, tarfile.GNUTYPE_LONGNAME) + bytes(1024),
    ),
    tar(
        "tar with a member of gigabytes that is not there",
        "data/bomb.tar: damaged, the rest of it is passed over (… over the limit of 256,000,000 bytes): copy it again",
        lambda: header("a.png", 8_000_000_000) + bytes(1024),
    ),
    table(
        "parquet with a page of zeros",
        "data/bomb.parquet: damaged, the rest of it is passed over (image: a page of 70,… bytes from … on the disk): copy it again",
        lambda: pa.table({"image": [bytes(70_000_000)], "caption": ["a"]}),
        compression="zstd",
        use_dictionary=False,
    ),
    table(
        "parquet with a caption of 32 MB that all rows share",
        "32,000,000 characters of text, over the limit of 200,000 of a row: shorten it",
        lambda: pa.table({"image": [PICTURE] * 250, "caption": shared("x" * 32_000_000, 250)}),
        compression="zstd",
    ),
    table(
        "parquet with a picture of 30 MB that all rows share",
        "data/bomb.parquet: damaged, the rest of it is passed over (rows of … bytes from … on the disk): copy it again",
        lambda: pa.table({"image": shared(PICTURE + bytes(30_000_000), 250), "caption": ["a"] * 250}),
        compression="zstd",
    ),
    table(
        "parquet with a list of 20 million equal numbers in a row",
        "data/bomb.parquet: damaged, the rest of it is passed over (caption.list.element: … values from … on the disk): copy it again",
        lambda: pa.table(
            {
                "image": [PICTURE],
                "caption": pa.ListArray.from_arrays(
                    pa.array([0, 20_000_000], pa.int32()), pa.nulls(20_000_000, pa.int8())
                ),
            }
        ),
    ),
    table(
        "parquet with a list of 10,001 texts in a row",
        "data/bomb.parquet: damaged, the rest of it is passed over (a list of 10,001 elements in one row): copy it again",
        lambda: pa.table({"image": [PICTURE], "caption": [["a"] * 10_001]}),
    ),
    Case(
        "file that is gone before it is read",
        "data/a.tar: cannot be read (No such file or directory): put it back, or leave it out.",
        gone,
    ),
]


# --- pictures to be cut to squares ------------------------------------------------------------------------------------


def cut(_: Place, given: str) -> Any:
    """A folder of pictures to measure on."""
    return folder_pixels(given, 64, 10)


def strip(width: int) -> Callable[[Place], str]:
    return lambda place: (place.write("data/strip.png", saved(Image.new("L", (width, 1)))), "data")[1]


STRIPS = [
    Case(
        "picture of 400,000 x 1 pixels",
        "'data/strip.png': a side of 400000 pixels is over the limit of 65536: crop it.",
        strip(400_000),
    ),
    Case(
        "picture of 60,000 x 1 pixels",
        "60000 x 1 is too long a strip to crop a square from: crop it.",
        strip(60_000),
    ),
]


def barren(_: Place, given: list[dict]) -> Any:
    """Batches of one picture each."""
    collate = ImageCollator(32)
    return [collate([record]) for record in given]


def one_good_picture(place: Place) -> list[dict]:
    place.write("a.png", PICTURE)
    place.write("b.png", b"no picture")
    return [{"id": name, "index": n, "images": [f"{name}.png"]} for n, name in enumerate(["a", *["b"] * 100])]


BARREN = [
    Case(
        "one good picture, and then none",
        "Nothing in the last 32 batches can be used, {'image': 32} so far: check the data set, whose files may be gone, and give the command again: it goes on from the last checkpoint.",
        one_good_picture,
    )
]


# --- shards of codes ----------------------------------------------------------------------------------------------------


def shard(info: str) -> Callable[[Place], str]:
    """A shard whose metadata say this."""

    def make(place: Place) -> str:
        (place.path / "codes").mkdir()
        schema = pa.schema([("key", pa.string())], metadata={"format": FORMAT, "info": info})
        pq.write_table(pa.table({"key": ["a"]}, schema=schema), place.path / "codes" / "a.parquet")
        return "codes"

    return make


NOT_WHOLE = "codes/a.parquet: not a whole shard of codes: remove it and encode again."
GOOD_INFO = {"tokenizer": "a", "positions": 16, "levels": 4}
SHARDS = [
    Case("metadata nested very deeply", NOT_WHOLE, shard('{"a":' * 3000)),
    Case("metadata that are a list", NOT_WHOLE, shard("[1]")),
    Case("positions that are text", NOT_WHOLE, shard(json.dumps(GOOD_INFO | {"positions": "many"}))),
    Case("preparation that is a number", NOT_WHOLE, shard(json.dumps(GOOD_INFO | {"preparation": 3}))),
    Case("a key that nobody knows", NOT_WHOLE, shard(json.dumps(GOOD_INFO | {"evil": 3}))),
]


# --- what `evotok data check` says ------------------------------------------------------------------------------------


def check(place: Place, name: str) -> str:
    recipe = {"stage": "gen", "data": {"name": "mixture", "sources": [{"source": name, "path": "data"}]}}
    place.write("recipe.yaml", yaml.safe_dump(recipe))
    return run_command(place, ["data", "check", "recipe.yaml", "--out", "out"])


def odd_caption(place: Place) -> str:
    (place.path / "data").mkdir()
    row = {"image": {"bytes": PICTURE, "path": None}, "caption": "a\x1b[2J\x1b]0;title\x07 wall\x9b31m \u202edlrow"}
    pq.write_table(pa.Table.from_pylist([row]), place.path / "data" / "data.parquet")
    return "parquet-pairs"


def moves_no_cursor(printed: str) -> None:
    assert "\\x1b[2J" in printed and not set(printed) & set("\x1b\x07\x9b\u202e"), printed


SAID = [Case("caption with escape sequences", "they are spelled out", odd_caption, moves_no_cursor)]

GROUPS = [
    Group("Data sets", "the sources of a recipe", read, CASES),
    Group("Folders of images to measure on", "`data.validation_path`", cut, STRIPS),
    Group("Data sets of spoiled pictures", "the batches of `evotok train`", barren, BARREN),
    Group("Shards of codes", "`data.sources` with `codes`", lambda place, given: open_codes(given), SHARDS),
    Group("Texts of data sets", "`evotok data check`", check, SAID),
]
