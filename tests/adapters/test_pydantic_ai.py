"""The adapter for pydantic-ai: the suite of all adapters, and the framework's own ways.

Over 600 lines: a test a feature, on a few shared tools and one scripted model.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import json
import re
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import anyio
import anyio.to_thread
import pytest
from pydantic import BaseModel

pytest.importorskip("pydantic_ai", reason="needs headstart[pydantic-ai]")

from pydantic_ai import (
    Agent,
    ApprovalRequired,
    BinaryContent,
    DeferredToolRequests,
    DeferredToolResults,
    ExternalToolset,
    FunctionToolset,
    ModelHTTPError,
    ModelRetry,
    RunContext,
    Tool,
    ToolDefinition,
    ToolDenied,
    ToolReturn,
    UsageLimitExceeded,
    UsageLimits,
)
from pydantic_ai.capabilities import AbstractCapability, HandleDeferredToolCalls
from pydantic_ai.messages import (
    CustomEvent,
    ModelMessagesTypeAdapter,
    ModelRequest as NativeRequest,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import (
    DeltaToolCall,
    FunctionModel,
    FunctionStreamedResponse,
)
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.toolsets import WrapperToolset
from pydantic_ai.usage import RequestUsage, RunUsage

from headstart import (
    EventLog,
    ModelRequest,
    SpeculationError,
    TextDelta,
    ToolResult,
    Usage,
    UsageError,
    current_context,
    summarize,
)
from headstart.adapters._pydantic_ai._messages import read_messages
from headstart.adapters.pydantic_ai import Speculation
from headstart.predictors import Prediction, ResultPrediction
from headstart.testing import AdapterConformance, ScriptedModel
from headstart.testing._conformance import Outcome

asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)


class Scripted(FunctionModel):
    """pydantic-ai's test model, answering as a scripted model of ours does."""

    def __init__(self, model):
        self.scripted = model

        async def function(messages, info):
            answer = await model.respond(as_request(messages), lambda delta: None)
            parts = [TextPart(answer.text)] if answer.text else []
            parts += [
                ToolCallPart(call.name, call.arguments, tool_call_id=call.id)
                for call in answer.tool_calls
            ]
            return ModelResponse(parts=parts, usage=as_usage(answer.usage))

        super().__init__(function, model_name="scripted")

    @asynccontextmanager
    async def request_stream(self, messages, settings, parameters, run_context=None):
        answer = Answer(self.scripted, as_request(messages))
        stream = Stream(
            model_request_parameters=parameters, _model_name="scripted", _iter=answer
        )
        try:
            first = await answer.peek()
            del first
            yield stream
        finally:
            await answer.aclose()


class Stream(FunctionStreamedResponse):
    """Bills what the script says."""

    async def _get_event_iterator(self):
        async for event in super()._get_event_iterator():
            yield event
        self._usage = as_usage(self._iter.task.result().usage)

    async def close_stream(self):
        self._iter.queue.put_nowait(ClosedError())

    def get_stream_cancel_errors(self):
        return (ClosedError,)


class ClosedError(Exception):
    """The connection was closed while it was read."""


class Answer:
    """A scripted answer as pydantic-ai's function models stream it."""

    def __init__(self, model, request):
        self.queue = asyncio.Queue()
        self.task = asyncio.create_task(self.respond(model, request))
        self.first = []

    async def respond(self, model, request):
        try:
            return await model.respond(request, self.queue.put_nowait)
        finally:
            self.queue.put_nowait(None)

    async def peek(self):
        self.first.append(await self.queue.get())

    def __aiter__(self):
        return self

    async def __anext__(self):
        delta = self.first.pop() if self.first else await self.queue.get()
        if isinstance(delta, ClosedError):
            raise delta
        if delta is None:
            await self.task
            raise StopAsyncIteration
        if isinstance(delta, TextDelta):
            return delta.text
        return {
            delta.index: DeltaToolCall(
                name=delta.name,
                json_args=delta.arguments or None,
                tool_call_id=delta.id,
            )
        }

    async def aclose(self):
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(asyncio.gather(self.task, return_exceptions=True))


def as_request(messages):
    return ModelRequest(
        [replace(each, native=None) for each in read_messages(messages)]
    )


def as_usage(usage):
    return RequestUsage(
        input_tokens=usage.input_tokens, output_tokens=usage.output_tokens
    )


def as_tool(tool):
    @functools.wraps(tool.function)
    async def function(*args, **kwargs):
        try:
            return await tool.function(*args, **kwargs)
        except LookupError as error:
            raise ModelRetry(str(error)) from error

    return Tool(function, requires_approval=tool.approval)


def plain(messages):
    """Messages without what differs by nature."""
    data = json.loads(ModelMessagesTypeAdapter.dump_json(list(messages)))

    def strip(value):
        if isinstance(value, dict):
            return {
                name: strip(each)
                for name, each in value.items()
                if name not in ("timestamp", "run_id", "conversation_id")
            }
        return [strip(each) for each in value] if isinstance(value, list) else value

    return strip(data)


def strip_event(event):
    """An event without what differs by nature."""
    text = re.sub(r"datetime\.datetime\([^)]*\)", "", repr(event))
    return re.sub(r"(run_id|conversation_id)='[^']*'", "", text)


@dataclass(repr=False, kw_only=True)
class Told(CustomEvent):
    """What a tool tells the user meanwhile."""

    row: int


def text_of(event):
    if isinstance(event, PartStartEvent) and isinstance(event.part, TextPart):
        return event.part.content
    if isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
        return event.delta.content_delta
    return ""


class Idle(AbstractCapability):
    """A capability at the same seams as ours, that does nothing: what any of them costs."""

    async def wrap_run(self, ctx, *, handler):
        return await handler()

    def get_wrapper_toolset(self, toolset):
        return WrapperToolset(toolset)

    def get_wrapper_model(self, model):
        return WrapperModel(model)


class TestPydanticAI(AdapterConformance):
    """The suite of all adapters."""

    extra = ()
    """More capabilities, for benchmarks."""

    async def run(self, scene, stage, model, options):
        def decide(ctx, requests):
            decided = True if scene.approve else ToolDenied()
            return DeferredToolResults(
                approvals={call.tool_call_id: decided for call in requests.approvals}
            )

        capabilities = [HandleDeferredToolCalls(handler=decide), *self.extra]
        if options is not None:
            capabilities.append(Speculation(**options))
        agent = Agent(
            Scripted(model),
            tools=[as_tool(tool) for tool in stage.tools],
            capabilities=capabilities,
        )
        outcome = Outcome()
        if not scene.stream:
            result = await agent.run(scene.user)
        else:
            async with agent.iter(scene.user) as run:
                async for node in run:
                    if not Agent.is_model_request_node(node):
                        continue
                    async with node.stream(run.ctx) as stream:
                        async for event in stream:
                            if text := text_of(event):
                                outcome.seen.append(text)
                                if len(outcome.seen) == scene.read:
                                    return outcome
            result = run.result
        outcome.messages = plain(result.all_messages())
        outcome.usage = Usage(
            input_tokens=result.usage.input_tokens,
            output_tokens=result.usage.output_tokens,
        )
        return outcome


# What users of the framework do with it


READS = {"effect": "READ", "reads": ["row:{row}"]}


class World:
    """A few tools, what they have done, and an agent that has them."""

    def __init__(self):
        self.ran = []
        self.done = []
        self.contexts = []

    async def look(self, ctx: RunContext[str], row: int, depth: int = 1) -> str:
        """What a row holds."""
        self.ran.append(row)
        self.contexts.append(ctx)
        await anyio.sleep(1)
        self.done.append(row)
        return f"{row} for {ctx.deps}"

    async def change(self, row: int) -> str:
        """Change a row."""
        self.ran.append(row)
        await anyio.sleep(0.5)
        if context := current_context():
            context.early_result("changed")
            await context.barrier.wait()
        await anyio.sleep(1)
        self.done.append(row)
        return "changed"

    def tools(self):
        return [
            Tool(self.look, metadata={"headstart": READS}),
            Tool(self.change, metadata={"headstart": {"effect": "GATED"}}),
        ]

    def agent(self, *responses, tools=(), model=None, capabilities=(), **options):
        options.setdefault("deps_type", str)
        model = model or slow(*responses)
        return Agent(
            Scripted(model) if isinstance(model, ScriptedModel) else model,
            tools=[*self.tools(), *tools],
            capabilities=capabilities,
            **options,
        )


def slow(*responses, **options):
    return ScriptedModel(responses, delay=1, **options)


class Guess:
    """Expects calls when the user has spoken."""

    def __init__(self, *calls):
        self.calls = calls

    async def predict(self, conversation):
        if conversation.messages[-1].role != "user":
            return []
        return [
            Prediction(tool=name, arguments=arguments, probability=0.9)
            for name, arguments in self.calls
        ]


LOOK_7 = ("look", {"row": 7})
CHANGE_7 = ("change", {"row": 7})


def speculation(*calls, **options):
    return Speculation(predictors=[Guess(*calls)], **options)


async def timed(awaitable):
    began = anyio.current_time()
    return await awaitable, anyio.current_time() - began


@asyncio_only
async def test_a_tool_that_was_expected_runs_while_the_model_thinks():
    world = World()
    agent = world.agent([LOOK_7], "Done.", capabilities=[speculation(LOOK_7)])
    result, seconds = await timed(agent.run("Go.", deps="Ada"))
    assert result.output == "Done."
    assert seconds == 2
    assert world.ran == [7]


@asyncio_only
async def test_it_is_given_to_one_run_as_well_and_takes_the_agents_place():
    world, logs = World(), [EventLog(), EventLog()]
    agent = world.agent(
        [LOOK_7], "Done.", capabilities=[speculation(LOOK_7, sink=logs[0])]
    )
    own = speculation(LOOK_7, sink=logs[1])
    await agent.run("Go.", deps="Ada", capabilities=[own])
    assert not logs[0].events
    assert summarize(logs[1].events).hidden_s == 1
    assert world.ran == [7]


@asyncio_only
async def test_hooks_run_once_and_for_what_was_confirmed():
    class Watch(AbstractCapability):
        seen: ClassVar[list] = []

        async def before_tool_execute(self, ctx, *, call, tool_def, args):
            self.seen.append(("before", call.tool_name, args))
            return args

        async def wrap_tool_execute(self, ctx, *, call, tool_def, args, handler):
            self.seen.append("wrap")
            return await handler(args)

        async def after_tool_execute(self, ctx, *, call, tool_def, args, result):
            self.seen.append(("after", result))
            return result

        async def before_model_request(self, ctx, request_context):
            self.seen.append("ask")
            return request_context

    world = World()
    agent = world.agent(
        [CHANGE_7],
        "Done.",
        capabilities=[speculation(LOOK_7, CHANGE_7), Watch()],
    )
    _, seconds = await timed(agent.run("Go.", deps="Ada"))
    assert seconds == 2  # the reply came while the effect happened
    assert Watch.seen == [
        "ask",
        "wrap",
        ("before", "change", {"row": 7}),
        ("after", "changed"),
        "ask",
    ]


@asyncio_only
async def test_arguments_that_a_hook_changes_are_those_the_tool_gets():
    class Change(AbstractCapability):
        async def before_tool_execute(self, ctx, *, call, tool_def, args):
            return {**args, "row": 8}

    world = World()
    agent = world.agent([LOOK_7], "Done.", capabilities=[speculation(LOOK_7), Change()])
    result = await agent.run("Go.", deps="Ada")
    assert "8 for Ada" in str(result.all_messages())
    assert world.ran == [7, 8]


@asyncio_only
async def test_a_write_whose_arguments_a_hook_changes_makes_reads_stale():
    class Change(AbstractCapability):
        async def before_tool_execute(self, ctx, *, call, tool_def, args):
            return {**args, "row": 8} if call.tool_name == "write" else args

    rows = {8: "old"}

    async def write(row: int) -> str:
        rows[row] = "new"
        return "written"

    async def read(row: int) -> str:
        return rows[row]

    writes = {"effect": "GATED", "writes": ["row:{row}"]}
    log = EventLog()
    agent = Agent(
        Scripted(slow([("write", {"row": 7})], [("read", {"row": 8})], "Done.")),
        tools=[
            Tool(write, metadata={"headstart": writes}),
            Tool(read, metadata={"headstart": READS}),
        ],
        capabilities=[speculation(("read", {"row": 8}), sink=log), Change()],
    )
    result = await agent.run("Go.")
    returned = [
        part.content
        for message in result.all_messages()
        for part in message.parts
        if isinstance(part, ToolReturnPart)
    ]
    assert returned == ["written", "new"]


@asyncio_only
async def test_a_result_that_a_hook_changes_discards_what_was_built_on_it():
    class Change(AbstractCapability):
        async def after_tool_execute(self, ctx, *, call, tool_def, args, result):
            return result.upper()

    world, log = World(), EventLog()
    model = slow([CHANGE_7], "Done.")
    agent = world.agent(model=model, capabilities=[speculation(sink=log), Change()])
    result = await agent.run("Go.", deps="Ada")
    assert "CHANGED" in str(result.all_messages())
    last = model.requests[-1].history[-1]
    assert last.content == "CHANGED"
    assert [e.reason for e in log.events if e.event == "turn_discarded"] == [
        "the host asked for something else"
    ]


@asyncio_only
async def test_a_request_is_compared_as_the_hooks_left_it():
    class Count(AbstractCapability):
        async def before_model_request(self, ctx, request_context):
            count = UserPromptPart(f"Step {ctx.run_step}.")
            request = NativeRequest(parts=[count])
            request_context.messages = [request, *request_context.messages[1:]]
            return request_context

    asked = []
    for capabilities in ([Count()], [Count(), speculation()]):
        model = slow([CHANGE_7], "Done.")
        agent = World().agent(model=model, capabilities=capabilities)
        await agent.run("Go.", deps="Ada")
        asked.append([request.history for request in model.requests])
    assert asked[1][0] == asked[0][0]
    assert asked[1][-1] == asked[0][-1]
    assert asked[1][1][0].content == "Step 1."  # sent ahead, and thrown away


@asyncio_only
async def test_a_retry_that_a_tool_asks_for_reaches_the_model():
    tries = []

    async def fetch(row: int) -> str:
        tries.append(row)
        if row == 7:
            raise ModelRetry("Take another row.")
        return "found"

    asked = [[("fetch", {"row": 7})], [("fetch", {"row": 8})], "Done."]
    outcomes = []
    for capabilities in ([], [speculation(("fetch", {"row": 7}))]):
        tool = Tool(fetch, metadata={"headstart": "READ"})
        agent = Agent(Scripted(slow(*asked)), tools=[tool], capabilities=capabilities)
        result = await agent.run("Go.")
        outcomes.append((plain(result.all_messages()), result.usage))
    assert outcomes[0] == outcomes[1]
    assert "Take another row." in str(outcomes[1])
    assert tries == [7, 8, 7, 7, 8]  # the launch failed and was run again for real


@asyncio_only
async def test_an_exception_of_a_tool_ends_the_run_as_it_was_raised():
    async def fetch() -> str:
        raise LookupError("gone")

    tool = Tool(fetch, metadata={"headstart": "READ"})
    agent = Agent(
        Scripted(slow([("fetch", {})], "Done.")),
        tools=[tool],
        capabilities=[speculation(("fetch", {}))],
    )
    with pytest.raises(LookupError, match="gone"):
        await agent.run("Go.")


@asyncio_only
async def test_a_tool_that_runs_elsewhere_is_never_launched():
    log = EventLog()
    external = ExternalToolset(
        [ToolDefinition(name="pay", metadata={"headstart": "READ"})]
    )
    agent = Agent(
        Scripted(slow([("pay", {})], "Done.")),
        toolsets=[external],
        output_type=[str, DeferredToolRequests],
        capabilities=[speculation(("pay", {}), sink=log)],
    )
    result = await agent.run("Go.")
    assert [call.tool_name for call in result.output.calls] == ["pay"]
    results = DeferredToolResults(calls={result.output.calls[0].tool_call_id: "paid"})
    result = await agent.run(
        message_history=result.all_messages(), deferred_tool_results=results
    )
    assert result.output == "Done."
    assert not [e for e in log.events if e.event == "call_launched"]


@asyncio_only
async def test_an_approval_in_another_run_runs_the_call_once():
    ran, log = [], EventLog()

    async def erase(row: int) -> str:
        ran.append(row)
        return "erased"

    agent = Agent(
        Scripted(slow([("erase", {"row": 7})], "Done.")),
        tools=[Tool(erase, requires_approval=True, metadata={"headstart": "READ"})],
        output_type=[str, DeferredToolRequests],
        capabilities=[speculation(("erase", {"row": 7}), sink=log)],
    )
    result = await agent.run("Go.")
    assert ran == []
    approvals = {call.tool_call_id: True for call in result.output.approvals}
    result = await agent.run(
        message_history=result.all_messages(),
        deferred_tool_results=DeferredToolResults(approvals=approvals),
    )
    assert result.output == "Done."
    assert ran == [7]
    assert not [e for e in log.events if e.event == "call_launched"]


@asyncio_only
@pytest.mark.parametrize("where", ["tool", "toolset", "validator"])
async def test_an_approval_that_is_asked_for_in_code_wins(where):
    ran = []

    async def erase(ctx: RunContext[Any], row: int) -> str:
        if where == "tool" and not ctx.tool_call_approved:
            raise ApprovalRequired
        ran.append(row)
        return "erased"

    def check(ctx: RunContext[Any], row: int) -> None:
        if not ctx.tool_call_approved:
            raise ApprovalRequired

    tool = Tool(
        erase,
        metadata={"headstart": "READ"},
        args_validator=check if where == "validator" else None,
    )
    toolset = FunctionToolset([tool])
    agent = Agent(
        Scripted(slow([("erase", {"row": 7})], "Done.")),
        toolsets=[toolset.approval_required() if where == "toolset" else toolset],
        output_type=[str, DeferredToolRequests],
        capabilities=[speculation(("erase", {"row": 7}))],
    )
    result = await agent.run("Go.")
    assert ran == []
    assert len(result.output.approvals) == 1


@asyncio_only
async def test_a_structured_output_is_the_same():
    world = World()
    agent = world.agent(
        [LOOK_7],
        [("final_result", {"name": "seven"})],
        output_type=Row,
        capabilities=[speculation(LOOK_7)],
    )
    result, seconds = await timed(agent.run("Go.", deps="Ada"))
    assert result.output == Row(name="seven")
    assert seconds == 2


def stream_script():
    return slow(
        [CHANGE_7, ("look", {"row": 8})], "All is well.", seconds_per_delta=0.25
    )


@asyncio_only
async def test_run_stream_shows_the_same_text():
    seen = []
    for capabilities in ([], [speculation()]):
        agent = World().agent(model=stream_script(), capabilities=capabilities)
        async with agent.run_stream("Go.", deps="Ada") as result:
            seen.append([text async for text in result.stream_text(debounce_by=None)])
            seen[-1].append(plain(result.all_messages()))
    assert seen[0] == seen[1]
    assert seen[1][-2] == "All is well."


@asyncio_only
async def test_an_event_handler_sees_the_same_events():
    seen = []

    async def handle(ctx, stream):
        async for event in stream:
            seen[-1].append(strip_event(event))

    for capabilities in ([], [speculation()]):
        seen.append([])
        agent = World().agent(model=stream_script(), capabilities=capabilities)
        await agent.run("Go.", deps="Ada", event_stream_handler=handle)
    assert len(seen[0]) > 15
    assert seen[0] == seen[1]


@asyncio_only
async def test_run_stream_events_are_the_same():
    seen = []
    for capabilities in ([], [speculation()]):
        agent = World().agent(model=stream_script(), capabilities=capabilities)
        async with agent.run_stream_events("Go.", deps="Ada") as events:
            seen.append([strip_event(event) async for event in events])
    assert seen[0] == seen[1]


@asyncio_only
async def test_what_a_stream_says_of_itself_is_what_was_read_of_it():
    seen = []
    for capabilities in ([], [speculation()]):
        seen.append([])
        agent = World().agent(model=stream_script(), capabilities=capabilities)
        async with agent.iter("Go.", deps="Ada") as run:
            async for node in run:
                if Agent.is_model_request_node(node):
                    async with node.stream(run.ctx) as stream:
                        async for _ in stream:
                            seen[-1].append(plain([stream.response])[0])
    assert seen[0] == seen[1]


@asyncio_only
@pytest.mark.parametrize("pieces", [1, 3])
async def test_a_stream_that_is_cancelled_says_so(pieces):
    outcomes = []
    for capabilities in ([], [speculation()]):
        seen, model = [], stream_script()
        agent = World().agent(model=model, capabilities=capabilities)
        async with agent.iter("Go.", deps="Ada") as run:
            async for node in run:
                if not Agent.is_model_request_node(node):
                    continue
                async with node.stream(run.ctx) as stream:
                    async for event in stream:
                        seen.append(strip_event(event))
                        if len(text_events(seen)) == pieces:
                            await stream.cancel()
                    response = stream.response
                if response.state == "interrupted":
                    break
        await anyio.sleep(10)
        outcomes.append((seen, plain([response])))
        assert {record.outcome for record in model.records} <= {"answered", "cancelled"}
    assert outcomes[0] == outcomes[1]


def text_events(seen):
    return [event for event in seen if "TextPart" in event]


@asyncio_only
async def test_a_run_that_is_left_between_its_nodes_leaves_nothing():
    world = World()
    agent = world.agent(
        [LOOK_7], "Done.", capabilities=[speculation(("look", {"row": 8}), CHANGE_7)]
    )
    async with agent.iter("Go.", deps="Ada") as run:
        async for node in run:
            if Agent.is_call_tools_node(node):
                break
    await anyio.sleep(10)
    assert world.done == [8]  # a guess that had ended; and no effect


@asyncio_only
async def test_a_run_that_is_cancelled_has_no_effect():
    world = World()
    agent = world.agent([LOOK_7], "Done.", capabilities=[speculation(CHANGE_7)])
    with anyio.move_on_after(0.75) as scope:
        await agent.run("Go.", deps="Ada")
    assert scope.cancelled_caught
    await anyio.sleep(10)
    assert (world.ran, world.done) == ([7], [])


@asyncio_only
async def test_events_of_a_tool_are_seen_once_and_not_before_it_is_confirmed():
    async def tell(ctx: RunContext[Any], row: int) -> str:
        await anyio.sleep(0.5)
        await ctx.emit(Told(row=row))
        return "told"

    seen = []
    for capabilities in ([], [speculation(("tell", {"row": 7}), ("tell", {"row": 8}))]):
        agent = Agent(
            Scripted(slow([("tell", {"row": 7})], "Done.", seconds_per_delta=0.25)),
            tools=[Tool(tell, metadata={"headstart": "READ"})],
            capabilities=capabilities,
        )
        async with agent.run_stream_events("Go.") as events:
            seen.append([e.row async for e in events if isinstance(e, Told)])
    assert seen == [[7], [7]]


@asyncio_only
async def test_events_of_an_adopted_tool_reach_the_run():
    async def tell(ctx: RunContext[Any]) -> str:
        await anyio.sleep(5)  # it is asked for meanwhile
        await ctx.emit(Told(row=1))
        return "told"

    agent = Agent(
        Scripted(slow([("tell", {})], "Done.", seconds_per_delta=0.25)),
        tools=[Tool(tell, metadata={"headstart": "READ"})],
        capabilities=[speculation(("tell", {}))],
    )
    began = anyio.current_time()
    async with agent.run_stream_events("Go.") as events:
        told = [
            anyio.current_time() - began
            async for event in events
            if isinstance(event, Told)
        ]
    assert told == [5]


@asyncio_only
async def test_the_usage_of_an_agent_in_a_tool_counts_if_the_tool_was_asked_for():
    usages = []
    for capabilities in ([], [speculation(("ask", {"row": 7}), ("ask", {"row": 8}))]):
        inner = Agent(Scripted(slow("Inner says so.")))

        async def ask(ctx: RunContext[Any], row: int) -> str:
            return (await inner.run(f"Row {row}?", usage=ctx.usage)).output  # noqa: B023

        agent = Agent(
            Scripted(slow([("ask", {"row": 7})], "Done.")),
            tools=[Tool(ask, metadata={"headstart": "READ"})],
            capabilities=capabilities,
        )
        result, seconds = await timed(agent.run("Go."))
        usages.append((result.usage, seconds))
    assert usages[0][0] == usages[1][0]
    assert [seconds for _, seconds in usages] == [3, 2]


@asyncio_only
async def test_defaults_are_filled_in_before_calls_are_compared():
    world = World()
    agent = world.agent(
        [("look", {"depth": 1, "row": 7})], "Done.", capabilities=[speculation(LOOK_7)]
    )
    await agent.run("Go.", deps="Ada")
    assert world.ran == [7]


@asyncio_only
async def test_a_launched_tool_has_a_context_of_its_own():
    world = World()
    agent = world.agent(
        [LOOK_7], "Done.", capabilities=[speculation(LOOK_7, ("look", {"row": 8}))]
    )
    result = await agent.run("Go.", deps="Ada")
    context = world.contexts[0]
    assert context.deps == "Ada"
    assert (context.tool_name, context.retry, context.max_retries) == ("look", 0, 1)
    assert context.usage is not result.usage
    assert context.pending_messages is None
    with pytest.raises(SpeculationError):
        world.contexts[1].enqueue("Do this as well.")


@asyncio_only
async def test_annotations_count_for_servers_that_are_trusted():
    for trusted, seconds in (((), 3), (("files",), 2)):
        world = World()
        toolset = FunctionToolset([world.look], id="files").with_metadata(
            annotations={"readOnlyHint": True}
        )
        agent = Agent(
            Scripted(slow([LOOK_7], "Done.")),
            toolsets=[toolset],
            deps_type=str,
            capabilities=[speculation(LOOK_7, trusted_servers=trusted)],
        )
        _, taken = await timed(agent.run("Go.", deps="Ada"))
        assert taken == seconds


@asyncio_only
async def test_an_annotation_that_says_no_is_believed_too():
    world = World()
    toolset = FunctionToolset([world.look], id="files").with_metadata(
        annotations={"readOnlyHint": False}
    )
    agent = Agent(
        Scripted(slow("Done.")),
        toolsets=[toolset],
        deps_type=str,
        capabilities=[speculation(LOOK_7, trusted_servers=["files"])],
    )
    await agent.run("Go.", deps="Ada")
    assert world.ran == []


@asyncio_only
async def test_a_tool_that_the_model_was_not_shown_yet_is_never_launched():
    world = World()
    toolset = FunctionToolset(world.tools()).defer_loading(["look"])
    agent = Agent(
        Scripted(slow("Done.")),
        toolsets=[toolset],
        deps_type=str,
        capabilities=[speculation(LOOK_7, CHANGE_7)],
    )
    await agent.run("Go.", deps="Ada")
    assert world.ran == [7]  # the other one


@asyncio_only
async def test_tools_of_a_prefixed_toolset_start_early():
    world = World()
    toolset = FunctionToolset([world.look]).prefixed("db")
    agent = Agent(
        Scripted(slow([("db_look", {"row": 7})], "Done.")),
        toolsets=[toolset],
        deps_type=str,
        capabilities=[
            speculation(("db_look", {"row": 7}), effects={"db_look": "READ"})
        ],
    )
    _, seconds = await timed(agent.run("Go.", deps="Ada"))
    assert (seconds, world.ran) == (2, [7])


@asyncio_only
async def test_a_tool_that_is_prepared_away_is_not_used():
    async def prepare(ctx: RunContext[Any], tool_def):
        return tool_def if ctx.run_step == 1 else None

    world = World()
    tool = Tool(world.look, prepare=prepare, metadata={"headstart": "READ"})
    agent = Agent(
        Scripted(slow([LOOK_7], [("look", {"row": 8})], "Done.")),
        tools=[tool],
        deps_type=str,
        capabilities=[speculation(LOOK_7, ("look", {"row": 8}))],
    )
    result = await agent.run("Go.", deps="Ada")
    assert "Unknown tool name: 'look'" in str(result.all_messages())
    assert world.ran == [7, 8]  # the second one was a guess, and nobody saw it


@asyncio_only
async def test_tools_in_sequence_keep_their_order():
    order = []

    async def step(name: str) -> str:
        order.append(f"{name} begins")
        await anyio.sleep(1)
        order.append(f"{name} ends")
        return name

    asked = [("step", {"name": "a"}), ("step", {"name": "b"})]
    agent = Agent(
        Scripted(slow(asked, "Done.")),
        tools=[Tool(step, sequential=True)],
        capabilities=[speculation(*asked)],
    )
    await agent.run("Go.")
    assert order == ["a begins", "a ends", "b begins", "b ends"]


@asyncio_only
async def test_an_earlier_conversation_is_gone_on_with():
    world = World()
    model = ScriptedModel(
        lambda request: "Done." if request.history[-1].role == "tool" else [CHANGE_7],
        delay=1,
    )
    agent = world.agent(model=model, capabilities=[speculation()])
    first = await agent.run("Go.", deps="Ada")
    second, seconds = await timed(
        agent.run("And again.", deps="Ada", message_history=first.all_messages())
    )
    assert second.output == "Done."
    assert seconds == 2.5
    assert world.done == [7, 7]


@asyncio_only
async def test_thoughts_of_the_model_are_compared_and_kept():
    def answer(messages, info):
        if len(messages) > 1:
            return ModelResponse(parts=[TextPart("Done.")])
        return ModelResponse(
            parts=[
                ThinkingPart("Hm.", signature="abc"),
                ToolCallPart("change", {"row": 7}, tool_call_id="a"),
            ]
        )

    async def function(messages, info):
        await anyio.sleep(1)
        requests.append(plain(messages))
        return answer(messages, info)

    outcomes = []
    for capabilities in ([], [speculation()]):
        requests = []
        agent = World().agent(model=FunctionModel(function), capabilities=capabilities)
        result, seconds = await timed(agent.run("Go.", deps="Ada"))
        outcomes.append((plain(result.all_messages()), seconds, requests))
    assert outcomes[0][0] == outcomes[1][0]
    assert [seconds for _, seconds, _ in outcomes] == [3.5, 2.5]
    assert len(outcomes[1][2]) == 2
    assert outcomes[1][2][1][1] == outcomes[0][2][1][1]


@asyncio_only
async def test_a_conversation_that_the_provider_keeps_is_not_run_ahead():
    model = slow([CHANGE_7], "Done.")
    agent = World().agent(model=model, capabilities=[speculation()])
    settings = {"openai_previous_response_id": "auto"}
    _, seconds = await timed(agent.run("Go.", deps="Ada", model_settings=settings))
    assert seconds == 3.5
    assert len(model.requests) == 2


@asyncio_only
async def test_models_that_others_wrap_are_wrapped_whole_and_not_run_ahead():
    class Counted(WrapperModel):
        async def request(self, *args):
            asked.append(self)
            return await super().request(*args)

    class Count(AbstractCapability):
        def get_wrapper_model(self, model):
            return Counted(model)

    asked = []
    model = slow([CHANGE_7], "Done.")
    agent = World().agent(model=model, capabilities=[Count(), speculation(CHANGE_7)])
    _, seconds = await timed(agent.run("Go.", deps="Ada"))
    assert seconds == 3  # 0.5 s of it were prepared
    assert len(asked) == len(model.requests) == 2


@asyncio_only
async def test_what_starts_in_a_stream_has_none_of_the_models_variables():
    seen = []
    variable = contextvars.ContextVar("variable", default="outside")

    class Inside(Scripted):
        @asynccontextmanager
        async def request_stream(self, *args):
            token = variable.set("inside")
            try:
                async with super().request_stream(*args) as stream:
                    yield stream
            finally:
                variable.reset(token)

    async def look() -> str:
        seen.append(variable.get())
        return "seen"

    agent = Agent(
        Inside(slow([("look", {}), ("look", {})], "Done.", seconds_per_delta=1)),
        tools=[Tool(look, metadata={"headstart": "READ"})],
        capabilities=[speculation()],
    )
    async with agent.run_stream("Go.") as result:
        assert await result.get_output() == "Done."
    assert seen == ["outside", "outside"]


@asyncio_only
async def test_a_result_that_is_more_than_text_is_not_run_ahead_on():
    async def draw() -> ToolReturn:
        result = ToolReturn(
            "drawn", content=["See:", BinaryContent(b"1", media_type="image/png")]
        )
        if context := current_context():
            context.early_result(result)
            await context.barrier.wait()
        await anyio.sleep(1)
        return result

    outcomes = []
    for capabilities in ([], [speculation()]):
        model = slow([("draw", {})], "Done.")
        agent = Agent(
            Scripted(model),
            tools=[Tool(draw, metadata={"headstart": "GATED"})],
            capabilities=capabilities,
        )
        result = await agent.run("Go.")
        outcomes.append(plain(result.all_messages()))
        assert len(model.requests) == 2
    assert outcomes[0] == outcomes[1]


@asyncio_only
async def test_an_error_of_the_model_is_the_same_and_another_model_takes_over():
    async def fail(messages, info):
        raise ModelHTTPError(500, "broken")

    world = World()
    model = FallbackModel(FunctionModel(fail), Scripted(slow([LOOK_7], "Done.")))
    agent = world.agent(model=model, capabilities=[speculation(LOOK_7)])
    assert (await agent.run("Go.", deps="Ada")).output == "Done."
    agent = world.agent(model=FunctionModel(fail), capabilities=[speculation(LOOK_7)])
    with pytest.raises(ModelHTTPError):
        await agent.run("Go.", deps="Ada")


@asyncio_only
async def test_runs_side_by_side_share_no_launch():
    world, spec = World(), speculation(LOOK_7)
    agent = world.agent([LOOK_7], "Done.", capabilities=[spec])
    results = {}

    async def run(name):
        results[name] = await agent.run("Go.", deps=name)

    async with anyio.create_task_group() as group:
        for name in ("Ada", "Bob"):
            group.start_soon(run, name)
    for name, result in results.items():
        assert f"7 for {name}" in str(result.all_messages())
    assert world.ran == [7, 7]


def test_run_sync_works():
    world = World()
    agent = Agent(
        Scripted(ScriptedModel([[LOOK_7], "Done."])),
        tools=[world.look],
        deps_type=str,
        capabilities=[speculation(LOOK_7)],
    )
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        assert agent.run_sync("Go.", deps="Ada").output == "Done."
    finally:
        loop.close()
        asyncio.set_event_loop(None)


@asyncio_only
async def test_what_a_tool_spends_too_much_ends_the_run_the_same():
    for capabilities in ([], [speculation(LOOK_7)]):
        agent = World().agent([LOOK_7], [LOOK_7], "Done.", capabilities=capabilities)
        with pytest.raises(UsageLimitExceeded):
            await agent.run(
                "Go.", deps="Ada", usage_limits=UsageLimits(request_limit=2)
            )


@asyncio_only
async def test_a_tool_with_a_time_limit_is_told_of_as_by_the_framework():
    async def wait() -> str:
        await anyio.sleep(5)
        return "waited"

    outcomes = []
    for capabilities in ([], [speculation(("wait", {}))]):
        agent = Agent(
            Scripted(slow([("wait", {})], "Done.")),
            tools=[Tool(wait, timeout=1, metadata={"headstart": "READ"})],
            capabilities=capabilities,
        )
        outcomes.append(plain((await agent.run("Go.")).all_messages()))
    assert outcomes[0] == outcomes[1]
    assert "Timed out" in str(outcomes[0])


@asyncio_only
async def test_arguments_that_are_invalid_are_told_of_by_the_framework():
    outcomes = []
    for capabilities in ([], [speculation(LOOK_7)]):
        world = World()
        agent = world.agent(
            [("look", {"row": "seven"})], [LOOK_7], "Done.", capabilities=capabilities
        )
        outcomes.append(plain((await agent.run("Go.", deps="Ada")).all_messages()))
        assert world.ran == [7]
    assert outcomes[0] == outcomes[1]


@pytest.mark.real_time
async def test_a_tool_in_a_thread_that_is_held_ends_with_the_run():
    reached = threading.Event()
    effects, denied = [], threading.Event()

    def change() -> str:
        context = current_context()
        reached.set()
        try:
            context.barrier.wait_blocking()
        except BaseException:
            denied.set()
            raise
        effects.append("changed")
        return "changed"

    async def think(messages, info):
        await anyio.to_thread.run_sync(reached.wait)
        await anyio.sleep_forever()

    agent = Agent(
        FunctionModel(think),
        tools=[Tool(change, metadata={"headstart": "GATED"})],
        capabilities=[speculation(("change", {}))],
    )

    async def cancel(scope):
        await anyio.to_thread.run_sync(reached.wait)
        scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(cancel, group.cancel_scope)
        await agent.run("Go.")
    assert await anyio.to_thread.run_sync(denied.wait, 10)
    assert effects == []


@pytest.mark.real_time
async def test_a_sync_tool_starts_early_in_a_thread():
    started, asked = threading.Event(), []

    def look() -> str:
        started.set()
        return "seen"

    async def answer(messages, info):
        asked.append(messages)
        if len(asked) > 1:
            return ModelResponse(parts=[TextPart("Done.")])
        assert await anyio.to_thread.run_sync(started.wait, 10)
        return ModelResponse(parts=[ToolCallPart("look", {}, tool_call_id="a")])

    agent = Agent(
        FunctionModel(answer),
        tools=[Tool(look, metadata={"headstart": "READ"})],
        capabilities=[speculation(("look", {}))],
    )
    assert (await agent.run("Go.")).output == "Done."


def test_what_cannot_work_is_said_when_it_is_made():
    with pytest.raises(UsageError, match="a list of ids"):
        Speculation(trusted_servers="files")


def test_without_the_framework_the_extra_is_named():
    code = "import sys; sys.modules['pydantic_ai'] = None; import headstart.adapters.pydantic_ai"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert 'pip install "headstart[pydantic-ai]"' in ran.stderr


@asyncio_only
async def test_a_provider_is_sent_the_same_requests_to_the_byte():
    openai = pytest.importorskip("openai", reason="needs headstart[openai]")
    httpx = pytest.importorskip("httpx2", reason="needs headstart[openai]")
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    sent = []

    async def respond(request):
        body = json.loads(request.content)
        sent[-1].append(body)
        await anyio.sleep(1)
        answered = [each for each in body["messages"] if each["role"] == "tool"]
        call = {"name": "change", "arguments": '{ "row": 7 }'}
        message = (
            {"role": "assistant", "content": "Done."}
            if answered
            else {
                "role": "assistant",
                "tool_calls": [{"id": "a", "type": "function", "function": call}],
            }
        )
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        answer = {
            "id": "b",
            "object": "chat.completion",
            "created": 1,
            "model": "any",
            "choices": [choice],
            "usage": usage,
        }
        return httpx.Response(200, json=answer)

    async def change(row: int) -> dict[str, Any]:
        if context := current_context():
            context.early_result({"row": row, "is": ["changed"]})
            await context.barrier.wait()
        await anyio.sleep(1)
        return {"row": row, "is": ["changed"]}

    outcomes = []
    for capabilities in ([], [speculation()]):
        sent.append([])
        transport = httpx.MockTransport(respond)
        client = openai.AsyncOpenAI(
            api_key="none", http_client=httpx.AsyncClient(transport=transport)
        )
        async with client:
            provider = OpenAIProvider(openai_client=client)
            agent = Agent(
                OpenAIChatModel("any", provider=provider),
                tools=[Tool(change, metadata={"headstart": "GATED"})],
                instructions="Be brief.",
                system_prompt="You change rows.",
                capabilities=capabilities,
            )
            result, seconds = await timed(agent.run("Go."))
        outcomes.append((plain(result.all_messages()), result.usage, seconds))
    assert sent[0] == sent[1]
    assert outcomes[0][:2] == outcomes[1][:2]
    assert [seconds for *_, seconds in outcomes] == [3, 2]


class Recorded(FunctionModel):
    """A model that thinks, calls `change` once, and keeps what it was asked."""

    def __init__(self, name="recorded", parts=()):
        self.asked = []

        async def function(messages, info):
            await anyio.sleep(1)
            offered = [*info.function_tools, *info.output_tools]
            tools = [tool.description for tool in offered]
            rest = (info.model_settings, info.instructions, tools)
            self.asked.append((name, *plain(messages), *rest))
            if any(isinstance(message, ModelResponse) for message in messages):
                return ModelResponse(parts=[TextPart("Done.")])
            call = ToolCallPart("change", {"row": 7}, tool_call_id="a", id="fc_1")
            return ModelResponse(parts=[*parts, call])

        super().__init__(function, model_name=name)


class Row(BaseModel):
    """What a structured answer is."""

    name: str


class ChangeRequest(AbstractCapability):
    """Changes one thing of the second request."""

    what: str
    other: Recorded

    async def before_model_request(self, ctx, request_context):
        if ctx.run_step > 1:
            if self.what == "settings":
                request_context.model_settings = {"temperature": 0.5}
            if self.what == "model":
                self.other.asked = ctx.model.asked
                request_context.model = self.other
            if self.what == "picture":
                picture = BinaryContent(b"2", media_type="image/png")
                user = NativeRequest(parts=[UserPromptPart(["Go.", picture])])
                request_context.messages = [user, *request_context.messages[1:]]
        return request_context

    async def prepare_tools(self, ctx, tool_defs):
        if self.what != "tools" or ctx.run_step == 1:
            return tool_defs
        return [replace(each, description="Another.") for each in tool_defs]

    async def prepare_output_tools(self, ctx, tool_defs):
        if self.what != "output" or ctx.run_step == 1:
            return tool_defs
        return [replace(each, description="Another.") for each in tool_defs]

    async def after_model_request(self, ctx, *, request_context, response):
        parts = response.parts
        if self.what == "thoughts":
            parts = [part for part in parts if not isinstance(part, ThinkingPart)]
        if self.what == "identifiers":
            parts = [
                replace(part, id=None) if isinstance(part, ToolCallPart) else part
                for part in parts
            ]
        return replace(response, parts=parts)


@asyncio_only
@pytest.mark.parametrize(
    "what",
    [
        "settings",
        "model",
        "picture",
        "tools",
        "thoughts",
        "identifiers",
        "instructions",
        "output",
    ],
)
async def test_a_request_that_differs_in_anything_is_asked_anew(what):
    def instruct(ctx: RunContext[str]) -> str:
        return f"Step {ctx.run_step}." if what == "instructions" else "Be brief."

    asked = []
    for capabilities in ([], [speculation()]):
        change = ChangeRequest()
        change.what, change.other = what, Recorded("other")
        thoughts = [] if what == "identifiers" else [ThinkingPart("Hm.", signature="b")]
        model = Recorded(parts=thoughts)
        agent = World().agent(
            model=model,
            capabilities=[change, *capabilities],
            instructions=instruct,
            output_type=[str, Row],
        )
        picture = BinaryContent(b"1", media_type="image/png")
        await agent.run(["Go.", picture], deps="Ada")
        asked.append(model.asked)
    assert [len(each) for each in asked] == [2, 3]  # one was sent ahead in vain
    assert asked[0] == [asked[1][0], asked[1][2]]


@asyncio_only
async def test_one_step_that_streams_and_one_that_does_not_go_together():
    world = World()
    agent = world.agent(model=slow([CHANGE_7], "Done."), capabilities=[speculation()])
    seen = []
    async with agent.iter("Go.", deps="Ada") as run:
        node = run.next_node
        while not Agent.is_end_node(node):
            if Agent.is_model_request_node(node) and run.ctx.state.run_step:
                async with node.stream(run.ctx) as stream:
                    seen += [text_of(event) async for event in stream]
            node = await run.next(node)
    assert "".join(seen) == "Done."


@asyncio_only
async def test_nothing_is_built_on_an_answer_that_is_not_complete():
    outcomes = []
    for capabilities in ([], [speculation()]):
        asked = []

        async def function(messages, info):
            await anyio.sleep(1)
            asked.append(messages)  # noqa: B023
            if len(messages) > 1:
                return ModelResponse(parts=[TextPart("Done.")])
            call = ToolCallPart("change", {"row": 7}, tool_call_id="a")
            return ModelResponse(parts=[call], state="incomplete")

        agent = World().agent(model=FunctionModel(function), capabilities=capabilities)
        result, seconds = await timed(agent.run("Go.", deps="Ada"))
        outcomes.append((plain(result.all_messages()), seconds, len(asked)))
    assert outcomes[0] == outcomes[1]


@asyncio_only
async def test_a_picture_that_a_tool_gives_is_sent_by_the_framework():
    async def draw() -> BinaryContent:
        picture = BinaryContent(b"1", media_type="image/png")
        if context := current_context():
            context.early_result(picture)
            await context.barrier.wait()
        await anyio.sleep(1)
        return picture

    outcomes = []
    for capabilities in ([], [speculation()]):
        model = slow([("draw", {})], "Done.")
        tool = Tool(draw, metadata={"headstart": "GATED"})
        agent = Agent(Scripted(model), tools=[tool], capabilities=capabilities)
        result = await agent.run("Go.")
        outcomes.append((plain(result.all_messages()), len(model.requests)))
    assert outcomes[0] == outcomes[1]


@asyncio_only
async def test_nothing_is_run_ahead_on_a_call_that_ends_the_run():
    async def fail() -> str:
        raise LookupError("gone")

    model = slow([CHANGE_7, ("fail", {})], "Done.")
    agent = World().agent(model=model, tools=[fail], capabilities=[speculation()])
    with pytest.raises(LookupError, match="gone"):
        await agent.run("Go.", deps="Ada")
    assert len(model.requests) == 1


@asyncio_only
async def test_a_result_that_is_stated_as_text_is_sent_as_the_tool_gives_it():
    class States:
        async def predict(self, conversation):
            return []

        def predict_results(self, call, conversation):
            return [ResultPrediction(result=ToolResult('{"row":7}'), probability=0.9)]

    async def find(row: int) -> dict[str, int]:
        await anyio.sleep(1)
        return {"row": row}

    outcomes = []
    for capabilities in ([], [Speculation(predictors=[States()])]):
        model = slow([("find", {"row": 7})], "Done.")
        agent = Agent(
            Scripted(model),
            tools=[Tool(find, metadata={"headstart": "READ"})],
            capabilities=capabilities,
        )
        result, seconds = await timed(agent.run("Go."))
        outcomes.append((plain(result.all_messages()), model.requests, seconds))
    assert outcomes[0][:2] == outcomes[1][:2]
    assert [seconds for *_, seconds in outcomes] == [3, 2]


@asyncio_only
async def test_in_a_durable_workflow_it_does_nothing():
    class Durable(RunContext[None]):
        in_durable_context = True

    model = FunctionModel(lambda messages, info: ModelResponse(parts=[]))
    for kind, wraps in ((Durable, False), (RunContext, True)):
        context = kind(deps=None, model=model, usage=RunUsage())
        capability = await Speculation().for_run(context)
        assert (capability.get_wrapper_model(model) is not None) == wraps
        assert (capability.get_wrapper_toolset(FunctionToolset()) is not None) == wraps


@asyncio_only
async def test_a_user_may_send_a_picture():
    world = World()
    agent = world.agent([LOOK_7], "Done.", capabilities=[speculation(LOOK_7)])
    picture = BinaryContent(b"1", media_type="image/png")
    _, seconds = await timed(agent.run(["Look.", picture], deps="Ada"))
    assert seconds == 2
