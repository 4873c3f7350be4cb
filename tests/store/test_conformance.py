"""The suite for stores, run on ours, and on stores that each break one of its rules."""

from contextlib import asynccontextmanager

import pytest

from headstart import EventLog, StoreError
from headstart.store import JsonlTraceStore, SqliteTraceStore
from headstart.testing import StoreConformance

pytestmark = pytest.mark.real_time


class TestJsonl(StoreConformance):
    def open_store(self, place):
        return JsonlTraceStore(place / "traces.jsonl")


class TestSqlite(StoreConformance):
    def open_store(self, place):
        return SqliteTraceStore(place / "traces.db")


SHELVES = {}


class Shelf:
    """A store in the memory of the process, by place: correct, if nothing is overridden."""

    def __init__(self, place):
        self.log = SHELVES.setdefault(place, EventLog())
        self.closed = False

    def emit(self, event):
        if self.closed:
            raise StoreError("It is closed.")
        name = event.session.encode(errors="replace").decode()
        self.log.events.append((name, event))

    async def flush(self):
        pass

    async def sessions(self):
        return list(dict.fromkeys(name for name, _ in self.log.events))

    async def read(self, session):
        session = session.encode(errors="replace").decode()
        return [event for name, event in self.log.events if name == session]


def conformance(kind):
    """The suite for a kind of shelf."""

    class Suite(StoreConformance):
        def open_store(self, place):
            @asynccontextmanager
            async def opened():
                shelf = kind(place)
                yield shelf
                shelf.closed = True

            return opened()

    return Suite()


class TestShelf(StoreConformance):
    """The suite asks for nothing that only files have."""

    def open_store(self, place):
        return conformance(Shelf).open_store(place)


class Forgetful(Shelf):
    def __init__(self, place):
        super().__init__(place)
        self.log = EventLog()


class Unsorted(Shelf):
    async def sessions(self):
        return sorted(await super().sessions())


class Mixed(Shelf):
    async def read(self, session):
        return [event for _, event in self.log.events]


class Reversed(Shelf):
    async def read(self, session):
        return (await super().read(session))[::-1]


class Open(Shelf):
    def emit(self, event):
        self.closed = False
        super().emit(event)


class Short(Shelf):
    def emit(self, event):
        if len(self.log.events) < 4_000:
            super().emit(event)


class Strict(Shelf):
    def emit(self, event):
        event.session.encode()
        super().emit(event)


@pytest.mark.parametrize(
    ("kind", "test"),
    [
        (Forgetful, "test_what_is_opened_again_goes_on"),
        (Forgetful, "test_two_stores_of_one_place_lose_nothing"),
        (Forgetful, "test_a_cancelled_block_has_kept_what_was_emitted"),
        (Unsorted, "test_sessions_side_by_side_are_told_apart"),
        (Mixed, "test_sessions_side_by_side_are_told_apart"),
        (Reversed, "test_what_was_emitted_is_read_back_equal"),
        (Reversed, "test_threads_may_emit"),
        (Open, "test_a_closed_store_refuses_events"),
        (Short, "test_many_events_at_once_are_kept"),
        (Strict, "test_names_that_are_no_unicode_do_no_harm"),
    ],
)
def test_a_store_that_breaks_a_rule_is_found(kind, test, tmp_path):
    with pytest.raises((AssertionError, UnicodeError, ValueError)):
        getattr(conformance(kind), test)(tmp_path)
