"""What is evaluated, and how it sits in a session or in an examination."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast, runtime_checkable

from headstart._errors import UsageError
from headstart.predictors import Prediction, ResultPredictor
from headstart.testing import run_virtual

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headstart._calls import ToolCall
    from headstart._messages import Message, ModelResponse
    from headstart.predictors import Conversation, ResultPrediction

    _Question: TypeAlias = tuple[int, tuple[Message, ...], str]


@runtime_checkable
class ProposingPredictor(Protocol):
    """A learner that proposes calls in a plain function, without waiting."""

    def propose(self, conversation: Conversation, /) -> Iterable[Prediction]: ...

    def learn(self, conversation: Conversation, response: ModelResponse, /) -> None: ...


@runtime_checkable
class LearningPredictor(Protocol):
    """A learner that proposes calls as sessions ask for them."""

    async def predict(self, conversation: Conversation, /) -> Iterable[Prediction]: ...

    def learn(self, conversation: Conversation, response: ModelResponse, /) -> None: ...


EvaluatedPredictor: TypeAlias = ProposingPredictor | LearningPredictor
"""What can be evaluated. If it states results as well, replays use them."""


def check_predictor(predictor: object) -> None:
    """Refuse what cannot be evaluated.

    Raises:
        UsageError: It does not learn, or does not predict.
    """
    if not isinstance(predictor, ProposingPredictor | LearningPredictor):
        msg = (
            f"A predictor that is evaluated has 'learn', and 'propose' or 'predict': "
            f"{type(predictor).__name__!r} has not."
        )
        raise UsageError(msg)


class Taught:
    """A predictor as it was taught, to begin each test run with.

    One that can be written as JSON begins as if it was read from a file; another is
    copied with `copy.deepcopy`.

    Args:
        predictor: The predictor.
        learns: Whether it is told of the answers of a test run, too.
    """

    def __init__(self, predictor: EvaluatedPredictor, *, learns: bool) -> None:
        self.learns = learns
        self.states_results = isinstance(predictor, ResultPredictor)
        self.proposes = isinstance(predictor, ProposingPredictor)
        self._predictor = predictor
        self._restore = getattr(type(predictor), "from_dict", None)
        self._text: str | None = None
        if learns and self._restore is not None and hasattr(predictor, "to_dict"):
            self._text = json.dumps(predictor.to_dict())  # type: ignore[attr-defined] # asked just now

    def begin(self) -> EvaluatedPredictor:
        """The predictor for a test run; what it learns there is lost with it."""
        if not self.learns:
            return self._predictor
        if self._restore is not None and self._text is not None:
            return self._restore(json.loads(self._text))
        return copy.deepcopy(self._predictor)


class Seat:
    """A taught predictor in one test run, which is gone through several times.

    What it proposes is a matter of the conversation and of the answers that it was told
    before, so what it has said once it need not be asked again: most of a replay at one
    latency is like that at another.

    Args:
        taught: The predictor as it was taught.
    """

    def __init__(self, taught: Taught) -> None:
        self._taught = taught
        self._known: dict[_Question, list[Prediction]] = {}
        self.restart()

    def restart(self) -> None:
        """Begin the run once more."""
        self._told: list[tuple[Conversation, ModelResponse]] = []
        self._predictor: EvaluatedPredictor | None = None
        self._heard = 0

    def prepare(self) -> None:
        """Make the predictor now, so that asking it takes what its answer takes."""
        self._up_to_date()

    def propose(self, conversation: Conversation, /) -> Iterable[Prediction]:
        """The calls that are expected now: the predictor is asked."""
        predictor = self._up_to_date()
        if isinstance(predictor, ProposingPredictor):
            return predictor.propose(conversation)
        return run_virtual(predictor.predict, conversation)

    def remember(
        self, conversation: Conversation, proposed: Iterable[Prediction]
    ) -> list[Prediction]:
        """Keep what was proposed, for the next time that it is asked for."""
        question = len(self._told), conversation.messages, conversation.partial
        return self._known.setdefault(question, list(proposed))

    async def predict(self, conversation: Conversation, /) -> Iterable[Prediction]:
        """The calls that are expected now, as a session asks."""
        if not self._taught.proposes:
            waiting = cast("LearningPredictor", self._up_to_date())
            return await waiting.predict(conversation)
        question = len(self._told), conversation.messages, conversation.partial
        known = self._known.get(question)
        if known is None:
            known = self.remember(conversation, self.propose(conversation))
        return known

    def predict_results(
        self, call: ToolCall, conversation: Conversation, /
    ) -> Iterable[ResultPrediction]:
        """What a call is expected to give, if the predictor says such things."""
        if not self._taught.states_results:
            return ()
        predictor = cast("ResultPredictor", self._up_to_date())
        return predictor.predict_results(call, conversation)

    def learn(self, conversation: Conversation, response: ModelResponse, /) -> None:
        """Be told of an answer of the run."""
        if not self._taught.learns:
            return
        self._told.append((conversation, response))
        if self._predictor is not None and self._heard == len(self._told) - 1:
            self._heard += 1
            self._predictor.learn(conversation, response)

    def _up_to_date(self) -> EvaluatedPredictor:
        """The predictor, told of all that it has not heard yet."""
        if self._predictor is None:
            self._predictor = self._taught.begin()
        while self._heard < len(self._told):
            self._heard += 1
            # What it raises was counted when it was told for the first time.
            with contextlib.suppress(Exception):
                self._predictor.learn(*self._told[self._heard - 1])
        return self._predictor
