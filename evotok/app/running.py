"""A generation in a thread of its own, read step by step, that ends when its reader leaves or its time is up."""

import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import torch
from transformers import StoppingCriteria

from evotok.inference import StoppedError


# One generation at a time in this process, also while one that was left is still at its last step.
_ONE_AT_A_TIME = threading.Lock()
_END = object()


class Stop(StoppingCriteria):
    """Asked between two steps whether to go on; for text it is a stopping criterion of Transformers.

    Args:
        seconds: how long the generation may take.
    """

    def __init__(self, seconds: float):
        self._deadline = time.monotonic() + seconds
        self._asked = threading.Event()

    def ask(self) -> None:
        """The generation shall end after the step that it is at."""
        self._asked.set()

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() > self._deadline

    @property
    def due(self) -> bool:
        """Whether the generation shall end, for either reason."""
        return self._asked.is_set() or self.late

    def __call__(self, input_ids: torch.LongTensor, scores: Any = None, **kwargs) -> torch.BoolTensor:
        """(B, T) -> (B,): all rows end together."""
        return torch.full((len(input_ids),), self.due, device=input_ids.device)


class CodeIteratorStreamer:
    """What `TextIteratorStreamer` is for text: yields the codes (M, L) of each position while an image is written."""

    def __init__(self, stop: Stop):
        self._stop, self._queue = stop, SimpleQueue()

    def put(self, codes: torch.LongTensor) -> None:
        """Called by `generate` after each position.

        Raises:
            StoppedError: the image shall not be finished.
        """
        self._queue.put(codes)
        if self._stop.due:
            raise StoppedError

    def end(self) -> None:
        """Called by `generate` after the last position, and by `steps` in any case."""
        self._queue.put(_END)

    def __iter__(self) -> Iterator[torch.LongTensor]:
        return iter(self._queue.get, _END)

    @property
    def waiting(self) -> bool:
        """Whether there is something that was not read yet."""
        return not self._queue.empty()


def steps(work: Callable[[], Any], streamer: Any, stop: Stop) -> Iterator[Any]:
    """What `work` puts into `streamer`, while it runs in a thread.

    Whoever stops reading (`close` of this generator, which Gradio calls for a button or a closed tab) stops the work.

    Args:
        work: calls `generate` with `streamer`.
        streamer: iterable, with an `end()`.
        stop: given to `work` too.

    Raises:
        Exception: whatever `work` raised, after its last step.
    """
    failures = []

    def run() -> None:
        try:
            with _ONE_AT_A_TIME:
                if not stop.due:
                    work()
        except StoppedError:
            pass
        except Exception as error:  # noqa: BLE001 - handed over to the reader
            failures.append(error)
        finally:
            streamer.end()

    threading.Thread(target=run, name="evotok-generation", daemon=True).start()
    try:
        yield from streamer
    finally:
        stop.ask()
    if failures:
        raise failures[0]
