"""Stores in files: what is lost is told, and what is wrong with a file is said."""

import gc
import json
import logging
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading

import anyio
import pytest

from headstart import (
    Session,
    StoreError,
    TraceFormatError,
    UsageError,
    dump_event,
)
from headstart._events import SCHEMA_VERSION, SessionStarted, TurnStarted
from headstart.store import JsonlTraceStore, SqliteTraceStore

pytestmark = pytest.mark.real_time

KINDS = pytest.mark.parametrize("kind", [JsonlTraceStore, SqliteTraceStore])


def turn(number, session="a"):
    return TurnStarted(session=session, at_s=number / 8, turn=number)


async def read_all(kind, path, session="a"):
    async with kind(path) as store:
        return await store.read(session)


def emit_all(store, count):
    for number in range(count):
        store.emit(turn(number))


@KINDS
async def test_a_store_that_was_never_opened_refuses_events(kind, tmp_path):
    with pytest.raises(StoreError):
        kind(tmp_path / "traces").emit(turn(1))
    assert not (tmp_path / "traces").exists()


@KINDS
async def test_a_store_is_opened_once(kind, tmp_path):
    async with kind(tmp_path / "traces") as store:
        with pytest.raises(UsageError):
            await store.__aenter__()


@KINDS
async def test_closing_twice_does_nothing(kind, tmp_path):
    async with kind(tmp_path / "traces") as store:
        await store.aclose()
        await store.aclose()
    await kind(tmp_path / "other").aclose()


@KINDS
@pytest.mark.parametrize("size", [0, -1])
def test_a_queue_of_no_length_is_refused(kind, size, tmp_path):
    with pytest.raises(UsageError):
        kind(tmp_path / "traces", max_waiting=size)


@KINDS
async def test_a_folder_that_is_not_there_is_said_at_once(kind, tmp_path):
    with pytest.raises(StoreError) as raised:
        async with kind(tmp_path / "nowhere" / "traces"):
            pass
    assert raised.value.__cause__ is not None


@KINDS
async def test_a_file_that_goes_away_while_it_is_open_can_be_said(kind, tmp_path):
    async with kind(tmp_path / "traces") as store:
        await store.flush()
        (tmp_path / "traces").unlink()
        with pytest.raises(StoreError):
            await store.read("a")


def fail(events):
    raise OSError(28, "No space left on device")


class Stuck:
    """Keeps a store's thread from writing, until it is let go."""

    def __init__(self, store):
        self.gate = threading.Event()
        self.begun = threading.Event()
        write = store._writer._write

        def wait_and_write(events):
            self.begun.set()
            self.gate.wait()
            write(events)

        store._writer._write = wait_and_write


@KINDS
async def test_emitting_does_not_wait_for_the_disk(kind, tmp_path):
    async with kind(tmp_path / "traces") as store:
        stuck = Stuck(store)
        emit_all(store, 500)  # would hang here
        stuck.gate.set()
        assert await store.read("a") == [turn(number) for number in range(500)]


@KINDS
async def test_what_does_not_fit_the_queue_is_counted_and_told(kind, tmp_path, caplog):
    async with kind(tmp_path / "traces", max_waiting=3) as store:
        stuck = Stuck(store)
        store.emit(turn(0))
        await anyio.to_thread.run_sync(stuck.begun.wait)
        for number in range(1, 11):
            store.emit(turn(number))
        assert store.lost == 7
        stuck.gate.set()
        with pytest.raises(StoreError):
            await store.flush()
        await store.flush()  # it is told once
        assert await store.read("a") == [turn(number) for number in range(4)]
    assert len(caplog.records) == 1


@KINDS
async def test_a_cancelled_flush_stops_waiting_and_loses_nothing(kind, tmp_path):
    async with kind(tmp_path / "traces") as store:
        stuck = Stuck(store)
        store.emit(turn(0))
        with anyio.move_on_after(0.01) as scope:
            await store.flush()
        assert scope.cancelled_caught
        stuck.gate.set()
        assert await store.read("a") == [turn(0)]


@KINDS
async def test_what_could_not_be_written_is_told_at_the_end(kind, tmp_path):
    store = await kind(tmp_path / "traces").__aenter__()
    store._writer._write = fail
    emit_all(store, 3)
    with pytest.raises(StoreError) as raised:
        await store.aclose()
    assert isinstance(raised.value.__cause__, OSError)
    assert store.lost == 3


@KINDS
async def test_a_cancelled_block_is_left_once_all_is_written(kind, tmp_path):
    with anyio.CancelScope() as scope:
        async with kind(tmp_path / "traces") as store:
            stuck = Stuck(store)
            store.emit(turn(1))
            threading.Timer(0.05, stuck.gate.set).start()
            scope.cancel()
            await anyio.sleep_forever()
    assert store._writer.ended
    assert await read_all(kind, tmp_path / "traces") == [turn(1)]


@KINDS
async def test_an_event_that_comes_while_the_store_is_closed_is_refused(kind, tmp_path):
    store = await kind(tmp_path / "traces").__aenter__()
    stuck = Stuck(store)
    store.emit(turn(1))
    async with anyio.create_task_group() as group:
        group.start_soon(store.aclose)
        while not store._writer._closing:  # noqa: ASYNC110 - a thread has no event
            await anyio.sleep(0.001)
        with pytest.raises(StoreError):
            store.emit(turn(2))
        stuck.gate.set()
    assert await read_all(kind, tmp_path / "traces") == [turn(1)]


@KINDS
async def test_a_disk_that_stands_still_is_told_and_written_to_later(
    kind, tmp_path, monkeypatch
):
    monkeypatch.setattr("headstart.store._trace_file.GRACE_S", 0.05)
    store = await kind(tmp_path / "traces").__aenter__()
    stuck = Stuck(store)
    store.emit(turn(1))
    with pytest.raises(StoreError):
        await store.aclose()
    stuck.gate.set()
    await anyio.to_thread.run_sync(store._writer._thread.join)
    assert await read_all(kind, tmp_path / "traces") == [turn(1)]


@KINDS
async def test_an_error_of_the_block_is_not_hidden_by_a_loss(kind, tmp_path):
    async def divide():
        async with kind(tmp_path / "traces") as store:
            store._writer._write = fail
            store.emit(turn(1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await divide()


@KINDS
async def test_writing_goes_on_once_the_disk_has_room_again(kind, tmp_path):
    async with kind(tmp_path / "traces") as store:
        write = store._writer._write

        store._writer._write = fail
        store.emit(turn(1))
        with pytest.raises(StoreError):
            await store.flush()
        store._writer._write = write
        store.emit(turn(2))
        assert await store.read("a") == [turn(2)]


def start_process(kind, path, body):
    """Run the body, which has an open `store`, in a process of its own."""
    program = f"""
import os, signal, sys, warnings
import anyio
from headstart import StoreError
from headstart._events import TurnStarted
from headstart.store import {kind.__name__}

kept = []

async def main():
    async with {kind.__name__}({str(path)!r}) as store:
{textwrap.indent(textwrap.dedent(body), " " * 8)}

anyio.run(main)
"""
    return subprocess.Popen([sys.executable, "-c", program])


def run_process(kind, path, body, *, expected=0):
    with start_process(kind, path, body) as process:
        assert process.wait() == expected


EMIT_100 = """
for number in range(100):
    store.emit(TurnStarted(session="a", at_s=number / 8, turn=number))
"""


@KINDS
@pytest.mark.timeout(60)
def test_a_killed_process_leaves_what_it_has_flushed(kind, tmp_path):
    body = EMIT_100 + "await store.flush()\nos.kill(os.getpid(), signal.SIGKILL)"
    run_process(kind, tmp_path / "traces", body, expected=-signal.SIGKILL)
    read = anyio.run(read_all, kind, tmp_path / "traces")
    assert read == [turn(number) for number in range(100)]


@KINDS
@pytest.mark.timeout(60)
def test_a_block_that_is_never_left_keeps_its_events_at_the_end(kind, tmp_path):
    body = EMIT_100 + "kept.append(store)\nsys.exit()"
    leaving = f"{kind.__name__}.__aexit__ = lambda *_: anyio.sleep(0)"
    run_process(kind, tmp_path / "traces", f"{leaving}\n{body}")
    read = anyio.run(read_all, kind, tmp_path / "traces")
    assert read == [turn(number) for number in range(100)]


@KINDS
async def test_a_store_that_is_dropped_ends_its_thread(kind, tmp_path):
    store = await kind(tmp_path / "traces").__aenter__()
    thread = store._writer._thread
    store.emit(turn(1))
    del store
    gc.collect()
    await anyio.to_thread.run_sync(thread.join, 5)
    assert not thread.is_alive()
    assert await read_all(kind, tmp_path / "traces") == [turn(1)]


@KINDS
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.timeout(60)
def test_a_forked_process_is_refused_and_the_parent_goes_on(kind, tmp_path):
    run_process(
        kind,
        tmp_path / "traces",
        """
        store.emit(TurnStarted(session="a", at_s=0.125, turn=1))
        await store.flush()
        warnings.simplefilter("ignore")  # a fork of a process with threads
        if (child := os.fork()) == 0:
            try:
                store.emit(TurnStarted(session="a", at_s=0.25, turn=2))
            except StoreError:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        store.emit(TurnStarted(session="a", at_s=0.375, turn=3))
        """,
    )
    read = anyio.run(read_all, kind, tmp_path / "traces")
    assert read == [turn(1), turn(3)]


@KINDS
@pytest.mark.timeout(60)
def test_processes_that_share_a_file_lose_nothing(kind, tmp_path):
    body = """
for number in range(300):
    store.emit(TurnStarted(session={name!r}, at_s=number / 8, turn=number))
    if number % 20 == 0:
        await store.flush()
"""
    names = ["one", "two", "three"]
    running = [
        start_process(kind, tmp_path / "traces", body.format(name=name))
        for name in names
    ]
    assert [process.wait() for process in running] == [0, 0, 0]
    for name in names:
        read = anyio.run(read_all, kind, tmp_path / "traces", name)
        assert read == [turn(number, name) for number in range(300)]


# Lines of text


async def test_a_torn_line_is_left_out_and_the_next_begins_anew(tmp_path, caplog):
    path = tmp_path / "traces"
    whole = dump_event(turn(1))
    path.write_text(f"{whole}\n{whole[:30]}")
    async with JsonlTraceStore(path) as store:
        store.emit(turn(2))
        assert await store.read("a") == [turn(1), turn(2)]
    assert [record.args for record in caplog.records] == [(1, "traces", 2)]
    assert path.read_text().splitlines() == [whole, whole[:30], dump_event(turn(2))]


async def test_a_write_that_broke_off_does_not_spoil_the_next_line(
    tmp_path, monkeypatch
):
    async with JsonlTraceStore(tmp_path / "traces") as store:
        write, room = os.write, [40]

        def write_while_there_is_room(file, data):
            if not room[0]:
                raise OSError(28, "No space left on device")
            size = min(room[0], len(data))
            room[0] -= size
            return write(file, bytes(data[:size]))

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write_while_there_is_room)
            store.emit(turn(1))
            with pytest.raises(StoreError):
                await store.flush()
        store.emit(turn(2))
        assert await store.read("a") == [turn(2)]


@pytest.mark.parametrize(
    "line", ["[1]", "{}", '{"session": 1, "event": "x"}', '{"session": "a"}', "\x00"]
)
async def test_lines_that_are_no_events_are_left_out(line, tmp_path, caplog):
    path = tmp_path / "traces"
    path.write_text(f"{dump_event(turn(1))}\n\n{line}\n{dump_event(turn(2))}\n")
    assert await read_all(JsonlTraceStore, path) == [turn(1), turn(2)]
    assert caplog.records[0].levelno == logging.WARNING
    assert caplog.records[0].args == (1, "traces", 3)


async def test_an_event_of_an_unknown_kind_names_its_line(tmp_path):
    path = tmp_path / "traces"
    path.write_text(f'{dump_event(turn(1))}\n{{"event": "moon", "session": "a"}}\n')
    with pytest.raises(TraceFormatError) as raised:
        await read_all(JsonlTraceStore, path)
    assert raised.value.line == 2


@KINDS
async def test_a_trace_of_a_later_version_is_not_misread(kind, tmp_path):
    later = SessionStarted(session="a", at_s=0.0, schema_version=SCHEMA_VERSION + 1)
    async with kind(tmp_path / "traces") as store:
        store.emit(later)
        with pytest.raises(TraceFormatError):
            await store.read("a")


# SQLite


async def test_a_file_that_is_no_database_is_left_as_it_is(tmp_path):
    path = tmp_path / "traces"
    path.write_text("Dear diary, " * 100)
    with pytest.raises(StoreError):
        async with SqliteTraceStore(path):
            pass
    assert path.read_text().startswith("Dear diary")


async def test_a_table_of_this_name_with_other_columns_is_left_as_it_is(tmp_path):
    path = tmp_path / "traces"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE headstart_events (something)")
    connection.close()
    with pytest.raises(StoreError):
        async with SqliteTraceStore(path):
            pass


async def test_what_else_a_database_holds_stays(tmp_path):
    path = tmp_path / "shop.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 7")
    connection.execute("CREATE TABLE orders (id)")
    connection.execute("INSERT INTO orders VALUES (7)")
    connection.commit()
    async with SqliteTraceStore(path) as store:
        store.emit(turn(1))
    assert connection.execute("SELECT id FROM orders").fetchall() == [(7,)]
    assert connection.execute("PRAGMA user_version").fetchone() == (7,)
    connection.close()


async def test_the_table_can_be_asked_by_anybody(tmp_path):
    async with SqliteTraceStore(tmp_path / "traces") as store:
        emit_all(store, 3)
    connection = sqlite3.connect(tmp_path / "traces")
    rows = connection.execute("SELECT session, event FROM headstart_events").fetchall()
    connection.close()
    assert [(name, json.loads(event)["turn"]) for name, event in rows] == [
        ("a", 0),
        ("a", 1),
        ("a", 2),
    ]


class Opened:
    """What would run code if it was unpickled."""

    def __reduce__(self):
        return exit, (7,)


@pytest.mark.parametrize("row", [pickle.dumps(Opened()), "exit(7)", "", 7, None])
async def test_a_row_that_is_no_event_is_refused(row, tmp_path):
    path = tmp_path / "traces"
    async with SqliteTraceStore(path):
        pass
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE headstart_events")
    connection.execute("CREATE TABLE headstart_events (number, session, event)")
    connection.execute("INSERT INTO headstart_events VALUES (1, 'a', ?)", [row])
    connection.commit()
    connection.close()
    with pytest.raises(TraceFormatError):
        await read_all(SqliteTraceStore, path)


async def test_a_lock_that_is_held_for_too_long_loses_events_and_says_so(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("headstart.store._sqlite.BUSY_S", 0.01)
    async with SqliteTraceStore(tmp_path / "traces") as store:
        other = sqlite3.connect(tmp_path / "traces", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        store.emit(turn(1))
        with pytest.raises(StoreError):
            await store.flush()
        other.execute("ROLLBACK")
        other.close()
        store.emit(turn(2))
        assert await store.read("a") == [turn(2)]


def test_sessions_without_a_name_do_not_share_one():
    assert len({Session().name for _ in range(100)}) == 100
