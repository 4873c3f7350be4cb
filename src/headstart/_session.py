"""A session: one agent run, and everything that is started ahead of it.

The engine is host-neutral. A host (`Agent`, or an adapter of somebody's framework) asks
it at two seams: `ask` where it would send a model request, and `call` where it would
run a tool. Both give what would have come without speculation, perhaps sooner.

Rules of this file:

1. Authoritative work runs in the host's own task, and never waits for a speculation,
   except for one that it adopts.
2. Every other task belongs to the session's task group, raises nothing into it, and
   ends with the session.
3. Between two awaits the state is whole: each method that is not async may assume it.
4. A speculated turn (`confirmed` is False) changes nothing that a confirmed one sees:
   its deltas are held, its launches are under its barrier, nobody learns from it.
5. Discarding goes from the root outward: denying a turn's barrier ends, by itself, all
   that stands on it; what follows is book-keeping.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic

import anyio
from typing_extensions import TypeVar

from ._barrier import WriteBarrier, running_in
from ._call_speculation import close_quietly, gated_by, in_this_loop
from ._calls import ToolCall, ToolResult
from ._errors import PredictorError, SpeculationError, UsageError, WriteDenied
from ._events import (
    CallEnded,
    CallPredicted,
    EarlyResultGiven,
    ModelAnswered,
    PredictorFailed,
    Recorder,
    SessionEnded,
    SessionStarted,
    Sink,
    ToolsEnded,
    TurnConfirmed,
    TurnDiscarded,
    TurnStarted,
)
from ._launches import LaunchPool, Proposal
from ._policy import LimitPolicy, Policy
from ._result_speculation import ResultSpeculator
from ._tools import Effect, InvalidArgumentsError, Tool, ToolContext
from ._turn import CallAssembler, Launch, Slot, Turn, touched
from .predictors import (
    Conversation,
    Learner,
    Prediction,
    Predictor,
    ResultPredictor,
)

if TYPE_CHECKING:
    from types import TracebackType

    from anyio.abc import TaskGroup

    from ._messages import (
        AskModel,
        DeltaReceiver,
        ModelDelta,
        ModelRequest,
        ModelResponse,
    )

Deps = TypeVar("Deps", default=Any)
Approve = Callable[[ToolCall, Any], Awaitable[bool]]

logger = logging.getLogger("headstart")
_numbers = itertools.count(1)

MAX_PREDICTIONS = 64
"""Predictions that are looked at, of one answer of one predictor."""
MAX_ATTEMPTS = 3
"""How often the turn after a confirmed one is run ahead, as early results change."""


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
        policy: Which guesses are launched; `LimitPolicy()` if not given.
        sink: Who is told what happened.
        approve: Decides each real call of a tool with `approval`: an async function of
            the call and `deps`. It is asked once a call, never for a guess.
        conditions: Barriers that must be open before any effect of this session: a
            guardrail that is still thinking, say.
        speculate: False runs everything as if there were no headstart, but for events.
        name: What it is called in events.

    Raises:
        UsageError: Two tools have the same name, or a tool needs an approval that
            nobody can give.
    """

    def __init__(
        self,
        tools: Iterable[Tool] = (),
        *,
        deps: Deps = None,
        predictors: Sequence[Predictor] = (),
        policy: Policy | None = None,
        sink: Sink | None = None,
        approve: Approve | None = None,
        conditions: Sequence[WriteBarrier] = (),
        speculate: bool = True,
        name: str | None = None,
    ) -> None:
        self.name = name or f"session-{next(_numbers)}"
        self.deps = deps
        self._tools = _by_name(tools)
        if approve is None:
            for tool in self._tools.values():
                if tool.approval:
                    msg = (
                        f"The tool {tool.name!r} needs approval: give the session an "
                        "'approve' function that decides each call."
                    )
                    raise UsageError(msg)
        self._predictors = tuple(predictors)
        self._policy = policy if policy is not None else LimitPolicy()
        self._sink = sink
        self._approve = approve
        self._conditions = tuple(conditions)
        self._speculate = speculate
        self._turns = itertools.count(1)
        self._spans = itertools.count(1)
        self._turn: Turn | None = None
        self._ask_model: AskModel | None = None
        self._task_group: TaskGroup | None = None
        self._predicting: dict[tuple[int, int], anyio.CancelScope] = {}
        self._wasted_tokens = 0
        self._closed = False

    def __repr__(self) -> str:
        return f"<Session {self.name!r}>"

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools, in the order given."""
        return tuple(self._tools.values())

    async def __aenter__(self) -> Session[Deps]:
        if self._task_group is not None:
            msg = f"The session {self.name!r} is entered once."
            raise UsageError(msg)
        self._recorder = Recorder(self.name, self._sink, anyio.current_time)
        self._root = WriteBarrier(name=self.name)
        self._root.flush()
        self._pool = LaunchPool(
            deps=self.deps,
            conditions=self._conditions,
            policy=self._policy,
            recorder=self._recorder,
            on_early_result=self._launch_knows,
            on_end=self._launch_ended,
        )
        self._task_group = anyio.create_task_group()
        await self._task_group.__aenter__()
        self._pool.task_group = self._task_group
        self._recorder.emit(SessionStarted)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        group, self._speculate = self._open_group(), False
        if self._turn is not None:
            self._discard_ahead(self._turn, "the session ended")
        self._pool.close()
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
        self._open_group()
        self._ask_model = ask_model
        previous = self._turn
        if previous is not None:
            self._stop_predicting(previous)
            child = previous.child
            if child is not None and child.request == request:
                response = await self._adopt_turn(previous, child, on_delta)
                if response is not None:
                    return response
            else:
                self._discard_ahead(previous, "the host asked for something else")
        turn = self._turn = self._new_turn(request, None)
        self._predict(turn)
        turn.relay.open(on_delta)
        try:
            response = await ask_model(request, self._receiver(turn))
        except BaseException:
            self._drop_sealed(turn, "the response broke off")
            raise
        turn.ended_at = anyio.current_time()
        self._complete(turn, response)
        self._answered(turn, response)
        return response

    def _new_turn(self, request: ModelRequest, parent: Turn | None) -> Turn:
        number = next(self._turns)
        above = self._root if parent is None else parent.barrier
        turn = Turn(
            number,
            request,
            above.child(name=f"{self.name} turn {number}"),
            parent=parent,
            started_at=anyio.current_time(),
        )
        if parent is None:
            turn.barrier.flush()
        self._recorder.emit(
            TurnStarted,
            turn=number,
            parent=None if parent is None else parent.id,
            speculative=parent is not None,
        )
        return turn

    def _receiver(self, turn: Turn) -> DeltaReceiver:
        assembler = CallAssembler()

        def receive(delta: ModelDelta) -> None:
            turn.relay.put(delta)
            if self._speculate and turn.response is None:
                sealed = assembler.put(delta)
                if sealed is not None:
                    self._start_sealed(turn, *sealed)

        return receive

    async def _adopt_turn(
        self, previous: Turn, child: Turn, on_delta: DeltaReceiver | None
    ) -> ModelResponse | None:
        """Confirm a turn that was run ahead; `None` if its run failed unseen."""
        ahead, asked_at = previous.ahead, anyio.current_time()
        if ahead is None:
            return None
        self._turn, previous.child, previous.ahead = child, None, None
        child.confirmed, child.parent = True, None
        _renumber(child)
        child.barrier.flush()
        child.relay.open(on_delta)
        try:
            response = await ahead.resolve(child.results)
        except Exception as error:
            self._turn = previous
            self._end_discarded(child, f"{type(error).__name__} was raised")
            if child.relay.delivered:
                raise
            return None
        except BaseException:
            ahead.cancel()
            raise
        if response is None:
            self._turn = previous
            self._end_discarded(child, "its run was cancelled")
            return None
        hidden_s = min(asked_at, child.ended_at) - child.started_at
        self._recorder.emit(TurnConfirmed, turn=child.id, hidden_s=hidden_s)
        self._answered(child, response)
        return response

    def _complete(self, turn: Turn, response: ModelResponse) -> None:
        """Take a turn's whole response: its calls claim what was launched for them."""
        turn.response = response
        for index, call in enumerate(response.tool_calls):
            slot = turn.sealed.pop(index, None)
            if slot is not None and slot.call != call:
                self._pool.distrust_stream(slot.call.name)
                if slot.launch is not None:
                    self._pool.discard(slot.launch, "the model changed a sealed call")
                slot = None
            turn.slots.append(slot or self._new_slot(turn, index, call))
        self._drop_sealed(turn, "the model withdrew a sealed call")
        if not self._speculate:
            return
        for slot in turn.slots:
            if slot.fingerprint is not None and slot.launch is None:
                slot.launch = self._pool.claim(turn, slot)
            if slot.launch is not None:
                if turn.conflicts(slot):
                    self._pool.discard(slot.launch, "its turn writes what it touches")
                elif slot.launch.speculator.early_result is not None:
                    slot.early = slot.launch.speculator.early_result
        self._discard_unasked(turn)
        for slot in turn.slots:
            if not turn.confirmed and slot.launch is None and not turn.conflicts(slot):
                self._start_slot(turn, slot)
            self._predict_result(turn, slot)

    def _answered(self, turn: Turn, response: ModelResponse) -> None:
        """A confirmed turn's response is at the host."""
        self._recorder.emit(
            ModelAnswered,
            turn=turn.id,
            duration_s=turn.ended_at - turn.started_at,
            tool_calls=len(response.tool_calls),
            input_tokens=response.usage.input_tokens,
            output_tokens=response.usage.output_tokens,
        )
        if not self._speculate:
            return
        self._discard_unasked(turn)
        conversation = self._conversation(turn.request.history)
        for predictor in self._predictors:
            if isinstance(predictor, Learner):
                try:
                    predictor.learn(conversation, response)
                except Exception as error:  # noqa: BLE001 - contained
                    self._predictor_failed(predictor, error)
        self._predict(turn)
        self._consider_run_ahead(turn)

    def _discard_unasked(self, turn: Turn) -> None:
        """Gated calls that the model did not ask for hold resources: let them go."""
        self._pool.discard_where(
            "the model did not ask for it",
            lambda launch: (
                launch.slot is None
                and launch.cause == "predicted"
                and launch.tool.effect is Effect.GATED
                and (launch.home is turn or (turn.confirmed and launch.home.confirmed))
            ),
        )

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
        """Run calls side by side; the results are in the order of the calls.

        What one raises cancels the others.
        """
        if len(calls) == 1:
            return [await self.call(calls[0])]
        results: dict[int, ToolResult] = {}

        async def run(index: int, call: ToolCall) -> None:
            results[index] = await self.call(call)

        try:
            async with anyio.create_task_group() as group:
                for index, call in enumerate(calls):
                    group.start_soon(run, index, call)
        except BaseExceptionGroup as errors:
            if len(errors.exceptions) == 1:
                raise errors.exceptions[0] from None
            raise
        return [results[index] for index in range(len(calls))]

    def _demand(self, call: ToolCall) -> Slot:
        turn = self._turn
        if turn is None:
            msg = "There is no response to call tools of: ask first."
            raise UsageError(msg)
        found: Slot | None = None
        for slot in turn.slots:
            if slot.demanded_at < 0 and slot.call == call:
                found = slot
                break
        if found is None:  # the host runs a call that the response does not have
            found = self._new_slot(turn, len(turn.slots), call)
            turn.slots.append(found)
        found.demanded_at = anyio.current_time()
        return found

    async def _perform(self, slot: Slot) -> ToolResult:
        tool, arguments = slot.tool, slot.arguments
        if slot.problem is not None or tool is None or arguments is None:
            return slot.problem or ToolResult("The call cannot run.", is_error=True)
        if tool.approval:
            approved = await self._is_approved(slot)
            slot.approval_s = anyio.current_time() - slot.demanded_at
            if not approved:
                if slot.launch is not None:
                    self._pool.discard(slot.launch, "it was not approved")
                return ToolResult("The call was not approved.", is_error=True)
        launch = slot.launch
        if launch is not None:
            refusal = self._pool.refuse_adoption(launch)
            if refusal is not None:
                self._pool.discard(launch, refusal)
                launch = slot.launch = None
        if slot.writes:
            for bereft in self._pool.begin_write(slot):
                self._lose_launch(bereft)
        try:
            if launch is not None:
                adopted = await self._join(slot, launch)
                if adopted is not None:
                    return adopted
            return await self._run(slot, tool, arguments)
        finally:
            if slot.writes:
                self._pool.end_write(slot)

    async def _is_approved(self, slot: Slot) -> bool:
        if self._approve is None:
            return False
        return await self._approve(slot.call, self.deps) is True

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
            result = _refusal(error.reason)
        except Exception as error:  # noqa: BLE001 - the tool's failure is its result
            result = ToolResult.from_error(error)
        except anyio.get_cancelled_exc_class():
            speculator.abort()
            raise
        else:
            result = _render(value)
        slot.duration = speculator.running_seconds(anyio.current_time())
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
            on_early_result=partial(self._knows_early, slot, source="tool"),
        )
        began_at = anyio.current_time()
        self._pool.note_real_call(tool, 1)
        try:
            if tool.effect is Effect.UNSAFE and self._conditions:
                await barrier.wait()  # it would not wait by itself
            with running_in(barrier):
                if tool.timeout is None:
                    value = await tool.invoke(context, arguments)
                else:
                    value = await _within(tool, barrier, context, arguments)
        except WriteDenied as error:
            return _refusal(error.reason)
        except Exception as error:  # noqa: BLE001 - the tool's failure is its result
            return ToolResult.from_error(error)
        else:
            return _render(value)
        finally:
            self._pool.note_real_call(tool, -1)
            slot.duration = anyio.current_time() - began_at

    def _finish(self, slot: Slot, result: ToolResult) -> None:
        turn = slot.turn
        slot.result = result
        slot.ended_at = now = anyio.current_time()
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
        if all(other.result is not None for other in turn.slots):
            self._tools_ended(turn)
        if self._speculate and turn is self._turn:
            self._predict(turn)
            self._consider_run_ahead(turn)
            self._restart_slots(turn)

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
            serial_s=max(slot.duration + slot.approval_s for slot in turn.slots),
            wait_s=last - first,
        )

    def _new_slot(self, turn: Turn, index: int, call: ToolCall) -> Slot:
        tool = self._tools.get(call.name)
        slot = Slot(index, turn, call, tool)
        if tool is None:
            known = ", ".join(self._tools) or "none"
            text = f"There is no tool {call.name!r}. The tools are: {known}."
            slot.problem = ToolResult(text, is_error=True)
            return slot
        try:
            slot.arguments = tool.validate(call.arguments)
        except InvalidArgumentsError as error:
            text = f"The arguments of {call.name!r} are invalid: {error}"
            slot.problem = ToolResult(text, is_error=True)
            return slot
        slot.writes = tool.write_keys(slot.arguments)
        if self._speculate:
            slot.touches = touched(tool, slot.arguments)
            slot.fingerprint = tool.fingerprint(call.arguments)
        return slot

    # Early starts and predictions

    def _start_sealed(self, turn: Turn, index: int, call: ToolCall) -> None:
        """A call of a turn is complete in the stream: launch it, or claim its launch."""
        tool = self._tools.get(call.name)
        if tool is None or not tool.launchable or index in turn.sealed:
            return
        slot = self._new_slot(turn, index, call)
        if slot.fingerprint is None:
            return
        turn.sealed[index] = slot
        slot.launch = self._pool.claim(turn, slot)
        if slot.launch is None:
            self._start_slot(turn, slot)

    def _start_slot(self, turn: Turn, slot: Slot) -> None:
        if slot.tool is None or not slot.tool.launchable or slot.problem is not None:
            return
        self._pool.start(
            Proposal(
                home=turn,
                tool=slot.tool,
                arguments=slot.call.arguments,
                cause="sealed",
                slot=slot,
            )
        )

    def _drop_sealed(self, turn: Turn, reason: str) -> None:
        dropped, turn.sealed = turn.sealed, {}
        for slot in dropped.values():
            if slot.launch is not None:
                self._pool.discard(slot.launch, reason)

    def _restart_slots(self, turn: Turn) -> None:
        """A call has ended: what it kept from starting, further ahead, may start."""
        self._pool.retry_waiting()
        child = turn.child
        while child is not None:
            for slot in child.slots:
                if slot.known is None and not child.conflicts(slot):
                    self._start_slot(child, slot)
            child = child.child

    def _conversation(self, messages: tuple[Any, ...]) -> Conversation:
        return Conversation(messages=messages, tools=self._tools, deps=self.deps)

    def _predict(self, turn: Turn) -> None:
        """Ask every predictor about a turn, and stop asking what it was asked before."""
        if not self._speculate or not self._predictors or self._task_group is None:
            return
        conversation = self._conversation(turn.conversation)
        for number, predictor in enumerate(self._predictors):
            earlier = self._predicting.pop((number, turn.id), None)
            if earlier is not None:
                earlier.cancel()
            scope = self._predicting[number, turn.id] = anyio.CancelScope()
            self._task_group.start_soon(
                self._ask_predictor, number, predictor, conversation, turn, scope
            )

    def _stop_predicting(self, turn: Turn) -> None:
        for number in range(len(self._predictors)):
            scope = self._predicting.pop((number, turn.id), None)
            if scope is not None:
                scope.cancel()

    async def _ask_predictor(
        self,
        number: int,
        predictor: Predictor,
        conversation: Conversation,
        turn: Turn,
        scope: anyio.CancelScope,
    ) -> None:
        try:
            with scope:
                predictions = await predictor.predict(conversation)
                if not scope.cancel_called:
                    self._propose(turn, predictor, predictions)
        except Exception as error:  # noqa: BLE001 - contained
            self._predictor_failed(predictor, error)
        finally:
            if self._predicting.get((number, turn.id)) is scope:
                del self._predicting[number, turn.id]

    def _predictor_failed(self, predictor: object, error: Exception) -> None:
        name = type(predictor).__name__
        logger.debug("The predictor %s failed.", name, exc_info=error)
        kind = type(error).__name__
        self._recorder.emit(PredictorFailed, predictor=name, error=kind)

    def _propose(
        self, turn: Turn, predictor: Predictor, predictions: Iterable[Prediction]
    ) -> None:
        seen: list[tuple[Tool, object]] = []
        for prediction in itertools.islice(predictions, MAX_PREDICTIONS):
            if not isinstance(prediction, Prediction):  # pyright: ignore[reportUnnecessaryIsInstance]
                kind = type(prediction).__name__
                msg = f"A predictor proposes Prediction objects, not {kind}."
                raise PredictorError(msg, reason="not a prediction")
            tool = self._tools.get(prediction.tool)
            if tool is None:
                msg = f"A predictor proposed {prediction.tool!r}, which is no tool."
                self._predictor_failed(predictor, PredictorError(msg))
                continue
            fingerprint = tool.fingerprint(prediction.arguments_text)
            if fingerprint is not None:
                wanted = 1 + sum(
                    tool is other and fingerprint == equal for other, equal in seen
                )
                seen.append((tool, fingerprint))
                if wanted <= self._count_coming(turn, tool, fingerprint):
                    continue
            span = f"{self.name}/{next(self._spans)}"
            origin = prediction.origin or type(predictor).__name__
            self._recorder.emit(
                CallPredicted,
                turn=turn.id,
                span=span,
                tool=tool.name,
                origin=origin,
                probability=prediction.probability,
            )
            proposal = Proposal(
                home=turn,
                tool=tool,
                arguments=prediction.arguments_text,
                cause="predicted",
                probability=prediction.probability,
                origin=origin,
                span=span,
            )
            if fingerprint is None:
                self._pool.refuse(proposal, "arguments")
            else:
                self._pool.start(proposal)

    def _count_coming(self, turn: Turn, tool: Tool, fingerprint: object) -> int:
        """Equal calls that are launched and unclaimed, or that the turn still runs."""
        return self._pool.count_equal(turn, tool, fingerprint) + sum(
            slot.tool is tool
            and slot.result is None
            and slot.fingerprint == fingerprint
            for slot in (*turn.slots, *turn.sealed.values())
        )

    # Early results and running ahead

    def _launch_knows(self, launch: Launch, result: ToolResult) -> None:
        if launch.slot is not None:
            self._knows_early(launch.slot, result, source="tool")

    def _launch_ended(self, launch: Launch) -> None:
        """An unadopted launch has its result: further ahead that is as good as one."""
        slot = launch.slot
        if slot is None or slot.turn.confirmed:
            return
        self._take_launched_result(slot, launch)

    def _take_launched_result(self, slot: Slot, launch: Launch) -> None:
        value = launch.speculator.value
        if launch.speculator.ended:
            self._knows_early(slot, _render(value), source="launch")

    def _knows_early(self, slot: Slot, result: ToolResult, *, source: str) -> None:
        if slot.result is not None or slot.early == result or not self._speculate:
            return
        slot.early = result
        self._recorder.emit(
            EarlyResultGiven,
            turn=slot.turn.id,
            call_id=slot.call.id,
            tool=slot.call.name,
            source=source,
        )
        self._consider_run_ahead(slot.turn)

    def _predict_result(self, turn: Turn, slot: Slot) -> None:
        launch = slot.launch
        if launch is not None and launch.speculator.ended and not turn.confirmed:
            self._take_launched_result(slot, launch)
        if slot.known is not None or slot.problem is not None:
            slot.early = slot.early or slot.problem
            return
        for predictor in self._predictors:
            if isinstance(predictor, ResultPredictor):
                conversation = self._conversation(turn.conversation)
                try:
                    result = predictor.predict_result(slot.call, conversation)
                except Exception as error:  # noqa: BLE001 - contained
                    self._predictor_failed(predictor, error)
                    continue
                if isinstance(result, ToolResult):
                    self._knows_early(slot, result, source=type(predictor).__name__)
                    return

    def _lose_launch(self, slot: Slot) -> None:
        """A slot's launch was discarded, so what it had stated counts no more."""
        slot.early = None
        if slot.turn.child is not None:
            self._discard_ahead(slot.turn, "an early result was withdrawn")

    def _consider_run_ahead(self, turn: Turn) -> None:
        """Run the next turn if every call of this one has an early or final result."""
        response, group = turn.response, self._task_group
        if not (self._speculate and response and turn.slots and group):
            return
        if turn.confirmed and turn is not self._turn:
            return
        results: list[ToolResult] = []
        for slot in turn.slots:
            if slot.known is None:
                return
            results.append(slot.known)
        if turn.child is not None:
            if turn.child.results == tuple(results):
                return
            self._discard_ahead(turn, "a result differs from the early one")
        if turn.confirmed and all(slot.result is not None for slot in turn.slots):
            return  # the host is about to ask
        if turn.attempts >= MAX_ATTEMPTS or self._refuses_run_ahead(turn):
            return
        turn.attempts += 1
        self._run_ahead(turn, response, tuple(results), group)

    def _refuses_run_ahead(self, turn: Turn) -> bool:
        try:
            refusal = self._policy.refuse_run_ahead(
                depth=turn.depth + 1, wasted_tokens=self._wasted_tokens
            )
        except Exception:
            logger.exception("The policy failed; the next turn is not run ahead.")
            return True
        return refusal is not None

    def _run_ahead(
        self,
        turn: Turn,
        response: ModelResponse,
        results: tuple[ToolResult, ...],
        group: TaskGroup,
    ) -> None:
        asked = turn.request.extended([response.message])
        calls = response.tool_calls
        child = self._new_turn(asked.answered(calls, results), turn)
        child.results = results
        turn.child = child
        turn.ahead = ResultSpeculator(asked, calls, partial(self._run_child, child))
        turn.ahead.start(group)
        for index, result in enumerate(results):
            turn.ahead.receive(index, result)
        self._predict(child)

    async def _run_child(self, child: Turn, request: ModelRequest) -> ModelResponse:
        if self._ask_model is None:
            msg = "There is no model to run ahead."
            raise SpeculationError(msg)
        response = await self._ask_model(request, self._receiver(child))
        child.ended_at = anyio.current_time()
        self._complete(child, response)
        if not child.confirmed:
            self._consider_run_ahead(child)
        return response

    def _discard_ahead(self, turn: Turn, reason: str) -> None:
        """Discard everything that was run ahead of `turn`."""
        child, turn.child = turn.child, None
        ahead, turn.ahead = turn.ahead, None
        if child is not None and ahead is not None:
            ahead.cancel()
            self._end_discarded(child, reason)

    def _end_discarded(self, turn: Turn, reason: str) -> None:
        turn.barrier.deny(reason)
        doomed: Turn | None = turn
        while doomed is not None:
            self._account_discarded(doomed, reason)
            doomed = doomed.child

    def _account_discarded(self, turn: Turn, reason: str) -> None:
        self._stop_predicting(turn)
        self._pool.forget_waiting(turn)
        self._pool.discard_where(reason, lambda launch: launch.home is turn)
        for slot in (*turn.slots, *turn.sealed.values()):
            if slot.launch is not None:
                self._pool.release(slot.launch)
                slot.launch = None
        if turn.ahead is not None:
            turn.ahead.cancel()
        tokens = 0
        if turn.response is not None:
            usage = turn.response.usage
            tokens = usage.input_tokens + usage.output_tokens
        self._wasted_tokens += tokens
        end = turn.ended_at if turn.ended_at >= 0 else anyio.current_time()
        self._recorder.emit(
            TurnDiscarded,
            turn=turn.id,
            reason=reason,
            wasted_s=end - turn.started_at,
            wasted_tokens=tokens,
        )


def _renumber(turn: Turn) -> None:
    depth = 0
    descendant: Turn | None = turn
    while descendant is not None:
        descendant.depth = depth
        descendant = descendant.child
        depth += 1


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


def _render(value: object) -> ToolResult:
    try:
        return ToolResult.from_value(value)
    except Exception as error:  # noqa: BLE001 - what a tool returns may be anything
        return ToolResult.from_error(error)


def _refusal(reason: str) -> ToolResult:
    return ToolResult(f"The call was refused: {reason}.", is_error=True)


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
