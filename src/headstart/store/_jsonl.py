"""Events in a text file, one JSON object a line."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, cast

import pydantic_core

from headstart._events import dump_event, load_event

from ._trace_file import TraceFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from headstart._events import Event

logger = logging.getLogger("headstart")


class JsonlTraceStore(TraceFile):
    """A `headstart.TraceStore` in a text file, one event a line.

    ```python
    async with (
        JsonlTraceStore("traces.jsonl") as store,
        agent.open_session(sink=store) as session,
    ):
        await agent.run("Where is #W17?", session=session)
    ```

    Lines are appended whole, so several processes of one machine may share a file (on a
    local disk; not over NFS). A line that was torn by a crash or a full disk is left
    out when the file is read, with a warning. Reading looks through the whole file:
    for many sessions take `SqliteTraceStore`.

    Everything else is as for every `TraceFile`: entering opens the file, `emit` never
    waits, leaving writes what still waits.
    """

    def _open(self) -> tuple[Callable[[Sequence[Event]], None], Callable[[], None]]:
        file = _AppendedFile(os.fspath(self.path))
        return file.append, file.close

    def _read_sessions(self) -> list[str]:
        return list(dict.fromkeys(session for _, session, _ in self._lines()))

    def _read_events(self, session: str) -> list[Event]:
        return [
            load_event(line, number=number)
            for number, name, line in self._lines()
            if name == session
        ]

    def _lines(self) -> Iterator[tuple[int, str, bytes]]:
        """The lines that are events, with their numbers and sessions."""
        bad: list[int] = []
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                session = _session_of(line)
                if session is not None:
                    yield number, session, line
                elif line.strip():
                    bad.append(number)
        if bad:
            logger.warning(
                "%d lines of %r are no events and were left out, first line %d.",
                len(bad),
                self.path.name,
                bad[0],
            )


def _session_of(line: bytes) -> str | None:
    try:
        read: Any = pydantic_core.from_json(line)
    except ValueError:
        return None
    if not isinstance(read, dict):
        return None
    event = cast("dict[str, Any]", read)
    session, kind = event.get("session"), event.get("event")
    return session if isinstance(session, str) and isinstance(kind, str) else None


class _AppendedFile:
    """A file to whose end lines are written, by whoever else writes to it as well."""

    def __init__(self, path: str) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(path, flags, 0o666)
        self._torn = not self._ends_with_a_line()

    def _ends_with_a_line(self) -> bool:
        size = os.lseek(self._descriptor, 0, os.SEEK_END)
        if not size:
            return True
        os.lseek(self._descriptor, size - 1, os.SEEK_SET)
        return os.read(self._descriptor, 1) == b"\n"

    def append(self, events: Sequence[Event]) -> None:
        lines = "".join(dump_event(event) + "\n" for event in events).encode()
        left = memoryview(b"\n" + lines if self._torn else lines)
        while left:
            self._torn = True  # unless all of it is written
            left = left[os.write(self._descriptor, left) :]
        self._torn = False

    def close(self) -> None:
        try:
            os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)
