"""How probable each candidate call is, next and before something is written."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

from ._reliability import Reliability
from ._sources import shown
from ._weights import LEAST_GRADIENT, Weights, logistic, logit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._history import CallKey
    from ._moment import Moment
    from ._options import Chosen

_write_text = json.JSONEncoder().encode
MAX_CANDIDATES = 16
"""Candidates of one moment that are weighed."""
MAX_TOGETHER = 12
"""Candidates of one tool and conversation that are learned from together."""
CAUTION = 1.28
"""In standard errors: what is stated should hold with 90 %."""

_COMPETING = 0.4
"""How much the competition of values counts for later answers: if one value is asked for
now, the others may be in time."""


class Candidate:
    """A call that may be asked for.

    Attributes:
        tool: The tool's name.
        own: Where the weights of its tool are.
        shared: Where those of all tools are.
        arguments: The arguments.
        is_read: Whether the tool is known to change nothing.
        key: What equal calls have in common.
        features: What is known about it.
        base: Its log-odds by the choice of the tool and of the arguments alone.
        later_base: The same for later answers, where values compete less.
        origin: Where its arguments come from.
        next: The probability that it is in the next answer, uncorrected.
        later: The probability that it is in that or a later one, uncorrected.
    """

    __slots__ = (
        "arguments",
        "base",
        "features",
        "is_read",
        "key",
        "later",
        "later_base",
        "next",
        "origin",
        "own",
        "shared",
        "tool",
    )

    def __init__(
        self, tool: str, chosen: Chosen, names: tuple[str, ...], mode: str
    ) -> None:
        self.tool = tool
        self.own = f"{tool}{mode}"
        self.shared = f"*{mode}"
        self.arguments: dict[str, Any] = {
            name: option.value for name, option in zip(names, chosen, strict=True)
        }
        members = [f"{name}{chosen[i].written}" for i, name in _written_names(names)]
        self.key: CallKey = (tool, f"{{{','.join(members)}}}")
        self.is_read = False
        self.features: list[str] = []
        self.base = 0.0
        self.later_base = 0.0
        self.next = 0.0
        self.later = 0.0
        sources = [option.sources[0] for option in chosen]
        self.origin = ",".join(map(shown, sources))[:100]


@functools.lru_cache(maxsize=1_024)
def _written_names(names: tuple[str, ...]) -> tuple[tuple[int, str], ...]:
    """Names as canonical JSON has them: the place of each, and how it is written."""
    order = sorted(range(len(names)), key=names.__getitem__)
    return tuple([(i, f"{_write_text(names[i])}:") for i in order])


class Ranking:
    """Learns how probable candidates are, from all that is known about them.

    Both probabilities are logistic regressions that start from what the tool's and the
    arguments' own models say, and learn by what that is off.
    """

    def __init__(self) -> None:
        self.next = Weights(rate=0.08)
        self.later = Weights(rate=0.12)
        self.next_reliability = Reliability(caution=CAUTION)
        self.later_reliability = Reliability(caution=CAUTION)

    def weigh(self, candidates: Sequence[Candidate]) -> None:
        """Set the probabilities of candidates."""
        for each in candidates:
            features = each.features
            z = each.base + self.next.scope(each.own).total(features)
            each.next = logistic(z + self.next.scope(each.shared).total(features))
            if each.is_read:  # what may change something is never launched early
                each.later = self._later(each)

    def _later(self, candidate: Candidate) -> float:
        features = candidate.features
        z = candidate.later_base + self.later.scope(candidate.own).total(features)
        return logistic(z + self.later.scope(candidate.shared).total(features))

    def learn_next(self, candidate: Candidate, *, came_true: bool) -> None:
        """Learn whether a candidate was in the next answer."""
        self.next_reliability.learn(candidate.own, candidate.next, came_true=came_true)
        _learn(self.next, candidate, candidate.next - came_true)

    def learn_later(self, candidates: Sequence[Candidate], *, came_true: bool) -> None:
        """Learn whether candidates were asked for before something was written.

        Args:
            candidates: Those of one conversation of which this is known now.
            came_true: Whether they were.
        """
        by_tool: dict[str, list[Candidate]] = {}
        for each in candidates:
            self.later_reliability.learn(each.own, each.later, came_true=came_true)
            by_tool.setdefault(each.tool, []).append(each)
        # They were expected at many moments, and are one and the same experience: all
        # those of a tool together move its weights as far as one would. So a few of
        # them tell what there is to learn.
        for together in by_tool.values():
            few = together[:: -(-len(together) // MAX_TOGETHER)]
            for each in few:
                # Much may have been learned since the candidate was weighed.
                now = self._later(each)
                _learn(self.later, each, now - came_true, share=1 / len(few))

    def merge(self, other: Ranking) -> None:
        """Take in what others learned."""
        self.next.merge(other.next)
        self.later.merge(other.later)
        self.next_reliability.merge(other.next_reliability)
        self.later_reliability.merge(other.later_reliability)


def _learn(
    weights: Weights, candidate: Candidate, gradient: float, *, share: float = 1.0
) -> None:
    if abs(gradient) > LEAST_GRADIENT:
        weights.step(candidate.own, candidate.features, gradient, share=share)
        weights.step(candidate.shared, candidate.features, gradient, share=share)


def describe(
    candidate: Candidate,
    chosen: Chosen,
    moment: Moment,
    *,
    tool_p: float,
    arguments_log_p: float,
    rank: int,
    fresh: int,
) -> None:
    """Note what is known about a candidate.

    Args:
        candidate: The candidate.
        chosen: Its arguments.
        moment: When it may be asked for.
        tool_p: The probability that its tool is.
        arguments_log_p: The logarithm of the probability that, if so, with these
            arguments.
        rank: Its place among the candidates of the tool.
        fresh: How many of these the model has not asked for yet.
    """
    made = moment.made.get(candidate.key)
    if made is None:
        past = "never"
    else:
        past = "stale" if made.at <= moment.last_write else "known"
        past += "!" if made.failed else ""
        past += "+" if made.at == moment.calls[-1].at else ""
    newest, widest = moment.widths
    mention = chosen[0].mention if len(chosen) == 1 else ""
    if len(chosen) > 1:
        mention = "".join([option.mention for option in chosen])
    last = moment.symbols[-1] if moment.symbols else ""
    source = candidate.origin
    tool_logit = logit(tool_p)
    candidate.is_read = moment.is_read(candidate.tool)
    candidate.base = tool_logit + arguments_log_p
    candidate.later_base = tool_logit + _COMPETING * arguments_log_p
    rank = min(rank, 5)
    candidate.features = [
        "bias",
        f"made:{past}",
        f"rank:{rank}{widest}{newest}",
        f"rank:{rank}/{min(fresh, 6)}",
        f"stage:{moment.stage}",
        f"last:{last}",
        f"mention:{mention}",
        f"source:{source}",
        f"source:{source}/{last}",
        f"a:{int(max(arguments_log_p, -6) * 2)}",
        f"t:{int(tool_logit)}",
        f"n:{min(moment.user_turns, 4)}",
        f"k:{moment.calls_since_user}/{past}",
    ]
