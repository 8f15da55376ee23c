"""Several running servers that share the images of an evaluation."""

import base64
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from conftest import build_chat_model


pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
pytest.importorskip("openai")

from served import noise, running

from evotok.inference import generate_images
from evotok.serving import pool as pool_module
from evotok.serving.client import BusyServerError
from evotok.serving.pool import ServerPool


ORDERS = [("a red cat", 1), ("a dog, please", 2), ("a red cat", 3), ("the blue one", 4), ("a dog", 5)]


@pytest.fixture(scope="module")
def parts():
    return build_chat_model()


@pytest.fixture(scope="module")
def served(parts):
    with running(parts) as server:
        yield server


class Overloaded(BaseHTTPRequestHandler):
    """Server that lists a model and responds to every request that it is overloaded."""

    image_size = 32

    def do_GET(self):
        self.answer(200, {"data": [{"id": "tiny", "image_size": self.image_size}]})

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.answer(429, {"error": {"message": "64 requests are open"}})

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def overloaded():
    with ThreadingHTTPServer(("127.0.0.1", 0), Overloaded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_pool_images_depend_on_their_seeds_only(parts, served, overloaded, monkeypatch):
    monkeypatch.setattr(pool_module, "PAUSE_SECONDS", 0.05)
    pool = ServerPool([served.url, overloaded, f"{served.url}/v1"], at_once=2)
    assert pool.at_once == 6
    found = dict(pool.generate_images(ORDERS, guidance_scale=3.0, top_k=10))
    prompts, seeds = zip(*ORDERS, strict=True)
    images = generate_images(*parts, prompts, guidance_scale=3.0, seeds=seeds, top_k=10)
    for index, image in enumerate(images):
        assert abs(np.asarray(image).astype(int) - np.asarray(found[index])).max() <= 1, "where sums are rounded"


def test_unavailable_servers_raise_an_error(overloaded, monkeypatch):
    monkeypatch.setattr(pool_module, "PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(pool_module, "PATIENCE_SECONDS", 0.2)
    with pytest.raises(BusyServerError, match="64 requests are open"):
        list(ServerPool([overloaded]).generate_images(ORDERS))


class Failing(Overloaded):
    """Server that fails twice for one prompt, first after a second, and responds to the others at once."""

    failures = iter((1.0, 0.0))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        delay = next(self.failures, None) if body["prompt"] == "slow" else None
        if delay is not None:
            time.sleep(delay)
            self.answer(500, {"error": {"message": "it failed"}})
            return
        file = io.BytesIO()
        noise().save(file, "PNG")
        self.answer(200, {"data": [{"b64_json": base64.b64encode(file.getvalue()).decode()}]})


def test_patience_starts_at_the_first_failure(monkeypatch):
    """It does not start at the last response, which is earlier if other requests were waited for."""
    monkeypatch.setattr(pool_module, "PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(pool_module, "PATIENCE_SECONDS", 0.6)
    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        pool = ServerPool([f"http://127.0.0.1:{server.server_port}"], at_once=3)
        found = dict(pool.generate_images([("slow", 1), ("a dog", 2), ("a cat", 3)]))
        server.shutdown()
    assert found.keys() == {0, 1, 2}


def test_refused_request_ends_the_generation(served):
    with pytest.raises(ValueError, match="guidance_scale"):
        list(ServerPool([served.url]).generate_images(ORDERS, guidance_scale=-1.0))


def test_servers_of_other_models_are_refused(served, overloaded, monkeypatch):
    monkeypatch.setattr(Overloaded, "image_size", 64)
    with pytest.raises(ValueError, match="servers of different models"):
        ServerPool([served.url, overloaded])
    with pytest.raises(ValueError, match="no server answers"):
        ServerPool([served.url, "http://127.0.0.1:9"])
