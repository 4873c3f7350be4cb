"""The adapter for the OpenAI Agents SDK: the suite of all adapters, and the SDK's own ways.

Over 400 lines: a test a feature, on a few shared tools and one scripted model.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import replace

import anyio
import anyio.to_thread
import pytest
from pydantic import BaseModel

pytest.importorskip("agents", reason="needs headstart[openai-agents]")

import agents
from agents import (
    Agent,
    GuardrailFunctionOutput,
    InputGuardrailTripwireTriggered,
    ModelProvider,
    ModelSettings,
    RunConfig,
    RunContextWrapper,
    RunHooks,
    Runner,
    SQLiteSession,
    ToolGuardrailFunctionOutput,
    TracingProcessor,
    custom_span,
    function_tool,
    generation_span,
    handoff,
    input_guardrail,
    set_trace_processors,
    tool_input_guardrail,
)
from agents.mcp import MCPServer
from agents.testing import assistant_message, function_call
from agents.tool_context import ToolContext
from mcp.types import CallToolResult, TextContent, Tool as MCPTool, ToolAnnotations
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionCallArgumentsDeltaEvent,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
    ResponseReasoningItem,
    ResponseTextDeltaEvent,
)
from openai.types.responses.response_usage import ResponseUsage

from headstart import (
    CallDelta,
    EventLog,
    LimitPolicy,
    ModelRequest,
    TextDelta,
    ToolResult,
    Usage,
    UsageError,
    current_context,
)
from headstart.adapters._openai_agents._items import as_items, read_items
from headstart.adapters.openai_agents import Speculation
from headstart.predictors import Prediction
from headstart.testing import AdapterConformance, ScriptedModel
from headstart.testing._conformance import Outcome

asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)


class Scripted(agents.Model):
    """A model of the SDK that answers as a scripted model of ours does."""

    def __init__(self, model):
        self.scripted = model
        self.sent = []

    async def get_response(self, **request):
        self.sent.append(request)
        given = request["input"]
        answer = await self.scripted.respond(as_request(given), lambda delta: None)
        billed = answer.usage
        usage = agents.Usage(
            requests=1,
            input_tokens=billed.input_tokens,
            output_tokens=billed.output_tokens,
            total_tokens=billed.input_tokens + billed.output_tokens,
        )
        return agents.ModelResponse(
            output=as_output(answer), usage=usage, response_id=None
        )

    async def stream_response(self, instructions, given, settings, *args, **request):
        del args
        self.sent.append(request | {"input": given, "model_settings": settings})
        queue = asyncio.Queue()

        async def respond():
            try:
                return await self.scripted.respond(as_request(given), queue.put_nowait)
            finally:
                queue.put_nowait(None)

        task = asyncio.create_task(respond())
        try:
            has_text = False
            while (delta := await queue.get()) is not None:
                has_text = has_text or isinstance(delta, TextDelta)
                for event in as_events(delta, has_text):
                    yield event
            answer = await task
            output = as_output(answer)
            for index, item in enumerate(output):
                yield ResponseOutputItemDoneEvent(
                    type="response.output_item.done",
                    item=item,
                    output_index=index,
                    sequence_number=0,
                )
            yield ResponseCompletedEvent(
                type="response.completed",
                response=as_response(output, answer.usage),
                sequence_number=0,
            )
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await asyncio.shield(asyncio.gather(task, return_exceptions=True))


class Thinking(Scripted):
    """One that thinks before it calls."""

    def __init__(self, model, *, thinks=True):
        super().__init__(model)
        self.thinks = thinks

    async def get_response(self, **request):
        answer = await super().get_response(**request)
        if self.thinks and answer.output[0].type == "function_call":
            answer.output.insert(
                0, ResponseReasoningItem(id="r", type="reasoning", summary=[])
            )
        return answer


class Spanning(Scripted):
    """One that is traced, as those of the SDK are."""

    async def get_response(self, **request):
        with generation_span(disabled=request["tracing"].is_disabled()):
            return await super().get_response(**request)


class Traced(TracingProcessor):
    """The spans that ended."""

    def __init__(self):
        self.spans = []

    def of(self, kind):
        return sum(span.span_data.type == kind for span in self.spans)

    def on_trace_start(self, trace):
        pass

    def on_trace_end(self, trace):
        pass

    def on_span_start(self, span):
        pass

    def on_span_end(self, span):
        self.spans.append(span)

    def shutdown(self):
        pass

    def force_flush(self):
        pass


def as_request(given):
    return ModelRequest(
        [replace(each, native=None) for each in read_items(as_items(given), ())]
    )


def as_output(answer):
    output = [assistant_message(answer.text)] if answer.text else []
    return output + [
        function_call(call.name, call.arguments, call_id=call.id)
        for call in answer.tool_calls
    ]


def as_events(delta, has_text):
    if isinstance(delta, TextDelta):
        yield ResponseTextDeltaEvent(
            type="response.output_text.delta",
            delta=delta.text,
            item_id="-",
            output_index=0,
            content_index=0,
            logprobs=[],
            sequence_number=0,
        )
    elif isinstance(delta, CallDelta):
        index = delta.index + has_text
        if delta.name is not None:
            yield ResponseOutputItemAddedEvent(
                type="response.output_item.added",
                item=function_call(delta.name, "", call_id=delta.id),
                output_index=index,
                sequence_number=0,
            )
        if delta.arguments:
            yield ResponseFunctionCallArgumentsDeltaEvent(
                type="response.function_call_arguments.delta",
                delta=delta.arguments,
                item_id="-",
                output_index=index,
                sequence_number=0,
            )


def as_response(output, usage):
    return Response(
        id="-",
        created_at=0,
        model="scripted",
        object="response",
        output=output,
        parallel_tool_calls=True,
        tool_choice="auto",
        tools=[],
        usage=ResponseUsage.model_construct(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            total_tokens=usage.input_tokens + usage.output_tokens,
            input_tokens_details=None,
            output_tokens_details=None,
        ),
    )


def text_of(event):
    if event.type != "raw_response_event":
        return ""
    if event.data.type != "response.output_text.delta":
        return ""
    return event.data.delta


def tell(context, error):
    """What our own agent tells of a failure."""
    return ToolResult.from_error(error).content


class TestOpenAIAgents(AdapterConformance):
    """The suite of all adapters."""

    async def run(self, scene, stage, model, options):
        agent = Agent(
            name="stage",
            model=Scripted(model),
            tools=[
                agents.function_tool(
                    tool.function,
                    needs_approval=tool.approval,
                    failure_error_function=tell,
                )
                for tool in stage.tools
            ],
        )
        if options is None:
            return await self.play(scene, agent, RunConfig(tracing_disabled=True))
        async with Speculation(**options).run(
            run_config=RunConfig(tracing_disabled=True)
        ) as run:
            return await self.play(scene, run.wrap(agent), run.run_config)

    async def play(self, scene, agent, config):
        outcome = Outcome()
        if not scene.stream:
            result = await Runner.run(
                agent, scene.user, run_config=config, max_turns=len(scene.responses)
            )
            while result.interruptions:
                state = result.to_state()
                for each in result.interruptions:
                    (state.approve if scene.approve else state.reject)(each)
                result = await Runner.run(agent, state, run_config=config)
        else:
            result = Runner.run_streamed(
                agent, scene.user, run_config=config, max_turns=len(scene.responses)
            )
            async for event in result.stream_events():
                if text := text_of(event):
                    outcome.seen.append(text)
                    if len(outcome.seen) == scene.read:
                        result.cancel()
                        return outcome
        outcome.messages = result.to_input_list()
        billed = result.context_wrapper.usage
        outcome.usage = Usage(
            input_tokens=billed.input_tokens, output_tokens=billed.output_tokens
        )
        return outcome


# What users of the framework do with it


READS = {"effect": "READ", "reads": ["row:{row}"]}
GATES = {"effect": "GATED", "writes": ["row:{row}"]}
DECLARED = {"look": READS, "change": GATES}
LOOK_7 = ("look", {"row": 7})
CHANGE_7 = ("change", {"row": 7})


class World:
    """A few tools, what they have done, and an agent that has them."""

    def __init__(self, *, early=True):
        self.ran = []
        self.done = []
        self.contexts = []
        self.early = early

    async def look(self, ctx: ToolContext[str], row: int, depth: int = 1) -> str:
        """What a row holds."""
        self.ran.append(row)
        self.contexts.append(ctx)
        await anyio.sleep(1)
        self.done.append(row)
        return f"{row} for {ctx.context}"

    async def change(self, row: int) -> str:
        """Change a row."""
        self.ran.append(row)
        await anyio.sleep(0.5)
        if context := current_context():
            if self.early:
                context.early_result("changed")
            await context.barrier.wait()
        await anyio.sleep(1)
        self.done.append(row)
        return "changed"

    def agent(self, *responses, tools=(), model=None, name="agent", **options):
        model = model or slow(*responses)
        return Agent(
            name=name,
            model=Scripted(model) if isinstance(model, ScriptedModel) else model,
            tools=[function_tool(self.look), function_tool(self.change), *tools],
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


def speculation(*calls, effects=DECLARED, **options):
    return Speculation(effects=effects, predictors=[Guess(*calls)], **options)


QUIET = RunConfig(tracing_disabled=True)


async def play(agent, speculation=None, given="Go.", *, config=QUIET, **options):
    """One run, with headstart or without."""
    options.setdefault("context", "Ada")
    if speculation is None:
        return await Runner.run(agent, given, run_config=config, **options)
    async with speculation.run(context=options["context"], run_config=config) as run:
        return await Runner.run(
            run.wrap(agent), given, run_config=run.run_config, **options
        )


async def timed(awaitable):
    began = anyio.current_time()
    return await awaitable, anyio.current_time() - began


def outputs(result):
    return [
        item["output"]
        for item in result.to_input_list()
        if item.get("type") == "function_call_output"
    ]


def launched(log):
    return [event for event in log.events if event.event == "call_launched"]


@asyncio_only
async def test_a_tool_that_was_expected_runs_while_the_model_thinks():
    world = World()
    agent = world.agent([LOOK_7], "Done.")
    result, seconds = await timed(play(agent, speculation(LOOK_7)))
    assert result.final_output == "Done."
    assert outputs(result) == ["7 for Ada"]
    assert (seconds, world.ran) == (2, [7])


@asyncio_only
async def test_the_next_turn_is_written_while_the_tool_works():
    world = World()
    model = slow([CHANGE_7], "Done.")
    result, seconds = await timed(play(world.agent(model=model), speculation()))
    assert result.final_output == "Done."
    assert (seconds, world.done, len(model.requests)) == (2.5, [7], 2)


@asyncio_only
async def test_hooks_run_once_and_when_the_call_is_asked_for():
    class Watch(RunHooks):
        def __init__(self):
            self.seen = []

        async def on_tool_start(self, context, agent, tool):
            self.seen.append((anyio.current_time() - began, "start", tool.name))

        async def on_tool_end(self, context, agent, tool, result):
            self.seen.append((anyio.current_time() - began, "end", result))

        async def on_llm_start(self, context, agent, prompt, items):
            self.seen.append((anyio.current_time() - began, "ask", len(items)))

    watch, began = Watch(), anyio.current_time()
    await play(
        World().agent([LOOK_7], "Done."),
        speculation(LOOK_7, ("look", {"row": 9})),
        hooks=watch,
    )
    assert watch.seen == [
        (0, "ask", 1),
        (1, "start", "look"),
        (1, "end", "7 for Ada"),
        (1, "ask", 3),
    ]


@asyncio_only
async def test_a_call_that_comes_otherwise_runs_for_real():
    world = World()
    result = await play(
        world.agent([LOOK_7], "Done."), speculation(("look", {"row": 8}))
    )
    assert outputs(result) == ["7 for Ada"]
    assert world.ran == [8, 7]


@asyncio_only
async def test_defaults_are_filled_in_by_the_framework_in_a_launch_too():
    rows = []

    @function_tool
    async def look(row: int, depth: int = 3) -> str:
        """What a row holds."""
        rows.append((row, depth))
        return "new"

    agent = Agent(name="agent", tools=[look], model=Scripted(slow([LOOK_7], "Done.")))
    await play(agent, speculation(LOOK_7, effects={"look": "READ"}))
    assert rows == [(7, 3)]


@asyncio_only
async def test_a_launch_has_a_context_of_its_own_with_the_runs_context():
    world = World()
    await play(world.agent([LOOK_7], "Done."), speculation(LOOK_7))
    (context,) = world.contexts
    assert (context.context, context.tool_name) == ("Ada", "look")
    assert context.agent.name == "agent"


@asyncio_only
@pytest.mark.parametrize("told", ["by default", "by the tool"])
async def test_a_failure_is_told_to_the_model_as_the_tool_says(told):
    tries, failures = [], []

    def tell(context, error):
        failures.append(error)
        return f"Sorry: {error}"

    async def look(row: int) -> str:
        tries.append(row)
        raise LookupError("gone")

    tool = function_tool(
        look, **({"failure_error_function": tell} if told == "by the tool" else {})
    )
    results = []
    for how in (None, speculation(LOOK_7, effects={"look": "READ"})):
        agent = Agent(
            name="agent", tools=[tool], model=Scripted(slow([LOOK_7], "Done."))
        )
        results.append((await play(agent, how)).to_input_list())
    assert results[0] == results[1]
    assert tries == [7, 7, 7]  # the launch failed and was run again for real
    assert len(failures) == (2 if told == "by the tool" else 0)  # each for a real call


@asyncio_only
async def test_an_exception_that_no_tool_explains_ends_the_run_as_ever():
    async def look(row: int) -> str:
        raise LookupError("gone")

    tool = function_tool(look, failure_error_function=None)
    errors = []
    for how in (None, speculation(LOOK_7, effects={"look": "READ"})):
        agent = Agent(
            name="agent", tools=[tool], model=Scripted(slow([LOOK_7], "Done."))
        )
        with pytest.raises(Exception, match="gone") as error:
            await play(agent, how)
        errors.append((type(error.value), str(error.value)))
    assert errors[0] == errors[1]


@asyncio_only
@pytest.mark.parametrize("needs", ["always", "by a function"])
async def test_a_tool_that_needs_an_approval_is_never_launched(needs):
    ran, log = [], EventLog()

    async def ask(context, arguments, call_id):
        return True

    @function_tool(needs_approval=True if needs == "always" else ask)
    async def look(row: int) -> str:
        ran.append(row)
        return "new"

    agent = Agent(name="agent", tools=[look], model=Scripted(slow([LOOK_7], "Done.")))
    options = speculation(LOOK_7, sink=log)
    async with options.run(run_config=QUIET) as run:
        result = await Runner.run(run.wrap(agent), "Go.", run_config=run.run_config)
        assert (ran, len(result.interruptions)) == ([], 1)
        state = result.to_state()
        state.approve(result.interruptions[0])
        result = await Runner.run(run.wrap(agent), state, run_config=run.run_config)
    assert (result.final_output, ran, launched(log)) == ("Done.", [7], [])


@asyncio_only
async def test_a_tool_with_a_guardrail_of_its_own_is_never_launched():
    log = EventLog()

    @tool_input_guardrail
    def refuse(data):
        return ToolGuardrailFunctionOutput.reject_content("Not this one.")

    world = World()
    tool = function_tool(world.look, tool_input_guardrails=[refuse])
    agent = Agent(name="agent", tools=[tool], model=Scripted(slow([LOOK_7], "Done.")))
    result = await play(agent, speculation(LOOK_7, sink=log))
    assert outputs(result) == ["Not this one."]
    assert (world.ran, launched(log)) == ([], [])


@asyncio_only
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_guardrail_that_trips_denies_effects_while_the_model_went_on(streamed):
    @input_guardrail
    async def judge(context, agent, given):
        await anyio.sleep(3)
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)

    async def go(agent, config):
        if not streamed:
            await Runner.run(agent, "Go.", run_config=config)
            return
        result = Runner.run_streamed(agent, "Go.", run_config=config)
        async for _ in result.stream_events():
            pass

    world = World()
    agent = world.agent([CHANGE_7], "Done.", input_guardrails=[judge])
    async with speculation(CHANGE_7).run(context="Ada", run_config=QUIET) as run:
        with pytest.raises(InputGuardrailTripwireTriggered):
            await go(run.wrap(agent), run.run_config)
    await anyio.sleep(10)
    assert world.ran == [7]
    assert world.done == []


@asyncio_only
@pytest.mark.parametrize("where", ["agent", "run"])
async def test_a_guardrail_that_is_content_lets_effects_go_on(where):
    judged = []

    @input_guardrail
    async def judge(context, agent, given):
        await anyio.sleep(2)
        judged.append(agent.name)
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered=False)

    world = World()
    config = QUIET
    if where == "run":
        config = RunConfig(tracing_disabled=True, input_guardrails=[judge])
    agent = world.agent(
        [CHANGE_7], "Done.", input_guardrails=[judge] if where == "agent" else []
    )
    result, seconds = await timed(play(agent, speculation(CHANGE_7), config=config))
    assert result.final_output == "Done."
    assert (world.ran, world.done, judged) == ([7], [7], ["agent"])
    assert seconds == 3


@asyncio_only
async def test_an_agent_that_is_handed_off_to_runs_as_without():
    world, results = World(), []
    for how in (None, speculation()):
        model = slow([("transfer_to_second", {})], [CHANGE_7], "Done.")
        second = world.agent(model=model, name="second")
        first = world.agent(model=model, name="first", handoffs=[second])
        result, seconds = await timed(play(first, how))
        assert result.last_agent.name == "second"
        results.append((result.to_input_list(), seconds))
    assert results[0][0] == results[1][0]
    assert (results[0][1], results[1][1]) == (4.5, 3.5)
    assert world.done == [7, 7]


@asyncio_only
async def test_a_handoff_object_and_its_callback_are_used_once():
    handed = []
    world = World()
    model = slow([("transfer_to_second", {})], [CHANGE_7], "Done.")
    second = world.agent(model=model, name="second")
    over = handoff(second, on_handoff=handed.append)
    first = world.agent(model=model, name="first", handoffs=[over])
    result, seconds = await timed(play(first, speculation()))
    assert (result.final_output, seconds, len(handed)) == ("Done.", 3.5, 1)


@asyncio_only
async def test_an_agent_that_is_a_tool_is_never_launched_and_works_as_without():
    log, results = EventLog(), []
    declared = {**DECLARED, "ask": "READ"}
    guess = ("ask", {"input": "7?"})
    for how in (None, speculation(guess, effects=declared, sink=log)):
        world = World()
        inner = world.agent([LOOK_7], "It is new.", name="inner")
        outer = Agent(
            name="outer",
            tools=[inner.as_tool("ask", "Ask it.")],
            model=Scripted(slow([("ask", {"input": "7?"})], "Done.")),
        )
        result = await play(outer, how)
        billed = result.context_wrapper.usage
        results.append((outputs(result), billed.requests, billed.total_tokens))
        assert world.ran == [7]
    assert results[0] == results[1]
    assert launched(log) == []


@asyncio_only
async def test_what_is_seen_of_a_stream_is_the_same():
    seen, results = [], []
    for how in (None, speculation(LOOK_7)):
        world = World()
        agent = world.agent(
            model=slow([CHANGE_7, LOOK_7], "Done.", seconds_per_delta=1)
        )
        events = []
        async with (how or speculation(speculate=False)).run(
            context="Ada", run_config=QUIET
        ) as run:
            result = Runner.run_streamed(
                agent if how is None else run.wrap(agent),
                "Go.",
                context="Ada",
                run_config=QUIET if how is None else run.run_config,
            )
            async for event in result.stream_events():
                kind = event.data.type if event.type == "raw_response_event" else ""
                events.append((event.type, kind, getattr(event, "name", "")))
        seen.append(events)
        results.append(result.to_input_list())
    assert seen[0] == seen[1]
    assert results[0] == results[1]


@asyncio_only
async def test_a_call_starts_when_its_arguments_are_complete_in_the_stream():
    world, log = World(), EventLog()
    model = slow(["I look.", LOOK_7, ("look", {"row": 8})], "D", seconds_per_delta=1)
    async with speculation(sink=log).run(context="Ada", run_config=QUIET) as run:
        result = Runner.run_streamed(
            run.wrap(world.agent(model=model)),
            "Go.",
            context="Ada",
            run_config=run.run_config,
        )
        async for _ in result.stream_events():
            pass
    assert result.final_output == "D"
    assert world.ran == [7, 8]
    assert launched(log)[0].at_s < model.records[0].ended_s


@asyncio_only
async def test_a_session_holds_what_it_would_hold_without():
    held = []
    for how in (None, speculation(LOOK_7)):
        session = SQLiteSession("one")
        agent = World().agent([LOOK_7], "Done.", "Yes.")
        await play(agent, how, session=session)
        result = await play(agent, how, "Really?", session=session)
        assert result.final_output == "Yes."
        held.append(await session.get_items())
        session.close()
    assert held[0] == held[1]
    assert len(held[0]) == 6


@asyncio_only
async def test_one_run_serves_a_conversation_of_several_runs_of_the_framework():
    world = World()
    agent = world.agent([LOOK_7], "Done.", [CHANGE_7], "Changed.")
    async with speculation(LOOK_7).run(context="Ada", run_config=QUIET) as run:
        wrapped = run.wrap(agent)
        first = await Runner.run(
            wrapped, "Go.", context="Ada", run_config=run.run_config
        )
        again = [*first.to_input_list(), {"role": "user", "content": "Change it."}]
        second = await Runner.run(
            run.wrap(first.last_agent), again, context="Ada", run_config=run.run_config
        )
        assert run.unwrap(second.last_agent) is agent
    assert second.final_output == "Changed."
    assert world.done[0] == 7


@asyncio_only
@pytest.mark.parametrize("kept", ["previous_response_id", "conversation_id"])
async def test_a_conversation_that_the_server_keeps_is_never_run_ahead(kept):
    world = World()
    scripted = Scripted(
        ScriptedModel(
            lambda request: (
                "Done." if request.history[-1].role == "tool" else [CHANGE_7]
            ),
            delay=1,
        )
    )
    result, seconds = await timed(
        play(world.agent(model=scripted), speculation(), **{kept: "kept"})
    )
    assert result.final_output == "Done."
    assert (len(scripted.sent), seconds) == (2, 3.5)


@asyncio_only
async def test_only_confirmed_turns_are_billed():
    billed = []
    for how in (None, speculation(LOOK_7)):
        world, model = World(), slow([CHANGE_7], "Done.")

        @function_tool(name_override="change")
        async def lie(row: int) -> str:
            if context := current_context():
                context.early_result("another")
                await context.barrier.wait()
            await anyio.sleep(3)
            return "changed"

        agent = Agent(name="agent", tools=[lie], model=Scripted(model))
        result = await play(agent, how)
        usage = result.context_wrapper.usage
        billed.append((usage.requests, usage.input_tokens, usage.output_tokens))
        del world
    assert len(model.requests) == 3  # one was thrown away
    assert billed[0] == billed[1]


@asyncio_only
async def test_nothing_is_run_ahead_where_the_first_tool_ends_the_run():
    world, model = World(), slow([CHANGE_7], "Done.")
    agent = world.agent(model=model, tool_use_behavior="stop_on_first_tool")
    result = await play(agent, speculation(CHANGE_7))
    assert result.final_output == "changed"
    assert (len(model.requests), world.done) == (1, [7])


@asyncio_only
async def test_a_run_that_is_cancelled_leaves_nothing_behind():
    world = World()
    agent = world.agent([CHANGE_7], "Done.")
    with anyio.move_on_after(1.75):
        await play(agent, speculation(CHANGE_7))
    began = list(world.done)
    await anyio.sleep(10)
    assert world.done == began == []


@asyncio_only
async def test_two_runs_at_a_time_are_refused():
    agent = World().agent([LOOK_7], "Done.")
    async with speculation().run(context="Ada", run_config=QUIET) as run:
        wrapped = run.wrap(agent)
        outcomes = await asyncio.gather(
            Runner.run(wrapped, "Go.", context="Ada", run_config=run.run_config),
            Runner.run(wrapped, "Go.", context="Ada", run_config=run.run_config),
            return_exceptions=True,
        )
    errors = [each for each in outcomes if isinstance(each, UsageError)]
    assert "one Runner.run at a time" in str(errors[0])


@asyncio_only
async def test_a_structured_output_is_the_same():
    class Row(BaseModel):
        name: str

    agent = World().agent([LOOK_7], '{"name": "seven"}', output_type=Row)
    result = await play(agent, speculation(LOOK_7))
    assert result.final_output == Row(name="seven")


@asyncio_only
async def test_without_speculation_nothing_is_started_early():
    log, world = EventLog(), World()
    agent = world.agent([LOOK_7], "Done.")
    _, seconds = await timed(
        play(agent, speculation(LOOK_7, sink=log, speculate=False))
    )
    assert (seconds, launched(log), world.ran) == (3, [], [7])


@asyncio_only
async def test_the_users_agent_and_configuration_are_not_touched():
    agent = World().agent([LOOK_7], "Done.")
    before = (agent.model, list(agent.tools), agent.handoffs)
    model_provider = QUIET.model_provider
    await play(agent, speculation(LOOK_7))
    assert (agent.model, agent.tools, agent.handoffs) == before
    assert await agent.get_all_tools(RunContextWrapper(None)) == before[1]
    assert QUIET.model_provider is model_provider


@asyncio_only
async def test_a_tool_that_is_switched_off_is_not_launched():
    world, log = World(), EventLog()
    tool = function_tool(world.look, is_enabled=False)
    agent = Agent(name="agent", tools=[tool], model=Scripted(slow("Done.")))
    await play(agent, speculation(LOOK_7, sink=log))
    assert (world.ran, launched(log)) == ([], [])


@asyncio_only
async def test_a_request_is_compared_as_the_filter_left_it():
    def add(data):
        data.model_data.input.append({"role": "user", "content": "Be short."})
        return data.model_data

    config = RunConfig(tracing_disabled=True, call_model_input_filter=add)
    asked = []
    for how in (None, speculation()):
        model = slow([CHANGE_7], "Done.")
        await play(World().agent(model=model), how, config=config)
        asked.append([request.history for request in model.requests])
    assert asked[1][0] == asked[0][0]
    assert asked[1][-1] == asked[0][-1]


@asyncio_only
@pytest.mark.parametrize("thinks", [False, True])
async def test_a_turn_that_ran_beside_is_used_if_the_answer_is_the_expected_one(thinks):
    world = World()
    model = ScriptedModel([[("look", '{"row":7}')], "Done."], delay=3)
    scripted = Thinking(model, thinks=thinks)
    how = speculation(LOOK_7, policy=LimitPolicy(min_beside_probability=0.1))
    result, seconds = await timed(play(world.agent(model=scripted), how))
    assert result.final_output == "Done."
    assert world.ran == [7]
    assert (len(scripted.sent), seconds) == ((3, 6) if thinks else (2, 4))
    beside = scripted.sent[1]["input"]
    assert [each.get("type") for each in beside] == [
        None,
        "function_call",
        "function_call_output",
    ]
    assert beside[2]["output"] == "7 for Ada"


@asyncio_only
async def test_thoughts_go_with_the_request_that_is_run_ahead():
    scripted = Thinking(slow([CHANGE_7], "Done."))
    result, seconds = await timed(play(World().agent(model=scripted), speculation()))
    assert seconds == 2.5
    ahead = [each.get("type") for each in scripted.sent[1]["input"]]
    assert ahead == [None, "reasoning", "function_call", "function_call_output"]
    assert "reasoning" in [each.get("type") for each in result.to_input_list()]


@asyncio_only
async def test_a_request_from_which_thoughts_were_taken_is_another():
    config = RunConfig(tracing_disabled=True, call_model_input_filter=without_thoughts)
    scripted = Thinking(slow([CHANGE_7], "Done."))
    result = await play(World().agent(model=scripted), speculation(), config=config)
    assert result.final_output == "Done."
    assert len(scripted.sent) == 3  # what was run ahead was thrown away
    assert "reasoning" not in str(scripted.sent[2]["input"])


def without_thoughts(data):
    data.model_data.input[:] = [
        each for each in data.model_data.input if each.get("type") != "reasoning"
    ]
    return data.model_data


@asyncio_only
async def test_what_is_run_ahead_leaves_no_trace_until_it_comes_true():
    traced = Traced()
    set_trace_processors([traced])
    try:
        model = slow([CHANGE_7], [LOOK_7], "Done.")
        agent = World().agent(model=Spanning(model))
        await play(agent, speculation(("look", {"row": 9})), config=RunConfig())
    finally:
        set_trace_processors([])
    assert traced.of("generation") == 3
    assert traced.of("function") == 2


@pytest.mark.real_time
@pytest.mark.parametrize("anyio_backend", ["asyncio-real"], indirect=True)
async def test_a_tool_in_a_thread_that_is_held_ends_with_the_run():
    reached, denied = threading.Event(), threading.Event()
    effects = []

    @function_tool
    def change(row: int) -> str:
        context = current_context()
        reached.set()
        try:
            context.barrier.wait_blocking()
        except BaseException:
            denied.set()
            raise
        effects.append("changed")
        return "changed"

    class Waits(Scripted):
        async def get_response(self, **request):
            await anyio.to_thread.run_sync(reached.wait)
            await anyio.sleep_forever()

    async def cancel(scope):
        await anyio.to_thread.run_sync(reached.wait)
        scope.cancel()

    agent = Agent(name="agent", tools=[change], model=Waits(None))
    async with anyio.create_task_group() as group:
        group.start_soon(cancel, group.cancel_scope)
        await play(agent, speculation(CHANGE_7))
    assert await anyio.to_thread.run_sync(denied.wait, 10)
    assert effects == []


class Served(MCPServer):
    """A server with one tool, which says of itself what it likes."""

    name = "files"

    def __init__(self):
        super().__init__()
        self.ran = []
        self.description = "What a row holds."

    async def list_tools(self, run_context=None, agent=None):
        return [
            MCPTool(
                name="look",
                description=self.description,
                inputSchema={
                    "type": "object",
                    "properties": {"row": {"type": "integer"}},
                },
                annotations=ToolAnnotations(readOnlyHint=True),
            )
        ]

    async def call_tool(self, tool_name, arguments, meta=None):
        self.ran.append(arguments["row"])
        return CallToolResult(content=[TextContent(type="text", text="new")])

    async def connect(self):
        pass

    async def cleanup(self):
        pass

    async def list_prompts(self):
        raise NotImplementedError

    async def get_prompt(self, name, arguments=None):
        raise NotImplementedError


@asyncio_only
@pytest.mark.parametrize("case", ["trusted", "not named", "changed"])
async def test_hints_of_a_server_count_where_it_is_named_and_stays_the_same(case):
    log, server = EventLog(), Served()
    model = ScriptedModel(
        lambda request: "Done." if request.history[-1].role == "tool" else [LOOK_7],
        delay=1,
    )
    agent = Agent(name="agent", mcp_servers=[server], model=Scripted(model))
    how = speculation(LOOK_7, effects={}, sink=log)
    trusted = [] if case == "not named" else ["files"]
    async with how.run(run_config=QUIET, trusted_mcp_servers=trusted) as run:
        wrapped = run.wrap(agent)
        for given in ("Go.", "Go on."):
            await Runner.run(wrapped, given, run_config=run.run_config)
            if case == "changed":
                server.description = "Another."
    count = {"trusted": 2, "not named": 0, "changed": 1}[case]
    assert len(launched(log)) == count
    assert server.ran == [7, 7]


@asyncio_only
async def test_an_agent_that_runs_inside_a_tool_is_none_of_the_runs_business():
    class Provider(ModelProvider):
        def get_model(self, model_name):
            return models[model_name]

    config = RunConfig(tracing_disabled=True, model_provider=Provider())
    results = []
    for how in (None, speculation(LOOK_7)):
        inner = Agent(name="inner", tools=[function_tool(World().look)], model="inner")
        outer = Agent(
            name="outer", tools=[inner.as_tool("ask", "Ask it.")], model="outer"
        )
        models = {
            "inner": Scripted(slow([("look", {"row": 8})], "It is new.")),
            "outer": Scripted(slow([("ask", {"input": "8?"})], "Done.")),
        }
        result = await play(outer, how, config=config)
        results.append((outputs(result), result.context_wrapper.usage.requests))
    assert results == [(["It is new."], 4)] * 2


@asyncio_only
async def test_nothing_is_run_ahead_where_the_choice_of_a_tool_is_reset():
    model = slow([CHANGE_7], "Done.")
    agent = World().agent(
        model=model, model_settings=ModelSettings(tool_choice="required")
    )
    await play(agent, speculation())
    assert len(model.requests) == 2


@asyncio_only
async def test_what_a_tool_spends_is_counted_once_its_call_is_confirmed():
    @function_tool
    async def look(context: RunContextWrapper[str], row: int) -> str:
        context.usage.add(agents.Usage(requests=1, input_tokens=1000))
        return "new"

    billed = []
    for how in (None, speculation(LOOK_7, ("look", {"row": 9}))):
        agent = Agent(
            name="agent", tools=[look], model=Scripted(slow([LOOK_7], "Done."))
        )
        billed.append((await play(agent, how)).context_wrapper.usage.input_tokens)
    assert billed[0] == billed[1] > 1000


@asyncio_only
async def test_what_a_launch_does_leaves_no_span():
    traced = Traced()

    @function_tool
    async def look(row: int) -> str:
        with custom_span(f"look {row}"):
            return "new"

    agent = Agent(name="agent", tools=[look], model=Scripted(slow("Done.")))
    set_trace_processors([traced])
    try:
        await play(agent, speculation(LOOK_7), config=RunConfig())
    finally:
        set_trace_processors([])
    assert traced.of("custom") == 0
