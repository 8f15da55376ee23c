"""The engine of `evotok serve` under load: queue limit, disconnected clients, time limits, failures, shutdown."""

import json
import socket
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from conftest import build_chat_model


pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
openai = pytest.importorskip("openai")

from served import ask, noise, running, wait_for  # noqa: E402

from evotok.serving.limits import Limits  # noqa: E402
from evotok.serving.protocol import ChatBody  # noqa: E402


CHAT, IMAGES = "/v1/chat/completions", "/v1/images/generations"
HELLO = [{"role": "user", "content": "a cat"}]


@pytest.fixture(scope="module")
def parts():
    """Returns a model and its processor: 32 px, 4 x 4 positions, a context of 512 tokens."""
    return build_chat_model()


@pytest.fixture
def slow(parts, monkeypatch):
    """Makes every step of text and every position of an image wait for an event, which `set` releases."""
    gate, seen = threading.Event(), threading.Event()
    forward = parts[0].model.language_model.forward

    def wait(*args, **kwargs):
        seen.set()
        assert gate.wait(60)
        return forward(*args, **kwargs)

    monkeypatch.setattr(parts[0].model.language_model, "forward", wait)
    gate.begun = seen
    yield gate
    gate.set()


def test_requests_beyond_the_queue_are_refused(parts, slow):
    def say(_):
        try:
            return served.client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=2).usage.total_tokens
        except openai.RateLimitError as error:
            assert error.code == "queue_full" and error.response.headers["Retry-After"] == "1"
            return None

    with running(parts, Limits(requests=4)) as served, ThreadPoolExecutor(9) as pool:
        first = [pool.submit(say, 0) for _ in range(4)]
        wait_for(lambda: served.count("evotok_requests_waiting") + served.count("evotok_requests_running") == 4)
        refused = [pool.submit(say, 0) for _ in range(5)]
        assert [result.result(60) for result in refused] == [None] * 5
        slow.set()
        assert None not in [result.result(60) for result in first]
        assert say(0), "places are released"


def disconnect(served, path: str, body: dict) -> None:
    """Sends a request and disconnects while it is processed."""
    content = json.dumps(body).encode()
    with socket.create_connection(urlsplit(served.url).netloc.split(":"), timeout=60) as connection:
        lines = f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {len(content)}"
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + content)
        wait_for(lambda: served.count("evotok_requests_waiting") + served.count("evotok_requests_running") > 0)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": HELLO, "max_tokens": 400}),
        (CHAT, {"messages": HELLO, "max_tokens": 400, "stream": True}),
        (IMAGES, {"prompt": "a cat", "n": 2}),
    ],
)
def test_disconnected_client_releases_its_place(parts, slow, path, body):
    with running(parts, Limits(requests=1)) as served:
        disconnect(served, path, body)
        wait_for(lambda: served.count("evotok_aborted_requests_total") == 1)
        slow.set()
        wait_for(lambda: served.count("evotok_requests_running") == 0)
        found = served.client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=2)
        assert found.usage.completion_tokens == 2
        assert served.count("evotok_generated_tokens_total") < 10 and served.count("evotok_generated_images_total") == 0


def test_disconnected_waiting_client_is_not_processed(parts, slow):
    with running(parts) as served, ThreadPoolExecutor(1) as pool:
        first = pool.submit(served.client.images.generate, model="tiny", prompt="a cat")
        wait_for(slow.begun.is_set)
        disconnect(served, CHAT, {"messages": HELLO, "max_tokens": 400})
        wait_for(lambda: served.count("evotok_aborted_requests_total") == 1)
        assert served.count("evotok_requests_waiting") == 0
        slow.set()
        assert first.result(60).data
        assert served.count("evotok_batch_rows_count", kind="chat") == 0


@pytest.fixture
def stuck(parts, monkeypatch):
    """Makes the 30th step of the language model wait until the event is set."""
    forward, steps, released = parts[0].model.language_model.forward, iter(range(10_000)), threading.Event()

    def wait(*args, **kwargs):
        if next(steps) == 30:
            released.wait(60)
        return forward(*args, **kwargs)

    monkeypatch.setattr(parts[0].model.language_model, "forward", wait)
    yield released
    released.set()


def test_disconnected_stream_ends_the_answer(parts, stuck):
    with running(parts, Limits(requests=1)) as served:
        stream = served.client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=450, stream=True)
        pieces = iter(stream)
        assert [next(pieces).choices[0].delta.role for _ in range(3)] == ["assistant", None, None]
        stream.close()
        wait_for(lambda: served.count("evotok_aborted_requests_total") == 1)
        stuck.set()
        wait_for(lambda: served.count("evotok_requests_running") == 0)
        assert served.count("evotok_generated_tokens_total") < 40
        assert served.client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=1).choices
        assert served.count("evotok_aborted_requests_total") == 1


def test_waiting_request_releases_its_encoded_images(parts, slow, monkeypatch):
    bodies, to_request = [], ChatBody.to_request

    def watch(body, *args):
        bodies.append(weakref.ref(body))
        return to_request(body, *args)

    monkeypatch.setattr(ChatBody, "to_request", watch)
    with running(parts) as served, ThreadPoolExecutor(1) as pool:
        question = {"model": "tiny", "messages": ask("a cat", noise()), "max_tokens": 1}
        asked = pool.submit(served.client.chat.completions.create, **question)
        wait_for(slow.begun.is_set)
        assert [body() for body in bodies] == [None]
        slow.set()
        assert asked.result(60).choices


@pytest.mark.parametrize("stream", [False, True])
def test_timed_out_requests_end_with_an_error(parts, slow, stream):
    with running(parts, Limits(requests=1, seconds=0.5)) as served:
        with pytest.raises(openai.InternalServerError) as late:
            served.client.chat.completions.create(model="tiny", messages=HELLO, stream=stream)
        assert (late.value.status_code, late.value.code) == (504, "timeout")
        slow.set()
        wait_for(lambda: served.count("evotok_requests_running") == 0)
        with pytest.raises(openai.NotFoundError):  # without a free place it would be a RateLimitError
            served.client.chat.completions.create(model="other", messages=HELLO)


def test_timed_out_stream_ends_with_an_event(parts, stuck):
    with running(parts, Limits(seconds=5)) as served:
        stream = served.client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=400, stream=True)
        with pytest.raises(openai.APIError, match="No answer within 5 s"):
            list(stream)
        stuck.set()


def test_failed_batch_keeps_the_engine_running(parts, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise RuntimeError("no memory")

    with running(parts) as served:
        with monkeypatch.context() as patch:
            patch.setattr(parts[0].model.language_model, "forward", fail)
            for work in (
                lambda: served.client.chat.completions.create(model="tiny", messages=HELLO),
                lambda: served.client.images.generate(model="tiny", prompt="a cat"),
            ):
                with pytest.raises(openai.InternalServerError) as failed:
                    work()
                assert failed.value.status_code == 503 and "no memory" not in str(failed.value)
        assert "no memory" in caplog.text
        assert served.client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=2).choices


def test_shutdown_answers_open_requests(parts, slow):
    with ThreadPoolExecutor(1) as pool:
        with running(parts) as served:
            found = pool.submit(served.client.chat.completions.create, model="tiny", messages=HELLO, max_tokens=3)
            wait_for(slow.begun.is_set)
            threading.Timer(0.5, slow.set).start()
            served.client.close = lambda: None  # the client is used until its answer arrives
        assert found.result(60).usage.completion_tokens == 3
