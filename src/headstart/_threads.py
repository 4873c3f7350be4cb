"""Threads that sync tools run in: not killed when their call is cancelled, but let go."""

from __future__ import annotations

import inspect
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread

if TYPE_CHECKING:
    from collections.abc import Callable


class _ThreadFlag(threading.local):
    active = False


_thread_run = _ThreadFlag()
_limiters: anyio.lowlevel.RunVar[dict[bool, anyio.CapacityLimiter]]
_limiters = anyio.lowlevel.RunVar("headstart_limiters")
_disowned = 0
_disowned_lock = threading.Lock()

THREADS = 40
"""Threads for sync tools an event loop: as many for launched calls as for real ones."""


def disowned_threads() -> int:
    """How many threads still run a sync tool whose call was cancelled.

    A thread cannot be killed. It is let go, and its held effects are denied.
    """
    return _disowned


def _limiter(*, speculative: bool) -> anyio.CapacityLimiter:
    try:
        limiters = _limiters.get()
    except LookupError:
        limiters = {kind: anyio.CapacityLimiter(THREADS) for kind in (False, True)}
        _limiters.set(limiters)
    return limiters[speculative]


class _ThreadCall:
    """One run of a sync function in a thread, which may be let go."""

    __slots__ = ("ended", "function", "let_go", "started")

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.started = self.ended = self.let_go = False

    def __call__(self) -> Any:
        global _disowned  # noqa: PLW0603 - a count of the process's threads
        with _disowned_lock:
            if self.let_go:
                return None
            self.started = True
        _thread_run.active = True
        try:
            return self.function()
        finally:
            _thread_run.active = False
            with _disowned_lock:
                self.ended = True
                if self.let_go:
                    _disowned -= 1

    def abandon(self) -> None:
        global _disowned  # noqa: PLW0603
        with _disowned_lock:
            self.let_go = True
            if self.started and not self.ended:
                _disowned += 1


def in_own_thread() -> bool:
    """Whether this is a thread of the limiters that sync tools run in."""
    return _thread_run.active


async def run_in_thread(function: Callable[[], Any], *, speculative: bool) -> Any:
    """Run `function` in a thread for sync tools, let go if this is cancelled."""
    call = _ThreadCall(function)
    try:
        result = await anyio.to_thread.run_sync(
            call, abandon_on_cancel=True, limiter=_limiter(speculative=speculative)
        )
    except anyio.get_cancelled_exc_class():
        call.abandon()
        raise
    # An async function in a decorator that does not say so returns its coroutine.
    return await result if inspect.isawaitable(result) else result
