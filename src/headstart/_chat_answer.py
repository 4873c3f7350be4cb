"""An answer in the form of chat completions, read as it comes.

Rules of this file:

1. An answer is complete or it is an error: what breaks off, or cannot be understood to
   the end, raises `ModelError`, so that no call out of half an answer ever runs.
2. Nothing is repaired: a piece of a call that does not fit what came before it is an
   error, not a guess.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ._calls import ToolCall
from ._errors import ModelError, UsageError
from ._messages import CallDelta, ModelResponse, TextDelta, Usage
from ._tools import Tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")

_FINISHED_WITH_CALLS = ("tool_calls", "stop", "function_call")


def describe_tool(tool: object) -> dict[str, Any]:
    """A tool, as a request offers it to the model."""
    if not isinstance(tool, Tool):
        msg = f"A tool of a request is a headstart Tool, not {type(tool).__name__}."
        raise UsageError(msg)
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
        },
    }


@dataclass(slots=True)
class _PartialCall:
    id: str
    name: str
    arguments: list[str] = field(default_factory=list[str])

    def add(self, call_id: str | None, name: str | None, arguments: str) -> None:
        if call_id not in (None, "", self.id) or name not in (None, "", self.name):
            msg = (
                f"The model's stream continues the call of {self.name!r} "
                "as another one: it cannot be told which arguments are whose."
            )
            raise ModelError(msg)
        self.arguments.append(arguments)


@dataclass(slots=True)
class ChatAnswer:
    """A streamed answer, as far as it has come."""

    text: list[str] = field(default_factory=list[str])
    calls: list[_PartialCall] = field(default_factory=list[_PartialCall])
    finish_reason: str | None = None
    usage: Usage = field(default_factory=Usage)
    has_choice: bool = False

    def add(self, chunk: Any) -> list[TextDelta | CallDelta]:
        """Take one chunk in; returns what is new."""
        new: list[TextDelta | CallDelta] = []
        if chunk.usage is not None:
            self.usage = _read_usage(chunk.usage)
        for choice in chunk.choices or ():
            if choice.index:
                continue
            self.has_choice = True
            self.finish_reason = choice.finish_reason or self.finish_reason
            delta = choice.delta
            for text in (delta.content, delta.refusal):
                if text:
                    self.text.append(text)
                    new.append(TextDelta(text))
            new.extend(self._add_piece(piece) for piece in delta.tool_calls or ())
        return new

    def _add_piece(self, piece: Any) -> CallDelta:
        index, call_id, function = piece.index, piece.id, piece.function
        name = None if function is None else function.name
        arguments = ("" if function is None else function.arguments) or ""
        if type(index) is not int or not isinstance(arguments, str):
            raise _malformed()
        if 0 <= index < len(self.calls):
            self.calls[index].add(call_id, name, arguments)
            return CallDelta(index=index, arguments=arguments)
        call = _PartialCall(*_check_identity(call_id, name), [arguments])
        if index != len(self.calls) or any(call.id == c.id for c in self.calls):
            raise _malformed()
        self.calls.append(call)
        return CallDelta(index=index, id=call.id, name=call.name, arguments=arguments)

    def finish(self) -> ModelResponse:
        """The complete answer, if it is complete."""
        if not self.has_choice:
            raise _no_choices()
        if self.finish_reason is None:
            msg = "The model's stream broke off before the answer was complete."
            raise ModelError(msg)
        calls = tuple(
            ToolCall(call.id, call.name, "".join(call.arguments)) for call in self.calls
        )
        _check_finish(self.finish_reason, calls)
        return ModelResponse(
            text="".join(self.text), tool_calls=calls, usage=self.usage
        )


def understand(read: Callable[[Any], T], sent: Any) -> T:
    """Read what the SDK built, unchecked, from whatever the endpoint sent."""
    try:
        return read(sent)
    except (AttributeError, TypeError) as error:
        raise not_a_completion() from error


def read_completion(completion: Any) -> ModelResponse:
    """An answer that came in one piece."""
    if not completion.choices:
        raise _no_choices()
    choice = completion.choices[0]
    calls: list[ToolCall] = []
    for call in choice.message.tool_calls or ():
        function = getattr(call, "function", None)
        if function is None:
            raise _malformed()
        call_id, name = _check_identity(call.id, function.name)
        arguments = function.arguments or ""
        if not isinstance(arguments, str) or any(call_id == c.id for c in calls):
            raise _malformed()
        calls.append(ToolCall(call_id, name, arguments))
    _check_finish(choice.finish_reason, calls)
    usage = completion.usage
    return ModelResponse(
        text=choice.message.content or choice.message.refusal or "",
        tool_calls=tuple(calls),
        usage=Usage() if usage is None else _read_usage(usage),
    )


def _read_usage(usage: Any) -> Usage:
    return Usage(
        input_tokens=usage.prompt_tokens or 0,
        output_tokens=usage.completion_tokens or 0,
    )


def _check_identity(call_id: object, name: object) -> tuple[str, str]:
    if not (isinstance(call_id, str) and call_id and isinstance(name, str) and name):
        raise _malformed()
    return call_id, name


def _check_finish(reason: str | None, calls: Iterable[ToolCall]) -> None:
    if calls and reason not in _FINISHED_WITH_CALLS:
        msg = (
            f"The model's answer asks for tool calls and ended with {reason!r}: "
            "the calls may be cut off, so none of them is run."
        )
        raise ModelError(msg)


def not_a_completion() -> ModelError:
    """What is raised of an answer that is none."""
    msg = "The model's endpoint sent what is no chat completion."
    return ModelError(msg)


def _malformed() -> ModelError:
    msg = (
        "The model's answer holds a tool call that cannot be read: each has an index, "
        "an id of its own, a name, and arguments as text."
    )
    return ModelError(msg)


def _no_choices() -> ModelError:
    msg = (
        "The model's endpoint answered without any choice. Is it a chat completions "
        "endpoint, and can it stream? If it cannot, pass stream=False."
    )
    return ModelError(msg)
