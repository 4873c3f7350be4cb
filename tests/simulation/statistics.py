"""How often each mechanism of the engine was at work, so that programs have teeth."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from headstart import _events as events
from headstart._launches import LaunchPool
from headstart._turns import TurnTree

if TYPE_CHECKING:
    from .check import Outcome


class Statistics:
    """Counts over many runs. A context manager: it looks at what leaves no event, too."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> Statistics:
        self._kept = LaunchPool._is_blocked, TurnTree._run_ahead
        is_blocked, run_ahead = self._kept
        counts = self.counts

        def count_blocked(pool: LaunchPool, *args: Any) -> bool:
            blocked = is_blocked(pool, *args)
            counts["deferred behind a write"] += blocked
            return blocked

        def count_beside(tree: TurnTree, turn: Any, *args: Any) -> Any:
            counts["run beside"] += turn.response is None
            return run_ahead(tree, turn, *args)

        LaunchPool._is_blocked = count_blocked
        TurnTree._run_ahead = count_beside
        return self

    def __exit__(self, *_: object) -> None:
        LaunchPool._is_blocked, TurnTree._run_ahead = self._kept

    def add(self, outcome: Outcome) -> None:
        """Count one run."""
        counts = self.counts
        counts["runs"] += 1
        counts["runs cancelled"] += not outcome.ended
        counts["effects"] += len(outcome.world.effects)
        depths: dict[int | None, int] = {None: 0}
        answered: set[int | None] = {None}
        beside: set[int] = set()
        parents: dict[int, int | None] = {}  # of the turns that are run ahead now
        branches: dict[int, int] = {}  # how many there were beside it, at its start
        launched: dict[str, int] = {}  # at which depth
        for event in outcome.log.events:
            match event:
                case events.TurnStarted(speculative=True):
                    depth = depths.get(event.parent, 0) + 1
                    depths[event.turn] = depth
                    counts[f"run ahead: depth {depth}"] += 1
                    branch = list(parents.values()).count(event.parent)
                    counts[f"run ahead: branch {branch}"] += 1
                    parents[event.turn] = event.parent
                    branches[event.turn] = branch
                    if event.parent not in answered:
                        beside.add(event.turn)
                case events.TurnConfirmed():
                    gone = depths[event.turn]
                    counts[f"run ahead: branch {branches[event.turn]} confirmed"] += 1
                    del parents[event.turn]
                    counts["run beside: confirmed"] += event.turn in beside
                    depths = {turn: depth - gone for turn, depth in depths.items()}
                case events.ModelAnswered():
                    answered.add(event.turn)
                case events.TurnDiscarded():
                    counts[f"run ahead: discarded: {event.reason}"] += 1
                    parents.pop(event.turn, None)
                case events.CallLaunched():
                    depth = launched[event.span] = max(depths.get(event.turn, 0), 0)
                    counts[f"launched: {event.cause}, depth {depth}"] += 1
                case events.CallRefused():
                    counts[f"refused: {event.reason}"] += 1
                case events.SpeculationAdopted():
                    when = "ready" if event.ready else "running"
                    counts[f"adopted: {event.cause}, {when}"] += 1
                    counts[f"adopted: launched at depth {launched[event.span]}"] += 1
                case events.SpeculationDiscarded():
                    counts[f"discarded: {event.reason}"] += 1
                case events.EffectHeld():
                    counts["held"] += 1
                case events.EarlyResultGiven():
                    counts[f"early result of {event.source}"] += 1
                case events.PredictorFailed():
                    counts["predictor failed"] += 1
                case events.CallEnded():
                    counts["calls"] += 1
                case _:
                    pass


def table(counts: Counter[str]) -> str:
    """What was counted, a line each."""
    return "\n".join(
        f"{count:9,}  {name}" for name, count in sorted(counts.items()) if count
    )
