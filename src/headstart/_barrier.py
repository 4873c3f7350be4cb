"""The write barrier: what a side effect waits at until it is certain.

Rules of this file:

1. A barrier's own state leaves HELD once. Nothing else ever changes it.
2. The *effective* state is kept up to date on every barrier, by one walk over its
   descendants when a barrier settles; it is never computed by walking up. So a wait
   looks at one object, and a tree may be as deep or wide as memory allows.
3. All states change under `_lock`, which is held for the length of such a walk and
   never across a callback, a wake-up or an await.
4. `__del__` may run anywhere, even inside rule 3 in the same thread. It never waits
   for the lock: it leaves its barrier in `_dropped`, which whoever has the lock empties.
5. In doubt, deny: a dropped owner, a forked process, an exception on the way out.

Over 600 lines: whatever touches a state stands in one file with the lock of rule 3.
"""

from __future__ import annotations

import enum
import itertools
import operator
import os
import threading
from collections import deque
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.lowlevel

from ._errors import UsageError, WriteDenied

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType


class BarrierState(enum.Enum):
    """Where a barrier stands. `FLUSHED` and `DENIED` are final."""

    HELD = "held"
    FLUSHED = "flushed"
    DENIED = "denied"


HELD, FLUSHED, DENIED = BarrierState

_lock = threading.Lock()
_names = itertools.count(1)
_process = 0  # counts forks: a barrier belongs to the process that made it
_FORKED = "it belongs to the process that this one was forked from"


def _after_fork_in_child() -> None:
    global _process, _lock  # noqa: PLW0603 - the child has one thread and a stale lock
    _process += 1
    _lock = threading.Lock()
    _dropped.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class _Core:
    """What a barrier is; `WriteBarrier` is the handle of whoever owns it."""

    __slots__ = (
        "children",
        "denied_by",
        "effective",
        "name",
        "on_abandoned_wait",
        "on_first_wait",
        "own",
        "parents",
        "pending",
        "process",
        "reason",
        "waiters",
        "watchers",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.own = HELD
        self.effective = HELD
        self.reason = ""  # of its own denial
        self.denied_by: _Core | None = None  # the origin of an effective denial
        self.pending = 1  # itself, and its parents that are not effectively flushed
        # All four are made when something is put in, as most stay empty.
        # Those that were effectively held; none once it is not held itself, so that a
        # long chain of turns does not stay in memory.
        self.parents: list[_Core] | None = None
        # Those that are effectively held. Sets in order, so that who is told first is
        # the same in every run.
        self.children: dict[_Core, None] | None = None
        self.waiters: dict[_Waiter, None] | None = None
        self.watchers: list[_Waiter] | None = None  # who never leave before it settles
        self.on_first_wait: Callable[[], None] | None = None
        self.on_abandoned_wait: Callable[[], None] | None = None
        self.process = _process

    def state(self) -> BarrierState:
        return self.effective if self.process == _process else DENIED

    def add_parent(self, parent: _Core) -> list[_Waiter]:
        """One more condition (lock held). Returns whom to wake."""
        if self.effective is not HELD:
            return []
        if parent.effective is DENIED and parent.denied_by is not None:
            return _spread_denial(self, parent.denied_by)
        if parent.effective is HELD:
            if parent.children is None:
                parent.children = {}
            elif self in parent.children:
                return []
            parent.children[self] = None
            if self.parents is None:
                self.parents = []
            self.parents.append(parent)
            self.pending += 1
        return []

    def has_ancestor(self, sought: _Core) -> bool:
        seen: set[_Core] = set()
        stack: list[_Core] = [self]
        while stack:
            core = stack.pop()
            if core is sought:
                return True
            if core not in seen:
                seen.add(core)
                stack.extend(core.parents or ())
        return False

    def settle(self, state: BarrierState, reason: str) -> list[_Waiter] | None:
        """Settle its own state (lock held). `None` when it was settled before."""
        if self.own is not HELD:
            return None
        self.own = state
        self.reason = reason
        if self.effective is DENIED:
            return []
        return _spread_denial(self, self) if state is DENIED else _spread_flush(self)

    def error(self) -> WriteDenied:
        origin = self.denied_by or self
        reason = origin.reason if self.process == _process else _FORKED
        message = f"The write barrier {origin.name!r} was denied: {reason}."
        denial = WriteDenied(
            message, barrier=origin.name, denied_by=origin.name, reason=reason
        )
        if origin is self:
            return denial
        further = WriteDenied(
            f"The write barrier {self.name!r} was denied with its ancestor "
            f"{origin.name!r}: {reason}.",
            barrier=self.name,
            denied_by=origin.name,
            reason=reason,
        )
        further.__cause__ = denial
        return further


def _spread_denial(first: _Core, origin: _Core) -> list[_Waiter]:
    woken: list[_Waiter] = []
    stack = [first]
    while stack:
        core = stack.pop()
        if core.effective is DENIED:
            continue
        core.effective = DENIED
        core.denied_by = origin
        for parent in core.parents or ():
            if parent.children is not None:
                parent.children.pop(core, None)
        _empty(core, woken, stack)
    return woken


def _spread_flush(first: _Core) -> list[_Waiter]:
    woken: list[_Waiter] = []
    stack = [first]
    while stack:
        core = stack.pop()
        core.pending -= 1
        if core.pending or core.effective is not HELD:
            continue
        core.effective = FLUSHED
        _empty(core, woken, stack)
    return woken


def _empty(core: _Core, woken: list[_Waiter], stack: list[_Core]) -> None:
    core.parents = None
    if core.waiters is not None:
        woken.extend(core.waiters)
        core.waiters = None
    if core.watchers is not None:
        woken.extend(core.watchers)
        core.watchers = None
    if core.children is not None:
        stack.extend(core.children)
        core.children = None


class _LoopWaiter:
    """Calls a plain function in the event loop it was made in, from any thread."""

    __slots__ = ("function", "thread", "token")

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function
        self.thread = threading.get_ident()
        self.token = anyio.lowlevel.current_token()

    def wake(self, *, anywhere: bool = False) -> None:
        if not anywhere and threading.get_ident() == self.thread:
            try:
                self.function()
            except RuntimeError:  # this thread now runs another event loop
                pass
            else:
                return
        loop: Any = self.token.native_token
        call_soon = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
        try:
            call_soon(self.function)
        except RuntimeError:  # its event loop has ended, and the task with it
            return


blocked_threads: set[int] = set()
"""Threads that stand in `wait_blocking`, by identifier: only a verdict moves them."""


class _ThreadWaiter:
    """A thread that waits."""

    __slots__ = ("event", "thread")

    def __init__(self) -> None:
        self.event = threading.Event()
        self.thread = threading.get_ident()

    def wait(self, timeout: float | None) -> bool:
        blocked_threads.add(self.thread)
        if self.event.is_set():  # woken before it was in the set
            blocked_threads.discard(self.thread)
        try:
            return self.event.wait(timeout)
        finally:
            blocked_threads.discard(self.thread)

    def wake(self, *, anywhere: bool = False) -> None:
        self.event.set()
        blocked_threads.discard(self.thread)


class _DirectWaiter:
    """Calls a plain function in whichever thread settles the barrier."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def wake(self, *, anywhere: bool = False) -> None:
        self.function()


_Waiter = _LoopWaiter | _ThreadWaiter | _DirectWaiter
_dropped: deque[_Core] = deque()


def _deny_dropped() -> None:
    while _dropped and _lock.acquire(blocking=False):
        woken: list[_Waiter] | None = None
        try:
            if _dropped:
                woken = _dropped.popleft().settle(DENIED, "its owner dropped it")
        finally:
            _lock.release()
        for waiter in woken or ():
            waiter.wake(anywhere=True)


def _settle(core: _Core, state: BarrierState, reason: str) -> bool:
    if core.process != _process:
        return False
    with _lock:
        woken = core.settle(state, reason)
    for waiter in woken or ():
        waiter.wake()
    if _dropped:
        _deny_dropped()
    return woken is not None


def _enter(core: _Core, waiter: _Waiter) -> BarrierState:
    """Register `waiter` if the barrier is held. Returns the effective state."""
    if core.process != _process:
        return DENIED
    with _lock:
        state = core.effective
        if state is HELD:
            if core.waiters is None:
                core.waiters = {}
            core.waiters[waiter] = None
    if _dropped:
        _deny_dropped()
    return state


def _announce_wait(core: _Core) -> None:
    callback, core.on_first_wait = core.on_first_wait, None
    if callback is not None:
        callback()


def _leave(core: _Core, waiter: _Waiter) -> None:
    if core.effective is HELD:  # settled for good, it has let go of all waiters
        with _lock:
            if core.waiters is not None:
                core.waiters.pop(waiter, None)
    if _dropped:
        _deny_dropped()


def _announce_abandoned_wait(core: _Core) -> None:
    """Tell that the call whose barrier this is waits no longer, and saw no verdict."""
    callback, here = core.on_abandoned_wait, _current.get()
    if (
        callback is not None
        and core.state() is not DENIED
        and here is not None
        and _core_of(here) is core
    ):
        callback()


async def _wait(core: _Core, *, patient: bool = False) -> None:
    state = core.state()
    if state is HELD:
        settled = anyio.Event()
        waiter = _LoopWaiter(settled.set)
        if _enter(core, waiter) is HELD:
            try:
                _announce_wait(core)
                await settled.wait()
            except BaseException:
                # It may be flushed by now: after the cancellation, before this line.
                if not patient:
                    _announce_abandoned_wait(core)
                raise
            finally:
                _leave(core, waiter)
    elif state is FLUSHED:
        await anyio.lowlevel.checkpoint()
    if core.state() is not FLUSHED:
        raise core.error()


def _wait_blocking(
    core: _Core, timeout: float | None, *, patient: bool = False
) -> None:
    if core.state() is HELD:
        _refuse_in_event_loop()
        waiter = _ThreadWaiter()
        if _enter(core, waiter) is HELD:
            try:
                _announce_wait(core)
                settled = waiter.wait(timeout)
            finally:
                _leave(core, waiter)
            if not (settled or patient) and core.state() is HELD:
                _announce_abandoned_wait(core)
            if not settled and core.state() is HELD:
                msg = f"The write barrier {core.name!r} is still held."
                raise TimeoutError(msg)
    if core.state() is not FLUSHED:
        raise core.error()


class WriteBarrier:
    """A point that side effects wait at until they are confirmed or refused.

    A barrier is held until the first `flush` or `deny`, from any task or thread, settles
    it for good. With parents, it is only open when they are open as well, and denied
    as soon as one of them is denied. Parents are its conditions: the turn that it
    belongs to, a guardrail, a person's approval.

    ```python
    with WriteBarrier(name="refund") as barrier:
        ...  # elsewhere: await barrier.wait(), then the effect
        barrier.flush()
    ```

    It fails closed: as a context manager it denies on the way out when it is still
    held, and so does the loss of the last reference to the object (those who wait do
    not count) and a fork of the process, for the child. A child does not keep its
    parent's owner alive: keep the parent as long as somebody may flush it.

    Not to be used from signal handlers.

    Args:
        *parents: Barriers that must be open before this one opens.
        name: What it is called in errors and events; a number where it is not given.
    """

    __slots__ = ("__weakref__", "_core")

    def __init__(self, *parents: WriteBarrier, name: str | None = None) -> None:
        if hasattr(self, "_core"):
            msg = "A WriteBarrier is set up once; add conditions with require()."
            raise UsageError(msg)
        for parent in parents:
            _check_is_barrier(parent)
        self._core = _Core(name or f"barrier-{next(_names)}")
        if parents:
            self._require(parents)

    def __repr__(self) -> str:
        return f"<WriteBarrier {self.name!r} {self.effective_state.value}>"

    @property
    def name(self) -> str:
        """What it is called in errors and events."""
        return self._core.name

    @property
    def state(self) -> BarrierState:
        """Its own state, whatever its ancestors say."""
        core = self._core
        return core.own if core.process == _process else DENIED

    @property
    def effective_state(self) -> BarrierState:
        """Its state with its ancestors: what `wait` goes by."""
        return self._core.state()

    @property
    def reason(self) -> str | None:
        """Why it, or the ancestor that denies it, was denied; `None` when not denied."""
        core = self._core
        if core.process != _process:
            return _FORKED
        origin = core if core.own is DENIED else core.denied_by
        return origin.reason if origin is not None else None

    def child(self, *, name: str | None = None) -> WriteBarrier:
        """A new barrier that opens only after this one."""
        return WriteBarrier(self, name=name)

    def require(self, *parents: WriteBarrier) -> None:
        """Add conditions: barriers that must be open before this one opens.

        A barrier that is open already stays so, as its effects may have happened.

        Raises:
            UsageError: A condition depends on this barrier itself, so that it could
                never open, or it is no barrier.
        """
        for parent in parents:
            _check_is_barrier(parent)
        self._require(parents)

    def _require(self, parents: tuple[WriteBarrier, ...]) -> None:
        woken: list[_Waiter] = []
        with _lock:
            if self._core.children or self in parents:
                for parent in parents:
                    if parent._core.has_ancestor(self._core):
                        msg = (
                            f"The write barrier {self.name!r} cannot wait for "
                            f"{parent.name!r}, which waits for it: a cycle never opens."
                        )
                        raise UsageError(msg)
            for parent in parents:
                if parent._core.process != _process:
                    parent._core.effective = DENIED
                    parent._core.denied_by = parent._core
                    parent._core.reason = _FORKED
                woken.extend(self._core.add_parent(parent._core))
        for waiter in woken:
            waiter.wake()
        if _dropped:
            _deny_dropped()

    def flush(self) -> bool:
        """Confirm what waits here. Callable from any task or thread; never waits.

        Effects go ahead once every ancestor is flushed too.

        Returns:
            True when this call settled the barrier, False when it was settled before.
        """
        return _settle(self._core, FLUSHED, "")

    def deny(self, reason: str) -> bool:
        """Refuse what waits here, and at every descendant. Never waits.

        Args:
            reason: Why, in a few words: it stands in `WriteDenied`.

        Returns:
            True when this call settled the barrier, False when it was settled before.
        """
        return _settle(self._core, DENIED, reason)

    def wait(self) -> Coroutine[Any, Any, None]:
        """Wait until this barrier and all its ancestors are flushed.

        Cancelling the wait cancels the wait alone. An open barrier is still a
        checkpoint. The coroutine does not keep the barrier alive.

        Raises:
            WriteDenied: This barrier or an ancestor was denied; at once, even when
                others are still undecided.
        """
        return _wait(self._core)

    def wait_blocking(self, timeout: float | None = None) -> None:
        """Wait like `wait`, in a thread that runs no event loop.

        Args:
            timeout: Seconds to wait at most; `None` waits as long as it takes.

        Raises:
            WriteDenied: This barrier or an ancestor was denied.
            TimeoutError: Neither happened in time; the barrier is as it was.
            UsageError: It would block an event loop.
        """
        _wait_blocking(self._core, timeout)

    def on_settled(self, callback: Callable[[], None]) -> None:
        """Call `callback` in this event loop once the barrier is open or denied.

        It is called at once if that is so already, at once in the task that settles
        the barrier if that runs in this thread, and soon otherwise. It must not wait.

        Where no event loop runs, in a thread, it is called in the task or thread that
        settles the barrier, and possibly by the garbage collector: it takes no lock.
        """
        core = self._core
        if core.state() is HELD:
            watcher: _Waiter
            try:
                watcher = _LoopWaiter(callback)
            except RuntimeError:  # no event loop runs here
                watcher = _DirectWaiter(callback)
            with _lock:
                if core.effective is HELD:
                    if core.watchers is None:
                        core.watchers = []
                    core.watchers.append(watcher)
                    return
        callback()

    def on_first_wait(self, callback: Callable[[], None]) -> None:
        """Call `callback`, once, when somebody first has to wait here.

        It is called in the task or thread that waits, before it waits.
        """
        self._core.on_first_wait = callback

    def on_abandoned_wait(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the call that runs under this barrier gives up waiting.

        That is: a wait here ends in the call's own context (where `current_barrier()` is
        this one) by a time limit or a cancellation of the call's own, without having seen
        a verdict. The barrier may have been flushed at that very moment. It is called
        in the task or thread that waited.
        """
        self._core.on_abandoned_wait = callback

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.deny(
            "its scope was left" if kind is None else f"{kind.__name__} was raised"
        )

    def __reduce__(self) -> str | tuple[Any, ...]:
        msg = "A WriteBarrier cannot be copied or pickled: it has one owner."
        raise TypeError(msg)

    def __del__(self) -> None:
        core = getattr(self, "_core", None)
        if core is not None and core.own is HELD and core.process == _process:
            _dropped.append(core)
            _deny_dropped()


def _check_is_barrier(value: object) -> None:
    if not isinstance(value, WriteBarrier):
        msg = f"A barrier's parent is a WriteBarrier, not {type(value).__name__}."
        raise UsageError(msg)


def _refuse_in_event_loop() -> None:
    try:
        anyio.lowlevel.current_token()
    except RuntimeError:
        return
    msg = "wait_blocking() would block the event loop: await wait() there instead."
    raise UsageError(msg)


_core_of: Callable[[WriteBarrier], _Core] = operator.attrgetter("_core")
_current: ContextVar[WriteBarrier | None] = ContextVar(
    "headstart_barrier", default=None
)


class running_in:  # noqa: N801 - reads as a statement, and is a class for its speed
    """Make `barrier` the current one in a block."""

    __slots__ = ("_barrier", "_token")

    def __init__(self, barrier: WriteBarrier) -> None:
        self._barrier = barrier

    def __enter__(self) -> None:
        self._token = _current.set(self._barrier)

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)


async def wait_patiently(barrier: WriteBarrier) -> None:
    """Wait for a verdict, for somebody who gives the call up himself if he stops."""
    await _wait(_core_of(barrier), patient=True)


def tell_abandoned_wait() -> None:
    """Tell that the call that runs here waits no longer, and saw no verdict."""
    here = _current.get()
    if here is not None:
        _announce_abandoned_wait(_core_of(here))


def forget_waits(barrier: WriteBarrier) -> None:
    """Tell of no wait any more: the call that this was for has ended."""
    core = _core_of(barrier)
    core.on_first_wait = core.on_abandoned_wait = None


def wait_patiently_blocking(barrier: WriteBarrier, timeout: float | None) -> None:
    """Wait for a verdict in a thread, for who gives the call up himself if he stops."""
    _wait_blocking(_core_of(barrier), timeout, patient=True)


def current_barrier() -> WriteBarrier | None:
    """The barrier of the tool call that is running here; `None` outside one.

    It is a context variable: it reaches awaited code, tasks, `anyio.to_thread` and
    `asyncio.to_thread`, but neither a plain `threading.Thread` nor an executor.
    """
    return _current.get()
