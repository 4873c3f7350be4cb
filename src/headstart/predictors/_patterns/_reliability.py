"""How often stated probabilities came true: what final probabilities are bound by."""

from __future__ import annotations

import math

from ._weights import logistic, logit

BINS = 12
MAX_SEEN = 400.0
"""Outcomes that are remembered of each bin: more, and the older count half."""
_PRIOR = 12.0
"""How many outcomes that are as stated each bin begins with."""
_SURE = 0.985
_UNSEEN = 0.45
"""What is stated at most where nothing like it was seen: less than of a coin."""
_UNBOUND = 1.5 / BINS
"""What is below any bound but that of the last bin."""
_KNOWN = 4.0
"""What is known of log-odds before anything was seen, as the inverse of a variance."""

Bins = list[list[float]]
"""By stated probability: how often, the sum of what was stated, how often it came true."""


class Reliability:
    """Corrects stated probabilities by what came of them, for each tool.

    Args:
        caution: How many standard errors are taken off the log-odds, so that what is
            stated holds, and not only on average.
    """

    def __init__(self, *, caution: float = 0.0) -> None:
        self.caution = caution
        self.bins: dict[str, Bins] = {}
        self._tables: dict[str, _Table] = {}  # by tool, until it learns

    def correct(self, tool: str, stated: float) -> float:
        """The probability to state, which keeps the order of what is stated nearly.

        It is never above what was seen to hold: without any outcome it is rather
        improbable, and never much above the share of such outcomes that came true.
        """
        bins = self.bins.get(tool)
        if bins is None:
            return min(stated, _UNSEEN)
        lower, upper, share = _between(stated)
        table = self._tables.get(tool)
        if table is None:
            table = self._tables[tool] = _Table(bins)
        shift = table.shift(lower) * (1 - share) + table.shift(upper) * share
        odds = logit(stated) + shift
        held = logistic(odds)
        near = bins[lower][0] * (1 - share) + bins[upper][0] * share
        doubt = 1 / math.sqrt(near * held * (1 - held) + _KNOWN)
        cautious = logistic(odds - self.caution * doubt)
        if cautious <= _UNBOUND and lower < BINS - 1:
            return cautious
        seen, true = table.seen[lower], table.true[lower]
        most = (true + 2 * _UNSEEN) / (seen + 2)
        return min(
            cautious,
            most if lower == BINS - 1 else max(most, (lower + 1.5) / BINS),
            (true + 2 * _UNSEEN) / (true + 2),
            _SURE,
        )

    def learn(self, tool: str, stated: float, *, came_true: bool) -> None:
        """Note what came of a stated probability."""
        bins = self.bins.get(tool)
        if bins is None:
            bins = self.bins[tool] = [[0.0, 0.0, 0.0] for _ in range(BINS)]
        self._tables.pop(tool, None)
        entry = bins[min(int(stated * BINS), BINS - 1)]
        entry[0] += 1
        entry[1] += stated
        entry[2] += came_true
        if entry[0] > MAX_SEEN:
            entry[:] = [count / 2 for count in entry]

    def merge(self, other: Reliability) -> None:
        """Add what others saw."""
        self._tables.clear()
        for name, theirs in other.bins.items():
            ours = self.bins.setdefault(name, [[0.0, 0.0, 0.0] for _ in range(BINS)])
            for mine, entry in zip(ours, theirs, strict=True):
                mine[:] = [a + b for a, b in zip(mine, entry, strict=True)]


def _between(stated: float) -> tuple[int, int, float]:
    """The bins that a stated probability stands between, and how far from the first."""
    place = stated * BINS - 0.5
    if place <= 0:
        return 0, 1, 0.0
    lower = int(place)
    if lower >= BINS - 1:
        return BINS - 1, BINS - 1, 0.0
    return lower, lower + 1, place - lower


class _Table:
    """What bins say, worked out once: by bin.

    Attributes:
        seen: How many outcomes there were in this bin and those above.
        true: How many of them came true.
    """

    __slots__ = ("_bins", "_shifts", "seen", "true")

    def __init__(self, bins: Bins) -> None:
        self._bins = bins
        self._shifts: dict[int, float] = {}
        self.seen = [0.0] * BINS
        self.true = [0.0] * BINS
        seen = true = 0.0
        for place in range(BINS - 1, -1, -1):
            seen += bins[place][0]
            true += bins[place][2]
            self.seen[place], self.true[place] = seen, true

    def shift(self, place: int) -> float:
        """How far the log-odds of what was stated were off, in one bin."""
        shift = self._shifts.get(place)
        if shift is None:  # of most bins this is never asked
            shift = self._shifts[place] = _shift(self._bins[place])
        return shift


def _shift(entry: list[float]) -> float:
    """How far the log-odds of what was stated were off, in one bin."""
    seen, stated, true = entry
    if not seen:
        return 0.0
    mean = stated / seen
    return logit((true + _PRIOR * mean) / (seen + _PRIOR)) - logit(mean)
