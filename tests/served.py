"""A server in this process, on a free port of the loopback address, for tests with OpenAI's client."""

import base64
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import uvicorn
from openai import OpenAI
from PIL import Image

from evotok.connections import TimedConnection
from evotok.serving.app import build_app
from evotok.serving.limits import Limits
from evotok.serving.metrics import Metrics
from evotok.serving.transformers_engine import TransformersEngine


class Served(NamedTuple):
    """A running server."""

    url: str
    client: OpenAI
    engine: TransformersEngine
    metrics: Metrics

    def count(self, name: str, **labels: str) -> float:
        """Returns a value of the server's metrics."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@contextmanager
def running(
    parts: tuple[Any, Any], limits: Limits | None = None, max_batch: int = 16, api_key: str | None = None, hosts=None
) -> Iterator[Served]:
    """Serves a model and its processor."""
    metrics = Metrics()
    engine = TransformersEngine(*parts, max_batch, metrics)
    app = build_app(engine, "tiny", limits or Limits(), metrics, api_key, hosts)
    config = uvicorn.Config(app, http=TimedConnection, host="127.0.0.1", port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with OpenAI(base_url=f"{url}/v1", api_key=api_key or "none", max_retries=0, timeout=120) as client:
        try:
            yield Served(url, client, engine, metrics)
        finally:
            server.should_exit = True
            thread.join(60)
    assert not thread.is_alive() and not engine.is_alive


def wait_for(condition, seconds: float = 60) -> None:
    """Waits until `condition` returns something true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.01)


def noise(seed: int = 3, side: int = 32) -> Image.Image:
    """Generates a random image."""
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(256, (side, side, 3), dtype=torch.uint8, generator=generator).numpy())


def data_url(image: Image.Image, form: str = "PNG") -> str:
    """Encodes an image as clients send it."""
    file = io.BytesIO()
    image.save(file, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def ask(text: str, *images: Image.Image) -> list[dict[str, Any]]:
    """Builds the messages of a question about images."""
    shown = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


def decode(found: Any) -> list[Image.Image]:
    """Decodes the images of a response."""
    return [Image.open(io.BytesIO(base64.b64decode(item.b64_json))) for item in found.data]
