"""Counts of what came true, and the probability that follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headstart._calls import ToolResult

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping

    from headstart._messages import Message

FLOOR, CAP = 0.02, 0.98
"""No learned probability is beyond these: what was learned may have been planted."""
HALF_LIFE = 200.0
"""Trials after which one counts half."""
MAX_TALLIES = 256
SAY = 3.0
"""Trials of one case that count for what the others of its family start from."""
_KEPT = 0.5 ** (1 / HALF_LIFE)


@dataclass(slots=True)
class Tally:
    """Hits and misses, the recent ones counting most."""

    hits: float = 0.0
    misses: float = 0.0

    @property
    def trials(self) -> float:
        """How many there were, as far as they still count."""
        return self.hits + self.misses

    def note(self, *, hit: bool) -> None:
        """Count one more."""
        self.hits = self.hits * _KEPT + hit
        self.misses = self.misses * _KEPT + (not hit)

    def add(self, other: Tally) -> None:
        """Count what another has counted."""
        self.hits += other.hits
        self.misses += other.misses

    def chance(self, prior: float, *, weight: float = 2.0) -> float:
        """The mean of the posterior, where `prior` counts as `weight` trials."""
        return (prior * weight + self.hits) / (weight + self.trials)


class Chances:
    """A tally for each of a family of cases, each of which starts from all of them.

    A case that was never tried is taken to do like the others of its family, each of
    which has the same say, however often it was tried.

    Args:
        priors: Each family's chance, before anything was seen.
    """

    def __init__(self, priors: Mapping[str, float]) -> None:
        self._priors = priors
        self._cases: dict[str, dict[Hashable, Tally]] = {each: {} for each in priors}
        self._general = dict(priors)

    def note(self, family: str, case: Hashable, *, hit: bool) -> None:
        """Count one more of a case."""
        cases = self._cases[family]
        known = cases.get(case)
        if known is None:
            if len(cases) >= MAX_TALLIES:
                del cases[next(iter(cases))]
            known = cases[case] = Tally()
        known.note(hit=hit)
        everything = Tally()
        for each in cases.values():
            say = min(1.0, SAY / each.trials)
            everything.add(Tally(each.hits * say, each.misses * say))
        self._general[family] = everything.chance(self._priors[family])

    def chance(self, family: str, case: Hashable) -> float:
        """The probability of a hit, within `FLOOR` and `CAP`."""
        general = self._general[family]
        known = self._cases[family].get(case)
        return clip(general if known is None else known.chance(general))


def clip(probability: float) -> float:
    """The probability within `FLOOR` and `CAP`."""
    return min(CAP, max(FLOOR, probability))


def alive(probabilities: Iterable[float]) -> float:
    """The probability that one at least of independent guesses is right."""
    missed = 1.0
    for each in probabilities:
        missed *= 1.0 - each
    return 1.0 - missed


def result_of(message: Message) -> ToolResult:
    """The result that a tool message tells."""
    return ToolResult(message.content, is_error=message.is_error)


def ended_calls(
    messages: tuple[Message, ...],
) -> Iterator[tuple[int, str, str, ToolResult]]:
    """The calls whose results end a conversation: those that nothing has learned yet.

    Yields the position of the message that asks for each call, its tool, its arguments
    and its result.
    """
    results: dict[str | None, ToolResult] = {}
    position = len(messages)
    for message in reversed(messages):
        position -= 1
        if message.role == "tool":
            results.setdefault(message.tool_call_id, result_of(message))
            continue
        for call in message.tool_calls:
            if call.id in results:
                yield position, call.name, call.arguments, results[call.id]
        return
