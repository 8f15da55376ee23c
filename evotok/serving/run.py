"""Runs the application under uvicorn until SIGINT or SIGTERM."""

import socket
from collections.abc import Sequence

import uvicorn

from evotok.connections import TimedConnection
from evotok.serving.app import build_app
from evotok.serving.engine import Engine
from evotok.serving.limits import Limits
from evotok.serving.metrics import Metrics


class _Server(uvicorn.Server):
    """uvicorn server that prints its address when it accepts connections."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            assert sockets is not None
            [listener] = sockets
            host, port = listener.getsockname()[:2]
            print(
                f"EvoTok serves at http://{f'[{host}]' if ':' in host else host}:{port}/v1 (Ctrl+C ends it)", flush=True
            )


def serve(
    engine: Engine,
    model: str,
    limits: Limits,
    metrics: Metrics,
    listener: socket.socket,
    api_key: str | None = None,
    hosts: Sequence[str] | None = None,
) -> None:
    """Serves until SIGINT or SIGTERM; then accepts no more connections, and completes the open requests.

    Args:
        model: its name in requests and responses.
        listener: bound socket.
        api_key, hosts: see `Gate`.
    """
    config = uvicorn.Config(
        build_app(engine, model, limits, metrics, api_key, hosts),
        http=TimedConnection,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        # Open requests keep their full time limit after the signal; uvicorn waits no longer than that.
        timeout_graceful_shutdown=int(limits.seconds) + 1,
    )
    _Server(config).run([listener])
