"""`evotok serve` as a process: the embedded model, a signal to end, a kill and a restart."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import build_chat_model


pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
openai = pytest.importorskip("openai")

from ports import free_port  # noqa: E402
from served import ask, decode  # noqa: E402


ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 180
CLIENTS, EACH = 4, 40
"""Clients that go on over a restart, and requests of each."""


@contextmanager
def process_of(checkpoint: str | Path, port: int) -> Iterator[subprocess.Popen]:
    """Starts `evotok serve`, waits until it listens, and kills it at the end."""
    command = [sys.executable, "-m", "evotok.cli", "serve", str(checkpoint), "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    timer = threading.Timer(START_SECONDS, process.kill)
    timer.start()
    try:
        line = process.stdout.readline()
        timer.cancel()
        assert line == f"EvoTok serves at http://127.0.0.1:{port}/v1 (Ctrl+C ends it)\n", line + process.stdout.read()
        yield process
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        process.stdout.close()


def client_of(port: int, **options) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=120, **options)


def test_server_answers_and_ends_at_sigterm():
    port = free_port()
    with process_of("mini", port) as process, client_of(port, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["mini"]
        [image] = decode(client.images.generate(model="mini", prompt="three green keys", extra_body={"seed": 7}))
        assert image.size == (64, 64)
        stream = client.chat.completions.create(model="mini", messages=ask("What is this?", image), stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream).strip()
        answers = []
        work = threading.Thread(
            target=lambda: answers.append(client.images.generate(model="mini", prompt="a pizza", n=8))
        )
        work.start()
        time.sleep(1)  # the request has arrived; its images take longer
        process.send_signal(signal.SIGTERM)
        work.join(120)
        assert len(decode(answers[0])) == 8, "open requests are answered"
        assert process.wait(60) in (0, -signal.SIGTERM)
        assert process.stdout.read() == ""


def test_clients_continue_after_a_killed_server_restarts(tmp_path):
    model, processor = build_chat_model()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    port, counts = free_port(), []

    def go_on() -> None:
        """Sends requests with retries, which bridge the time without a server."""
        with client_of(port, max_retries=60) as client:
            for seed in range(EACH):
                found = client.chat.completions.create(
                    model=tmp_path.name, messages=ask("a cat"), max_tokens=5, seed=seed, temperature=1
                )
                counts.append(found.usage.completion_tokens)

    clients = [threading.Thread(target=go_on) for _ in range(CLIENTS)]
    with process_of(tmp_path, port) as process:
        for client in clients:
            client.start()
        while len(counts) < EACH // 2:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert len(counts) < CLIENTS * EACH
    with process_of(tmp_path, port):
        for client in clients:
            client.join(300)
    assert len(counts) == CLIENTS * EACH and all(counts)
