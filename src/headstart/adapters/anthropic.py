"""A loop of one's own over the `anthropic` SDK: messages.

Rules of this file:

1. An answer is complete or it is an error: a call out of half an answer never runs. That
   a block has ended proves nothing, as a cut-off reply closes its last one, too.
2. Of what the endpoint sends, nothing is lost: blocks that are not known here are kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from headstart._calls import ToolCall, ToolResult, decode_arguments
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
    import anthropic
    from anthropic.types import Message as AnthropicMessage
    from anthropic.types.beta import BetaMessage
except ImportError as missing:
    message = 'Please install `anthropic`: pip install "headstart[anthropic]"'
    raise ImportError(message, name="anthropic") from missing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anthropic.resources.beta import AsyncBeta

    from headstart._tools import Tool

__all__ = ("Messages",)

_FINISHED_WITH_CALLS = ("tool_use", "end_turn")


class Messages(ProviderModel):
    """Messages, in the shape of the `anthropic` SDK.

    ```python
    claude = Messages(anthropic.AsyncAnthropic(), model="...", max_tokens=4096)
    response = await session.ask(
        claude.request(messages, session.tools), claude.respond
    )
    messages += claude.reply(response)
    results = await session.call_all(response.tool_calls)
    messages += claude.results(response.tool_calls, results)
    ```

    The `native` of a response is the SDK's `Message`, and each event of the stream is
    in a `NativeDelta`. Where calls are long, give their tools `eager_input_streaming`.

    Args:
        client: An `anthropic.AsyncAnthropic`, or one of its kind; its `beta` for the
            beta API.
        stream: Whether answers come piece by piece.
        settings: Sent with every request: `model`, `max_tokens`, `system` and so on.
    """

    def __init__(
        self,
        client: anthropic.AsyncAnthropic | AsyncBeta,
        *,
        stream: bool = True,
        **settings: Any,
    ) -> None:
        if isinstance(client, anthropic.Anthropic):
            msg = "The client is a synchronous one: use anthropic.AsyncAnthropic."
            raise UsageError(msg)
        super().__init__(client, stream=stream, **settings)

    def creator(self) -> Callable[..., Any]:
        """The SDK's method that sends a request."""
        return self.client.messages.create

    def open_answer(self) -> Answer:
        """Reads the events of one answer."""
        return _MessageStream()

    def reply(self, response: ModelResponse) -> list[dict[str, Any]]:
        """The assistant message, thinking and all: `messages += claude.reply(response)`."""
        return [_write_answer(response.message)]

    def results(
        self, calls: Sequence[ToolCall], results: Sequence[ToolResult]
    ) -> list[dict[str, Any]]:
        """One user message, with a result for each call."""
        pairs = zip(calls, results, strict=True)
        blocks = [_result(Message.for_result(call, each)) for call, each in pairs]
        return [{"role": "user", "content": blocks}]

    def read_messages(self, messages: list[dict[str, Any]]) -> list[Message]:
        """The conversation, for the engine: a result of a call is a message of its own."""
        names: dict[str, str] = {}
        read: list[Message] = []
        for data in messages:
            role, content = role_of(data), data.get("content")
            if role == "assistant":
                calls = _read_calls(_blocks(content))
                names |= {call.id: call.name for call in calls}
                read.append(_sent(role, content, tool_calls=calls, native=data))
            else:
                read += _read_input(role, content, data, names)
        return read

    def write_messages(self, messages: Sequence[Message], body: dict[str, Any]) -> None:
        """Put the conversation into a request."""
        system: list[str] = []
        written: list[dict[str, Any]] = []
        results: list[dict[str, Any]] = []
        for each in messages:
            native = each.native
            if each.role == "tool":
                results.append(_write_result(each))
                continue
            if isinstance(native, _Beside):
                results += native.blocks
                continue
            if results:
                written.append({"role": "user", "content": results})
                results = []
            if each.role in ("system", "developer") and native is None:
                system.append(each.content)
            elif each.role == "assistant":
                written.append(_write_answer(each))
            else:
                written.append(_write_input(each))
        if results:
            written.append({"role": "user", "content": results})
        body["messages"] = written
        if system:
            body.setdefault("system", "\n\n".join(system))

    def describe(self, tool: Tool) -> dict[str, Any]:
        """A tool, as the provider is told of it."""
        return {
            "name": tool.name,
            "description": tool.description,
            "input_schema": tool.parameters,
        }


@dataclass(frozen=True, slots=True)
class _Beside:
    """What else is in a user message with results of calls."""

    blocks: list[dict[str, Any]]


def _blocks(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return cast("list[dict[str, Any]]", content or [])


def _sent(role: Any, content: Any, **more: Any) -> SentMessage:
    return SentMessage(role=role, content=text_of(content), seen=_see, **more)


def _read_calls(blocks: Sequence[dict[str, Any]]) -> tuple[ToolCall, ...]:
    return tuple(
        ToolCall(block["id"], block["name"], json.dumps(block["input"]))
        for block in blocks
        if block["type"] == "tool_use"
    )


def _read_input(
    role: Any, content: Any, data: dict[str, Any], names: dict[str, str]
) -> list[Message]:
    blocks = _blocks(content)
    results = [block for block in blocks if block["type"] == "tool_result"]
    if not results:
        return [_sent(role, content, native=data)]
    read: list[Message] = [
        _sent(
            "tool",
            block.get("content"),
            tool_call_id=block["tool_use_id"],
            name=names.get(block["tool_use_id"]),
            is_error=bool(block.get("is_error")),
            native=block,
        )
        for block in results
    ]
    others = [block for block in blocks if block["type"] != "tool_result"]
    if others:
        read.append(_sent(role, others, native=_Beside(others)))
    return read


def _result(answer: Message) -> dict[str, Any]:
    block: dict[str, Any] = {
        "type": "tool_result",
        "tool_use_id": answer.tool_call_id,
        "content": answer.content,
    }
    return {**block, "is_error": True} if answer.is_error else block


def _write_result(answer: Message) -> dict[str, Any]:
    native = answer.native
    return (
        cast("dict[str, Any]", native) if isinstance(native, dict) else _result(answer)
    )


def _write_answer(answer: Message) -> dict[str, Any]:
    native = answer.native
    if isinstance(native, (AnthropicMessage, BetaMessage)):
        blocks = [copied(block) for block in native.content]
        return {"role": "assistant", "content": blocks}
    if isinstance(native, dict):
        return cast("dict[str, Any]", native)
    blocks = _blocks(answer.content) if answer.content else []
    blocks += [
        {
            "type": "tool_use",
            "id": call.id,
            "name": call.name,
            "input": decode_arguments(call.arguments) or {},
        }
        for call in answer.tool_calls
    ]
    return {"role": "assistant", "content": blocks}


def _write_input(said: Message) -> dict[str, Any]:
    native = said.native
    if isinstance(native, dict):
        return cast("dict[str, Any]", native)
    return {"role": said.role, "content": said.content}


def _see(message: Message) -> object:
    """What decides how the model goes on: that a block is cached does not."""
    native = message.native
    if message.role == "tool":
        return _see_block(_write_result(message))
    if message.role == "assistant":
        return _see_blocks(_write_answer(message)["content"])
    if isinstance(native, _Beside):
        return _see_blocks(native.blocks)
    return _see_blocks(_write_input(message)["content"])


def _see_blocks(content: Any) -> object:
    return [_see_block(block) for block in _blocks(content)]


def _see_block(block: dict[str, Any]) -> object:
    seen = {key: value for key, value in given(block).items() if key != "cache_control"}
    if seen["type"] == "tool_result":
        seen["content"] = _see_blocks(seen.get("content"))
        seen["is_error"] = bool(seen.get("is_error"))
    return seen


class _MessageStream(Answer):
    def __init__(self) -> None:
        self._kind: Any = AnthropicMessage
        self._whole: Any = None  # as the SDK gave it, where it came in one piece
        self._message: dict[str, Any] = {}
        self._blocks: list[dict[str, Any]] = []
        self._inputs: dict[int, list[str]] = {}  # of tools, by index of the block
        self._calls: dict[int, int] = {}  # which call a block is
        self._texts: list[str] = []
        self._ended = False

    def add(self, event: Any) -> Sequence[TextDelta | CallDelta]:
        match event.type:
            case "message_start":
                self._kind = type(event.message)
                self._message = copied(event.message)
            case "content_block_start":
                return self._begin(event.index, copied(event.content_block))
            case "content_block_delta":
                return self._go_on(event.index, event.delta)
            case "content_block_stop":
                return self._end(event.index)
            case "message_delta":
                self._message |= given(copied(event.delta))
                usage = given(copied(event.usage))
                self._message["usage"] = {**self._message["usage"], **usage}
            case "message_stop":
                self._ended = True
            case _:
                pass  # of `stream()`, which tells everything a second time, or a ping
        return ()

    def _begin(
        self, index: int, block: dict[str, Any]
    ) -> Sequence[TextDelta | CallDelta]:
        if index != len(self._blocks):
            msg = "The model's answer holds blocks that are not in order."
            raise ModelError(msg)
        self._blocks.append(block)
        if block["type"] == "text":
            return self._say(block["text"])
        if block["type"] != "tool_use":
            return ()
        name, call_id = block["name"], block["id"]
        known = [self._blocks[other]["id"] for other in self._calls]
        if not (isinstance(call_id, str) and call_id and name) or call_id in known:
            msg = "The model's answer holds a call without a name or an id of its own."
            raise ModelError(msg)
        self._calls[index] = len(self._calls)
        return (CallDelta(index=self._calls[index], id=call_id, name=name),)

    def _go_on(self, index: int, delta: Any) -> Sequence[TextDelta | CallDelta]:
        block = self._blocks[index]
        match delta.type:
            case "text_delta":
                block["text"] += delta.text
                return self._say(delta.text)
            case "input_json_delta":
                self._inputs.setdefault(index, []).append(delta.partial_json)
                if index not in self._calls or not delta.partial_json:
                    return ()
                call = self._calls[index]
                return (CallDelta(index=call, arguments=delta.partial_json),)
            case "citations_delta":
                block["citations"] = [
                    *(block.get("citations") or ()),
                    copied(delta.citation),
                ]
            case "signature_delta":
                block["signature"] = delta.signature
            case _:  # thinking, and what is to come
                more = given(copied(delta))
                del more["type"]
                for key, value in more.items():
                    old: Any = block.get(key)
                    joins = type(old) is type(value) and type(old) in (str, list)
                    block[key] = old + value if joins else value
        return ()

    def _say(self, text: str) -> Sequence[TextDelta]:
        self._texts.append(text)
        return (TextDelta(text),) if text else ()

    def _end(self, index: int) -> Sequence[CallDelta]:
        block, written = self._blocks[index], "".join(self._inputs.get(index, ()))
        if written:
            try:
                block["input"] = json.loads(written)
            except ValueError:
                block["input"] = None  # seen to when the answer has ended
        elif index in self._calls:
            self._inputs[index] = [json.dumps(block["input"])]
            call = self._calls[index]
            return (CallDelta(index=call, arguments=self._inputs[index][0]),)
        return ()

    def take(self, whole: Any) -> None:
        self._whole, self._message = whole, copied(whole)
        for index, block in enumerate(self._message["content"]):
            self._begin(index, block)
            self._end(index)
        self._ended = True

    def finish(self) -> ModelResponse:
        reason = self._message.get("stop_reason")
        if not self._ended or reason is None:
            raise broken_off()
        calls = tuple(self._call(index) for index in self._calls)
        if calls and reason not in _FINISHED_WITH_CALLS:
            raise incomplete(reason)
        if any(block.get("input", {}) is None for block in self._blocks):
            raise incomplete(reason)
        usage = self._message["usage"]
        counted = ("", "cache_creation_", "cache_read_")
        return ModelResponse(
            text="".join(self._texts),
            tool_calls=calls,
            usage=Usage(
                input_tokens=sum(
                    usage.get(f"{each}input_tokens") or 0 for each in counted
                ),
                output_tokens=usage.get("output_tokens") or 0,
            ),
            native=self._build() if self._whole is None else self._whole,
        )

    def _build(self) -> Any:
        return self._kind.construct(**{**self._message, "content": self._blocks})

    def _call(self, index: int) -> ToolCall:
        block = self._blocks[index]
        if index not in self._inputs or not isinstance(block["input"], dict):
            raise incomplete("an input that is none")
        return ToolCall(block["id"], block["name"], "".join(self._inputs[index]))
