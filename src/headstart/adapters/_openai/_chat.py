"""Chat completions in the shape of the `openai` SDK.

Rules of this file:

1. An answer is complete or it is an error: a call out of half an answer never runs.
2. Of what the endpoint sends, nothing is lost: fields that are not known here are kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from openai.types.chat import ChatCompletion

from headstart._calls import ToolCall, ToolResult
from headstart._chat_answer import ChatAnswer, describe_tool, read_completion
from headstart._messages import CallDelta, Message, ModelResponse, TextDelta
from headstart.adapters._provider import (
    Answer,
    SentMessage,
    copied,
    given,
    role_of,
    text_of,
)

from ._client import OpenAIProvider

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headstart._tools import Tool


class ChatCompletions(OpenAIProvider):
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
