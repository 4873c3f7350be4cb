"""A predictor that learns from confirmed answers which calls come next."""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING, Any

from headstart.predictors._predictor import Conversation, Prediction
from headstart.predictors._results import LearnedResults

from ._arguments import ArgumentModel
from ._choices import ChoiceModel
from ._contexts import NO_CALL
from ._familiar import Familiar
from ._file import (
    VERSION,
    check_version,
    load_patterns,
    read_counts,
    read_number,
    read_reliability,
    read_weights,
    save_patterns,
    write_counts,
    write_reliability,
    write_weights,
)
from ._history import Histories, History, call_key, read_arguments
from ._moment import Moment
from ._ranking import MAX_CANDIDATES, Candidate, Ranking, describe
from ._sources import is_own
from ._weights import Weights, logit
from ._writing import Writing

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from headstart._calls import ToolCall
    from headstart._messages import ModelResponse
    from headstart._tools import Tool
    from headstart.predictors._predictor import ResultPrediction

    from ._history import CallKey
    from ._options import Chosen

MAX_PREDICTIONS = 16
LEAST_PROBABILITY = 0.002
"""Less probable calls are not proposed."""
LEAST_READ, LEAST_OTHER = 0.01, 0.1
"""Tools that are less probable are not looked at: reads, and others."""
MAX_WRITES = 1
"""Tools that may change something are never launched early: few are looked at."""
LEAST = 0.0002
"""Nor are calls that are, by tool and arguments alone."""
FIRST_ANSWERS, ONE_IN = 800, 4
"""After so many answers, candidates and tools are weighed for one answer in so many,
beside the moments that calls were predicted for: that is the greater part of the work, and
little is left to learn from it."""
ONE_WRITTEN_IN = 3
"""Of answers without calls, what is known while they are written is learned of one in so
many; of those with calls always."""
_MAX_WAITING = 600
"""Candidates of one conversation whose outcome is not known yet."""


class PatternPredictor:
    """Learns which tools follow which, and where their arguments come from.

    It begins empty, learns from every confirmed answer, and forgets slowly. Nothing it
    does waits, and what it costs is bounded by what it may remember.

    Args:
        results: What states results as well, learns with it, and is kept in the same
            file; nothing does if not given.
    """

    def __init__(self, *, results: LearnedResults | None = None) -> None:
        self.results = results
        self._familiar = Familiar()
        self._choices = ChoiceModel(self._familiar)
        self._arguments = ArgumentModel(self._familiar)
        self._ranking = Ranking()
        self._writing = Writing()
        self._histories = Histories()
        self._waiting: dict[History, list[Candidate]] = {}
        self._newest: Moment | None = None
        self.runs = 0
        self.answers = 0

    async def predict(self, conversation: Conversation, /) -> list[Prediction]:
        """The calls that are expected now, the most probable first."""
        return self.propose(conversation)

    def propose(self, conversation: Conversation, /) -> list[Prediction]:
        """`predict` as a plain function."""
        moment = self._moment(conversation)
        candidates = self._candidates(moment)
        last = moment.symbols[-1].lstrip(":") if moment.symbols else ""
        style = self._writing.find_style(moment)
        predictions: list[Prediction] = []
        for each in candidates:
            p = self._ranking.next_reliability.correct(each.own, each.next)
            later = None
            if moment.is_read(each.tool):
                later = self._ranking.later_reliability.correct(each.own, each.later)
                later = max(p, later)
            if max(p, later or 0.0) >= LEAST_PROBABILITY:
                prediction = Prediction(
                    tool=each.tool,
                    arguments=self._writing.write(
                        each.tool, each.arguments, moment, style
                    ),
                    probability=p,
                    eventually=later,
                    origin=f"patterns:{last}/{each.origin}",
                )
                predictions.append(prediction)
        predictions.sort(key=lambda found: -found.probability)
        return predictions[:MAX_PREDICTIONS]

    def predict_results(
        self, call: ToolCall, conversation: Conversation, /
    ) -> list[ResultPrediction]:
        """What a call is expected to give, if results are learned, too."""
        if self.results is None:
            return []
        return self.results.predict_results(call, conversation)

    def probability_of_no_call(self, conversation: Conversation, /) -> float:
        """The probability that the next answer asks for no call at all."""
        return self._choices.probabilities(self._moment(conversation))[NO_CALL]

    def _moment(self, conversation: Conversation) -> Moment:
        messages = conversation.messages
        history, gone = self._histories.find(messages)
        for each in gone:
            self._end(each)
        partial, tools = conversation.partial, conversation.tools
        return self._moment_of(history, len(messages), tools, partial)

    def _moment_of(
        self,
        history: History,
        length: int,
        tools: Mapping[str, Tool],
        partial: str = "",
    ) -> Moment:
        """A moment, with what was found out if it was looked at just before."""
        newest = self._newest
        if newest is None or not newest.matches(history, length, tools, partial):
            newest = Moment(history, length, partial=partial, tools=tools)
            self._newest = newest
        return newest

    def learn(self, conversation: Conversation, response: ModelResponse, /) -> None:
        """Learn from a confirmed answer to this conversation."""
        messages, tools = conversation.messages, conversation.tools
        history, gone = self._histories.find(messages, learning=True)
        for each in gone:
            self._end(each)
        if history not in self._waiting:
            self.runs += 1
            self._waiting[history] = []
        moment = self._moment_of(history, len(messages), tools)
        self._newest = None  # what it found out is to be learned from, once
        calls = response.tool_calls
        self.answers += 1
        moments = [moment]
        if self.answers <= FIRST_ANSWERS or self.answers % ONE_IN == 0:
            if response.text and (calls or self.answers % ONE_WRITTEN_IN == 0):
                moments.append(moment.while_writing(response.text))
            earlier = moment.asked_now and moment.length > 1
            self._weigh_anew([*moments, moment.before()] if earlier else moments, calls)
        elif moment.candidates is not None:
            self._weigh_anew(moments, calls)
        self._settle(history, moment, calls)
        tools_asked = [call.name for call in calls]
        for each in moments:
            if each.candidates is None:
                self._choices.count(each, tools_asked)
            else:
                self._choices.learn(each, tools_asked, history.topic)
            for call in calls:
                arguments = read_arguments(call)
                self._arguments.learn(call.name, arguments, each, history.topic)
        self._writing.learn(calls)
        history.learned = len(messages)
        if self.results is not None:
            self.results.learn(conversation, response)

    def _weigh_anew(self, moments: Iterable[Moment], calls: Sequence[ToolCall]) -> None:
        """Learn how probable what was, or would have been, proposed is."""
        asked = {call_key(call) for call in calls}
        for each in moments:
            waiting = self._waiting[each.history]
            for candidate in self._candidates(each):
                self._ranking.learn_next(candidate, came_true=candidate.key in asked)
                if candidate.is_read:
                    waiting.append(candidate)

    def _settle(
        self, history: History, moment: Moment, calls: Iterable[ToolCall]
    ) -> None:
        """Learn what came of candidates that were waiting for an answer like this."""
        waiting = self._waiting[history]
        asked: set[CallKey] = set()
        writes = False
        for call in calls:
            asked.add(call_key(call))
            writes = writes or not moment.is_read(call.name)
        if asked:
            came = [each for each in waiting if each.key in asked]
            self._ranking.learn_later(came, came_true=True)
            waiting = [each for each in waiting if each.key not in asked]
        kept = 0 if writes else _MAX_WAITING
        gone = max(0, len(waiting) - kept)
        self._ranking.learn_later(waiting[:gone], came_true=False)
        self._waiting[history] = waiting[gone:]

    def settle(self) -> None:
        """Take all conversations for ended: what is still expected will not come."""
        for history in self._histories.drain():
            self._end(history)
        self._newest = None

    def merge(self, other: PatternPredictor) -> None:
        """Take in what another predictor learned, from other runs."""
        self.runs += other.runs
        self.answers += other.answers
        self._familiar.merge(other._familiar)
        self._choices.merge(other._choices)
        self._arguments.merge(other._arguments)
        self._ranking.merge(other._ranking)
        if other.results is not None:
            if self.results is None:
                self.results = LearnedResults()
            self.results.merge(other.results)
        self._writing.merge(other._writing)
        self._newest = None

    def to_dict(self) -> dict[str, Any]:
        """What was learned, as JSON: structure and figures, no values of a single run."""
        learned: dict[str, Any] = {
            "version": VERSION,
            "runs": self.runs,
            "answers": self.answers,
            "familiar": sorted(self._familiar.known),
            "contexts": write_counts(self._choices.contexts.contexts),
            "choices": write_weights(self._choices.weights.by_outcome()),
            "signatures": write_counts(self._arguments.signatures),
            "sources": write_counts(self._arguments.sources),
            "arguments": write_weights(self._arguments.weights),
            "constants": write_weights(self._arguments.words),
            "writing": write_counts(self._writing.counts),
            "next": write_weights(self._ranking.next),
            "later": write_weights(self._ranking.later),
            "next_reliability": write_reliability(self._ranking.next_reliability),
            "later_reliability": write_reliability(self._ranking.later_reliability),
        }
        if self.results is not None:
            learned["results"] = self.results.to_dict()
        return learned

    @classmethod
    def from_dict(cls, data: object) -> PatternPredictor:
        """Read what `to_dict` wrote.

        Raises:
            UsageError: These are no patterns, or of another version.
        """
        tables = check_version(data)
        patterns = cls()
        if "results" in tables:
            patterns.results = LearnedResults.from_dict(tables["results"])
        patterns.runs = int(read_number(tables.get("runs", 0), "runs"))
        patterns.answers = int(read_number(tables.get("answers", 0), "answers"))
        patterns._familiar.read(tables.get("familiar", []))
        choices, arguments = patterns._choices, patterns._arguments
        choices.contexts.read(read_counts(tables, "contexts"))
        by_outcome = Weights(choices.weights.rate)
        read_weights(tables, "choices", by_outcome)
        choices.weights.read(by_outcome)
        arguments.read(
            signatures=read_counts(tables, "signatures"),
            sources=read_counts(tables, "sources"),
        )
        read_weights(tables, "arguments", arguments.weights)
        read_weights(tables, "constants", arguments.words)
        patterns._writing.read(read_counts(tables, "writing"))
        ranking = patterns._ranking
        read_weights(tables, "next", ranking.next)
        read_weights(tables, "later", ranking.later)
        read_reliability(tables, "next_reliability", ranking.next_reliability)
        read_reliability(tables, "later_reliability", ranking.later_reliability)
        return patterns

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was learned to a JSON file.

        Raises:
            UsageError: It cannot be written.
        """
        save_patterns(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PatternPredictor:
        """Read a file that `save` wrote.

        Raises:
            UsageError: It cannot be read, or holds no patterns.
        """
        return cls.from_dict(load_patterns(path))

    def _end(self, history: History) -> None:
        self._ranking.learn_later(self._waiting.pop(history, []), came_true=False)

    def _candidates(self, moment: Moment) -> list[Candidate]:
        """What may be asked for, weighed, the best by tool and arguments alone."""
        if moment.candidates is None:
            moment.candidates = self._find_candidates(moment)
        return moment.candidates

    def _find_candidates(self, moment: Moment) -> list[Candidate]:
        found: list[tuple[float, float, str, float, Chosen, tuple[str, ...]]] = []
        best: list[float] = []  # the scores of the best, as a heap
        fresh: dict[str, int] = {}
        writes = 0
        probable = self._choices.probabilities(moment).items()
        for tool, tool_p in sorted(probable, key=lambda pair: -pair[1]):
            base = logit(tool_p)
            if len(best) == MAX_CANDIDATES and best[0] >= base:
                break  # what is less probable comes in no case among the best
            floor = LEAST_READ if moment.is_read(tool) else LEAST_OTHER
            if tool == NO_CALL or tool_p < floor:
                continue
            if not moment.is_read(tool):
                writes += 1
                if writes > MAX_WRITES:
                    continue
            known = moment.tools.get(tool)
            guarded = known is not None and known.egress
            for chosen, names, log_p in self._arguments.assignments(
                tool, moment, math.log(LEAST / tool_p)
            ):
                if guarded and any(not is_own(o.sources[0]) for o in chosen):
                    continue
                score = base + log_p
                found.append((score, tool_p, tool, log_p, chosen, names))
                if len(best) < MAX_CANDIDATES:
                    heapq.heappush(best, score)
                else:
                    heapq.heappushpop(best, score)
                fresh[tool] = fresh.get(tool, 0) + any(o.fresh for o in chosen)
        found.sort(key=lambda each: -each[0])
        candidates: list[Candidate] = []
        seen: set[tuple[str, str]] = set()
        ranks: dict[str, int] = {}
        for _, tool_p, tool, log_p, chosen, names in found[:MAX_CANDIDATES]:
            candidate = Candidate(tool, chosen, names, moment.mode)
            if candidate.key in seen:
                continue
            seen.add(candidate.key)
            rank = ranks.get(tool, 0)
            describe(
                candidate,
                chosen,
                moment,
                tool_p=tool_p,
                arguments_log_p=log_p,
                rank=rank,
                fresh=fresh[tool],
            )
            ranks[tool] = rank + (candidate.key not in moment.made)
            candidates.append(candidate)
        self._ranking.weigh(candidates)
        return candidates
