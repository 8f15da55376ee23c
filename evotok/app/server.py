"""Serves the page: Gradio's application behind the gate, in a thread, on an open socket.

`launch` of Gradio has no option for the class of connections, sends a request to its own address, through a
proxy if the environment names one, and does not delete uploads when the process is terminated.
"""

import logging
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import fastapi
import gradio as gr
import uvicorn
from starlette.middleware import Middleware

from evotok.app.gate import Gate
from evotok.app.limits import CONNECTIONS, CONNECTIONS_OF_ADDRESS, HEAD_SECONDS, MAX_UPLOAD_BYTES
from evotok.app.page import build_page
from evotok.app.theme import CSS, HEAD, THEME
from evotok.app.visitors import Visitors
from evotok.connections import TimedConnection
from evotok.data.errors import reason


START_SECONDS = 60
_SHARED_HOST = ".gradio.live"


class Served(NamedTuple):
    """A page that is served: the `gr.Blocks`, its address, and its public address if there is one."""

    page: Any
    url: str
    port: int
    shared_url: str | None = None


class Connection(TimedConnection):
    """A connection to the page."""

    head_seconds = HEAD_SECONDS
    most_of_address = CONNECTIONS_OF_ADDRESS


@contextmanager
def serve(
    model, processor, listener: socket.socket, hosts: tuple[str, ...] = (), share: bool = False
) -> Iterator[Served]:
    """Serves the page of a model within a context; uploads are deleted at its end.

    Args:
        model: an EvoTok model; or a `ServerClient`, with `processor` None.
        listener: bound socket, which is closed at the end.
        hosts: names of this machine, beside `localhost` and IP addresses.
        share: whether to open a public address through Gradio's servers.

    Raises:
        ValueError: the server does not start, or no public address can be opened.
    """
    folder = Path(tempfile.mkdtemp(prefix="evotok-app-"))
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")  # read when the components are created
    try:
        page = build_page(model, processor, folder)
        with _running(page, listener, (*hosts, *((_SHARED_HOST,) if share else ()))):
            host, port = listener.getsockname()[:2]
            host = "127.0.0.1" if host in ("0.0.0.0", "::") else host
            url = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
            yield Served(page, url, port, _share(host, port) if share else None)
    finally:
        listener.close()
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.pop("GRADIO_TEMP_DIR")
        if before is not None:
            os.environ["GRADIO_TEMP_DIR"] = before


@contextmanager
def _running(page: gr.Blocks, listener: socket.socket, hosts: tuple[str, ...]) -> Iterator[None]:
    """Runs the server in a thread."""
    app = gr.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        theme=THEME,
        css=CSS,
        head=HEAD,
        footer_links=[],
        run_history=False,
        max_file_size=MAX_UPLOAD_BYTES,
        show_error=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        app_kwargs={"middleware": [Middleware(Gate, visitors=Visitors(page), hosts=hosts)]},
    )
    page.has_launched = True  # Gradio checks the paths of files only then
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_level="warning",
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="evotok-server", daemon=True)
    thread.start()
    try:
        end = time.monotonic() + START_SECONDS
        while not server.started:
            if not thread.is_alive() or time.monotonic() > end:
                raise ValueError("the server of the page does not start: see above, or give another --host or --port.")
            time.sleep(0.01)
        yield
    finally:
        page._queue.close()
        page.is_running = False  # ends the streams to visitors; those that wait for a heartbeat are closed
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        server.should_exit = True
        thread.join(10)


def _share(host: str, port: int) -> str:
    """Opens a tunnel from a public address of Gradio's servers."""
    from gradio.networking import setup_tunnel

    try:
        return setup_tunnel(host, port, secrets.token_urlsafe(32), None, None)
    except Exception as error:  # noqa: BLE001 - no network, no binary, a checksum: the correction is the same
        raise ValueError(f"--share: no public address can be opened ({reason(error)}): leave it out.") from None
