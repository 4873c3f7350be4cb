"""Which predictions may be launched: a pure decision on plain figures."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from ._errors import UsageError

if TYPE_CHECKING:
    from ._tools import Tool

Cause: TypeAlias = Literal["predicted", "sealed"]
"""Why a call is launched early: a predictor expects it, or the model has written it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """How the predictions of one origin for one tool did, the recent ones counting most.

    Attributes:
        hits: Launches that were adopted.
        misses: Launches that were discarded.
        stated: The sum of the probabilities that were stated for them; `None` takes
            them for stated as the one that is asked about.
        refused: Predictions in a row that were not launched.
    """

    hits: float = 0.0
    misses: float = 0.0
    stated: float | None = None
    refused: int = 0

    def calibrated(self, stated: float, *, weight: float) -> float:
        """The probability to go by: the stated one, corrected by how such ones did.

        Its odds are multiplied by how many more hits, and how many fewer misses, there
        were than stated. So a predictor that knows what it does not know keeps its
        distinctions, and one that always says the same is taken at its hit rate.

        Args:
            stated: From 0 to 1.
            weight: How many hits and misses as stated are added to those there were.
        """
        trials = self.hits + self.misses
        if not trials:
            return stated
        expected = trials * stated if self.stated is None else self.stated
        weight = max(weight, _LEAST)
        p = min(max(stated, _LEAST), 1 - _LEAST)
        odds = p / (1 - p)
        odds *= (self.hits + weight) / (expected + weight)
        odds *= (trials - expected + weight) / (self.misses + weight)
        return odds / (1 + odds)


_LEAST = 0.005
"""Nothing is taken for more certain than this, once there is a record."""
_UNTRIED = Record()
IMPROBABLE, NOT_WORTH_IT = "improbable", "not worth it"
SELDOM_RIGHT = "seldom right"
AS_STATED = frozenset({IMPROBABLE, NOT_WORTH_IT})
"""Refusals of what would not be started if its predictor were right about it, either: no
record speaks against it, so to start one now and then would teach nothing."""
_DOUBTFUL = AS_STATED | {SELDOM_RIGHT}
_TOO_MANY, _SERVER = 429, 500
REST_S = 30.0
"""Seconds that nothing is started early for a provider that had too much to do."""


class Experience:
    """What a policy may go by: hit rates and latencies, learned as an agent runs.

    Counts and seconds only, no contents: it may be shared by all sessions of an agent,
    and is by `Agent`. What it learned fades with `half_life` further trials.
    """

    def __init__(self, *, half_life: float = 50.0) -> None:
        self._kept = 0.5 ** (1 / half_life)
        self._records: dict[tuple[str, str], Record] = {}
        self._seconds: dict[str, float] = {}

    def record(self, tool: str, origin: str) -> Record:
        """How the predictions of `origin` for `tool` did."""
        return self._records.get((tool, origin), _UNTRIED)

    def note_outcome(self, tool: str, origin: str, *, hit: bool, stated: float) -> None:
        """What was stated with a probability turned out right or wrong."""
        old = self.record(tool, origin)
        self._records[tool, origin] = Record(
            hits=old.hits * self._kept + hit,
            misses=old.misses * self._kept + (not hit),
            stated=(old.stated or 0.0) * self._kept + stated,
            refused=old.refused,
        )

    def note_refusal(self, tool: str, origin: str) -> None:
        """A prediction was not launched."""
        old = self.record(tool, origin)
        self._records[tool, origin] = replace(old, refused=old.refused + 1)

    def note_launch(self, tool: str, origin: str) -> None:
        """A prediction was launched."""
        old = self.record(tool, origin)
        if old.refused:
            self._records[tool, origin] = replace(old, refused=0)

    def seconds(self, what: str) -> float | None:
        """Mean seconds of a tool by name, or of the model as `""`; `None` if unknown."""
        return self._seconds.get(what)

    def note_seconds(self, what: str, seconds: float) -> None:
        """A tool, or the model as `""`, has taken so long."""
        old = self._seconds.get(what, seconds)
        self._seconds[what] = old + (seconds - old) / 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A call that could be launched, and the state of its session.

    Attributes:
        tool: The tool.
        probability: That the model asks for exactly this call; 1 when it is sealed.
        cause: Why it would be launched.
        depth: How many unconfirmed turns it stands on; 0 in a confirmed turn.
        turn_probability: That all of these are confirmed, as far as was stated.
        in_flight: Launched calls of the session that run and that no confirmed
            call has adopted.
        in_flight_of_tool: Calls of this tool that run, adopted or not.
        wasted_s: Seconds of discarded launches so far, and of predicted ones that nobody
            has asked for yet.
        spent_usd: Stated cost of all launches that were not adopted.
        record: How such predictions did so far.
        tool_s: Mean seconds that the tool took so far; `None` while it is not known.
        model_s: Mean seconds that the model took so far; `None` while it is not known.
    """

    tool: Tool
    probability: float
    cause: Cause
    depth: int
    in_flight: int
    in_flight_of_tool: int
    wasted_s: float
    spent_usd: float
    record: Record = Record()
    tool_s: float | None = None
    model_s: float | None = None
    turn_probability: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """Something that has to come true for a turn run ahead to be of use.

    Attributes:
        probability: What was stated for it.
        total: What was stated for it and its alternatives together.
        record: How such statements did so far: whether any of the alternatives was true.
    """

    probability: float
    total: float = 1.0
    record: Record = Record()

    def calibrated(self, *, weight: float) -> float:
        """The probability to go by: its share of what all alternatives deserve."""
        if not self.total:
            return 0.0
        deserved = self.record.calibrated(min(self.total, 1.0), weight=weight)
        return min(self.probability / self.total, 1.0) * deserved


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAhead:
    """A model request that could be sent early, and the state of its session.

    Attributes:
        depth: How many unconfirmed turns it would make, with those that it stands on.
        branch: How many others of the same turn are more probable, or are run ahead
            already.
        expectations: What has to come true; nothing where all results are final.
        beside: Whether it is sent beside the running request, on a predicted answer.
        wasted_tokens: Tokens of discarded turns so far, and of those run ahead now.
        turn_probability: That the turn it is run ahead of is confirmed, as stated for
            it and all that it stands on.
    """

    depth: int
    branch: int = 0
    expectations: tuple[Expectation, ...] = ()
    beside: bool = False
    wasted_tokens: int = 0
    turn_probability: float = 1.0

    @property
    def probability(self) -> float:
        """That everything comes true, as stated."""
        return self.turn_probability * math.prod(
            expected.probability for expected in self.expectations
        )

    def calibrated(self, *, weight: float) -> float:
        """That everything comes true, as far as such statements did so far."""
        return self.turn_probability * math.prod(
            expected.calibrated(weight=weight) for expected in self.expectations
        )

    @property
    def refused(self) -> int:
        """Refusals in a row of what has been refused most."""
        return max((each.record.refused for each in self.expectations), default=0)


class Policy(Protocol):
    """Decides what is started early. Pure: no clock, no waiting, no state of its own.

    What it raises counts as a refusal. Whether a tool's effect allows an early launch
    at all is not its decision.

    Attributes:
        max_wasted_s: Predicted calls that still run are ended when so many seconds
            would be wasted with them.
    """

    @property
    def max_wasted_s(self) -> float: ...

    def refuse_launch(self, candidate: Candidate, /) -> str | None:
        """Why the call is not launched, in a few words; `None` admits it."""
        ...

    def refuse_run_ahead(self, candidate: RunAhead, /) -> str | None:
        """Why the request is not sent early, in a few words; `None` admits it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitPolicy:
    """Admits what is probable enough, within fixed limits.

    Attributes:
        min_probability: Predictions below it are not launched.
        max_in_flight: Launched, unadopted calls that run at once in a session.
        max_in_flight_of_tool: The same for one tool, unless it states its own
            `max_concurrency`.
        max_depth: How many unconfirmed turns may stand on one another; 0 never runs
            ahead.
        max_branches: How many turns may be run ahead of the same one, on different
            results.
        min_ahead_probability: No turn is run ahead on results less probable than this.
        min_beside_probability: No request is sent beside the running one, on a
            predicted answer less probable than this. Above 1 switches it off.
        max_wasted_s: No predicted call is launched, and none runs on, after so many
            wasted seconds of predicted calls.
        max_wasted_tokens: No turn is run ahead after so many wasted tokens. What is
            under way counts as wasted for as long as it is unconfirmed.
        max_spent_usd: No call is launched that could take the stated cost of unadopted
            launches above this.
        allow_egress: Launch guesses, which a call of an unconfirmed turn is as well, of
            tools whose arguments leave the system.
    """

    min_probability: float = 0.2
    max_in_flight: int = 8
    max_in_flight_of_tool: int = 4
    max_depth: int = 1
    max_branches: int = 2
    min_ahead_probability: float = 0.2
    min_beside_probability: float = 1.1
    max_wasted_s: float = 600.0
    max_wasted_tokens: int = 200_000
    max_spent_usd: float = 1.0
    allow_egress: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.min_probability <= 1:
            msg = f"min_probability is from 0 to 1, not {self.min_probability!r}."
            raise UsageError(msg)
        limits = (
            self.max_in_flight,
            self.max_in_flight_of_tool,
            self.max_depth,
            self.max_branches,
        )
        if min(limits) < 0:
            msg = "The limits of a policy are not negative."
            raise UsageError(msg)

    def refuse_launch(self, candidate: Candidate, /) -> str | None:
        """Why the call is not launched, in a few words; `None` admits it."""
        return self._refuse_call(candidate, candidate.probability)

    def _refuse_call(self, candidate: Candidate, probability: float) -> str | None:
        tool = candidate.tool
        of_tool = self.max_in_flight_of_tool
        if tool.max_concurrency is not None:
            of_tool = tool.max_concurrency
        predicted = candidate.cause == "predicted"
        guessed = predicted or candidate.depth > 0
        refusals = (
            (candidate.depth > self.max_depth, "too deep"),
            (guessed and tool.egress and not self.allow_egress, "egress"),
            (candidate.in_flight >= self.max_in_flight, "too many in flight"),
            (candidate.in_flight_of_tool >= of_tool, "too many of this tool in flight"),
            (predicted and candidate.wasted_s >= self.max_wasted_s, "seconds wasted"),
            (candidate.spent_usd + tool.cost_usd > self.max_spent_usd, "money spent"),
            # The last, since a probe is launched although it is improbable.
            (not probability >= self.min_probability, IMPROBABLE),  # or NaN
        )
        return next((reason for refused, reason in refusals if refused), None)

    def refuse_run_ahead(self, candidate: RunAhead, /) -> str | None:
        """Why the request is not sent early, in a few words; `None` admits it."""
        return self._refuse_request(candidate, candidate.probability)

    def _refuse_request(self, candidate: RunAhead, probability: float) -> str | None:
        needed = self.min_ahead_probability
        if candidate.beside:
            needed = self.min_beside_probability
        refusals = (
            (candidate.depth > self.max_depth, "too deep"),
            (candidate.branch >= self.max_branches, "too many branches"),
            (candidate.wasted_tokens >= self.max_wasted_tokens, "tokens wasted"),
            (not probability >= needed, IMPROBABLE),  # or NaN
        )
        return next((reason for refused, reason in refusals if refused), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValuePolicy(LimitPolicy):
    """Admits what is worth it, within the limits of `LimitPolicy`. The default.

    A prediction is launched when `p * hidden > (1 - p) * cost`: `p` is its calibrated
    probability, times that of the turn that it is for; `hidden` what a hit saves, the
    shorter of the tool's and the model's mean time; `cost` what a miss costs, in seconds
    that the user would wait for it. What is sealed in the model's stream is as good as
    certain and only meets the limits.

    (The rule of a launch's expected value, as in PASTE, arXiv 2603.18897.)

    Attributes:
        wasted_second_cost: What a wasted second of a tool is worth, in hidden seconds.
        usd_cost: What a wasted US dollar is worth, in hidden seconds.
        prior_weight: How many hits and misses as stated a record is taken to have more.
        min_hit_rate: Below this calibrated probability predictions are shut off ...
        min_trials: ... once there were so many ...
        probe_every: ... but for one in so many, so that it is noticed when they are
            right again.
        unknown_s: What a tool or model is taken to need before it was seen.
    """

    wasted_second_cost: float = 0.25
    usd_cost: float = 600.0
    prior_weight: float = 2.0
    min_hit_rate: float = 0.1
    min_trials: float = 8.0
    probe_every: int = 20
    unknown_s: float = 1.0

    def refuse_launch(self, candidate: Candidate, /) -> str | None:
        """Why the call is not launched, in a few words; `None` admits it."""
        if candidate.cause == "sealed":
            return LimitPolicy.refuse_launch(self, candidate)
        record = candidate.record
        p = record.calibrated(candidate.probability, weight=self.prior_weight)
        refusal = self._refuse_guess(candidate, p)
        if refusal is None and p < self.min_hit_rate:
            trials = record.hits + record.misses
            refusal = SELDOM_RIGHT if trials >= self.min_trials else None
        stated = candidate.probability
        if refusal not in _DOUBTFUL or self._refuse_guess(candidate, stated):
            return refusal
        probed = (record.refused + 1) % self.probe_every == 0
        return None if probed else SELDOM_RIGHT

    def _refuse_guess(self, candidate: Candidate, p: float) -> str | None:
        """Why a prediction is not launched, if it is so probable in its turn."""
        p *= candidate.turn_probability
        refusal = self._refuse_call(candidate, p)
        if refusal is not None:
            return refusal
        tool_s = self.unknown_s if candidate.tool_s is None else candidate.tool_s
        model_s = self.unknown_s if candidate.model_s is None else candidate.model_s
        usd = candidate.tool.cost_usd
        cost = self.wasted_second_cost * tool_s + self.usd_cost * usd
        return NOT_WORTH_IT if p * min(tool_s, model_s) < (1 - p) * cost else None

    def refuse_run_ahead(self, candidate: RunAhead, /) -> str | None:
        """Why the request is not sent early, in a few words; `None` admits it."""
        refusal = self._refuse_request(
            candidate, candidate.calibrated(weight=self.prior_weight)
        )
        as_stated = self._refuse_request(candidate, candidate.probability)
        if refusal != IMPROBABLE or as_stated is not None:
            return refusal
        probed = (candidate.refused + 1) % self.probe_every == 0
        return None if probed else SELDOM_RIGHT


def is_overload(error: BaseException | None) -> bool:
    """Whether a failure says that somebody has too much to do: HTTP 429 or 5xx."""
    response = getattr(error, "response", None)
    for holder in (error, response):
        for name in ("status", "status_code"):
            status = getattr(holder, name, None)
            if isinstance(status, int) and (status == _TOO_MANY or status >= _SERVER):
                return True
    return False
