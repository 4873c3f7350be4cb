"""What every predictor implements, and what it sees and proposes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from headstart._calls import ToolResult
from headstart._errors import PredictorError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from headstart._calls import ToolCall
    from headstart._messages import Message, ModelResponse
    from headstart._tools import Tool


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What a predictor may look at: everything known at this moment.

    In the middle of a turn, `messages` ends with the assistant message that asks for
    the calls, and the tool messages of those that have ended.

    Attributes:
        messages: The conversation so far.
        partial: The text of the answer that the model is writing, so far.
        tools: The agent's tools by name.
        deps: The caller's own, as tools receive it.
    """

    messages: tuple[Message, ...] = field(repr=False)
    partial: str = field(default="", repr=False)
    tools: Mapping[str, Tool] = field(default_factory=dict[str, "Tool"], repr=False)
    deps: Any = field(default=None, repr=False)

    @property
    def user_text(self) -> str:
        """The text of the last user message; empty when there is none."""
        for message in reversed(self.messages):
            if message.role == "user":
                return message.content
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A call that a predictor expects the model to ask for.

    Attributes:
        tool: The tool's name.
        arguments: JSON text, just as the model will write it; a mapping is written as
            JSON, in the model's own style where that matters.
        probability: That the model asks for exactly this call in its next answer, from
            0 to 1.
        eventually: That it asks for it then or in a later answer, before a write
            changes what the call reads; `probability` if not given. It decides whether
            a read is worth launching now, as an unused one is kept.
        origin: Which predictor, and which part of it, proposes it: for reports.
    """

    tool: str
    arguments: str | Mapping[str, Any] = field(default="{}", repr=False)
    probability: float = 0.5
    eventually: float | None = None
    origin: str = ""
    styled: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.arguments, str):
            object.__setattr__(self, "styled", True)
            try:
                written = json.dumps(self.arguments)
            except (TypeError, ValueError, RecursionError) as error:
                msg = "A prediction's arguments are JSON text, or a mapping of JSON values."
                raise PredictorError(msg, reason="arguments") from error
            object.__setattr__(self, "arguments", written)
        _check_probability(self.probability)
        if self.eventually is not None:
            _check_probability(self.eventually)

    @property
    def arguments_text(self) -> str:
        """The arguments as JSON text."""
        return self.arguments  # type: ignore[return-value] # written in __post_init__


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultPrediction:
    """What a predictor expects a call to give.

    Attributes:
        result: What the model will be told.
        probability: That it is told exactly this, from 0 to 1.
    """

    result: ToolResult = field(repr=False)
    probability: float = 0.9

    def __post_init__(self) -> None:
        _check_probability(self.probability)
        if not isinstance(self.result, ToolResult):  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"A result is a ToolResult, not {type(self.result).__name__}."
            raise PredictorError(msg, reason="result")


def _check_probability(value: float) -> None:
    if not 0 <= value <= 1:
        msg = f"A probability is from 0 to 1, not {value!r}."
        raise PredictorError(msg, reason="probability")


class Predictor(Protocol):
    """Proposes the calls that the model will ask for next.

    `predict` is called whenever something new is known: a request goes to the model, a
    call has ended, a response is complete. It is never waited for; it is cancelled when
    its answer would be too late. What it raises becomes an event.

    One that takes long, and does not look at `Conversation.partial`, says so by an
    attribute `reads_partial = False`: it is not asked anew, and not cancelled, when
    only that has changed.
    """

    async def predict(self, conversation: Conversation, /) -> Iterable[Prediction]: ...


@runtime_checkable
class ResultPredictor(Protocol):
    """A predictor that can also state the result of a call before it has ended.

    A plain function that returns at once; nothing where it does not know. Several
    results are alternatives, of which the policy runs ahead on the most probable. What
    is stated is always checked against the real result before anything built on it is
    used.
    """

    def predict_results(
        self, call: ToolCall, conversation: Conversation, /
    ) -> Iterable[ResultPrediction]: ...


@runtime_checkable
class Learner(Protocol):
    """A predictor that learns. It is told of confirmed answers only, in order."""

    def learn(self, conversation: Conversation, response: ModelResponse, /) -> None: ...


@runtime_checkable
class ToolCheck(Protocol):
    """A predictor that can tell whether it could ever work with an agent's tools."""

    def check(self, tools: Mapping[str, Tool], /) -> None:
        """Do nothing if it could.

        Raises:
            UsageError: It never could; the message says why.
        """
        ...
