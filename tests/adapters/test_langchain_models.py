"""The model's seam in langchain: streams, callbacks, usage, and graphs of one's own."""

import json
import subprocess
import sys
from typing import Annotated

import anyio
import pytest
from pydantic import BaseModel

pytest.importorskip("langchain", reason="the extra langchain is not installed")
pytest.importorskip("langgraph", reason="the extra langchain is not installed")

from langchain.agents import AgentState, create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
)
from langchain.agents.structured_output import ToolStrategy
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.language_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.tools import (
    InjectedToolCallId,
    tool,
)
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command

from headstart import (
    EventLog,
    dump_event,
)
from headstart.adapters.langchain import Speculation
from headstart.testing import Fault, ScriptedModel

from .langchain_rig import (
    CHANGE,
    LOOK,
    Guesses,
    Heard,
    Rig,
    Rows,
    Scripted,
    asyncio_only,
    effects_of,
    nothing,
    plain,
    told,
    traces_without_threads,  # noqa: F401
)


class Router(Scripted):
    """Asks another model inside of a request, and says more than it should."""

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
        inner = Scripted(script=ScriptedModel(lambda request: "Anyone.", delay=1))
        await inner.ainvoke(messages)
        if run_manager is not None:
            await run_manager.on_llm_new_token("a token")
        return await super()._agenerate(messages, stop, run_manager, **kwargs)


class Weather(BaseModel):
    """The weather."""

    sky: str


class Topic(AgentState):
    topic: str


@asyncio_only
async def test_the_next_request_is_written_while_an_effect_happens():
    rows = Rows()
    rig = Rig([[CHANGE], "Done."], rows.tools, effects=effects_of)
    assert await rig.run() == ["Go on.", "", "changed", "Done."]
    assert rig.adopted == ["turn_confirmed"]
    assert rows.changes == [7]
    assert len(rig.model.records) == 2


@asyncio_only
@pytest.mark.parametrize("says", ["changed", "something else"])
@pytest.mark.parametrize("mode", ["messages", "updates", "values", "tools", "custom"])
async def test_a_stream_shows_what_it_shows_without(mode, says):
    seen = []
    for early in (False, True):
        rows = Rows(says)
        rig = Rig(
            [[CHANGE, LOOK], [LOOK], "It is done."],
            rows.tools,
            effects=effects_of,
            expects=[LOOK],
        )
        given = {"messages": [HumanMessage("Go on.", id="1")]}
        stream = rig.agent.astream(given, stream_mode=mode)
        async with rig.speculation.run() if early else nothing():
            seen.append([plain(part) async for part in stream])
    assert seen[0] == seen[1]


@asyncio_only
@pytest.mark.parametrize("says", ["changed", "something else"])
async def test_events_and_callbacks_come_once_and_for_what_is_real(says):
    seen = []
    for early in (False, True):
        rows = Rows(says)
        rig = Rig(
            [[CHANGE, LOOK], "It is done."],
            rows.tools,
            effects=effects_of,
            expects=[LOOK, ("look", {"row": 8})],
        )
        given = {"messages": [HumanMessage("Go on.", id="1")]}
        stream = rig.agent.astream_events(given, version="v2")
        async with rig.speculation.run() if early else nothing():
            events = [(event["event"], event["name"]) async for event in stream]
        seen.append(sorted(each for each in events if "chain" not in each[0]))
    assert seen[0] == seen[1]
    assert ("on_tool_end", "change") in seen[0]


@asyncio_only
@pytest.mark.parametrize("where", ["config", "tool", "model"])
async def test_handlers_hear_of_everything_once_wherever_they_are(where):
    heard = []
    for early in (False, True):
        handler = Heard()
        rows = Rows("something else")
        rig = Rig(
            [[CHANGE, LOOK], "It is done."],
            rows.tools,
            effects=effects_of,
            expects=[LOOK, ("look", {"row": 8})],
        )
        if where == "tool":
            for each in rows.tools:
                each.callbacks = [handler]
        if where == "model":
            rig = Rig([], rows.tools)  # replaced below
            rig.model = ScriptedModel([[LOOK], "Done."], delay=1)
            rig.agent = create_agent(
                Scripted(script=rig.model, callbacks=[handler]),
                rows.tools,
                middleware=[rig.speculation.middleware()],
            )
        config = {"callbacks": [handler]} if where == "config" else None
        await rig.run(early=early, config=config)
        heard.append(sorted(handler.heard, key=repr))
    assert heard[0] == heard[1] != []


@asyncio_only
async def test_usage_is_that_of_confirmed_answers():
    used = []
    for early in (False, True):
        rows = Rows("something else")
        rig = Rig([[CHANGE], "It is done."], rows.tools, effects=effects_of)
        with get_usage_metadata_callback() as callback:
            await rig.run(early=early)
        used.append(callback.usage_metadata)
        billed = [message.usage_metadata for message in rig.state["messages"][1::2]]
        used.append(billed)
    assert used[:2] == used[2:]
    assert rig.happened("turn_discarded") == ["turn_discarded"]
    assert len(rig.model.records) == 3


@asyncio_only
async def test_a_command_of_a_tool_reaches_the_graph_and_is_not_run_ahead():
    @tool
    async def choose(
        topic: str, tool_call_id: Annotated[str, InjectedToolCallId]
    ) -> Command:
        """Choose a topic."""
        message = ToolMessage("chosen", tool_call_id=tool_call_id)
        return Command(update={"topic": topic, "messages": [message]})

    @tool
    async def other() -> Command:
        """Say it without an identifier."""
        await anyio.sleep(1)
        return Command(graph=Command.PARENT, goto="elsewhere")

    rig = Rig(
        [[("choose", {"topic": "sky"}), CHANGE], "Done."],
        [choose, other, *Rows().tools],
        effects={**effects_of, "choose": "READ"},
        expects=[("choose", {"topic": "sky"})],
        agent={"state_schema": Topic},
    )
    await rig.run()
    assert rig.state["topic"] == "sky"
    assert rig.state["messages"][-1].text == "Done."
    assert (rig.launches, rig.adopted) == (0, [])


@asyncio_only
@pytest.mark.parametrize("handle", [True, False])
async def test_structured_output_is_what_it_is_without(handle):
    answer = ("Weather", {"sky": "blue"})
    rig = Rig(
        [[CHANGE], [answer]],
        Rows().tools,
        effects=effects_of,
        agent={"response_format": ToolStrategy(Weather, handle_errors=handle)},
    )
    await rig.run()
    assert rig.state["structured_response"] == Weather(sky="blue")
    assert rig.adopted == ["turn_confirmed"]


@asyncio_only
@pytest.mark.parametrize("streamed", [False, True])
async def test_an_agent_with_a_name_is_run_ahead_with_its_name(streamed):
    rig = Rig(
        [[CHANGE], "Done."], Rows().tools, effects=effects_of, agent={"name": "clerk"}
    )
    rig.model.names = []
    given = {"messages": [HumanMessage("Go on.")]}
    async with rig.speculation.run():
        if streamed:
            async for _ in rig.agent.astream(given, stream_mode="messages"):
                pass
        else:
            await rig.agent.ainvoke(given)
    assert rig.adopted[-1] == "turn_confirmed"
    assert rig.model.names[-1][1] == "clerk"


@asyncio_only
async def test_what_other_middleware_changes_in_a_request_is_asked_anew():
    class Note(AgentMiddleware):
        hooks = 0

        async def abefore_model(self, state, runtime):
            self.hooks += 1

        async def awrap_model_call(self, request, handler):
            said = [*request.messages, HumanMessage(f"Step {self.hooks}.")]
            return await handler(request.override(messages=said))

    note = Note()
    rig = Rig([[CHANGE], "Done."], Rows().tools, effects=effects_of, middleware=[note])
    assert await rig.run() == ["Go on.", "", "changed", "Done."]
    assert note.hooks == 2
    last = rig.model.records[-1].request.history[-1]
    assert last.content == "Step 2."
    assert "turn_confirmed" not in rig.happened()


@asyncio_only
async def test_an_answer_that_a_hook_has_altered_is_not_what_was_run_ahead():
    class Sign(AgentMiddleware):
        async def aafter_model(self, state, runtime):
            last = state["messages"][-1]
            signed = last.model_copy(update={"additional_kwargs": {"signed": True}})
            return {"messages": [signed]}

    rig = Rig(
        [[CHANGE], "Done."], Rows().tools, effects=effects_of, middleware=[Sign()]
    )
    assert await rig.run() == ["Go on.", "", "changed", "Done."]
    assert "turn_confirmed" not in rig.happened()


@asyncio_only
async def test_tools_that_a_request_leaves_out_are_not_launched_for_it():
    class First(AgentMiddleware):
        async def awrap_model_call(self, request, handler):
            return await handler(request.override(tools=request.tools[:1]))

    rows = Rows()
    rig = Rig(
        [[LOOK], "Done."],
        rows.tools[::-1],
        effects=effects_of,
        expects=[LOOK],
        middleware=[First()],
    )
    assert await rig.run() == ["Go on.", "", "row 7", "Done."]
    assert rig.launches == 0


@asyncio_only
async def test_streams_of_the_model_start_calls_early_where_they_are_asked_for():
    @tool
    async def note(text: str) -> str:
        """Note a text."""
        return "noted"

    tools = [*Rows().tools, note]
    script = [
        [LOOK, ("note", {"text": "A text that takes the model a while to write."})],
        "Done.",
    ]
    times = []
    for stream in (False, True):
        effects = {"look": "READ", "note": "READ"}
        rig = Rig(script, tools, effects=effects, stream=stream)
        await rig.run()
        times.append(rig.seconds)
    assert times == [5.5, 4.5]
    assert rig.adopted == ["speculation_adopted"] * 2


@asyncio_only
async def test_a_models_error_is_raised_and_nothing_of_its_answer_runs():
    rows = Rows()
    broken = Fault(response=[CHANGE, "More."], after=5, error=ConnectionError("gone"))
    rig = Rig([broken], rows.tools, effects=effects_of, stream=True)
    with pytest.raises(ConnectionError, match="gone"):
        await rig.run()
    assert rows.changes == []


@asyncio_only
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_graph_of_ones_own_has_the_model_and_the_tool_node(streamed):
    async def look(row: int) -> str:
        """Look at a row."""
        await anyio.sleep(1)
        return f"row {row}"

    script = ScriptedModel([[LOOK], "Done."], delay=1, seconds_per_delta=0.125)
    log = EventLog()
    speculation = Speculation(
        effects={"look": "READ"}, predictors=[Guesses([LOOK])], sink=log
    )
    model = speculation.model(Scripted(script=script)).bind_tools([look])

    async def answer(state):
        return {"messages": [await model.ainvoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("model", answer)
    builder.add_node(
        "tools",
        ToolNode(
            [look],
            wrap_tool_call=speculation.wrap_tool_call,
            awrap_tool_call=speculation.awrap_tool_call,
        ),
    )
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", tools_condition)
    builder.add_edge("tools", "model")
    graph = builder.compile()
    given = {"messages": [HumanMessage("Go on.")]}
    texts = []
    for early in (False, True):
        async with speculation.run() if early else nothing():
            if streamed:
                stream = graph.astream(given, stream_mode="messages")
                texts.append([part[0].text async for part in stream])
            else:
                state = await graph.ainvoke(given)
                texts.append([message.text for message in state["messages"]])
    assert texts[0] == texts[1]
    kinds = [json.loads(dump_event(event))["event"] for event in log.events]
    assert "speculation_adopted" in kinds


@asyncio_only
async def test_a_model_that_streams_on_its_own_is_read_as_it_streams():
    script = ScriptedModel(["It is done."], delay=1, seconds_per_delta=0.125)
    speculation = Speculation()
    model = speculation.model(Scripted(script=script))
    async with speculation.run():
        pieces = [piece.text async for piece in model.astream("Go on.")]
        stream = model.astream("Go on.")
        async for _ in stream:
            break
        await stream.aclose()
        assert (await model.ainvoke("Go on.")).text == "It is done."
    assert "".join(pieces) == "It is done."
    assert [record.outcome for record in script.records] == [
        "answered",
        "cancelled",
        "answered",
    ]


@asyncio_only
async def test_a_model_that_asks_others_is_not_heard_while_it_runs_ahead():
    class Tokens(Heard):
        async def on_llm_new_token(self, token, **kwargs):
            self.heard.append(("token", token))

    heard = []
    for early in (False, True):
        handler = Tokens()
        rig = Rig([], Rows("something else").tools, effects=effects_of)
        model = Router(script=ScriptedModel([[CHANGE], "Done."], delay=1))
        rig.agent = create_agent(
            model, Rows("no").tools, middleware=[rig.speculation.middleware()]
        )
        with get_usage_metadata_callback() as used:
            await rig.run(config={"callbacks": [handler]}, early=early)
        heard.append((handler.heard, used.usage_metadata))
    assert heard[0] == heard[1]
    assert rig.happened("turn_discarded") == ["turn_discarded"]
    assert len(model.script.records) == 3


@asyncio_only
async def test_a_request_that_is_run_ahead_waits_for_the_rate_limiter():
    class Limiter(BaseRateLimiter):
        acquired = 0

        def acquire(self, *, blocking=True):
            raise NotImplementedError

        async def aacquire(self, *, blocking=True):
            self.acquired += 1
            return True

    limiter = Limiter()
    rig = Rig([], Rows("something else").tools, effects=effects_of)
    model = Scripted(
        script=ScriptedModel([[CHANGE], "Done."], delay=1), rate_limiter=limiter
    )
    rig.agent = create_agent(
        model, Rows("no").tools, middleware=[rig.speculation.middleware()]
    )
    await rig.run()
    assert limiter.acquired == len(model.script.records) == 3


@asyncio_only
async def test_a_model_may_bind_tools_to_another():
    class Binds(Scripted):
        def bind_tools(self, tools, **kwargs):
            return Scripted(script=self.script).bind_tools(tools, **kwargs)

    rig = Rig([], Rows().tools, effects=effects_of, expects=[LOOK])
    model = Binds(script=ScriptedModel([[LOOK], "Done."], delay=1))
    rig.agent = create_agent(
        model, Rows().tools, middleware=[rig.speculation.middleware()]
    )
    assert await rig.run() == ["Go on.", "", "row 7", "Done."]
    assert rig.adopted == ["speculation_adopted"]


@asyncio_only
@pytest.mark.parametrize("what", ["settings", "unsaid"])
async def test_a_request_that_differs_in_anything_is_asked_anew(what):
    class Step(AgentMiddleware):
        steps = 0

        async def awrap_model_call(self, request, handler):
            self.steps += 1
            if what == "settings":
                changed = request.override(model_settings={"temperature": self.steps})
            else:
                first, *rest = request.messages
                kwargs = {"step": self.steps}
                first = first.model_copy(update={"additional_kwargs": kwargs})
                changed = request.override(messages=[first, *rest])
            return await handler(changed)

    rig = Rig(
        [[CHANGE], "Done."], Rows().tools, effects=effects_of, middleware=[Step()]
    )
    assert await rig.run() == ["Go on.", "", "changed", "Done."]
    assert "turn_confirmed" not in rig.happened()


@asyncio_only
async def test_calls_are_compared_as_the_model_wrote_them():
    written = ("look", '{"row":7.0 }')
    rig = Rig(
        [[written, ("look", '{"row":8}')], "Done."],
        Rows().tools,
        effects={"look": "READ"},
        stream=True,
    )
    await rig.run()
    assert rig.adopted == ["speculation_adopted"] * 2


@asyncio_only
@pytest.mark.filterwarnings("ignore:The v3 streaming protocol")
@pytest.mark.parametrize("says", ["changed", "something else"])
async def test_protocol_events_are_what_they_are_without(says):
    seen = []
    for early in (False, True):
        rig = Rig(
            [[CHANGE], [LOOK], "It is done."],
            Rows(says).tools,
            effects=effects_of,
            expects=[CHANGE],
        )
        given = {"messages": [HumanMessage("Go on.", id="1")]}
        async with rig.speculation.run() if early else nothing():
            run = await rig.agent.astream_events(given, version="v3")
            texts = [await message.text async for message in run.messages]
            seen.append((texts, [told(m) for m in (await run.output())["messages"]]))
    assert seen[0] == seen[1]
    assert "turn_started" in rig.happened()


def test_a_copy_of_a_model_keeps_no_state_of_its_own():
    model = FakeMessagesListChatModel(responses=[AIMessage("One."), AIMessage("Two.")])
    assert Speculation().model(model).invoke("Go on.").text == "One."
    assert model.invoke("Go on.").text == "Two."


def test_a_missing_framework_is_named_with_its_extra():
    code = (
        "import sys; sys.modules['langchain'] = None\n"
        "import headstart.adapters\n"
        "try: import headstart.adapters.langchain\n"
        "except ImportError as error: print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    text = 'Please install `langchain`: pip install "headstart[langchain]"\n'
    assert run.stdout == text, run.stderr
