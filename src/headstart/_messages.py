"""What goes to a model and what comes back: messages, requests, deltas, responses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast

from ._calls import ToolCall, ToolResult
from ._errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

Role: TypeAlias = Literal["system", "developer", "user", "assistant", "tool"]
_ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: Who speaks.
        content: The text; empty where an assistant message only calls tools.
        tool_calls: The calls that an assistant message asks for.
        tool_call_id: The call that a tool message answers.
        name: The tool's name on a tool message, where it is known.
        is_error: Whether a tool message tells of a failure. Not all providers tell the
            model; `to_dict` leaves it out.
        rest: What else the model sees of it, in any form that `==` compares: thoughts,
            pictures. Headstart compares it, and nothing else.
        native: What stands for the message in the host's own framework, if anything
            does; the `ToolResult` in a request that the engine runs ahead. Headstart
            hands it on, and never compares or shows it.
    """

    role: Role
    content: str = field(default="", repr=False)
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    is_error: bool = False
    rest: Any = field(default=None, repr=False)
    native: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def for_result(cls, call: ToolCall, result: ToolResult) -> Message:
        """The tool message that answers `call` with `result`."""
        return cls(
            role="tool",
            content=result.content,
            tool_call_id=call.id,
            name=call.name,
            is_error=result.is_error,
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Message:
        """Read a chat message in the common JSON form.

        Raises:
            UsageError: It is not such a message.
        """
        if not isinstance(data, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"A message is a mapping with a 'role', not {type(data).__name__}."
            raise UsageError(msg)
        role, content = data.get("role"), data.get("content")
        if role not in _ROLES:
            msg = f"A message's 'role' is one of {', '.join(_ROLES)}, not {role!r}."
            raise UsageError(msg)
        if content is not None and not isinstance(content, str):
            kind = type(content).__name__
            msg = f"A message's 'content' is text or null, not {kind}."
            raise UsageError(msg)
        return cls(
            role=role,
            content=content or "",
            tool_calls=_read_calls(data.get("tool_calls")),
            tool_call_id=data.get("tool_call_id"),
            name=data.get("name"),
            is_error=bool(data.get("is_error")),
        )

    def to_dict(self) -> dict[str, Any]:
        """Write the message in the common JSON form; empty fields are left out."""
        data: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            data["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self.tool_calls
            ]
        if self.tool_call_id is not None:
            data["tool_call_id"] = self.tool_call_id
        if self.name is not None and self.role != "tool":
            data["name"] = self.name
        return data


def _read_calls(data: object) -> tuple[ToolCall, ...]:
    if data is None:
        return ()
    if not isinstance(data, Sequence):
        msg = f"A message's 'tool_calls' is a list, not {type(data).__name__}."
        raise UsageError(msg)
    return tuple(map(_read_call, cast("Sequence[object]", data)))


def _read_call(data: object) -> ToolCall:
    if isinstance(data, ToolCall):
        return data
    try:
        function = data["function"]  # type: ignore[index] # checked by the except
        call = ToolCall(data["id"], function["name"], function.get("arguments") or "{}")  # type: ignore[index]
    except (KeyError, TypeError, AttributeError) as error:
        msg = "A tool call needs 'id' and 'function' with 'name' and 'arguments'."
        raise UsageError(msg) from error
    if {type(call.id), type(call.name), type(call.arguments)} != {str}:
        msg = "A tool call's 'id', 'name' and 'arguments' are text."
        raise UsageError(msg)
    return call


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """Everything that a model's answer depends on. It is never changed in place.

    Attributes:
        messages: The conversation so far. Chat messages in the common JSON form are
            taken too, and read by `Message.from_dict`.
        tools: The tools offered, in a form that the model client knows.
        settings: Whatever else is sent: temperature, tool choice and so on.
        stateful: The provider keeps the conversation, and each request goes on from
            where the last one left it; or it may change something while it answers.
            None is sent ahead of its time.
    """

    messages: Sequence[Message | Mapping[str, Any]]
    tools: Sequence[Any] = field(default=(), repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    stateful: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        read = tuple(
            message if isinstance(message, Message) else Message.from_dict(message)
            for message in self.messages
        )
        object.__setattr__(self, "messages", read)
        object.__setattr__(self, "tools", tuple(self.tools))
        object.__setattr__(self, "settings", dict(self.settings))

    @property
    def history(self) -> tuple[Message, ...]:
        """The messages, as `Message` objects."""
        return self.messages  # type: ignore[return-value] # read in __post_init__

    def extended(self, messages: Iterable[Message]) -> ModelRequest:
        """A new request with more messages at the end."""
        return replace(self, messages=(*self.messages, *messages))

    def answered(
        self, calls: Iterable[ToolCall], results: Iterable[ToolResult]
    ) -> ModelRequest:
        """A new request with one tool message a call at the end, in call order.

        Their `native` is the result, with what the tool returned.
        """
        pairs = zip(calls, results, strict=True)
        return self.extended(
            replace(Message.for_result(call, result), native=result)
            for call, result in pairs
        )


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallDelta:
    """More of a call that the model is writing.

    Attributes:
        index: Which call of this response, from 0.
        id: The call's identifier, in the delta where it is first known.
        name: The tool's name, in the delta where it is first known.
        arguments: The next piece of the argument text.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class NativeDelta:
    """An event of the host's own framework, for the host alone.

    Headstart holds it and hands it on in its place among the others, and reads nothing
    from it: what an event says of text and calls is put as `TextDelta` and `CallDelta`
    as well, before it.
    """

    event: Any = field(compare=False, repr=False)


ModelDelta: TypeAlias = TextDelta | CallDelta | NativeDelta
DeltaReceiver: TypeAlias = Callable[[ModelDelta], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens that one model request was billed for."""

    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelResponse:
    """A model's complete answer to one request.

    Attributes:
        text: What it says to the user.
        tool_calls: What it asks for, in its own order.
        usage: Tokens billed.
        rest: What else it holds that the model sees again; see `Message.rest`.
        native: What stands for it in the host's own framework; see `Message.native`.
    """

    text: str = field(default="", repr=False)
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage = Usage()
    rest: Any = field(default=None, repr=False)
    native: Any = field(default=None, compare=False, repr=False)

    @property
    def message(self) -> Message:
        """The assistant message that this response adds to the conversation."""
        return Message(
            role="assistant",
            content=self.text,
            tool_calls=self.tool_calls,
            rest=self.rest,
            native=self.native,
        )


class Model(Protocol):
    """A chat model.

    `respond` answers one request. A model that streams calls `on_delta` with each
    piece as it comes (a plain function that returns at once); one that does not never
    calls it. The response is complete either way: a stream that breaks off raises
    `ModelError`, and none of its calls is run. Cancelling `respond` ends the request.
    """

    async def respond(
        self, request: ModelRequest, on_delta: DeltaReceiver
    ) -> ModelResponse: ...


AskModel: TypeAlias = Callable[[ModelRequest, DeltaReceiver], Awaitable[ModelResponse]]
"""`Model.respond` as a function: what an adapter has of its framework's model."""
