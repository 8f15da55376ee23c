"""Files of codes for `evotok decode`: wrong shape, dtype, range, tokenizer; damaged, and none at all."""

import json
import struct

import numpy as np
from safetensors.numpy import save_file

from strangers.case import Case, Group, Place, run_command
from strangers.materials import ENTRIES, checkpoint, codes_of, good_codes


def decode(place: Place, name: str) -> str:
    return run_command(place, ["decode", "tokenizer", name, "--out", "out"])


def with_tokenizer(make):
    """The tokenizer's folder lies in the place too."""

    def build(place: Place) -> str:
        checkpoint("tokenizer")(place)
        return make(place)

    return build


def case(given: str, gets: str, make) -> Case:
    return Case(given, gets, with_tokenizer(make))


def raw(given: str, gets: str, content: bytes, name: str = "codes.safetensors") -> Case:
    return case(given, gets, lambda place: place.write(name, content))


def shaped(given: str, gets: str, codes: np.ndarray, names: list | None = None) -> Case:
    return case(given, gets, lambda place: codes_of(place, codes, names))


def cut(given: str, gets: str, end: int) -> Case:
    def make(place: Place) -> str:
        content = (place.path / codes_of(place, good_codes())).read_bytes()
        return place.write("codes.safetensors", content[:end])

    return case(given, gets, make)


def described(given: str, gets: str, **metadata: str | None) -> Case:
    """Good codes with other words about them."""

    def make(place: Place) -> str:
        words = {"format": "evotok-codes-1", "tokenizer": place.materials.fingerprint, "names": '["a.png"]'} | metadata
        words = {key: value for key, value in words.items() if value is not None}
        save_file({"codes": good_codes()}, place.path / "codes.safetensors", metadata=words)
        return "codes.safetensors"

    return case(given, gets, make)


def header(text: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header."""
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def lying(**fields) -> bytes:
    tensor = {"dtype": "U16", "shape": [1, 16, 4], "data_offsets": [0, 128]} | fields
    return header(json.dumps({"__metadata__": {"format": "evotok-codes-1"}, "codes": tensor}).encode(), bytes(128))


def names_in_folder(*wanted: str):
    def check(printed: str) -> None:
        assert printed.split() == [f"out/{name}" for name in wanted], printed

    return check


CASES = [
    case(
        "no such file",
        "evotok decode: missing.safetensors: no such file. `evotok encode` writes files of codes.",
        lambda place: "missing.safetensors",
    ),
    case(
        "folder",
        "evotok decode: codes.safetensors: no such file. `evotok encode` writes files of codes.",
        lambda place: (place.path / "codes.safetensors").mkdir() or "codes.safetensors",
    ),
    case(
        "link to itself",
        "evotok decode: codes.safetensors: no such file. `evotok encode` writes files of codes.",
        lambda place: place.link("codes.safetensors", "codes.safetensors"),
    ),
    raw("empty file", "evotok decode: codes.safetensors: not a whole file of codes (…): encode the images again.", b""),
    raw(
        "text",
        "evotok decode: codes.safetensors: not a whole file of codes (…): encode the images again.",
        b"these are no codes",
    ),
    raw(
        "picture",
        "evotok decode: codes.safetensors: not a whole file of codes (…): encode the images again.",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
    ),
    raw(
        "pickle",
        "evotok decode: codes.pt: not a whole file of codes (…): encode the images again.",
        b"\x80\x04cos\nsystem\n(S'touch pickled'\ntR.",
        "codes.pt",
    ),
    raw(
        "header of 2^64 bytes",
        "evotok decode: codes.safetensors: not a whole file of codes (…): encode the images again.",
        b"\xff" * 64,
    ),
    raw(
        "header of 99 MB in a file of 100 bytes",
        "evotok decode: codes.safetensors: not a whole file of codes (…): encode the images again.",
        header(b"{}", bytes(90), 99_000_000),
    ),
    raw(
        "header that is no JSON",
        "evotok decode: codes.safetensors: not a whole file of codes (…): encode the images again.",
        header(b"{codes}"),
    ),
    raw(
        "header nested very deeply",
        "evotok decode: codes.safetensors: not a whole file of codes (…): encode the images again.",
        header(b'{"a":' * 5000),
    ),
    raw(
        "tensor that begins behind the end",
        "evotok decode: codes.safetensors: not a whole file of codes (…): encode the images again.",
        lying(data_offsets=[2**40, 2**40 + 128]),
    ),
    raw(
        "tensor larger than the file",
        "evotok decode: codes.safetensors: not a whole file of codes (…): encode the images again.",
        lying(shape=[2**20, 16, 4], data_offsets=[0, 2**27]),
    ),
    raw(
        "tensor of negative size",
        "evotok decode: codes.safetensors: not a whole file of codes (…): encode the images again.",
        lying(shape=[-1, 16, 4]),
    ),
    raw(
        "tensor whose size overflows",
        "evotok decode: codes.safetensors: not a whole file of codes (…): encode the images again.",
        lying(shape=[2**62, 16, 4]),
    ),
    raw(
        "tensor of a dtype that does not exist",
        "evotok decode: codes.safetensors: not a whole file of codes (…): encode the images again.",
        lying(dtype="CODE"),
    ),
    cut(
        "cut in its first bytes",
        "evotok decode: codes.safetensors: not a whole file of codes (…): encode the images again.",
        5,
    ),
    cut(
        "cut in its header",
        "evotok decode: codes.safetensors: not a whole file of codes (…): encode the images again.",
        60,
    ),
    cut(
        "cut by one byte",
        "evotok decode: codes.safetensors: not a whole file of codes (…): encode the images again.",
        -1,
    ),
    case(
        "weights instead of codes",
        "evotok decode: tokenizer/model.safetensors: not a file of codes. `evotok encode` writes them.",
        lambda place: "tokenizer/model.safetensors",
    ),
    described(
        "format of another program",
        "evotok decode: codes.safetensors: not a file of codes. `evotok encode` writes them.",
        format="other",
    ),
    described(
        "format that is not said",
        "evotok decode: codes.safetensors: not a file of codes. `evotok encode` writes them.",
        format=None,
    ),
    described(
        "tokenizer that is not said",
        "evotok decode: codes.safetensors: not a whole file of codes (…): encode the images again.",
        tokenizer=None,
    ),
    described(
        "codes of another tokenizer",
        "evotok decode: codes.safetensors: written by another tokenizer than that of tokenizer. Decode with the checkpoint that encoded, or encode again.",
        tokenizer="0" * 64,
    ),
    described(
        "names that are not said",
        "evotok decode: codes.safetensors: not a whole file of codes (…): encode the images again.",
        names=None,
    ),
    described(
        "names that are no JSON",
        "evotok decode: codes.safetensors: not a whole file of codes (…): encode the images again.",
        names="[a.png",
    ),
    described(
        "names that are a number",
        "evotok decode: codes.safetensors: its names are no list of texts: encode the images again.",
        names="3",
    ),
    described(
        "names that are one text",
        "evotok decode: codes.safetensors: its names are no list of texts: encode the images again.",
        names='"a"',
    ),
    described(
        "names that are numbers",
        "evotok decode: codes.safetensors: its names are no list of texts: encode the images again.",
        names="[7]",
    ),
    described(
        "names that are a dict",
        "evotok decode: codes.safetensors: its names are no list of texts: encode the images again.",
        names='{"a": 1}',
    ),
    described(
        "names of which one is null",
        "evotok decode: codes.safetensors: its names are no list of texts: encode the images again.",
        names="[null]",
    ),
    described(
        "more names than images",
        "evotok decode: codes.safetensors: uint16 codes of shape (1, 16, 4) with 2 names; a file of codes has uint16 codes (images, positions, levels) and a name for each image.",
        names='["a.png", "b.png"]',
    ),
    described(
        "names nested very deeply",
        "evotok decode: codes.safetensors: not a whole file of codes (…): encode the images again.",
        names="[" * 100_000,
    ),
    shaped(
        "two dimensions",
        "evotok decode: codes.safetensors: uint16 codes of shape (16, 4) with 16 names; a file of codes has uint16 codes (images, positions, levels) and a name for each image.",
        good_codes()[0],
        ["a"] * 16,
    ),
    shaped(
        "four dimensions",
        "evotok decode: codes.safetensors: uint16 codes of shape (1, 1, 16, 4) with 1 names; a file of codes has uint16 codes (images, positions, levels) and a name for each image.",
        good_codes()[None],
        ["a"],
    ),
    shaped(
        "no images",
        "evotok decode: codes.safetensors: uint16 codes of shape (0, 16, 4) with 0 names; a file of codes has uint16 codes (images, positions, levels) and a name for each image.",
        good_codes(0),
    ),
    shaped(
        "no positions",
        "evotok decode: codes.safetensors: uint16 codes of shape (1, 0, 4) with 1 names; a file of codes has uint16 codes (images, positions, levels) and a name for each image.",
        good_codes()[:, :0],
    ),
    shaped(
        "no levels",
        "evotok decode: codes.safetensors: uint16 codes of shape (1, 16, 0) with 1 names; a file of codes has uint16 codes (images, positions, levels) and a name for each image.",
        good_codes()[..., :0],
    ),
    shaped(
        "positions of another model",
        "evotok decode: codes.safetensors: codes of shape (1, 9, 4) must be (batch, 16, levels).",
        good_codes()[:, :9],
    ),
    shaped(
        "more levels than the tokenizer has",
        "evotok decode: codes.safetensors: 8 levels, but the tokenizer has 4: encode again.",
        good_codes().repeat(2, axis=-1),
    ),
    shaped(
        "int64 codes",
        "evotok decode: codes.safetensors: int64 codes of shape (1, 16, 4) with 1 names; a file of codes has uint16 codes (images, positions, levels) and a name for each image.",
        good_codes().astype(np.int64),
    ),
    shaped(
        "uint8 codes",
        "evotok decode: codes.safetensors: uint8 codes of shape (1, 16, 4) with 1 names; a file of codes has uint16 codes (images, positions, levels) and a name for each image.",
        good_codes().astype(np.uint8),
    ),
    shaped(
        "float codes",
        "evotok decode: codes.safetensors: float32 codes of shape (1, 16, 4) with 1 names; a file of codes has uint16 codes (images, positions, levels) and a name for each image.",
        good_codes().astype(np.float32),
    ),
    shaped(
        "code just above the codebook",
        "evotok decode: codes.safetensors: codes run from 32 to 32 but the codebooks hold 32 entries, 0 to 31: give codes of this tokenizer.",
        np.full((1, 16, 4), ENTRIES, dtype=np.uint16),
    ),
    shaped(
        "largest code there is",
        "evotok decode: codes.safetensors: codes run from 65535 to 65535 but the codebooks hold 32 entries, 0 to 31: give codes of this tokenizer.",
        np.full((1, 16, 4), 65535, dtype=np.uint16),
    ),
    Case(
        "names that lead out of the folder",
        "the file stays in it",
        with_tokenizer(lambda place: codes_of(place, good_codes(2), ["../../outside/canary.png", "/etc/passwd"])),
        names_in_folder("canary-depth2.png", "passwd-depth2.png"),
    ),
    Case(
        "names that no system takes",
        "names that every system takes",
        with_tokenizer(lambda place: codes_of(place, good_codes(3), ["CON\0:*?.png", "", "猫" * 1000])),
        names_in_folder("con-depth2.png", "image-depth2.png", "image-depth2-2.png"),
    ),
    Case(
        "link, planted where the image is first written",
        "the link is removed, what it points at is not touched",
        with_tokenizer(lambda place: _planted(place, "out/.a-depth2.png.part")),
        names_in_folder("a-depth2.png"),
    ),
    Case(
        "link, planted where the image will lie",
        "the link is replaced, what it points at is not touched",
        with_tokenizer(lambda place: _planted(place, "out/a-depth2.png")),
        names_in_folder("a-depth2.png"),
    ),
]


def _planted(place: Place, name: str) -> str:
    place.link(name, place.outside / "canary.png")
    return codes_of(place, good_codes(), ["a.png"])


CASES += [
    Case(
        "1,600 images of one name",
        "they get numbers",
        with_tokenizer(lambda place: codes_of(place, good_codes(1600), ["../a.png"] * 1600)),
        names_in_folder("a-depth2.png", *(f"a-depth2-{n}.png" for n in range(2, 1601))),
    )
]

GROUPS = [Group("Files of codes", "`evotok decode`", decode, CASES, refusal="exit 2")]
