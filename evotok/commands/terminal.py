"""How commands speak: lines for people or JSON for programs, colours and progress only where a person looks on."""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from contextvars import ContextVar
from typing import Any, TextIO


# Stdout, while it is redirected; None where it is not.
_real_stdout: ContextVar[TextIO | None] = ContextVar("real_stdout", default=None)


@contextmanager
def stdout_for_json(as_json: Any) -> Iterator[None]:
    """With `--json` (True), what libraries print inside goes to stderr: stdout is for `say` alone."""
    if as_json is not True:
        yield
        return
    token = _real_stdout.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _real_stdout.reset(token)


def say(as_json: bool, facts: dict[str, Any] | list[dict[str, Any]], lines: Iterable[str]) -> None:
    """Print the outcome of a command: `facts` as JSON, or `lines`, without the control characters of untrusted text."""
    from evotok.data.errors import escape_controls, escape_controls_json

    if as_json:
        print(escape_controls_json(json.dumps(facts, ensure_ascii=False)), file=_real_stdout.get())
    else:
        for line in lines:
            print(escape_controls(line), file=_real_stdout.get())


def has_colors(stream: TextIO) -> bool:
    """Whether to color what goes there: a terminal that can, and a user who has not set NO_COLOR (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def bold(text: str, stream: TextIO) -> str:
    """`text` in bold where colors are wanted."""
    return f"\x1b[1m{text}\x1b[0m" if has_colors(stream) else text


def progress(total: int, unit: str, description: str | None = None):
    """A tqdm bar on stderr that is gone when done; without a terminal there is none."""
    from tqdm import tqdm

    return tqdm(total=total, unit=unit, desc=description, disable=None, leave=False)


def waiting(text: str) -> AbstractContextManager:
    """Shows on stderr that something is going on; without a terminal nothing."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(text)
