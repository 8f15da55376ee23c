"""Runs the application under uvicorn until it is told to end."""

import uvicorn

from evotok.commands.addresses import LOOPBACK
from evotok.serving.app import build_app
from evotok.serving.engine import Engine
from evotok.serving.limits import Limits
from evotok.serving.metrics import Metrics


class _Server(uvicorn.Server):
    """Prints its address as soon as it listens."""

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets)
        if self.started:
            host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
            print(f"EvoTok serves at http://{host}:{self.config.port}/v1 (Ctrl+C ends it)", flush=True)


def serve(
    engine: Engine, model: str, limits: Limits, metrics: Metrics, host: str, port: int, api_key: str | None
) -> None:
    """Serves until SIGINT or SIGTERM: then no connection is accepted, and open requests are answered.

    Args:
        model: its name in requests and answers.
    """
    hosts = LOOPBACK if host in LOOPBACK and api_key is None else None
    app = build_app(engine, model, limits, metrics, api_key, hosts)
    # A request that is open when the signal comes has its whole time limit, and no other is waited for.
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(limits.seconds) + 1,
    )
    _Server(config).run()
