"""What an error says to people: one line."""

import torch
from torch.utils.data import DataLoader

from evotok.training.messages import one_line


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
