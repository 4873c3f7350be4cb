"""What a run of the demo comes to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from headstart._events import Event, Summary, summarize

if TYPE_CHECKING:
    from headstart._messages import Message


@dataclass(slots=True, kw_only=True)
class ArmMessage:
    """One user message in one arm: what was said, and how long it took."""

    seconds: float
    said: tuple[Message, ...] = field(repr=False)
    events: tuple[Event, ...] = field(repr=False)

    @property
    def summary(self) -> Summary:
        """The figures of its events."""
        return summarize(self.events)


@dataclass(slots=True, kw_only=True)
class Arm:
    """The whole conversation, without or with speculation, and what it left behind."""

    messages: list[ArmMessage]
    rows: dict[str, list[dict[str, Any]]]
    posted: list[dict[str, str]]
    late_s: float = 0.0  # what was discarded after the last answer
    late_misses: int = 0

    def transcript(self, *, call_ids: bool) -> list[dict[str, Any]]:
        """Every message; without call ids, calls are named by their order."""
        said = [message.to_dict() for each in self.messages for message in each.said]
        return said if call_ids else _number_calls(said)


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageOutcome:
    """One user message, in both arms.

    Attributes:
        text: What the user says.
        reply: What the copilot replies, with speculation.
        off_s: Seconds to the complete reply without speculation.
        on_s: Seconds with it.
        bound_s: What perfect prediction would reach.
        speedup: `off_s / on_s`.
        calls: Calls that the model asked for.
        hits: Of those, how many had been launched on a prediction.
        early_starts: Of those, how many had been launched while the model still wrote.
        misses: Predicted launches that were discarded.
        run_ahead: Model requests that were made on early results, and used.
        hidden_s: Seconds of tools and model that were off the critical path.
        wasted_s: Seconds that what was discarded had run.
    """

    text: str
    reply: str = field(repr=False)
    off_s: float
    on_s: float
    bound_s: float
    speedup: float
    calls: int
    hits: int
    early_starts: int
    misses: int
    run_ahead: int
    hidden_s: float
    wasted_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOutcome:
    """The whole conversation, in both arms.

    `identical` is the conjunction of the three below it. The other figures are those of
    `MessageOutcome`, added up.
    """

    model: str
    off_s: float
    on_s: float
    speedup: float
    bound_s: float
    bound_speedup: float
    identical: bool
    identical_messages: bool
    identical_rows: bool
    identical_posts: bool
    calls: int
    hits: int
    early_starts: int
    misses: int
    run_ahead: int
    hidden_s: float
    wasted_s: float
    messages: tuple[MessageOutcome, ...]

    def to_dict(self) -> dict[str, Any]:
        """The outcome as JSON values, seconds to the millisecond."""
        return _rounded(asdict(self))


def compare(
    off: Arm, on: Arm, *, model: str, bounds: list[float], call_ids: bool
) -> DemoOutcome:
    """Set the two arms side by side.

    `call_ids` says whether the model names the same call the same again, so that the
    names are part of what must be identical.
    """
    messages = tuple(
        _compare_message(*pair)
        for pair in zip(off.messages, on.messages, bounds, strict=True)
    )
    off_s, on_s, bound_s = (
        sum(getattr(message, name) for message in messages)
        for name in ("off_s", "on_s", "bound_s")
    )
    same_messages = off.transcript(call_ids=call_ids) == on.transcript(
        call_ids=call_ids
    )
    same_rows, same_posts = off.rows == on.rows, off.posted == on.posted
    return DemoOutcome(
        model=model,
        off_s=off_s,
        on_s=on_s,
        speedup=off_s / on_s,
        bound_s=bound_s,
        bound_speedup=off_s / bound_s,
        identical=same_messages and same_rows and same_posts,
        identical_messages=same_messages,
        identical_rows=same_rows,
        identical_posts=same_posts,
        calls=sum(message.calls for message in messages),
        hits=sum(message.hits for message in messages),
        early_starts=sum(message.early_starts for message in messages),
        misses=sum(message.misses for message in messages) + on.late_misses,
        run_ahead=sum(message.run_ahead for message in messages),
        hidden_s=sum(message.hidden_s for message in messages),
        wasted_s=sum(message.wasted_s for message in messages) + on.late_s,
        messages=messages,
    )


def _compare_message(off: ArmMessage, on: ArmMessage, bound_s: float) -> MessageOutcome:
    summary = on.summary
    return MessageOutcome(
        text=off.said[0].content,
        reply=on.said[-1].content,
        off_s=off.seconds,
        on_s=on.seconds,
        bound_s=bound_s,
        speedup=off.seconds / on.seconds,
        calls=summary.calls,
        hits=summary.hits,
        early_starts=summary.early_starts,
        misses=summary.misses,
        run_ahead=summary.run_ahead,
        hidden_s=summary.hidden_s,
        wasted_s=summary.wasted_s,
    )


def _number_calls(said: list[dict[str, Any]]) -> list[dict[str, Any]]:
    numbers: dict[str, str] = {}
    for message in said:
        for call in message.get("tool_calls", ()):
            call["id"] = numbers.setdefault(call["id"], f"call-{len(numbers)}")
        if "tool_call_id" in message:
            message["tool_call_id"] = numbers.get(message["tool_call_id"])
    return said


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return round(value, 3)
        case dict():
            return {key: _rounded(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
        case list() | tuple():
            return [_rounded(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
        case _:
            return value
