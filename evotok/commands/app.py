"""`evotok app`: a page in the browser to chat about images, generate them and inspect their codes."""

import signal
import socket
import sys
import threading
from typing import Annotated

import typer

from evotok.commands.checkpoints import find_checkpoint, load_multimodal
from evotok.commands.options import CHECKPOINT, ApiKey, Server


EXAMPLES = """  evotok app
  evotok app runs/mini/gen-counts --port 8080
  evotok app --server http://127.0.0.1:8000
  evotok app --host 0.0.0.0          for everybody in the network"""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PORTS = range(7860, 7960)
TERMINATED = 128 + signal.SIGTERM


def run(
    checkpoint: Annotated[str | None, CHECKPOINT] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="address to listen at")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=65535, help="port; the first free one from 7860 by default")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="host name of the page behind a reverse proxy; may repeat"),
    ] = None,
    server: Server = None,
    api_key: ApiKey = None,
    share: Annotated[bool, typer.Option("--share", help="open a public address too, through Gradio's servers")] = False,
) -> None:
    """Serve a page in your browser: chat about images, generate them, inspect their codes.

    CHECKPOINT is mini by default.
    """
    if checkpoint is not None and server is not None:
        raise ValueError("give a CHECKPOINT or --server with the address of a running server, not both.")
    if server is None:
        find_checkpoint(checkpoint or "mini")
    with listen(host, port) as listener:  # first, so that no other process takes the port while the model loads
        try:
            import gradio  # noqa: F401 - before the model is loaded
        except ImportError:
            raise ImportError("the page needs Gradio: pip install 'evotok[app]'") from None
        if server is None:
            model, processor = load_multimodal(checkpoint or "mini")
        else:
            from evotok.serving.client import ServerClient

            model, processor = ServerClient(server, api_key), None
        from evotok.app.server import serve

        if host not in LOOPBACK:
            print(f"note: everybody who reaches {host} can use this page.", file=sys.stderr)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # as Ctrl+C: uploads are deleted
        with serve(model, processor, listener, (*host_names(host), *(allow_host or ())), share) as served:
            print(f"EvoTok is at {served.url} (Ctrl+C ends it)", flush=True)
            if served.shared_url:
                print(f"Public address: {served.shared_url}", flush=True)
            threading.Event().wait()  # until Ctrl+C


def listen(host: str, port: int | None) -> socket.socket:
    """Opens a socket for the page.

    Args:
        port: the first free one of `PORTS` when None.

    Raises:
        ValueError: no such address, or no free port.
    """
    for number in (port,) if port else PORTS:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
            return socket.create_server(address, family=family)
        except OSError:
            continue
    where = f"{host}:{port}" if port else host
    raise ValueError(f"cannot listen at {where}: give another --host or --port.")


def host_names(host: str) -> tuple[str, ...]:
    """Lists the host names of a page that listens at `host`, beside IP addresses."""
    return () if host in LOOPBACK else (host.lower(), socket.gethostname().lower(), socket.getfqdn().lower())
