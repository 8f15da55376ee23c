"""The queue of batches: order, room, cancelled jobs, shutdown. No model."""

import asyncio
import threading
import time

import pytest

from evotok.serving.batches import BatchQueue, Job


def make(*jobs: tuple[str, int]) -> list[Job]:
    """Creates jobs of a key and a number of rows; their event loop ends at once."""

    async def build() -> list[Job]:
        return [Job(key, rows, index) for index, (key, rows) in enumerate(jobs)]

    return asyncio.run(build())


def fill(queue: BatchQueue, *jobs: tuple[str, int]) -> list[Job]:
    made = make(*jobs)
    assert all(queue.put(job) for job in made)
    return made


def contents(batch: list[Job]) -> list[int]:
    return [job.content for job in batch]


def test_take_groups_the_oldest_job_with_equal_keys():
    queue = BatchQueue(4)
    fill(queue, ("a", 1), ("b", 1), ("a", 2), ("a", 3), ("b", 1), ("a", 1))
    assert contents(queue.take()) == [0, 2, 5], "smaller jobs pass a job that does not fit"
    assert contents(queue.take()) == [1, 4]
    assert contents(queue.take()) == [3]
    assert len(queue) == 0


def test_take_waits_for_further_jobs():
    queue = BatchQueue(3, collect_seconds=30)
    jobs = make(("a", 1), ("a", 1), ("a", 1))
    batches = []
    taker = threading.Thread(target=lambda: batches.append(queue.take()))
    taker.start()
    for job in jobs:
        queue.put(job)
        time.sleep(0.02)
    taker.join(10)
    assert contents(batches[0]) == [0, 1, 2], "a full batch starts at once"


def test_take_skips_cancelled_jobs():
    queue = BatchQueue(4)
    first, second = fill(queue, ("a", 1), ("a", 1))
    queue.cancel(first)
    assert queue.take() == [second]
    queue.cancel(second)
    assert second.is_cancelled and len(queue) == 0


def test_take_waits_after_its_only_job_is_cancelled():
    queue = BatchQueue(4, collect_seconds=0.05)
    first, second = make(("a", 1), ("a", 1))
    batches = []
    taker = threading.Thread(target=lambda: batches.append(queue.take()))
    taker.start()
    queue.put(first)
    queue.cancel(first)
    time.sleep(0.1)
    queue.put(second)
    taker.join(10)
    assert batches == [[second]]


def test_closed_queue_returns_and_accepts_no_jobs():
    queue = BatchQueue(4)
    jobs = fill(queue, ("a", 1), ("b", 1))
    assert queue.close() == jobs and queue.take() == []
    assert not queue.put(jobs[0])
    waiting = BatchQueue(4)
    taker = threading.Thread(target=waiting.take)
    taker.start()
    waiting.close()
    taker.join(10)
    assert not taker.is_alive()


def test_put_refuses_jobs_larger_than_a_batch():
    with pytest.raises(ValueError, match="5 rows, a batch has at most 4"):
        BatchQueue(4).put(make(("a", 5))[0])


def test_results_are_in_order_and_end_with_an_error():
    async def read() -> list[int]:
        job, seen = Job("a", 1, None), []

        def work() -> None:
            for number in range(3):
                job.emit(number)
            job.emit(ValueError("no more"))

        threading.Thread(target=work).start()
        with pytest.raises(ValueError, match="no more"):
            async for result in job.results():
                seen.append(result)  # noqa: PERF401 - results before the error are needed
        return seen

    assert asyncio.run(read()) == [0, 1, 2]


def test_job_of_a_closed_loop_is_cancelled():
    [job] = make(("a", 1))
    job.emit("result")
    assert job.is_cancelled
