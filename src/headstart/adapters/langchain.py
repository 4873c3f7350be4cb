"""Headstart in langchain agents and langgraph graphs.

Rules of this file:

1. Both seams are below langchain's callbacks: what generates in a copy of the model,
   and what runs in a copy of the tool. So whatever langchain does around a request or a
   call (callbacks, traces, streams, validation, errors) it does once, when it is real.
2. What runs ahead runs without a `RunnableConfig`, and out of every trace.
3. A request or a call that is not the run's own goes straight through.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import json
import logging
from contextlib import aclosing, asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, get_args, get_type_hints

from headstart._calls import ToolCall, ToolResult
from headstart._errors import SpeculationError
from headstart._messages import (
    CallDelta,
    Message,
    ModelRequest,
    ModelResponse,
    NativeDelta,
    TextDelta,
    Usage,
)

from ._speculation import HostRun, Returned, Speculation as _Speculation

try:
    import langsmith
    from langchain.agents.middleware import AgentMiddleware
    from langchain_core.language_models import BaseChatModel
    from langchain_core.language_models.chat_models import generate_from_stream
    from langchain_core.messages import (
        AIMessage,
        AIMessageChunk,
        BaseMessage,
        SystemMessage,
        ToolMessage,
        message_chunk_to_message,
    )
    from langchain_core.messages.tool import ToolOutputMixin
    from langchain_core.runnables import RunnableBinding, RunnableConfig
    from langchain_core.runnables.config import var_child_runnable_config
    from langchain_core.tools import BaseTool, StructuredTool, Tool as SimpleTool, tool
    from langchain_core.tools.base import TOOL_MESSAGE_BLOCK_TYPES
    from langchain_core.tracers import context as tracing
    from langgraph.config import get_config
except ImportError as error:
    text = 'Please install `langchain`: pip install "headstart[langchain]"'
    raise ImportError(text, name=error.name) from error

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Awaitable,
        Callable,
        Iterable,
        Iterator,
        Sequence,
    )

    from langchain_core.outputs import ChatGenerationChunk, ChatResult

    from headstart._barrier import WriteBarrier
    from headstart._messages import DeltaReceiver
    from headstart._tools import ToolContext

__all__ = ("Speculation",)

logger = logging.getLogger("headstart")
_current: ContextVar[_Run | None] = ContextVar("headstart_langchain", default=None)


class Speculation(_Speculation):
    """What may start early in langchain agents and langgraph graphs, and by whose word.

    ```python
    speculation = Speculation(effects={"get_order": "READ"}, predictors=[rules])
    agent = create_agent(model, tools, middleware=[..., speculation.middleware()])

    async with speculation.run(deps):
        await agent.ainvoke({"messages": messages})
    ```

    Put the middleware last, so that others see what they would see without it. In a
    graph of your own, use `model` where the graph has its chat model, and give
    `awrap_tool_call` and `wrap_tool_call` to its `ToolNode`.

    Args:
        approvals: Names of tools whose calls somebody has to approve, as in
            `HumanInTheLoopMiddleware`: they are never started early, whatever is
            declared.
        stream: Ask for streams also where the agent is not streamed, so that calls
            start as soon as the model has written them.
        **options: As those of `headstart.adapters.Speculation`.
    """

    def __init__(
        self, *, approvals: Iterable[str] = (), stream: bool = False, **options: Any
    ) -> None:
        super().__init__(**options)
        self.approvals = frozenset(approvals)
        self.stream = stream

    @asynccontextmanager
    async def run(
        self,
        deps: Any = None,
        *,
        conditions: Sequence[WriteBarrier] = (),
        name: str | None = None,
    ) -> AsyncIterator[HostRun]:
        """One run of an agent: what it asks for inside the block may have begun before.

        Args:
            deps: What predictors and tools' contexts receive.
            conditions: Barriers that must be open before any effect of this run.
            name: What it is called in events.

        Whatever still runs ahead when the block is left, in any way, ends with it.
        """
        async with self.open_run(deps=deps, conditions=conditions, name=name) as host:
            run = _Run(self, host)
            token = _current.set(run)
            try:
                yield host
            finally:
                run.open = False
                _current.reset(token)

    def middleware(self) -> AgentMiddleware[Any, Any, Any]:
        """The middleware for `create_agent`; without a run it does nothing."""
        return _Middleware(self)

    def model(self, model: BaseChatModel) -> BaseChatModel:
        """A chat model like `model`, for a graph of your own; bind tools to this one."""
        return _wrap_model(model, self.stream)

    def wrap_tool_call(self, request: Any, execute: Callable[[Any], Any]) -> Any:
        """For `ToolNode`, where the graph is run by `invoke`: nothing starts early."""
        _say_that_sync_is_not_early()
        return execute(request)

    async def awrap_tool_call(
        self, request: Any, execute: Callable[[Any], Awaitable[Any]]
    ) -> Any:
        """For `ToolNode`: adopts what was launched for the call."""
        run = _running()
        if run is None or request.tool is None:
            return await execute(request)
        return await execute(request.override(tool=run.stand_in(request)))


class _Middleware(AgentMiddleware[Any, Any, Any]):
    def __init__(self, speculation: Speculation) -> None:
        super().__init__()
        self.tools = []
        self._speculation = speculation

    @property
    def name(self) -> str:
        return "Headstart"

    def wrap_model_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        _say_that_sync_is_not_early()
        return handler(request)

    async def awrap_model_call(
        self, request: Any, handler: Callable[[Any], Awaitable[Any]]
    ) -> Any:
        if _running() is None or not isinstance(request.model, BaseChatModel):
            return await handler(request)
        model = _wrap_model(request.model, self._speculation.stream)
        return await handler(request.override(model=model))

    def wrap_tool_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        return self._speculation.wrap_tool_call(request, handler)

    async def awrap_tool_call(
        self, request: Any, handler: Callable[[Any], Awaitable[Any]]
    ) -> Any:
        return await self._speculation.awrap_tool_call(request, handler)


def _running() -> _Run | None:
    """The run that is open here, and not asking already."""
    run = _current.get()
    if run is None or not run.open or run.loop is not asyncio.get_running_loop():
        return None
    return run


def _say_that_sync_is_not_early() -> None:
    run = _current.get()
    if run is not None and run.open and not run.warned:
        run.warned = True
        logger.warning(
            "The agent is run by a sync method, so nothing of it is started early: "
            "use ainvoke() or astream()."
        )


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer of the model: the `native` of our response."""

    message: AIMessage
    result: ChatResult | None


class _Run:
    """One run: what a session and langchain have to know of one another."""

    def __init__(self, speculation: Speculation, host: HostRun) -> None:
        self.speculation = speculation
        self.host = host
        self.loop = asyncio.get_running_loop()
        self.open = True
        self.warned = False
        self.asking = False
        self.offered: dict[str, BaseTool] = {}
        self.calls: dict[str, ToolCall] = {}  # as the model wrote them
        self.asked: frozenset[str] = frozenset()
        self.last: AIMessage | None = None

    # The tools' seam

    def offer(self, tools: Iterable[BaseTool]) -> tuple[Any, ...]:
        self.offered = {each.name: each for each in tools}
        return self.host.offer(map(self._as_tool, self.offered.values()))

    def _as_tool(self, tool: BaseTool) -> Any:
        any_tool: Any = tool

        async def early(context: ToolContext[Any], arguments: dict[str, Any]) -> Any:
            del context
            with _unseen():
                if takes_config:
                    return await any_tool._arun(**arguments, config=RunnableConfig())
                return await any_tool._arun(**arguments)

        def show(value: Any) -> ToolResult:
            message = _as_message(tool, value, "")
            if message is None:
                return ToolResult("A command to the graph.")
            return ToolResult(_content(message), message.status == "error")

        def validate(text: str) -> dict[str, Any]:
            return dict(any_tool._parse_input(json.loads(text or "{}"), None))

        takes_config = "config" in inspect.signature(any_tool._arun).parameters
        schema = tool.args_schema
        return self.host.tool(
            tool.name,
            identity=id(tool),
            early=early,
            show=show,
            parameters=schema if isinstance(schema, dict) else {},
            description=tool.description,
            validate=validate,
            metadata=tool.metadata,
            never_early=tool.name in self.speculation.approvals or _needs_more(tool),
        )

    def stand_in(self, request: Any) -> BaseTool:
        """A copy of a call's tool that runs it here, below langchain's callbacks."""
        original: Any = request.tool
        stand_in: Any = copy.copy(original)
        asked = self._find(request)

        @functools.wraps(original._arun)
        async def run(*args: Any, **kwargs: Any) -> Any:
            async def real() -> Any:
                token = _current.set(None)  # what it runs inside is not this run's
                try:
                    return await original._arun(*args, **kwargs)
                finally:
                    _current.reset(token)

            return await (real() if asked is None else self.host.call(asked, real))

        vars(stand_in)["_arun"] = run
        if type(original).ainvoke in (StructuredTool.ainvoke, SimpleTool.ainvoke):
            # Those run a sync tool in a thread with all that is around it.
            vars(stand_in)["ainvoke"] = functools.partial(BaseTool.ainvoke, stand_in)
        return stand_in

    def _find(self, request: Any) -> ToolCall | None:
        """The call, if it is one of the last answer's, of the tool that was offered."""
        call = request.tool_call
        offered = self.offered.get(call["name"])
        if call["id"] not in self.asked or not _same_tool(offered, request.tool):
            return None
        return self.as_call(call)

    def as_call(self, call: Any) -> ToolCall:
        """A call of langchain's, in the words of the model where it is still that."""
        written = self.calls.get(call["id"] or "")
        if written is not None and written.name == call["name"]:
            try:
                if json.loads(written.arguments or "{}") == call["args"]:
                    return written
            except ValueError:
                pass
        arguments = json.dumps(call["args"], default=str)
        return ToolCall(call["id"] or "", call["name"], arguments)

    # The model's seam

    def translate(self, message: BaseMessage) -> Message:
        if isinstance(message, AIMessage):
            calls = tuple(map(self.as_call, message.tool_calls))
            return Message(
                role="assistant", content=message.text, tool_calls=calls, native=message
            )
        if isinstance(message, ToolMessage):
            return Message(
                role="tool",
                content=_content(message),
                tool_call_id=message.tool_call_id,
                name=message.name,
                is_error=message.status == "error",
                native=message,
            )
        role = "system" if isinstance(message, SystemMessage) else "user"
        return Message(role=role, content=message.text, native=message)

    def answered(
        self, message: AIMessage, result: ChatResult | None, agent: str | None
    ) -> ModelResponse:
        """Our response for an answer; `agent` is the name that langchain gives it."""
        if agent:
            message = message.model_copy(update={"name": agent})
        usage = message.usage_metadata
        return ModelResponse(
            text=message.text,
            tool_calls=tuple(map(self.as_call, message.tool_calls)),
            usage=Usage()
            if usage is None
            else Usage(
                input_tokens=usage["input_tokens"], output_tokens=usage["output_tokens"]
            ),
            native=_Answer(message, result),
        )

    def confirm(self, response: ModelResponse) -> None:
        self.last = response.native.message
        self.asked = frozenset(call.id for call in response.tool_calls)
        self.calls.update({call.id: call for call in response.tool_calls})

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
            elif isinstance(native, _Answer):
                messages.append(native.message)
            else:
                name = names.get(message.tool_call_id or "", "")
                messages.append(self._write_result(name, message))
        return messages

    def _write_result(self, name: str, message: Message) -> ToolMessage:
        result, tool = message.native, self.offered.get(name)
        if not isinstance(result, ToolResult) or result.error is not None or not tool:
            msg = "What langchain would tell of the call is not known."
            raise SpeculationError(msg)
        if tool.return_direct:
            msg = "The agent ends with this call."
            raise SpeculationError(msg)
        call_id = message.tool_call_id or ""
        if not isinstance(result.value, Returned):
            status = "error" if message.is_error else "success"
            return ToolMessage(
                message.content, name=name, tool_call_id=call_id, status=status
            )
        written = _as_message(tool, result.value.value, call_id)
        if written is None:
            msg = "A command to the graph may change what is asked next."
            raise SpeculationError(msg)
        return written


class _Words:
    """Reads the pieces of a streamed answer, and keeps the calls as they are written."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self._positions: dict[Any, int] = {}

    def read(self, message: BaseMessage) -> Iterator[TextDelta | CallDelta]:
        if message.text:
            yield TextDelta(message.text)
        if not isinstance(message, AIMessageChunk):
            return
        for chunk in message.tool_call_chunks:
            call_id, name, text = chunk["id"], chunk["name"], chunk["args"] or ""
            index = chunk["index"]
            at = None if index is None else self._positions.get(index)
            if at is None or (call_id and call_id != self.calls[at][0]):
                at = len(self.calls)
                self.calls.append([call_id or "", name or "", ""])
                self._positions[index] = at
            self.calls[at][2] += text
            yield CallDelta(index=at, id=call_id, name=name, arguments=text)


class _History:
    """What a request holds besides what our messages say; a longer one equals its beginning.

    A request that is run ahead has the settings of the one before it, so it is that
    part that is compared. The answer in between is compared when it is added.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, messages: Iterable[BaseMessage], last: AIMessage | None) -> None:
        messages = list(messages)
        answers = [each for each in messages if isinstance(each, AIMessage)]
        self.parts = list(map(_hidden, messages))
        self.altered = bool(
            answers and last is not None and _hidden(answers[-1]) != _hidden(last)
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _History) or self.altered or other.altered:
            return False
        return all(map(lambda a, b: a == b, self.parts, other.parts))


def _hidden(message: BaseMessage) -> tuple[Any, ...]:
    content = None if isinstance(message.content, str) else message.content
    return message.type, content, message.additional_kwargs, message.name


def _wrap_model(
    model: BaseChatModel, stream: bool, tools: Sequence[BaseTool] = ()
) -> BaseChatModel:
    """A copy of a chat model whose requests are a run's, where there is one."""
    if "_headstart" in vars(model):
        return model
    inner: Any = model
    takes_manager = "run_manager" in inspect.signature(inner._agenerate).parameters
    streams = (
        type(inner)._astream is not BaseChatModel._astream
        or type(inner)._stream is not BaseChatModel._stream
    )

    def prepare(run: _Run, messages: list[BaseMessage], **settings: Any) -> ModelRequest:
        return ModelRequest(
            list(map(run.translate, messages)),
            run.offer(tools),
            {**settings, "model": id(model), "history": _History(messages, run.last)},
        )

    async def generate(
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        managed = {"run_manager": run_manager} if takes_manager else {}
        run = _running()
        if run is None or run.asking:
            return await inner._agenerate(messages, stop=stop, **managed, **kwargs)
        agent = _agent_name()

        async def ask(asked: ModelRequest, on_delta: DeltaReceiver) -> ModelResponse:
            if asked is request:
                if stream and streams:
                    return await stream_answer(run, messages, on_delta)
                result = await inner._agenerate(messages, stop=stop, **managed, **kwargs)
            else:
                written = run.write_messages(asked)
                with _unseen():
                    await _take_turn(inner)
                    if stream and streams:
                        return await stream_answer(run, written, on_delta)
                    result = await inner._agenerate(written, stop=stop, **kwargs)
            return run.answered(result.generations[0].message, result, agent)

        async def stream_answer(
            run: _Run, messages: list[BaseMessage], on_delta: DeltaReceiver
        ) -> ModelResponse:
            chunks = await _read(
                run, inner._astream(messages, stop=stop, **kwargs), on_delta
            )
            result = generate_from_stream(iter(chunks))
            message = cast("AIMessage", result.generations[0].message)
            return run.answered(message, result, agent)

        request = prepare(run, messages, stop=stop, agent=agent, way="whole", **kwargs)
        run.asking = True
        try:
            response = await run.host.session.ask(request, ask)
        finally:
            run.asking = False
        run.confirm(response)
        return response.native.result

    async def astream(
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        del run_manager  # langchain itself tells it of each piece
        run = _running()
        if run is None or run.asking:
            async for chunk in inner._astream(messages, stop=stop, **kwargs):
                yield chunk
            return
        agent = _agent_name()

        async def ask(asked: ModelRequest, on_delta: DeltaReceiver) -> ModelResponse:
            if asked is request:
                pieces = inner._astream(messages, stop=stop, **kwargs)
                chunks = await _read(run, pieces, on_delta)
            else:
                written = run.write_messages(asked)
                with _unseen():
                    await _take_turn(inner)
                    pieces = inner._astream(written, stop=stop, **kwargs)
                    chunks = await _read(run, pieces, on_delta)
            whole = functools.reduce(lambda a, b: a + b, [c.message for c in chunks])
            message = cast("AIMessage", message_chunk_to_message(whole))
            return run.answered(message, None, agent)

        request = prepare(run, messages, stop=stop, agent=agent, way="pieces", **kwargs)
        run.asking = True
        try:
            async with run.host.session.stream(request, ask) as answer:
                async for delta in answer:
                    if isinstance(delta, NativeDelta):
                        yield delta.event
        finally:
            run.asking = False
        if answer.response is not None:
            run.confirm(answer.response)

    def bind_tools(tools: Sequence[Any], **kwargs: Any) -> Any:
        offered = [each for each in map(_as_base_tool, tools) if each is not None]
        bound = type(model).bind_tools(
            _wrap_model(model, stream, offered), tools, **kwargs
        )
        target: Any = bound
        if isinstance(target, RunnableBinding):
            target = cast("Any", target).bound
        if isinstance(target, BaseChatModel) and "_headstart" not in vars(target):
            wrapped = _wrap_model(target, stream, offered)
            if target is bound:
                return wrapped
            return bound.model_copy(update={"bound": wrapped})
        return bound

    wrapped = copy.copy(model)
    seams = vars(wrapped)
    seams["_headstart"] = True
    seams["_agenerate"] = generate
    seams["_astream"] = astream
    seams["_generate"], seams["_stream"] = inner._generate, inner._stream
    if not tools:
        seams["bind_tools"] = bind_tools
    return wrapped


async def _read(
    run: _Run, pieces: AsyncIterator[ChatGenerationChunk], on_delta: DeltaReceiver
) -> list[ChatGenerationChunk]:
    """Read a streamed answer to its end, and hand its pieces on."""
    words, chunks = _Words(), list["ChatGenerationChunk"]()
    async with aclosing(cast("Any", pieces)) as open_pieces:
        async for chunk in open_pieces:
            for delta in words.read(chunk.message):
                on_delta(delta)
            chunks.append(chunk)
            on_delta(NativeDelta(chunk))
    for call_id, name, text in words.calls:
        run.calls[call_id] = ToolCall(call_id, name, text)
    if not chunks:
        msg = "No generation chunks were returned"
        raise ValueError(msg)  # as langchain says it
    return chunks


async def _take_turn(model: Any) -> None:
    """Wait for the model's rate limiter, as langchain does for real requests."""
    if model.rate_limiter:
        await model.rate_limiter.aacquire(blocking=True)


@contextmanager
def _unseen() -> Iterator[None]:
    """Leave every trace, stream and run of this task, which is a speculation's own."""
    _current.set(None)
    var_child_runnable_config.set(None)
    for hook in vars(tracing).get("_configure_hooks", ()):
        hook[0].set(None)
    with langsmith.tracing_context(enabled=False, parent=False):
        yield


def _agent_name() -> str | None:
    try:
        return get_config().get("metadata", {}).get("lc_agent_name")
    except RuntimeError:  # not in a graph
        return None


def _as_base_tool(offered: Any) -> BaseTool | None:
    if isinstance(offered, BaseTool):
        return offered
    return tool(offered) if inspect.isroutine(offered) else None


def _same_tool(offered: Any, called: Any) -> bool:
    if offered is called:
        return True
    return (
        isinstance(offered, StructuredTool)
        and isinstance(called, StructuredTool)
        and offered.func is called.func
        and offered.coroutine is called.coroutine
    )


def _needs_more(tool: BaseTool) -> bool:
    """Whether a tool takes what is not known before langchain runs it."""
    any_tool: Any = tool
    if isinstance(tool, SimpleTool) or any_tool._injected_args_keys:
        return True
    if not isinstance(tool.args_schema, dict):
        shown: Any = tool.tool_call_schema
        if set(tool.get_input_schema().model_fields) != set(shown.model_fields):
            return True
    functions = [tool]
    if isinstance(tool, StructuredTool):
        functions = [each for each in (tool.func, tool.coroutine) if each is not None]
    else:
        functions = [any_tool._run, any_tool._arun]
    for function in functions:
        try:
            hints = get_type_hints(function)
            names = inspect.signature(function).parameters
        except (NameError, TypeError, ValueError):
            return True
        if {"runtime", "callbacks"} & set(names):
            return True
        for hint in hints.values():
            if hint is RunnableConfig or RunnableConfig in get_args(hint):
                return True
    return False


def _as_message(tool: BaseTool, value: Any, call_id: str) -> ToolMessage | None:
    """What langchain makes of a tool's value; `None` where it is more than a message."""
    content, artifact = value, None
    if tool.response_format == "content_and_artifact":
        if not isinstance(value, tuple) or len(cast("tuple[Any, ...]", value)) != 2:  # noqa: PLR2004
            return None
        content, artifact = cast("tuple[Any, Any]", value)
    items = cast("list[Any]", content) if isinstance(content, (list, tuple)) else []
    if isinstance(content, ToolOutputMixin) or (
        items and any(isinstance(item, ToolOutputMixin) for item in items)
    ):
        return None
    if not isinstance(content, str):
        blocks = isinstance(content, (list, tuple)) and all(map(_is_block, items))
        content = list(items) if blocks else _write(content)
    return ToolMessage(
        cast("Any", content), artifact=artifact, name=tool.name, tool_call_id=call_id
    )


def _is_block(item: Any) -> bool:
    if isinstance(item, dict):
        return cast("dict[str, Any]", item).get("type") in TOOL_MESSAGE_BLOCK_TYPES
    return isinstance(item, str)


def _write(content: Any) -> str:
    try:
        return json.dumps(content, ensure_ascii=False)
    except Exception:  # noqa: BLE001 - as langchain does
        return str(content)


def _content(message: BaseMessage) -> str:
    content = cast("Any", message.content)
    return content if isinstance(content, str) else _write(content)
