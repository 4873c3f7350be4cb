"""What an evaluation found, as plain figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._scores import DEPTHS, rounded, share

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ._decisions import LeakControl, Scoring
    from ._gain import Gain
    from ._runs import SkippedLine


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """What a cross-validation found.

    Attributes:
        files: The files.
        options: What they were evaluated with.
        runs: Runs that were read.
        groups: Groups of runs that belong together.
        without_group: Runs that lack the field they are grouped by.
        folds: Into how many parts the groups were dealt.
        skipped: Lines that hold no run.
        effects: The effect of each tool.
        scoring: What was counted.
        learning_s: Seconds of the processor that learning took, in all folds together.
        learned_runs: How many runs were learned from in them.
        gains: The gain at each latency.
    """

    files: tuple[str, ...]
    options: Mapping[str, Any]
    runs: int
    groups: int
    without_group: int
    folds: int
    skipped: tuple[SkippedLine, ...]
    effects: Mapping[str, str]
    scoring: Scoring
    learning_s: float
    learned_runs: int
    gains: Sequence[Gain]

    def to_dict(self) -> dict[str, Any]:
        """The whole report as JSON values."""
        scoring = self.scoring
        every = scoring.all.to_dict()
        return {
            "files": list(self.files),
            "options": dict(self.options),
            "runs": self.runs,
            "groups": self.groups,
            "without_group": self.without_group,
            "folds": self.folds,
            "bad_lines": [each.to_dict() for each in self.skipped],
            "all": every,
            "read_only": scoring.read_only.to_dict(),
            "thresholds": every["thresholds"],
            "calibration_error": every["calibration_error"],
            "calibration_error_eventually": every["calibration_error_eventually"],
            "decisions": scoring.decisions,
            "no_call_share": rounded(share(scoring.without_call, scoring.decisions)),
            "ms_per_decision": describe_milliseconds(scoring.milliseconds),
            "by_tool": self._by_tool(),
            "leak_control": self._leak_control(),
            "gain": [each.to_dict() for each in self.gains],
            "learning": {
                "runs": self.learned_runs,
                "seconds": rounded(self.learning_s),
                "runs_per_second": rounded(share(self.learned_runs, self.learning_s)),
            },
            "predictor_failures": {
                "count": scoring.failures.count,
                "first": scoring.failures.first,
            },
        }

    def _by_tool(self) -> dict[str, Any]:
        """Each tool's figures: of reads among the reads, of others among all."""
        every, reads = self.scoring.all.by_tool, self.scoring.read_only.by_tool
        scores = {name: reads.get(name, score) for name, score in every.items()}
        ordered = sorted(scores.items(), key=lambda item: (-item[1].calls, item[0]))
        return {
            name: {"effect": self.effects.get(name), **score.to_dict()}
            for name, score in ordered
        }

    def _leak_control(self) -> dict[str, Any]:
        leak: LeakControl = self.scoring.leak
        every, reads = self.scoring.all, self.scoring.read_only
        return {
            "pairs": leak.pairs,
            "calls": leak.score.calls,
            **_hits(leak.score.to_dict()),
            "read_only": _hits(leak.read_score.to_dict()),
            "anywhere_at_5": rounded(share(leak.anywhere, leak.calls)),
            "beyond_constants": rounded(share(leak.beyond_constants, leak.calls)),
            "repeated": rounded(share(self.scoring.repeated, every.calls)),
            "repeated_reads": rounded(share(self.scoring.repeated_reads, reads.calls)),
        }


def _hits(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {f"hit_at_{depth}": figures[f"hit_at_{depth}"] for depth in DEPTHS}


def describe_milliseconds(taken: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile, mean and maximum."""
    ordered = sorted(taken) or [0.0]
    return {
        "median": rounded(ordered[len(ordered) // 2]),
        "p99": rounded(ordered[min(len(ordered) - 1, 99 * len(ordered) // 100)]),
        "mean": rounded(sum(ordered) / len(ordered)),
        "max": rounded(ordered[-1]),
    }
