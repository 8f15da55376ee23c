"""Benchmark of serving: concurrent questions and images over HTTP, with vLLM, batched and unbatched Transformers.

Each is a server of its own, `evotok serve mini` in another process, which is warmed up, measured and stopped before the
next one starts. All get the same requests in the same order, from as many threads as there are requests.

An exception to the layers: this module needs the command line of `evotok/`, but starts it in a process and imports
nothing of it.
"""

import base64
import io
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryFile
from typing import IO, Any

import torch
from PIL import Image

from .meters import MIB, Setting
from .report import Row


logger = logging.getLogger(__name__)

CHECKPOINT = "mini"
QUESTION = "What is this?"
START_SECONDS, REQUEST_SECONDS = 600, 600
SIZES = {"full": (64, 32), "tiny": (4, 2)}
"""Concurrent questions and images."""
ENGINES = {
    "vllm": ["--engine", "vllm"],
    "transformers_batch": ["--engine", "transformers"],
    "transformers_one_by_one": ["--engine", "transformers", "--max-batch", "1", "--max-images", "1"],
}


def run(setting: Setting) -> list[Row]:
    """Measures a row for each engine, `vllm` only where it is installed; ratios are to the rows of Transformers."""
    questions, images = SIZES[setting.size]
    rows = []
    for name, words in ENGINES.items():
        if name == "vllm" and find_spec("vllm") is None:
            logger.warning("vLLM is not installed, and not measured.")
            continue
        batch = [] if "--max-batch" in words else ["--max-batch", str(max(questions, images))]
        with running([*words, *batch, "--queue", str(2 * questions), "--timeout", str(REQUEST_SECONDS)]) as server:
            rows.append({"name": name} | measure(server, questions, images, setting.repeats))
    times = {row["name"]: row for row in rows}
    if "vllm" in times:
        batch, alone = times["transformers_batch"], times["transformers_one_by_one"]
        ratio = times["vllm"]["questions_per_second"] / batch["questions_per_second"]
        times["vllm"]["questions_against_transformers_batch"] = ratio
        ratio = times["vllm"]["images_per_second"] / alone["images_per_second"]
        times["vllm"]["images_against_one_by_one"] = ratio
    return rows


def measure(server: "Server", questions: int, images: int, repeats: int) -> Row:
    """Measures one server: the best of the runs."""
    chats = [question(number) for number in range(questions)]
    prompts = [{"prompt": f"a frog, number {number}", "seed": number} for number in range(images)]
    at_once(server.ask, chats)
    at_once(server.generate, prompts[:2])
    asked = min((at_once(server.ask, chats) for _ in range(repeats)), key=lambda found: found[0])
    generated = min((at_once(server.generate, prompts) for _ in range(repeats)), key=lambda found: found[0])
    return {
        "questions": questions,
        "questions_per_second": questions / asked[0],
        "first_token_seconds_median": median(asked[1]),
        "first_token_seconds_last": max(asked[1]),
        "images": images,
        "images_per_second": images / generated[0],
        "image_seconds_median": median(generated[1]),
        "peak_memory_mib": server.peak_memory() / MIB,
    }


def question(number: int) -> dict[str, Any]:
    """Builds a request for a streamed answer about a random image."""
    generator = torch.Generator().manual_seed(number)
    noise = torch.randint(256, (64, 64, 3), dtype=torch.uint8, generator=generator)
    file = io.BytesIO()
    Image.fromarray(noise.numpy()).save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 16, "stream": True}


def at_once(send: Callable[[dict[str, Any]], float], bodies: Sequence[dict[str, Any]]) -> tuple[float, list[float]]:
    """Sends all requests concurrently.

    Returns:
        Seconds until the last response, and the result of `send` for each request.
    """
    with ThreadPoolExecutor(len(bodies)) as threads:
        started = time.perf_counter()
        found = list(threads.map(send, bodies))
        return time.perf_counter() - started, found


class Server:
    """Running server and its client."""

    def __init__(self, process: subprocess.Popen, port: int):
        self._process, self.port = process, port

    def ask(self, body: dict[str, Any]) -> float:
        """Measures the seconds to the first text of an answer, which is read to its end."""
        first = None
        for seconds, line in self._lines("/v1/chat/completions", body):
            text = line.startswith(b'data: {"id"') and json.loads(line[6:])["choices"][0]["delta"].get("content")
            first = seconds if first is None and text else first
        return seconds if first is None else first

    def generate(self, body: dict[str, Any]) -> float:
        """Measures the seconds to an image."""
        return max(seconds for seconds, _ in self._lines("/v1/images/generations", body))

    def _lines(self, path: str, body: dict[str, Any]) -> Iterator[tuple[float, bytes]]:
        """Yields the lines of a response with the seconds until each.

        Raises:
            ValueError: the server refused the request.
        """
        connection = HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_SECONDS)
        started = time.perf_counter()
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise ValueError(f"the server answers {response.status}: {response.read(500)!r}")
            for line in response:
                yield time.perf_counter() - started, line
        finally:
            connection.close()

    def peak_memory(self) -> int:
        """Returns the sum of the peaks of resident bytes of the server's processes (Linux; 0 elsewhere).

        Shared pages count for each process.
        """
        return sum(_peak_of(process) for process in self.processes())

    def processes(self) -> list[int]:
        """Returns the process ids of the server and its descendants."""
        return family(self._process.pid)


def family(process: int) -> list[int]:
    """Returns the ids of a process and its descendants (Linux; none elsewhere)."""
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        children = [int(word) for task in tasks for word in (task / "children").read_text().split()]
    except OSError:
        return []
    return [process, *(member for child in children for member in family(child))]


def _peak_of(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


@contextmanager
def running(words: Sequence[str]) -> Iterator[Server]:
    """Runs `evotok serve mini` with options; yields it when it is ready, and terminates it.

    Raises:
        ValueError: it does not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "evotok.cli", "serve", CHECKPOINT, "--port", str(port), *words]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with TemporaryFile() as log:  # a pipe that is not read would block the server
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, env=environment)
        try:
            _wait_for(process, port, log)
            yield Server(process, port)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(process: subprocess.Popen, port: int, log: IO[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.2)
        finally:
            connection.close()
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    raise ValueError(f"the server does not start: {lines[-1] if lines else 'without a message'}")
