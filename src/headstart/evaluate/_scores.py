"""How right predictions are: counts that are added up, and the figures made of them.

Rules of this file:

1. A prediction is right if the answer asks for just that call: the same tool, and
   arguments that mean the same. The k-th of equal predictions needs the k-th equal call.
2. A call is hit at k if it is among the k most probable predictions. A call of the same
   answer that was hit before it is taken out of the list.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

DEPTHS = (1, 3, 5)
"""How many predictions are looked at for a hit."""
NAME_DEPTHS = (1, 3)
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BINS = 10
LAUNCHED_FROM = 0.5
"""The probability from which the predictions of a tool are judged."""

Key: TypeAlias = "tuple[str, str]"
"""A tool, and what the arguments mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A prediction, and what came of it.

    Attributes:
        tool: The tool.
        key: The call; `None` where its arguments mean nothing.
        probability: That it is in the next answer, as stated.
        eventually: That it comes then or later, as stated.
        right: Whether it was in the next answer.
        right_eventually: Whether it came then, or later before a write.
    """

    tool: str
    key: Key | None
    probability: float
    eventually: float
    right: bool = False
    right_eventually: bool = False


def judge(
    predictions: Iterable[Judged], asked: Iterable[Key | None], later: Iterable[Key]
) -> list[Judged]:
    """Say of each prediction whether it was right; the most probable come first.

    Args:
        predictions: As they were made.
        asked: The calls of the next answer.
        later: The calls of the answers after it, up to the next write.
    """
    now = Counter(key for key in asked if key is not None)
    then = now + Counter(later)
    judged: list[Judged] = []
    for each in sorted(predictions, key=lambda each: -each.probability):
        right, right_eventually = _take(now, each.key), _take(then, each.key)
        judged.append(
            Judged(
                tool=each.tool,
                key=each.key,
                probability=each.probability,
                eventually=each.eventually,
                right=right,
                right_eventually=right_eventually,
            )
        )
    return judged


def _take(calls: Counter[Key], key: Key | None) -> bool:
    if key is None or not calls[key]:
        return False
    calls[key] -= 1
    return True


def find_hits(
    predicted: Sequence[Key | None], asked: Sequence[Key | None], depth: int
) -> list[bool]:
    """Which of the calls of an answer are among the `depth` most probable predictions."""
    left = list(predicted)
    hits: list[bool] = []
    for key in asked:
        hit = key is not None and key in left[:depth]
        if hit:
            left.remove(key)
        hits.append(hit)
    return hits


@dataclass(slots=True)
class Bin:
    """Predictions of about the same probability: how many, stated, and right."""

    count: int = 0
    stated: float = 0.0
    right: int = 0


class Calibration:
    """Whether what is stated as 0.7 is right in 7 of 10 cases."""

    def __init__(self) -> None:
        self.bins = [Bin() for _ in range(BINS)]

    def add(self, stated: float, *, right: bool) -> None:
        """Count one prediction."""
        found = self.bins[min(int(stated * BINS), BINS - 1)]
        found.count += 1
        found.stated += stated
        found.right += right

    @property
    def error(self) -> float:
        """The expected calibration error: the mean distance of stated and right."""
        count = sum(each.count for each in self.bins)
        off = sum(abs(each.stated - each.right) for each in self.bins)
        return share(off, count)

    def to_dict(self) -> list[dict[str, Any]]:
        """The bins, those without a prediction as well."""
        return [
            {
                "from": number / BINS,
                "to": (number + 1) / BINS,
                "predictions": each.count,
                "stated": rounded(share(each.stated, each.count)),
                "right": rounded(share(each.right, each.count)),
            }
            for number, each in enumerate(self.bins)
        ]


@dataclass(slots=True)
class ToolScore:
    """How the predictions of one tool's calls did.

    Attributes:
        calls: What the model asked for.
        hits: Those among the k most probable predictions, by k.
        names: Those whose tool was the most probable one.
        predictions: Predictions of at least `LAUNCHED_FROM`.
        right: Those of them that were right.
    """

    calls: int = 0
    hits: Counter[int] = field(default_factory=Counter[int])
    names: int = 0
    predictions: int = 0
    right: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {
            "calls": self.calls,
            **{
                f"hit_at_{depth}": rounded(share(self.hits[depth], self.calls))
                for depth in DEPTHS
            },
            "name_at_1": rounded(share(self.names, self.calls)),
            "predictions": self.predictions,
            "precision": rounded(share(self.right, self.predictions)),
        }


class Score:
    """How predictions did, over many answers."""

    def __init__(self) -> None:
        self.calls = 0
        self.predictions = 0
        self.hits: Counter[int] = Counter()
        self.names: Counter[int] = Counter()
        self.by_tool: dict[str, ToolScore] = {}
        self.calibration = Calibration()
        self.calibration_eventually = Calibration()
        self._above: Counter[float] = Counter()
        self._right: Counter[float] = Counter()

    def add(
        self,
        judged: Sequence[Judged],
        asked: Sequence[Key | None],
        tools: Sequence[str],
    ) -> None:
        """Count one answer.

        Args:
            judged: The predictions of it, the most probable first.
            asked: Its calls; `None` for one whose arguments mean nothing.
            tools: Their tools.
        """
        predicted = [each.key for each in judged]
        names = list(dict.fromkeys(each.tool for each in judged))
        scores = [self.by_tool.setdefault(tool, ToolScore()) for tool in tools]
        self.calls += len(tools)
        for tool, score in zip(tools, scores, strict=True):
            score.calls += 1
            score.names += tool in names[:1]
            for depth in NAME_DEPTHS:
                self.names[depth] += tool in names[:depth]
        for depth in DEPTHS:
            hits = find_hits(predicted, asked, depth)
            self.hits[depth] += sum(hits)
            for score, hit in zip(scores, hits, strict=True):
                score.hits[depth] += hit
        for each in judged:
            self._add_prediction(each)

    def _add_prediction(self, each: Judged) -> None:
        self.predictions += 1
        self.calibration.add(each.probability, right=each.right)
        self.calibration_eventually.add(each.eventually, right=each.right_eventually)
        for threshold in itertools.takewhile(
            lambda least: each.probability >= least, THRESHOLDS
        ):
            self._above[threshold] += 1
            self._right[threshold] += each.right
        if each.probability >= LAUNCHED_FROM:
            score = self.by_tool.setdefault(each.tool, ToolScore())
            score.predictions += 1
            score.right += each.right

    def thresholds(self) -> list[dict[str, Any]]:
        """Precision and recall of the predictions at least so probable."""
        return [
            {
                "threshold": threshold,
                "precision": rounded(
                    share(self._right[threshold], self._above[threshold])
                ),
                "recall": rounded(share(self._right[threshold], self.calls)),
                "predictions": self._above[threshold],
            }
            for threshold in THRESHOLDS
        ]

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values, without those by tool."""
        return {
            "calls": self.calls,
            **{
                f"hit_at_{depth}": rounded(share(self.hits[depth], self.calls))
                for depth in DEPTHS
            },
            **{
                f"name_at_{depth}": rounded(share(self.names[depth], self.calls))
                for depth in NAME_DEPTHS
            },
            "predictions": self.predictions,
            "thresholds": self.thresholds(),
            "calibration_error": rounded(self.calibration.error),
            "calibration_error_eventually": rounded(self.calibration_eventually.error),
            "calibration": self.calibration.to_dict(),
            "calibration_eventually": self.calibration_eventually.to_dict(),
        }


def share(part: float, whole: float) -> float:
    """A part of a whole; of nothing it is 0."""
    return part / whole if whole else 0.0


def rounded(value: float) -> float:
    """A figure as it is written: with six digits after the point."""
    return round(value, 6) + 0.0
