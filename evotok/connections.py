"""Connections of the servers of this package, to the page and to the model, that wait for nobody without end."""

from asyncio import TimerHandle

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class TimedConnection(H11Protocol):
    """A connection of uvicorn that is closed unless the head of each request comes in time."""

    head_seconds = 10.0
    """From a connection's start, or a head's first byte, to the head's end."""
    most_of_address: int | None = None
    """Connections that one address may have; None where a proxy may stand for all clients."""
    _timer: TimerHandle | None = None

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
