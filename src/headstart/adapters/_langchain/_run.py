"""One run of an agent: what a session and langchain have to know of one another."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import json
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import langsmith
from langchain_core.messages import AIMessage, BaseMessage, SystemMessage, ToolMessage
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tools import BaseTool
from langchain_core.tracers import context as tracing
from langchain_core.utils.function_calling import convert_to_openai_tool

from headstart._calls import ToolCall, ToolResult
from headstart._errors import SpeculationError
from headstart._messages import Message, ModelRequest, ModelResponse, Usage
from headstart.adapters._speculation import HostRun, Returned

from ._tools import (
    as_message,
    content_of,
    needs_more,
    runs_in_a_thread_whole,
    same_tool,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable

    from langchain_core.outputs import ChatResult

    from headstart._tools import Tool, ToolContext

_PLAIN = ("ai", "human", "system", "AIMessageChunk")

current: ContextVar[Run | None] = ContextVar("headstart_langchain", default=None)


def running() -> Run | None:
    """The run that is open here."""
    run = current.get()
    if run is None or not run.open or run.loop is not asyncio.get_running_loop():
        return None
    return run


@contextmanager
def unseen() -> Generator[None]:
    """Leave every trace, stream and run, in a task that is a speculation's own.

    The task's context is its own, so nothing is put back.
    """
    current.set(None)
    var_child_runnable_config.set(None)
    for hook in vars(tracing).get("_configure_hooks", ()):
        hook[0].set(None)
    with cast("Any", langsmith).tracing_context(enabled=False, parent=False):
        yield


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the model: the `native` of our response.

    Attributes:
        result: What langchain's model gave.
        message: The message that the next request will have of it.
    """

    result: ChatResult
    message: AIMessage


class Run:
    """One run, and the translation of its messages, calls and results.

    Attributes:
        open: Whether the run's block has not been left.
        asking: Whether a request of it is on its way: there is one at a time.
        warned: Whether it was said that sync methods start nothing early.
    """

    def __init__(self, host: HostRun, *, approvals: Collection[str]) -> None:
        self.host = host
        self.loop = asyncio.get_running_loop()
        self.open = True
        self.asking = self.warned = False
        self._approvals = approvals
        self._offered: dict[str, BaseTool] = {}
        self._translated: dict[str, tuple[BaseTool, Tool]] = {}
        self._read: dict[int, _Read] = {}
        self._written: dict[str, ToolCall] = {}  # as the model wrote them
        self._asked: frozenset[str] = frozenset()

    # The tools' seam

    def offer(self, tools: Iterable[BaseTool]) -> tuple[Tool, ...]:
        """Say which tools the next request offers."""
        self._offered = {each.name: each for each in tools}
        return self.host.offer(map(self._translate_tool, self._offered.values()))

    def _translate_tool(self, tool: BaseTool) -> Tool:
        known = self._translated.get(tool.name)
        if known is None or known[0] is not tool:
            known = self._translated[tool.name] = tool, self._make_tool(tool)
        return known[1]

    def _make_tool(self, tool: BaseTool) -> Tool:
        any_tool: Any = tool
        takes_config = "config" in inspect.signature(any_tool._arun).parameters
        given: dict[str, Any] = {"config": {}} if takes_config else {}

        async def early(context: ToolContext[Any], arguments: dict[str, Any]) -> Any:
            del context
            with unseen():
                return await any_tool._arun(**arguments, **given)

        def show(value: Any) -> ToolResult:
            message = as_message(tool, value, "")
            if message is None:
                return ToolResult("A command to the graph.")
            return ToolResult(content_of(message))

        def validate(text: str) -> dict[str, Any]:
            return dict(any_tool._parse_input(json.loads(text or "{}"), None))

        function = convert_to_openai_tool(tool)["function"]
        return self.host.tool(
            tool.name,
            identity=id(tool),
            early=early,
            show=show,
            parameters=function.get("parameters") or {},
            description=tool.description,
            validate=validate,
            metadata=tool.metadata,
            never_early=tool.name in self._approvals or needs_more(tool),
        )

    def stand_in(self, request: Any) -> BaseTool:
        """A copy of a call's tool that runs it here, below langchain's callbacks."""
        original: Any = request.tool
        asked = self._find(request)
        stand_in: Any = copy.copy(original)

        @functools.wraps(original._arun)
        async def run(*args: Any, **kwargs: Any) -> Any:
            async def real() -> Any:
                token = current.set(None)  # what it runs inside is not this run's
                try:
                    return await original._arun(*args, **kwargs)
                finally:
                    current.reset(token)

            return await (real() if asked is None else self.host.call(asked, real))

        vars(stand_in)["_arun"] = run
        if runs_in_a_thread_whole(original):  # it comes to the thread in `_arun`, too
            ainvoke = cast("Any", BaseTool).ainvoke
            vars(stand_in)["ainvoke"] = functools.partial(ainvoke, stand_in)
        return stand_in

    def _find(self, request: Any) -> ToolCall | None:
        """The call, if it is one of the last answer's, of the tool that was offered."""
        call = request.tool_call
        offered = self._offered.get(call["name"])
        if call["id"] not in self._asked or not same_tool(offered, request.tool):
            return None
        return self._translate_call(call)

    def _translate_call(self, call: Any) -> ToolCall:
        """A call of langchain's, in the words of the model where it is still that."""
        written = self._written.get(call["id"] or "")
        if written is not None and written.name == call["name"]:
            try:
                if json.loads(written.arguments or "{}") == call["args"]:
                    return written
            except ValueError:
                pass
        arguments = json.dumps(call["args"], default=str)
        return ToolCall(call["id"] or "", call["name"], arguments)

    # The model's seam

    def translate_all(self, messages: Iterable[BaseMessage]) -> list[Message]:
        """Messages of langchain's, as ours: each is read once, while it stays as it is."""
        before, self._read, read = self._read, {}, list[Message]()
        for message in messages:
            known = before.get(id(message))
            if known is None or not known.still_is(message):
                known = _Read(message, self.translate(message))
            self._read[id(message)] = known
            read.append(known.message)
        return read

    def translate(self, message: BaseMessage) -> Message:
        """A message of langchain's, as ours."""
        if isinstance(message, AIMessage):
            calls = tuple(map(self._translate_call, message.tool_calls))
            return Message(
                role="assistant",
                content=message.text,
                tool_calls=calls,
                rest=_rest_of(message),
                native=message,
            )
        if isinstance(message, ToolMessage):
            return Message(
                role="tool",
                content=content_of(message),
                tool_call_id=message.tool_call_id,
                name=message.name,
                is_error=message.status == "error",
                rest=_rest_of(message),
                native=message,
            )
        role = "system" if isinstance(message, SystemMessage) else "user"
        return Message(
            role=role, content=message.text, rest=_rest_of(message), native=message
        )

    def note_words(self, calls: Iterable[ToolCall]) -> None:
        """Remember calls as the model wrote them; langchain keeps what they mean."""
        self._written.update({call.id: call for call in calls})

    def answered(self, result: ChatResult, agent: str | None) -> ModelResponse:
        """Our response for an answer; `agent` is the name that langchain gives it."""
        message = cast("AIMessage", result.generations[0].message)
        usage = message.usage_metadata
        billed = Usage()
        if usage is not None:
            billed = Usage(
                input_tokens=usage["input_tokens"], output_tokens=usage["output_tokens"]
            )
        named = message.model_copy(update={"name": agent}) if agent else message
        return ModelResponse(
            text=message.text,
            tool_calls=tuple(map(self._translate_call, message.tool_calls)),
            usage=billed,
            rest=_rest_of(named),
            native=Answer(result, named),
        )

    def confirm(self, response: ModelResponse) -> None:
        """Take the answer of a real request: its calls are those that may be asked for."""
        self._asked = frozenset(call.id for call in response.tool_calls)

    def write_messages(self, request: ModelRequest) -> list[BaseMessage]:
        """The messages of a request that is run ahead.

        Raises:
            SpeculationError: It cannot be known what langchain would send.
        """
        names = {call.id: call.name for m in request.history for call in m.tool_calls}
        messages: list[BaseMessage] = []
        for message in request.history:
            native = message.native
            if isinstance(native, BaseMessage):
                messages.append(native)
            elif isinstance(native, Answer):
                messages.append(native.message)
            else:
                name = names.get(message.tool_call_id or "", "")
                messages.append(self._write_result(name, message))
        return messages

    def _write_result(self, name: str, message: Message) -> ToolMessage:
        result, tool = message.native, self._offered.get(name)
        if not isinstance(result, ToolResult) or result.error is not None or not tool:
            msg = "What langchain would tell of the call is not known."
            raise SpeculationError(msg)
        if tool.return_direct:
            msg = "The agent ends with this call."
            raise SpeculationError(msg)
        call_id = message.tool_call_id or ""
        if not isinstance(result.value, Returned):
            return ToolMessage(
                message.content,
                name=name,
                tool_call_id=call_id,
                status="error" if message.is_error else "success",
            )
        written = as_message(tool, result.value.value, call_id)
        if written is None:
            msg = "A command to the graph may change what is asked next."
            raise SpeculationError(msg)
        return written


class _Read:
    """A message and what was read from it, with what would show that it was changed.

    Langchain's messages can be changed in place, and a request that is compared by what
    a message was would be taken for another.
    """

    __slots__ = ("_original", "_seen", "message")

    def __init__(self, original: BaseMessage, message: Message) -> None:
        self.message = message
        self._original = original
        self._seen = _look_at(original)

    def still_is(self, message: BaseMessage) -> bool:
        """Whether it is this message, and as it was."""
        return (
            message is self._original
            and isinstance(message.content, str)
            and _look_at(message) == self._seen
        )


def _look_at(message: BaseMessage) -> tuple[Any, ...]:
    """What is read of a message whose content is text: texts, so that `1` is not `True`."""
    more = repr(message.additional_kwargs) if message.additional_kwargs else ""
    if isinstance(message, ToolMessage):
        named = message.tool_call_id, message.name, message.status
        return message.content, more, *named
    calls = repr(message.tool_calls) if isinstance(message, AIMessage) else ""
    return message.content, more, message.type, message.name, calls


def _rest_of(message: BaseMessage) -> Any:
    """What the model sees of a message besides what ours say; `None` if that is all."""
    if isinstance(message, ToolMessage):
        return message.additional_kwargs or None
    content = None if isinstance(message.content, str) else copy.copy(message.content)
    more = {k: v for k, v in message.additional_kwargs.items() if v is not None}
    kind = message.type if message.type not in _PLAIN else None
    rest = content, more, message.name, kind
    return rest if any(rest) else None
