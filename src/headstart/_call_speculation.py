"""One predicted call, run ahead of the model's decision under a barrier of its own.

Rules of this file:

1. Whatever happens to the call is a step of `_lifecycle`; nothing else keeps a state.
2. The barrier decides. Discarding is denying it; the task is cancelled *because* the
   barrier was denied, whoever denied it (this object, an ancestor, the garbage
   collector). Once it is flushed, `cancel` does nothing: a confirmed call is not lost.
3. The task never raises into its task group, interrupts of the process aside.
4. Cleaning up never relies on the task's own `finally`: a task that is cancelled
   before its first step runs none.
5. A call that has ended and is settled refers to nobody who refers to it, so that it is
   freed at once. Garbage that only the collector finds makes it look through everything
   that is alive, again and again, in all sessions.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeAlias, cast

import anyio
import anyio.from_thread
import anyio.lowlevel

from ._barrier import BarrierState, WriteBarrier, forget_waits, running_in
from ._calls import ToolCall, ToolResult
from ._clock import running_clock
from ._errors import SpeculationError, UsageError
from ._lifecycle import Lifecycle, SpeculationInput, SpeculationState
from ._tools import ArgumentsFingerprint, Tool, ToolContext, entered

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from anyio.abc import TaskGroup

_spans = itertools.count(1)
_UNUSABLE = frozenset({SpeculationState.DISCARDED, SpeculationState.CANCELLED})
_INTERRUPTS = (KeyboardInterrupt, SystemExit)


class ToolCallSpeculator:
    """A predicted call that runs before the model has asked for it.

    An async context manager that owns the call's task: entering launches the call,
    leaving discards it (its barrier is denied and its task cancelled), unless it was
    adopted. A call that was adopted and still runs is waited for; if that wait is
    cancelled, so is the call.

    ```python
    async with ToolCallSpeculator(get_incident, '{"incident_id": 7}') as guess:
        response = await ask_model(request)  # the tool already runs
        if guess.matches(response.tool_calls[0]):
            result = await guess.adopt()  # flush, then wait
    ```

    Args:
        tool: A tool that is `READ` or `GATED`.
        arguments: The predicted arguments as JSON text.
        parent: A barrier that must be open before the call's own opens.
        context: Where the call's `deps` come from, and its early result goes to.
        conditions: Barriers that must be open before the call's effects, besides its
            own: a guardrail that still thinks. Denying one refuses the effects, as
            it would those of a real call; it does not discard the call.
        deps: What the tool receives, where there is no `context`.
        fingerprint: `tool.fingerprint(arguments)`, where the caller has it already.

    Attributes:
        tool: The tool.
        arguments: The predicted arguments.
        barrier: What the call's effects wait at.
        span_id: Identifies this launch in events.
        early_result: What the tool stated before it ended, if it did.

    Raises:
        UsageError: The tool is `UNSAFE`, or no tool at all.
    """

    __slots__ = (
        "__weakref__",
        "_context",
        "_done",
        "_error",
        "_fingerprint",
        "_gate",
        "_lifecycle",
        "_loop",
        "_now",
        "_on_early_result",
        "_on_end",
        "_on_hold",
        "_scope",
        "_task_group",
        "_value",
        "arguments",
        "barrier",
        "confirmed_at",
        "early_result",
        "ended_at",
        "held_at",
        "released_at",
        "span_id",
        "started_at",
        "tool",
    )

    def __init__(
        self,
        tool: Tool,
        arguments: str,
        *,
        parent: WriteBarrier | None = None,
        context: ToolContext[Any] | None = None,
        conditions: Sequence[WriteBarrier] = (),
        deps: Any = None,
        fingerprint: ArgumentsFingerprint | None = None,
    ) -> None:
        if not isinstance(tool, Tool):  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = (
                f"A speculated call needs a Tool, not {type(tool).__name__}: use @tool."
            )
            raise UsageError(msg)
        if not tool.launchable:
            msg = (
                f"The tool {tool.name!r} is UNSAFE, so it never runs early. Declare "
                "effect=READ or effect=GATED if that is what it is."
            )
            raise UsageError(msg)
        self.tool = tool
        self.arguments = arguments
        self.span_id = f"call-{next(_spans)}"
        self.barrier = WriteBarrier(*((parent,) if parent else ()), name=self.span_id)
        self._gate = gated_by(self.barrier, conditions)
        self.early_result: ToolResult | None = None
        self.started_at = self.held_at = self.released_at = -1.0
        self.confirmed_at = self.ended_at = -1.0
        self._fingerprint = fingerprint or tool.fingerprint(arguments)
        self._lifecycle = Lifecycle()
        self._on_early_result = context.receive_early_result if context else None
        self._on_hold: Callable[[], None] | None = None
        self._on_end: Callable[[], None] | None = None
        self._context: ToolContext[Any] = ToolContext(
            deps=context.deps if context else deps,
            call=ToolCall(self.span_id, tool.name, arguments),
            barrier=self._gate,
            on_early_result=self._receive_early_result,
            own=self.barrier,
        )
        self._done: anyio.Event | None = None  # made by whoever first waits for the end
        self._value: Any = None
        self._error: BaseException | None = None
        self._task_group: TaskGroup | None = None
        # Of its task, until that has ended.
        self._scope: anyio.CancelScope | None = None

    def __repr__(self) -> str:
        return f"<ToolCallSpeculator {self.tool.name!r} {self.state.value}>"

    @property
    def state(self) -> SpeculationState:
        """Where the call stands."""
        return self._lifecycle.state

    @property
    def ended(self) -> bool:
        """Whether the tool has returned or raised."""
        return self.ended_at >= 0

    @property
    def held(self) -> bool:
        """Whether the tool waits, or has waited, at its barrier."""
        return self.held_at >= 0

    @property
    def error(self) -> BaseException | None:
        """What the tool raised."""
        return self._error

    @property
    def value(self) -> Any:
        """What the tool returned, once it has."""
        return self._value

    @property
    def fingerprint(self) -> ArgumentsFingerprint | None:
        """The meaning of the arguments; `None` when they mean nothing."""
        return self._fingerprint

    def launch(
        self,
        task_group: TaskGroup,
        *,
        on_hold: Callable[[], None] | None = None,
        on_end: Callable[[], None] | None = None,
        on_early_result: Callable[[ToolResult], None] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Start the call in a task group of the caller's, instead of `async with`.

        The caller then settles it: `adopt`, or `cancel` before the task group ends.

        Args:
            task_group: Who owns the task.
            on_hold: Called when the tool first waits at its barrier.
            on_end: Called when the tool has ended, in whatever way.
            on_early_result: Called with what the tool states before it has ended.
            clock: The event loop's, where the caller has it already.
        """
        self._refuse_second_launch()
        self._lifecycle.advance(SpeculationInput.ADMIT)
        self._lifecycle.advance(SpeculationInput.LAUNCH)
        self._on_hold = on_hold
        self._on_end = on_end
        self._on_early_result = on_early_result or self._on_early_result
        self._scope = scope = anyio.CancelScope()
        self._now = clock or running_clock()
        self.started_at = self._now()
        if self.tool.timeout is not None:
            scope.deadline = self.started_at + self.tool.timeout
        if self._gate is self.barrier:
            self._gate.on_settled(self._follow_gate)
        else:
            self.barrier.on_settled(self._obey_barrier)
            self._gate.on_settled(self._note_release)
        self._loop = threading.get_ident(), anyio.lowlevel.current_token()
        self._gate.on_first_wait(self._note_hold)
        self._gate.on_abandoned_wait(self._note_impatience)
        task_group.start_soon(self._run, scope, name=f"headstart {self.tool.name}")

    async def _run(self, scope: anyio.CancelScope) -> None:
        try:
            with scope:
                await anyio.lowlevel.checkpoint_if_cancelled()
                with running_in(self._gate), entered(self._context):
                    arguments = self.tool.validate(self.arguments)
                    self._value = await self.tool.invoke(self._context, arguments)
        except BaseException as error:
            if comes_from_outside(error):
                self.settle_lost()
                raise
            failure = as_failure(error, f"The tool {self.tool.name!r}")
            if failure is not error:
                self.cancel("its tool was cancelled")
            self._end(failure)
            return
        if scope.cancelled_caught and self._lifecycle.state not in _UNUSABLE:
            late = f"The tool {self.tool.name!r} took over {self.tool.timeout} s."
            self._end(TimeoutError(late))
        else:
            self._end(None)

    def settle_lost(self) -> None:
        """Settle a call whose task was cancelled from outside, perhaps before it ran."""
        if not self.ended:
            self.cancel("its host was cancelled")
            self.abort()
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        self._error = error
        self.ended_at = self._now()
        if self._lifecycle.state not in _UNUSABLE:
            failed = error is not None
            step = SpeculationInput.FAIL if failed else SpeculationInput.FINISH
            self._lifecycle.advance(step)
        if self._done is not None:
            self._done.set()
        if self._on_end is not None:
            self._on_end()
        # It may be kept for long, so it keeps as little as it can.
        self._scope = self._on_hold = self._on_end = self._on_early_result = None
        self._context.end()
        self._let_go()

    def _let_go(self) -> None:
        if self.ended and self._gate.effective_state is not BarrierState.HELD:
            forget_waits(self._gate)

    def _follow_gate(self) -> None:
        self._obey_barrier()
        self._note_release()

    def _obey_barrier(self) -> None:
        """Follow the barrier, whoever settled it, from wherever."""
        if self.barrier.effective_state is BarrierState.DENIED:
            if self._lifecycle.accepts(SpeculationInput.DISCARD):
                self._lifecycle.advance(SpeculationInput.DISCARD)
            elif self._lifecycle.accepts(SpeculationInput.CANCEL):
                self._lifecycle.advance(SpeculationInput.CANCEL)
            self._stop()
        elif self.barrier.state is BarrierState.FLUSHED and self._lifecycle.accepts(
            SpeculationInput.FLUSH
        ):
            self._lifecycle.advance(SpeculationInput.FLUSH)
            self.confirmed_at = self._now()

    def _note_hold(self) -> None:
        call_in_loop(self._loop, self._hold)

    def _note_impatience(self) -> None:
        # A tool with a time limit of its own around its wait would tell of that, and
        # the call be adopted without its effect, because holding it took long.
        if self.barrier.deny("its tool stopped waiting for the verdict"):
            return
        # Without conditions, it was flushed after the wait was cancelled: the tool
        # goes on as if it was held, so the call ends here and is made again.
        if self._gate is self.barrier:
            call_in_loop(self._loop, self.abort)

    def _hold(self) -> None:
        self.held_at = self._now()
        # A thread may tell it late: after the release, or after the end.
        if self._scope is not None and self.released_at < 0:
            self._scope.deadline = math.inf  # time that it is held is not its own
        if self._on_hold is not None:
            self._on_hold()

    def _note_release(self) -> None:
        self.released_at = self._now()
        timeout = self.tool.timeout
        if self._scope is not None and self.held_at >= 0 and timeout is not None:
            left = timeout - (self.held_at - self.started_at)
            self._scope.deadline = self.released_at + left
        self._let_go()

    def _receive_early_result(self, result: ToolResult) -> None:
        if self._lifecycle.state in _UNUSABLE:
            return
        self.early_result = result
        if self._on_early_result is not None:
            self._on_early_result(result)

    def matches(self, call: ToolCall) -> bool:
        """Whether `call` means the same as the predicted call.

        The names are equal, and so is the meaning of the arguments: the validated
        values where the tool knows its schema, the JSON values elsewhere. A plain
        comparison: it claims nothing about authority or freshness.
        """
        if call.name != self.tool.name or self._fingerprint is None:
            return False
        if call.arguments == self.arguments:
            return True
        return self._fingerprint == self.tool.fingerprint(call.arguments)

    def confirm(self, call: ToolCall | None = None) -> None:
        """Flush the barrier without waiting for the result: the call is real now.

        Args:
            call: The model's own call, for the tool's context.

        Raises:
            SpeculationError: It was discarded before.
        """
        self._require_launched()
        self._require_usable()
        if call is not None:
            self._context.call = call
        self.barrier.flush()
        self._require_usable()

    async def adopt(self) -> Any:
        """Flush the barrier, then wait for the result and return it.

        Cancelling this cancels the wait. The call goes on, as it is confirmed: it
        ends by itself, or when the context is left by a cancellation.

        Raises:
            SpeculationError: It was discarded before.
            BaseException: Whatever the tool raised.
        """
        self.confirm()
        return await self.wait()

    async def wait(self) -> Any:
        """Wait for the result without flushing; any number of tasks may.

        A gated call may wait at its barrier forever. Cancelling cancels the wait alone.

        Raises:
            SpeculationError: The call was discarded or cancelled, whatever the tool
                returned.
            BaseException: Whatever the tool raised.
        """
        self._require_launched()
        self._require_usable()
        await self.wait_until_ended()
        self._require_usable()
        if self._error is not None:
            raise self._error
        return self._value

    async def wait_until_ended(self) -> None:
        """Wait until the tool has returned, raised or unwound, whatever came of it."""
        self._require_launched()
        if self.ended:
            await anyio.lowlevel.checkpoint()
            return
        if self._done is None:
            self._done = anyio.Event()
        await self._done.wait()

    def cancel(self, reason: str = "it was cancelled") -> bool:
        """Discard the call: deny its barrier and cancel its task. Never waits.

        Nothing happens once its barrier was flushed, by whomever.

        Returns:
            Whether this discarded it.
        """
        if self._lifecycle.state is SpeculationState.PREDICTED:
            return self.barrier.deny(reason)
        if not self._lifecycle.accepts(SpeculationInput.DISCARD):
            return False
        self.barrier.deny(reason)
        self._obey_barrier()
        return self._lifecycle.state is SpeculationState.DISCARDED

    def abort(self) -> None:
        """Cancel the task of a confirmed call, because its host was cancelled."""
        if self._lifecycle.accepts(SpeculationInput.CANCEL):
            self._lifecycle.advance(SpeculationInput.CANCEL)
            self._stop()

    def _stop(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

    def running_seconds(self, now: float) -> float:
        """Seconds that the tool has run, without any that it was held.

        For a confirmed call that has ended: what it would have taken if it had only
        started when it was confirmed, with its conditions opening when they did.
        """
        if self.started_at < 0:
            return 0.0
        end = self.ended_at if self.ended else now
        if self.held_at < 0:
            return end - self.started_at
        prepared = self.held_at - self.started_at
        if self.confirmed_at < 0 or self.released_at < 0:
            return prepared
        released = max(self.released_at, self.held_at)
        return max(released - self.confirmed_at, prepared) + max(0.0, end - released)

    def _refuse_second_launch(self) -> None:
        if self.started_at >= 0:
            msg = "A call is launched once: make a new ToolCallSpeculator for another."
            raise UsageError(msg)

    def _require_launched(self) -> None:
        if self.started_at < 0:
            msg = "The call has not been launched: use it in 'async with'."
            raise UsageError(msg)

    def _require_usable(self) -> None:
        self._obey_barrier()
        if self._lifecycle.state in _UNUSABLE:
            reason = self.barrier.reason or "the host was cancelled"
            msg = f"The call of {self.tool.name!r} cannot be used: {reason}."
            raise SpeculationError(msg, reason=reason) from self._error

    async def __aenter__(self) -> Self:
        self._refuse_second_launch()
        group = anyio.create_task_group()
        await group.__aenter__()
        self._task_group = group
        self.launch(group)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        group, self._task_group = self._task_group, None
        if group is None:
            return
        if not self.cancel("its scope was left") and kind is not None:
            # With an exception on its way, a call that an ancestor still holds would be
            # waited for by the only one who could release it.
            held = self.barrier.effective_state is BarrierState.HELD
            if held or issubclass(kind, anyio.get_cancelled_exc_class()):
                self.abort()
        try:
            await close_quietly(group)
        finally:
            self.settle_lost()


def in_this_loop(function: Callable[[], None]) -> Callable[[], None]:
    """`function`, to be called from this event loop or from a worker thread of it."""
    here = threading.get_ident(), anyio.lowlevel.current_token()
    return partial(call_in_loop, here, function)


Loop: TypeAlias = tuple[int, anyio.lowlevel.EventLoopToken]
"""An event loop, by its thread and its token."""


def call_in_loop(loop: Loop, function: Callable[[], None]) -> None:
    """Call `function` here if `loop` runs here, or from any other thread in it."""
    thread, token = loop
    if threading.get_ident() == thread:
        function()
        return
    try:
        anyio.from_thread.run_sync(function, token=token)
    except RuntimeError:  # the loop has ended
        return


def gated_by(barrier: WriteBarrier, conditions: Sequence[WriteBarrier]) -> WriteBarrier:
    """What a call's effects wait at: its own barrier, and every condition."""
    if not conditions:
        return barrier
    gate = WriteBarrier(barrier, *conditions, name=barrier.name)
    gate.flush()
    return gate


def comes_from_outside(error: BaseException) -> bool:
    """Whether a task has to pass `error` on: an interrupt, or its host's cancellation.

    On asyncio a cancellation may also be the task's own affair: awaiting a future that
    somebody has cancelled raises it. Passed on, it would cancel the host. A host may
    also cancel the task itself, in no scope of anyio's, as `asyncio.wait_for` does.
    """
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return group.subgroup(_INTERRUPTS) is not None
    if isinstance(error, anyio.get_cancelled_exc_class()):
        return anyio.current_effective_deadline() == -math.inf or _is_cancelled()
    return isinstance(error, _INTERRUPTS)


def _is_cancelled() -> bool:
    """Whether the task itself is being cancelled, on asyncio."""
    if anyio.get_cancelled_exc_class() is not asyncio.CancelledError:
        return False
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def as_failure(error: BaseException, who: str) -> BaseException:
    """What is kept of an exception: itself, but never a cancellation.

    Raised again elsewhere, a cancellation would be taken for that task's own.
    """
    if not isinstance(error, anyio.get_cancelled_exc_class()):
        return error
    failure = RuntimeError(f"{who} ended by a cancellation of its own making.")
    failure.__cause__ = error
    return failure


async def close_quietly(group: TaskGroup) -> None:
    """Leave a task group whose tasks raise nothing but interrupts of the process.

    The host's own exception goes on past it unwrapped: it is never passed in.
    """
    only: BaseException | None = None
    try:
        await group.__aexit__(None, None, None)
    except BaseExceptionGroup as errors:
        only, *others = errors.exceptions
        if others:
            raise
    if only is not None:
        raise only  # out here, so that its own cause and context stay
