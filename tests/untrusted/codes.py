"""Files of codes for `evotok decode`: damaged, of another tokenizer, of wrong shapes, with names that lead out."""

import json
import struct
from typing import Any

import numpy as np
from conftest import POSITIONS
from safetensors.numpy import save_file

from evotok.commands.codes import Codes, write_codes
from untrusted.case import Group, Workspace, case, kind, run_command
from untrusted.materials import ENTRIES, LEVELS, copy


def codes_of(workspace: Workspace, codes: np.ndarray, names: Any = None) -> str:
    """Writes a file of codes as `evotok encode` does, and returns its name."""
    names = [f"image {index}.png" for index in range(len(codes))] if names is None else names
    write_codes(workspace.path / "codes.safetensors", Codes(codes, names, workspace.materials.fingerprint))
    return "codes.safetensors"


def good_codes(images: int = 1) -> np.ndarray:
    """Returns valid codes of the tiny tokenizer, (images, 16, 4) uint16."""
    return np.random.default_rng(0).integers(0, ENTRIES, (images, POSITIONS, LEVELS)).astype(np.uint16)


def decode(workspace: Workspace, name: str) -> str:
    return run_command(workspace, ["decode", "tokenizer", name, "--out", "out"])


def raw(content: bytes):
    return lambda workspace: workspace.write("codes.safetensors", content)


def written(codes: np.ndarray, names: list | None = None):
    return lambda workspace: codes_of(workspace, codes, names)


def described(**metadata: str):
    """Writes valid codes with other metadata."""

    def make(workspace: Workspace) -> str:
        own = {"format": "evotok-codes-1", "tokenizer": workspace.materials.fingerprint, "names": '["a.png"]'}
        save_file({"codes": good_codes()}, workspace.path / "codes.safetensors", metadata=own | metadata)
        return "codes.safetensors"

    return make


def planted(name: str):
    """Writes valid codes of `a.png`, and a link to a file outside at `name`."""
    return lambda workspace: (workspace.link(name, workspace.outside / "canary.png"), codes_of(workspace, good_codes(), ["a.png"]))[1]


def header(text: bytes) -> bytes:
    """Returns a safetensors file with this header."""
    return struct.pack("<Q", len(text)) + text


def names(*wanted: str):
    def check(printed: str) -> None:
        assert printed.split() == [f"out/{name}" for name in wanted], printed

    return check


OVERFLOW = {"codes": {"dtype": "U16", "shape": [2**62, 16, 4], "data_offsets": [0, 128]}}
KINDS = [
    kind("damaged codes", "codes.safetensors: incomplete or damaged file of codes (…): encode the images again.")(
        case("header of 2^64 bytes", raw(b"\xff" * 64)),
        case("header nested deeply", raw(header(b'{"a":' * 5000))),
        case("size that overflows", raw(header(json.dumps(OVERFLOW).encode()) + bytes(128))),
        case("names nested deeply", described(names="[" * 100_000)),
    ),
    kind("codes of something else", "{}.")(
        case("weights", lambda _: "tokenizer/model.safetensors", "tokenizer/model.safetensors: not a file of codes. `evotok encode` writes them"),
        case("another tokenizer", described(tokenizer="0" * 64), "codes.safetensors: written by another tokenizer than that of tokenizer. Decode with …"),
    ),
    kind("type of names or codes", "codes.safetensors: {}.")(
        case("names", described(names="[7]"), "its names are no list of texts: encode the images again"),
        case("codes", written(good_codes().astype(np.int64)), "int64 codes of shape (1, 16, 4) with 1 names; a file of codes has uint16 codes …"),
    ),
    kind("codes that the tokenizer does not have", "codes.safetensors: {}.", limit="`num_codebooks`, `codebook_size`")(
        case("levels", written(good_codes().repeat(2, axis=-1)), "8 levels, but the tokenizer has 4: encode again"),
        case("entries", written(good_codes() + np.uint16(65_500)), "codes run from 65500 to 65531 but the codebooks hold 32 entries, 0 to 31: …"),
    ),
    kind("names that lead out, are reserved, or repeat", "safe names in the folder, numbered in linear time")(
        case("paths", written(good_codes(2), ["../../outside/canary.png", "/etc/passwd"]), check=names("canary-depth2.png", "passwd-depth2.png")),
        case(
            "reserved and long names",
            written(good_codes(3), ["CON\0:*?.png", "", "猫" * 1000]),
            check=names("con-depth2.png", "image-depth2.png", "image-depth2-2.png"),
        ),
        case(
            "800 images of one name", written(good_codes(800), ["../a.png"] * 800), check=names("a-depth2.png", *(f"a-depth2-{n}.png" for n in range(2, 801)))
        ),
    ),
    kind("link at the place of an output", "the link is replaced, its target stays")(
        case("temporary file", planted("out/.a-depth2.png.part"), check=names("a-depth2.png")),
        case("image", planted("out/a-depth2.png"), check=names("a-depth2.png")),
    ),
]

GROUPS = [Group("Files and command lines", "`evotok decode`", decode, KINDS, copy("tokenizer"))]
