"""What happened, as a closed set of event types: the narrow waist of headstart.

The engine emits; the store, telemetry, replay and report only read. No event holds
arguments, results or text: they name calls by identifiers. Times are seconds since the
session began, on its own clock.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, get_args

from pydantic_core import PydanticSerializationError

from ._errors import TraceFormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pydantic import TypeAdapter

logger = logging.getLogger("headstart")

SCHEMA_VERSION = 1
"""Raised when an event type changes so that older readers would misread it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStarted:
    """A session was opened."""

    event: Literal["session_started"] = "session_started"
    session: str
    at_s: float
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEnded:
    """A session was closed; everything that it owned has ended."""

    event: Literal["session_ended"] = "session_ended"
    session: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnStarted:
    """A model request was sent, for the host or (`speculative`) ahead of it."""

    event: Literal["turn_started"] = "turn_started"
    session: str
    at_s: float
    turn: int
    parent: int | None = None
    speculative: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnConfirmed:
    """The host made the very request that a turn had been run ahead on.

    `hidden_s` is how much of the model's time was over by then.
    """

    event: Literal["turn_confirmed"] = "turn_confirmed"
    session: str
    at_s: float
    turn: int
    hidden_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnDiscarded:
    """A turn that was run ahead is not what the host asked for."""

    event: Literal["turn_discarded"] = "turn_discarded"
    session: str
    at_s: float
    turn: int
    reason: str
    wasted_s: float
    wasted_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAnswered:
    """The answer of a confirmed turn is complete, at the host.

    `duration_s` is what the request took from its own start to its own end.
    """

    event: Literal["model_answered"] = "model_answered"
    session: str
    at_s: float
    turn: int
    duration_s: float
    tool_calls: int
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPredicted:
    """A predictor proposed a call."""

    event: Literal["call_predicted"] = "call_predicted"
    session: str
    at_s: float
    turn: int
    span: str
    tool: str
    origin: str
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRefused:
    """A call was not launched early."""

    event: Literal["call_refused"] = "call_refused"
    session: str
    at_s: float
    turn: int
    span: str
    tool: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLaunched:
    """A call was started before the model had decided on it.

    `cause` is `"predicted"`, or `"sealed"` when its arguments were complete in the
    model's stream.
    """

    event: Literal["call_launched"] = "call_launched"
    session: str
    at_s: float
    turn: int
    span: str
    tool: str
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectHeld:
    """A launched call has come to its first side effect and waits."""

    event: Literal["effect_held"] = "effect_held"
    session: str
    at_s: float
    span: str
    tool: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyResultGiven:
    """A result of a call of a turn is known before the call has ended."""

    event: Literal["early_result_given"] = "early_result_given"
    session: str
    at_s: float
    turn: int
    call_id: str
    tool: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationAdopted:
    """The model asked for a launched call, and gets that one.

    `hidden_s` is how much of its time was over when the host asked for it; `ready`
    whether all of it was.
    """

    event: Literal["speculation_adopted"] = "speculation_adopted"
    session: str
    at_s: float
    turn: int
    span: str
    call_id: str
    tool: str
    cause: str
    hidden_s: float
    ready: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationDiscarded:
    """A launched call is not used; `wasted_s` is how long it ran."""

    event: Literal["speculation_discarded"] = "speculation_discarded"
    session: str
    at_s: float
    turn: int
    span: str
    tool: str
    cause: str
    reason: str
    wasted_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEnded:
    """A call that the model asked for has its result, at the host.

    `duration_s` is what the call took by itself, without any time that it was held;
    `wait_s` is what the host waited for it.
    """

    event: Literal["call_ended"] = "call_ended"
    session: str
    at_s: float
    turn: int
    call_id: str
    tool: str
    duration_s: float
    wait_s: float
    adopted: bool
    is_error: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolsEnded:
    """All calls of a turn have ended.

    `serial_s` is what they would have taken from the moment the host asked for them,
    and `wait_s` what the host waited.
    """

    event: Literal["tools_ended"] = "tools_ended"
    session: str
    at_s: float
    turn: int
    calls: int
    serial_s: float
    wait_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictorFailed:
    """A predictor raised or proposed something unusable; the turn goes on."""

    event: Literal["predictor_failed"] = "predictor_failed"
    session: str
    at_s: float
    predictor: str
    error: str


Event: TypeAlias = (
    SessionStarted
    | SessionEnded
    | TurnStarted
    | TurnConfirmed
    | TurnDiscarded
    | ModelAnswered
    | CallPredicted
    | CallRefused
    | CallLaunched
    | EffectHeld
    | EarlyResultGiven
    | SpeculationAdopted
    | SpeculationDiscarded
    | CallEnded
    | ToolsEnded
    | PredictorFailed
)
EVENT_TYPES: tuple[type[Event], ...] = get_args(Event)


class Sink(Protocol):
    """Whoever wants to know what happened.

    `emit` is called in the engine's own tasks: it returns at once and does not raise
    (if it does, the sink is not called again, and a warning is logged).
    """

    def emit(self, event: Event, /) -> None: ...


class TraceStore(Sink, Protocol):
    """A sink that keeps what happened, and gives it back.

    `headstart.store` has some; `headstart.testing.StoreConformance` is what each must do.
    """

    async def flush(self) -> None:
        """Wait until everything that was emitted before is kept.

        Raises:
            StoreError: Something could not be kept.
        """
        ...

    async def sessions(self) -> list[str]:
        """The names of all sessions, in the order in which they began."""
        ...

    async def read(self, session: str, /) -> list[Event]:
        """The events of a session in their order; none if it is not known."""
        ...


class Recorder:
    """Makes the events of one session, and gives them to its sink, if it has one."""

    def __init__(
        self, session: str, sink: Sink | None, clock: Callable[[], float]
    ) -> None:
        self.session = session
        self._sink = sink
        self._clock = clock
        self._began_at = clock()

    def emit(self, kind: type[Event], **fields: Any) -> None:
        """Make an event that happens now."""
        if self._sink is None:
            return
        at_s = self._clock() - self._began_at
        try:
            self._sink.emit(kind(session=self.session, at_s=at_s, **fields))
        except Exception:
            logger.exception(
                "The event sink of session %r failed and is not called again.",
                self.session,
            )
            self._sink = None


class EventLog:
    """A sink that keeps every event in `events`, in order."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event, /) -> None:
        """Keep `event`."""
        self.events.append(event)


@functools.cache
def _adapter() -> TypeAdapter[Any]:
    from typing import Annotated

    from pydantic import Discriminator, TypeAdapter

    return TypeAdapter(Annotated[Event, Discriminator("event")])


def dump_event(event: Event) -> str:
    """Write an event as one line of JSON.

    Text that is no Unicode (half of a surrogate pair) is written with replacements.
    """
    try:
        return _adapter().dump_json(event).decode()
    except PydanticSerializationError:
        texts = {
            field.name: value.encode(errors="replace").decode()
            for field in fields(event)
            if isinstance(value := getattr(event, field.name), str)
        }
        return _adapter().dump_json(replace(event, **texts)).decode()


def load_event(line: str | bytes, *, number: int | None = None) -> Event:
    """Read an event that this or an earlier version wrote.

    Args:
        line: What `dump_event` gave.
        number: Which line of its file it is, from 1, for errors.

    Raises:
        TraceFormatError: It is no event, or of a version that is not known yet.
    """
    try:
        event = _adapter().validate_json(line)
    except ValueError as error:
        msg = "This is not an event of headstart: it is no JSON object of a known kind."
        raise TraceFormatError(msg, line=number) from error
    if isinstance(event, SessionStarted) and event.schema_version > SCHEMA_VERSION:
        msg = (
            f"This trace has schema version {event.schema_version}, and this headstart "
            f"reads up to {SCHEMA_VERSION}: please upgrade headstart."
        )
        raise TraceFormatError(msg, line=number)
    return event


@dataclass(slots=True)
class Summary:
    """Figures over a stretch of events.

    Attributes:
        turns: Confirmed turns.
        calls: Calls that the model asked for.
        hits: Calls that adopted a predicted launch.
        early_starts: Calls that adopted a launch sealed in the model's stream.
        ready: Hits and early starts that had ended before they were asked for.
        misses: Predicted launches that were discarded.
        launches: All launches, of either cause.
        predicted_launches: Launches of a prediction.
        run_ahead: Turns that were run ahead and confirmed.
        run_ahead_discarded: Turns that were run ahead and discarded.
        model_s: Seconds that the model took for confirmed turns, by itself.
        tool_s: Seconds that the turns' tools would have taken unspeculated, the calls
            of one turn side by side.
        hidden_s: Seconds of either that were off the critical path.
        wasted_s: Seconds that discarded calls and turns ran.
        wasted_tokens: Tokens of discarded turns.
    """

    turns: int = 0
    calls: int = 0
    hits: int = 0
    early_starts: int = 0
    ready: int = 0
    misses: int = 0
    launches: int = 0
    predicted_launches: int = 0
    run_ahead: int = 0
    run_ahead_discarded: int = 0
    model_s: float = 0.0
    tool_s: float = 0.0
    hidden_s: float = 0.0
    wasted_s: float = 0.0
    wasted_tokens: int = 0
    discard_reasons: dict[str, int] = field(default_factory=dict[str, int])


def summarize(events: Iterable[Event]) -> Summary:
    """Add up a stretch of events."""
    total = Summary()
    for event in events:
        match event:
            case ModelAnswered():
                total.turns += 1
                total.model_s += event.duration_s
            case CallEnded():
                total.calls += 1
            case ToolsEnded():
                total.tool_s += event.serial_s
                total.hidden_s += event.serial_s - event.wait_s
            case CallLaunched():
                total.launches += 1
                total.predicted_launches += event.cause == "predicted"
            case SpeculationAdopted():
                total.hits += event.cause == "predicted"
                total.early_starts += event.cause != "predicted"
                total.ready += event.ready
            case SpeculationDiscarded():
                total.misses += event.cause == "predicted"
                total.wasted_s += event.wasted_s
                reasons = total.discard_reasons
                reasons[event.reason] = reasons.get(event.reason, 0) + 1
            case TurnConfirmed():
                total.run_ahead += 1
                total.hidden_s += event.hidden_s
            case TurnDiscarded():
                total.run_ahead_discarded += 1
                total.wasted_s += event.wasted_s
                total.wasted_tokens += event.wasted_tokens
            case _:
                pass
    return total
