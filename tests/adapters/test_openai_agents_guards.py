"""The adapter for the OpenAI Agents SDK: what it must not do, and features at its edge."""

from __future__ import annotations

import anyio
import pytest

pytest.importorskip("agents", reason="needs headstart[openai-agents]")

import agents
from agents import (
    Agent,
    CodeInterpreterTool,
    GuardrailFunctionOutput,
    HostedMCPTool,
    OutputGuardrailTripwireTriggered,
    ProgrammaticToolCallingTool,
    RunConfig,
    Runner,
    WebSearchTool,
    custom_span,
    function_tool,
    handoff,
    output_guardrail,
    set_trace_processors,
)
from openai.types.responses import (
    ResponseCodeInterpreterToolCall,
    ResponseFunctionWebSearch,
)
from openai.types.responses.response_function_web_search import ActionSearch

from headstart import EventLog, current_context
from headstart.adapters._openai_agents._items import ItemReader, read_items
from headstart.testing import ScriptedModel

from .test_openai_agents import (
    CHANGE_7,
    LOOK_7,
    Scripted,
    Traced,
    World,
    asyncio_only,
    launched,
    outputs,
    play,
    slow,
    speculation,
    timed,
)


class Hosted(Scripted):
    """One that has used a hosted tool before each of its first `times` answers."""

    def __init__(self, model, item, *, times=1):
        super().__init__(model)
        self.item, self.times = item, times

    async def get_response(self, **request):
        answer = await super().get_response(**request)
        used = sum(each.get("type") == self.item.type for each in as_dicts(request))
        if used < self.times:
            answer.output.insert(0, self.item)
        return answer


def as_dicts(request):
    given = request["input"]
    return [] if isinstance(given, str) else given


SEARCHED = ResponseFunctionWebSearch(
    id="w",
    type="web_search_call",
    status="completed",
    action=ActionSearch(type="search", query="7"),
)
COMPUTED = ResponseCodeInterpreterToolCall(
    id="c",
    type="code_interpreter_call",
    status="completed",
    container_id="one",
    code="7",
)
COMPUTER = CodeInterpreterTool(
    tool_config={"type": "code_interpreter", "container": {"type": "auto"}}
)


@asyncio_only
async def test_a_search_of_the_provider_goes_with_the_request_that_is_run_ahead():
    results = []
    for how in (None, speculation()):
        scripted = Hosted(slow([CHANGE_7], "Done."), SEARCHED)
        agent = World().agent(model=scripted, tools=[WebSearchTool()])
        result, seconds = await timed(play(agent, how))
        sent = [each.get("type") for each in scripted.sent[-1]["input"]]
        results.append((result.to_input_list(), len(scripted.sent), sent, seconds))
    assert results[0][:3] == results[1][:3]
    assert results[1][2] == [
        None,
        "web_search_call",
        "function_call",
        "function_call_output",
    ]
    assert [seconds for *_, seconds in results] == [3.5, 2.5]


@asyncio_only
async def test_what_a_hosted_tool_may_have_changed_is_read_anew():
    log, results = EventLog(), []
    row_8 = ("look", {"row": 8})
    for how in (None, speculation(LOOK_7, sink=log)):
        world = World()
        scripted = Hosted(slow([row_8], [LOOK_7], "Done."), COMPUTED)
        agent = world.agent(model=scripted, tools=[COMPUTER])
        result = await play(agent, how)
        results.append(result.to_input_list())
    assert results[0] == results[1]
    assert world.ran == [7, 8, 7]  # the guess was let go of
    adopted = [e for e in log.events if e.event == "speculation_adopted"]
    assert adopted == []


@asyncio_only
async def test_what_a_handoff_may_have_changed_is_read_anew():
    world = World()
    agent = world.agent([("transfer_to_agent", {})], [LOOK_7], "Done.")
    # To itself, so that the tools stay the same.
    agent.handoffs.append(
        handoff(agent, on_handoff=lambda context: world.done.append("changed"))
    )
    await play(agent, speculation(LOOK_7))
    assert world.ran == [7, 7]


@asyncio_only
async def test_an_output_guardrail_judges_what_is_confirmed_and_once():
    seen, results = [], []

    @output_guardrail
    async def judge(context, agent, output):
        judged.append(output)
        return GuardrailFunctionOutput(
            output_info=None, tripwire_triggered=output == "No."
        )

    @function_tool(name_override="change")
    async def lie(row: int) -> str:
        if context := current_context():
            context.early_result("another")
            await context.barrier.wait()
        await anyio.sleep(3)
        return "changed"

    def answer(request):
        # What it says of a result that never came true, nobody is to judge.
        known = {"user": [CHANGE_7], "changed": "No.", "another": "?"}
        last = request.history[-1]
        return known.get(last.content) or known[last.role]

    for how in (None, speculation()):
        judged = []
        model = ScriptedModel(answer, delay=1)
        agent = Agent(
            name="agent",
            tools=[lie],
            model=Scripted(model),
            output_guardrails=[judge],
        )
        with pytest.raises(OutputGuardrailTripwireTriggered) as caught:
            await play(agent, how)
        seen.append(judged)
        results.append(caught.value.guardrail_result.agent_output)
    assert seen == [["No."], ["No."]]
    assert results == ["No.", "No."]


@asyncio_only
@pytest.mark.parametrize("guessed", [False, True])
async def test_a_tool_that_takes_too_long_is_told_of_as_by_the_framework(guessed):
    results = []
    for how in (None, speculation(*[LOOK_7] * guessed)):
        ended = []

        @function_tool(timeout=2.5)
        async def look(row: int) -> str:
            try:
                await anyio.sleep(3_600)
            finally:
                ended.append(row)  # noqa: B023
            return "never"

        agent = Agent(
            name="agent", tools=[look], model=Scripted(slow([LOOK_7], "Done."))
        )
        result, seconds = await timed(play(agent, how))
        results.append((result.to_input_list(), seconds))
        assert set(ended) == {7}
    assert results[0] == results[1]
    assert "timed out after 2.5 seconds" in outputs(result)[0]


SERVER = {"type": "mcp", "server_label": "files", "server_url": "http://files"}


@pytest.mark.requirement("barrier:no-effect-before-flush")
@asyncio_only
@pytest.mark.parametrize(
    "hosted",
    [
        ProgrammaticToolCallingTool(),
        COMPUTER,
        HostedMCPTool(tool_config={**SERVER, "require_approval": "never"}),
    ],
)
async def test_nothing_is_run_ahead_where_the_provider_may_change_something(hosted):
    results = []
    for how in (None, speculation()):
        world, scripted = World(), Scripted(slow([CHANGE_7], [LOOK_7], "Done."))
        agent = world.agent(model=scripted, tools=[hosted])
        result, seconds = await timed(play(agent, how))
        results.append((result.to_input_list(), len(scripted.sent), seconds))
    assert results[0] == results[1]
    assert results[1][1:] == (3, 5.5)


class Speaking(Scripted):
    """One whose client traces on its own."""

    async def get_response(self, **request):
        with custom_span("client"):
            return await super().get_response(**request)


@asyncio_only
async def test_the_models_own_client_leaves_no_span_of_what_is_run_ahead():
    traced = Traced()
    set_trace_processors([traced])
    try:
        agent = World(early=False).agent(model=Speaking(slow([CHANGE_7], "Done.")))
        await play(agent, config=RunConfig())
        without = traced.of("custom")
        agent = World().agent(model=Speaking(slow([CHANGE_7], "Done.")))
        await play(agent, speculation(), config=RunConfig())
    finally:
        set_trace_processors([])
    assert without == 2
    assert traced.of("custom") - without == 1  # and the one that came true is ours


@asyncio_only
async def test_a_history_that_is_changed_where_no_message_shows_it_is_another():
    def mark(data):
        if len(data.model_data.input) > 1:
            data.model_data.input[0] = {**data.model_data.input[0], "phase": "last"}
        return data.model_data

    config = RunConfig(tracing_disabled=True, call_model_input_filter=mark)
    scripted = Scripted(slow([CHANGE_7], "Done.", "Done."))
    await play(World().agent(model=scripted), speculation(), config=config)
    assert [each["input"][0].get("phase") for each in scripted.sent] == [
        None,
        None,
        "last",
    ]


@asyncio_only
@pytest.mark.parametrize("early", [False, True])
async def test_a_run_inside_a_tool_is_not_taken_for_the_run_around_it(early):
    @function_tool
    async def look(context: agents.tool_context.ToolContext[str], row: int) -> str:
        inner = Agent(name="inner", model="inner")
        result = await Runner.run(inner, "7?", run_config=context.run_config)
        return result.final_output

    class Provider(agents.ModelProvider):
        def get_model(self, model_name):
            return Scripted(slow("It is new."))

    config = RunConfig(tracing_disabled=True, model_provider=Provider())
    log = EventLog()
    agent = Agent(name="outer", tools=[look], model=Scripted(slow([LOOK_7], "Done.")))
    result = await play(agent, speculation(*[LOOK_7] * early, sink=log), config=config)
    assert outputs(result) == ["It is new."]
    turns = [e for e in log.events if e.event == "turn_started" and not e.speculative]
    assert len(turns) == 2
    adopted = [e for e in log.events if e.event == "speculation_adopted"]
    assert (len(adopted), len(launched(log))) == (early, early)


@asyncio_only
async def test_an_input_that_is_changed_in_place_is_read_anew():
    given = [{"role": "user", "content": [{"type": "input_text", "text": "Go."}]}]

    def change(data):
        if len(data.model_data.input) > 1:
            given[0]["content"][0]["text"] = "Stop."
            data.model_data.input[0] = given[0]
        else:
            data.model_data.input = list(given)
        return data.model_data

    config = RunConfig(tracing_disabled=True, call_model_input_filter=change)
    scripted = Scripted(
        ScriptedModel(
            lambda request: (
                [CHANGE_7]
                if request.history[-1].role == "user"
                else request.history[0].content
            ),
            delay=1,
        )
    )
    how = speculation()
    async with how.run(context="Ada", run_config=config) as run:
        agent = run.wrap(World().agent(model=scripted))
        result = await Runner.run(
            agent, given, context="Ada", run_config=run.run_config
        )
    assert result.final_output == "Stop."
    assert len(scripted.sent) == 3  # one was run ahead of the change


def test_items_are_read_once_and_anew_where_they_are_changed():
    reader = ItemReader()
    items = [{"role": "user", "content": [{"type": "input_text", "text": "Go."}]}]
    (first,) = reader.read(items, set())
    items.append(
        {"type": "function_call", "call_id": "a", "name": "look", "arguments": "{}"}
    )
    assert reader.read(items, set()) == read_items(items, set())
    items.append({"type": "function_call_output", "call_id": "a", "output": "new"})
    again = reader.read(items, set())
    assert again == read_items(items, set())
    assert again[0] is first
    assert [message.is_error for message in reader.read(items, {"a"})][-1]
    items[0]["content"][0]["text"] = "Stop."
    changed = reader.read(items, {"a"})
    assert changed == read_items(items, {"a"})
    assert changed[0].content == "Stop."
    assert reader.read(items[:1], {"a"}) == changed[:1]
