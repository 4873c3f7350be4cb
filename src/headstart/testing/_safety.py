"""Whether a call may be run ahead: it is, in every way that may end, and nothing shows.

Rules of this file:

1. First everything that must leave nothing: held, thrown away, refused, cancelled at each
   await. None of it changes the world, so that all of it begins with the same.
2. Then what must have its effect: confirmed after it was held, beside two plain runs.
3. Whoever finds nothing because there was nothing to find says so, and fails.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headstart._calls import ToolResult
from headstart._errors import UsageError
from headstart._tools import Effect, InvalidArgumentsError, Tool

from ._changes import Change, Reference, report
from ._observers import Observed, as_observers
from ._trials import Trial, Trials, UnsafeToolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_WHOLE = (
    "Make it one transaction or one request, or shield it: "
    "`with anyio.CancelScope(shield=True):`. A run that is cancelled halfway does the "
    "same without speculation: if that is meant, pass atomic=False."
)
_OTHER_ARGUMENTS = "Give arguments with which it succeeds and has its effect."
_RESET = "Pass reset=, a function that brings the world back to where it was before the test."


@dataclass(frozen=True, slots=True, kw_only=True)
class Safety:
    """What was checked of a call that turned out to be safe.

    Attributes:
        tool: The tool's name.
        held: Whether it waited at its barrier.
        cancelled: At how many awaits it was cancelled before it was confirmed.
        cancelled_after: At how many after that.
        effect: What the flushed run changed.
        notes: What could not be checked, and what else is worth knowing.
    """

    tool: str
    held: bool
    cancelled: int
    cancelled_after: int
    effect: tuple[Change, ...] = field(repr=False)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        held = "held, thrown away" if self.held else "thrown away"
        awaits = "1 await" if self.cancelled == 1 else f"{self.cancelled} awaits"
        cancelled = f"cancelled at {awaits} before the flush"
        if self.held:
            cancelled += f" and at {self.cancelled_after} after it"
        lines = [f"{self.tool!r} is safe: {held}, {cancelled}."]
        if self.effect:
            lines.append(report(self.effect))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


async def assert_speculation_safe(
    tool: Tool,
    arguments: Mapping[str, Any] | str | None = None,
    *,
    observe: Observed | Iterable[Observed],
    deps: Any = None,
    reset: Callable[[], Any] | None = None,
    atomic: bool = True,
    timeout: float = 10.0,  # noqa: ASYNC109 - of each part
    settle: float = 0.05,
    max_awaits: int = 100,
) -> Safety:
    """Fail if running a call ahead, in any of the ways that it may end, would show.

    ```python
    async def test_pausing_is_safe(engine, deps):
        await assert_speculation_safe(
            pause_incident, {"incident_id": 7}, deps=deps, observe=engine
        )
    ```

    The call is held and thrown away; confirmed with a condition that is refused; thrown
    away at every await; confirmed after it was held, and compared with two plain runs;
    and cancelled at every await after it was confirmed. It really runs each time.

    Args:
        tool: A tool that is `READ` or `GATED`.
        arguments: As a mapping or as JSON text: such that it succeeds.
        observe: What to look at: a SQLAlchemy engine, a `Path`, a redis client, an
            `HTTPSink`, a function that returns what to compare, an `Observer`, or a list.
        deps: What the tool receives.
        reset: Brings the world back to where it was, before each run; may be async. If
            it returns anything but `None`, that is the tool's `deps` from then on. Without
            it, runs are compared by what they add, remove and count up.
        atomic: A confirmed call that is cancelled leaves its whole effect or none.
        timeout: Seconds for each part of a run.
        settle: Seconds to wait before each look, for what comes late.
        max_awaits: At how many awaits the call is cancelled at most, before and after.

    Returns:
        What was checked.

    Raises:
        UnsafeToolError: An `AssertionError` that says what was seen when, and what to do.
        UsageError: There is nothing to check: the tool is `UNSAFE`, nothing is observed,
            or the arguments do not fit.

    Cancelling it cancels the call.
    """
    __tracebackhide__ = True
    check = Trials(
        tool=_check_tool(tool),
        arguments=_check_arguments(tool, arguments),
        observers=as_observers(observe),
        deps=deps,
        reset=reset,
        timeout=timeout,
        settle=settle,
    )
    try:
        return await _check_all(check, atomic=atomic, most=max_awaits)
    except UnsafeToolError as error:
        # What the report says is of use, and where in here it was found is not.
        raise error.with_traceback(None) from error.__cause__


def _check_tool(tool: Any) -> Tool:
    if not isinstance(tool, Tool):
        msg = f"Only a Tool can be speculated, not {type(tool).__name__}: use @tool."
        raise UsageError(msg)
    if not tool.launchable:
        msg = (
            f"The tool {tool.name!r} is UNSAFE: it never runs early, so there is nothing "
            "to check. Declare effect=Effect.READ or Effect.GATED if that is what it is."
        )
        raise UsageError(msg)
    return tool


def _check_arguments(tool: Tool, arguments: Mapping[str, Any] | str | None) -> str:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
    try:
        tool.validate(text)
    except InvalidArgumentsError as error:
        msg = f"The arguments do not fit the tool {tool.name!r}: {error}"
        raise UsageError(msg) from None
    return text


async def _check_all(check: Trials, *, atomic: bool, most: int) -> Safety:
    first = await check.run("thrown away", "discard")
    if not first.held and first.error is not None and not first.given_up:
        raise check.failure(
            first, f"it raised {_named(first.error)}.", _OTHER_ARGUMENTS
        )
    if first.given_up:
        check.notes.append(
            f"It was given up ({first.given_up}), so that it gains nothing from being "
            "launched."
        )
    elif not first.held and check.tool.effect is Effect.GATED:
        raise check.failure(
            first,
            "it is GATED, never waited at its barrier, and changed nothing, so that "
            "nothing was checked.",
            f"{_OTHER_ARGUMENTS} If it never changes anything, declare Effect.READ.",
        )
    if first.held:
        await check.run("refused", "refuse")
    cancelled = 0
    if check.tool.is_async:
        cancelled = await _cancel_each(check, first.steps, most)
    else:
        check.notes.append("It runs in a thread, which is not cancelled at its awaits.")
    effect, cancelled_after = (), 0
    if not first.given_up:
        effect, cancelled_after = await _check_effect(check, atomic=atomic, most=most)
    await check.finish()
    return Safety(
        tool=check.tool.name,
        held=first.held,
        cancelled=cancelled,
        cancelled_after=cancelled_after,
        effect=effect,
        notes=tuple(check.notes),
    )


async def _cancel_each(check: Trials, expected: int, most: int) -> int:
    """Throw the call away at each await before it is held or ends."""
    for step in range(1, most + 1):
        phase = f"cancelled at await {step}"
        run = await check.run(phase, "discard", cancel_at=step)
        if not run.interrupted:
            return step - 1
        if run.held:
            return step
    if expected > most:
        check.notes.append(f"It awaits more than {most} times: pass max_awaits=.")
    return most


async def _check_effect(
    check: Trials, *, atomic: bool, most: int
) -> tuple[tuple[Change, ...], int]:
    """Compare the call that is confirmed after it was held with a plain one."""
    flushed = await check.run("flushed", "flush")
    first = await check.run("plain", "plain")
    second = await check.run("plain", "plain")
    for run in (flushed, first, second):
        if run.error is not None:
            _refuse_error(check, run, flushed)
    if check.tool.effect is Effect.READ and first.changes and not flushed.held:
        raise check.failure(
            first,
            "it is READ, and changes something when it is not speculated.",
            "Declare Effect.GATED. A READ does the same, and nothing, in any case.",
            first.changes,
        )
    reference = Reference(first.changes, second.changes, exact=check.has_reset)
    different = reference.differences(flushed.changes)
    if different:
        raise check.failure(
            flushed,
            "confirmed after it was held, it does not do the same as a plain run: "
            f"{'; '.join(different[:3])}.",
            "Let it do the same whether or not ctx.speculative, and each effect once.",
            flushed.changes,
        )
    if not flushed.held:
        return flushed.changes, 0
    if not flushed.changes:
        raise check.failure(
            flushed,
            "it was confirmed, and nothing that is observed has changed, so that "
            "nothing was checked.",
            "Observe what it changes, and give arguments with which it does.",
        )
    if unrepeated := reference.unrepeated(flushed.changes):
        check.notes.append(
            f"Done again, it changes no more at {', '.join(unrepeated[:3])}, so that once "
            f"could not be told from twice there. {_RESET}"
        )
    if flushed.early is not None and flushed.early != _rendered(flushed.value):
        check.notes.append(
            "Its early result is not what it returned: what the model does with it is "
            "thrown away each time."
        )
    if not (check.tool.is_async and reference.tells and atomic):
        return flushed.changes, 0
    return flushed.changes, await _cancel_each_after(check, reference, most)


async def _cancel_each_after(check: Trials, reference: Reference, most: int) -> int:
    """Cancel the confirmed call at each await of its effect."""
    for step in range(1, most + 1):
        phase = f"cancelled at await {step} after the flush"
        run = await check.run(phase, "flush", cancel_after=step)
        if not run.interrupted:
            return step - 1
        if run.changes and (different := reference.differences(run.changes)):
            raise check.failure(
                run,
                f"half of its effect is left: {'; '.join(different[:3])}.",
                _WHOLE,
                run.changes,
            )
    check.notes.append(f"Its effect awaits more than {most} times: pass max_awaits=.")
    return most


def _refuse_error(check: Trials, run: Trial, flushed: Trial) -> None:
    assert run.error is not None  # noqa: S101 - for the type checker
    what = f"it raised {_named(run.error)}."
    if run is not flushed and not check.has_reset:
        raise check.failure(
            run, f"{what} It succeeded before: it can do this only once.", _RESET
        )
    raise check.failure(run, what, _OTHER_ARGUMENTS)


def _rendered(value: Any) -> ToolResult | None:
    try:
        return ToolResult.from_value(value)
    except ValueError:
        return None


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
