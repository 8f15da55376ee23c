"""Limits of each address and session of the page: open sessions, waiting events, uploads.

A session is a tab of a browser, which Gradio names by a hash; an address may have several. Gradio has one limit of the
queue for all visitors, drops the least recently used session of any address, and does not count uploads.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from evotok.app.limits import (
    IDLE_SECONDS,
    MAX_SESSIONS,
    SESSIONS_OF_ADDRESS,
    STATE_SECONDS,
    UPLOAD_BYTES_OF_ADDRESS,
    UPLOAD_BYTES_OF_ALL,
    WAITING_OF_ADDRESS,
    WAITING_OF_SESSION,
)


class RefusedError(Exception):
    """Raised for a refused request.

    Args:
        status: HTTP status code.
        reason: one line for the visitor.
    """

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass
class _Session:
    address: str
    used: float
    streams: int = 0


@dataclass
class Visitors:
    """Counters of sessions, waiting events and uploads.

    Args:
        blocks: the page, a `gr.Blocks`, with its queue and the state of its sessions.
        now: clock, in seconds.
    """

    blocks: Any
    now: Callable[[], float] = time.monotonic
    _sessions: dict[str, _Session] = field(default_factory=dict)
    _uploads: deque[tuple[float, str, int]] = field(default_factory=deque)

    def enter(self, address: str, session: str) -> None:
        """Registers a request of a session; only idle sessions are dropped for a new one.

        Raises:
            RefusedError: too many sessions, of this address or in all.
        """
        if session not in self._sessions:
            self._drop_idle()
            of_address = sum(known.address == address for known in self._sessions.values())
            if of_address >= SESSIONS_OF_ADDRESS or len(self._sessions) >= MAX_SESSIONS:
                raise RefusedError(503, "Too many pages are open: close one, or come back later.")
            self._sessions[session] = _Session(address, self.now())
        self._sessions[session].used = self.now()

    @contextmanager
    def stream(self, session: str) -> Iterator[None]:
        """Marks a session as in use within a context, while one of its connections is open."""
        known = self._sessions[session]
        known.streams += 1
        try:
            yield
        finally:
            known.streams -= 1
            known.used = self.now()

    def _drop_idle(self) -> None:
        limit = self.now() - IDLE_SECONDS
        for session, known in list(self._sessions.items()):
            if not known.streams and known.used < limit:
                del self._sessions[session]
                holder = self.blocks.state_holder
                with holder.lock:
                    holder.session_data.pop(session, None)
                    holder.time_last_used.pop(session, None)

    def check_joined(self, session: str | None) -> None:
        """Checks that a session has events; Gradio fails in the middle of its response otherwise.

        Raises:
            RefusedError: it has none.
        """
        if session not in self.blocks._queue.pending_messages_per_session:
            raise RefusedError(404, "This session has no events.")

    def check_waiting(self, address: str, session: str) -> None:
        """Checks that another event may wait in the queue.

        Raises:
            RefusedError: too many of this session or address are waiting or running.
        """
        events = list(self.blocks._queue.event_ids_to_events.values())
        of_session = sum(event.session_hash == session for event in events)
        of_address = sum(event.request.client.host == address for event in events)
        if of_session >= WAITING_OF_SESSION or of_address >= WAITING_OF_ADDRESS:
            raise RefusedError(503, "Too many of your requests are waiting: let one finish first.")

    def upload(self, address: str, size: int) -> None:
        """Counts the bytes of an upload for as long as its files are kept.

        Raises:
            RefusedError: over the quota of the address, or of the page.
        """
        size = max(size, 2**16)  # many empty files take room too
        while self._uploads and self._uploads[0][0] < self.now() - STATE_SECONDS:
            self._uploads.popleft()
        in_all = sum(size for _, _, size in self._uploads) + size
        of_address = sum(size for _, other, size in self._uploads if other == address) + size
        if of_address > UPLOAD_BYTES_OF_ADDRESS or in_all > UPLOAD_BYTES_OF_ALL:
            megabytes, minutes = UPLOAD_BYTES_OF_ADDRESS // 2**20, STATE_SECONDS // 60
            raise RefusedError(413, f"At most {megabytes} MB can be uploaded in {minutes} minutes: wait a while.")
        self._uploads.append((self.now(), address, size))
