"""Dynamic batching: a queue that groups the waiting requests into batches."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Hashable
from typing import Any


COLLECT_SECONDS = 0.01
"""Time that an idle engine waits for more requests, to run them in one batch."""


class Job:
    """Request of the event loop for the model's thread.

    Args:
        key: jobs of equal keys can be generated in one batch.
        rows: its number of rows in a batch.
        content: input of the thread.
    """

    def __init__(self, key: Hashable, rows: int, content: Any):
        self.key, self.rows, self.content = key, rows, content
        self.is_cancelled = False
        self._loop, self._results = asyncio.get_running_loop(), asyncio.Queue()

    def emit(self, result: Any) -> None:
        """Sends a result, or the exception that ends the job, to the event loop; called in the model's thread."""
        try:
            self._loop.call_soon_threadsafe(self._results.put_nowait, result)
        except RuntimeError:  # the loop is closed, so there is no reader
            self.is_cancelled = True

    async def results(self) -> AsyncIterator[Any]:
        """Yields results without end; the reader recognizes the last one.

        Raises:
            Exception: any that was emitted.
        """
        while True:
            result = await self._results.get()
            if isinstance(result, BaseException):
                raise result
            yield result


class BatchQueue:
    """Queue that groups jobs of equal keys into batches: the oldest job, and all others of its key that fit.

    Args:
        max_rows: most rows of a batch.
        collect_seconds: how long `take` waits for more jobs when the queue was empty.
    """

    def __init__(self, max_rows: int, collect_seconds: float = COLLECT_SECONDS):
        self.max_rows, self._collect_seconds = max_rows, collect_seconds
        self._jobs: list[Job] = []
        self._changed = threading.Condition()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job) -> bool:
        """Adds a job; returns False when the queue is closed.

        Raises:
            ValueError: more rows than a batch has.
        """
        if job.rows > self.max_rows:
            raise ValueError(f"{job.rows} rows, a batch has at most {self.max_rows}: request fewer at once.")
        with self._changed:
            if not self._is_closed:
                self._jobs.append(job)
                self._changed.notify()
            return not self._is_closed

    def cancel(self, job: Job) -> None:
        """Marks a job as cancelled, and removes it from the queue if it waits there."""
        job.is_cancelled = True
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)

    def take(self) -> list[Job]:
        """Waits for a batch and returns it; an empty one when the queue is closed."""
        with self._changed:
            while not self._jobs and not self._is_closed:
                self._changed.wait()
                self._collect()
            return self._pop_batch()

    def close(self) -> list[Job]:
        """Closes the queue, which ends `take`; returns the jobs that were waiting."""
        with self._changed:
            self._is_closed, left, self._jobs = True, self._jobs, []
            self._changed.notify_all()
        return left

    def _collect(self) -> None:
        deadline = time.monotonic() + self._collect_seconds
        while not self._is_closed and sum(job.rows for job in self._jobs) < self.max_rows:
            if not self._changed.wait(deadline - time.monotonic()):
                break

    def _pop_batch(self) -> list[Job]:
        batch, rows, left = [], 0, []
        for job in self._jobs:
            if (not batch or job.key == batch[0].key) and rows + job.rows <= self.max_rows:
                batch.append(job)
                rows += job.rows
            else:
                left.append(job)
        self._jobs = left
        return batch
