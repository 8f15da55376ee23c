"""The gate of the page over HTTP: hosts, other sites, connections, and many visitors at once."""

import socket
import threading
import time
from contextlib import ExitStack

import pytest
from conftest import build_chat_model
from page_client import API, ORDER, Visitor
from PIL import Image


gradio = pytest.importorskip("gradio", reason="the page needs the extra `app`")
httpx = pytest.importorskip("httpx")

from evotok.app import visitors  # noqa: E402
from evotok.app.generate import Progress  # noqa: E402
from evotok.app.server import serve  # noqa: E402
from evotok.commands.app import host_names, listen  # noqa: E402
from evotok.connections import is_own_host  # noqa: E402


GENERATE = list(ORDER.values())
HEAD = b"POST /gradio_api/upload HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=x\r\n"


def quick_generate(model, processor, arguments, seconds=0.0):
    """Replaces the generation of images."""
    for positions in (8, 16):
        time.sleep(0.01)
        yield Progress([Image.new("RGB", (32, 32), "red")], positions, 16, 0.1, 1)


@pytest.fixture(scope="module")
def served():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evotok.app.generate.generate", quick_generate)
        with serve(*build_chat_model(), listen("127.0.0.1", None)) as served:
            yield served


@pytest.fixture
def visit(served):
    """Yields a function that creates a visitor from an address of this machine."""
    with ExitStack() as stack:

        def visitor(address="127.0.0.1"):
            visitor = Visitor(served.url, address)
            stack.enter_context(visitor.client)
            return visitor

        yield visitor


def connect(served, address="127.0.0.1", seconds=5):
    """Opens a connection from an address of this machine."""
    connection = socket.socket()
    connection.settimeout(seconds)
    connection.bind((address, 0))
    connection.connect(("127.0.0.1", served.port))
    return connection


def test_own_hosts_are_localhost_addresses_and_given_names():
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:1", "[::1]:7860", "10.0.0.7"):
        assert is_own_host(host, ("localhost",)), host
    for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "["):
        assert not is_own_host(host, ("localhost",)), host
    assert host_names("localhost") == host_names("127.0.0.1") == ()
    assert is_own_host("box.example:7860", host_names("Box.example"))
    assert is_own_host("abc.gradio.live", (".gradio.live",)) and not is_own_host("xgradio.live", (".gradio.live",))


def test_gate_refuses_other_hosts_and_sites(visit, served):
    visitor, kept = visit(), len(served.page.upload_file_set)
    assert visitor.client.get("/config", headers={"host": "evil.example"}).status_code == 421
    for headers in ({"origin": "null"}, {"origin": "http://127.0.0.1:1"}, {"sec-fetch-site": "cross-site"}):
        upload = visitor.client.post(f"{API}/upload", files={"files": ("a.png", b"x")}, headers=headers)
        joined = visitor.client.post(f"{API}/queue/join", json={"data": [], "session_hash": "a"}, headers=headers)
        assert upload.status_code == joined.status_code == 403
    assert len(served.page.upload_file_set) == kept
    own = {"origin": served.url.strip("/"), "sec-fetch-site": "same-origin"}
    assert visitor.client.post(f"{API}/upload", files={"files": ("a.png", b"x")}, headers=own).status_code == 200


def test_gate_sends_a_policy_without_other_sites(visit):
    policy = visit().client.get("/").headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert "http" not in policy and "*" not in policy
    assert rules["default-src"].startswith("'self'") and rules["form-action"] == "'none'"


@pytest.mark.parametrize("request_before", [b"", b"GET /robots.txt HTTP/1.1\r\nhost: localhost\r\n\r\n"])
def test_connection_with_half_a_head_is_closed(served, monkeypatch, request_before):
    monkeypatch.setattr("evotok.app.server.Connection.head_seconds", 0.3)
    with connect(served) as connection:
        if request_before:
            connection.sendall(request_before)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.sendall(HEAD)
        while connection.recv(4096):
            pass


@pytest.mark.parametrize("path", [b"upload", b"queue/join"])
def test_request_with_half_a_body_is_refused(served, monkeypatch, path):
    monkeypatch.setattr("evotok.app.gate.BODY_SECONDS", 0.3)
    with connect(served) as connection:
        connection.sendall(HEAD.replace(b"upload", path) + b"content-length: 500\r\nconnection: close\r\n\r\n--x\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")


def test_connections_of_one_address_are_limited(served, visit, monkeypatch):
    monkeypatch.setattr("evotok.app.server.Connection.most_of_address", 8)
    with ExitStack() as stack:
        held = [stack.enter_context(connect(served, "127.0.0.66")) for _ in range(30)]
        closed = 0
        for connection in held[8:]:
            try:
                closed += connection.recv(1) == b""
            except ConnectionError:
                closed += 1
        assert closed == 22
        assert visit().client.get("/robots.txt").status_code == 200


def flood_queue(visitor, number, held):
    """Joins the queue, from many sessions."""
    return visitor.join("generate-start", GENERATE, session=f"flood{number % 40}").status_code


def open_sessions(visitor, number, held):
    """Opens a new session."""
    return visitor.join("ask", [None, None, None], session=f"junk{number}").status_code


def fill_disk(visitor, number, held):
    """Uploads over the quota, and from another site."""
    headers = {"origin": "https://evil.example"} if number % 2 else {}
    return visitor.client.post(f"{API}/upload", files={"files": ("a.png", b"0" * 2**18)}, headers=headers).status_code


def hold_connections(visitor, number, held):
    """Sends half a request and keeps the connection open."""
    connection = socket.socket()
    connection.bind(("127.0.0.204", 0))
    connection.connect(("127.0.0.1", httpx.URL(visitor.url).port))
    held.append(connection)
    try:
        connection.sendall(HEAD)
        connection.settimeout(0.01)
        return 503 if connection.recv(1) == b"" else 200
    except ConnectionError:
        return 503
    except TimeoutError:
        return 200


def test_visitors_are_served_during_four_attacks(visit, monkeypatch):
    monkeypatch.setattr(visitors, "UPLOAD_BYTES_OF_ADDRESS", 4 * 2**20)
    served, failed, done = [], [], threading.Event()

    def use(number):
        """Generates an image and asks about it, which requires the state of the session."""
        visitor, session = visit(f"127.0.1.{number}"), f"honest{number}"
        generated = visitor.ask("generate-start", GENERATE, session=session)[-1]
        asked = visitor.ask("ask", [None, None, None], session=session)[-1]
        is_ok = generated["success"] and "16 of 16" in str(generated["output"]) and ".png" in str(asked["output"])
        (served if is_ok else failed).append((number, generated, asked))

    def attack(how, address, statuses):
        visitor, number, held = visit(address), 0, []
        while not done.is_set() or number < 80:
            statuses.append(how(visitor, number, held))
            number += 1

    attacks = {how: [] for how in (flood_queue, open_sessions, fill_disk, hold_connections)}
    attackers = [
        threading.Thread(target=attack, args=(how, f"127.0.0.{201 + n}", statuses), daemon=True)
        for n, (how, statuses) in enumerate(attacks.items())
    ]
    honest = [threading.Thread(target=use, args=(number,), daemon=True) for number in range(1, 9)]
    for thread in (*attackers, *honest):
        thread.start()
    for thread in honest:
        thread.join(120)
    done.set()
    for thread in attackers:
        thread.join(60)
    assert len(served) == 8, failed
    for how, statuses in attacks.items():
        assert {200, 403, 413, 503} >= set(statuses) and max(statuses) > 400, f"{how.__name__} was never refused"
