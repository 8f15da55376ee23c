"""The lock of an output folder."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from evotok.training.resuming.run_lock import lock_folder


ROOT = Path(__file__).resolve().parents[1]
HOLDER = """
import os, sys, time
from evotok.training.resuming.run_lock import lock_folder
with lock_folder(sys.argv[1]):
    if len(sys.argv) > 2 and os.fork() == 0:  # as a loader starts a worker
        os.write(1, f"{os.getpid()}\\n".encode())  # at once, beside the parent's line
        time.sleep(60)
    os.write(1, b"locked\\n")
    time.sleep(60)
"""


def holder(folder, *more):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), *more],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    lines = [process.stdout.readline().strip() for _ in range(1 + len(more))]
    assert "locked" in lines
    return process, [int(line) for line in lines if line.isdigit()]


def test_second_run_is_refused_until_the_first_has_ended(tmp_path):
    first, _ = holder(tmp_path / "run")
    try:
        with (
            pytest.raises(ValueError, match="another run is training into this folder: wait"),
            lock_folder(tmp_path / "run"),
        ):
            pytest.fail("two runs at once")
        with lock_folder(tmp_path / "other"):
            pass
    finally:
        first.kill()
        first.wait()
    with lock_folder(tmp_path / "run"):
        pass


def test_killed_run_leaves_no_lock_although_its_workers_live(tmp_path):
    first, [worker] = holder(tmp_path, "and fork")
    try:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        os.kill(worker, 0)  # still alive
        with lock_folder(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_lock_is_held_by_the_first_process_of_a_group(tmp_path):
    with lock_folder(tmp_path), lock_folder(tmp_path, first=False):
        pass


def test_new_folder_is_removed_if_nothing_was_written(tmp_path):
    with pytest.raises(KeyError), lock_folder(tmp_path / "run"):
        raise KeyError
    assert not (tmp_path / "run").exists()
    with lock_folder(tmp_path / "run"):
        (tmp_path / "run" / "a").write_text("")
    assert (tmp_path / "run" / "a").exists()
    (tmp_path / "mine").mkdir()
    with lock_folder(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").exists()
