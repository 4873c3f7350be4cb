"""Messages and answers of pydantic-ai, to ours and back.

Rules of this file:

1. Two messages are equal if the model would see the same. What is neither text nor a call
   goes into `rest` whole, and is compared by its own equality.
2. A request that is run ahead is built of originals, and of what tools have returned as
   pydantic-ai itself would write it. Where that cannot be done, it is not sent.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from pydantic_ai import ModelRetry, ToolFailed
from pydantic_ai.messages import (
    ModelRequest as NativeRequest,
    ModelResponse as NativeResponse,
    SystemPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturn,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_core import to_json

from headstart._calls import ToolCall, ToolResult
from headstart._errors import SpeculationError
from headstart._messages import Message, ModelResponse, Usage
from headstart.adapters._speculation import Returned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic_ai.messages import (
        ModelMessage,
        ModelRequestPart,
        ModelResponsePart,
    )
    from pydantic_ai.usage import RunUsage

_RAISED = {"retried": ModelRetry, "failed": ToolFailed}
_SIMPLE = (SystemPromptPart, TextPart, ToolCallPart, ToolReturnPart, UserPromptPart)
_UNCHANGING = (str, datetime, type(None))
_UNSEEN = ("metadata", "otel_metadata")
"""What models do not see of simple parts, and is not read here."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a launch gave, with what it spent, which counts if it is adopted."""

    value: Any
    usage: RunUsage


# To ours


def read_messages(messages: Sequence[ModelMessage]) -> list[Message]:
    """A conversation, each message with the original that it is from."""
    return [each for message in messages for each in _read_message(message)]


def _read_message(message: ModelMessage) -> list[Message]:
    if isinstance(message, NativeResponse):
        return [read_answer(message).message]
    return [_read_part(part, message) for part in message.parts]


class Reader:
    """Reads one conversation as it grows: each message once, while it stays as it is."""

    def __init__(self) -> None:
        self._known: dict[int, _Read] = {}

    def read(self, messages: Sequence[ModelMessage]) -> list[Message]:
        """As `read_messages`. What is not among `messages` is forgotten."""
        before, self._known, read = self._known, {}, list[Message]()
        for message in messages:
            known = before.get(id(message))
            if known is None or not known.still_is(message):
                known = _Read(message)
            self._known[id(message)] = known
            read += known.messages
        return read


class _Read:
    """A message, what was read from it, and what would show that it was changed.

    Messages can be changed in place, and a request that is compared by what one of them
    was would be taken for another. Where that would not show, they are read again.
    """

    __slots__ = ("_native", "_seen", "messages")

    def __init__(self, native: ModelMessage) -> None:
        self.messages = _read_message(native)
        self._native = native if all(map(_is_simple, native.parts)) else None
        self._seen = [dict(vars(part)) for part in native.parts], native.state

    def still_is(self, message: ModelMessage) -> bool:
        """Whether it is this message, and as it was."""
        return (
            message is self._native
            and (list(map(vars, message.parts)), message.state) == self._seen
        )


def _is_simple(part: ModelRequestPart | ModelResponsePart) -> bool:
    """Whether nothing of a part can change without another value standing there."""
    return type(part) in _SIMPLE and all(
        type(value) in _UNCHANGING
        for name, value in vars(part).items()
        if name not in _UNSEEN
    )


def read_answer(answer: NativeResponse) -> ModelResponse:
    """An answer. Of one that is not complete, no call is started or run ahead on."""
    text: list[str] = []
    calls: list[ToolCall] = []
    plain = answer.state == "complete"
    for part in answer.parts:
        if isinstance(part, TextPart):
            text.append(part.content)
        elif isinstance(part, ToolCallPart):
            calls.append(
                ToolCall(part.tool_call_id, part.tool_name, text_of(part.args))
            )
        plain = plain and _is_plain(part)
    complete = answer.state == "complete"
    rest = None if plain else (answer.state, *map(_timeless, answer.parts))
    return ModelResponse(
        text="".join(text),
        tool_calls=tuple(calls) if complete else (),
        usage=Usage(
            input_tokens=answer.usage.input_tokens,
            output_tokens=answer.usage.output_tokens,
        ),
        rest=rest,
        native=answer,
    )


def text_of(arguments: object) -> str:
    """Arguments as the model wrote them; pydantic-ai's own way writes them anew."""
    if isinstance(arguments, str) or arguments is None:
        return arguments or ""
    return to_json(arguments).decode()


def _is_plain(part: ModelResponsePart) -> bool:
    if type(part) is not TextPart and type(part) is not ToolCallPart:
        return False
    return part.id is None and not part.provider_details


def _read_part(part: ModelRequestPart, native: NativeRequest) -> Message:
    if type(part) is SystemPromptPart:
        return Message(role="system", content=part.content, native=native)
    if type(part) is UserPromptPart:
        if isinstance(part.content, str):
            return Message(role="user", content=part.content, native=native)
        text = "\n".join(each for each in part.content if isinstance(each, str))
        rest = tuple(part.content)
        return Message(role="user", content=text, rest=rest, native=native)
    if isinstance(part, ToolReturnPart):
        raised = _RAISED.get(part.outcome)
        content = part.content
        plain = type(part) is ToolReturnPart
        if not isinstance(content, str):
            content = part.model_response_str(wrap_if_error=False)
            plain = plain and not part.files
        return Message(
            role="tool",
            content=f"{raised.__name__}: {content}" if raised else content,
            tool_call_id=part.tool_call_id,
            name=part.tool_name,
            is_error=raised is not None,
            rest=None if plain else _timeless(part),
            native=native,
        )
    return Message(role="developer", rest=_timeless(part), native=native)


def _timeless(part: Any) -> Any:
    """A part as it is now, without its time, which no model sees."""
    copied = copy.copy(part)
    if hasattr(copied, "timestamp"):
        copied.timestamp = None
    return copied


def instructions_of(messages: Sequence[ModelMessage]) -> str | None:
    """The instructions that the last request brings along."""
    for message in reversed(messages):
        if isinstance(message, NativeRequest):
            return message.instructions
    return None


def show(value: Any) -> ToolResult:
    """What the model is told of what a tool returned."""
    if isinstance(value, Kept):
        value = value.value
    if isinstance(value, ToolReturn):
        value = cast("ToolReturn[Any]", value).return_value
    part = ToolReturnPart(tool_name="", content=value, tool_call_id="")
    return ToolResult(part.model_response_str())


# And back


def write_messages(
    history: Sequence[Message], asked: list[ModelMessage]
) -> list[ModelMessage]:
    """The originals of a request's messages, and what there are none of yet.

    Args:
        history: The messages.
        asked: The messages of the request that the framework itself sends.
    """
    written: list[ModelMessage] = []
    results: list[ToolReturnPart] = []
    for message in history:
        native = message.native
        if message.role == "tool" and not isinstance(native, NativeRequest):
            results.append(_write_result(message, native))
            continue
        if results:
            written.append(_write_request(results, asked))
            results = []
        if isinstance(native, (NativeRequest, NativeResponse)):
            if not written or written[-1] is not native:
                written.append(native)
        else:  # an answer that is only expected
            written.append(
                NativeResponse(parts=[*map(_write_call, message.tool_calls)])
            )
    if results:
        written.append(_write_request(results, asked))
    return written


def _write_request(
    results: list[ToolReturnPart], asked: list[ModelMessage]
) -> NativeRequest:
    return NativeRequest(parts=[*results], instructions=instructions_of(asked))


def _write_call(call: ToolCall) -> ToolCallPart:
    return ToolCallPart(call.name, call.arguments, tool_call_id=call.id)


def _write_result(message: Message, native: object) -> ToolReturnPart:
    """A result, as pydantic-ai would write it."""
    part = ToolReturnPart(
        tool_name=message.name or "",
        content=message.content,
        tool_call_id=message.tool_call_id or "",
    )
    result = native if isinstance(native, ToolResult) else ToolResult(message.content)
    for outcome, raised in _RAISED.items():
        if isinstance(result.error, raised):
            part.content = result.error.message
            part.outcome = "retried" if outcome == "retried" else "failed"
            return part
    if result.is_error:
        raise _unwritable()
    if isinstance(result.value, Returned):
        value = result.value.value
        value = value.value if isinstance(value, Kept) else value
        if isinstance(value, ToolReturn):
            returned = cast("ToolReturn[Any]", value)
            if returned.content or returned.tools:
                raise _unwritable()
            value = returned.return_value
        part.content = value
    else:
        part.content = _read_json(message.content)
    if part.files:
        raise _unwritable()
    return part


def _read_json(text: str) -> Any:
    """A result that is stated as text: objects and lists as such, for some providers."""
    if text[:1] in ("{", "["):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _unwritable() -> SpeculationError:
    msg = "What a tool gave is more than text, so the next request is not run ahead."
    return SpeculationError(msg)
