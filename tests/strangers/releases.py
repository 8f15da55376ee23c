"""Checkpoints of the paper's release, which are pickles: code in them, sizes that burst, links that lead out."""

import argparse
import io
import json
import os
import pathlib
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from strangers.case import Case, Group, Place, run_command


AGAIN = "Copy it again."
BIAS = "decoder.conv_out.bias"


class Evil:
    """Unpickled, it would touch a file."""

    def __reduce__(self):
        return (os.system, ("touch pickled",))


class OwnFunction:
    """Unpickled, it would call a function that is not the standard library's."""

    def __reduce__(self):
        from evotok.commands.files import check_folder

        return (check_folder, ("touched",))


def convert(place: Place, sources: list[str]) -> str:
    """What `evotok convert` says of sources."""
    return run_command(place, ["convert", *sources, "--out", "ours"])


def tokenizer(given: str, gets: str, spoil: Callable[[Path], Any], good=None) -> Case:
    """A `last.pt` that is spoiled, or changed so that it still must do."""

    def make(place: Place) -> list[str]:
        shutil.copy(place.materials.release / "last.pt", place.path)
        spoil(place.path / "last.pt")
        return ["last.pt"]

    return Case(given, gets, make, good)


def folder(given: str, gets: str, spoil: Callable[[Path], Any], good=None) -> Case:
    """A folder with a `last.pt` and a language model in two shards, spoiled or changed."""

    def make(place: Place) -> list[str]:
        shutil.copytree(place.materials.release, place.path / "release")
        spoil(place.path / "release")
        return ["release"]

    return Case(given, gets, make, good)


def rewritten(change: Callable[[dict], Any], **how: Any) -> Callable[[Path], None]:
    """Changes what `last.pt` holds, and saves it as `torch.save` does with `how`."""

    def spoil(path: Path) -> None:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, path, **how)

    return spoil


def cut(end: int) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(path.read_bytes()[:end])


def compressed(path: Path) -> None:
    """The same records, deflated: a megabyte of them could hold a gigabyte."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


def pickled(content: bytes) -> Callable[[Path], None]:
    """The same records, but for the pickle."""

    def spoil(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name, record in records.items():
                archive.writestr(name, content if name.endswith("data.pkl") else record)

    return spoil


def tarred(path: Path) -> None:
    """As PyTorch wrote before 0.1.10: a tar of pickles."""
    import pickle

    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(Evil())
            record = tarfile.TarInfo(name)
            record.size = len(content)
            archive.addfile(record, io.BytesIO(content))


def change_index(change: Callable[[dict], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "pytorch_model.bin.index.json"
        index = json.loads(path.read_text(encoding="utf-8"))
        change(index)
        path.write_text(json.dumps(index), encoding="utf-8")

    return spoil


def link_out(name: str) -> Callable[[Path], None]:
    """Replaces a file by a link to a good one that lies outside."""

    def spoil(folder: Path) -> None:
        outside = folder.parent.parent / "outside"
        shutil.move(folder / name, outside / name)
        os.symlink(outside / name, folder / name)

    return spoil


def hostile_tokenizer(folder: Path) -> None:
    facts = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    (folder / "evil.py").write_text("raise SystemExit('it ran')\n")


def is_converted(printed: str) -> None:
    """Checks what a conversion says at its end."""
    assert "numbers converted" in printed


CASES = [
    tokenizer(
        "code among the arguments",
        "evotok convert: last.pt: calls posix.system, which no checkpoint needs: refused, nothing of it was run.",
        rewritten(lambda content: setattr(content["args"], "evil", Evil())),
    ),
    tokenizer(
        "code among the weights",
        "evotok convert: last.pt: calls posix.system, which no checkpoint needs: refused, nothing of it was run.",
        rewritten(lambda content: content["model"].update({BIAS: Evil()})),
    ),
    tokenizer(
        "code in the format before zip files",
        "evotok convert: last.pt: calls posix.system, which no checkpoint needs: refused, nothing of it was run.",
        rewritten(lambda content: content.update(evil=Evil()), _use_new_zipfile_serialization=False),
    ),
    tokenizer(
        "code in the format of tar files",
        f"evotok convert: last.pt: not a file of torch.save, or damaged (a tar of pickles, as PyTorch wrote before 0.1.10). {AGAIN}",
        tarred,
    ),
    tokenizer(
        "code that is named as the program's own",
        "evotok convert: last.pt: calls evotok.commands.files.check_folder, which no checkpoint needs: refused, nothing of it was run.",
        rewritten(lambda content: content.update(evil=OwnFunction())),
    ),
    tokenizer(
        "records that are compressed",
        f"evotok convert: last.pt: not a file of torch.save, or damaged (compressed records). {AGAIN}",
        compressed,
    ),
    tokenizer(
        "file that is empty", f"evotok convert: last.pt: not a file of torch.save, or damaged (…). {AGAIN}", cut(0)
    ),
    tokenizer(
        "file cut in the middle",
        f"evotok convert: last.pt: not a file of torch.save, or damaged (…). {AGAIN}",
        cut(20_000),
    ),
    tokenizer(
        "file cut by one byte",
        f"evotok convert: last.pt: not a file of torch.save, or damaged (…). {AGAIN}",
        cut(-1),
    ),
    tokenizer(
        "key nested 400,000 deep",
        f"evotok convert: last.pt: not a file of torch.save, or damaged (values nested more than 1,000 deep). {AGAIN}",
        pickled(b"\x80\x02}N" + b"\x85" * 400_000 + b"K\x01s."),
    ),
    tokenizer(
        "key of sixty shared tuples",
        f"evotok convert: last.pt: not a file of torch.save, or damaged (tuples of more than 1,000,000 values). {AGAIN}",
        pickled(
            b"\x80\x02}N" + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(60)) + b"K\x01s."
        ),
    ),
    tokenizer(
        "sixty shared tuples in the format before zip files",
        f"evotok convert: last.pt: not a file of torch.save, or damaged (tuples of more than 1,000,000 values). {AGAIN}",
        lambda path: path.write_bytes(b"\x80\x02N" + b"2\x86" * 60 + b"."),
    ),
    tokenizer(
        "pickle without end",
        f"evotok convert: last.pt: not a file of torch.save, or damaged (a pickle of more than 1,000,000 opcodes). {AGAIN}",
        pickled(b"\x80\x02" + b"N0" * 600_000 + b"N."),
    ),
    tokenizer(
        "tensor of a trillion numbers in four bytes",
        f"evotok convert: last.pt: {BIAS} has shape (1099511627776,), but the file holds 4 bytes for it: damaged. {AGAIN}",
        rewritten(lambda content: content["model"].update({BIAS: torch.zeros(1).expand(2**40)})),
    ),
    tokenizer(
        "tensor that is sparse",
        f"evotok convert: last.pt: {BIAS} is no plain tensor of numbers but torch.float32, torch.sparse_coo. Save it as one.",
        rewritten(lambda content: content["model"].update({BIAS: torch.zeros(3).to_sparse()})),
    ),
    tokenizer(
        "tensor that is missing",
        f"evotok convert: last.pt: the tokenizer lacks {BIAS}: damaged, or not of the release's format. {AGAIN}",
        rewritten(lambda content: content["model"].pop(BIAS)),
    ),
    tokenizer(
        "tensor of another shape",
        f"evotok convert: last.pt: the tokenizer's {BIAS} has shape (4,) instead of (3,). {AGAIN}",
        rewritten(lambda content: content["model"].update({BIAS: torch.zeros(4)})),
    ),
    tokenizer(
        "paths among the arguments",
        "it is converted",
        rewritten(lambda content: setattr(content["args"], "where", pathlib.PurePosixPath("/etc/passwd"))),
        is_converted,
    ),
    Case(
        "file that is a link",
        "it is followed: it is what was given",
        lambda place: [place.link("last.pt", place.materials.release / "last.pt")],
        is_converted,
    ),
    folder(
        "shard that is missing",
        "evotok convert: release/pytorch_model-00002-of-00002.bin: this shard is missing. Copy the folder again.",
        lambda release: (release / "pytorch_model-00002-of-00002.bin").unlink(),
    ),
    folder(
        "shard that lies outside",
        "evotok convert: release/pytorch_model.bin.index.json: names '../../outside/x.bin', which is no file of this folder. Copy the folder again.",
        change_index(lambda index: index["weight_map"].update({"model.norm.weight": "../../outside/x.bin"})),
    ),
    folder(
        "shard that is a link leading out",
        "evotok convert: release: pytorch_model-00001-of-00002.bin is a link that leads out of the folder. Copy the file itself there.",
        link_out("pytorch_model-00001-of-00002.bin"),
    ),
    folder(
        "index of shards that are numbers",
        "evotok convert: release/pytorch_model.bin.index.json: names 3, which is no file of this folder. Copy the folder again.",
        change_index(lambda index: index.update(weight_map={"a": 3})),
    ),
    folder(
        "index of shards 3,000 deep",
        "evotok convert: release/pytorch_model.bin.index.json: damaged, or no index of weights. Copy it again.",
        lambda release: (release / "pytorch_model.bin.index.json").write_text('{"a":' * 3000 + "1" + "}" * 3000),
    ),
    folder(
        "config.json 3,000 deep",
        "evotok convert: release/config.json: damaged, not JSON of one object. Copy it again.",
        lambda release: (release / "config.json").write_text('{"a":' * 3000 + "1" + "}" * 3000),
    ),
    folder(
        "weights that are a pipe",
        "evotok convert: release: mm_projector.bin is no file. Copy the checkpoint again.",
        lambda release: os.mkfifo(release / "mm_projector.bin"),
    ),
    folder(
        "code that would run, for the text tokenizer",
        "evotok convert: release: the text tokenizer cannot be read (…). Copy its files again.",
        hostile_tokenizer,
    ),
    Case(
        "folder that a stopped conversion left",
        "evotok convert: ours.part: this is there already, left by a run that was stopped: remove it.",
        lambda place: (place.write("ours.part/kept.txt", "kept"), [str(place.materials.release / "last.pt")])[1],
    ),
]

GROUPS = [Group("Checkpoints of the paper's release", "`evotok convert`", convert, CASES, refusal="exit 2")]
