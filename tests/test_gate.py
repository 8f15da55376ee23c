"""Who and what the page lets in, over HTTP, on a page whose images take no time: other sites, half requests, crowds."""

import socket
import threading
import time
from contextlib import ExitStack

import pytest
from conftest import build_chat_model
from PIL import Image
from strangers.page import API, ORDER, Visitor


gradio = pytest.importorskip("gradio", reason="the page needs the extra `app`")
httpx = pytest.importorskip("httpx")

from evotok.app import visitors  # noqa: E402
from evotok.app.draw import Drawing  # noqa: E402
from evotok.app.server import serve  # noqa: E402
from evotok.commands.app import listen, names_of  # noqa: E402
from evotok.connections import is_own_host  # noqa: E402


DRAW = list((ORDER | {"seed": "1"}).values())


def quick_draw(model, processor, order, seconds=0.0):
    """Stands in for the generation of images."""
    for positions in (8, 16):
        time.sleep(0.01)
        yield Drawing([Image.new("RGB", (32, 32), "red")], positions, 16, 0.1, 1)


@pytest.fixture(scope="module")
def served():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evotok.app.page.draw", quick_draw)
        with serve(*build_chat_model(), listen("127.0.0.1", None)) as served:
            yield served


@pytest.fixture
def visit(served):
    """Function: a visitor from an address of this machine."""
    with ExitStack() as stack:

        def visitor(address="127.0.0.1"):
            visitor = Visitor(served.url, address)
            stack.enter_context(visitor.client)
            return visitor

        yield visitor


@pytest.mark.parametrize(
    ("host", "status"),
    [("evil.example", 421), ("evil.example:7860", 421), ("127.0.0.1.evil.example", 421), ("", 421), ("[", 421)]
    + [("localhost", 200), ("LOCALHOST:1", 200), ("127.0.0.1:1", 200), ("[::1]:7860", 200), ("10.0.0.7", 200)],
)
def test_other_names_of_this_host_are_not_answered(visit, host, status):
    """A site that has its own name point here (DNS rebinding) would read the page in a visitor's browser."""
    assert visit().client.get("/config", headers={"host": host}).status_code == status


def test_names_of_the_machine_are_answered_where_the_network_is_served():
    assert names_of("localhost") == names_of("127.0.0.1") == ()
    assert is_own_host("box.example:7860", names_of("Box.example"))
    assert is_own_host("abc.gradio.live", (".gradio.live",)) and not is_own_host("xgradio.live", (".gradio.live",))


@pytest.mark.parametrize(
    "headers",
    [{"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}]
    + [{"origin": "http://127.0.0.1:1"}],
)
def test_other_sites_upload_and_order_nothing(visit, served, headers):
    visitor, kept = visit(), len(served.page.upload_file_set)
    upload = visitor.client.post(f"{API}/upload", files={"files": ("a.png", b"x")}, headers=headers)
    joined = visitor.client.post(f"{API}/queue/join", json={"data": [], "session_hash": "a"}, headers=headers)
    assert upload.status_code == joined.status_code == 403
    assert len(served.page.upload_file_set) == kept
    own = {"origin": served.url.strip("/"), "sec-fetch-site": "same-origin"}
    assert visitor.client.post(f"{API}/upload", files={"files": ("a.png", b"x")}, headers=own).status_code == 200


def test_nothing_that_is_shown_is_fetched_from_other_sites(visit, served):
    policy = visit().client.get("/").headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert "http" not in policy.replace("https://", "http") and "*" not in policy
    assert rules["default-src"].startswith("'self'") and rules["form-action"] == "'none'"
    [transcript] = [c for c in served.page.config["components"] if c["props"].get("elem_id") == "transcript"]
    assert transcript["props"]["render_markdown"] is False and transcript["props"]["latex_delimiters"] == []


def test_uploads_have_a_quota(visit, monkeypatch):
    monkeypatch.setattr(visitors, "UPLOAD_BYTES_OF_ADDRESS", 2**20)
    visitor = visit("127.0.0.44")
    files = {"files": ("a.png", b"0" * 2**19)}
    statuses = [visitor.client.post(f"{API}/upload", files=files).status_code for _ in range(4)]
    assert statuses == [200, 413, 413, 413]
    assert visit("127.0.0.45").client.post(f"{API}/upload", files=files).status_code == 200
    chunks = visitor.client.post(f"{API}/upload", content=iter([b"0"]), headers={"content-type": "multipart/form-data"})
    assert chunks.status_code == 411


def half(served, text, seconds=10):
    """What a connection gets that sends only so much, and whether it is closed within so many seconds."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=seconds) as connection:
        connection.sendall(text)
        said = b""
        while piece := connection.recv(4096):
            said += piece
    return said


HEAD = b"POST /gradio_api/upload HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=x\r\n"


@pytest.mark.parametrize("text", [b"", b"GET / HT", HEAD], ids=["nothing", "half a line", "half a head"])
def test_half_a_head_is_not_waited_for(served, monkeypatch, text):
    monkeypatch.setattr("evotok.app.server.Connection.head_seconds", 0.3)
    assert half(served, text) == b""


def test_half_a_second_head_is_not_waited_for(served, monkeypatch):
    monkeypatch.setattr("evotok.app.server.Connection.head_seconds", 0.3)
    with socket.create_connection(("127.0.0.1", served.port), timeout=4) as connection:
        connection.sendall(b"GET /robots.txt HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /robots.txt HT")
        while connection.recv(4096):
            pass


@pytest.mark.parametrize("path", [b"upload", b"queue/join"])
def test_half_a_body_is_not_waited_for(served, monkeypatch, path):
    monkeypatch.setattr("evotok.app.gate.BODY_SECONDS", 0.3)
    head = HEAD.replace(b"upload", path) + b"content-length: 500\r\nconnection: close\r\n\r\n--x\r\n"
    assert half(served, head).startswith(b"HTTP/1.1 408")


def test_one_address_has_only_so_many_connections(served, visit, monkeypatch):
    monkeypatch.setattr("evotok.app.server.Connection.most_of_address", 8)
    with ExitStack() as stack:
        held = []
        for _ in range(30):
            connection = socket.socket()
            connection.bind(("127.0.0.66", 0))
            connection.connect(("127.0.0.1", served.port))
            connection.settimeout(5)
            held.append(stack.enter_context(connection))
        closed = 0
        for connection in held[8:]:
            try:
                closed += connection.recv(1) == b""
            except ConnectionError:
                closed += 1
        assert closed == 22
        assert visit().client.get("/robots.txt").status_code == 200


def flood(visitor, number):
    """Orders, of many sessions and of one."""
    return visitor.join("draw-go", DRAW, session=f"flood{number % 40}").status_code


def fill_sessions(visitor, number):
    """Sessions of nobody."""
    return visitor.join("ask", [None, None, None], session=f"junk{number}").status_code


def fill_disk(visitor, number):
    """Uploads over the quota, and from another site."""
    headers = {"origin": "https://evil.example"} if number % 2 else {}
    return visitor.client.post(f"{API}/upload", files={"files": ("a.png", b"0" * 2**18)}, headers=headers).status_code


def hold_connections(visitor, number, held=[]):  # noqa: B006 - the test's own, as long as it runs
    """Half requests."""
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
        return 200  # held


def test_sixteen_honest_visitors_are_served_among_four_hostile_ones(visit, monkeypatch):
    monkeypatch.setattr(visitors, "UPLOAD_BYTES_OF_ADDRESS", 4 * 2**20)
    served, faults, done = [], [], threading.Event()

    def use(number):
        """Generates an image and goes on with it, which needs what the page keeps of the session."""
        visitor, session = visit(f"127.0.1.{number}"), f"honest{number}"
        drawn = visitor.ask("draw-go", DRAW, session=session)[-1]
        asked = visitor.ask("ask", [None, None, None], session=session)[-1]
        if drawn["success"] and "16 of 16" in str(drawn["output"]) and ".png" in str(asked["output"]):
            served.append(number)
        else:
            faults.append((number, drawn, asked))

    def attack(how, address, statuses):
        visitor, number = visit(address), 0
        while not done.is_set() or number < 80:
            statuses.append(how(visitor, number))
            number += 1

    attacks = {how: [] for how in (flood, fill_sessions, fill_disk, hold_connections)}
    hostile = [
        threading.Thread(target=attack, args=(how, f"127.0.0.{201 + n}", statuses), daemon=True)
        for n, (how, statuses) in enumerate(attacks.items())
    ]
    honest = [threading.Thread(target=use, args=(number,), daemon=True) for number in range(1, 17)]
    for thread in (*hostile, *honest):
        thread.start()
    for thread in honest:
        thread.join(120)
    done.set()
    for thread in hostile:
        thread.join(60)
    assert sorted(served) == list(range(1, 17)), faults
    for how, statuses in attacks.items():
        assert {200, 403, 413, 503} >= set(statuses) and max(statuses) > 400, f"{how.__name__} was not hostile enough"
