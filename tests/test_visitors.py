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
def place(monkeypatch):
    """Visitors of a page that holds a conversation for every session, and their clock."""
    monkeypatch.setattr(visitors, "MAX_SESSIONS", 5)
    monkeypatch.setattr(visitors, "SESSIONS_OF_ADDRESS", 3)
    clock = Clock()
    holder = SimpleNamespace(session_data={}, time_last_used={}, lock=threading.Lock())
    queue = SimpleNamespace(event_ids_to_events={}, pending_messages_per_session={"known": 1})
    page = SimpleNamespace(state_holder=holder, _queue=queue)
    return SimpleNamespace(page=page, clock=clock, visitors=Visitors(page, clock))


def test_an_address_has_only_so_many_sessions_and_leaves_room_for_others(place):
    for number in range(3):
        place.visitors.enter("1.1.1.1", f"junk{number}")
    with pytest.raises(RefusedError, match="Too many pages are open"):
        place.visitors.enter("1.1.1.1", "junk3")
    place.visitors.enter("1.1.1.1", "junk0")
    place.visitors.enter("2.2.2.2", "honest")


def test_only_idle_sessions_make_room(place):
    place.visitors.enter("2.2.2.2", "honest")
    place.page.state_holder.session_data |= {"honest": "a conversation", "left": "another"}
    place.visitors.enter("2.2.2.2", "left")
    with place.visitors.stream("honest"):
        place.clock.now = visitors.IDLE_SECONDS + 1
        for address in "345":
            place.visitors.enter(address, f"new{address}")
        assert place.page.state_holder.session_data == {"honest": "a conversation"}
        place.visitors.enter("6", "last")
        with pytest.raises(RefusedError):
            place.visitors.enter("7", "one too many")
    place.clock.now += visitors.IDLE_SECONDS - 1
    with pytest.raises(RefusedError):
        place.visitors.enter("7", "a connection that was just closed is no idle one")


def test_events_that_wait_are_counted_by_session_and_address(place):
    waiting = place.page._queue.event_ids_to_events
    waiting |= {n: event("busy", "1.1.1.1") for n in range(visitors.WAITING_OF_SESSION)}
    with pytest.raises(RefusedError, match="let one finish"):
        place.visitors.check_waiting("1.1.1.1", "busy")
    place.visitors.check_waiting("1.1.1.1", "another tab")
    waiting |= {f"more{n}": event(f"tab{n}", "1.1.1.1") for n in range(visitors.WAITING_OF_ADDRESS)}
    with pytest.raises(RefusedError):
        place.visitors.check_waiting("1.1.1.1", "another tab")
    place.visitors.check_waiting("2.2.2.2", "somebody else")
    waiting.clear()
    place.visitors.check_waiting("1.1.1.1", "busy")


def test_only_a_session_that_joined_is_told_something(place):
    place.visitors.check_joined("known")
    for session in ("unknown", None):
        with pytest.raises(RefusedError) as refused:
            place.visitors.check_joined(session)
        assert refused.value.status == 404


def test_uploads_have_a_quota_which_returns_when_files_are_deleted(place, monkeypatch):
    monkeypatch.setattr(visitors, "UPLOAD_BYTES_OF_ADDRESS", 10 * 2**20)
    monkeypatch.setattr(visitors, "UPLOAD_BYTES_OF_ALL", 15 * 2**20)
    place.visitors.upload("1.1.1.1", 10 * 2**20)
    with pytest.raises(RefusedError, match="wait a while") as refused:
        place.visitors.upload("1.1.1.1", 1)
    assert refused.value.status == 413
    place.visitors.upload("2.2.2.2", 5 * 2**20 - 1)
    with pytest.raises(RefusedError):
        place.visitors.upload("3.3.3.3", 2**20)
    place.clock.now = visitors.STATE_SECONDS + 1
    place.visitors.upload("1.1.1.1", 10 * 2**20)


def test_files_of_no_size_count_as_well(place, monkeypatch):
    monkeypatch.setattr(visitors, "UPLOAD_BYTES_OF_ADDRESS", 2**20)
    for _ in range(16):
        place.visitors.upload("1.1.1.1", 0)
    with pytest.raises(RefusedError):
        place.visitors.upload("1.1.1.1", 0)
