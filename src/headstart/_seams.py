"""Seams: the places where effects leave a program, made to wait at the current barrier.

Rules of this file:

1. No barrier, or an open one: the effect passes, at the price of a context variable.
2. Held: the effect waits. Denied: it raises.
3. What cannot wait gives its call up *before* it raises. A tool may swallow what it is
   told, and a call that went on without its effect must not be adopted.
4. A hold that ends before its verdict gives its call up, too: a tool may have a time
   limit of its own around its effect, and must not be adopted because holding took long.
5. A call that is confirmed cannot be given up. What still holds it is a condition, such
   as an approval, and it waits for that for as long as it takes.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from ._barrier import (
    BarrierState,
    tell_abandoned_wait,
    wait_patiently,
    wait_patiently_blocking,
)
from ._errors import DiscardedError, UsageError, WriteDenied
from ._thread_guard import UnconfirmedCall, guard_threads, unconfirmed_call
from ._threads import in_own_thread, run_in_thread
from ._tools import current_context

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._barrier import WriteBarrier

MAX_HOLD = 30.0
"""Seconds that a seam holds an effect, unless told: as long as `Tool.max_age`."""

FOREIGN_THREADS = 2
"""Threads that are held at once without being headstart's own: pools stay usable."""

_lock = threading.Lock()
_foreign_held = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SeamCounts:
    """What became of the effects that came to a seam before they were confirmed.

    Attributes:
        held: How many had to wait: the sum of the next five.
        holding: How many wait now.
        flushed: How many then happened.
        denied: How many were denied while they waited.
        expired: How many had waited for `max_hold`, so that their call was given up.
        cancelled: How many were cancelled while they waited.
        refused: How many could not wait, so that their call was given up; not in `held`.
    """

    held: int = 0
    holding: int = 0
    flushed: int = 0
    denied: int = 0
    expired: int = 0
    cancelled: int = 0
    refused: int = 0


class Seam:
    """A place where effects leave the program, each held at the current barrier.

    In a tool call that is not confirmed an effect waits here. It happens once the call
    is confirmed, and raises when the call is discarded. Anywhere else it passes.

    ```python
    mail = Seam("mail", max_hold=10)


    async def send(letter):
        async with mail.hold("a letter"):
            await post_office.send(letter)
    ```

    The modules of `headstart.effects` make them, and so may you.

    Args:
        name: What it is called in errors.
        max_hold: Seconds that an effect waits at most. Its call is then given up, and the
            real call runs as if nothing had been launched. `None` has no limit.
            A confirmed call that waits for a condition, such as an approval, has none.

    Raises:
        UsageError: `max_hold` is not more than 0.
    """

    def __init__(self, name: str, *, max_hold: float | None = MAX_HOLD) -> None:
        if max_hold is not None and not max_hold > 0:
            msg = (
                f"max_hold is seconds above 0, or None for no limit; not {max_hold!r}."
            )
            raise UsageError(msg)
        self.name = name
        self.max_hold = max_hold
        self._counts: dict[str, int] = dict.fromkeys(SeamCounts.__slots__, 0)
        guard_threads()

    def __repr__(self) -> str:
        return f"<Seam {self.name!r} holding {self._counts['holding']}>"

    @property
    def counts(self) -> SeamCounts:
        """What it held so far."""
        with _lock:
            return SeamCounts(**self._counts)

    def hold(self, effect: str = "an effect") -> _Hold:
        """Hold what an `async with` block does.

        Raises:
            WriteDenied: On entering: it must not happen.
        """
        return _Hold(self, effect)

    def hold_blocking(self, effect: str = "an effect") -> _BlockingHold:
        """Hold what a `with` block does, in a thread without an event loop.

        Raises:
            DiscardedError: On entering: its call was given up.
            WriteDenied: On entering: a condition refused it, or too many threads wait.
        """
        return _BlockingHold(self, effect)

    async def wait(
        self, effect: str = "an effect", *, at: WriteBarrier | None = None
    ) -> None:
        """Wait until an effect may happen here. At once, where nothing holds it.

        Cancelling cancels the wait, and gives the call up if it is not confirmed.

        Args:
            effect: What it is, for errors: no arguments and no secrets.
            at: A barrier to wait at in place of the call's own. For seams that let pass
                in turn what need not wait for the verdict. Whoever made it settles it,
                with the call's own at the latest.

        Raises:
            WriteDenied: It must not happen.
        """
        call = unconfirmed_call()
        if call is None:
            return
        if at is not None:
            call = call.waiting_at(at)
        if call.lost and call.barrier.effective_state is BarrierState.HELD:
            self._refuse(call, effect, _LOST)
        if call.barrier.effective_state is BarrierState.HELD:
            await self._hold(call, effect)
        else:
            await call.barrier.wait()

    def wait_blocking(
        self, effect: str = "an effect", *, at: WriteBarrier | None = None
    ) -> None:
        """Wait like `wait`, in a thread that runs no event loop.

        Raises:
            DiscardedError: Its call was given up. Not an `Exception`: a tool's own
                handler must not take it for a failure and go on to another effect.
            WriteDenied: It must not happen for another reason: a condition refused it, or
                it could not wait here, and so its call was given up now.
        """
        call = unconfirmed_call()
        if call is None:
            return
        if at is not None:
            call = call.waiting_at(at)
        if call.barrier.effective_state is BarrierState.HELD:
            if call.lost:
                self._refuse(call, effect, _LOST)
            if _in_event_loop():
                self._refuse(call, effect, _BLOCKS)
            own = in_own_thread()
            if not own and not _enter_foreign():
                self._refuse(call, effect, _CROWDED)
                own = True  # confirmed meanwhile: it waits as any real call would
            try:
                self._hold_blocking(call, effect)
            finally:
                if not own:
                    _leave_foreign()
        else:
            _raise_verdict(call)

    def refuse(self, effect: str, because: str) -> None:
        """Let an effect pass that cannot be held, or give up the call it belongs to.

        Args:
            effect: What it is, for errors.
            because: Why it cannot be held, as a clause.

        Raises:
            WriteDenied: It belongs to a call that is not confirmed.
            UsageError: It belongs to a confirmed call with an undecided condition.
        """
        call = unconfirmed_call()
        if call is None:
            return
        if call.barrier.effective_state is BarrierState.HELD:
            self._refuse(call, effect, because)
        if call.barrier.effective_state is BarrierState.HELD:
            msg = (
                f"{self.name}: {effect} cannot be held, as {because}, and a condition of "
                f"the call of {call.name!r} is undecided. Wait for the call's barrier "
                "before it."
            )
            raise UsageError(msg)
        if call.barrier.effective_state is BarrierState.DENIED:
            call.barrier.wait_blocking()  # raises

    def _refuse(self, call: UnconfirmedCall, effect: str, because: str) -> None:
        """Give the call up and raise; returns where the call is settled already."""
        reason = f"{effect} could not be held at the seam {self.name!r}, as {because}"
        if call.discard(reason):
            self._count("refused")
            raise _denial(call, reason)

    async def _hold(self, call: UnconfirmedCall, effect: str) -> None:
        self._count("held", "holding")
        outcome = "denied"
        try:
            with anyio.move_on_after(self.max_hold):
                await wait_patiently(call.barrier)
                outcome = "flushed"
                return
            if call.discard(self._too_long(effect)):
                outcome = "expired"
                raise _denial(call, self._too_long(effect))
            await wait_patiently(call.barrier)
            outcome = "flushed"
        except anyio.get_cancelled_exc_class():
            if call.barrier.effective_state is not BarrierState.DENIED:
                outcome = "cancelled"
                if not call.discard(f"{effect} no longer waited at {self.name!r}"):
                    tell_abandoned_wait()
            raise
        finally:
            self._end(outcome)

    def _hold_blocking(self, call: UnconfirmedCall, effect: str) -> None:
        self._count("held", "holding")
        outcome = "denied"
        try:
            try:
                _wait_for_verdict(call, self.max_hold)
            except TimeoutError:
                if call.discard(self._too_long(effect)):
                    outcome = "expired"
                    raise _denial(call, self._too_long(effect)) from None
                _wait_for_verdict(call, None)
            outcome = "flushed"
        finally:
            self._end(outcome)

    def _too_long(self, effect: str) -> str:
        return f"{effect} was held at the seam {self.name!r} for {self.max_hold} s"

    def _count(self, *kinds: str) -> None:
        with _lock:
            for kind in kinds:
                self._counts[kind] += 1

    def _end(self, outcome: str) -> None:
        with _lock:
            self._counts["holding"] -= 1
            self._counts[outcome] += 1


_LOST = (
    "its thread was started without the context of the call: use "
    "headstart.effects.run_in_thread, anyio.to_thread or asyncio.to_thread, or submit "
    "contextvars.copy_context().run"
)
_BLOCKS = "waiting would block the event loop: use the seam's async form there"
_CROWDED = (
    f"{FOREIGN_THREADS} threads of other pools are held already: use "
    "headstart.effects.run_in_thread"
)


def _denial(call: UnconfirmedCall, reason: str) -> WriteDenied:
    name = call.barrier.name
    msg = f"The call of {call.name!r} was given up: {reason}."
    return WriteDenied(msg, barrier=name, denied_by=name, reason=reason)


def _wait_for_verdict(call: UnconfirmedCall, timeout: float | None) -> None:
    try:
        wait_patiently_blocking(call.barrier, timeout)
    except WriteDenied as denial:
        if call.discarded:
            raise DiscardedError(str(denial)) from denial
        raise


def _raise_verdict(call: UnconfirmedCall) -> None:
    if _in_event_loop():
        call.barrier.wait_blocking()  # settled, so that it does not block
    else:
        _wait_for_verdict(call, None)


def _in_event_loop() -> bool:
    try:
        anyio.lowlevel.current_token()
    except RuntimeError:
        return False
    return True


def _enter_foreign() -> bool:
    global _foreign_held  # noqa: PLW0603 - a count of the process's threads
    with _lock:
        if _foreign_held >= FOREIGN_THREADS:
            return False
        _foreign_held += 1
        return True


def _leave_foreign() -> None:
    global _foreign_held  # noqa: PLW0603
    with _lock:
        _foreign_held -= 1


class _Hold:
    __slots__ = ("_effect", "_seam")

    def __init__(self, seam: Seam, effect: str) -> None:
        self._seam = seam
        self._effect = effect

    async def __aenter__(self) -> None:
        await self._seam.wait(self._effect)

    async def __aexit__(self, *_: object) -> None:
        pass


class _BlockingHold:
    __slots__ = ("_effect", "_seam")

    def __init__(self, seam: Seam, effect: str) -> None:
        self._seam = seam
        self._effect = effect

    def __enter__(self) -> None:
        self._seam.wait_blocking(self._effect)

    def __exit__(self, *_: object) -> None:
        pass


_plain: Seam | None = None


def _plain_seam() -> Seam:
    global _plain  # noqa: PLW0603 - made when it is first used, as seams guard threads
    if _plain is None:
        _plain = Seam("hold")
    return _plain


def hold(effect: str = "an effect") -> _Hold:
    """Hold what an `async with` block does until the running call is confirmed.

    ```python
    async with hold("a letter"):
        await post_office.send(letter)
    ```

    Outside of a tool call, and in one that is confirmed, it does nothing. It waits for
    30 seconds at most: make a `Seam` for another limit.

    Raises:
        WriteDenied: On entering: the call was discarded, or a condition refused it.
    """
    return _plain_seam().hold(effect)


def hold_blocking(effect: str = "an effect") -> _BlockingHold:
    """Hold what a `with` block does, in a thread without an event loop.

    Raises:
        DiscardedError: On entering: the call was discarded.
        WriteDenied: On entering: a condition refused it, or it could not wait here.
    """
    return _plain_seam().hold_blocking(effect)


async def run_in_own_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Run `function(*args)` in a thread of those that sync tools run in.

    There its effects may be held without taking threads that others need. Cancelling
    lets the thread go: it runs to its end, and its held effects are denied.
    """
    context = current_context()
    speculative = context is not None and context.speculative
    return await run_in_thread(lambda: function(*args), speculative=speculative)
