"""Asks the predictors of a session, and turns what they say into launches.

Rules of this file:

1. Nobody waits for a predictor. Each has a task of its own that answers the newest
   question; a newer one cancels the answer to an older.
2. What a predictor raises, or proposes wrongly, becomes an event.
3. Questions about a speculated turn are tasks of their own, which end with it.
"""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from ._call_speculation import comes_from_outside
from ._errors import PredictorError
from ._events import CallPredicted, PredictorFailed
from ._launches import Proposal
from ._tools import Effect
from ._turn import Forecast
from .predictors import (
    Conversation,
    Learner,
    Prediction,
    ResultPrediction,
    ResultPredictor,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from anyio.abc import TaskGroup

    from ._branches import Branch
    from ._calls import ToolCall
    from ._events import Recorder
    from ._launches import LaunchPool
    from ._messages import ModelResponse
    from ._tools import ArgumentsFingerprint, Tool
    from ._turn import Launch, Turn
    from .predictors import Predictor

logger = logging.getLogger("headstart")

MAX_FINGERPRINTS = 32
MAX_PREDICTIONS = 64
"""Predictions that are looked at, of one answer of one predictor."""
MAX_RESULTS = 8
"""Results that are looked at, of what one predictor states of one call."""


class PredictorDesk:
    """Where a session asks its predictors.

    Args:
        predictors: Whom.
        tools: The session's tools by name.
        deps: What predictors receive of the caller's own.
        recorder: Who is told.
        pool: Where predicted calls are launched.
        on_forecast: Called with a turn when its response's calls are predicted.
    """

    def __init__(
        self,
        predictors: Sequence[Predictor],
        *,
        tools: Mapping[str, Tool],
        deps: Any,
        recorder: Recorder,
        pool: LaunchPool,
        on_forecast: Callable[[Turn], None],
    ) -> None:
        self._predictors = predictors
        self._learners = [p for p in predictors if isinstance(p, Learner)]
        self._stating = [p for p in predictors if isinstance(p, ResultPredictor)]
        self._tools = tools
        self._deps = deps
        self._recorder = recorder
        self._pool = pool
        self._on_forecast = on_forecast
        self._declined: list[tuple[int, Tool, object]] = []
        self._spans = itertools.count(1)
        self._clerks: list[_Clerk] = []
        self._speculated: dict[Turn, list[anyio.CancelScope]] = {}
        self._asked: _Question | None = None
        self._fingerprints: dict[tuple[str, str], ArgumentsFingerprint] = {}

    def ask(self, turn: Turn, group: TaskGroup) -> None:
        """Ask every predictor about a turn as it stands now."""
        if not self._predictors:
            return
        question = _Question(turn, self._conversation(turn))
        turn.forecast = []
        if not turn.confirmed:
            self._ask_ahead(question, group)
            return
        self._asked = question
        if not self._clerks:
            self._clerks = [_Clerk(p, self._answer) for p in self._predictors]
            for clerk in self._clerks:
                group.start_soon(clerk.serve, name="headstart predictor")
        for clerk in self._clerks:
            clerk.ask(question)

    async def ask_next(self, turn: Turn, group: TaskGroup) -> None:
        """Ask about a turn that begins, and let predictors that need no time answer.

        If just this conversation was asked about when the turn before it ended, that
        question goes on: its answers are about this turn. Sending a request may keep
        the event loop busy for milliseconds, which launches need not wait for.
        """
        if not self._predictors:
            return
        asked, messages = self._asked, turn.request.history
        if asked is not None and asked.conversation.messages == messages:
            turn.forecast, asked.turn = asked.turn.forecast, turn
        else:
            self.ask(turn, group)
        for _ in range(3):  # the predictor's step, its launch's, and the tool's first
            if not (self._pool.running or any(clerk.busy for clerk in self._clerks)):
                break
            await anyio.lowlevel.checkpoint()

    def _ask_ahead(self, question: _Question, group: TaskGroup) -> None:
        self.stop(question.turn)
        scopes = [anyio.CancelScope() for _ in self._predictors]
        self._speculated[question.turn] = scopes

        async def answer(predictor: Predictor, scope: anyio.CancelScope) -> None:
            with scope:
                await self._answer(predictor, question, scope)
            scopes.remove(scope)

        for predictor, scope in zip(self._predictors, scopes, strict=True):
            group.start_soon(answer, predictor, scope, name="headstart predictor ahead")

    def stop(self, turn: Turn) -> None:
        """Ask no more about a speculated turn."""
        for scope in self._speculated.pop(turn, ()):
            scope.cancel()

    def drop(self) -> None:
        """Forget the last question: another turn has taken its place."""
        self._asked = None
        for clerk in self._clerks:
            clerk.drop()

    async def _answer(
        self,
        predictor: Predictor,
        question: _Question,
        scope: anyio.CancelScope,
    ) -> None:
        try:
            predictions = await predictor.predict(question.conversation)
            if not scope.cancel_called:
                self._propose(question.turn, predictor, predictions)
        except BaseException as error:
            if comes_from_outside(error):
                raise
            self._note_failure(predictor, error)

    def _propose(
        self, turn: Turn, predictor: Predictor, predictions: Iterable[Prediction]
    ) -> None:
        self._pool.discard_too_old()
        forecast: list[Forecast] = []
        for prediction in itertools.islice(predictions, MAX_PREDICTIONS):
            expected = self._read(prediction, predictor)
            if expected is None:
                continue
            forecast.append(expected)
            wanted = forecast.count(expected)
            equal = [n for n, known in enumerate(turn.forecast) if known == expected]
            if len(equal) < wanted:
                turn.forecast.append(expected)
            elif expected.probability > turn.forecast[equal[wanted - 1]].probability:
                turn.forecast[equal[wanted - 1]] = expected
            if wanted <= self._count_coming(turn, expected):
                continue
            proposal = self._note_prediction(turn, prediction, predictor, expected)
            if self._is_declined(turn, expected):
                self._pool.refuse(proposal, "the model declined it before")
            else:
                self._pool.start(proposal)
        if forecast:
            self._on_forecast(turn)

    def _read(self, prediction: object, predictor: Predictor) -> Forecast | None:
        """What is predicted, in comparable form; `None` where it is of no use."""
        if not isinstance(prediction, Prediction):
            kind = type(prediction).__name__
            msg = f"A predictor proposes Prediction objects, not {kind}."
            raise PredictorError(msg, reason="not a prediction")
        tool = self._tools.get(prediction.tool)
        fingerprint = tool and self._fingerprint(tool, prediction.arguments_text)
        if tool is None or fingerprint is None:
            what = "which is no tool" if tool is None else "with invalid arguments"
            msg = f"A predictor proposed {prediction.tool!r}, {what}."
            self._note_failure(predictor, PredictorError(msg, reason="not a call"))
            return None
        return Forecast(
            tool=tool,
            arguments=prediction.arguments_text,
            fingerprint=fingerprint,
            probability=prediction.probability,
            styled=prediction.styled,
        )

    def _fingerprint(self, tool: Tool, arguments: str) -> ArgumentsFingerprint | None:
        # Predictors are asked several times a turn, and mostly say the same.
        known = self._fingerprints.get((tool.name, arguments))
        if known is None:
            known = tool.fingerprint(arguments)
            if known is not None:
                if len(self._fingerprints) >= MAX_FINGERPRINTS:
                    self._fingerprints.clear()
                self._fingerprints[tool.name, arguments] = known
        return known

    def _note_prediction(
        self,
        turn: Turn,
        prediction: Prediction,
        predictor: Predictor,
        expected: Forecast,
    ) -> Proposal:
        proposal = Proposal(
            home=turn,
            tool=expected.tool,
            fingerprint=expected.fingerprint,
            arguments=prediction.arguments_text,
            cause="predicted",
            probability=_worth(prediction, expected.tool),
            origin=prediction.origin or type(predictor).__name__,
            span=f"{self._recorder.session}/{next(self._spans)}",
        )
        self._recorder.emit(
            CallPredicted,
            turn=turn.id,
            span=proposal.span,
            tool=expected.tool.name,
            origin=proposal.origin,
            probability=prediction.probability,
        )
        return proposal

    def decline(self, turn: Turn, launch: Launch) -> None:
        """Do not propose a call again until the user has said something else."""
        fingerprint = launch.speculator.fingerprint
        if fingerprint is not None:
            declined = _user_messages(turn), launch.tool, fingerprint
            self._declined = [d for d in self._declined if d[0] == declined[0]]
            self._declined.append(declined)

    def _is_declined(self, turn: Turn, expected: Forecast) -> bool:
        return bool(self._declined) and any(
            said == _user_messages(turn)
            and tool is expected.tool
            and fingerprint == expected.fingerprint
            for said, tool, fingerprint in self._declined
        )

    def _count_coming(self, turn: Turn, expected: Forecast) -> int:
        """Equal calls that are launched and unclaimed, or that the turn still runs."""
        tool, fingerprint = expected.tool, expected.fingerprint
        coming = [(turn, 0)]  # of the turns ahead of one, only one comes true
        counts: list[int] = []
        for ahead, before in coming:
            count = before + sum(
                slot.tool is tool
                and slot.result is None
                and slot.fingerprint == fingerprint
                for slot in (*ahead.slots, *ahead.sealed.values())
            )
            counts.append(count)
            coming.extend((child, count) for child in ahead.children)
        return self._pool.count_equal(turn, tool, fingerprint) + max(counts)

    def state_results(self, call: ToolCall, turn: Turn) -> tuple[Branch, str] | None:
        """What the first predictor that knows says of a call's result, and which.

        The alternatives stand in order, the most probable first.
        """
        if not self._stating:
            return None
        conversation = self._conversation(turn)
        for predictor in self._stating:
            try:
                stated = _read_results(predictor.predict_results(call, conversation))
            except Exception as error:  # noqa: BLE001 - contained
                self._note_failure(predictor, error)
                continue
            if stated:
                return stated, type(predictor).__name__
        return None

    def learn(self, turn: Turn, response: ModelResponse) -> None:
        """Tell those who learn what a confirmed turn was answered."""
        if not self._learners:
            return
        conversation = Conversation(
            messages=turn.request.history, tools=self._tools, deps=self._deps
        )
        for learner in self._learners:
            try:
                learner.learn(conversation, response)
            except Exception as error:  # noqa: BLE001 - contained
                self._note_failure(learner, error)

    def _conversation(self, turn: Turn) -> Conversation:
        return Conversation(
            messages=turn.conversation,
            partial="" if turn.response is not None else turn.partial,
            tools=self._tools,
            deps=self._deps,
        )

    def _note_failure(self, predictor: object, error: BaseException) -> None:
        name, kind = type(predictor).__name__, type(error).__name__
        logger.debug("The predictor %s failed.", name, exc_info=error)
        self._recorder.emit(PredictorFailed, predictor=name, error=kind)


def _worth(prediction: Prediction, tool: Tool) -> float:
    """The probability that its launch is used: unused reads are kept for later turns."""
    if tool.effect is Effect.READ and prediction.eventually is not None:
        return prediction.eventually
    return prediction.probability


def _read_results(stated: Iterable[ResultPrediction]) -> Branch:
    read = list(itertools.islice(stated, MAX_RESULTS))
    if not all(isinstance(each, ResultPrediction) for each in read):  # pyright: ignore[reportUnnecessaryIsInstance]
        msg = "A predictor states results as ResultPrediction objects."
        raise PredictorError(msg, reason="not a result")
    return tuple(sorted(read, key=lambda each: -each.probability))


def _user_messages(turn: Turn) -> int:
    return sum(message.role == "user" for message in turn.request.history)


class _Question:
    """A conversation that predictors are asked about, and the turn it is about."""

    __slots__ = ("conversation", "turn")

    def __init__(self, turn: Turn, conversation: Conversation) -> None:
        self.turn = turn
        self.conversation = conversation


class _Clerk:
    """One predictor's task: it answers the newest question."""

    __slots__ = ("_answer", "_asked", "_current", "_predictor", "_question", "_scope")

    def __init__(self, predictor: Predictor, answer: Callable[..., Any]) -> None:
        self._predictor = predictor
        self._answer = answer
        self._question: _Question | None = None
        self._asked = anyio.Event()
        self._scope = anyio.CancelScope()
        self._current: _Question | None = None

    def ask(self, question: _Question) -> None:
        current = self._current
        if (
            current is not None
            and not getattr(self._predictor, "reads_partial", True)
            and current.conversation.messages == question.conversation.messages
        ):  # it is answering just this, and takes long: let it
            current.turn, self._question = question.turn, None
            return
        self.drop()
        self._question = question
        self._asked.set()

    @property
    def busy(self) -> bool:
        """Whether a question is not answered."""
        return self._question is not None or self._current is not None

    def drop(self) -> None:
        self._question = None
        if self._current is not None:
            self._current = None
            self._scope.cancel()

    async def serve(self) -> None:
        while True:
            # One scope serves until an answer is cancelled, as most need no time.
            with self._scope:
                while not self._scope.cancel_called:
                    await self._serve_next()
            self._scope = anyio.CancelScope()

    async def _serve_next(self) -> None:
        question, self._question = self._question, None
        if question is None:
            self._asked = anyio.Event()
            await self._asked.wait()
        else:
            self._current = question
            await self._answer(self._predictor, question, self._scope)
            self._current = None
