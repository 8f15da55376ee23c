"""`evotok app`: its defaults, its errors, and its end as a process."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import parse_command
from page_client import API, ORDER, Visitor
from ports import free_port

from evotok.cli import main
from evotok.commands.app import listen


EIGHT = list((ORDER | {"images": 8}).values())
START = """
import sys
sys.path.insert(0, {tests!r})
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # also in a shell's background
from conftest import build_chat_model
import evotok.app.generate, evotok.commands.app, time
evotok.commands.app.load_multimodal = lambda name: build_chat_model()
preview = evotok.app.generate.preview_images
evotok.app.generate.preview_images = lambda *args: (time.sleep(1), preview(*args))[1]
from evotok.cli import main
sys.exit(main(["app", "--port", "{port}"]))
"""


def test_app_listens_at_loopback_without_sharing_by_default():
    values = parse_command(["app"])
    assert values["host"] == "127.0.0.1"
    assert not any(values[name] for name in ("checkpoint", "server", "port", "allow_host", "share"))


def test_app_reports_bad_options_before_loading_the_model(monkeypatch, capsys):
    monkeypatch.setattr("evotok.commands.app.load_multimodal", pytest.fail)
    with listen("127.0.0.1", None) as taken:
        port = str(taken.getsockname()[1])
        for words, message in (
            (["--port", "70000"], "less than or equal to 65535"),
            (["--port", port], f"cannot listen at 127.0.0.1:{port}"),
            (["mini", "--server", "http://127.0.0.1:9"], "not both"),
        ):
            assert main(["app", *words]) == 2
            [line] = capsys.readouterr().err.splitlines()
            assert message in line
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app"]) == 2
    assert "pip install 'evotok[app]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kill", "code", "last"), [(signal.SIGINT, 130, "evotok app: interrupted"), (signal.SIGTERM, 143, "")]
)
def test_app_killed_during_generation_releases_port_and_uploads(kill, code, last, tmp_path):
    """The environment names a proxy that does not answer."""
    pytest.importorskip("gradio", reason="the page needs the extra `app`")
    pytest.importorskip("httpx")
    tests = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": str(tests.parent), "TMPDIR": str(tmp_path)}
    environment |= dict.fromkeys(("HTTP_PROXY", "http_proxy"), "http://127.0.0.1:9") | {"NO_PROXY": "", "no_proxy": ""}
    process = subprocess.Popen(
        [sys.executable, "-c", START.format(tests=str(tests), port=free_port())],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        address = re.search(r"http://127.0.0.1:(\d+)", process.stdout.readline())
        visitor = Visitor(address[0])
        [path] = visitor.client.post(f"{API}/upload", files={"files": ("a.png", b"no image")}).json()
        assert Path(path).is_relative_to(tmp_path) and Path(path).is_file()
        visitor.join("generate-start", EIGHT)
        with visitor.messages() as messages:
            assert any(message["msg"] == "process_generating" for message in messages)
            process.send_signal(kill)
            _, errors = process.communicate(timeout=60)
        visitor.client.close()
    finally:
        process.kill()
    assert process.returncode == code and "Traceback" not in errors
    assert errors.splitlines()[-1:] == ([last] if last else [])
    assert not list(tmp_path.glob("evotok-app-*"))
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", int(address[1])))
