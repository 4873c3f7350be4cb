"""A session: one agent run, and everything that is started ahead of it.

The engine is host-neutral. A host (`Agent`, or an adapter of somebody's framework) asks
it at two seams: `ask` where it would send a model request, and `call` where it would
run a tool. Both give what would have come without speculation, perhaps sooner.

Rules of this file:

1. Authoritative work runs in the host's own task, and never waits for a speculation,
   except for one that it adopts.
2. Every other task belongs to the session's task group, raises nothing into it, and
   ends with the session.

Over 600 lines, a third of them the docstrings of the host's two seams.
"""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, cast

import anyio
from typing_extensions import TypeVar

from ._answer_stream import AnswerStream
from ._barrier import WriteBarrier, running_in
from ._branches import render
from ._call_speculation import (
    as_failure,
    close_quietly,
    comes_from_outside,
    gated_by,
    in_this_loop,
)
from ._calls import ToolCall, ToolResult
from ._clock import running_clock
from ._errors import DiscardedError, SpeculationError, UsageError, WriteDenied
from ._events import (
    CallEnded,
    ModelAnswered,
    Recorder,
    SessionEnded,
    SessionStarted,
    Sink,
    ToolsEnded,
    TurnConfirmed,
)
from ._policy import Experience, Policy, ValuePolicy
from ._tools import Effect, Tool, ToolContext, entered
from ._turns import TurnTree, renumber

if TYPE_CHECKING:
    from types import TracebackType

    from anyio.abc import TaskGroup

    from ._messages import (
        AskModel,
        DeltaReceiver,
        ModelRequest,
        ModelResponse,
    )
    from ._turn import Launch, Slot, Turn
    from .predictors import Predictor

Deps = TypeVar("Deps", default=Any)
Approve = Callable[[ToolCall, Any], Awaitable[bool]]
Permit = Callable[[ToolCall, Any], bool]

logger = logging.getLogger("headstart")


class Session(Generic[Deps]):
    """One agent run: the conversation with one user, and all that runs ahead of it.

    An async context manager. Leaving it, in whatever way, ends everything it started;
    an exception of the host goes on past it unchanged.

    ```python
    async with Session([get_incident], predictors=[rules], deps=deps) as session:
        response = await session.ask(request, model.respond)
        for call in response.tool_calls:
            result = await session.call(call)
    ```

    One session serves one run: `ask` is called by one task at a time, `call` by as
    many as there are calls. Reads that were launched and not asked for are kept, across
    turns and user messages, until a write overlaps them or they are too old.

    Args:
        tools: The tools that the model may call.
        deps: What tools and predictors receive: identity, database, clients. Nothing
            is ever shared between sessions.
        predictors: Who guesses calls.
        policy: Which guesses are launched; `ValuePolicy()` if not given.
        experience: What the policy goes by; what this session learns, if not given.
        sink: Who is told what happened.
        approve: Decides each real call of a tool with `approval`: an async function of
            the call and `deps`. It is asked once a call, never for a guess.
        permit: Says, for each real call that would adopt a launch, whether it may run
            now: a plain function of the call and `deps`, for permissions that may have
            gone since the launch. Where it does not return `True`, the launch is
            discarded and the call runs for real, so that the tool itself decides.
        conditions: Barriers that must be open before any effect of this session: a
            guardrail that is still thinking, say.
        ordered: Say so if the host runs the calls of a turn one after the other instead
            of side by side.
        speculate: False runs everything as if there were no headstart, but for events.
        foreign: Say so if the host itself tells the model of calls without a tool here,
            or whose arguments are invalid: nothing is run ahead on such calls then.
        name: What it is called in events.

    Raises:
        UsageError: Two tools have the same name, or a tool needs an approval that
            nobody can give.
    """

    def __init__(
        self,
        tools: Iterable[Tool] = (),
        *,
        deps: Deps | None = None,
        predictors: Sequence[Predictor] = (),
        policy: Policy | None = None,
        experience: Experience | None = None,
        sink: Sink | None = None,
        approve: Approve | None = None,
        permit: Permit | None = None,
        conditions: Sequence[WriteBarrier] = (),
        ordered: bool = False,
        speculate: bool = True,
        foreign: bool = False,
        name: str | None = None,
    ) -> None:
        self.name = name or f"session-{uuid.uuid4().hex[:12]}"
        self.deps = cast("Deps", deps)
        self._tools = _by_name(tools)
        self._approve = approve
        self._check_approvals(self._tools)
        self._predictors = tuple(predictors)
        self._policy = policy if policy is not None else ValuePolicy()
        self._experience = experience if experience is not None else Experience()
        self._sink = sink
        self._permit = permit
        self._conditions = tuple(conditions)
        self._ordered = ordered
        self._speculate = speculate
        self._foreign = foreign
        self._task_group: TaskGroup | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<Session {self.name!r}>"

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools, in the order given."""
        return tuple(self._tools.values())

    def use_tools(self, tools: Iterable[Tool]) -> None:
        """Replace the tools, for a host whose tools change between requests.

        Launches of a tool that is gone, or is another `Tool` of the same name now,
        are not used any more.

        Raises:
            UsageError: As `Session` itself does; the tools are as before then.
        """
        named = _by_name(tools)
        self._check_approvals(named)
        self._tools.clear()
        self._tools.update(named)
        if self._task_group is not None:
            for bereft in self._pool.keep_to(named):
                self._turns.lose_launch(bereft)

    def use_conditions(self, conditions: Iterable[WriteBarrier]) -> None:
        """Replace the barriers that must be open before any effect, from now on.

        For a host whose guardrails judge each user message anew. Gated calls that were
        launched under the old ones, and are not adopted, are discarded.
        """
        self._conditions = tuple(conditions)
        if self._task_group is not None:
            for bereft in self._pool.use_conditions(self._conditions):
                self._turns.lose_launch(bereft)

    def _check_approvals(self, tools: Mapping[str, Tool]) -> None:
        if self._approve is not None:
            return
        for tool in tools.values():
            if tool.approval:
                msg = (
                    f"The tool {tool.name!r} needs approval: give the session an "
                    "'approve' function that decides each call."
                )
                raise UsageError(msg)

    async def __aenter__(self) -> Session[Deps]:
        if self._task_group is not None:
            msg = f"The session {self.name!r} is entered once."
            raise UsageError(msg)
        self._now = running_clock()
        self._recorder = Recorder(self.name, self._sink, self._now)
        self._turns = TurnTree(
            tools=self._tools,
            deps=self.deps,
            conditions=self._conditions,
            predictors=self._predictors,
            policy=self._policy,
            experience=self._experience,
            recorder=self._recorder,
            clock=self._now,
            speculate=self._speculate,
            ordered=self._ordered,
            foreign=self._foreign,
        )
        self._pool = self._turns.pool
        self._task_group = anyio.create_task_group()
        await self._task_group.__aenter__()
        self._turns.open(self._task_group)
        self._recorder.emit(SessionStarted)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        group = self._open_group()
        self._turns.close()
        group.cancel_scope.cancel()
        try:
            await close_quietly(group)
        finally:
            self._closed = True
            self._recorder.emit(SessionEnded)

    def _open_group(self) -> TaskGroup:
        if self._task_group is None or self._closed:
            msg = f"The session {self.name!r} is not open: use it in 'async with'."
            raise UsageError(msg)
        return self._task_group

    # The model's seam

    async def ask(
        self,
        request: ModelRequest,
        ask_model: AskModel,
        on_delta: DeltaReceiver | None = None,
    ) -> ModelResponse:
        """Answer a model request of the host.

        If the very same request was run ahead, that run is adopted: what it has
        streamed so far is delivered at once, and the rest as it comes. Otherwise
        `ask_model` is called, in this task.

        Args:
            request: What the host would send.
            ask_model: Sends it, usually `Model.respond`. It is called for later turns
                too, to run them ahead.
            on_delta: Receives the pieces of the answer, in order, each once.

        Returns:
            The response. Its calls are what `call` is then called with.

        Raises:
            UsageError: The session is not open.
            BaseException: Whatever `ask_model` raised for this request. No call of an
                answer that broke off is run.

        Cancelling it ends the request, wherever it runs.
        """
        group = self._open_group()
        self._turns.ask_model = ask_model
        previous = self._turns.current
        if previous is not None:
            child = self._turns.find_ahead(previous, request)
            if child is not None:
                response = await self._adopt_turn(previous, child, on_delta)
                if response is not None:
                    return response
            else:
                self._turns.discard_ahead(previous, "the host asked for something else")
            previous.let_go()
        turn = self._turns.current = self._turns.new_turn(request, None)
        if self._turns.speculate:
            await self._turns.desk.ask_next(turn, group)
            self._turns.consider_run_beside(turn)
        turn.relay.open(on_delta)
        try:
            response = await ask_model(request, self._turns.receiver(turn))
        except BaseException as error:
            self._turns.note_model_failure(error)
            self._turns.calls.drop_sealed(turn, "the response broke off")
            self._turns.discard_ahead(turn, "the response broke off")
            raise
        turn.ended_at = self._now()
        self._turns.complete(turn, response)
        self._answered(turn, response)
        return response

    async def _adopt_turn(
        self, previous: Turn, child: Turn, on_delta: DeltaReceiver | None
    ) -> ModelResponse | None:
        """Confirm a turn that was run ahead; `None` if its run failed unseen."""
        run, asked_at = child.run, self._now()
        if run is None or run.error is not None:
            failure = "it" if run is None else type(run.error).__name__
            self._turns.discard_ahead(previous, f"{failure} was raised")
            return None
        previous.children.remove(child)
        self._turns.discard_ahead(previous, "another result came true")
        self._turns.current = child
        self._turns.desk.drop()
        child.confirmed, child.parent = True, None
        renumber(child)
        child.barrier.flush()
        child.relay.open(on_delta)
        self._turns.reconsider(child)
        try:
            response = await run.resolve(child.results)
        except Exception as error:
            self._turns.current = previous
            self._turns.end_discarded(child, f"{type(error).__name__} was raised")
            if child.relay.delivered:
                raise
            return None
        except BaseException:
            run.cancel()
            self._turns.calls.drop_sealed(child, "the response broke off")
            raise
        if response is None:
            self._turns.current = previous
            self._turns.end_discarded(child, "its run was cancelled")
            return None
        previous.let_go()
        hidden_s = min(asked_at, child.ended_at) - child.started_at
        self._recorder.emit(TurnConfirmed, turn=child.id, hidden_s=hidden_s)
        self._answered(child, response)
        return response

    def _answered(self, turn: Turn, response: ModelResponse) -> None:
        """A confirmed turn's response is at the host."""
        self._experience.note_seconds("", turn.ended_at - turn.started_at)
        self._recorder.emit(
            ModelAnswered,
            turn=turn.id,
            duration_s=turn.ended_at - turn.started_at,
            tool_calls=len(response.tool_calls),
            input_tokens=response.usage.input_tokens,
            output_tokens=response.usage.output_tokens,
        )
        if not self._turns.speculate:
            return
        self._turns.discard_unasked(turn)
        self._turns.desk.learn(turn, response)
        self._turns.desk.stop(turn)  # what it was asked ahead is answered
        self._turns.predict(turn)
        self._turns.consider_run_ahead(turn)

    def stream(self, request: ModelRequest, ask_model: AskModel) -> AnswerStream:
        """Like `ask`, for a host that reads the answer while it comes.

        ```python
        async with session.stream(request, model.respond) as answer:
            async for delta in answer:
                ...
        response = answer.response
        ```

        `ask_model` is called in a task of the session. Leaving the block before the
        pieces have ended ends the request: there is no answer then.
        """
        return AnswerStream(self, request, ask_model)

    def run_in_background(
        self, function: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Run what must not outlive the session; whatever it raises ends the session.

        Raises:
            UsageError: The session is not open.
        """
        self._open_group().start_soon(function, name="headstart background")

    def idle(self) -> None:
        """Ask the predictors again now: the user thinks, and there is time.

        They are asked by themselves when an answer is complete. This is for a host that
        has learned something since, or whose user takes long. Never waits.

        Raises:
            UsageError: The session is not open.
        """
        self._open_group()
        if self._turns.current is not None:
            self._turns.predict(self._turns.current)

    # The tools' seam

    async def call(self, call: ToolCall) -> ToolResult:
        """Run a call of the last response, or adopt the launch of it.

        Args:
            call: One of the calls that `ask` returned last. Equal calls are told apart
                by their order, where they have the same id.

        Returns:
            What the model is to be told: the tool's value as text, or its failure.

        Raises:
            UsageError: The session is not open, or nothing was asked yet.
            BaseException: What the tool raised that is no `Exception`.

        Cancelling it cancels the call, as it would without speculation.
        """
        self._open_group()
        slot = self._demand(call)
        result = await self._perform(slot)
        self._finish(slot, result)
        return result

    async def call_all(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """Run calls side by side, or in order where the session is `ordered`.

        The results are in the order of the calls. What one raises cancels the others.
        """
        if len(calls) == 1 or self._ordered:
            return [await self.call(call) for call in calls]
        results: dict[int, ToolResult] = {}

        async def run(index: int, call: ToolCall) -> None:
            results[index] = await self.call(call)

        only: BaseException | None = None
        try:
            async with anyio.create_task_group() as group:
                for index, call in enumerate(calls):
                    group.start_soon(run, index, call)
        except BaseExceptionGroup as errors:
            only, *others = errors.exceptions
            if others:
                raise
        if only is not None:
            raise only  # out here, so that its own cause and context stay
        return [results[index] for index in range(len(calls))]

    def _demand(self, call: ToolCall) -> Slot:
        turn = self._turns.current
        if turn is None:
            msg = "There is no response to call tools of: ask first."
            raise UsageError(msg)
        found: Slot | None = None
        for slot in turn.slots:
            if slot.demanded_at < 0 and slot.call == call:
                found = slot
                break
        if found is None:  # the host runs a call that the response does not have
            found = self._turns.calls.new_slot(turn, len(turn.slots), call)
            turn.slots.append(found)
        found.demanded_at = self._now()
        return found

    async def _perform(self, slot: Slot) -> ToolResult:
        tool, arguments = slot.tool, slot.arguments
        if slot.problem is not None or tool is None or arguments is None:
            return slot.problem or ToolResult("The call cannot run.", is_error=True)
        if tool.approval and not await self._is_approved(slot):
            if slot.launch is not None:
                self._pool.discard(slot.launch, "it was not approved")
            return ToolResult("The call was not approved.", is_error=True)
        shared = self._turns.calls.shared_result(slot)
        if shared is not None:
            if slot.launch is not None:
                self._pool.discard(slot.launch, "an equal call has its result already")
            return shared
        if slot.writes:
            for bereft in self._pool.begin_write(slot):
                self._turns.lose_launch(bereft)
        try:
            launch = self._adoptable(slot)
            if launch is not None:
                adopted = await self._join(slot, launch)
                if adopted is not None:
                    return adopted
            return await self._run(slot, tool, arguments)
        finally:
            if slot.writes:
                self._pool.end_write(slot)

    def _adoptable(self, slot: Slot) -> Launch | None:
        """The launch of a call, if it may be adopted now; else it is discarded."""
        launch = slot.launch
        if launch is None:
            return None
        refusal = self._pool.refuse_adoption(launch)
        if refusal is None and not self._is_permitted(slot.call):
            refusal = "it is not permitted now"
        if refusal is None:
            return launch
        self._pool.discard(launch, refusal)
        slot.launch = None
        return None

    def _is_permitted(self, call: ToolCall) -> bool:
        if self._permit is None:
            return True
        try:
            return self._permit(call, self.deps) is True
        except Exception:
            logger.exception("permit() failed; the call runs for real.")
            return False

    async def _is_approved(self, slot: Slot) -> bool:
        if self._turns.speculate:
            self._turns.calls.prepare(slot)
        approved = self._approve is not None and (
            await self._approve(slot.call, self.deps) is True
        )
        slot.approval_s = self._now() - slot.demanded_at
        return approved

    async def _join(self, slot: Slot, launch: Launch) -> ToolResult | None:
        """Adopt a launch and wait for it; `None` when it has to be run again."""
        speculator = launch.speculator
        self._pool.adopt(launch, slot)
        try:
            value = await speculator.wait()
        except SpeculationError as error:
            logger.debug("An adopted call is run again: %s", error.reason)
            slot.launch = None
            return None
        except WriteDenied as error:
            result = _refusal(error)
        except Exception as error:  # noqa: BLE001 - the tool's failure is its result
            result = ToolResult.from_error(error)
        except anyio.get_cancelled_exc_class():
            # As a call in this task would, it has unwound before the host goes on.
            speculator.abort()
            with anyio.CancelScope(shield=True):
                await speculator.wait_until_ended()
            raise
        else:
            result = render(value)
        slot.duration = speculator.running_seconds(self._now())
        return result

    async def _run(
        self, slot: Slot, tool: Tool, arguments: dict[str, object]
    ) -> ToolResult:
        """Run a call as it would run without speculation."""
        own = WriteBarrier(slot.turn.barrier, name=slot.call.id)
        own.flush()
        barrier = gated_by(own, self._conditions)
        context = ToolContext(
            deps=self.deps,
            call=slot.call,
            barrier=barrier,
            on_early_result=partial(self._turns.knows_early, slot, source="tool"),
            own=own,
        )
        slot.started = True
        began_at = self._now()
        self._pool.note_real_call(tool, 1)
        try:
            if tool.effect is Effect.UNSAFE and self._conditions:
                await barrier.wait()  # it would not wait by itself
            with running_in(barrier), entered(context):
                if tool.timeout is None:
                    value = await tool.invoke(context, arguments)
                else:
                    value = await _within(tool, barrier, context, arguments)
        except WriteDenied as error:
            return _refusal(error)
        except (Exception, DiscardedError) as error:  # noqa: BLE001 - its result
            return ToolResult.from_error(error)
        except anyio.get_cancelled_exc_class() as error:
            if comes_from_outside(error):
                raise
            failure = as_failure(error, f"The tool {tool.name!r}")
            return ToolResult.from_error(failure)
        else:
            return render(value)
        finally:
            self._pool.note_real_call(tool, -1)
            slot.duration = self._now() - began_at

    def _finish(self, slot: Slot, result: ToolResult) -> None:
        turn = slot.turn
        slot.result = result
        if slot.launch is not None:
            slot.launch.slot = None  # which ends a circle of references
        self._turns.judge_early(slot, result)
        if slot.tool is not None and slot.tool.deterministic:
            self._turns.calls.note_result(slot, result)
        if slot.duration:
            self._experience.note_seconds(slot.call.name, slot.duration)
        slot.ended_at = now = self._now()
        wait_s = now - slot.demanded_at
        self._recorder.emit(
            CallEnded,
            turn=turn.id,
            call_id=slot.call.id,
            tool=slot.call.name,
            duration_s=slot.duration + slot.approval_s,
            wait_s=wait_s,
            adopted=slot.launch is not None,
            is_error=result.is_error,
        )
        ended = all(other.result is not None for other in turn.slots)
        if ended:
            self._tools_ended(turn)
        if self._turns.speculate and turn is self._turns.current:
            self._turns.consider_run_ahead(turn)
            if not (ended and turn.children):  # else it was asked when that started
                self._turns.predict(turn)
            self._turns.restart_slots(turn)

    def _tools_ended(self, turn: Turn) -> None:
        if turn.tools_ended:
            return
        turn.tools_ended = True
        first = min(slot.demanded_at for slot in turn.slots)
        last = max(slot.ended_at for slot in turn.slots)
        self._recorder.emit(
            ToolsEnded,
            turn=turn.id,
            calls=len(turn.slots),
            serial_s=(sum if self._ordered else max)(
                slot.duration + slot.approval_s for slot in turn.slots
            ),
            wait_s=last - first,
        )


async def _within(
    tool: Tool,
    barrier: WriteBarrier,
    context: ToolContext[Any],
    arguments: dict[str, object],
) -> Any:
    """Run a call for its `timeout` at most; time that its effect is held is not counted."""
    began_at = anyio.current_time()
    timeout = tool.timeout or 0.0
    with anyio.CancelScope(deadline=began_at + timeout) as scope:
        held_at: list[float] = []

        def hold() -> None:
            held_at.append(anyio.current_time())
            scope.deadline = math.inf

        def release() -> None:
            if held_at:
                scope.deadline = anyio.current_time() + timeout - held_at[0] + began_at

        barrier.on_first_wait(in_this_loop(hold))
        barrier.on_settled(release)
        return await tool.invoke(context, arguments)
    if scope.cancelled_caught:
        msg = f"The tool {tool.name!r} took over {tool.timeout} s."
        raise TimeoutError(msg)
    return None


def _refusal(error: WriteDenied) -> ToolResult:
    text = f"The call was refused: {error.reason}."
    return ToolResult(text, is_error=True, error=error)


def _by_name(tools: Iterable[Tool]) -> dict[str, Tool]:
    named: dict[str, Tool] = {}
    for tool in tools:
        if not isinstance(tool, Tool):  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"A session's tools are Tool objects, not {type(tool).__name__}: use @tool."
            raise UsageError(msg)
        if tool.name in named:
            msg = f"Two tools are named {tool.name!r}: give one of them another name."
            raise UsageError(msg)
        named[tool.name] = tool
    return named
