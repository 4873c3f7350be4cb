"""The turns of a session: the confirmed one, and everything that is run ahead of it.

Rules of this file:

1. Nothing here waits, except for the task of a speculated turn, which waits for its
   model. Between two awaits the state is whole.
2. A speculated turn (`confirmed` is False) changes nothing that a confirmed one sees:
   its deltas are held, its launches are under its barrier, nobody learns from it.
3. Discarding goes from the root outward: denying a turn's barrier ends, by itself, all
   that stands on it; what follows is book-keeping.

Over 600 lines, because running ahead, running beside and discarding change the same few
fields of a turn, and a reader has to see them together.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from ._barrier import WriteBarrier
from ._calls import ToolCall, ToolResult, decode_arguments
from ._errors import SpeculationError
from ._events import EarlyResultGiven, Recorder, TurnDiscarded, TurnStarted
from ._launches import LaunchPool, Proposal
from ._lifecycle import SpeculationState
from ._messages import Message, TextDelta
from ._policy import REST_S, is_overload
from ._predicting import PredictorDesk
from ._result_speculation import ResultSpeculator
from ._tools import Effect, InvalidArgumentsError, Tool
from ._turn import CallAssembler, Forecast, Launch, Slot, Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from anyio.abc import TaskGroup

    from ._messages import (
        AskModel,
        DeltaReceiver,
        ModelDelta,
        ModelRequest,
        ModelResponse,
    )
    from ._policy import Experience, Policy
    from ._tools import ArgumentsFingerprint
    from .predictors import Predictor

logger = logging.getLogger("headstart")

PROBABLE = 0.5
"""A turn's response is expected to have the calls that are at least so probable."""
_ENDS = ".:;!?\n"
"""Predictors are asked again when the model has ended a sentence, or a part of one."""
MAX_SHARED = 256
"""Results of `deterministic` reads that a session keeps; the oldest go first."""
MAX_ATTEMPTS = 3
"""How often the turn after one is run ahead of it, as early results change."""


class TurnTree:
    """The confirmed turn of a session, and the speculated ones that stand on it.

    Args:
        tools: The session's tools by name.
        deps: What tools and predictors receive.
        conditions: What effects wait for, besides their own call.
        predictors: Who is asked.
        policy: Who admits.
        experience: What the policy goes by.
        recorder: Who is told.
        clock: The event loop's.
        speculate: Whether anything is started early at all.
        ordered: Whether the host runs the calls of a turn one after the other.

    Attributes:
        current: The last turn that the host asked for.
        pool: The session's launches.
        desk: Where predictors are asked.
        ask_model: How a model request is sent, as the host last did.
        task_group: Who owns the tasks; `None` when the session is not open.
    """

    def __init__(
        self,
        *,
        tools: Mapping[str, Tool],
        deps: Any,
        conditions: Sequence[WriteBarrier],
        predictors: Sequence[Predictor],
        policy: Policy,
        experience: Experience,
        recorder: Recorder,
        clock: Callable[[], float],
        speculate: bool,
        ordered: bool,
    ) -> None:
        self._tools = tools
        self._policy = policy
        self._recorder = recorder
        self._now = clock
        self.speculate = speculate
        self._ordered = ordered
        self._root = WriteBarrier(name=recorder.session)
        self._root.flush()
        self._numbers = itertools.count(1)
        self._wasted_tokens = 0
        self._shared: deque[tuple[Tool, ArgumentsFingerprint, ToolResult]]
        self._shared = deque(maxlen=MAX_SHARED)
        self._rests_until = -math.inf
        self.pool = LaunchPool(
            deps=deps,
            conditions=conditions,
            policy=policy,
            experience=experience,
            recorder=recorder,
            clock=clock,
            on_early_result=self._launch_knows,
            on_end=self._launch_ended,
        )
        self.desk = PredictorDesk(
            predictors,
            tools=tools,
            deps=deps,
            recorder=recorder,
            pool=self.pool,
            on_forecast=self.consider_run_beside,
        )
        self.current: Turn | None = None
        self.ask_model: AskModel | None = None
        self.task_group: TaskGroup | None = None

    def open(self, task_group: TaskGroup) -> None:
        """Run everything in `task_group` from now on."""
        self.task_group = self.pool.task_group = task_group

    def close(self) -> None:
        """Discard everything. Nothing is started afterwards."""
        self.speculate, self.task_group = False, None
        if self.current is not None:
            self.discard_ahead(self.current, "the session ended")
        self.pool.close()

    def new_turn(self, request: ModelRequest, parent: Turn | None) -> Turn:
        """A turn that begins now: the host's, or one ahead of `parent`."""
        number = next(self._numbers)
        above = self._root if parent is None else parent.barrier
        turn = Turn(
            number,
            request,
            above.child(name=f"{self._recorder.session} turn {number}"),
            parent=parent,
            started_at=self._now(),
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

    def receiver(self, turn: Turn) -> DeltaReceiver:
        """Where a turn's model puts its deltas: shown or held, and searched for calls."""
        assembler = CallAssembler()

        def receive(delta: ModelDelta) -> None:
            turn.relay.put(delta)
            if self.speculate and turn.response is None:
                if isinstance(delta, TextDelta):
                    self._hear(turn, delta.text)
                sealed = assembler.put(delta)
                if sealed is not None:
                    self._start_sealed(turn, *sealed)

        return receive

    def _hear(self, turn: Turn, text: str) -> None:
        """The model says something: that is another answer than calls alone, and news."""
        if turn.child is not None and text:
            self.discard_ahead(turn, "the answer is another")
        turn.partial += text
        if turn is self.current and any(mark in text for mark in _ENDS):
            self.predict(turn)

    def complete(self, turn: Turn, response: ModelResponse) -> None:
        """Take a turn's whole response: its calls claim what was launched for them."""
        turn.response = response
        for index, call in enumerate(response.tool_calls):
            slot = turn.sealed.pop(index, None)
            if slot is not None and slot.call != call:
                self.pool.distrust_stream(slot.call.name)
                if slot.launch is not None:
                    self.pool.discard(slot.launch, "the model changed a sealed call")
                slot = None
            turn.slots.append(slot or self.new_slot(turn, index, call))
        self.drop_sealed(turn, "the model withdrew a sealed call")
        if turn.child is not None:
            self._settle_beside(turn, response)
        if not self.speculate:
            return
        for slot in turn.slots:
            self._claim(turn, slot)
        self.discard_unasked(turn)
        for slot in turn.slots:
            if (
                not turn.confirmed
                and slot.launch is None
                and not turn.conflicts(slot, ordered=self._ordered)
            ):
                self._start_slot(turn, slot)
            self._predict_result(turn, slot)

    def _claim(self, turn: Turn, slot: Slot) -> None:
        if slot.launch is None and slot.problem is None:
            slot.launch = self.pool.claim(turn, slot)
        if slot.launch is None:
            return
        if turn.conflicts(slot, ordered=self._ordered):
            self.pool.discard(slot.launch, "its turn writes what it touches")
        else:
            slot.early = slot.launch.speculator.early_result

    def discard_unasked(self, turn: Turn) -> None:
        """Gated calls that the model did not ask for hold resources: let them go."""
        for launch in self.pool.unclaimed():
            if (
                launch.cause == "predicted"
                and launch.tool.effect is Effect.GATED
                and (launch.home is turn or (turn.confirmed and launch.home.confirmed))
            ):
                self.desk.decline(turn, launch)
                self.pool.discard(launch, "the model did not ask for it")

    def new_slot(self, turn: Turn, index: int, call: ToolCall) -> Slot:
        """A call of a turn, with why it cannot run where it cannot."""
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
        return slot

    def _start_sealed(self, turn: Turn, index: int, call: ToolCall) -> None:
        """A call of a turn is complete in the stream: launch it, or claim its launch."""
        tool = self._tools.get(call.name)
        if tool is None or not tool.launchable or index in turn.sealed:
            return
        slot = self.new_slot(turn, index, call)
        if slot.fingerprint is None:
            return
        turn.sealed[index] = slot
        slot.launch = self.pool.claim(turn, slot)
        if slot.launch is None:
            self._start_slot(turn, slot)

    def _start_slot(self, turn: Turn, slot: Slot) -> None:
        if slot.tool is None or not slot.tool.launchable or slot.problem is not None:
            return
        self.pool.start(
            Proposal(
                home=turn,
                tool=slot.tool,
                arguments=slot.call.arguments,
                cause="sealed",
                slot=slot,
                fingerprint=slot.fingerprint,
            )
        )

    def shared_result(self, slot: Slot) -> ToolResult | None:
        """The result of an earlier equal call, where the tool is `deterministic`."""
        if slot.tool is None or not slot.tool.deterministic:
            return None
        for tool, fingerprint, result in self._shared:
            if tool is slot.tool and fingerprint == slot.fingerprint:
                return result
        return None

    def note_result(self, slot: Slot, result: ToolResult) -> None:
        """Keep the result of a `deterministic` read, for equal calls to come."""
        tool, fingerprint = slot.tool, slot.fingerprint
        if tool and fingerprint and not result.is_error and not slot.problem:
            self._shared.append((tool, fingerprint, result))

    def prepare(self, slot: Slot) -> None:
        """Let a gated call go up to its barrier while somebody decides about it."""
        if (
            self.speculate
            and slot.launch is None
            and slot.tool is not None
            and slot.tool.effect is Effect.GATED
            and not slot.turn.conflicts(slot, ordered=self._ordered)
        ):
            self._start_slot(slot.turn, slot)

    def drop_sealed(self, turn: Turn, reason: str) -> None:
        """Discard calls that were started from a stream and are no calls after all."""
        dropped, turn.sealed = turn.sealed, {}
        for slot in dropped.values():
            if slot.launch is not None:
                self.pool.discard(slot.launch, reason)

    def restart_slots(self, turn: Turn) -> None:
        """Launch again: a call has ended: what it kept from starting, further ahead, may start."""
        self.pool.retry_waiting()
        child = turn.child
        while child is not None:
            for slot in child.slots:
                if slot.known is None and not child.conflicts(
                    slot, ordered=self._ordered
                ):
                    if slot.launch is None:
                        slot.launch = self.pool.claim(child, slot)
                    if slot.launch is None:
                        self._start_slot(child, slot)
                    else:
                        self._take_launched_result(slot, slot.launch)
            child = child.child

    def predict(self, turn: Turn) -> None:
        """Ask the predictors about a turn as it stands now."""
        if self.speculate and self.task_group is not None:
            self.desk.ask(turn, self.task_group)

    def _launch_knows(self, launch: Launch, result: ToolResult) -> None:
        if launch.slot is not None:
            self.knows_early(launch.slot, result, source="tool")
        else:
            self.consider_run_beside(launch.home)

    def _launch_ended(self, launch: Launch) -> None:
        """An unadopted launch has its result: further ahead that is as good as one."""
        slot = launch.slot
        if slot is None:
            current = self.current or launch.home
            self.consider_run_beside(current)
            if current is not launch.home:
                self.consider_run_beside(launch.home)
        elif not slot.turn.confirmed:
            self._take_launched_result(slot, launch)

    def _take_launched_result(self, slot: Slot, launch: Launch) -> None:
        value = launch.speculator.value
        if launch.speculator.ended:
            self.knows_early(slot, render(value), source="launch")

    def knows_early(self, slot: Slot, result: ToolResult, *, source: str) -> None:
        """Take an early result of a call."""
        if slot.result is not None or slot.early == result or not self.speculate:
            return
        slot.early = result
        self._recorder.emit(
            EarlyResultGiven,
            turn=slot.turn.id,
            call_id=slot.call.id,
            tool=slot.call.name,
            source=source,
        )
        self.consider_run_ahead(slot.turn)

    def _predict_result(self, turn: Turn, slot: Slot) -> None:
        launch = slot.launch
        if launch is not None and launch.speculator.ended and not turn.confirmed:
            self._take_launched_result(slot, launch)
        if slot.known is not None or slot.problem is not None:
            slot.early = slot.early or slot.problem
            return
        shared = self.shared_result(slot)
        if shared is not None:
            self.knows_early(slot, shared, source="memory")
            return
        stated = self.desk.state_results(slot.call, turn)
        if stated is not None:
            results, source = stated
            self.knows_early(slot, results[0].result, source=source)

    def lose_launch(self, slot: Slot) -> None:
        """A slot's launch was discarded, so what it had stated counts no more."""
        slot.early = None
        if slot.turn.child is not None:
            self.discard_ahead(slot.turn, "an early result was withdrawn")

    def consider_run_ahead(self, turn: Turn) -> None:
        """Run the next turn if every call of this one has an early or final result."""
        response, group = turn.response, self.task_group
        if not (self.speculate and response and turn.slots and group):
            return
        if turn.confirmed and turn is not self.current:
            return
        results: list[ToolResult] = []
        for slot in turn.slots:
            if slot.known is None:
                return
            results.append(slot.known)
        if turn.child is not None:
            if turn.child.results == tuple(results):
                return
            self.discard_ahead(turn, "a result differs from the early one")
        if turn.confirmed and all(slot.result is not None for slot in turn.slots):
            return  # the host is about to ask
        if turn.attempts >= MAX_ATTEMPTS or self._refuses_run_ahead(turn):
            return
        turn.attempts += 1
        self._run_ahead(turn, response.message, tuple(results), group)

    def consider_run_beside(self, turn: Turn) -> None:
        """Send the request that would follow, beside a turn's running one.

        If the calls that the turn's response is expected to ask for all have a result,
        and nothing else, the request after it is known. It counts only if the response
        is exactly that; then it is a turn run ahead like any other. Only identifiers of
        calls differ, which the model makes up: they are put right once it has.
        """
        group = self.task_group
        if (
            not (self.speculate and group and turn.forecast)
            or turn.response is not None
        ):
            return
        if turn.confirmed and turn is not self.current:
            return
        if turn.child is not None or turn.partial or turn.attempts >= MAX_ATTEMPTS:
            return
        if self._refuses_run_beside(turn) or _speaks_while_calling(turn.request):
            return
        known = self._forecast_results(turn)
        if known is None:
            return
        calls = tuple(call for call, _ in known)
        turn.attempts += 1
        turn.assumed = [
            self.new_slot(turn, index, call) for index, call in enumerate(calls)
        ]
        message = Message(role="assistant", tool_calls=calls)
        self._run_ahead(turn, message, tuple(result for _, result in known), group)

    def _forecast_results(self, turn: Turn) -> list[tuple[ToolCall, ToolResult]] | None:
        """The expected calls with their results, or `None` while one has none."""
        known: list[tuple[ToolCall, ToolResult]] = []
        taken: list[Launch] = []
        for expected in turn.forecast:
            if expected.probability < PROBABLE:
                continue
            call = ToolCall(
                f"expected-{turn.id}-{len(known)}",
                expected.tool.name,
                _in_style(turn.request, expected)
                if expected.styled
                else expected.arguments,
            )
            result: ToolResult | None = None
            launch = self.pool.find(turn, expected.tool, expected.fingerprint, taken)
            if launch is not None:
                taken.append(launch)
                result = launch.speculator.early_result
                if launch.speculator.state is SpeculationState.READY:
                    result = render(launch.speculator.value)
            else:
                stated = self.desk.state_results(call, turn)
                result = stated[0][0].result if stated is not None else None
            if result is None:
                return None
            known.append((call, result))
        return known or None

    def _settle_beside(self, turn: Turn, response: ModelResponse) -> None:
        """The running request is answered: keep what ran beside it, if it fits."""
        child, assumed = turn.child, [slot.call for slot in turn.assumed]
        turn.assumed = []
        if child is None:
            return
        answered = [(call.name, call.arguments) for call in response.tool_calls]
        if response.text or answered != [(c.name, c.arguments) for c in assumed]:
            self.discard_ahead(turn, "the answer is another")
            return
        child.answering = response.message
        stem = turn.request
        descendant: Turn | None = child
        while descendant is not None and descendant.answering is not None:
            answering = descendant.answering
            stem = descendant.request = stem.extended([answering]).answered(
                answering.tool_calls, descendant.results
            )
            descendant = descendant.child

    def _refuses_run_beside(self, turn: Turn) -> bool:
        probable = [
            expected.probability
            for expected in turn.forecast
            if expected.probability >= PROBABLE
        ]
        if not probable or self._now() < self._rests_until:
            return True
        try:
            refusal = self._policy.refuse_run_beside(
                depth=turn.depth + 1,
                probability=min(probable),
                wasted_tokens=self._wasted_tokens,
            )
        except Exception:
            logger.exception("The policy failed; no request is sent beside.")
            return True
        return refusal is not None

    def note_model_failure(self, error: BaseException) -> None:
        """Send no requests early for a while, if the model's provider has too much."""
        if is_overload(error):
            self._rests_until = self._now() + REST_S

    def _refuses_run_ahead(self, turn: Turn) -> bool:
        if self._now() < self._rests_until:
            return True
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
        message: Message,
        results: tuple[ToolResult, ...],
        group: TaskGroup,
    ) -> None:
        asked = turn.request.extended([message])
        calls = message.tool_calls
        child = self.new_turn(asked.answered(calls, results), turn)
        child.answering, child.results = message, results
        turn.child = child
        turn.ahead = ResultSpeculator(asked, calls, partial(self._run_child, child))
        turn.ahead.start(group)
        for index, result in enumerate(results):
            turn.ahead.receive(index, result)
        self.predict(child)

    async def _run_child(self, child: Turn, request: ModelRequest) -> ModelResponse:
        if self.ask_model is None:
            msg = "There is no model to run ahead."
            raise SpeculationError(msg)
        try:
            response = await self.ask_model(request, self.receiver(child))
        except Exception as error:
            self.note_model_failure(error)
            raise
        child.ended_at = self._now()
        self.complete(child, response)
        if not child.confirmed:
            self.consider_run_ahead(child)
        return response

    def discard_ahead(self, turn: Turn, reason: str) -> None:
        """Discard everything that was run ahead of `turn`."""
        child, turn.child = turn.child, None
        ahead, turn.ahead = turn.ahead, None
        if child is not None and ahead is not None:
            ahead.cancel()
            self.end_discarded(child, reason)

    def end_discarded(self, turn: Turn, reason: str) -> None:
        turn.barrier.deny(reason)
        doomed: Turn | None = turn
        while doomed is not None:
            self._account_discarded(doomed, reason)
            doomed = doomed.child

    def _account_discarded(self, turn: Turn, reason: str) -> None:
        self.desk.stop(turn)
        self.pool.forget_waiting(turn)
        self.pool.discard_where(reason, lambda launch: launch.home is turn)
        for slot in (*turn.slots, *turn.sealed.values()):
            if slot.launch is not None:
                self.pool.release(slot.launch)
                slot.launch = None
        if turn.ahead is not None:
            turn.ahead.cancel()
        tokens = 0
        if turn.response is not None:
            usage = turn.response.usage
            tokens = usage.input_tokens + usage.output_tokens
        self._wasted_tokens += tokens
        end = turn.ended_at if turn.ended_at >= 0 else self._now()
        self._recorder.emit(
            TurnDiscarded,
            turn=turn.id,
            reason=reason,
            wasted_s=end - turn.started_at,
            wasted_tokens=tokens,
        )


def renumber(turn: Turn) -> None:
    """Count the depth of a turn that was confirmed, and of those ahead, from 0."""
    depth = 0
    descendant: Turn | None = turn
    while descendant is not None:
        descendant.depth = depth
        descendant = descendant.child
        depth += 1


def render(value: object) -> ToolResult:
    """What the model is told of a value that a tool returned."""
    try:
        return ToolResult.from_value(value)
    except Exception as error:  # noqa: BLE001 - what a tool returns may be anything
        return ToolResult.from_error(error)


def _speaks_while_calling(request: ModelRequest) -> bool:
    """Whether the model has been writing text beside its calls in this conversation."""
    return any(message.tool_calls and message.content for message in request.history)


def _in_style(request: ModelRequest, expected: Forecast) -> str:
    """Write arguments as the model writes them: its spacing, the schema's order.

    Only an answer that is equal to the letter is adopted, so this costs nothing but
    the chance.
    """
    decoded = decode_arguments(expected.arguments) or {}
    order: Iterable[str] = expected.tool.parameters.get("properties") or ()
    decoded = {name: decoded[name] for name in order if name in decoded} | decoded
    spaced = any(
        '": ' in call.arguments
        for message in request.history
        for call in message.tool_calls
    )
    separators = (", ", ": ") if spaced else (",", ":")
    return json.dumps(decoded, separators=separators, ensure_ascii=False)
