"""Events in an SQLite file."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from headstart._events import dump_event, load_event

from ._trace_file import TraceFile, stored_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headstart._events import Event

BUSY_S = 5.0
"""Seconds to wait for another process that writes."""
_TABLES = """
CREATE TABLE IF NOT EXISTS headstart_events (
    number INTEGER PRIMARY KEY,
    session TEXT NOT NULL,
    event TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS headstart_events_by_session
    ON headstart_events (session, number);
"""


class SqliteTraceStore(TraceFile):
    """A `headstart.TraceStore` in an SQLite file.

    ```python
    async with (
        SqliteTraceStore("traces.db") as store,
        agent.open_session(sink=store) as session,
    ):
        await agent.run("Where is #W17?", session=session)
    ```

    Several processes of one machine may share a file. One session of many is read
    without looking through the others. The events are JSON in the table
    `headstart_events`, so `sqlite3 traces.db` can ask for more. What was
    written survives the death of the process, and perhaps not that of the machine.

    Everything else is as for every `TraceFile`: entering opens the file, `emit` never
    waits, leaving writes what still waits.
    """

    _failures = (OSError, sqlite3.Error)

    def _open(self) -> tuple[Callable[[Sequence[Event]], None], Callable[[], None]]:
        # Opened here and used in the writer's thread, one after the other.
        connection = self._connect(os.fspath(self.path), check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executescript(_TABLES)
        except BaseException:
            connection.close()
            raise
        return partial(_append, connection), connection.close

    @staticmethod
    def _connect(database: str, **options: bool) -> sqlite3.Connection:
        return sqlite3.connect(
            database, timeout=BUSY_S, isolation_level=None, **options
        )

    def _ask(self, question: str, *values: str) -> list[str]:
        address = f"{self.path.absolute().as_uri()}?mode=ro"
        with closing(self._connect(address, uri=True)) as connection:
            return [value for (value,) in connection.execute(question, values)]

    def _read_sessions(self) -> list[str]:
        return self._ask(
            "SELECT session FROM headstart_events GROUP BY session ORDER BY min(number)"
        )

    def _read_events(self, session: str) -> list[Event]:
        found = self._ask(
            "SELECT event FROM headstart_events WHERE session = ? ORDER BY number",
            session,
        )
        return [load_event(event) for event in found]


def _append(connection: sqlite3.Connection, events: Sequence[Event]) -> None:
    """Add events in one transaction: all of them, or none."""
    rows = [(stored_name(event.session), dump_event(event)) for event in events]
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            "INSERT INTO headstart_events (session, event) VALUES (?, ?)", rows
        )
