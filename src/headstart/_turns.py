"""The turns of a session: the confirmed one, and everything that is run ahead of it.

Rules of this file:

1. Nothing here waits, except for the task of a speculated turn, which waits for its
   model. Between two awaits the state is whole.
2. A speculated turn (`confirmed` is False) changes nothing that a confirmed one sees:
   its deltas are held, its launches are under its barrier, nobody learns from it. Only
   the reads that are predicted for it are under that of the confirmed turn below it:
   they change nothing, and are kept for other turns when it is discarded.
3. Discarding goes from the root outward: denying a turn's barrier ends, by itself, all
   that stands on it; what follows is book-keeping.

Over 600 lines: what starts a turn and what discards it are read together, by rule 1.
"""

from __future__ import annotations

import itertools
import logging
import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from ._barrier import WriteBarrier
from ._branches import (
    certain,
    in_order,
    in_style,
    likely_answers,
    likely_branches,
    may_come,
    render,
    speaks_while_calling,
)
from ._calls import ToolCall, ToolResult
from ._errors import SpeculationError
from ._events import EarlyResultGiven, Recorder, TurnDiscarded, TurnStarted
from ._launches import LaunchPool
from ._lifecycle import SpeculationState
from ._messages import Message, TextDelta
from ._policy import (
    IMPROBABLE,
    REST_S,
    SELDOM_RIGHT,
    Expectation,
    RunAhead,
    is_overload,
)
from ._predicting import PredictorDesk
from ._result_speculation import ResultSpeculator
from ._slots import CallRegister
from ._tools import Effect, Tool
from ._turn import CallAssembler, Launch, Slot, Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anyio.abc import TaskGroup

    from ._branches import Branch, LikelyAnswer
    from ._messages import (
        AskModel,
        DeltaReceiver,
        ModelDelta,
        ModelRequest,
        ModelResponse,
    )
    from ._policy import Experience, Policy
    from .predictors import Predictor, ResultPrediction

logger = logging.getLogger("headstart")

_ENDS = ".:;!?\n"
"""Predictors are asked again when the model has ended a sentence, or a part of one."""
MAX_ATTEMPTS = 3
"""How often the turn after one is run ahead of it, as early results change."""
MAX_BRANCHES = 8
"""Combinations of early results that the policy is asked about, of one turn."""
_CERTAIN = ("launch", "memory")
"""Who states early results that are real results."""
_RESULTS_OF = "results of "
_BESIDE = ("", "beside")
RecordKey: TypeAlias = tuple[str, str]
Expected: TypeAlias = "list[tuple[RecordKey, Expectation]]"
"""What has to come true, each with the tool and origin that its record stands under."""


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
        foreign: Whether it says itself what is wrong with a call.

    Attributes:
        current: The last turn that the host asked for.
        pool: The session's launches.
        calls: Where calls of responses are made into slots, and started.
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
        foreign: bool,
    ) -> None:
        self._tools = tools
        self._policy = policy
        # Above 1 is off: a policy that does not say so is asked each time.
        self._runs_beside = getattr(policy, "min_beside_probability", 0.0) <= 1
        self._experience = experience
        self._recorder = recorder
        self._now = clock
        self.speculate = speculate
        self._ordered = ordered
        self._foreign = foreign
        self._root = WriteBarrier(name=recorder.session)
        self._root.flush()
        self._numbers = itertools.count(1)
        self._wasted_tokens = self._usual_tokens = 0
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
        self.calls = CallRegister(tools, self.pool, ordered=ordered)
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
            self.current.let_go()
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
                    self.calls.start_sealed(turn, *sealed)

        return receive

    def _hear(self, turn: Turn, text: str) -> None:
        """The model says something: that is another answer than calls alone, and news."""
        if turn.children and text:
            self.discard_ahead(turn, "the answer is another")
        turn.partial += text
        if turn is self.current and any(mark in text for mark in _ENDS):
            self.predict(turn)

    def complete(self, turn: Turn, response: ModelResponse) -> None:
        """Take a turn's whole response: its calls claim what was launched for them."""
        turn.response = response
        self._usual_tokens = self._tokens_of(turn)
        for index, call in enumerate(response.tool_calls):
            slot = turn.sealed.pop(index, None)
            if slot is not None and slot.call != call:
                self.pool.distrust_stream(slot.call.name)
                if slot.launch is not None:
                    self.pool.discard(slot.launch, "the model changed a sealed call")
                slot = None
            turn.slots.append(slot or self.calls.new_slot(turn, index, call))
        self.calls.drop_sealed(turn, "the model withdrew a sealed call")
        if turn.children:
            self._settle_beside(turn, response)
        if not self.speculate:
            return
        for slot in turn.slots:
            self.calls.claim(slot)
        self.discard_unasked(turn)
        for slot in turn.slots:
            if (
                not turn.confirmed
                and slot.launch is None
                and not turn.conflicts(slot, ordered=self._ordered)
            ):
                self.calls.start(slot)
            self._predict_result(turn, slot)

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

    def restart_slots(self, turn: Turn) -> None:
        """Launch again: a call has ended: what it kept from starting, further ahead, may start."""
        self.pool.retry_waiting()
        for child in list(turn.family())[1:]:
            for slot in child.slots:
                if not slot.outcomes and not child.conflicts(
                    slot, ordered=self._ordered
                ):
                    if slot.launch is None:
                        slot.launch = self.pool.claim(child, slot)
                    if slot.launch is None:
                        self.calls.start(slot)
                    else:
                        self._take_launched_result(slot, slot.launch)

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
        """Take an early result of a call from who knows it."""
        self._take_early(slot, certain(result), source)

    def _take_early(self, slot: Slot, early: Branch, source: str) -> None:
        if slot.result is not None or slot.early == early or not self.speculate:
            return
        slot.early, slot.source = early, source
        self._recorder.emit(
            EarlyResultGiven,
            turn=slot.turn.id,
            call_id=slot.call.id,
            tool=slot.call.name,
            source=source,
        )
        self.consider_run_ahead(slot.turn)

    def judge_early(self, slot: Slot, result: ToolResult) -> None:
        """A call has its final result: note whether it was among the early ones."""
        if slot.early and slot.source not in _CERTAIN:
            self._experience.note_outcome(
                slot.call.name,
                _RESULTS_OF + slot.source,
                hit=any(stated.result == result for stated in slot.early),
                stated=_total(slot.early),
            )

    def _predict_result(self, turn: Turn, slot: Slot) -> None:
        launch = slot.launch
        if launch is not None and launch.speculator.ended and not turn.confirmed:
            self._take_launched_result(slot, launch)
        if slot.outcomes or slot.problem is not None:
            if not (slot.early or self._foreign):
                slot.early, slot.source = certain(slot.problem), "tool"
            return
        shared = self.calls.shared_result(slot)
        if shared is not None:
            self.knows_early(slot, shared, source="memory")
            return
        stated = self.desk.state_results(slot.call, turn)
        if stated is not None:
            self._take_early(slot, *stated)

    def lose_launch(self, slot: Slot) -> None:
        """A slot's launch was discarded, so what it had stated counts no more."""
        slot.early = ()
        if slot.turn.children:
            self.discard_ahead(slot.turn, "an early result was withdrawn")

    def find_ahead(self, turn: Turn, request: ModelRequest) -> Turn | None:
        """The turn run ahead of `turn` that is this request, if there is one."""
        return next((each for each in turn.children if each.request == request), None)

    def consider_run_ahead(self, turn: Turn) -> None:
        """Run the next turn if every call of this one has an early or final result.

        Where early results have alternatives, it is run as often as the policy admits.
        """
        response = turn.response
        if not (self.speculate and response and turn.slots and self.task_group):
            return
        if turn.request.stateful or (turn.confirmed and turn is not self.current):
            return
        if not all(slot.outcomes for slot in turn.slots):
            return
        if len(turn.slots) != len(response.tool_calls):
            return  # the host runs a call of its own, or one again
        for child in [child for child in turn.children if not may_come(turn, child)]:
            turn.children.remove(child)
            self.end_discarded(child, "a result differs from the early one")
        if turn.confirmed and all(slot.result is not None for slot in turn.slots):
            return  # the host is about to ask
        if turn.attempts >= MAX_ATTEMPTS:
            return
        began = len(turn.children)
        for rank, branch in enumerate(likely_branches(turn.slots, MAX_BRANCHES)):
            results = tuple(stated.result for stated in branch)
            if any(child.results == results for child in turn.children):
                continue
            expected = self._expectations(turn.slots, branch)
            if self._refuses(turn, expected, results, rank=rank):
                break
            self._run_ahead(turn, response.message, results, expected)
        turn.attempts += len(turn.children) > began

    def _expectations(
        self, slots: Sequence[Slot], branch: Sequence[ResultPrediction]
    ) -> Expected:
        """What has to come true for a branch."""
        return [
            self._expect_result(slot.call, stated, slot.early, slot.source)
            for slot, stated in zip(slots, branch, strict=True)
            if slot.result is None and slot.source not in _CERTAIN
        ]

    def _expect_result(
        self, call: ToolCall, stated: ResultPrediction, early: Branch, source: str
    ) -> tuple[RecordKey, Expectation]:
        key = call.name, _RESULTS_OF + source
        return key, Expectation(
            probability=stated.probability,
            total=_total(early),
            record=self._experience.record(*key),
        )

    def consider_run_beside(self, turn: Turn) -> None:
        """Send requests that would follow, beside a turn's running one.

        If the calls of an answer that the turn may get all have a result, the request
        after it is known. It counts only if the answer is exactly that; then it is a
        turn run ahead like any other. Only identifiers of calls differ, which the model
        makes up: they are put right once it has.
        """
        if (
            not (self._runs_beside and self.speculate and self.task_group)
            or not turn.forecast
            or turn.response is not None
        ):
            return
        if turn.confirmed and turn is not self.current:
            return
        if turn.speaks is None:
            turn.speaks = speaks_while_calling(turn.request)
        if turn.partial or turn.request.stateful or turn.speaks:
            return
        for rank, answer in enumerate(likely_answers(turn.forecast, MAX_BRANCHES)):
            if turn.attempts >= MAX_ATTEMPTS:
                return
            if not self._run_beside(turn, answer, rank):
                return

    def reconsider(self, turn: Turn) -> None:
        """A turn run ahead is confirmed: what was improbable with it may be so no more."""
        for each in list(turn.family()):
            each.refused.clear()
            self.consider_run_beside(each)
            self.consider_run_ahead(each)

    def _run_beside(self, turn: Turn, answer: LikelyAnswer, rank: int) -> bool:
        """Run ahead on one answer, if it can be. Whether less likely ones may be, too."""
        record = self._experience.record(*_BESIDE)
        stated = answer.probability
        expected: Expected = [
            (_BESIDE, Expectation(probability=stated, total=stated, record=record))
        ]
        what = tuple((each.tool.name, each.arguments) for each in answer.calls)
        if self._refuses(turn, expected, what, rank=rank, beside=True):
            return False
        answer = replace(answer, calls=in_order(turn.request, answer.calls))
        calls = self._write_calls(turn, answer)
        if any(child.answering_calls == calls for child in turn.children):
            return True
        results = self._results_of(turn, answer, calls, expected)
        if results is None or self.task_group is None:
            return True
        if len(expected) > 1 and self._refuses(
            turn, expected, what, rank=rank, beside=True
        ):
            return True
        turn.attempts += 1
        turn.assumed += [
            self.calls.new_slot(turn, index, call) for index, call in enumerate(calls)
        ]
        message = Message(role="assistant", tool_calls=calls)
        child = self._run_ahead(turn, message, results, expected)
        child.stated = stated
        return True

    def _write_calls(self, turn: Turn, answer: LikelyAnswer) -> tuple[ToolCall, ...]:
        """The calls of an answer that is not there yet, as the model will write them."""
        return tuple(
            ToolCall(
                f"expected-{turn.id}-{number}",
                expected.tool.name,
                in_style(turn.request, expected)
                if expected.styled
                else expected.arguments,
            )
            for number, expected in enumerate(answer.calls)
        )

    def _results_of(
        self,
        turn: Turn,
        answer: LikelyAnswer,
        calls: Sequence[ToolCall],
        expected: Expected,
    ) -> tuple[ToolResult, ...] | None:
        """The results of expected calls, or `None` while one has none.

        What has to come true for those that are only stated is added to `expected`.
        """
        results: list[ToolResult] = []
        taken: list[Launch] = []
        for call, forecast in zip(calls, answer.calls, strict=True):
            result: ToolResult | None = None
            launch = self.pool.find(turn, forecast.tool, forecast.fingerprint, taken)
            if launch is not None:
                taken.append(launch)
                result = launch.speculator.early_result
                if launch.speculator.state is SpeculationState.READY:
                    result = render(launch.speculator.value)
            else:
                stated = self.desk.state_results(call, turn)
                if stated is not None:
                    early, source = stated
                    result = early[0].result
                    expected.append(self._expect_result(call, early[0], early, source))
            if result is None:
                return None
            results.append(result)
        return tuple(results)

    def _settle_beside(self, turn: Turn, response: ModelResponse) -> None:
        """The running request is answered: keep what ran beside it, if it fits."""
        children, turn.children, turn.assumed = turn.children, [], []
        answered = [(call.name, call.arguments) for call in response.tool_calls]
        for child in children:
            assumed = [(call.name, call.arguments) for call in child.answering_calls]
            silent = not response.text and response.rest is None
            hit = silent and not turn.children and answered == assumed
            self._experience.note_outcome(*_BESIDE, hit=hit, stated=child.stated)
            if hit:
                child.answering = response.message
                turn.children.append(child)
            else:
                self.end_discarded(child, "the answer is another")
        for descendant in list(turn.family())[1:]:
            parent, answering = descendant.parent, descendant.answering
            if parent is not None and answering is not None:
                descendant.request = parent.request.extended([answering]).answered(
                    answering.tool_calls, descendant.results
                )

    def note_model_failure(self, error: BaseException) -> None:
        """Send no requests early for a while, if the model's provider has too much."""
        if is_overload(error):
            self._rests_until = self._now() + REST_S

    def _refuses(
        self,
        turn: Turn,
        expected: Expected,
        what: tuple[object, ...],
        *,
        rank: int,
        beside: bool = False,
    ) -> bool:
        question = (*what, len(expected))  # fewer as results become final
        if self._now() < self._rests_until or question in turn.refused:
            return True
        candidate = RunAhead(
            depth=turn.depth + 1,
            branch=max(rank, len(turn.children)),
            expectations=tuple(each for _, each in expected),
            beside=beside,
            wasted_tokens=self._wasted_tokens + self._tokens_at_stake(),
            turn_probability=turn.probability,
        )
        try:
            refusal = self._policy.refuse_run_ahead(candidate)
        except Exception:
            logger.exception("The policy failed; the next turn is not run ahead.")
            return True
        if refusal in (IMPROBABLE, SELDOM_RIGHT):
            turn.refused.add(question)
        if refusal == SELDOM_RIGHT:
            for key, _ in expected:
                self._experience.note_refusal(*key)
        return refusal is not None

    def _tokens_at_stake(self) -> int:
        """Tokens of everything that is run ahead now, as if it were all discarded."""
        if self.current is None:
            return 0
        return sum(
            self._tokens_of(turn)
            for turn in self.current.family()
            if not turn.confirmed
        )

    def _tokens_of(self, turn: Turn) -> int:
        """What a turn's request is billed; as much as the last one before it has."""
        if turn.response is None:
            return self._usual_tokens
        usage = turn.response.usage
        return usage.input_tokens + usage.output_tokens

    def _run_ahead(
        self,
        turn: Turn,
        message: Message,
        results: tuple[ToolResult, ...],
        expected: Expected,
    ) -> Turn:
        for key, _ in expected:
            self._experience.note_launch(*key)
        asked = turn.request.extended([message])
        calls = message.tool_calls
        child = self.new_turn(asked.answered(calls, results), turn)
        child.answering, child.results = message, results
        child.chance = math.prod(each.probability for _, each in expected)
        turn.children.append(child)
        child.run = ResultSpeculator(asked, calls, partial(self._run_child, child))
        if self.task_group is not None:
            child.run.start(self.task_group)
        for index, result in enumerate(results):
            child.run.receive(index, result)
        self.predict(child)
        return child

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
        children, turn.children = turn.children, []
        for child in children:
            self.end_discarded(child, reason)

    def end_discarded(self, turn: Turn, reason: str) -> None:
        """Discard a turn that nothing refers to any more, and all that stands on it."""
        turn.barrier.deny(reason)
        survivor = turn.parent or self.current
        for doomed in list(turn.family()):
            self._account_discarded(doomed, survivor, reason)

    def _account_discarded(
        self, turn: Turn, survivor: Turn | None, reason: str
    ) -> None:
        self.desk.stop(turn)
        self.pool.leave(turn, survivor, reason)
        for slot in (*turn.slots, *turn.sealed.values()):
            if slot.launch is not None:
                self.pool.release(slot.launch)
                slot.launch = None
        if turn.run is not None:
            turn.run.cancel()
        tokens = self._tokens_of(turn)
        self._wasted_tokens += tokens
        end = turn.ended_at if turn.ended_at >= 0 else self._now()
        self._recorder.emit(
            TurnDiscarded,
            turn=turn.id,
            reason=reason,
            wasted_s=end - turn.started_at,
            wasted_tokens=tokens,
        )


def _total(early: Branch) -> float:
    return min(sum(each.probability for each in early), 1.0)


def renumber(turn: Turn) -> None:
    """Count the depth of a turn that was confirmed, and of those ahead, from 0."""
    turn.depth = 0
    for each in turn.family():
        for child in each.children:
            child.depth = each.depth + 1
