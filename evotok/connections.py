"""Connections with time limits, and the check of the Host header, for the server of the page and that of the model."""

import ipaddress
from asyncio import TimerHandle
from collections.abc import Iterable
from urllib.parse import urlsplit

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class TimedConnection(H11Protocol):
    """Connection of uvicorn with time limits for the head of a request and for sending the response."""

    head_seconds = 10.0
    """Longest time from the start of a connection, or the first byte of a head, to the end of the head."""
    write_seconds = 60.0
    """Longest time that the send buffer stays full: a response that is not received would keep its memory, and count as
    an open request."""
    most_of_address: int | None = None
    """Most connections of one address; None where all clients may connect through one proxy."""
    _timer: TimerHandle | None = None
    _write_timer: TimerHandle | None = None

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        address = self.client[0] if self.client else None
        of_address = sum(bool(other.client) and other.client[0] == address for other in self.connections)
        if self.most_of_address is not None and of_address > self.most_of_address:
            transport.abort()
        else:
            self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_timer()
        self._stop_write_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_write_timer()

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _watch_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.head_seconds, self._close_if_waiting)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_if_waiting(self) -> None:
        self._timer = None
        if self.conn.their_state is h11.IDLE:
            self.transport.close()


def is_own_host(host: str, hosts: Iterable[str]) -> bool:
    """Returns whether a Host header names this machine: an IP address, or one of the names.

    This prevents DNS rebinding.

    Args:
        hosts: names in lower case; `.example.org` stands for all names with this ending.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return any(name == own or (own.startswith(".") and name.endswith(own)) for own in hosts)
