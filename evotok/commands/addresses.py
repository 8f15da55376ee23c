"""Addresses that servers listen at."""

import socket


LOOPBACK = ("127.0.0.1", "localhost", "::1")


def check_address(host: str, port: int | None) -> None:
    """Raises ValueError unless a server can listen there; servers try only after the model is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            attempt.bind(address)
    except OSError:
        raise cannot_listen(host, port) from None


def cannot_listen(host: str, port: int | None) -> ValueError:
    """The error of an address that is taken or not this machine's."""
    where = f"{host}:{port}" if port else host
    return ValueError(f"cannot listen at {where}: give another --host or --port.")
