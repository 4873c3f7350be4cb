"""Input items, answers and stream events of the framework, as messages and back.

Rules of this file: translation only. An item that is not understood is kept, and stands
for a call that nothing here can run.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any, cast

from agents.items import ItemHelpers, ModelResponse as Answer
from openai.types.responses import ResponseFunctionToolCall
from pydantic import BaseModel

from headstart._calls import ToolCall, ToolResult
from headstart._messages import (
    CallDelta,
    Message,
    ModelResponse,
    Role,
    TextDelta,
    Usage,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from agents.tool import FunctionTool

Item = dict[str, Any]
_ROLES = ("system", "developer", "user")
_CALL = {"type", "call_id", "name", "arguments"}
_MEANINGLESS = ("id", "status")
"""Fields of items that differ between what a model said and what is sent back."""


def as_items(given: str | Sequence[Any]) -> list[Item]:
    """The input of a request as plain dicts."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    return [
        each.model_dump(exclude_unset=True)
        if isinstance(each, BaseModel)
        else cast("Item", each)
        for each in given
    ]


def normal(items: Iterable[Mapping[str, Any]]) -> list[Item]:
    """Items without what the model does not see, to be compared."""
    return [
        {
            name: value
            for name, value in item.items()
            if value is not None and name not in _MEANINGLESS
        }
        for item in items
    ]


def read_items(items: Iterable[Item], failed: Collection[str]) -> list[Message]:
    """Messages that stand for items: those of one answer are one message.

    Args:
        items: The input of a request.
        failed: The identifiers of calls that ended in an error.
    """
    return _read_on(items, failed, {})


def _read_on(
    items: Iterable[Item], failed: Collection[str], names: dict[str, str]
) -> list[Message]:
    messages: list[Message] = []
    answer: list[Item] = []
    for item in items:
        if _is_said_by_model(item):
            answer.append(item)
            continue
        if answer:
            messages.append(read_answer(answer).message)
            names.update((call.id, call.name) for call in messages[-1].tool_calls)
            answer = []
        messages.append(_read_said(item, names, failed))
    if answer:
        messages.append(read_answer(answer).message)
    return messages


class ItemReader:
    """Reads the inputs of one conversation as it grows: what is as it was, once.

    Attributes:
        items: The last input, as it was then.
    """

    def __init__(self) -> None:
        self.items: list[Item] = []
        self._closed = 0  # how many of them are in `_messages`
        self._messages: list[Message] = []
        self._names: dict[str, str] = {}
        self._failed = 0

    def read(self, items: list[Item], failed: Collection[str]) -> list[Message]:
        """As `read_items`. `failed` only grows."""
        if items[: len(self.items)] != self.items:
            self.items, self._closed = [], 0
        if not self._closed or len(failed) != self._failed:
            self._closed, self._messages, self._names = 0, [], {}
        # The runner makes items anew for each request, but may be given some that
        # are changed in place: so it is a copy that the next input is compared with.
        self.items = [*self.items, *copy.deepcopy(items[len(self.items) :])]
        self._failed = len(failed)
        end = len(items)
        while end > self._closed and _is_said_by_model(items[end - 1]):
            end -= 1  # that answer may go on
        self._messages += _read_on(items[self._closed : end], failed, self._names)
        self._closed = end
        return self._messages + _read_on(items[end:], failed, dict(self._names))


def _is_said_by_model(item: Item) -> bool:
    kind = str(item.get("type") or "message")
    if kind == "message":
        return item.get("role") == "assistant"
    return not kind.endswith(("_output", "_response"))


def _read_said(
    item: Item, names: Mapping[str, str], failed: Collection[str]
) -> Message:
    role = item.get("role")
    if role in _ROLES:
        content = item["content"]
        return Message(
            role=cast("Role", role),
            content=_read_text(content),
            rest=None if isinstance(content, str) else content,
            native=item,
        )
    call_id = str(item.get("call_id") or item.get("approval_request_id") or "")
    output = item.get("output")
    return Message(
        role="tool",
        content=render_output(item if output is None else output),
        tool_call_id=call_id,
        name=names.get(call_id),
        is_error=call_id in failed,
        native=item,
    )


def read_answer(
    items: Sequence[Item], *, native: Any = None, usage: Usage | None = None
) -> ModelResponse:
    """What a model said, as one response; the items themselves unless `native` is given."""
    return ModelResponse(
        text="".join(
            _read_text(item["content"])
            for item in items
            if (item.get("type") or "message") == "message"
        ),
        tool_calls=tuple(call for item in items for call in _read_call(item)),
        usage=usage or Usage(),
        native=list(items) if native is None else native,
        rest=[item for item in normal(items) if not _is_plain(item)] or None,
    )


def _is_plain(item: Item) -> bool:
    """Whether an item of an answer is text, or a call with nothing beside it."""
    kind = item.get("type") or "message"
    return kind == "message" or (kind == "function_call" and item.keys() <= _CALL)


def read_native(answer: Answer) -> ModelResponse:
    """The framework's own answer as a response, with itself as `native`."""
    usage = Usage(
        input_tokens=answer.usage.input_tokens, output_tokens=answer.usage.output_tokens
    )
    return read_answer(answer_items(answer), native=answer, usage=usage)


def answer_items(answer: Answer) -> list[Item]:
    """An answer as it is sent back to the model."""
    return cast("list[Item]", answer.to_input_items())


def call_name(name: str, namespace: object) -> str:
    """A tool's name with its namespace, as `FunctionTool.qualified_name`."""
    return f"{namespace}.{name}" if namespace and namespace != name else name


def _read_call(item: Item) -> Iterable[ToolCall]:
    kind = str(item.get("type") or "message")
    call_id = item.get("call_id") or (
        item.get("id") if kind == "mcp_approval_request" else None
    )
    if not call_id:
        return
    if kind == "function_call":
        name = call_name(item["name"], item.get("namespace"))
        yield ToolCall(str(call_id), name, item.get("arguments") or "")
    else:
        yield ToolCall(str(call_id), kind, "{}")


def _read_text(content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = cast("list[Item]", content)
    return "".join(
        str(part.get("text") or part.get("refusal") or f"[{part.get('type')}]")
        for part in parts
    )


def render_output(output: object) -> str:
    """What the model is shown of a call's output, as text that compares well."""
    if isinstance(output, str):
        return output
    return json.dumps(output, sort_keys=True, default=str)


def write_output(value: object, tool: FunctionTool) -> Any:
    """What the framework would send to the model for what a tool returned."""
    call = ResponseFunctionToolCall(
        type="function_call", call_id="-", name=tool.name, arguments=""
    )
    return ItemHelpers.tool_call_output_item(
        call,
        value,
        output_json_schema=tool.output_json_schema,
        output_type_adapter=getattr(tool, "_output_type_adapter", None),
    )["output"]


def write_items(
    messages: Iterable[Message], write: Callable[[Message], Any]
) -> list[Item]:
    """The input of a request that is run ahead, as the framework would send it.

    Args:
        messages: The conversation, each with what it was read from.
        write: Gives the output of a call that has an early or a final result.
    """
    items: list[Item] = []
    for message in messages:
        native = message.native
        if isinstance(native, Answer):
            items += answer_items(native)
        elif isinstance(native, list):
            items += cast("list[Item]", native)
        elif isinstance(native, ToolResult):
            items.append(
                {
                    "type": "function_call_output",
                    "call_id": message.tool_call_id,
                    "output": write(message),
                }
            )
        elif native is None:  # an answer that is only expected
            items += map(_write_call, message.tool_calls)
        else:
            items.append(native)
    return items


def _write_call(call: ToolCall) -> Item:
    return {
        "type": "function_call",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
    }


class DeltaReader:
    """Reads the events of one streamed answer into deltas."""

    def __init__(self) -> None:
        self._calls: dict[
            int, tuple[int, str]
        ] = {}  # by output index: which, and so far
        self.items: list[Any] = []
        self.answer: Answer | None = None

    def read(self, event: Any) -> Iterable[TextDelta | CallDelta]:
        """What an event says of text and calls."""
        kind = getattr(event, "type", "")
        if kind in ("response.output_text.delta", "response.refusal.delta"):
            yield TextDelta(event.delta)
        elif kind == "response.output_item.added":
            yield from self._begin(event.output_index, event.item)
        elif kind == "response.function_call_arguments.delta":
            yield from self._go_on(event.output_index, event.delta)
        elif kind == "response.function_call_arguments.done":
            yield from self._complete(event.output_index, event.arguments)
        elif kind == "response.output_item.done":
            self.items.append(event.item)
            if event.output_index not in self._calls:
                yield from self._begin(event.output_index, event.item)
            if event.item.type == "function_call":
                yield from self._complete(event.output_index, event.item.arguments)

    def _begin(self, position: int, item: Any) -> Iterable[CallDelta]:
        if not getattr(item, "call_id", None):
            return
        index = len(self._calls)
        if item.type != "function_call":
            self._calls[position] = (index, "")
            return
        self._calls[position] = (index, item.arguments or "")
        yield CallDelta(
            index=index,
            id=item.call_id,
            name=call_name(item.name, getattr(item, "namespace", None)),
            arguments=item.arguments or "",
        )

    def _go_on(self, position: int, arguments: str) -> Iterable[CallDelta]:
        if position in self._calls:
            index, before = self._calls[position]
            self._calls[position] = (index, before + arguments)
            yield CallDelta(index=index, arguments=arguments)

    def _complete(self, position: int, arguments: str) -> Iterable[CallDelta]:
        _, before = self._calls.get(position, (0, arguments))
        if arguments.startswith(before) and len(arguments) > len(before):
            yield from self._go_on(position, arguments[len(before) :])
