"""Cases of the catalogue, the folder that a case runs in, and what must hold for every case."""

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
from page_client import SECRET


SECONDS = 120  # of one case, on a machine under load; most take milliseconds
PROCESSOR_SECONDS = 10  # CPU time of a case, over all threads
MEGABYTES = 1000  # above the memory before the case


@dataclass(frozen=True)
class Case:
    """One untrusted input.

    Args:
        given: variant of the kind, empty where the kind has one case.
        make: writes files into the workspace and returns the input of the entry point.
        words: what replaces each `{}` in the kind's answer.
        check: for an input that must be accepted, the check of the result.
        may_change: prefix of the files that an accepted input may change or remove.
    """

    given: str
    make: Callable[["Workspace"], Any]
    words: tuple[str, ...] = ()
    check: Callable[[Any], None] | None = None
    may_change: str | None = None


@dataclass(frozen=True)
class Kind:
    """One kind of fault, or of input that must be accepted: a row of docs/bad_inputs.md.

    Args:
        name: of the kind, unique in its group.
        answer: the whole message, where `{}` differs from case to case and `…` is any text; for inputs that must be
            accepted, the result in words.
        cases: at least one.
        limit: that the inputs exceed, if any.
    """

    name: str
    answer: str
    cases: tuple[Case, ...]
    limit: str = ""

    def answer_to(self, case: Case) -> str:
        """Returns the answer with the words of a case."""
        first, *rest = self.answer.split("{}")
        assert len(rest) == len(case.words), f"{case.words} for {self.answer!r}"
        return first + "".join(word + piece for word, piece in zip(case.words, rest, strict=True))


@dataclass(frozen=True)
class Group:
    """Kinds of input of one entry point.

    Args:
        title: section of docs/bad_inputs.md; neighbours of equal title share one.
        entry: entry point, in Markdown.
        take: (workspace, result of `make`) -> result; raises ValueError for a refusal.
        kinds: in the order of the table.
        prepare: (workspace), done before each case.
    """

    title: str
    entry: str
    take: Callable[["Workspace", Any], Any]
    kinds: list[Kind]
    prepare: Callable[["Workspace"], Any] = lambda _: None


def case(given: str, make: Callable[["Workspace"], Any], *words: str, **kwargs) -> Case:
    """Returns a case; see [`Case`]."""
    return Case(given, make, words, **kwargs)


def kind(name: str, answer: str, limit: str = "") -> Callable[..., Kind]:
    """Returns a function that makes the kind of its cases, or of one `make` with the other fields of its case."""

    def of(*cases: Case | Callable[["Workspace"], Any], **kwargs) -> Kind:
        return Kind(name, answer, tuple(c if isinstance(c, Case) else Case("", c, **kwargs) for c in cases), limit)

    return of


class CommandRefusedError(ValueError):
    """Exit code 2 of a command; the message is its one line, without the name of the command."""


class StatusError(ValueError):
    """Refusal by an HTTP status, which needs no advice."""


class Workspace:
    """Current folder of one case (`path`), beside a folder with files that must not be read (`outside`).

    Args:
        root: empty folder.
        materials: [`Materials`], which all cases share.
    """

    def __init__(self, root: Path, materials: Any):
        self.path, self.outside, self.materials = root / "here", root / "outside", materials
        self.path.mkdir()
        self.outside.mkdir()
        materials.fill_outside(self.outside)

    def write(self, name: str, content: bytes | str) -> str:
        """Writes a file and returns its name."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return name

    def link(self, name: str, target: str | Path) -> str:
        """Creates a symbolic link and returns its name."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).unlink(missing_ok=True)
        os.symlink(target, self.path / name)
        return name


def run_command(_: Workspace, words: list[str]) -> str:
    """Runs `evotok WORDS` in this process and returns its stdout.

    Raises:
        CommandRefusedError: exit code 2 and one line on stderr.
    """
    from evotok.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    line = err.getvalue()
    assert code in (0, 2), f"exit code {code}: {line}"
    assert "Traceback" not in line, line
    if code == 2:
        start = "evotok: " if line.startswith("evotok: No such command") else f"evotok {words[0]}: "
        assert line.startswith(start), line
        raise CommandRefusedError(line.removeprefix(start).removesuffix("\n"))
    return out.getvalue()


# A message has a correction, or the allowed values.
_ADVICE = re.compile(
    r"\b(add|check|choose|clip|converts|copy|correct|crop|did you mean|download|encode|give|has|install|known keys|make"
    r"|merge|move|must|name|not one of|parts:|pass|put|remove|repair|resize|required|run|save|scale|see|shorten"
    r"|shipped|should|takes|use|whole number|write)\b|expected",
    re.IGNORECASE,
)


def check_message(error: ValueError, wanted: str) -> None:
    """Asserts that a message is the answer of the catalogue: one readable line, with advice and without secrets."""
    message = str(error)
    pattern = ".*".join(re.escape(piece) for piece in wanted.split("…"))
    assert re.fullmatch(pattern, message), f"got:    {message}\nwanted: {wanted}"
    assert message.isprintable(), f"more than one line, or control characters: {message!r}"
    assert len(message) <= 600, f"{len(message)} characters"
    assert isinstance(error, StatusError) or _ADVICE.search(message), f"no advice: {message}"
    assert SECRET not in message.lower(), f"shows a file outside: {message}"


def snapshot(folder: Path) -> dict[str, str]:
    """Returns path -> state of every file, link and folder below."""
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
    """Raised in a case over its time limit; not an `Exception`, so that no handler swallows it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises HangError in a block that takes longer."""

    def stop(*_):
        raise HangError(f"not finished after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class AccessMonitor:
    """Records processes started, files opened outside and files written outside while a case runs.

    An audit hook cannot be removed: one is installed for the process and active during cases only. It does not see
    files that compiled libraries (safetensors, tokenizers) open; the contents of `outside` are for those.
    """

    FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pickle.find_class", "os.fork")
    PATHS = {"open": 1, "os.listdir": 1, "os.scandir": 1, "os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "os.rename": 2}

    def __init__(self):
        self.workspace: Workspace | None = None
        self.found: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple) -> None:
        if self.workspace is None:
            return
        if event in self.FORBIDDEN:
            self.found.append(f"{event} {args!r:.200}")
        elif event in self.PATHS:
            writes = event not in ("open", "os.listdir", "os.scandir")
            if event == "open":
                writes = bool(isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            paths = [os.fsdecode(path) for path in args[: self.PATHS[event]] if isinstance(path, str | bytes | os.PathLike)]
            wrong = [path for path in paths if self._is_forbidden(path, writes, event == "open")]
            self.found += [f"{event} {path}" for path in wrong]

    def _is_forbidden(self, path: str, writes: bool, follows: bool) -> bool:
        folder, name = os.path.split(path)
        real = os.path.realpath(path) if follows else os.path.join(os.path.realpath(folder), name)
        if real.startswith(f"{self.workspace.outside}{os.sep}"):
            return True
        allowed = (str(self.workspace.path.parent), str(self.workspace.materials.page_folder), "/dev/")
        return writes and not (real.startswith(allowed) or "__pycache__" in real)

    @contextlib.contextmanager
    def over(self, workspace: Workspace) -> Iterator[None]:
        """Fails after the block if it started a process, or read or wrote outside the workspace."""
        self.workspace, self.found = workspace, []
        try:
            yield
        finally:
            self.workspace = None
        assert not self.found, "access outside: " + "; ".join(self.found[:5])


def run_case(group: Group, kind: Kind, case: Case, workspace: Workspace, monitor: AccessMonitor) -> None:
    """Asserts the answer of a case, its limits of time and memory, and that no file is lost or left behind."""
    group.prepare(workspace)
    given = case.make(workspace)
    outside, before, start = snapshot(workspace.outside), snapshot(workspace.path), time.process_time()
    with little_memory(MEGABYTES), time_limit(SECONDS), monitor.over(workspace):
        try:
            result, error = group.take(workspace, given), None
        except ValueError as refusal:
            result, error = None, refusal
    spent = time.process_time() - start
    assert spent < PROCESSOR_SECONDS, f"took {spent:.0f} s of CPU time"
    assert snapshot(workspace.outside) == outside, "a file outside was changed"
    if case.check is None:
        assert error is not None, f"was accepted, with the result {result!r:.200}"
        check_message(error, kind.answer_to(case))
        assert snapshot(workspace.path) == before, "files were left behind, or lost"
        return
    if error is not None:
        raise error
    case.check(result)
    after = snapshot(workspace.path)
    lost = [name for name, state in before.items() if after.get(name) != state and not state.startswith("->")]
    lost = [name for name in lost if case.may_change is None or not name.startswith(case.may_change)]
    assert not lost, f"lost: {lost}"
