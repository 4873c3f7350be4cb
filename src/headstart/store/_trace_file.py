"""What stores in files have in common: a thread that writes, so that no session waits.

Rules of this file:

1. `emit` never waits for a disk, a lock that somebody else's write holds, or memory: it
   puts the event into a queue of bounded length.
2. Only the writer's thread writes. What it cannot write is counted, logged once, and
   told by the next `flush` or `aclose`: nothing is lost in silence.
3. A process that was forked has the queue, and not the thread: it may not write.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections import deque
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import anyio
import anyio.to_thread

from headstart._errors import StoreError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from headstart._events import Event

logger = logging.getLogger("headstart")

T = TypeVar("T")
GRACE_S = 10.0
"""Seconds that closing waits for the disk, although it may be cancelled."""
MAX_BATCH = 1_000
"""Events that are written at once."""


class TraceFile(ABC):
    """A store in one file. An async context manager: entering opens the file.

    Args:
        path: Where the file is, or is to be. Its folder has to be there.
        max_waiting: How many events may wait for the disk. Further ones are not kept:
            a session never waits for its trace.

    Attributes:
        path: The file.
        lost: How many events could not be kept so far.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, max_waiting: int = 100_000
    ) -> None:
        if max_waiting < 1:
            msg = f"max_waiting is at least 1, not {max_waiting!r}."
            raise UsageError(msg)
        self.path = Path(path)
        self.max_waiting = max_waiting
        self._writer: _Writer | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path.name!r}>"

    @property
    def lost(self) -> int:
        """How many events could not be kept so far."""
        return 0 if self._writer is None else self._writer.lost

    async def __aenter__(self) -> Self:
        if self._writer is not None:
            msg = f"The store {self.path.name!r} is opened once: make another one."
            raise UsageError(msg)
        write, close = await anyio.to_thread.run_sync(self._told, self._open)
        self._writer = _Writer(self.path.name, write, close, limit=self.max_waiting)
        # Whoever never leaves the block has its events kept at the end of the process.
        self._finalizer = weakref.finalize(self, _close_late, self._writer)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.aclose()
        except StoreError:
            if error is None:
                raise
            logger.exception("The store %r did not keep everything.", self.path.name)

    def emit(self, event: Event, /) -> None:
        """Keep `event`, soon. Never waits.

        Raises:
            StoreError: The store is not open here.
        """
        self._open_writer().put(event)

    async def flush(self) -> None:
        """Wait until everything that was emitted before is in the file.

        Cancelling it cancels the wait alone.

        Raises:
            StoreError: Events were lost since this was last told.
        """
        writer = self._open_writer()
        await anyio.to_thread.run_sync(writer.drain, abandon_on_cancel=True)
        writer.tell_loss()

    async def aclose(self) -> None:
        """Write what still waits, and close the file; a second time does nothing.

        It takes up to ten seconds when it is cancelled, so that no event is lost.

        Raises:
            StoreError: Events were lost since this was last told, or the disk still
                takes its time: what waits is written when it has gone on.
        """
        writer = self._writer
        if writer is None or writer.ended or writer.process != os.getpid():
            return
        with anyio.move_on_after(GRACE_S, shield=True):
            await anyio.to_thread.run_sync(writer.close, abandon_on_cancel=True)
        if not writer.ended:
            msg = f"The store {self.path.name!r} still writes after {GRACE_S} s."
            raise StoreError(msg)
        self._finalizer.detach()
        writer.tell_loss()

    async def sessions(self) -> list[str]:
        """The names of all sessions in the file, in the order in which they began.

        Raises:
            StoreError: The file cannot be read.
        """
        return await self._read(self._read_sessions)

    async def read(self, session: str, /) -> list[Event]:
        """The events of a session in their order; none if it is not known.

        Raises:
            StoreError: The file cannot be read.
            TraceFormatError: A later version of headstart has written it.
        """
        return await self._read(partial(self._read_events, stored_name(session)))

    async def _read(self, function: Callable[[], T]) -> T:
        await self.flush()
        return await anyio.to_thread.run_sync(
            self._told, function, abandon_on_cancel=True
        )

    def _open_writer(self) -> _Writer:
        writer = self._writer
        if writer is None or writer.ended:
            msg = f"The store {self.path.name!r} is not open: use it in 'async with'."
            raise StoreError(msg)
        if writer.process != os.getpid():
            msg = (
                f"The store {self.path.name!r} was opened before a fork: open another."
            )
            raise StoreError(msg)
        return writer

    def _told(self, function: Callable[[], T]) -> T:
        try:
            return function()
        except self._failures as error:
            msg = f"The store {self.path.name!r} cannot be used: {error}."
            raise StoreError(msg) from error

    _failures: tuple[type[Exception], ...] = (OSError,)
    """What is raised where the file, or the disk, is not as it should be."""

    @abstractmethod
    def _open(self) -> tuple[Callable[[Sequence[Event]], None], Callable[[], None]]:
        """Open the file, in some thread: what writes events, and what closes it."""

    @abstractmethod
    def _read_sessions(self) -> list[str]: ...

    @abstractmethod
    def _read_events(self, session: str) -> list[Event]: ...


def stored_name(session: str) -> str:
    """A session's name as `dump_event` writes it: no halves of surrogate pairs."""
    return session.encode(errors="replace").decode()


class _Writer:
    """A queue of events, and the thread that writes them."""

    def __init__(
        self,
        name: str,
        write: Callable[[Sequence[Event]], None],
        close: Callable[[], None],
        *,
        limit: int,
    ) -> None:
        self.process = os.getpid()
        self.lost = self._told = 0
        self.ended = False
        self._name = name
        self._write = write
        self._close = close
        self._limit = limit
        self._error: Exception | None = None
        self._waiting: deque[Event] = deque()
        self._put = self._written = 0
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(
            target=self._run, name=f"headstart store {name}", daemon=True
        )
        self._thread.start()

    def put(self, event: Event) -> None:
        with self._changed:
            if self._closing:  # nobody may look at what waits any more
                msg = f"The store {self._name!r} is being closed."
                raise StoreError(msg)
            if len(self._waiting) >= self._limit:
                self._lose(1, None)
                return
            self._waiting.append(event)
            self._put += 1
            self._changed.notify_all()

    def drain(self) -> None:
        """Wait until all that was put so far is written, or lost."""
        with self._changed:
            put = self._put
            self._changed.wait_for(lambda: self._written >= put or self.ended)

    def close(self) -> None:
        """Write what waits, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def tell_loss(self) -> None:
        """Raise an error if something was lost since the last time."""
        with self._changed:
            lost, self._told = self.lost - self._told, self.lost
            error, self._error = self._error, None
        if lost:
            why = f": {error}" if error is not None else ", as too many were waiting"
            msg = f"The store {self._name!r} could not keep {lost} events{why}."
            raise StoreError(msg) from error

    def _run(self) -> None:
        while batch := self._next_batch():
            error: Exception | None = None
            try:
                self._write(batch)
            except Exception as caught:  # noqa: BLE001 - told by flush() and aclose()
                error = caught
            with self._changed:
                if error is not None:
                    self._lose(len(batch), error)
                self._written += len(batch)
                self._changed.notify_all()
        try:
            self._close()
        except Exception:
            logger.exception("The store %r was not closed well.", self._name)
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def _next_batch(self) -> list[Event]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            size = min(len(self._waiting), MAX_BATCH)
            return [self._waiting.popleft() for _ in range(size)]

    def _lose(self, count: int, error: Exception | None) -> None:
        if not self.lost:
            logger.warning("The store %r loses events.", self._name, exc_info=error)
        self.lost += count
        self._error = error or self._error


def _close_late(writer: _Writer) -> None:
    if writer.process == os.getpid():
        writer.close()
