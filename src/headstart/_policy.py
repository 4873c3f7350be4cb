"""Which predictions may be launched: a pure decision on plain figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from ._errors import UsageError

if TYPE_CHECKING:
    from ._tools import Tool

Cause: TypeAlias = Literal["predicted", "sealed"]
"""Why a call is launched early: a predictor expects it, or the model has written it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A call that could be launched, and the state of its session.

    Attributes:
        tool: The tool.
        probability: That the model asks for exactly this call; 1 when it is sealed.
        cause: Why it would be launched.
        depth: How many unconfirmed turns it stands on; 0 in a confirmed turn.
        in_flight: Launched calls of the session that run and that no confirmed
            call has adopted.
        in_flight_of_tool: Calls of this tool that run, adopted or not.
        wasted_s: Seconds of discarded launches so far.
        spent_usd: Stated cost of all launches that were not adopted.
    """

    tool: Tool
    probability: float
    cause: Cause
    depth: int
    in_flight: int
    in_flight_of_tool: int
    wasted_s: float
    spent_usd: float


class Policy(Protocol):
    """Decides what is started early. Pure: no clock, no waiting, no state of its own.

    What it raises counts as a refusal. Whether a tool's effect allows an early launch
    at all is not its decision.
    """

    def refuse_launch(self, candidate: Candidate, /) -> str | None:
        """Why the call is not launched, in a few words; `None` admits it."""
        ...

    def refuse_run_ahead(self, *, depth: int, wasted_tokens: int) -> str | None:
        """Why no turn is run ahead on `depth - 1` others; `None` admits it."""
        ...

    def refuse_run_beside(
        self, *, depth: int, probability: float, wasted_tokens: int
    ) -> str | None:
        """Why no request is sent beside the running one; `None` admits it.

        `probability` is that the running one is answered with just the predicted calls.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitPolicy:
    """Admits what is probable enough, within fixed limits. The default.

    Attributes:
        min_probability: Predictions below it are not launched.
        max_in_flight: Launched, unadopted calls that run at once in a session.
        max_in_flight_of_tool: The same for one tool, unless it states its own
            `max_concurrency`.
        max_depth: How many unconfirmed turns may stand on one another; 0 never runs
            ahead.
        min_beside_probability: No request is sent beside the running one, on a
            predicted answer less probable than this. Above 1 switches it off.
        max_wasted_s: No predicted call is launched after so many wasted seconds.
        max_wasted_tokens: No turn is run ahead after so many wasted tokens.
        max_spent_usd: No call is launched that could take the stated cost of unadopted
            launches above this.
        allow_egress: Launch guesses, which a call of an unconfirmed turn is as well, of
            tools whose arguments leave the system.
    """

    min_probability: float = 0.2
    max_in_flight: int = 8
    max_in_flight_of_tool: int = 4
    max_depth: int = 1
    min_beside_probability: float = 1.1
    max_wasted_s: float = 600.0
    max_wasted_tokens: int = 200_000
    max_spent_usd: float = 1.0
    allow_egress: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.min_probability <= 1:
            msg = f"min_probability is from 0 to 1, not {self.min_probability!r}."
            raise UsageError(msg)
        if min(self.max_in_flight, self.max_in_flight_of_tool, self.max_depth) < 0:
            msg = "The limits of a policy are not negative."
            raise UsageError(msg)

    def refuse_launch(self, candidate: Candidate, /) -> str | None:
        """Why the call is not launched, in a few words; `None` admits it."""
        tool = candidate.tool
        of_tool = self.max_in_flight_of_tool
        if tool.max_concurrency is not None:
            of_tool = tool.max_concurrency
        predicted = candidate.cause == "predicted"
        guessed = predicted or candidate.depth > 0
        refusals = (
            (candidate.depth > self.max_depth, "too deep"),
            (guessed and tool.egress and not self.allow_egress, "egress"),
            (not candidate.probability >= self.min_probability, "improbable"),  # or NaN
            (candidate.in_flight >= self.max_in_flight, "too many in flight"),
            (candidate.in_flight_of_tool >= of_tool, "too many of this tool in flight"),
            (predicted and candidate.wasted_s >= self.max_wasted_s, "seconds wasted"),
            (candidate.spent_usd + tool.cost_usd > self.max_spent_usd, "money spent"),
        )
        return next((reason for refused, reason in refusals if refused), None)

    def refuse_run_ahead(self, *, depth: int, wasted_tokens: int) -> str | None:
        """Why no turn is run ahead on `depth - 1` others; `None` admits it."""
        if depth > self.max_depth:
            return "too deep"
        if wasted_tokens >= self.max_wasted_tokens:
            return "tokens wasted"
        return None

    def refuse_run_beside(
        self, *, depth: int, probability: float, wasted_tokens: int
    ) -> str | None:
        """Why no request is sent beside the running one; `None` admits it."""
        if not probability >= self.min_beside_probability:  # or NaN
            return "improbable"
        return self.refuse_run_ahead(depth=depth, wasted_tokens=wasted_tokens)
