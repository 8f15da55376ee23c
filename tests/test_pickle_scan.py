"""Scan of pickles: those of checkpoints pass in any protocol, those that would hang or crash are refused."""

import argparse
import io
import pickle
import time
from collections import OrderedDict

import pytest
import torch

from evotok.eval import pickle_scan
from evotok.eval.perceptual import read_weights
from evotok.eval.pickle_scan import MAX_DEPTH, scan_pickle, scan_torch_file


def wrapped(times):
    return b"\x80\x02N" + b"\x85" * times + b"."


def doubled(times, put="q", get="h"):
    """Returns a pickle of a tuple that holds a tuple twice, and so on."""
    pieces = [put.encode() + bytes([n]) + get.encode() + bytes([n]) + b"\x86" for n in range(times)]
    return b"\x80\x02N" + b"".join(pieces) + b"."


BOMBS = {
    "tuples in tuples": (wrapped(400_000), "nested more than"),
    "a key of such": (b"\x80\x02}" + wrapped(400_000)[2:-1] + b"K\x01s.", "nested more than"),
    "lists in lists": (b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".", "nested more than"),
    "marks in marks": (b"\x80\x02" + b"(" * 5000 + b"N" + b"t" * 5000 + b".", "nested more than"),
    "calls of calls": (
        b"\x80\x02" + b"cargparse\nNamespace\n" * 5000 + b"N\x85" + b"R\x85" * 5000 + b".",
        "nested more than",
    ),
    "sixty shared tuples": (doubled(60), "tuples of more than"),
    "shared by MEMOIZE": (
        b"\x80\x04N" + b"".join(b"\x94h" + bytes([n]) + b"\x86" for n in range(60)) + b".",
        "tuples of more than",
    ),
    "shared by DUP": (b"\x80\x02N" + b"2\x86" * 60 + b".", "tuples of more than"),
    "shared frozen sets": (
        b"\x80\x04N" + b"".join(b"\x94(h" + bytes([n]) + b"h" + bytes([n]) + b"\x91" for n in range(60)) + b".",
        "tuples of more than",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_scan_refuses_bombs(name):
    content, message = BOMBS[name]
    start = time.process_time()
    with pytest.raises(ValueError, match=message):
        scan_pickle(io.BytesIO(content))
    assert time.process_time() - start < 10


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x02h\x05.", b"\x80\x02t.", b"\x80\x02a."])
def test_scan_refuses_other_content(content):
    with pytest.raises((ValueError, LookupError)):
        scan_pickle(io.BytesIO(content))


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_scan_accepts_pickles_of_checkpoints(protocol):
    shared = ("a", [1.5, None])
    content = {
        "args": argparse.Namespace(rate=1e-3, sizes=(16, 16), names=["a"] * 50),
        "state": OrderedDict((f"layer.{n}.weight", (n, (3, 4), b"bytes", shared, True)) for n in range(2000)),
        "sets": [{1, 2}, frozenset({3})],
        (1, ("key",)): 10**30,
    }
    file = io.BytesIO(pickle.dumps(content, protocol) + pickle.dumps(shared, protocol))
    scan_pickle(file)
    scan_pickle(file)
    assert not file.read()


def test_scan_refuses_too_many_opcodes(monkeypatch):
    monkeypatch.setattr(pickle_scan, "MAX_OPCODES", 1000)
    with pytest.raises(ValueError, match="more than 1,000 opcodes"):
        scan_pickle(io.BytesIO(b"\x80\x02" + b"N0" * 1000 + b"N."))


def test_scan_accepts_values_up_to_the_limits():
    scan_pickle(io.BytesIO(wrapped(MAX_DEPTH - 1)))
    with pytest.raises(ValueError, match="nested"):
        scan_pickle(io.BytesIO(wrapped(MAX_DEPTH)))
    scan_pickle(io.BytesIO(doubled(18)))


@pytest.mark.parametrize("is_old", [False, True])
def test_scan_accepts_files_of_torch_save(tmp_path, is_old):
    content = {"weight": torch.zeros(3, 4), "args": argparse.Namespace(rate=1.0), "buffers": [torch.ones(2)] * 3}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not is_old)
    scan_torch_file(tmp_path / "a.pt")


def test_read_weights_scans_the_file(tmp_path):
    (tmp_path / "a.pth").write_bytes(doubled(60))
    with pytest.raises(ValueError, match="a.pth: no file of weights .tuples of more than"):
        read_weights(tmp_path / "a.pth")
