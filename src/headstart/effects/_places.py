"""Places in a pool: how many connections unconfirmed calls may have at once.

Rules of this file:

1. A call that is not confirmed needs a place for each connection, before it asks the pool
   for one. Without a free place it waits here, where it stands in nobody's way.
2. A place is given back when its connection is, and when its call is confirmed: what is
   confirmed needs none. So a call that waits here goes on at its verdict at the latest.
3. Verdicts may come from any thread and from the garbage collector. They never wait for
   the lock: they leave a message to whoever has it.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING

from headstart._barrier import BarrierState, WriteBarrier
from headstart._errors import UsageError

if TYPE_CHECKING:
    from headstart._thread_guard import UnconfirmedCall

UNLIMITED = 5
"""Connections that unconfirmed calls may have of a pool that has no limit itself."""

RETURN = 2.0
"""Seconds that a cancelled call may take to roll back, or to close a connection."""


def read_connections(connections: int | None, limit: int | None) -> int:
    """How many connections unconfirmed calls may have of a pool.

    Args:
        connections: As the user says; `None` for half of the pool.
        limit: How many the pool opens; `None` for any number.

    Raises:
        UsageError: None would be left to others.
    """
    if connections is None:
        if limit is None:
            return UNLIMITED
        return max(1, limit // 2) if limit > 1 else 0
    if connections < 0 or (limit is not None and connections >= limit):
        msg = (
            f"connections={connections!r} has to be 0 or more, and leave at least one "
            f"connection of the pool to others: it opens {limit or 'any number'}."
        )
        raise UsageError(msg)
    return connections


class Place:
    """What a call that is not confirmed needs for a connection.

    Attributes:
        gate: Open once there is a place, or none is needed.
        dirty: Whether something was written on the connection.
    """

    __slots__ = ("_call", "_holds", "_places", "dirty", "gate", "over")

    def __init__(self, places: Places, barrier: WriteBarrier) -> None:
        self._places = places
        self._call = weakref.ref(barrier)
        self.gate = WriteBarrier(name=barrier.name)
        self.dirty = False
        self.over = False
        self._holds = False

    @property
    def is_open(self) -> bool:
        """Whether there is a place, or none is needed."""
        return self.gate.effective_state is BarrierState.FLUSHED

    def is_of(self, call: UnconfirmedCall) -> bool:
        """Whether `call` took the connection itself."""
        return self._call() is call.barrier

    def settle(self) -> None:
        """Take note of the verdict on its call."""
        self._places.tell(self, over=False)

    def end(self) -> None:
        """Give the place back, or stop waiting for one. More than once, if need be."""
        self._places.tell(self, over=True)

    def update(self, *, over: bool) -> None:
        """Do what a message says; under the lock."""
        self.over = self.over or over
        barrier = self._call()
        state = BarrierState.DENIED if barrier is None else barrier.effective_state
        if state is BarrierState.FLUSHED:
            self._leave()
            self.gate.flush()
        elif state is BarrierState.DENIED:
            reason = barrier.reason if barrier is not None else None
            self.gate.deny(reason or "its call was dropped")
        if self.over:
            self._leave()
            self.gate.deny("its connection was given back")
        elif state is BarrierState.HELD and not self._holds and self._places.free > 0:
            self._take()

    def _take(self) -> None:
        if self.gate.flush():
            self._holds = True
            self._places.free -= 1

    def _leave(self) -> None:
        if self._holds:
            self._holds = False
            self._places.free += 1


class Places:
    """So many places, given to those who wait for one in the order they came."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.free = count
        self._lock = threading.Lock()
        self._messages: deque[tuple[Place, bool]] = deque()
        self._waiting: deque[Place] = deque()

    def ask(self, call: UnconfirmedCall) -> Place:
        """A place for a connection, to be waited for at its gate."""
        place = Place(self, call.barrier)
        self.tell(place, over=False)
        call.barrier.on_settled(place.settle)
        return place

    def tell(self, place: Place, *, over: bool) -> None:
        """Leave a message, and read all there are unless somebody does."""
        self._messages.append((place, over))
        while self._messages and self._lock.acquire(blocking=False):
            try:
                while self._messages:
                    told, is_over = self._messages.popleft()
                    self._handle(told, over=is_over)
            finally:
                self._lock.release()

    def _handle(self, place: Place, *, over: bool) -> None:
        new = place.gate.effective_state is BarrierState.HELD
        if new and place not in self._waiting:
            self._waiting.append(place)
        place.update(over=over)
        while self._waiting:
            first = self._waiting[0]
            if first.gate.effective_state is BarrierState.HELD:
                first.update(over=False)
            if first.gate.effective_state is BarrierState.HELD:
                return
            self._waiting.popleft()
