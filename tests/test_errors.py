"""What an error says to people: one line."""

import argparse
import json
import re

import torch
from torch.utils.data import DataLoader

from evotok.commands.terminal import say
from evotok.data.errors import escape_controls, escape_controls_json, one_line
from evotok.visible_streamer import VisibleStreamer


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


def said(error):
    try:
        next(iter(DataLoader(Failing(error), num_workers=1)))
    except Exception as found:  # noqa: BLE001 - whatever it comes back as
        assert "Traceback" in str(found)
        return one_line(found)


def test_what_a_worker_raises_is_said_as_the_worker_would():
    assert said(ValueError("a.tar: gone: put it back.")) == "a.tar: gone: put it back."
    assert said(ValueError("two\n    lines: of it")) == "two lines: of it"
    assert said(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no start")).startswith("'utf-8' codec can't decode")


def test_other_messages_stay_and_nothing_moves_the_cursor():
    assert one_line(ValueError("DataLoader worker (pid 7) is gone")) == "DataLoader worker (pid 7) is gone"
    assert one_line(ValueError("a\x1b[2Jb\nc")) == "a\\x1b[2Jb c"
    assert one_line(FileNotFoundError(2, "No such file", "a.tar")) == "a.tar: no such file: check the path."
    assert one_line(ValueError()) == "ValueError"


ODD = "a\x1b[2Jb\x9b31m\x07 \u202edlrow \u200e\ud83d\u2028 end"


def test_what_a_terminal_would_obey_is_spelled_out():
    said = escape_controls(f"{ODD}\n\tsecond line")
    assert said == "a\\x1b[2Jb\\x9b31m\\x07 \\u202edlrow \\u200e\\ud83d\\u2028 end\n\tsecond line"
    assert escape_controls("a café, 青い、 👩\u200d💻\n") == "a café, 青い、 👩\u200d💻\n", "and nothing else"


def test_json_stays_json():
    facts = {"first": ODD, "other": "a café\n"}
    said = escape_controls_json(json.dumps(facts, ensure_ascii=False))
    assert json.loads(said) == facts and "café" in said
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202e\ud83d]", said)


def test_commands_say_nothing_else(capsys):
    say(argparse.Namespace(json=False), {}, [ODD])
    say(argparse.Namespace(json=True), {"text": ODD}, [])
    assert "\x1b" not in capsys.readouterr().out.replace("\\x1b", "")
    streamer = VisibleStreamer(None)
    streamer.on_finalized_text(ODD, stream_end=True)
    assert capsys.readouterr().out.startswith("a\\x1b[2Jb\\x9b31m")
