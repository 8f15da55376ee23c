"""Limits per address and session, on a clock of their own, without a server."""

import threading
from types import SimpleNamespace

import pytest

from evotok.app import visitors
from evotok.app.visitors import RefusedError, Visitors


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def event(session, address):
    return SimpleNamespace(session_hash=session, request=SimpleNamespace(client=SimpleNamespace(host=address)))


@pytest.fixture
def page(monkeypatch):
    """Returns a page, its visitors and their clock."""
    monkeypatch.setattr(visitors, "MAX_SESSIONS", 5)
    monkeypatch.setattr(visitors, "SESSIONS_OF_ADDRESS", 3)
    clock = Clock()
    holder = SimpleNamespace(session_data={}, time_last_used={}, lock=threading.Lock())
    queue = SimpleNamespace(event_ids_to_events={}, pending_messages_per_session={"known": 1})
    blocks = SimpleNamespace(state_holder=holder, _queue=queue)
    return SimpleNamespace(blocks=blocks, clock=clock, visitors=Visitors(blocks, clock))


def test_enter_limits_the_sessions_of_an_address(page):
    for number in range(3):
        page.visitors.enter("1.1.1.1", f"junk{number}")
    with pytest.raises(RefusedError, match="Too many pages are open"):
        page.visitors.enter("1.1.1.1", "junk3")
    page.visitors.enter("1.1.1.1", "junk0")
    page.visitors.enter("2.2.2.2", "honest")


def test_enter_drops_idle_sessions_only(page):
    page.visitors.enter("2.2.2.2", "honest")
    page.blocks.state_holder.session_data |= {"honest": "a conversation", "left": "another"}
    page.visitors.enter("2.2.2.2", "left")
    with page.visitors.stream("honest"):
        page.clock.now = visitors.IDLE_SECONDS + 1
        for address in "345":
            page.visitors.enter(address, f"new{address}")
        assert page.blocks.state_holder.session_data == {"honest": "a conversation"}
        page.visitors.enter("6", "last")
        with pytest.raises(RefusedError):
            page.visitors.enter("7", "one too many")
    page.clock.now += visitors.IDLE_SECONDS - 1
    with pytest.raises(RefusedError):
        page.visitors.enter("7", "a connection that was just closed is not idle")


def test_check_waiting_limits_the_events_of_a_session_and_an_address(page):
    waiting = page.blocks._queue.event_ids_to_events
    waiting |= {n: event("busy", "1.1.1.1") for n in range(visitors.WAITING_OF_SESSION)}
    with pytest.raises(RefusedError, match="let one finish"):
        page.visitors.check_waiting("1.1.1.1", "busy")
    page.visitors.check_waiting("1.1.1.1", "another session")
    waiting |= {f"more{n}": event(f"tab{n}", "1.1.1.1") for n in range(visitors.WAITING_OF_ADDRESS)}
    with pytest.raises(RefusedError):
        page.visitors.check_waiting("1.1.1.1", "another session")
    page.visitors.check_waiting("2.2.2.2", "another address")
    waiting.clear()
    page.visitors.check_waiting("1.1.1.1", "busy")


def test_check_joined_refuses_sessions_without_events(page):
    page.visitors.check_joined("known")
    for session in ("unknown", None):
        with pytest.raises(RefusedError) as refused:
            page.visitors.check_joined(session)
        assert refused.value.status == 404


def test_upload_has_a_quota_while_files_are_kept(page, monkeypatch):
    monkeypatch.setattr(visitors, "UPLOAD_BYTES_OF_ADDRESS", 10 * 2**20)
    monkeypatch.setattr(visitors, "UPLOAD_BYTES_OF_ALL", 15 * 2**20)
    for _ in range(16):
        page.visitors.upload("1.1.1.1", 0)  # an empty file counts as 64 KiB
    page.visitors.upload("1.1.1.1", 9 * 2**20)
    with pytest.raises(RefusedError, match="wait a while") as refused:
        page.visitors.upload("1.1.1.1", 0)
    assert refused.value.status == 413
    page.visitors.upload("2.2.2.2", 5 * 2**20 - 2**16)
    with pytest.raises(RefusedError):
        page.visitors.upload("3.3.3.3", 2**20)
    page.clock.now = visitors.STATE_SECONDS + 1
    page.visitors.upload("1.1.1.1", 10 * 2**20)
