"""Both event loops in virtual time, without what programs never use: threads, sockets."""

from __future__ import annotations

import asyncio
import heapq
import math
import random
from contextlib import contextmanager

import trio.abc
from anyio._backends import _asyncio

from headstart import UsageError
from headstart.testing import VirtualLoop

_chance = random.Random()


class BareLoop(VirtualLoop):
    """An asyncio loop on which nothing is ready but what is due.

    `VirtualLoop` looks for threads and sockets on every turn of the loop, and a program
    takes hundreds of turns. Here, too, what asyncio leaves to chance follows from the
    seed, so that a program runs alone as it ran among others: which of two timers of
    one moment comes first, and in which order the tasks of a set are cancelled.
    """

    def __init__(self) -> None:
        super().__init__()
        vars(self)["_selector"].select = self._select
        self.set_task_factory(self._make_task)

    def seed(self, seed: int) -> None:
        """Begin another program, at 0, and forget the timers of the one before."""
        _chance.seed(seed)
        self._now = 0.0
        timers = self._scheduled
        timers[:] = [timer for timer in timers if not timer.cancelled()]
        heapq.heapify(timers)
        self._timer_cancelled_count = 0

    def call_at(self, when, callback, *args, context=None):
        timer = _Timer(when, callback, args, self, context)
        timer.tie = _chance.random()
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True
        return timer

    def _make_task(self, loop, coroutine, **options) -> _Task:
        task = _Task(coroutine, loop=loop, **options)
        task.hash = _chance.getrandbits(32)
        return task

    def _select(self, timeout: float | None = None) -> list[object]:
        if (timeout is None or timeout > 0) and not self.jump():
            raise UsageError(self.deadlock())
        return []


class _Timer(asyncio.TimerHandle):
    __slots__ = ("tie",)

    def __lt__(self, other: _Timer) -> bool:
        return (self._when, self.tie) < (other._when, other.tie)


class _Task(asyncio.Task):
    hash = 0

    def __hash__(self) -> int:
        return self.hash


class _Scope(_asyncio.CancelScope):
    __slots__ = ("hash",)

    def __init__(self, deadline: float = math.inf, shield: bool = False) -> None:
        super().__init__(deadline, shield)
        self.hash = _chance.getrandbits(32)

    def __hash__(self) -> int:
        return self.hash


@contextmanager
def seeded_scopes():
    """Let anyio make scopes whose order in a set follows from the seed."""
    kept, _asyncio.CancelScope = _asyncio.CancelScope, _Scope
    try:
        yield
    finally:
        _asyncio.CancelScope = kept


class BareClock(trio.abc.Clock):
    """A trio clock that jumps as soon as no task can run.

    `trio.testing.MockClock` takes a turn of the loop more, in which it looks whether
    anything happens outside.
    """

    def __init__(self) -> None:
        self._now = 0.0

    def start_clock(self) -> None:
        """Begin at 0, as the other loop does; again for each program."""
        self._now = 0.0

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Move to the deadline, instead of sleeping until then. Trio asks when idle."""
        if deadline == math.inf:
            return math.inf
        self._now = max(self._now, deadline)
        return 0.0
