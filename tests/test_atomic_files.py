"""Atomic writes, with several writers and after errors."""

import pytest

from evotok.data import atomic_files
from evotok.data.atomic_files import atomic_file


def test_atomic_file_accepts_two_writers(tmp_path, monkeypatch):
    path = tmp_path / "new/file.txt"
    with atomic_file(path) as first:
        first.write_text("half")
        monkeypatch.setattr(atomic_files.os, "getpid", lambda: 7)
        with atomic_file(path) as second:
            second.write_text("of the second")
        monkeypatch.undo()
        assert path.read_text() == "of the second"
        first.write_text("of the first")
    assert path.read_text() == "of the first" and list(path.parent.iterdir()) == [path]


def test_atomic_file_removes_its_part_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "file.txt") as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
