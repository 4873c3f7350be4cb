"""One run of the framework's runner, or several after each other, beside our session.

Rules of this file:

1. What the runner does itself, it does: approvals, guardrails, hooks, its own messages
   of failure. A call that it asks for runs in its own task, with its own context.
2. What ran where we could not see it, may have changed anything: whatever was launched
   before is let go of then.

Over 400 lines, as the seams of agents, models and tools share the state of a run.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Self, cast

from agents import Agent, Handoff, RunConfig
from agents.models.interface import Model
from agents.run_context import RunContextWrapper
from agents.tool import (
    ApplyPatchTool,
    ComputerTool,
    CustomTool,
    FileSearchTool,
    FunctionTool,
    LocalShellTool,
    ToolOriginType,
    ToolSearchTool,
    WebSearchTool,
    get_function_tool_origin,
)
from agents.tool_context import ToolContext
from openai.types.responses import ResponseFunctionToolCall

from headstart._barrier import WriteBarrier
from headstart._errors import UsageError, WriteDenied
from headstart._messages import Message, ModelRequest, NativeDelta
from headstart.adapters._speculation import METADATA_KEY, Returned

from ._items import (
    Item,
    ItemReader,
    answer_items,
    as_items,
    normal,
    read_native,
    write_items,
    write_output,
)
from ._model import (
    BrokenOffError,
    WatchedModel,
    WatchedProvider,
    trace_adopted,
    trace_nothing,
)
from ._tools import Ran, WatchedTool, says_read, unpack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection
    from types import TracebackType

    from agents.guardrail import InputGuardrail
    from agents.items import ModelResponse as Answer
    from agents.tool import Tool as AnyTool

    from headstart._calls import ToolCall, ToolResult
    from headstart._messages import AskModel, DeltaReceiver, ModelResponse
    from headstart._tools import Tool, ToolContext as Context
    from headstart.adapters._speculation import HostRun

    from ._model import Sent

_BUSY = object()
"""In a tool: what runs there belongs to nobody here."""
_current: ContextVar[object] = ContextVar("headstart_openai_agents", default=None)
_SEEN = ("message", "reasoning", "function_call", "web_search_call", "file_search_call")
"""What a model may answer that changes nothing, or that is run through our seam."""
_REPEATABLE = (
    ApplyPatchTool,
    ComputerTool,
    CustomTool,
    FileSearchTool,
    FunctionTool,
    LocalShellTool,
    ToolSearchTool,
    WebSearchTool,
)
"""Tools that the runner runs itself, or that only look something up."""


class _Verdict:
    """The verdict of all input guardrails on one user message: effects wait for it."""

    def __init__(self, count: int) -> None:
        self.barrier = WriteBarrier(name="input guardrails")
        self.begun = False
        self._left = count

    def settle(self, *, tripped: bool) -> None:
        """One guardrail has decided."""
        self._left -= 1
        if tripped:
            self.barrier.deny("an input guardrail tripped")
        elif not self._left:
            self.barrier.flush()


class SpeculativeRun:
    """What makes runs of the framework speculate; from `Speculation.run`.

    An async context manager. It serves one `Runner.run` at a time, and any number after
    each other: reads that were launched early are kept from one to the next. Leaving it
    ends everything that it started.

    Attributes:
        run_config: The configuration for `Runner.run`.
    """

    def __init__(
        self,
        host: HostRun,
        config: RunConfig | None,
        trusted_mcp_servers: Collection[str],
    ) -> None:
        self._host = host
        self._owned = None if config is not None else RunConfig()
        given = config or self._owned or RunConfig()
        self._provider = given.model_provider
        self._trusted = frozenset(trusted_mcp_servers)
        self._shapes: dict[str, str] = {}  # of trusted tools, as first seen
        self._models: dict[int, WatchedModel] = {}
        self._agents: dict[int, tuple[Agent[Any], Agent[Any]]] = {}
        self._tools: dict[int, WatchedTool] = {}
        self._is_open = self._is_asking = self._has_asked = False
        self._wrapper: RunContextWrapper[Any] | None = None
        self._agent: Agent[Any] | None = None
        self._verdict: _Verdict | None = None
        self._reader = ItemReader()
        self._answered_to: list[Item] = []
        self._said: list[Item] = []
        self._era = object()
        self._unseen: set[str] = set()
        self._changed_unseen = False
        self.failed: set[str] = set()
        self._common = list(given.input_guardrails or ())
        self.run_config = dataclasses.replace(
            given,
            model=self._watch(given.model)
            if isinstance(given.model, Model)
            else given.model,
            model_provider=WatchedProvider(given.model_provider, self._watch),
            input_guardrails=[self._guard(each) for each in self._common] or None,
        )

    async def __aenter__(self) -> Self:
        await self._host.__aenter__()
        self._is_open = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_open = False
        if self._verdict is not None:
            self._verdict.barrier.deny("the run has ended")
        try:
            await self._host.__aexit__(kind, error, traceback)
        finally:
            if self._owned is not None:
                await self._provider.aclose()

    def wrap(self, agent: Agent[Any]) -> Agent[Any]:
        """The same agent, seen by this run: give it to `Runner.run`.

        It is a clone: agents that it hands off to are wrapped when it does, tools that
        are added to the original later are used, and the original is not touched.
        Wrapping a wrapped agent, such as `result.last_agent`, gives it back.
        """
        known = self._agents.get(id(agent))
        if known is not None:
            return known[1]
        model = agent.model
        clone = agent.clone(
            model=self._watch(model) if isinstance(model, Model) else model,
            tools=[self._watch_tool(tool) for tool in agent.tools],
            input_guardrails=[self._guard(each) for each in agent.input_guardrails],
        )
        self._agents[id(agent)] = self._agents[id(clone)] = (agent, clone)
        clone.handoffs = [self._wrap_handoff(each) for each in agent.handoffs]
        clone.get_all_tools = functools.partial(  # type: ignore[method-assign]
            self._get_tools, agent, list(agent.tools), clone
        )
        return clone

    def unwrap(self, agent: Agent[Any]) -> Agent[Any]:
        """The original of a wrapped agent, such as `result.last_agent`."""
        known = self._agents.get(id(agent))
        return agent if known is None else known[0]

    def _wrap_handoff(self, handoff: Any) -> Any:
        if not isinstance(handoff, Handoff):
            return self.wrap(cast("Agent[Any]", handoff))
        known = cast("Handoff[Any, Any]", handoff)
        hand_over = known.on_invoke_handoff

        async def on_invoke_handoff(context: RunContextWrapper[Any], text: str) -> Any:
            return self.wrap(await hand_over(context, text))

        return dataclasses.replace(known, on_invoke_handoff=on_invoke_handoff)

    async def _get_tools(
        self,
        original: Agent[Any],
        before: list[AnyTool],
        clone: Agent[Any],
        context: RunContextWrapper[Any],
    ) -> list[AnyTool]:
        """In place of `Agent.get_all_tools`, which the runner calls each turn."""
        if _current.get() is not _BUSY:
            _current.set(self)
            self._begin(context, original)
            self._agent = clone
        now = list(original.tools)
        if list(map(id, now)) != list(map(id, before)):
            before[:] = now
            clone.tools = [self._watch_tool(tool) for tool in now]
        tools = await type(clone).get_all_tools(clone, context)
        return [self._watch_tool(tool) for tool in tools]

    # Guardrails

    def _begin(self, context: RunContextWrapper[Any], agent: Agent[Any]) -> None:
        """The runner has begun another run, or goes on with the one there is."""
        if context is self._wrapper:
            return
        self._wrapper = context
        count = len(agent.input_guardrails) + len(self._common)
        if context.usage.requests:
            count = (
                0  # it goes on where it was interrupted, and asks no guardrail again
            )
        if self._verdict is not None:
            self._verdict.barrier.deny("another run has begun")
        if count or self._verdict is not None:
            self._verdict = _Verdict(count) if count else None
            barriers = [] if self._verdict is None else [self._verdict.barrier]
            self._host.hold(*barriers)

    def _guard(self, guardrail: InputGuardrail[Any]) -> InputGuardrail[Any]:
        async def judge(context: RunContextWrapper[Any], agent: Any, given: Any) -> Any:
            verdict: _Verdict | None = None
            if _current.get() is not _BUSY:
                self._begin(context, self.unwrap(agent))
                verdict = self._verdict
            if verdict is None:
                verdict = _Verdict(0)
            verdict.begun = True
            try:
                output = guardrail.guardrail_function(context, agent, given)
                if inspect.isawaitable(output):
                    output = await output
            except BaseException:
                verdict.barrier.deny("an input guardrail failed")
                raise
            verdict.settle(tripped=output.tripwire_triggered)
            return output

        return dataclasses.replace(
            guardrail, guardrail_function=judge, name=guardrail.get_name()
        )

    # The model's seam

    def _watch(self, model: Model) -> WatchedModel:
        if isinstance(model, WatchedModel):
            return model
        known = self._models.get(id(model))
        if known is None:
            known = self._models[id(model)] = WatchedModel(model, self._find)
        return known

    def _find(self) -> SpeculativeRun | None:
        return self if self._is_open and _current.get() is self else None

    async def answer(self, model: Model, sent: Sent) -> Answer:
        """Answer a request of the runner at once."""
        request, ask, asked = self._prepare(model, sent, streamed=False)
        self._is_asking = True
        try:
            response = await self._host.session.ask(request, ask)
        finally:
            self._is_asking = False
        self._answered(model, sent, response, adopted=not asked)
        return response.native

    async def stream(self, model: Model, sent: Sent) -> AsyncIterator[Any]:
        """Answer a request of the runner piece by piece."""
        request, ask, asked = self._prepare(model, sent, streamed=True)
        self._is_asking = True
        try:
            async with self._host.session.stream(request, ask) as answer:
                async for delta in answer:
                    if isinstance(delta, NativeDelta):
                        yield delta.event
        except BrokenOffError:
            return  # the runner has seen its last event, and says so itself
        finally:
            self._is_asking = False
        if answer.response is not None:
            self._answered(model, sent, answer.response, adopted=not asked)

    def _prepare(
        self, model: Model, sent: Sent, *, streamed: bool
    ) -> tuple[ModelRequest, AskModel, list[bool]]:
        if self._is_asking:
            msg = (
                "A run of headstart serves one Runner.run at a time: open one for each "
                "of those that run side by side."
            )
            raise UsageError(msg)
        items = as_items(sent.input)
        if self._verdict is not None and not self._verdict.begun and self._has_history:
            self._verdict.barrier.flush()  # the runner asks no guardrail in this run
        if not self._goes_on(items):
            self._era = object()
        if self._unseen or self._changed_unseen:
            self._host.offer(())
            self._era = object()
        request = ModelRequest(
            self._reader.read(items, self.failed),
            self._host.offer(self._offered(sent.tools)),
            self._settings(model, sent),
            stateful=not self._is_repeatable(sent),
        )
        asked: list[bool] = []

        async def ask(asking: ModelRequest, on_delta: DeltaReceiver) -> ModelResponse:
            if asking is request:
                asked.append(True)
                to_send = sent
            else:
                trace_nothing()
                to_send = sent.ahead(write_items(asking.history, self._write))
            if streamed:
                return read_native(await to_send.read(model, on_delta))
            return read_native(await to_send.answer(model))

        return request, ask, asked

    @property
    def _has_history(self) -> bool:
        return self._wrapper is not None and self._wrapper.usage.requests > 0

    def _goes_on(self, items: list[Item]) -> bool:
        """Whether a request begins with all that the last one and its answer had."""
        before, said = self._answered_to, self._said
        count = len(before)
        same = items[:count] == before or normal(items[:count]) == normal(before)
        return same and normal(items[count : count + len(said)]) == said

    def _settings(self, model: Model, sent: Sent) -> dict[str, Any]:
        schema = sent.output_schema
        return {
            "model": id(model),
            "agent": id(self._agent),
            "era": self._era,
            "instructions": sent.system_instructions,
            "model_settings": sent.model_settings,
            "hosted": [each for each in sent.tools if not _is_function(each)],
            "handoffs": [
                (each.tool_name, each.tool_description, each.input_json_schema)
                for each in sent.handoffs
            ],
            "output": schema
            and (
                schema.name(),
                None if schema.is_plain_text() else schema.json_schema(),
            ),
            "prompt": sent.prompt,
        }

    def _is_repeatable(self, sent: Sent) -> bool:
        """Whether the request after this one can be known, and sent without effects."""
        if sent.previous_response_id or sent.conversation_id:
            return False  # the server would keep what is only a guess
        if not all(isinstance(tool, _REPEATABLE) for tool in sent.tools):
            return False  # the server would run it for what is only a guess
        agent = self._agent
        if agent is None or agent.tool_use_behavior != "run_llm_again":
            return False
        return not (agent.reset_tool_choice and sent.model_settings.tool_choice)

    def _answered(
        self, model: Model, sent: Sent, response: ModelResponse, *, adopted: bool
    ) -> None:
        self._has_asked = True
        answer: Answer = response.native
        if adopted:
            trace_adopted(sent, model, answer)
        said = answer_items(answer)
        self._answered_to, self._said = self._reader.items, normal(said)
        self._unseen = {call.id for call in response.tool_calls}
        self._changed_unseen = any(item.get("type") not in _SEEN for item in said)

    def _write(self, message: Message) -> Any:
        result: ToolResult = message.native
        tool = next(
            (each for each in self._tools.values() if each.name == message.name), None
        )
        if tool is None or not isinstance(result.value, Returned):
            return message.content
        return write_output(unpack(result.value.value), tool.original)

    # The tools' seam

    @property
    def takes_calls(self) -> bool:
        """Whether a call that is run here is one of an answer that was asked for here."""
        return self._is_open and self._has_asked and _current.get() is self

    def _watch_tool(self, tool: AnyTool) -> AnyTool:
        if not isinstance(tool, FunctionTool):
            return tool
        known = self._tools.get(id(tool))
        if known is None:
            known = WatchedTool(self, tool)
            self._tools[id(tool)] = self._tools[id(known.watched)] = known
        return known.watched

    def _offered(self, tools: list[AnyTool]) -> list[Tool]:
        offered: dict[str, Tool] = {}
        for tool in tools:
            known = self._tools.get(id(tool))
            if known is not None:
                offered.setdefault(known.name, self._as_tool(known))
        return list(offered.values())

    def _as_tool(self, known: WatchedTool) -> Tool:
        original = known.original
        origin = get_function_tool_origin(original)
        server = None if origin is None else origin.mcp_server_name
        identity: object = id(original)
        metadata: object = None
        if server is not None:  # the framework makes these anew each turn
            hints = original.mcp_annotations
            shape = json.dumps(
                [original.params_json_schema, original.description, repr(hints)],
                sort_keys=True,
                default=str,
            )
            identity = (server, shape)
            first = self._shapes.setdefault(f"{server}\n{known.name}", shape)
            if server in self._trusted and shape == first and says_read(hints):
                metadata = {METADATA_KEY: "READ"}
        return self._host.tool(
            known.name,
            identity=identity,
            early=known.early,
            show=known.show,
            parameters=original.params_json_schema,
            description=original.description,
            metadata=metadata,
            never_early=bool(
                original.needs_approval
                or original.tool_input_guardrails
                or (origin and origin.type is ToolOriginType.AGENT_AS_TOOL)
            ),
        )

    async def call(
        self,
        call: ToolCall,
        context: ToolContext[Any],
        real: Callable[[], Awaitable[Ran]],
    ) -> Any:
        """Run a call of the runner, or adopt its launch."""
        self._unseen.discard(call.id)
        before = _current.set(_BUSY)
        try:
            ran = await self._host.call(call, real)
        except WriteDenied as error:
            return f"The call was refused: {error.reason}."
        finally:
            _current.reset(before)
        if not isinstance(ran, Ran):
            return ran
        if ran.is_error:
            self.failed.add(call.id)
        if ran.usage is not None:
            context.usage.add(ran.usage)
        return ran.value

    async def launch(self, context: Context[Any], tool: FunctionTool, name: str) -> Ran:
        """Run a call that nobody has asked for yet, with a context of its own."""
        trace_nothing()
        _current.set(_BUSY)
        arguments = context.call.arguments or "{}"
        call = ResponseFunctionToolCall(
            type="function_call",
            call_id=context.call.id,
            name=name,
            arguments=arguments,
        )
        wrapper = RunContextWrapper[Any](
            context=None if self._wrapper is None else self._wrapper.context
        )
        own = ToolContext[Any].from_agent_context(
            wrapper,
            call.call_id,
            tool_call=call,
            agent=self._agent,
            run_config=self.run_config,
        )
        value = await tool.on_invoke_tool(own, arguments)
        return Ran(value, usage=wrapper.usage)


def _is_function(tool: object) -> bool:
    return isinstance(tool, FunctionTool)
