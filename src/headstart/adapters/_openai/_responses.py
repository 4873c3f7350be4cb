"""The Responses API in the shape of the `openai` SDK.

Rules of this file: those of `_chat`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from openai.types.responses import Response

from headstart._calls import ToolCall, ToolResult
from headstart._chat_answer import describe_tool
from headstart._errors import ModelError
from headstart._messages import CallDelta, Message, ModelResponse, TextDelta, Usage
from headstart.adapters._provider import (
    Answer,
    SentMessage,
    broken_off,
    copied,
    given,
    incomplete,
    role_of,
    text_of,
)

from ._client import OpenAIProvider

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headstart._tools import Tool


class Responses(OpenAIProvider):
    """The Responses API, in the shape of the `openai` SDK.

    ```python
    api = Responses(openai.AsyncOpenAI(), model="gpt-5-mini")
    response = await session.ask(api.request(items, session.tools), api.respond)
    items += api.reply(response)
    results = await session.call_all(response.tool_calls)
    items += api.results(response.tool_calls, results)
    ```

    The `native` of a response is the SDK's `Response`. With `previous_response_id` or
    `conversation` nothing is run ahead, as OpenAI keeps the conversation then.

    Args:
        client: An `openai.AsyncOpenAI`, or one of its subclasses.
        stream: Whether answers come piece by piece.
        settings: Sent with every request: `model`, `instructions` and so on.
    """

    reserved = ("input", "tools", "stream")

    def creator(self) -> Callable[..., Any]:
        """The SDK's method that sends a request."""
        return self.client.responses.create

    def open_answer(self) -> Answer:
        """Reads the events of one answer."""
        return _ResponseStream()

    def is_stateful(self, settings: Mapping[str, Any]) -> bool:
        """Whether OpenAI keeps the conversation."""
        names = ("previous_response_id", "conversation")
        return any(isinstance(settings.get(name), (str, dict)) for name in names)

    def reply(self, response: ModelResponse) -> list[dict[str, Any]]:
        """The answer's items, reasoning and all: `items += api.reply(response)`."""
        return _write_items(response.message)

    def results(
        self, calls: Sequence[ToolCall], results: Sequence[ToolResult]
    ) -> list[dict[str, Any]]:
        """An output for each call."""
        pairs = zip(calls, results, strict=True)
        return [_output(call.id, each.content) for call, each in pairs]

    def read_messages(self, messages: list[dict[str, Any]]) -> list[Message]:
        """The conversation, for the engine: the items of one answer are one message."""
        names: dict[str, str] = {}
        read: list[Message] = []
        answer: list[dict[str, Any]] = []
        for item in messages:
            if not _is_input(item):
                answer.append(item)
                if item.get("type") == "function_call":
                    names[item["call_id"]] = item["name"]
                continue
            _take_answer(answer, read)
            read.append(_read_input(item, names))
        _take_answer(answer, read)
        return read

    def write_messages(self, messages: Sequence[Message], body: dict[str, Any]) -> None:
        """Put the conversation into a request."""
        body["input"] = [item for each in messages for item in _write_items(each)]

    def describe(self, tool: Tool) -> dict[str, Any]:
        """A tool, as the provider is told of it."""
        function = describe_tool(tool)["function"]
        return {"type": "function", **function, "strict": False}


def _output(call_id: str | None, text: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


def _is_input(item: Mapping[str, Any]) -> bool:
    """Whether an item comes from the caller, and not out of an answer."""
    if item.get("type", "message") == "message":
        return item.get("role") != "assistant"
    return str(item["type"]).endswith(("_output", "_response"))


def _read_input(item: dict[str, Any], names: Mapping[str, str]) -> SentMessage:
    if item.get("type", "message") == "message":
        return SentMessage(
            role=role_of(item),
            content=text_of(item.get("content")),
            native=[item],
            seen=_see_items,
        )
    call_id = item.get("call_id")
    return SentMessage(
        role="tool",
        content=text_of(item.get("output")),
        tool_call_id=call_id,
        name=names.get(call_id or ""),
        native=[item],
        seen=_see_items,
    )


def _take_answer(items: list[dict[str, Any]], read: list[Message]) -> None:
    if not items:
        return
    text, calls = _read_answer(items)
    sent = SentMessage(
        role="assistant",
        content=text,
        tool_calls=calls,
        native=[*items],
        seen=_see_items,
    )
    read.append(sent)
    items.clear()


def _read_answer(items: list[dict[str, Any]]) -> tuple[str, tuple[ToolCall, ...]]:
    text = "".join(text_of(item.get("content")) for item in items if _speaks(item))
    calls = tuple(
        ToolCall(item["call_id"], item["name"], item.get("arguments") or "")
        for item in items
        if item.get("type") == "function_call"
    )
    return text, calls


def _speaks(item: Mapping[str, Any]) -> bool:
    return item.get("type", "message") == "message"


def _write_items(message: Message) -> list[dict[str, Any]]:
    native = message.native
    if isinstance(native, Response):
        return [copied(item) for item in native.output]
    if isinstance(native, list):
        return cast("list[dict[str, Any]]", native)
    if message.role == "tool":
        return [_output(message.tool_call_id, message.content)]
    said: list[dict[str, Any]] = []
    if message.content or not message.tool_calls:
        said.append({"role": message.role, "content": message.content})
    return said + [
        {
            "type": "function_call",
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments,
        }
        for call in message.tool_calls
    ]


def _see_items(message: Message) -> object:
    return [given(item) for item in _write_items(message)]


class _ResponseStream(Answer):
    def __init__(self) -> None:
        self._calls: dict[int, tuple[int, list[str]]] = {}  # by index of the output
        self._items: dict[int, Any] = {}
        self._response: Any = None

    def add(self, event: Any) -> Sequence[TextDelta | CallDelta]:
        match event.type:
            case "response.output_text.delta" | "response.refusal.delta":
                return (TextDelta(event.delta),) if event.delta else ()
            case "response.output_item.added":
                return self._begin(event.output_index, event.item)
            case "response.function_call_arguments.delta":
                index, pieces = self._calls[event.output_index]
                pieces.append(event.delta)
                return (CallDelta(index=index, arguments=event.delta),)
            case "response.output_item.done":
                return self._end(event.output_index, event.item)
            case "response.completed" | "response.incomplete":
                self._response = event.response
            case "response.failed" | "error":
                raise _failed(event)
            case _:
                pass
        return ()

    def _begin(self, place: int, item: Any) -> Sequence[CallDelta]:
        if item.type != "function_call" or place in self._calls:
            return ()
        if not (isinstance(item.call_id, str) and item.call_id and item.name):
            msg = "The model's answer holds a call without an identifier or a name."
            raise ModelError(msg)
        index = len(self._calls)
        self._calls[place] = index, [item.arguments or ""]
        begun = CallDelta(
            index=index,
            id=item.call_id,
            name=item.name,
            arguments=item.arguments or "",
        )
        return (begun,)

    def _end(self, place: int, item: Any) -> Sequence[CallDelta]:
        self._items[place] = item
        if item.type != "function_call":
            return ()
        new = [*self._begin(place, item)]
        index, pieces = self._calls[place]
        written = "".join(pieces)
        if item.arguments != written and item.arguments.startswith(written):
            pieces.append(item.arguments[len(written) :])
            new.append(CallDelta(index=index, arguments=pieces[-1]))
        return new

    def take(self, whole: Any) -> None:
        self._response = whole

    def finish(self) -> ModelResponse:
        response = self._response
        if response is None:
            raise broken_off()
        if response.status not in (None, "completed", "incomplete"):
            msg = f"The model's endpoint gave a response that is {response.status!r}."
            raise ModelError(msg)
        if not response.output:  # some endpoints tell it only piece by piece
            response.output = [self._items[place] for place in sorted(self._items)]
        text, calls = _read_answer([copied(item) for item in response.output])
        halves = [item for item in response.output if _is_half(item)]
        if calls and (response.status not in (None, "completed") or halves):
            details = response.incomplete_details
            raise incomplete(details.reason if details else "incomplete")
        if len({call.id for call in calls}) < len(calls):
            msg = "The model's answer holds two calls with the same identifier."
            raise ModelError(msg)
        usage = response.usage
        return ModelResponse(
            text=text,
            tool_calls=calls,
            usage=Usage()
            if usage is None
            else Usage(
                input_tokens=usage.input_tokens or 0,
                output_tokens=usage.output_tokens or 0,
            ),
            native=response,
        )


def _is_half(item: Any) -> bool:
    status = getattr(item, "status", None)
    return item.type == "function_call" and status not in (None, "completed")


def _failed(event: Any) -> ModelError:
    error = event if event.type == "error" else event.response.error
    text = getattr(error, "message", None) or "no reason was given"
    return ModelError(f"The model's endpoint failed in the middle: {text}")
