"""A loop of one's own over the `openai` SDK: chat completions, and responses.

Rules of this file:

1. An answer is complete or it is an error: a call out of half an answer never runs.
2. Of what the endpoint sends, nothing is lost: fields that are not known here are kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from headstart._calls import ToolCall, ToolResult
from headstart._chat_answer import ChatAnswer, describe_tool, read_completion
from headstart._errors import ModelError, UsageError
from headstart._messages import CallDelta, Message, ModelResponse, TextDelta, Usage

from ._provider import (
    Answer,
    ProviderModel,
    SentMessage,
    broken_off,
    copied,
    given,
    incomplete,
    role_of,
    text_of,
)

try:
    import openai
    from openai.types.chat import ChatCompletion
    from openai.types.responses import Response
except ImportError as missing:
    message = 'Please install `openai`: pip install "headstart[openai]"'
    raise ImportError(message, name="openai") from missing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headstart._tools import Tool

__all__ = ("ChatCompletions", "Responses")


class _OpenAI(ProviderModel):
    def __init__(
        self, client: openai.AsyncOpenAI, *, stream: bool = True, **settings: Any
    ) -> None:
        if isinstance(client, openai.OpenAI):
            msg = "The client is a synchronous one: use openai.AsyncOpenAI."
            raise UsageError(msg)
        super().__init__(client, stream=stream, **settings)


class ChatCompletions(_OpenAI):
    """Chat completions, in the shape of the `openai` SDK.

    ```python
    chat = ChatCompletions(openai.AsyncOpenAI(), model="gpt-5-mini")
    response = await session.ask(chat.request(messages, session.tools), chat.respond)
    messages += chat.reply(response)
    results = await session.call_all(response.tool_calls)
    messages += chat.results(response.tool_calls, results)
    ```

    The `native` of a response is the SDK's `ChatCompletion`, and each event of the
    stream is in a `NativeDelta`. For endpoints that refuse the question for usage:
    `stream_options=None`.

    Args:
        client: An `openai.AsyncOpenAI`, or one of its subclasses.
        stream: Whether answers come piece by piece.
        settings: Sent with every request: `model`, `temperature` and so on.
    """

    def creator(self) -> Callable[..., Any]:
        """The SDK's method that sends a request."""
        return self.client.chat.completions.create

    def open_answer(self) -> Answer:
        """Reads the chunks of one answer."""
        return _ChatStream()

    def reply(self, response: ModelResponse) -> list[dict[str, Any]]:
        """The assistant message: `messages += chat.reply(response)`."""
        return [_write_chat(response.message)]

    def results(
        self, calls: Sequence[ToolCall], results: Sequence[ToolResult]
    ) -> list[dict[str, Any]]:
        """A tool message for each call."""
        pairs = zip(calls, results, strict=True)
        return [Message.for_result(call, each).to_dict() for call, each in pairs]

    def read_messages(self, messages: list[dict[str, Any]]) -> list[Message]:
        """The conversation, for the engine."""
        names: dict[str, str] = {}
        read: list[Message] = []
        for data in messages:
            calls = [
                ToolCall(each["id"], function["name"], function.get("arguments") or "")
                for each in data.get("tool_calls") or ()
                if (function := each.get("function"))
            ]
            names |= {call.id: call.name for call in calls}
            answered = data.get("tool_call_id")
            sent = SentMessage(
                role=role_of(data),
                content=text_of(data.get("content") or data.get("refusal")),
                tool_calls=tuple(calls),
                tool_call_id=answered,
                name=data.get("name") or names.get(answered or ""),
                native=data,
                seen=_see_chat,
            )
            read.append(sent)
        return read

    def write_messages(self, messages: Sequence[Message], body: dict[str, Any]) -> None:
        """Put the conversation into a request."""
        body["messages"] = [_write_chat(each) for each in messages]
        if self.stream:
            body.setdefault("stream_options", {"include_usage": True})
        if body.get("stream_options") is None:
            body.pop("stream_options", None)

    def describe(self, tool: Tool) -> dict[str, Any]:
        """A tool, as the provider is told of it."""
        return describe_tool(tool)


def _write_chat(message: Message) -> dict[str, Any]:
    native = message.native
    if isinstance(native, ChatCompletion):
        return copied(native.choices[0].message)
    if isinstance(native, dict):
        return cast("dict[str, Any]", native)
    return message.to_dict()


def _see_chat(message: Message) -> object:
    """What decides how the model goes on: an empty field is like one that is not there."""
    return {key: value for key, value in _write_chat(message).items() if value}


class _ChatStream(Answer):
    def __init__(self) -> None:
        self._answer = ChatAnswer()
        self._whole: Any = None
        self._head: dict[str, Any] = {}
        self._message: dict[str, Any] = {"role": "assistant", "content": None}

    def add(self, event: Any) -> Sequence[TextDelta | CallDelta]:
        kind = getattr(event, "type", None)
        if kind not in (None, "chunk"):
            return ()  # of `stream()`, which tells everything a second time
        chunk = event.chunk if kind == "chunk" else event
        new = self._answer.add(chunk)
        self._head |= given(chunk.model_dump(exclude={"choices"}, warnings=False))
        for choice in chunk.choices or ():
            if not choice.index:
                more = choice.delta.model_dump(exclude_unset=True, warnings=False)
                _merge(self._message, given(more))
        return new

    def take(self, whole: Any) -> None:
        self._whole = whole

    def finish(self) -> ModelResponse:
        if self._whole is not None:
            return replace(read_completion(self._whole), native=self._whole)
        response = self._answer.finish()
        calls = self._message.get("tool_calls")
        for call in calls or ():
            call.pop("index", None)
        choice = {
            "index": 0,
            "finish_reason": self._answer.finish_reason,
            "message": self._message,
        }
        head: dict[str, Any] = {**self._head, "object": "chat.completion"}
        whole = ChatCompletion.construct(None, **head, choices=[choice])
        return replace(response, native=whole)


_IDENTITIES = ("id", "type", "name", "role", "index")


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add a piece of a message: texts go on, and lists are put together by index."""
    for key, value in more.items():
        old = into.get(key)
        if isinstance(value, list):
            _merge_lists(into.setdefault(key, []), cast("list[Any]", value))
        elif old is None or (key in _IDENTITIES and value not in (None, "")):
            into[key] = copied(value)
        elif key in _IDENTITIES:
            continue
        elif isinstance(old, str) and isinstance(value, str):
            into[key] = old + value
        elif isinstance(old, dict) and isinstance(value, dict):
            _merge(cast("dict[str, Any]", old), cast("dict[str, Any]", value))
        elif value is not None:
            into[key] = copied(value)


def _merge_lists(into: list[Any], more: list[Any]) -> None:
    for each in more:
        if not isinstance(each, dict):
            into.append(each)
            continue
        piece = given(cast("dict[str, Any]", each))
        index = piece.get("index")
        for known in into:
            if index is not None and known.get("index") == index:
                _merge(known, piece)
                break
        else:
            into.append(copied(piece))


class Responses(_OpenAI):
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
