"""What a replay found: plain figures, the same bytes for the same seed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headstart._events import (
    CallEnded,
    Event,
    PredictorFailed,
    SpeculationAdopted,
    SpeculationDiscarded,
    Summary,
    summarize,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ._traces import BadLine

DIGITS = 6
"""Digits after the point in the output: microseconds."""


@dataclass(slots=True, kw_only=True)
class ArmReport:
    """Figures of one arm over all runs.

    Attributes:
        runs: Recorded runs that were replayed.
        turns: Model requests that were answered for the host.
        calls: Calls that the model asked for.
        launchable_calls: Those of tools that may be launched early (READ and GATED).
        seconds: Model and tool time on the critical path: the virtual time of the runs
            without the user's own.
        user_s: The user's own time, in which launched calls may run.
        model_s: What the model took by itself.
        tool_s: What the tools would have taken unspeculated, the calls of a turn side
            by side.
        hits: Calls that adopted a predicted launch.
        ready: Hits that had ended before they were asked for.
        early_starts: Calls that adopted a launch of what the model, run ahead, had
            already asked for.
        predicted_launches: Launches of a prediction.
        hidden_s: Seconds that the engine says it took off the critical path.
        wasted_s: Seconds that discarded calls and turns ran.
        run_ahead: Turns that were run ahead and confirmed.
        run_ahead_discarded: Turns that were run ahead and discarded.
        differences: Answers and results at the host that are not the recorded ones.
        predictor_failures: How often a predictor raised or proposed something unusable.
        discard_reasons: Why launches were discarded, and how often.
    """

    runs: int = 0
    turns: int = 0
    calls: int = 0
    launchable_calls: int = 0
    seconds: float = 0.0
    user_s: float = 0.0
    model_s: float = 0.0
    tool_s: float = 0.0
    hits: int = 0
    ready: int = 0
    early_starts: int = 0
    predicted_launches: int = 0
    hidden_s: float = 0.0
    wasted_s: float = 0.0
    run_ahead: int = 0
    run_ahead_discarded: int = 0
    differences: int = 0
    predictor_failures: int = 0
    discard_reasons: Counter[str] = field(default_factory=Counter[str])

    @property
    def hit_rate(self) -> float:
        """Hits, as a share of the calls that may be launched early."""
        return _share(self.hits, self.launchable_calls)

    @property
    def hit_rate_all(self) -> float:
        """Hits, as a share of all calls."""
        return _share(self.hits, self.calls)

    @property
    def precision(self) -> float:
        """Hits, as a share of the predicted launches."""
        return _share(self.hits, self.predicted_launches)

    @property
    def ready_before_demand(self) -> float:
        """Hits that had ended before they were asked for, as a share of the hits."""
        return _share(self.ready, self.hits)

    @property
    def launches_per_call(self) -> float:
        """Predicted launches for each call that may be launched early."""
        return _share(self.predicted_launches, self.launchable_calls)

    def add(self, events: Iterable[Event], *, launchable: frozenset[str]) -> None:
        """Add what one session did.

        Args:
            events: All of its events.
            launchable: Names of the tools that may be launched early.
        """
        events = tuple(events)
        for event in events:
            match event:
                case CallEnded():
                    self.launchable_calls += event.tool in launchable
                case SpeculationAdopted(cause="predicted"):
                    self.ready += event.ready
                case SpeculationDiscarded(cause="predicted"):
                    self.discard_reasons[event.reason] += 1
                case PredictorFailed():
                    self.predictor_failures += 1
                case _:
                    pass
        summary: Summary = summarize(events)
        self.turns += summary.turns
        self.calls += summary.calls
        self.model_s += summary.model_s
        self.tool_s += summary.tool_s
        self.hits += summary.hits
        self.early_starts += summary.early_starts
        self.predicted_launches += summary.predicted_launches
        self.hidden_s += summary.hidden_s
        self.wasted_s += summary.wasted_s
        self.run_ahead += summary.run_ahead
        self.run_ahead_discarded += summary.run_ahead_discarded

    def to_dict(self, *, off_seconds: float | None) -> dict[str, Any]:
        """The figures, rounded to microseconds.

        Args:
            off_seconds: What the runs take without speculation: what `saved_share` is a
                share of. It is left out where that is not known.
        """
        figures: dict[str, Any] = {"runs": self.runs, "calls": self.calls}
        figures["seconds"] = self.seconds
        if off_seconds is not None:
            figures["saved_share"] = _share(off_seconds - self.seconds, off_seconds)
        figures |= {
            name: getattr(self, name)
            for name in (
                *("hit_rate", "hit_rate_all", "precision", "ready_before_demand"),
                *("hidden_s", "wasted_s", "launches_per_call"),
                *("user_s", "model_s", "tool_s", "turns", "launchable_calls"),
                *("hits", "ready", "early_starts", "predicted_launches"),
                *("run_ahead", "run_ahead_discarded"),
                *("differences", "predictor_failures"),
            )
        }
        figures["discard_reasons"] = dict(sorted(self.discard_reasons.items()))
        return {
            name: round(value, DIGITS) + 0.0 if isinstance(value, float) else value
            for name, value in figures.items()
        }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    """What a replay of one file found.

    Attributes:
        file: The file, as it was named.
        options: What it was replayed with.
        runs: Runs that were read.
        bad_lines: Lines that hold no run.
        calls_without_result: Recorded calls that have no result in the file.
        results_without_call: Recorded results that no call of the file asked for.
        arms: The figures by arm.
    """

    file: str
    options: Mapping[str, Any]
    runs: int
    bad_lines: tuple[BadLine, ...]
    calls_without_result: int
    results_without_call: int
    arms: Mapping[str, ArmReport]

    def to_dict(self) -> dict[str, Any]:
        """The whole report as JSON values."""
        off = self.arms.get("off")
        off_seconds = None if off is None else off.seconds
        return {
            "file": self.file,
            **self.options,
            "runs": self.runs,
            "bad_lines": [
                {"line": bad.line, "reason": bad.reason} for bad in self.bad_lines
            ],
            "calls_without_result": self.calls_without_result,
            "results_without_call": self.results_without_call,
            "arms": {
                name: arm.to_dict(off_seconds=off_seconds)
                for name, arm in self.arms.items()
            },
        }
