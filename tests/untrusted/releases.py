"""Checkpoints of the paper's release, which are pickles: code in them, huge sizes, links that lead out."""

import argparse
import io
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from untrusted.case import Group, Workspace, case, kind, run_command
from untrusted.checkpoints import Evil
from untrusted.materials import DEEP, Change, change_json, link_out, pipe, write


BIAS = "decoder.conv_out.bias"


class OwnFunction:
    """Object that calls a function of this package when it is unpickled."""

    def __reduce__(self):
        from evotok.commands.files import check_folder

        return (check_folder, ("touched",))


def convert(workspace: Workspace, source: str) -> str:
    return run_command(workspace, ["convert", source, "--out", "ours"])


def tokenizer(change: Callable[[Path], Any]):
    """Converts a changed `last.pt`."""

    def make(workspace: Workspace) -> str:
        shutil.copy(workspace.materials.release / "last.pt", workspace.path)
        change(workspace.path / "last.pt")
        return "last.pt"

    return make


def folder(change: Change):
    """Converts a changed folder of `last.pt` and a language model in two shards."""

    def make(workspace: Workspace) -> str:
        shutil.copytree(workspace.materials.release, workspace.path / "release")
        change(workspace.path / "release")
        return "release"

    return make


def rewritten(change: Callable[[dict], Any], **how: Any):
    """Changes the content of `last.pt`, and saves it by `torch.save` with `how`."""

    def spoil(path: Path) -> None:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, path, **how)

    return tokenizer(spoil)


def large_bias(content: dict) -> None:
    content["model"][BIAS] = torch.zeros(1).expand(2**40)


def sparse_bias(content: dict) -> None:
    content["model"][BIAS] = torch.zeros(3).to_sparse()


def zipped(content: bytes | None = None, compression: int = zipfile.ZIP_STORED):
    """Writes the records of `last.pt` again, with another pickle or compressed."""

    def spoil(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, record in records.items():
                archive.writestr(name, content if content and name.endswith("data.pkl") else record)

    return tokenizer(spoil)


def tarred(path: Path) -> None:
    """Writes the format of PyTorch before 0.1.10, a tar of pickles."""
    content = pickle.dumps(Evil())
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            record = tarfile.TarInfo(name)
            record.size = len(content)
            archive.addfile(record, io.BytesIO(content))


def code_of_a_text_tokenizer(folder: Path) -> None:
    change_json("tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]})(folder)
    (folder / "evil.py").write_text("raise SystemExit('it ran')\n")


INDEX, SHARD = "pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"
NESTED = b"\x80\x02}N" + b"\x85" * 400_000 + b"K\x01s."
SHARED = b"\x80\x02}N" + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(60)) + b"K\x01s."
KINDS = [
    kind("code in a pickle", "last.pt: calls {}, which no checkpoint needs: refused, nothing of it was run.")(
        case("arguments", rewritten(lambda content: setattr(content["args"], "a", Evil())), "posix.system"),
        case("format before zip files", rewritten(lambda content: content.update(a=Evil()), _use_new_zipfile_serialization=False), "posix.system"),
        case("function of this package", rewritten(lambda content: content.update(a=OwnFunction())), "evotok.commands.files.check_folder"),
    ),
    kind("pickle bomb, or another format", "last.pt: not a file of torch.save, or damaged ({}). Copy it again.", limit="1,000 deep, 10⁶ values")(
        case("400,000 tuples deep", zipped(NESTED), "values nested more than 1,000 deep"),
        case("sixty shared tuples", zipped(SHARED), "tuples of more than 1,000,000 values"),
        case("compressed records", zipped(compression=zipfile.ZIP_DEFLATED), "compressed records"),
        case("tar of pickles", tokenizer(tarred), "a tar of pickles, as PyTorch wrote before 0.1.10"),
    ),
    kind("tensor", f"last.pt: {BIAS} {{}}.")(
        case("larger than its data", rewritten(large_bias), "has shape (1099511627776,), but the file holds 4 bytes for it: damaged. Copy it again"),
        case("sparse", rewritten(sparse_bias), "is no plain tensor of numbers but torch.float32, torch.sparse_coo. Save it as one"),
    ),
    kind("folder with a bad file", "release{}.")(
        case(
            "shard outside",
            folder(change_json(INDEX, "weight_map", **{"model.norm.weight": "../../outside/x.bin"})),
            f"/{INDEX}: names '../../outside/x.bin', which is no file of …",
        ),
        case("link", folder(link_out(SHARD)), f": {SHARD} is a link that leads out of the folder. Copy the file itself there"),
        case("pipe", folder(pipe("mm_projector.bin")), ": mm_projector.bin is no file. Copy the checkpoint again"),
        case("JSON nested deeply", folder(write("config.json", DEEP)), "/config.json: damaged, not JSON of one object. Copy it again"),
        case("code", folder(code_of_a_text_tokenizer), ": the text tokenizer cannot be read (…). Copy its files again"),
    ),
]

GROUPS = [Group("Checkpoints", "`evotok convert`", convert, KINDS)]
