"""Headstart in pydantic-ai: one capability, for an agent or for one run of it.

Rules of this file:

1. The seams lie below the hooks of all other capabilities: requests at the model that
   serves them, calls at the toolset. So a hook runs once, for what really happens, and a
   request is compared as the hooks left it.
2. A tool that is started early has a context of its own. What would be seen of it there
   (events, messages, a cancellation) it cannot do before its call is confirmed.

Over 400 lines, as the two seams share the state of a run.
"""

from __future__ import annotations

import contextvars
import copy
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any, cast

try:
    from pydantic_ai import RunContext
    from pydantic_ai.capabilities import AbstractCapability, CapabilityOrdering
    from pydantic_ai.models.wrapper import WrapperModel
    from pydantic_ai.toolsets import WrapperToolset
except ImportError as error:
    msg = 'Please install `pydantic-ai-slim`: pip install "headstart[pydantic-ai]"'
    raise ImportError(msg, name="pydantic_ai") from error

from pydantic_core import to_json

from headstart._calls import ToolCall, same_value
from headstart._errors import InternalError, SpeculationError, UsageError
from headstart._messages import ModelRequest, NativeDelta

from ._pydantic_ai import _messages as translation
from ._pydantic_ai._messages import Kept
from ._pydantic_ai._stream import DeltaReader, ReplayedStream
from ._speculation import Speculation as Options, may_act

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection

    from pydantic_ai.capabilities import WrapRunHandler
    from pydantic_ai.messages import ModelMessage, ModelResponse as NativeResponse
    from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
    from pydantic_ai.run import AgentRunResult
    from pydantic_ai.settings import ModelSettings
    from pydantic_ai.toolsets import AbstractToolset, ToolsetTool

    from headstart._messages import AskModel, DeltaReceiver, ModelResponse
    from headstart._tools import Tool, ToolContext

    from ._speculation import HostRun

__all__ = ("Speculation",)

_STATEFUL = ("openai_previous_response_id", "openai_conversation_id")
"""Settings of requests that change what the provider remembers."""
_CONTEXT = tuple(
    each.name
    for each in fields(RunContext)
    if each.init and not each.name.startswith("_")
)
"""What the context of a call is made of."""


class Speculation(Options, AbstractCapability[Any]):
    """What may be started early, as a capability of pydantic-ai.

    ```python
    agent = Agent(
        model, tools=[look], capabilities=[Speculation(effects={"look": "READ"})]
    )
    ```

    Or for one run: `agent.run(..., capabilities=[...])`, where it takes the place of the
    agent's own.

    Args:
        trusted_servers: Ids of MCP toolsets whose annotations are believed: a tool that
            says it is read-only is a `READ` then.
        **options: Those of `headstart.adapters.Speculation`.
    """

    id: str | None = "headstart"  # an agent has one, and that of a run overrides it

    def __init__(
        self, *, trusted_servers: Collection[str] = (), **options: Any
    ) -> None:
        if isinstance(trusted_servers, str):
            msg = "'trusted_servers' is a list of ids of MCP toolsets."
            raise UsageError(msg)
        super().__init__(**options)
        self.trusted_servers = frozenset(trusted_servers)
        self._run: _Run | None = None

    @classmethod
    def get_serialization_name(cls) -> str | None:
        """Specs cannot name it: predictors and sinks are objects."""
        return None

    @classmethod
    def combine(cls, capabilities: Any) -> AbstractCapability[Any]:
        """The last one, where an agent is given several."""
        return capabilities[-1]

    def get_ordering(self) -> CapabilityOrdering:
        """Outermost: toolsets and models that others wrap are wrapped whole."""
        return CapabilityOrdering(position="outermost")

    async def for_run(self, ctx: RunContext[Any]) -> Speculation:
        """One of its own for each run; those of a durable workflow have no speculation."""
        own = copy.copy(self)
        own._begin(ctx)  # noqa: SLF001 - its own class
        return own

    def _begin(self, ctx: RunContext[Any]) -> None:
        inert = ctx.realtime or ctx.in_durable_context
        self._run = None if inert else _Run(self, self.open_run(deps=ctx.deps))

    async def wrap_run(
        self, ctx: RunContext[Any], *, handler: WrapRunHandler
    ) -> AgentRunResult[Any]:
        """Open the session for the run."""
        if self._run is None:
            return await handler()
        async with self._run.host:
            return await handler()

    def get_wrapper_toolset(
        self, toolset: AbstractToolset[Any]
    ) -> AbstractToolset[Any] | None:
        """The tools' seam."""
        return None if self._run is None else _Toolset(toolset, self._run)

    def get_wrapper_model(self, model: Model) -> Model | None:
        """The model's seam."""
        return None if self._run is None else _Model(model, self._run)


@dataclass(repr=False, kw_only=True)
class _EarlyContext(RunContext[Any]):
    """The context of a tool that was started early."""

    launched: ToolContext[Any] | None = field(default=None, repr=False)
    calls: dict[str, RunContext[Any]] = field(
        default_factory=dict[str, Any], repr=False
    )

    def _real(self) -> RunContext[Any]:
        """The context of the call that this launch serves."""
        launched = self.launched
        if launched is not None and not launched.speculative:
            real = self.calls.get(launched.call.id)
            if real is not None:
                return real
        msg = (
            "A tool that is started early cannot do that before its call is confirmed."
        )
        raise SpeculationError(msg)

    async def emit(self, *args: Any, **kwargs: Any) -> Any:
        return await self._real().emit(*args, **kwargs)

    def enqueue(self, *args: Any, **kwargs: Any) -> Any:
        return self._real().enqueue(*args, **kwargs)

    def cancel(self, *args: Any, **kwargs: Any) -> Any:
        return self._real().cancel(*args, **kwargs)


@dataclass
class _Toolset(WrapperToolset[Any]):
    """The tools of a run, with their calls going through the session."""

    run: _Run = field(repr=False, compare=False)

    async def get_tools(self, ctx: RunContext[Any]) -> dict[str, ToolsetTool[Any]]:
        tools = await self.wrapped.get_tools(ctx)
        self.run.note_tools(self.wrapped, ctx, tools)
        return tools

    async def call_tool(
        self,
        name: str,
        tool_args: dict[str, Any],
        ctx: RunContext[Any],
        tool: ToolsetTool[Any],
    ) -> Any:
        async def real() -> Any:
            return await self.wrapped.call_tool(name, tool_args, ctx, tool)

        return await self.run.call(name, tool_args, ctx, real)


class _Model(WrapperModel):
    """The model of one attempt, with its requests going through the session."""

    def __init__(self, wrapped: Model, run: _Run) -> None:
        super().__init__(wrapped)
        self._run = run

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> NativeResponse:
        asked = self._run.asked(self.wrapped, model_settings, model_request_parameters)
        request = self._run.request(messages, asked, stream=False)

        async def ask_model(
            request: ModelRequest, on_delta: DeltaReceiver
        ) -> ModelResponse:
            del on_delta
            sent = asked.messages(request, messages)
            answer = await self.wrapped.request(
                sent, model_settings, model_request_parameters
            )
            return translation.read_answer(answer)

        response = await self._run.host.session.ask(
            request, asked.guard(request, ask_model)
        )
        self._run.note_answer(response)
        return response.native

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        asked = self._run.asked(self.wrapped, model_settings, model_request_parameters)
        request = self._run.request(messages, asked, stream=True)

        async def ask_model(
            request: ModelRequest, on_delta: DeltaReceiver
        ) -> ModelResponse:
            sent = asked.messages(request, messages)
            reader = DeltaReader()
            # What is started while the model writes is none of its own variables' business.
            put = partial(contextvars.copy_context().run, on_delta)
            async with self.wrapped.request_stream(
                sent, model_settings, model_request_parameters, run_context
            ) as stream:
                put(NativeDelta((stream, stream.get())))
                async for event in stream:
                    for delta in reader.read(event):
                        put(delta)
                    put(NativeDelta((event, stream.get())))
            return translation.read_answer(stream.get())

        session = self._run.host.session
        async with session.stream(request, asked.guard(request, ask_model)) as answer:
            replayed = ReplayedStream(
                model_request_parameters=model_request_parameters,
                answer=answer,
                on_answer=self._run.note_answer,
            )
            await replayed.open()
            yield replayed


@dataclass(frozen=True, slots=True)
class _Asked:
    """Where a request goes, and all that goes with its messages."""

    model: Model
    settings: ModelSettings | None
    parameters: ModelRequestParameters
    fleeting: bool

    def messages(
        self, request: ModelRequest, asked: list[ModelMessage]
    ) -> list[ModelMessage]:
        """The messages of a request: as they are, or those of one that is run ahead."""
        return translation.write_messages(request.history, asked)

    def guard(self, asked: ModelRequest, ask_model: AskModel) -> AskModel:
        """Refuse to run ahead where that cannot be done, or would be remembered."""
        settings = cast("dict[str, Any]", self.settings or {})
        if any(settings.get(name) for name in _STATEFUL):
            msg = "A conversation that the provider keeps is not run ahead."
        elif any(may_act(tool.kind) for tool in self.parameters.native_tools):
            msg = (
                "A request by which the provider may change something is not run ahead."
            )
        elif self.fleeting:
            msg = "A model that is wrapped anew for each request is not run ahead."
        else:
            return ask_model

        async def ask(request: ModelRequest, on_delta: DeltaReceiver) -> ModelResponse:
            if request is not asked:
                raise SpeculationError(msg)
            return await ask_model(request, on_delta)

        return ask


class _Same:
    """A value that equals itself, whatever it says it equals."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


class _Run:
    """One run of an agent: what the two seams share."""

    def __init__(self, capability: Speculation, host: HostRun) -> None:
        self.host = host
        self._capability = capability
        self._step: tuple[AbstractToolset[Any], RunContext[Any]] | None = None
        self._tools: dict[str, Tool] = {}
        self._made: dict[str, tuple[ToolsetTool[Any], bool, Tool]] = {}
        self._reader = translation.Reader()
        self._calls: dict[str, ToolCall] | None = None
        self._contexts: dict[str, RunContext[Any]] = {}
        self._changed: dict[str, dict[str, Any]] = {}

    # What is offered

    def note_tools(
        self,
        toolset: AbstractToolset[Any],
        ctx: RunContext[Any],
        tools: dict[str, ToolsetTool[Any]],
    ) -> None:
        """A step has begun, with these tools."""
        self._step = toolset, ctx
        self._tools = {name: self._tool(name, own, ctx) for name, own in tools.items()}

    def _tool(self, name: str, own: ToolsetTool[Any], ctx: RunContext[Any]) -> Tool:
        described = own.tool_def
        never_early = (
            described.kind != "function"
            or own.args_validator_func is not None  # it may ask for an approval
            or not ctx.is_tool_available(described)
        )
        known = self._made.get(name)
        if known is not None and known[1] is never_early and known[0] == own:
            return known[2]

        def validate(text: str) -> dict[str, Any]:
            changed = self._changed.get(text)
            if changed is not None:
                return dict(changed)
            return own.args_validator.validate_json(
                text or "{}", context=ctx.validation_context
            )

        async def early(context: ToolContext[Any], arguments: dict[str, Any]) -> Kept:
            return await self._launch(name, own, context, arguments)

        made = self.host.tool(
            name,
            identity=(own, never_early),
            early=early,
            show=translation.show,
            parameters=described.parameters_json_schema,
            description=described.description or "",
            validate=validate,
            metadata=self._metadata(own),
            never_early=never_early,
        )
        self._made[name] = own, never_early, made
        return made

    def _metadata(self, own: ToolsetTool[Any]) -> dict[str, Any]:
        described = own.tool_def
        metadata = dict(described.metadata or {})
        if "headstart" not in metadata and (
            described.toolset_id in self._capability.trusted_servers
        ):
            annotations: Any = metadata.get("annotations") or {}
            if annotations.get("readOnlyHint") is True:
                metadata["headstart"] = "READ"
        return metadata

    # Requests

    def asked(
        self,
        model: Model,
        settings: ModelSettings | None,
        parameters: ModelRequestParameters,
    ) -> _Asked:
        """Where a request goes; a wrapper of another capability lives for one of them."""
        own = self._step is not None and self._step[1].model is model
        fleeting = isinstance(model, WrapperModel) and not own
        return _Asked(model, settings, parameters, fleeting)

    def request(
        self, messages: list[ModelMessage], asked: _Asked, *, stream: bool
    ) -> ModelRequest:
        """What the session is asked."""
        settings = {
            "model": _Same(asked.model),
            "settings": dict(asked.settings or {}),
            "parameters": asked.parameters,
            "instructions": translation.instructions_of(messages),
            "stream": stream,
        }
        tools = self.host.offer(self._tools.values())
        return ModelRequest(self._reader.read(messages), tools, settings)

    def note_answer(self, response: ModelResponse) -> None:
        """An answer is there, and its calls come next."""
        self._calls = {call.id: call for call in response.tool_calls}
        self._changed.clear()

    # Calls

    async def call(
        self,
        name: str,
        arguments: dict[str, Any],
        ctx: RunContext[Any],
        real: Callable[[], Awaitable[Any]],
    ) -> Any:
        """Run a call that the framework asks for, or adopt its launch."""
        if self._calls is None:  # calls of an earlier run, approved by now
            return await real()
        call = self._calls.get(ctx.tool_call_id or "")
        if call is None or call.name != name or self._differs(call, arguments):
            # Arguments that a hook has changed, or a call that no answer holds.
            text = to_json([ctx.tool_call_id, len(self._changed)]).decode()
            text = f'{{"headstart":{text}}}'
            self._changed[text] = arguments
            call = ToolCall(ctx.tool_call_id or "", name, text)
        self._contexts[call.id] = ctx
        try:
            value = await self.host.call(call, real)
        finally:
            self._contexts.pop(call.id, None)
        if not isinstance(value, Kept):
            return value
        ctx.usage.incr(value.usage)
        return value.value

    def _differs(self, call: ToolCall, arguments: dict[str, Any]) -> bool:
        tool = self._tools.get(call.name)
        try:
            return tool is None or not same_value(
                tool.validate(call.arguments), arguments
            )
        except ValueError:
            return True

    async def _launch(
        self,
        name: str,
        own: ToolsetTool[Any],
        context: ToolContext[Any],
        arguments: dict[str, Any],
    ) -> Kept:
        """Run a call early, in a context of its own."""
        if self._step is None:
            msg = "A tool was started early before any was listed."
            raise InternalError(msg)
        toolset, ctx = self._step
        before = copy.copy(ctx.usage)
        spent = copy.copy(before)
        public = {name: getattr(ctx, name) for name in _CONTEXT}
        public |= {
            "usage": spent,
            "messages": list(ctx.messages),
            "pending_messages": None,
            "tool_manager": None,
            "tool_name": name,
            "tool_call_id": context.call.id,
            "retry": ctx.retries.get(name, 0),
            "max_retries": own.max_retries,
        }
        early = _EarlyContext(**public, launched=context, calls=self._contexts)
        value = await toolset.call_tool(name, arguments, early, own)
        return Kept(value, spent - before)
