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
from conftest import build_chat_model
from strangers.page import API, ORDER, Visitor, check_harmless

from evotok.cli import main


gradio = pytest.importorskip("gradio", reason="the page needs the extra `app`")
pytest.importorskip("httpx")

FROG = list((ORDER | {"prompt": "a frog, noto style"}).values())
EIGHT = list((ORDER | {"images": 8}).values())
HEED_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # also in a shell's background


@pytest.fixture(scope="module")
def visitor(app_page):
    visitor = Visitor(app_page)
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
    assert visitor.page.local_url.startswith("http://127.0.0.1:")


def test_uploads_keep_their_place(visitor):
    answer = visitor.client.post(f"{API}/upload", files={"files": ("../../../../tmp/evil.png", b"no image")})
    check_harmless(answer.text)
    [path] = answer.json()
    assert ".." not in path and "gradio" in path.lower()


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
    assert full and all(answer.status_code == 503 and "full" in answer.text for answer in full)
    for session, answer in answers.items():
        if answer.status_code == 200:
            body = {"session_hash": session, "fn_index": visitor.handler("draw-go"), **answer.json()}
            assert visitor.client.post(f"{API}/cancel", json=body).status_code == 200
    assert draws(visitor, "after-the-crowd")


def test_a_port_that_is_taken_is_one_line_and_exit_code_2(visitor, monkeypatch, capsys):
    monkeypatch.setattr("evotok.commands.app.load_multimodal", lambda name: build_chat_model())
    assert main(["app", "--port", str(visitor.page.server_port)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "cannot listen at 127.0.0.1" in line and "--port" in line


def test_interrupted_in_the_middle_of_a_drawing_the_command_ends_and_gives_its_port_back(visitor):
    """As a process: Ctrl-C while a generation runs in its thread."""
    command = [sys.executable, "-c", f"{HEED_CTRL_C}; from evotok.cli import main; raise SystemExit(main(['app']))"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://127.0.0.1:(\d+)", process.stdout.readline())
        other = Visitor(visitor.page)  # its handlers have the same numbers
        other.client.base_url = address[0]
        other.join("draw-go", EIGHT)
        with other.messages() as messages:
            assert any(message["msg"] == "process_generating" for message in messages)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        other.client.close()
    finally:
        process.kill()
    assert process.returncode == 130 and said.splitlines()[-1] == "evotok app: interrupted" and "Traceback" not in said
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", int(address[1])))
