"""What the loops over a provider's own SDK share: conversations in the provider's shape.

Rules of this file:

1. What the caller wrote is sent as it was written. It is copied when it is read, so that
   what is changed in place afterwards is another request.
2. Messages are compared as the provider would see them.
3. Whatever the SDK raises, the caller sees.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import anyio

from headstart._errors import ModelError, UsageError
from headstart._messages import (
    CallDelta,
    Message,
    ModelRequest,
    ModelResponse,
    NativeDelta,
    TextDelta,
)
from headstart._tools import Tool
from headstart.adapters._speculation import may_act

if TYPE_CHECKING:
    from typing import Self

    from headstart._calls import ToolCall, ToolResult
    from headstart._messages import DeltaReceiver

T = TypeVar("T")

_ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SentMessage(Message):
    """A message of the caller's, which is compared as its provider would see it.

    Attributes:
        seen: Gives what the provider would see of a message.
    """

    seen: Callable[[Message], object] = field(repr=False)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Message):
            return NotImplemented
        return self.role == other.role and self.seen(self) == self.seen(other)

    def __hash__(self) -> int:
        return hash((self.role, self.tool_call_id))


class ProviderModel(ABC):
    """A provider's model as its own SDK streams it, for a loop of one's own.

    It is a `Model` as well, for `Agent`.

    Args:
        client: The SDK's asynchronous client. It is not closed here.
        stream: Whether answers come piece by piece; no call starts early otherwise, but
            for those that are predicted.
        settings: Sent with every request, as the SDK's method takes them.

    Raises:
        UsageError: The client is a synchronous one, or a setting cannot be one.
    """

    reserved: ClassVar[tuple[str, ...]] = ("messages", "tools", "stream")

    def __init__(self, client: Any, *, stream: bool = True, **settings: Any) -> None:
        self._check(settings)
        self.client = client
        self.stream = stream
        self.settings = settings

    def request(
        self,
        messages: str | Iterable[Any],
        tools: Iterable[Any] = (),
        **settings: Any,
    ) -> ModelRequest:
        """A request for `Session.ask`.

        Args:
            messages: The conversation, as the SDK takes it: mappings, or objects of
                the SDK.
            tools: Tools of headstart, and the provider's own as mappings.
            settings: On top of those of all requests.

        Raises:
            UsageError: A message or a setting is none.
        """
        self._check(settings)
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        try:
            read = self.read_messages([plain(message) for message in messages])
        except (AttributeError, KeyError, TypeError) as error:
            msg = "A message is not what the SDK would take: a field is missing or odd."
            raise UsageError(msg) from error
        offered = [tool if isinstance(tool, Tool) else plain(tool) for tool in tools]
        acts = any(map(may_act, offered))
        return ModelRequest(
            read,
            offered,
            copied(settings),
            stateful=acts or self.is_stateful({**self.settings, **settings}),
        )

    async def respond(
        self, request: ModelRequest, on_delta: DeltaReceiver
    ) -> ModelResponse:
        """Send a request, and read its answer as it comes: for `Session.ask`.

        Raises:
            ModelError: The answer is incomplete, or makes no sense.
            Exception: Whatever the SDK raises.
        """
        create, body = self.creator(), self.body(request)
        if not self.stream:
            answer = self.open_answer()
            understood(answer.take, await create(**body))
            return understood(answer.finish)
        async with await create(**body, stream=True) as stream:
            return await self.read(stream, on_delta)

    async def read(self, stream: Any, on_delta: DeltaReceiver) -> ModelResponse:
        """Read an answer from a stream of the SDK, however it was asked for.

        Args:
            stream: What `create(stream=True)` gives, or what `stream()` is entered as.
            on_delta: Receives the pieces, and each event of the SDK after them.

        Raises:
            ModelError: The answer is incomplete, or makes no sense.
            Exception: Whatever the SDK raises.
        """
        answer = self.open_answer()
        try:
            async for event in _Events(stream):
                for delta in understood(answer.add, event):
                    on_delta(delta)
                on_delta(NativeDelta(event))
        except Exception:
            await _end(stream)
            raise
        return understood(answer.finish)

    def body(self, request: ModelRequest) -> dict[str, Any]:
        """What the SDK's `create` is called with, for a request of the caller's own."""
        self._check(request.settings)
        body = {**self.settings, **request.settings}
        self.write_messages(request.history, body)
        if request.tools:
            body["tools"] = [
                self.describe(tool) if isinstance(tool, Tool) else tool
                for tool in request.tools
            ]
        return body

    @abstractmethod
    def reply(self, response: ModelResponse) -> list[dict[str, Any]]:
        """What an answer adds to the conversation, with all that came with it."""

    @abstractmethod
    def results(
        self, calls: Sequence[ToolCall], results: Sequence[ToolResult]
    ) -> list[dict[str, Any]]:
        """What the results of its calls add to the conversation."""

    @abstractmethod
    def creator(self) -> Callable[..., Any]:
        """The SDK's method that sends a request."""

    @abstractmethod
    def open_answer(self) -> Answer:
        """Something that reads the events of one answer."""

    @abstractmethod
    def read_messages(self, messages: list[dict[str, Any]]) -> list[Message]:
        """The conversation, for the engine."""

    @abstractmethod
    def write_messages(self, messages: Sequence[Message], body: dict[str, Any]) -> None:
        """Put the conversation into a request."""

    @abstractmethod
    def describe(self, tool: Tool) -> dict[str, Any]:
        """A tool, as the provider is told of it."""

    def is_stateful(self, settings: Mapping[str, Any]) -> bool:
        """Whether the provider keeps the conversation that a request belongs to."""
        del settings
        return False

    def _check(self, settings: Mapping[str, Any]) -> None:
        for name in self.reserved:
            if name in settings:
                msg = f"{name!r} is no setting: it comes with the request."
                raise UsageError(msg)


class Answer(ABC):
    """Reads the events of one answer."""

    @abstractmethod
    def add(self, event: Any) -> Sequence[TextDelta | CallDelta]:
        """Take an event in; gives what is new."""

    @abstractmethod
    def take(self, whole: Any) -> None:
        """Take an answer in that came in one piece."""

    @abstractmethod
    def finish(self) -> ModelResponse:
        """The whole answer, if it is whole."""


class _Events:
    """The events of a stream, without the generator that `async for` would make of it."""

    def __init__(self, stream: Any) -> None:
        own = hasattr(stream, "__anext__")
        self._events: Any = stream if own else aiter(stream)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        return await self._events.__anext__()


async def _end(stream: Any) -> None:
    """Close a stream that is not read on, and end the SDK's generators within it.

    On trio, one that is dropped before its end is a warning.
    """
    if not hasattr(stream, "close"):
        return
    with anyio.move_on_after(1), contextlib.suppress(Exception):
        await stream.close()
        async for _ in _Events(stream):
            pass


def understood(read: Callable[..., T], *sent: Any) -> T:
    """Read what the SDK built, unchecked, from whatever the endpoint sent.

    Raises:
        ModelError: It is not what it should be.
    """
    try:
        return read(*sent)
    except (AttributeError, TypeError, LookupError) as error:
        msg = "The model's endpoint sent what is no answer."
        raise ModelError(msg) from error


def plain(message: object) -> dict[str, Any]:
    """A message or a tool as a mapping of its own, from a mapping or the SDK's object.

    Raises:
        UsageError: It is neither.
    """
    dumped = copied(message)
    if not isinstance(dumped, dict):
        kind = type(message).__name__
        msg = f"A message is a mapping or an object of the SDK, not {kind}."
        raise UsageError(msg)
    return cast("dict[str, Any]", dumped)


def copied(value: Any) -> Any:
    """A copy down to what cannot be changed in place, without objects of the SDK."""
    kind = cast("Any", type(value))
    if kind is str or value is None:  # most of what there is
        return value
    if kind is dict:
        return {key: copied(each) for key, each in value.items()}
    if kind is list:
        return [copied(each) for each in value]
    dump: Any = getattr(value, "to_dict", None)
    if dump is not None and not isinstance(value, type):
        return dump(mode="json")
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value).items()
        return {key: copied(each) for key, each in items}
    if isinstance(value, (list, tuple)):
        return [copied(each) for each in cast("Sequence[Any]", value)]
    return value


def role_of(data: Mapping[str, Any]) -> Any:
    """The role of a message.

    Raises:
        UsageError: There is none that is known.
    """
    role = data.get("role")
    if role not in _ROLES:
        msg = f"A message's 'role' is one of {', '.join(_ROLES)}, not {role!r}."
        raise UsageError(msg)
    return role


def text_of(content: Any) -> str:
    """The text in the content of a message, whatever else there is."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "".join(_text_of_part(part) for part in cast("list[Any]", content))


def _text_of_part(part: Any) -> str:
    if isinstance(part, Mapping):
        named = cast("Mapping[str, Any]", part)
        part = named.get("text") or named.get("refusal")
    return part if isinstance(part, str) else ""


def given(data: Mapping[str, Any]) -> dict[str, Any]:
    """Only what is there: `None` says as little as nothing."""
    return {key: value for key, value in data.items() if value is not None}


def incomplete(reason: object) -> ModelError:
    """What is raised of calls in an answer that ended otherwise than with calls."""
    msg = (
        f"The model's answer asks for tool calls and ended with {reason!r}: "
        "the calls may be cut off, so none of them is run."
    )
    return ModelError(msg)


def broken_off() -> ModelError:
    """What is raised of an answer whose end never came."""
    msg = "The model's stream broke off before the answer was complete."
    return ModelError(msg)
