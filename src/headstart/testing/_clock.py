"""Virtual time on asyncio: an hour's sleep passes at once, and durations are exact.

Rules of this file:

1. The clock moves only when nothing can run now, and then straight to the next timer.
2. It stands still while a worker thread of the loop runs, because the thread may wake a
   task before that timer. A thread that waits at a write barrier waits for the loop, and
   one that was let go for nobody: neither holds the clock.
3. Nothing can run, no timer is set, and nobody is left who could change that: that is a
   deadlock, and an error rather than a hang.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import threading
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, Unpack

import anyio

from headstart._barrier import blocked_threads
from headstart._errors import UsageError
from headstart._threads import disowned_threads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

T = TypeVar("T")
Args = TypeVarTuple("Args")

PATIENCE = 5.0
"""Real seconds that a loop with nothing to do waits for a thread or a socket."""

_POLL = 0.001


class _VirtualSelector(selectors.BaseSelector):
    """Asks for what is ready, and instead of waiting moves the loop's clock."""

    def __init__(self) -> None:
        self.loop: VirtualLoop
        self._real = selectors.DefaultSelector()

    def register(
        self, fileobj: Any, events: int, data: Any = None
    ) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()

    def select(
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        patience = PATIENCE
        while True:
            busy = self.loop.threads_running()  # before the look at what is ready
            if ready := self._real.select(0):
                return ready
            if timeout is not None and timeout <= 0:
                return []
            if not busy and self.loop.jump():
                return []
            if not busy and patience <= 0:
                raise UsageError(self.loop.deadlock())
            if ready := self._real.select(_POLL):
                return ready
            patience -= _POLL if self._others() else patience

    def _others(self) -> bool:
        """Whether anything but the loop itself is left that could wake it."""
        return threading.active_count() > 1 or len(self.get_map()) > 1


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop whose clock starts at 0 and never waits.

    Give the class itself as the `loop_factory` of whatever makes the loop. It is for
    programs that wait for time, events and their own worker threads. Sockets and
    foreign threads work, but the clock runs ahead of them.
    """

    def __init__(self) -> None:
        selector = _VirtualSelector()
        selector.loop = self
        self._now = 0.0
        self._executing = 0
        super().__init__(selector)

    def time(self) -> float:
        """Seconds since the loop was made, in virtual time."""
        return self._now

    def jump(self) -> bool:
        """Move the clock to the next timer. False when there is none."""
        timers: list[asyncio.TimerHandle] = vars(self)["_scheduled"]
        when: float = timers[0].when() if timers else math.inf
        if when == math.inf:
            return False
        self._now = max(self._now, when)
        # asyncio runs the timers up to one tick of the clock ahead. Here exactly those
        # of this very moment are due, however far from 0 it is.
        self._clock_resolution = math.ulp(self._now)
        return True

    def threads_running(self) -> bool:
        """Whether a worker thread of this loop does anything that could end by itself."""
        if self._executing:
            return True
        if threading.active_count() == 1:
            return False
        busy = sum(
            thread.queue.unfinished_tasks > 0  # type: ignore[attr-defined]
            for thread in threading.enumerate()
            if getattr(thread, "loop", None) is self
            and hasattr(thread, "queue")
            and thread.ident not in blocked_threads
        )
        return busy > (disowned_threads() if busy else 0)

    def deadlock(self) -> str:
        """Describe who waits."""
        tasks = sorted(task.get_name() for task in asyncio.all_tasks(self))
        shown = ", ".join(tasks[:5]) + (", ..." if len(tasks) > 5 else "")
        return (
            f"Nothing can run, and no timer is set: {len(tasks)} tasks wait for what "
            f"never comes ({shown}). Look for an event that nobody sets."
        )

    def run_in_executor(
        self,
        executor: Any,
        func: Callable[[Unpack[Args]], T],
        *args: *Args,
    ) -> asyncio.Future[T]:
        """As in asyncio; the clock stands still until the future is done."""
        future = super().run_in_executor(executor, func, *args)
        self._executing += 1
        future.add_done_callback(self._executed)
        return future

    def _executed(self, _: object) -> None:
        self._executing -= 1

    async def shutdown_default_executor(self, *args: Any) -> None:
        """As in asyncio, whose time limit would pass at once if the clock moved."""
        self._executing += 1
        try:
            await super().shutdown_default_executor(*args)
        finally:
            self._executing -= 1


def run_virtual(function: Callable[[Unpack[Args]], Awaitable[T]], *args: *Args) -> T:
    """Run an async function on asyncio in virtual time, from 0, and return its result.

    Sleeping costs no real time, and `anyio.current_time()` tells virtual seconds to the
    last bit: after `await anyio.sleep(0.25)` four times it is exactly 1.0.

    Raises:
        UsageError: Every task waits, and nothing is left that could wake one of them.
    """
    return anyio.run(
        function,
        *args,
        backend="asyncio",
        backend_options={"loop_factory": VirtualLoop},
    )
