"""How commands speak: lines for people or JSON for programs, colours and progress only where a person looks on."""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from typing import Any, TextIO


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option `--json`, for `say`."""
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout instead of text")


@contextmanager
def stdout_for_json(options: argparse.Namespace) -> Iterator[None]:
    """With `--json`, what libraries print inside goes to stderr: stdout is for `say` alone."""
    options.stdout = sys.stdout
    with redirect_stdout(sys.stderr) if getattr(options, "json", None) is True else nullcontext():
        yield


def say(options: argparse.Namespace, facts: dict[str, Any] | list[dict[str, Any]], lines: Iterable[str]) -> None:
    """Print the outcome of a command: `facts` as JSON if `--json` was given, else `lines`."""
    if options.json:
        print(json.dumps(facts, ensure_ascii=False), file=getattr(options, "stdout", None))
    else:
        for line in lines:
            print(line)


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
