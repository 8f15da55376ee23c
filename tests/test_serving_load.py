"""A server under many clients: all requests are answered, and its memory does not grow."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from conftest import build_chat_model


pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
pytest.importorskip("openai")

from served import ask, decode, noise, running, wait_for

from evotok.serving.limits import Limits


CLIENTS, REQUESTS = 16, 200
LEVEL_BYTES = 24 * 2**20
"""Growth that the allocators of two hundred requests may leave; a request that stays open holds 1 MB and more."""


def test_load_of_many_clients_is_served_in_bounded_memory():
    def ask_about_an_image(number: int) -> str:
        messages = ask("what is this?", noise(number))
        return client.chat.completions.create(model="tiny", messages=messages, max_tokens=4).choices[0].message.content

    def ask_twice(number: int) -> str:
        messages = ask("a cat, a dog" * (1 + number % 4), noise(number), noise(number + 1))
        return client.chat.completions.create(model="tiny", messages=messages, max_tokens=3).choices[0].message.content

    def stream(number: int) -> str:
        found = client.chat.completions.create(
            model="tiny", messages=ask("a dog"), max_tokens=4, seed=number, temperature=1, stream=True
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in found)

    def generate(number: int) -> bytes:
        settings = {"seed": number, "guidance_scale": (1.0, 4.0)[number % 2]}
        found = client.images.generate(model="tiny", prompt="a cat", n=1 + number % 2, extra_body=settings)
        return b"".join(image.tobytes() for image in decode(found))

    def send(number: int) -> tuple[str, str | bytes]:
        work = (ask_about_an_image, stream, generate, ask_twice)[number % 4]
        return work.__name__, work(number % 40)

    def answered() -> float:
        paths = "/v1/chat/completions", "/v1/images/generations"
        return sum(served.count("evotok_requests_total", endpoint=path, status="200") for path in paths)

    process = psutil.Process(os.getpid())
    with running(build_chat_model(), Limits(requests=CLIENTS)) as served, ThreadPoolExecutor(CLIENTS) as pool:
        client = served.client
        first = list(pool.map(send, range(REQUESTS // 2)))
        before = process.memory_info().rss
        second = list(pool.map(send, range(REQUESTS // 2)))
        grown = process.memory_info().rss - before
        assert Counter(name for name, _ in first + second) == dict.fromkeys(
            ("ask_about_an_image", "stream", "generate", "ask_twice"), REQUESTS // 4
        )
        same = sum(one == other for one, other in zip(first, second, strict=True))
        assert same > 0.9 * len(first), "but for the rounding of sums in batches of other sizes"
        batches = sum(served.count("evotok_batch_rows_count", kind=kind) for kind in ("chat", "image"))
        assert batches < REQUESTS / 2, "most were worked on together"
        # A client has its answer before the server's threads have counted it and left its batch.
        wait_for(lambda: answered() == REQUESTS)
        wait_for(lambda: served.count("evotok_requests_waiting") == served.count("evotok_requests_running") == 0)
        assert grown < LEVEL_BYTES, f"{grown / 2**20:.0f} MiB more after as many requests again"
