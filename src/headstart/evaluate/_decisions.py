"""Asks a predictor at every decision point of recorded runs, and scores what it says."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headstart._calls import canonical_arguments
from headstart._tools import Effect
from headstart.predictors import Conversation, Prediction

from ._clock import cpu_seconds
from ._scores import DEPTHS, Judged, Key, Score, judge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from headstart._tools import Tool
    from headstart.replay import RecordedRun, RecordedTurn

    from ._predictors import Seat
    from ._runs import GroupedRun

logger = logging.getLogger("headstart")

MAX_PREDICTIONS = 64
"""So many predictions of an answer are looked at: as many as a session does."""
_CONSTANT_FROM = 2
"""A call that so many groups of training runs ask for is a constant."""
_GROUPS_KEPT = 2
"""The last runs of so many groups are kept for it: one is another than the next's."""
_KEPT = 16
"""So many of the most probable are kept of each decision for the leak control."""


@dataclass(slots=True)
class Failures:
    """What a predictor raised: an engine contains it, and so does an evaluation."""

    count: int = 0
    first: str | None = None

    def note(self, error: Exception) -> None:
        """Count one failure."""
        logger.debug("The evaluated predictor failed.", exc_info=error)
        self.count += 1
        if self.first is None:
            self.first = f"{type(error).__name__}: {error}"


@dataclass(slots=True)
class LeakControl:
    """Predictions of one run, scored against the calls of another one.

    What a predictor knows of one conversation is of no use in another, but for calls
    that are the same everywhere. More hits than those mean that it carries something
    from run to run, or that both sides of a split share what they should not.

    Attributes:
        pairs: Pairs of runs.
        score: Each answer of one run against the answer at the same place of the other.
        read_score: The same for reads.
        calls: Calls of the other runs.
        anywhere: Those among the five most probable predictions of any decision.
        beyond_constants: Those of them that are no constants: which training runs of
            two groups do not both ask for, word for word.
    """

    pairs: int = 0
    score: Score = field(default_factory=Score)
    read_score: Score = field(default_factory=Score)
    calls: int = 0
    anywhere: int = 0
    beyond_constants: int = 0


@dataclass(slots=True)
class Scoring:
    """What is counted over all decision points.

    Attributes:
        all: Of all calls.
        read_only: Of calls of `READ` tools, ranked among predictions of such.
        leak: The leak control.
        decisions: Decision points.
        without_call: Those whose answer asks for no call.
        milliseconds: What each decision took of the processor.
        repeated: Calls that a training run asks for, word for word.
        repeated_reads: Those of them of `READ` tools.
        failures: What the predictor raised.
    """

    all: Score = field(default_factory=Score)
    read_only: Score = field(default_factory=Score)
    leak: LeakControl = field(default_factory=LeakControl)
    decisions: int = 0
    without_call: int = 0
    milliseconds: list[float] = field(default_factory=list[float])
    repeated: int = 0
    repeated_reads: int = 0
    failures: Failures = field(default_factory=Failures)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decision:
    """One answer of a run, and the predictions of it."""

    judged: tuple[Judged, ...]
    asked: tuple[Key | None, ...]
    tools: tuple[str, ...]


class Examiner:
    """Scores a trained predictor on the test runs of one fold.

    Args:
        tools: All tools by name.
        training: What the predictor was told.
        scoring: Where everything is counted.
    """

    def __init__(
        self,
        tools: Mapping[str, Tool],
        training: Iterable[GroupedRun],
        scoring: Scoring,
    ) -> None:
        self._tools = tools
        self._known = _count_groups(training)
        self._latest: dict[int, list[_Decision]] = {}
        self._scoring = scoring

    def examine(self, each: GroupedRun, seat: Seat) -> None:
        """Score a test run, and compare it with the last one of another group.

        Args:
            each: The run.
            seat: Its predictor, which was told of the training runs.
        """
        decisions = self._examine_run(each.run, seat)
        self._latest.pop(each.group, None)
        if self._latest:
            self._compare(decisions, list(self._latest.values())[-1])
        self._latest[each.group] = decisions
        while len(self._latest) > _GROUPS_KEPT:
            del self._latest[next(iter(self._latest))]

    def _examine_run(self, run: RecordedRun, seat: Seat) -> list[_Decision]:
        scoring = self._scoring
        turns = list(run.turns.values())
        keys = [_keys(turn) for turn in turns]
        later = _calls_until_write(keys, turns, self._is_read)
        decisions: list[_Decision] = []
        seat.prepare()
        for turn, asked, ahead in zip(turns, keys, later, strict=True):
            conversation = Conversation(
                messages=run.messages[: turn.position], tools=self._tools
            )
            judged = judge(self._ask(seat, conversation), asked, ahead)
            tools = [recorded.call.name for recorded in turn.calls]
            scoring.decisions += 1
            scoring.without_call += not tools
            scoring.all.add(judged, asked, tools)
            reads = self._only_reads(judged, asked, tools)
            scoring.read_only.add(reads.judged, reads.asked, reads.tools)
            scoring.repeated += sum(key in self._known for key in asked)
            scoring.repeated_reads += sum(key in self._known for key in reads.asked)
            decisions.append(
                _Decision(
                    judged=tuple(judged[:_KEPT]), asked=tuple(asked), tools=tuple(tools)
                )
            )
            try:
                seat.learn(conversation, turn.response)
            except Exception as error:  # noqa: BLE001 - contained, as in a session
                scoring.failures.note(error)
        return decisions

    def _ask(self, seat: Seat, conversation: Conversation) -> list[Judged]:
        started = cpu_seconds()
        try:
            proposed = list(
                itertools.islice(seat.propose(conversation), MAX_PREDICTIONS)
            )
        except Exception as error:  # noqa: BLE001 - contained, as in a session
            self._scoring.failures.note(error)
            return []
        finally:
            self._scoring.milliseconds.append(1000 * (cpu_seconds() - started))
        return [_read(each) for each in seat.remember(conversation, proposed)]

    def _is_read(self, tool: str) -> bool:
        found = self._tools.get(tool)
        return found is not None and found.effect is Effect.READ

    def _only_reads(
        self,
        judged: Sequence[Judged],
        asked: Sequence[Key | None],
        tools: Sequence[str],
    ) -> _Decision:
        kept = [
            (key, tool)
            for key, tool in zip(asked, tools, strict=True)
            if self._is_read(tool)
        ]
        return _Decision(
            judged=tuple(each for each in judged if self._is_read(each.tool)),
            asked=tuple(key for key, _ in kept),
            tools=tuple(tool for _, tool in kept),
        )

    def _compare(self, decisions: list[_Decision], others: list[_Decision]) -> None:
        """Score the predictions of one run against the calls of another."""
        leak = self._scoring.leak
        leak.pairs += 1
        for ours, theirs in zip(decisions, others, strict=False):
            leak.score.add(ours.judged, theirs.asked, theirs.tools)
            reads = self._only_reads(ours.judged, theirs.asked, theirs.tools)
            leak.read_score.add(reads.judged, reads.asked, reads.tools)
        deepest = max(DEPTHS)
        predicted = {each.key for ours in decisions for each in ours.judged[:deepest]}
        for key in itertools.chain.from_iterable(each.asked for each in others):
            leak.calls += 1
            if key is not None and key in predicted:
                leak.anywhere += 1
                leak.beyond_constants += self._known.get(key, 0) < _CONSTANT_FROM


def _read(prediction: Prediction) -> Judged:
    eventually = prediction.eventually
    return Judged(
        tool=prediction.tool,
        key=_key(prediction.tool, prediction.arguments_text),
        probability=prediction.probability,
        eventually=prediction.probability if eventually is None else eventually,
    )


def _key(tool: str, arguments: str) -> Key | None:
    canonical = canonical_arguments(arguments)
    return None if canonical is None else (tool, canonical)


def _keys(turn: RecordedTurn) -> list[Key | None]:
    return [_key(each.call.name, each.call.arguments) for each in turn.calls]


def _count_groups(runs: Iterable[GroupedRun]) -> dict[Key, int]:
    """In how many groups each call is asked for."""
    groups: dict[Key, set[int]] = {}
    for each in runs:
        for turn in each.run.turns.values():
            for key in _keys(turn):
                if key is not None:
                    groups.setdefault(key, set()).add(each.group)
    return {key: len(found) for key, found in groups.items()}


def _calls_until_write(
    keys: Sequence[Sequence[Key | None]],
    turns: Sequence[RecordedTurn],
    is_read: Callable[[str], bool],
) -> list[list[Key]]:
    """For each answer the calls of those after it, up to and with the next write.

    Nothing stands there for an answer with a write in it: what it read is stale then.
    """
    later: list[list[Key]] = []
    following: list[Key] = []
    for asked, turn in zip(reversed(keys), reversed(turns), strict=True):
        reads = [is_read(each.call.name) for each in turn.calls]
        later.append([] if not all(reads) else following)
        if all(reads):
            own = [key for key in asked if key is not None]
            following = [*own, *following]
        else:
            following = [
                key for key in asked[: reads.index(False) + 1] if key is not None
            ]
    return later[::-1]
