"""The page over HTTP: it serves on whoever left, broke off or was refused, and a kill leaves nothing behind.

What is wrong in a request is in the catalogue of bad inputs, strangers/page.py.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from strangers.page import API, ORDER, Visitor, check_harmless

from evotok.cli import main


gradio = pytest.importorskip("gradio", reason="the page needs the extra `app`")
pytest.importorskip("httpx")

FROG = list((ORDER | {"prompt": "a frog, noto style"}).values())
EIGHT = list((ORDER | {"images": 8}).values())
ROOT = str(Path(__file__).parents[1])


@pytest.fixture(scope="module")
def visitor(app_page):
    visitor = Visitor(app_page.url)
    yield visitor
    visitor.client.close()


def draws(visitor, session):
    """A drawing comes out whole."""
    last = visitor.ask("draw-go", FROG, session=session)[-1]
    return last["success"] and "64 of 64" in str(last["output"])


def generations():
    return [thread for thread in threading.enumerate() if thread.name == "evotok-generation"]


def test_the_page_is_there_and_listens_at_loopback_only(visitor):
    assert visitor.client.get("/").status_code == 200
    assert visitor.url.startswith("http://127.0.0.1:")


def test_uploads_keep_their_place(visitor):
    answer = visitor.client.post(f"{API}/upload", files={"files": ("../../../../tmp/evil.png", b"no image")})
    check_harmless(answer.text)
    [path] = answer.json()
    assert ".." not in path and "/uploads/" in path


def test_no_address_is_fetched_for_a_visitor(visitor, monkeypatch):
    """Neither as a file of the page, nor in the place of an upload."""
    monkeypatch.setattr("gradio.routes.secure_url_stream_response", pytest.fail)
    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", pytest.fail)
    address = "https://example.org/a.png"
    given = [{"path": address, "meta": {"_type": "gradio.FileData"}}, 2]
    answers = [visitor.client.get(f"{API}/file={address}"), visitor.join("source", given, "change")]
    assert [(answer.status_code, answer.text.split(":")[0]) for answer in answers] == [
        (403, "The page reads no addresses."),
        (403, "The page reads no addresses"),
    ]


def test_requests_that_gradio_stumbles_over_are_refused_not_failures(visitor, capfd):
    [path] = visitor.client.post(f"{API}/upload", files={"files": ("a.png", b"no image")}).json()
    assert visitor.client.get(f"{API}/file={path}").content == b"no image"
    answer = visitor.client.get(f"{API}/file={path}", headers={"range": "bytes=0-1-2"})
    assert (answer.status_code, answer.text) == (422, "The page does not send such requests.")
    assert "Traceback" not in capfd.readouterr().err


def test_a_fault_of_ours_is_told_without_a_traceback_and_the_page_serves_on(visitor, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr("evotok.app.draw.preview", fail)
        last = visitor.ask("draw-go", FROG, session="unlucky")[-1]
    assert not last["success"]
    check_harmless(str(last))
    assert draws(visitor, "unlucky")


def test_a_connection_that_breaks_off_ends_its_generation_and_the_next_visitor_is_served(visitor):
    assert visitor.join("draw-go", EIGHT, session="hasty").status_code == 200
    with visitor.messages("hasty") as messages:
        assert any(message["msg"] == "process_generating" for message in messages)
    assert draws(visitor, "patient")
    for thread in generations():
        thread.join(30)
    assert not generations()


def test_a_full_queue_says_so_and_empties_again(visitor):
    answers = {f"crowd-{n}": visitor.join("draw-go", EIGHT, session=f"crowd-{n}") for n in range(20)}
    full = [answer for answer in answers.values() if answer.status_code != 200]
    assert full and all(answer.status_code == 503 and "let one finish" in answer.text for answer in full)
    for session, answer in answers.items():
        if answer.status_code == 200:
            body = {"session_hash": session, "fn_index": visitor.handler("draw-go"), **answer.json()}
            assert visitor.client.post(f"{API}/cancel", json=body).status_code == 200
    assert draws(visitor, "after-the-crowd")


def test_a_port_that_is_taken_is_one_line_and_exit_code_2(visitor, monkeypatch, capsys):
    monkeypatch.setattr("evotok.commands.app.load_multimodal", pytest.fail)
    assert main(["app", "--port", visitor.url.strip("/").split(":")[-1]]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "cannot listen at 127.0.0.1" in line and "--port" in line


START = """
import sys
sys.path.insert(0, {tests!r})
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # also in a shell's background
from conftest import build_chat_model
import evotok.app.draw, evotok.commands.app, time
evotok.commands.app.load_multimodal = lambda name: build_chat_model()
preview = evotok.app.draw.preview
evotok.app.draw.preview = lambda *args: (time.sleep(1), preview(*args))[1]
from evotok.cli import main
sys.exit(main(["app"]))
"""


@pytest.mark.parametrize(
    ("kill", "code", "last"), [(signal.SIGINT, 130, "evotok app: interrupted"), (signal.SIGTERM, 143, "")]
)
def test_the_command_ends_in_the_middle_of_a_generation_and_leaves_nothing(kill, code, last, tmp_path):
    """As a process, behind a proxy that does not answer: the port is free again, and uploads are gone."""
    environment = os.environ | {"PYTHONPATH": ROOT, "TMPDIR": str(tmp_path), "HTTP_PROXY": "http://127.0.0.1:9"}
    process = subprocess.Popen(
        [sys.executable, "-c", START.format(tests=str(Path(__file__).parent))],
        env=environment | {"http_proxy": "http://127.0.0.1:9", "NO_PROXY": "", "no_proxy": ""},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        address = re.search(r"http://127.0.0.1:(\d+)", process.stdout.readline())
        other = Visitor(address[0])
        [path] = other.client.post(f"{API}/upload", files={"files": ("a.png", b"no image")}).json()
        assert Path(path).is_relative_to(tmp_path) and Path(path).is_file()
        other.join("draw-go", EIGHT)
        with other.messages() as messages:
            assert any(message["msg"] == "process_generating" for message in messages)
            process.send_signal(kill)
            _, said = process.communicate(timeout=60)
        other.client.close()
    finally:
        process.kill()
    assert process.returncode == code and "Traceback" not in said
    assert said.splitlines()[-1:] == ([last] if last else [])
    assert not list(tmp_path.glob("evotok-app-*")), "what visitors uploaded is deleted"
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", int(address[1])))
