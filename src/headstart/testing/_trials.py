"""One call of a tool, run as speculation may run it, with a look before and after.

Rules of this file:

1. A run begins with a look at what the one before it left: an effect may come late, from
   a task or thread that was left alone.
2. A call is cancelled from another task, while it waits: that is how it happens.
3. However a run goes, nothing of it runs on when it is over, threads aside, which are
   waited for.
"""

from __future__ import annotations

import copy
import inspect
import logging
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import anyio
import anyio.lowlevel
import anyio.to_thread

from headstart._barrier import BarrierState, WriteBarrier
from headstart._call_speculation import ToolCallSpeculator
from headstart._errors import Pickling
from headstart._lifecycle import SpeculationState
from headstart._threads import disowned_threads, run_in_thread
from headstart._tools import Effect, Tool, current_context
from headstart._tripwire import Arming, Finding, is_own, place_in

from ._changes import Change, changes_between, observers_of, report
from ._observers import DatabaseObserver, take_snapshot
from ._stepping import Stepping, StubbornError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from headstart._calls import ToolResult

    from ._observers import Observer

logger = logging.getLogger("headstart")

STUBBORN = 10_000
"""Awaits that a call is given to tidy up, once it was cancelled."""

_OVER = frozenset({SpeculationState.DISCARDED, SpeculationState.CANCELLED})

Ending: TypeAlias = Literal["discard", "refuse", "flush", "plain"]

_BEHIND = (
    "Put it behind `await ctx.barrier.wait()`, or behind a seam of headstart.effects."
)
_ENDS_THERE = (
    "Let WriteDenied and the cancellation end the tool: catch neither around an effect."
)


class UnsafeToolError(Pickling, AssertionError):
    """A tool does what speculation would show.

    Attributes:
        tool: The tool's name.
        phase: How it was run then: `held`, `thrown away`, `refused`, `flushed`,
            `plain`, `cancelled at await 3`, `cancelled at await 2 after the flush`.
        observers: The names of the observers that saw it.
        changes: What they saw.
        findings: What the tripwire saw meanwhile: the lines that it may have come from.
        advice: What to do.
    """

    def __init__(
        self,
        what: str,
        *,
        tool: str = "",
        phase: str = "",
        changes: Iterable[Change] = (),
        findings: Iterable[Finding] = (),
        advice: str = "",
    ) -> None:
        self.tool = tool
        self.phase = phase
        self.changes = tuple(changes)
        self.observers = observers_of(self.changes)
        self.findings = tuple(findings)
        self.advice = advice
        parts = [f"The tool {tool!r} is not shown to be safe: {what}"]
        parts.append(f"phase:  {phase}")
        if self.changes:
            indented = report(self.changes).replace("\n", "\n  ")
            parts.append(f"seen:\n  {indented}")
            if self.findings:
                places = (f"{it.file}:{it.line} was {it.what}" for it in self.findings)
                parts.append("\n  ".join(("before it was confirmed:", *places)))
        parts.append(f"to do:  {advice}")
        super().__init__("\n".join(parts))


@dataclass(slots=True, kw_only=True)
class Trial:
    """One run of the call, and what became of it."""

    phase: str
    ending: Ending
    cancel_at: int = 0  # at which await it is thrown away
    cancel_after: int = 0  # at which await after the flush it is cancelled
    held: bool = False
    given_up: str = ""
    steps: int = 0
    steps_after: int = 0
    interrupted: bool = False
    swallowed: int = 0  # awaits since it was cancelled
    error: BaseException | None = None
    changes: tuple[Change, ...] = ()
    findings: list[Finding] = field(default_factory=list["Finding"])
    coroutine: Coroutine[Any, Any, Any] | None = None
    early: ToolResult | None = None
    value: Any = None

    def note(self, finding: Finding) -> None:
        """Take what the tripwire saw, with a line of the tool's if it has none."""
        place = None
        if self.coroutine is not None and not is_own(finding.file):
            place = place_in(self.coroutine)
        if place is not None:
            finding = replace(finding, file=place[0], line=place[1])
        if finding not in self.findings:
            self.findings.append(finding)


class Trials:
    """Runs the call, looks before and after, and fails with a report."""

    def __init__(
        self,
        *,
        tool: Tool,
        arguments: str,
        observers: tuple[Observer, ...],
        deps: Any,
        reset: Callable[[], Any] | None,
        timeout: float,
        settle: float,
    ) -> None:
        self.tool = tool
        self.has_reset = reset is not None
        self.notes: list[str] = []
        self._arguments = arguments
        self._observers = observers
        self._deps = deps
        self._reset = reset
        self._timeout = timeout
        self._settle = settle
        self._left: Any = None  # what the last run left
        self._last: Trial | None = None

    async def run(
        self,
        phase: str,
        ending: Ending,
        *,
        cancel_at: int = 0,
        cancel_after: int = 0,
    ) -> Trial:
        """Run the call once."""
        run = Trial(
            phase=phase, ending=ending, cancel_at=cancel_at, cancel_after=cancel_after
        )
        before = await self._begin(run)
        moved, disowned = anyio.Event(), disowned_threads()
        interruption = _Interruption()
        approval = WriteBarrier(name="approval")
        guess = ToolCallSpeculator(
            self._watched(run, lambda: guess, interruption),
            self._arguments,
            deps=self._deps,
            conditions=[approval] if ending == "refuse" else [],
        )

        def on_hold() -> None:
            run.held = True
            moved.set()

        failure: Exception | None = None
        with Arming(deny=False, on_finding=run.note):
            async with anyio.create_task_group() as group:
                guess.launch(group, on_hold=on_hold, on_end=moved.set)
                group.start_soon(interruption.carry_out, guess)
                try:
                    await self._drive(run, guess, approval, moved, before)
                except Exception as error:  # noqa: BLE001 - raised below, in no group
                    failure = error
                finally:
                    interruption.scope.cancel()
                    self._abandon(guess, approval)
        run.error, run.value, run.early = guess.error, guess.value, guess.early_result
        if failure is not None:
            raise failure
        await self._join(disowned)
        await self._settle_down()
        self._left = await self._snapshot(run)
        run.changes = changes_between(before, self._left)
        if isinstance(run.error, StubbornError):
            raise self.failure(
                run,
                "it swallows its cancellation and goes on for ever.",
                "Let the cancellation end the tool: catch it to tidy up, and raise it.",
            )
        if ending in ("discard", "refuse") and run.changes:
            raise self._seen(run, run.phase, run.changes)
        self._last = run
        return run

    async def _drive(
        self,
        run: Trial,
        guess: ToolCallSpeculator,
        approval: WriteBarrier,
        moved: anyio.Event,
        before: Any,
    ) -> None:
        """Let the call come to its barrier or end, look, and end it as planned."""
        if run.ending in ("refuse", "plain"):
            guess.confirm()
        await self._within(run, moved.wait, "reach its barrier, or end,")
        if run.held or guess.ended:
            await self._settle_down()
        if guess.barrier.state is BarrierState.DENIED and not run.interrupted:
            run.given_up = guess.barrier.reason or "for no reason"
        if run.held and not guess.ended and run.ending != "plain":
            await self._look(run, before, "held")
        if run.ending == "discard":
            guess.cancel("the guess was wrong")
        elif run.ending == "refuse":
            approval.deny("somebody said no")
        elif run.ending == "flush" and not run.given_up:
            guess.confirm()
        await self._within(run, guess.wait_until_ended, "end")

    async def _begin(self, run: Trial) -> Any:
        """Look for what came late, and bring the world back."""
        last = self._last
        if last is None or self._reset is not None:
            if last is not None:
                self._refuse_late(last, await self._snapshot(last))
            if self._reset is not None:
                deps = self._reset()
                if inspect.isawaitable(deps):
                    deps = await deps
                self._deps = self._deps if deps is None else deps
        before = await self._snapshot(run)
        if last is not None and self._reset is None:
            self._refuse_late(last, before)
        return before

    async def finish(self) -> None:
        """Look for what the last run did late."""
        if self._last is not None:
            await self._settle_down()
            self._refuse_late(self._last, await self._snapshot(self._last))

    def _refuse_late(self, last: Trial, now: Any) -> None:
        late = changes_between(self._left, now)
        if not late:
            return
        if last.ending in ("discard", "refuse"):
            raise self.failure(
                last,
                "something changed after it had ended.",
                f"It left a task or thread behind that goes on. {_BEHIND}",
                late,
            )
        raise self.failure(
            last,
            "its effect comes after it has returned, so that it cannot be compared.",
            "Let the tool wait for its effect, or give settle= more seconds.",
            late,
        )

    def _watched(
        self,
        run: Trial,
        guess: Callable[[], ToolCallSpeculator],
        interruption: _Interruption,
    ) -> Tool:
        """The tool, with each of its awaits and its hold noticed."""
        tool = self.tool

        def on_step() -> Callable[[], Any] | None:
            run.swallowed += guess().state in _OVER
            if guess().barrier.effective_state is not BarrierState.FLUSHED:
                run.steps += 1
                reached = run.steps == run.cancel_at
            else:
                run.steps_after += run.held
                reached = run.held and run.steps_after == run.cancel_after
            if not reached:
                return None
            run.interrupted = True
            return interruption.ask()

        async def function(*args: Any, **kwargs: Any) -> Any:
            if not tool.is_async:
                call = partial(tool.function, *args, **kwargs)
                context = current_context()
                speculative = context is not None and context.speculative
                return await run_in_thread(call, speculative=speculative)
            run.coroutine = coroutine = tool.function(*args, **kwargs)
            return await Stepping(coroutine, on_step, lambda: run.swallowed > STUBBORN)

        watched = copy.copy(tool)
        watched.function, watched.is_async = function, True
        return watched

    @staticmethod
    def _abandon(guess: ToolCallSpeculator, approval: WriteBarrier) -> None:
        approval.deny("the check is over")
        if not guess.ended:
            guess.cancel("the check is over")
            guess.abort()

    async def _within(self, run: Trial, wait: Callable[[], Any], what: str) -> None:
        with anyio.move_on_after(self._timeout):
            await wait()
            return
        logger.error(
            "The tool %r did not %s within %s s, and is cancelled now. If it shields "
            "itself from that, it is waited for.",
            self.tool.name,
            what,
            self._timeout,
        )
        raise self.failure(
            run,
            f"it did not {what} within {self._timeout} s.",
            "If it needs longer, pass timeout=. If it was cancelled, let it end then.",
        )

    async def _settle_down(self) -> None:
        await anyio.sleep(self._settle)
        await anyio.lowlevel.checkpoint()

    async def _join(self, disowned: int) -> None:
        """Wait, in real time, for the threads that the call has left alone."""
        end = time.perf_counter() + self._timeout
        while disowned_threads() > disowned and time.perf_counter() < end:
            await anyio.to_thread.run_sync(time.sleep, 0.001)

    async def _look(self, run: Trial, before: Any, phase: str) -> None:
        changes = changes_between(before, await self._snapshot(run))
        if changes:
            raise self._seen(run, phase, changes)

    async def _snapshot(self, run: Trial) -> dict[str, object]:
        with anyio.move_on_after(self._timeout):
            return await take_snapshot(self._observers)
        raise self.failure(
            run,
            f"what it changes could not be read within {self._timeout} s.",
            "It keeps a lock, or the pool's last connection, while it is held: take it "
            "behind the barrier. Or give the observer a connection of its own.",
        )

    def _seen(
        self,
        run: Trial,
        phase: str,
        changes: tuple[Change, ...],
    ) -> UnsafeToolError:
        """What is wrong when something changed that must not have."""
        reads = self.tool.effect is Effect.READ
        if phase == "held":
            what, advice = "it changed something before its barrier.", _BEHIND
        elif run.interrupted and not run.held:
            what, advice = "it changed something when it was cancelled.", _ENDS_THERE
        elif run.held:
            what = "it went on to its effect when it was told not to."
            advice = _ENDS_THERE
        elif reads:
            what = "it is READ, and leaves a change when it is thrown away."
            advice = f"Declare Effect.GATED. {_BEHIND}"
        else:
            what = "it never waited at its barrier, and changed something."
            advice = f"{_BEHIND} Where that cannot be, declare Effect.UNSAFE."
        for observer in self._observers:
            if (
                isinstance(observer, DatabaseObserver)
                and observer.shares_its_connection
            ):
                advice += (
                    f" ({observer.name!r} has one connection for all, and so it sees "
                    "what is not committed: let the test use a database in a file.)"
                )
        return self.failure(run, what, advice, changes, phase)

    def failure(
        self,
        run: Trial,
        what: str,
        advice: str,
        changes: Iterable[Change] = (),
        phase: str = "",
    ) -> UnsafeToolError:
        """Say what is wrong."""
        error = UnsafeToolError(
            what,
            tool=self.tool.name,
            phase=phase or run.phase,
            changes=changes,
            findings=run.findings,
            advice=advice,
        )
        error.__cause__ = run.error if isinstance(run.error, Exception) else None
        return error


class _Interruption:
    """Cancels the call from a task of its own, once it waits at the await in question."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self._asked = anyio.Event()
        self._done = anyio.Event()

    def ask(self) -> Callable[[], Any]:
        """Have it carried out; gives what the call waits for until it is.

        That is no place to be cancelled at: the await before it may be one that is
        shielded, as where a lock was taken, and its caller relies on that.
        """
        self._asked.set()
        return self._wait

    async def _wait(self) -> None:
        with anyio.CancelScope(shield=True):
            await self._done.wait()

    async def carry_out(self, guess: ToolCallSpeculator) -> None:
        """Throw the call away; if it is confirmed, cancel it as its host would."""
        with self.scope:
            await self._asked.wait()
            if not guess.cancel("the guess was wrong"):
                guess.abort()
            self._done.set()
