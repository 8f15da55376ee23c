"""Connections of both servers: time limits, and the check of the Host header."""

import socket
import threading
import time
from unittest.mock import Mock

import pytest


uvicorn = pytest.importorskip("uvicorn", reason="the servers need the extra `serve` or `app`")

from evotok.connections import TimedConnection, is_own_host  # noqa: E402


class Application:
    """Application that responds with so many MiB in pieces; `ended` is set when all are sent or sending fails."""

    def __init__(self, size: int):
        self.size, self.ended = size, threading.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(self.size):
            await send({"type": "http.response.body", "body": b"x" * 2**20, "more_body": number < self.size - 1})
        self.ended.set()


@pytest.fixture
def serve():
    """Yields a function that serves an application and returns the port."""
    started = []

    def start(application):
        config = uvicorn.Config(application, http=TimedConnection, port=0, log_level="error", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        started.append((server, thread))
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        return server.servers[0].sockets[0].getsockname()[1]

    yield start
    for server, thread in started:
        server.should_exit = True
        thread.join(30)


def connect(port: int) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(30)
    connection.connect(("127.0.0.1", port))
    connection.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    return connection


def test_unread_response_is_aborted(serve, monkeypatch):
    """Without a limit, a client that does not read would occupy memory and a place."""
    monkeypatch.setattr(TimedConnection, "write_seconds", 0.5)
    application = Application(64)
    with connect(serve(application)):
        assert application.ended.wait(30)


def test_slowly_read_response_is_complete(serve):
    application, received = Application(8), 0
    with connect(serve(application)) as connection:
        assert not application.ended.wait(0.2), "it is too large for the buffers"
        while piece := connection.recv(2**20):
            received += len(piece)
    assert received > 8 * 2**20


def test_write_timer_is_cancelled_on_resume():
    connection = TimedConnection.__new__(TimedConnection)
    connection.flow, connection.loop, connection.transport = Mock(), Mock(), Mock()
    connection.pause_writing()
    connection.loop.call_later.assert_called_once_with(60.0, connection.transport.abort)
    connection.loop.call_later.return_value.cancel.assert_not_called()
    connection.resume_writing()
    connection.loop.call_later.return_value.cancel.assert_called_once_with()


@pytest.mark.parametrize(
    ("host", "is_own"),
    [("localhost", True), ("LOCALHOST:1", True), ("127.0.0.1:8000", True), ("[::1]", True), ("a.example.org", True)]
    + [("example.org", False), ("localhost.evil.example", False), ("", False), ("[", False), ("[::1", False)],
)
def test_is_own_host_accepts_own_names_only(host, is_own):
    assert is_own_host(host, ("localhost", ".example.org")) is is_own
