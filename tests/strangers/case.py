"""What a case is, where it happens, and what must hold whatever it gives."""

import contextlib
import hashlib
import io
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bombs import little_memory


SECONDS = 60  # for one case, on a machine that does other things, too; most take milliseconds
PROCESSOR_SECONDS = 10  # that a case computes, with all its threads
MEGABYTES = 1000  # more than before
SECRET = "canary"  # what lies outside says this, and nothing that comes out may


@dataclass(frozen=True)
class Case:
    """One bad input.

    Args:
        given: what it is, for people; unique in its group.
        gets: the whole message, where `…` stands for anything; of a good input, what comes out.
        make: lays files out in the place and returns what the group's entry takes.
        good: of an odd input that must work, the check of what comes out.
        removes: beginning of the names that what is good may remove.
    """

    given: str
    gets: str
    make: Callable[["Place"], Any]
    good: Callable[[Any], None] | None = None
    removes: str | None = None


@dataclass(frozen=True)
class Group:
    """Cases that enter by the same door.

    Args:
        title: heading of the table.
        entry: the door, as people call it.
        take: (place, what `make` gave) -> what comes out; raises ValueError for a refusal.
        cases: in the order of the table.
        refusal: what a refusal is, in the table.
    """

    title: str
    entry: str
    take: Callable[["Place", Any], Any]
    cases: list[Case]
    refusal: str = "`ValueError`"


class CommandRefusedError(ValueError):
    """A command that ended with exit code 2; the message is its one line."""


class StatusError(ValueError):
    """A refusal of few words, which is all that a request out of form gets; the message is the status."""


class Place:
    """A current folder of a case's own, with a canary beside it.

    Args:
        root: empty folder.
        materials: what was built once for all cases.
    """

    def __init__(self, root: Path, materials: Any):
        self.path, self.outside, self.materials = root / "here", root / "outside", materials
        self.path.mkdir()
        self.outside.mkdir()
        materials.fill_outside(self.outside)

    def write(self, name: str, content: bytes | str) -> str:
        """A file of the place; returns its name."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return name

    def link(self, name: str, target: str | Path) -> str:
        """A symbolic link of the place; returns its name."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).unlink(missing_ok=True)
        os.symlink(target, self.path / name)
        return name


def run_command(_: Place, words: list[str]) -> str:
    """What `evotok` prints.

    Raises:
        CommandRefusedError: exit code 2 and one line on stderr.
    """
    from evotok.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    said = err.getvalue()
    assert code in (0, 2), f"exit code {code}: {said}"
    assert "Traceback" not in said, said
    if code == 2:
        raise CommandRefusedError(said.removesuffix("\n"))
    return out.getvalue()


# A message says what to do, or what is right.
_MEND = re.compile(
    r"\b(add|check|choose|clip|converts|copy|correct|crop|did you mean|download|encode|give|has|install|known keys|make|mend|merge|move|must|name|"
    r"not one of|parts:|pass|put|remove|repair|resize|required|run|save|scale|see|shorten|shipped|should|takes|use|whole number|write)\b|expected",
    re.IGNORECASE,
)


def check_message(error: ValueError, wanted: str) -> None:
    """One line, of readable length, as the catalogue has it, with a mend in it and no secret."""
    message = str(error)
    pattern = ".*".join(re.escape(piece) for piece in wanted.split("…"))
    assert re.fullmatch(pattern, message), f"got:    {message}\nwanted: {wanted}"
    assert message.isprintable(), f"more than one line, or control characters: {message!r}"
    assert len(message) <= 600, f"{len(message)} characters"
    assert isinstance(error, StatusError) or _MEND.search(message), f"no mend: {message}"
    assert SECRET not in message.lower(), f"tells what lies outside: {message}"


def snapshot(folder: Path) -> dict[str, str]:
    """Every file, link and folder below, with what it holds."""
    found = {}
    for base, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(base) / name
            if path.is_symlink():
                state = f"-> {os.readlink(path)}"
            elif path.is_file():
                state = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                state = "folder" if path.is_dir() else "special"
            found[path.relative_to(folder).as_posix()] = state
    return found


class HangError(BaseException):
    """A case that took too long; no handler of errors may swallow it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises HangError in what takes longer."""

    def stop(*_):
        raise HangError(f"still at work after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Watch:
    """What Python opens, writes, removes, starts or calls while a case runs.

    An audit hook cannot be taken off again: there is one for the process, which looks only while a case runs. What
    compiled libraries open past Python (safetensors, tokenizers) it does not see; the canaries are for those.
    """

    ANYWHERE = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pickle.find_class", "os.fork")
    PATHS = {"open": 1, "os.listdir": 1, "os.scandir": 1, "os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "os.rename": 2}

    def __init__(self):
        self.place: Place | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._look)

    def _look(self, event: str, args: tuple) -> None:
        if self.place is None:
            return
        if event in self.ANYWHERE:
            self.seen.append(f"{event} {args!r:.200}")
        elif event in self.PATHS:
            writes = event not in ("open", "os.listdir", "os.scandir")
            if event == "open":
                writes = bool(isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            for path in args[: self.PATHS[event]]:
                if isinstance(path, (str, bytes, os.PathLike)) and self._is_wrong(
                    os.fsdecode(path), writes, event == "open"
                ):
                    self.seen.append(f"{event} {os.fsdecode(path)}")

    def _is_wrong(self, path: str, writes: bool, follows: bool) -> bool:
        folder, name = os.path.split(path)
        real = os.path.realpath(path) if follows else os.path.join(os.path.realpath(folder), name)
        if real.startswith(f"{self.place.outside}{os.sep}"):
            return True
        allowed = (str(self.place.path.parent), str(self.place.materials.page_folder), "/dev/")
        inside = real.startswith(allowed) or "__pycache__" in real
        return writes and not inside

    @contextlib.contextmanager
    def over(self, place: Place) -> Iterator[None]:
        """Fails, when it is over, for anything that should not have happened in it."""
        self.place, self.seen = place, []
        try:
            yield
        finally:
            self.place = None
        assert not self.seen, "reaches out: " + "; ".join(self.seen[:5])


def run_case(group: Group, case: Case, place: Place, watch: Watch) -> None:
    """Asserts what the catalogue says of a case, and that it leaves everything as it was."""
    given = case.make(place)
    outside, before, start = snapshot(place.outside), snapshot(place.path), time.process_time()
    with little_memory(MEGABYTES), time_limit(SECONDS), watch.over(place):
        try:
            result, error = group.take(place, given), None
        except ValueError as refusal:
            result, error = None, refusal
    spent = time.process_time() - start
    assert spent < PROCESSOR_SECONDS, f"took {spent:.0f} s of the processor"
    assert snapshot(place.outside) == outside, "something outside was changed"
    if case.good is None:
        assert error is not None, f"was taken, and gave {result!r:.200}"
        check_message(error, case.gets)
        assert snapshot(place.path) == before, "something was left behind, or lost"
        return
    if error is not None:
        raise error
    case.good(result)
    after = snapshot(place.path)
    lost = [name for name, state in before.items() if after.get(name) != state and not state.startswith("->")]
    lost = [name for name in lost if case.removes is None or not name.startswith(case.removes)]
    assert not lost, f"lost: {lost}"
