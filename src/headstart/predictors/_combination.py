"""Several predictors as one: what they say of the same call is combined and calibrated."""

from __future__ import annotations

import itertools
import json
import logging
import math
import weakref
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import anyio

from headstart._calls import ToolResult, canonical_arguments
from headstart._errors import UsageError

from ._predictor import (
    Conversation,
    Learner,
    Prediction,
    Predictor,
    ResultPrediction,
    ResultPredictor,
)
from ._tally import CAP, FLOOR, alive, clip

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headstart._calls import ToolCall
    from headstart._messages import Message, ModelResponse

logger = logging.getLogger("headstart")

MAX_PREDICTIONS = 64
"""Predictions that are looked at, of one answer of one member."""
MAX_RESULTS = 8
MAX_OPEN = 32
"""Conversations whose predictions are remembered until the model has answered."""
MAX_ORIGINS = 512

_CallKey: TypeAlias = tuple[str, str, int]
_Moment: TypeAlias = "tuple[int, tuple[Message, ...]]"
_Answers: TypeAlias = dict[int, list[Prediction]]


class Combination:
    """One predictor out of several.

    Equal calls (the same tool, arguments that mean the same) are proposed once. Their
    probabilities are first combined as if the members guessed independently, and then
    corrected by how often calls were right on which just these members agreed: online,
    from confirmed answers. The origin names all of them: `patterns + drafter`.

    ```python
    agent = Agent(model, tools, predictors=[Combination([rules, patterns])])
    agent = Agent(model, tools, predictors=Combination([rules, drafter]).voices())
    ```

    `predict` asks all members at once, and answers when the last one has. Where one of
    them takes long, such as a `Drafter`, give an agent `voices()` instead of the
    combination: one predictor a member, which the session asks apart. Each answers as
    soon as its member does, with what all that have answered so far say together.

    A member that fails is left out. If all fail, the first failure is raised.
    Cancelling `predict` cancels the members.

    Args:
        members: The predictors. Those that learn are taught, those that state results
            are asked for them.
        calibrate: Whether the combined probabilities are corrected at all.

    Raises:
        UsageError: There are no members, or one is no predictor.
    """

    def __init__(self, members: Sequence[Predictor], *, calibrate: bool = True) -> None:
        self.members = tuple(members)
        if not self.members:
            msg = "A Combination has one predictor at least."
            raise UsageError(msg)
        for member in self.members:
            if not callable(getattr(member, "predict", None)):
                msg = f"A Combination's members are predictors, not {member!r}."
                raise UsageError(msg)
        self.calibrate = calibrate
        self._scales: dict[str, _Scale] = {}
        self._open: OrderedDict[_Moment, _Opened] = OrderedDict()

    def __repr__(self) -> str:
        names = ", ".join(type(member).__name__ for member in self.members)
        return f"<Combination of {names}>"

    def voices(self) -> tuple[Predictor, ...]:
        """One predictor a member, to be given to an agent all together."""
        first, *others = range(len(self.members))
        return _LeadingVoice(self, first), *(_Voice(self, each) for each in others)

    async def predict(self, conversation: Conversation, /) -> list[Prediction]:
        """What all members expect, the most probable first."""
        answers: _Answers = {}
        failures: list[Exception] = []

        async def ask(index: int) -> None:
            try:
                answers[index] = await self._ask(index, conversation)
            except Exception as error:  # contained in its member
                failures.append(error)
                name = type(self.members[index]).__name__
                logger.debug("The predictor %s failed.", name, exc_info=error)

        if len(self.members) == 1:
            await ask(0)
        else:
            async with anyio.create_task_group() as group:
                for index in range(len(self.members)):
                    group.start_soon(ask, index, name="headstart member")
        if len(failures) == len(self.members):
            raise failures[0]
        self._remember(conversation).answers = answers
        return self._merge(answers, conversation)

    def predict_results(
        self, call: ToolCall, conversation: Conversation, /
    ) -> list[ResultPrediction]:
        """What the members state of a call's result, the most probable first.

        Equal results count once, as the most probable of them: members that know a
        result mostly know it from the same messages. Alternatives together are at most
        certain. A member that fails is left out; if all fail, the failure is raised.
        """
        best: dict[ToolResult, float] = {}
        failures: list[Exception] = []
        asked = [m for m in self.members if isinstance(m, ResultPredictor)]
        for member in asked:
            try:
                stated = list(member.predict_results(call, conversation))
            except Exception as error:  # noqa: BLE001 - contained in its member
                failures.append(error)
                continue
            for each in stated[:MAX_RESULTS]:
                known = best.get(each.result, 0.0)
                best[each.result] = max(known, each.probability)
        if failures and len(failures) == len(asked):
            raise failures[0]
        total = max(1.0, math.fsum(best.values()))
        merged = [
            ResultPrediction(result=result, probability=probability / total)
            for result, probability in best.items()
        ]
        return sorted(merged, key=lambda each: -each.probability)[:MAX_RESULTS]

    def learn(self, conversation: Conversation, response: ModelResponse, /) -> None:
        """Tell the members, and see which of what was expected has come true."""
        self._calibrate(conversation, response)
        failures: list[Exception] = []
        learners = [m for m in self.members if isinstance(m, Learner)]
        for member in learners:
            try:
                member.learn(conversation, response)
            except Exception as error:  # noqa: BLE001 - the others learn all the same
                failures.append(error)
        if failures:
            raise failures[0]

    async def _ask(self, index: int, conversation: Conversation) -> list[Prediction]:
        predictions = await self.members[index].predict(conversation)
        return list(itertools.islice(predictions, MAX_PREDICTIONS))

    async def speak(self, index: int, conversation: Conversation) -> list[Prediction]:
        """Ask one member, and say what all that have answered say together."""
        answer = await self._ask(index, conversation)
        answers = self._remember(conversation).answers
        answers[index] = answer
        return self._merge(answers, conversation)

    def _remember(self, conversation: Conversation) -> _Opened:
        """Where the answers about a conversation as it stands now are kept."""
        moment = _moment(conversation)
        opened = self._open.get(moment)
        if opened is None or not opened.is_of(conversation.deps):
            opened = self._open[moment] = _Opened(conversation.deps)
        self._open.move_to_end(moment)
        while len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)
        return opened

    def _merge(self, answers: _Answers, conversation: Conversation) -> list[Prediction]:
        guesses = self._guesses(answers, conversation)
        merged = [self._settle(guess) for guess in guesses.values()]
        merged.sort(key=_rank)
        return merged[:MAX_PREDICTIONS]

    def _guesses(
        self, answers: _Answers, conversation: Conversation
    ) -> dict[_CallKey, _Guess]:
        """What was answered, equal calls put together.

        The k-th time that a member expects a call is the k-th time for all.
        """
        guesses: dict[_CallKey, _Guess] = {}
        for index in sorted(answers):
            times: dict[tuple[str, str], int] = {}
            for each in answers[index]:
                call = _call(each.tool, each.arguments_text, conversation)
                number = times[call] = times.get(call, -1) + 1
                guess = guesses.setdefault((*call, number), _Guess())
                guess.add(each, self._name(index, each))
        return guesses

    def _name(self, index: int, prediction: Prediction) -> str:
        return prediction.origin or type(self.members[index]).__name__

    def _settle(self, guess: _Guess) -> Prediction:
        stated = min(guess.stated, key=_rank)
        probability, eventually = guess.probability, guess.eventually
        if self.calibrate:
            scale = self._scales.get(guess.family)
            if scale is not None:
                probability = scale.correct(probability)
                eventually = scale.correct(eventually)
        arguments = stated.arguments_text
        return Prediction(
            tool=stated.tool,
            arguments=json.loads(arguments) if stated.styled else arguments,
            probability=probability,
            eventually=max(probability, eventually),
            origin=" + ".join(sorted(guess.origins)),
        )

    def _calibrate(self, conversation: Conversation, response: ModelResponse) -> None:
        opened = self._open.pop(_moment(conversation), None)
        if not (opened and self.calibrate and opened.is_of(conversation.deps)):
            return
        asked: dict[tuple[str, str], int] = {}
        for call in response.tool_calls:
            key = _call(call.name, call.arguments, conversation)
            asked[key] = asked.get(key, 0) + 1
        for key, guess in self._guesses(opened.answers, conversation).items():
            scale = self._scales.get(guess.family)
            if scale is None:
                if len(self._scales) >= MAX_ORIGINS:
                    del self._scales[next(iter(self._scales))]
                scale = self._scales[guess.family] = _Scale()
            scale.learn(guess.probability, hit=asked.get(key[:2], 0) > key[2])


class _Voice:
    """One member of a combination, which speaks for all that have answered."""

    def __init__(self, combination: Combination, index: int) -> None:
        self._combination = combination
        self._index = index
        member = combination.members[index]
        self.reads_partial: bool = getattr(member, "reads_partial", True)

    def __repr__(self) -> str:
        return f"<Voice {self._index + 1} of {self._combination!r}>"

    async def predict(self, conversation: Conversation, /) -> list[Prediction]:
        return await self._combination.speak(self._index, conversation)


class _LeadingVoice(_Voice):
    """The first voice: it learns and states results for all, so that it is done once."""

    def predict_results(
        self, call: ToolCall, conversation: Conversation, /
    ) -> list[ResultPrediction]:
        return self._combination.predict_results(call, conversation)

    def learn(self, conversation: Conversation, response: ModelResponse, /) -> None:
        self._combination.learn(conversation, response)


class _Opened:
    """What members have answered about one conversation, and whose that is.

    Answers may hold what a member has read in `deps`, so they are for just this object:
    its number alone would be given to another one after it.
    """

    __slots__ = ("_refer", "answers")

    def __init__(self, deps: object) -> None:
        self.answers: _Answers = {}
        self._refer: Callable[[], object]
        try:
            self._refer = weakref.ref(deps)
        except TypeError:
            self._refer = lambda: deps

    def is_of(self, deps: object) -> bool:
        return self._refer() is deps


@dataclass(slots=True)
class _Guess:
    """What the members say of one call."""

    stated: list[Prediction] = field(default_factory=list[Prediction])
    origins: set[str] = field(default_factory=set[str])

    def add(self, prediction: Prediction, origin: str) -> None:
        self.stated.append(prediction)
        self.origins.add(origin)

    @property
    def probability(self) -> float:
        """That one of them at least is right, as if they guessed independently."""
        return alive(sorted(each.probability for each in self.stated))

    @property
    def eventually(self) -> float:
        """The same, of what each expects sooner or later."""
        return alive(sorted(_eventually(each) for each in self.stated))

    @property
    def family(self) -> str:
        """Calls on which the same origins agree are calibrated together."""
        return "\n".join(sorted(self.origins))


class _Scale:
    """A correction of probabilities, learned online: `a * logit(p) + b`.

    Platt's scaling, with a Gaussian belief about `a` and `b` that each outcome sharpens
    (the extended Kalman filter of a logistic model), and that widens a little at each
    step, so that it follows what changes. It begins at `a = 1`, `b = 0`: no correction.
    """

    __slots__ = ("_a", "_aa", "_ab", "_b", "_bb")

    DRIFT = 0.002
    WIDEST = 1.0

    def __init__(self) -> None:
        self._a, self._b = 1.0, 0.0
        self._aa, self._ab, self._bb = 0.1, 0.0, 1.0  # their covariance

    def correct(self, probability: float) -> float:
        """The probability to go by. It keeps the order of those that are corrected."""
        corrected = clip(_expit(self._a * _logit(probability) + self._b))
        return min(corrected, probability) if probability < FLOOR else corrected

    def learn(self, probability: float, *, hit: bool) -> None:
        """A call of this probability was asked for, or was not."""
        x = _logit(probability)
        expected = _expit(self._a * x + self._b)
        # An outcome that was as good as certain says little; a surprise, never too much.
        spread = max(0.02, expected * (1 - expected))
        along_a = self._aa * x + self._ab
        along_b = self._ab * x + self._bb
        gain = spread / (1 + spread * (along_a * x + along_b))
        step = (hit - expected) * gain / spread
        self._a = min(4.0, max(0.05, self._a + along_a * step))
        self._b = min(8.0, max(-8.0, self._b + along_b * step))
        self._aa = min(self.WIDEST, self._aa - gain * along_a * along_a + self.DRIFT)
        self._bb = min(self.WIDEST, self._bb - gain * along_b * along_b + self.DRIFT)
        self._ab -= gain * along_a * along_b
        limit = math.sqrt(self._aa * self._bb) * 0.99
        self._ab = min(limit, max(-limit, self._ab))


def _moment(conversation: Conversation) -> _Moment:
    return id(conversation.deps), conversation.messages


def _call(name: str, arguments: str, conversation: Conversation) -> tuple[str, str]:
    tool = conversation.tools.get(name)
    if tool is None:
        canonical = canonical_arguments(arguments)
    else:
        ignored = tool.ignore_arguments
        canonical = canonical_arguments(arguments, ignored_prefixes=ignored)
    return name, f"\0{arguments}" if canonical is None else canonical


def _eventually(prediction: Prediction) -> float:
    if prediction.eventually is None:
        return prediction.probability
    return prediction.eventually


def _rank(prediction: Prediction) -> tuple[float, float, bool, str, str]:
    """The most probable first; of equal ones any fixed order."""
    return (
        -prediction.probability,
        -_eventually(prediction),
        prediction.styled,
        prediction.tool,
        prediction.arguments_text,
    )


def _logit(probability: float) -> float:
    bounded = min(CAP, max(FLOOR, probability))
    return math.log(bounded / (1 - bounded))


def _expit(x: float) -> float:
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    return math.exp(x) / (1 + math.exp(x))
