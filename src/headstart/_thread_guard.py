"""Which call an effect belongs to, in threads that lost their context as well.

A context variable reaches `anyio.to_thread` and `asyncio.to_thread`, but neither a plain
`threading.Thread` nor an executor. There a seam would find no barrier and let the effect
pass: it would fail open. So importing `headstart.effects` replaces `Thread.start` and
`ThreadPoolExecutor.submit` by functions that do the same, and note in the thread which
unconfirmed call it works for. Outside of such a call they only look up one context
variable.

Not noted: worker threads of anyio, trio and the executors as such, which outlive the call
and get their contexts, or the note, with each piece of work; processes; threads that an
extension module starts, or that were there before and are handed work over a queue.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, NamedTuple

from ._barrier import BarrierState, current_barrier
from ._tools import current_context

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._barrier import WriteBarrier
    from ._tools import ToolContext

_KEEP_CONTEXTS = frozenset({"anyio", "asyncio", "concurrent", "trio"})


class UnconfirmedCall:
    """The call of a tool that runs here and whose effects may not happen (yet).

    Attributes:
        barrier: What its effects wait at: held, or denied.
        lost: Whether this thread was started without the call's context.
    """

    __slots__ = ("_call", "_context", "barrier", "lost")

    def __init__(
        self, barrier: WriteBarrier, context: ToolContext[Any] | None, *, lost: bool
    ) -> None:
        self.barrier = barrier
        self._call = barrier
        self._context = context
        self.lost = lost

    def waiting_at(self, barrier: WriteBarrier) -> UnconfirmedCall:
        """The same call, which waits for less than to be confirmed."""
        other = UnconfirmedCall(barrier, self._context, lost=self.lost)
        other._call = self._call
        return other

    @property
    def name(self) -> str:
        """The tool, or the barrier's name where there is no tool."""
        return self._context.call.name if self._context else self._call.name

    @property
    def call_id(self) -> str:
        """The call's identifier, or the barrier's name where there is no tool."""
        return self._context.call.id if self._context else self._call.name

    @property
    def discarded(self) -> bool:
        """Whether the call itself was given up, and no condition of it refused."""
        if self._context is not None:
            return self._context.discarded
        return self._call.effective_state is BarrierState.DENIED

    def discard(self, reason: str) -> bool:
        """Give the call up, if it is not settled. Says whether this did it."""
        if self._context is not None:
            return self._context.discard(reason)
        return self._call.deny(reason)


class _Note(NamedTuple):
    """What a thread without a context is told of the call that started it."""

    barrier: WriteBarrier
    context: ToolContext[Any] | None
    passing: bool


class _Noted(threading.local):
    note: _Note | None = None


_noted = _Noted()
_passing: ContextVar[bool] = ContextVar("headstart_passing", default=False)


def unconfirmed_call() -> UnconfirmedCall | None:
    """The call that runs here, while its effects may not happen; `None` elsewhere."""
    barrier = current_barrier()
    if barrier is not None:
        if barrier.effective_state is BarrierState.FLUSHED:
            return None
        return UnconfirmedCall(barrier, current_context(), lost=False)
    note = _noted.note
    if note is None or note.barrier.effective_state is BarrierState.FLUSHED:
        return None
    return UnconfirmedCall(note.barrier, note.context, lost=True)


class passing:  # noqa: N801 - reads as a statement, and is a class for its speed
    """Say that a seam let pass what a block does: for the tripwire."""

    __slots__ = ("_token",)

    def __enter__(self) -> None:
        self._token = _passing.set(True)

    def __exit__(self, *_: object) -> None:
        _passing.reset(self._token)


def is_passing() -> bool:
    """Whether a seam let pass what happens here."""
    if _passing.get():
        return True
    note = _noted.note
    return note is not None and current_barrier() is None and note.passing


def _note() -> _Note | None:
    barrier = current_barrier()
    if barrier is None:
        note = _noted.note
        return note and note._replace(passing=is_passing())
    if barrier.effective_state is BarrierState.FLUSHED:
        return None
    return _Note(barrier, current_context(), _passing.get())


def _run_noted(
    note: _Note, function: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    before, _noted.note = _noted.note, note
    try:
        return function(*args, **kwargs)
    finally:
        _noted.note = before


def _keeps_contexts(thread: threading.Thread) -> bool:
    function = getattr(thread, "_target", None) or type(thread).run
    return str(function.__module__).partition(".")[0] in _KEEP_CONTEXTS


_guarded = False
_lock = threading.Lock()


def guard_threads() -> None:
    """Note, in threads that are started from now on, which call they work for."""
    global _guarded  # noqa: PLW0603 - once a process
    with _lock:
        if _guarded:
            return
        _guarded = True
        start, submit = threading.Thread.start, ThreadPoolExecutor.submit

        @wraps(start)
        def noting_start(self: threading.Thread) -> None:
            note = _note()
            if note is not None and not _keeps_contexts(self):
                self.run = partial(_run_noted, note, self.run)
            start(self)

        @wraps(submit)
        def noting_submit(
            self: ThreadPoolExecutor,
            fn: Callable[..., Any],
            /,
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            note = _note()
            if note is not None:
                fn = partial(_run_noted, note, fn)
            return submit(self, fn, *args, **kwargs)

        threading.Thread.start = noting_start
        ThreadPoolExecutor.submit = noting_submit
