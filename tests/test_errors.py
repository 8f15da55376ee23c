"""Error messages as single lines, and text without control characters."""

import argparse
import json
import re

import pytest
import torch
from torch.utils.data import DataLoader

from evotok.commands.terminal import print_results
from evotok.data.errors import (
    escape_controls,
    escape_controls_json,
    explain_errors,
    image_reason,
    one_line,
    reason,
    row_reason,
)
from evotok.inference import VisibleStreamer


class Failing(torch.utils.data.Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        try:
            raise KeyError("before")
        except KeyError:
            raise self.error from None


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n    lines: of it"), "two lines: of it"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no start"), "'utf-8' codec can't decode"),
    ],
)
def test_one_line_drops_the_traceback_of_a_worker(error, line):
    with pytest.raises(Exception, match="Traceback") as found:
        next(iter(DataLoader(Failing(error), num_workers=1)))
    assert one_line(found.value).startswith(line)


def test_one_line_escapes_and_names_files():
    assert one_line(ValueError("DataLoader worker (pid 7) is gone")) == "DataLoader worker (pid 7) is gone"
    assert one_line(ValueError("a\x1b[2Jb\nc")) == "a\\x1b[2Jb c"
    assert one_line(FileNotFoundError(2, "No such file", "a.tar")) == "a.tar: no such file: check the path."
    assert one_line(ValueError()) == reason(ValueError()) == "ValueError"
    assert len(one_line(ValueError("x" * 9000))) < 500 and reason(ValueError("a\n b" * 9), 9) == "a ba  ..."
    assert image_reason(ValueError("image: too large: crop it, or raise max_pixels.")) == "too large: crop it."
    assert row_reason(KeyError("key")) == "no column 'key'" and row_reason(ValueError("x")) == "x"


def test_explain_errors_adds_the_correction_and_names_the_subject_once():
    for message in ("two\n lines", "a.pt: two lines"):
        with (
            pytest.raises(ValueError, match=r"^a\.pt: cannot be read \(two lines\): copy it\.$"),
            explain_errors("a.pt", "cannot be read", ": copy it."),
        ):
            raise RuntimeError(message)


ODD = "a\x1b[2Jb\x9b31m\x07 \u202edlrow \u200e\ud83d\u2028 end"


def test_escape_controls_keeps_other_text():
    line = escape_controls(f"{ODD}\n\tsecond line")
    assert line == "a\\x1b[2Jb\\x9b31m\\x07 \\u202edlrow \\u200e\\ud83d\\u2028 end\n\tsecond line"
    assert escape_controls("a café, 青い、 👩\u200d💻\n") == "a café, 青い、 👩\u200d💻\n"
    facts = {"first": ODD, "other": "a café\n"}
    line = escape_controls_json(json.dumps(facts, ensure_ascii=False))
    assert json.loads(line) == facts and "café" in line
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202e\ud83d]", line)


def test_commands_print_no_control_characters(capsys):
    print_results(argparse.Namespace(json=False), {}, [ODD])
    print_results(argparse.Namespace(json=True), {"text": ODD}, [])
    assert "\x1b" not in capsys.readouterr().out.replace("\\x1b", "")
    streamer = VisibleStreamer(None)
    streamer.on_finalized_text(ODD, stream_end=True)
    assert capsys.readouterr().out.startswith("a\\x1b[2Jb\\x9b31m")
