"""The tools' seam in langchain: errors, approvals, what is injected, threads."""

import asyncio
import threading
from typing import Annotated, Any

import anyio
import pytest

pytest.importorskip("langchain", reason="the extra langchain is not installed")
pytest.importorskip("langgraph", reason="the extra langchain is not installed")

from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    HumanInTheLoopMiddleware,
    ToolRetryMiddleware,
)
from langchain.tools import InjectedState, ToolRuntime
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import (
    Tool,
    ToolException,
    tool,
)
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt

from headstart import (
    current_context,
)
from headstart.testing import ScriptedModel

from .langchain_rig import (
    CHANGE,
    LOOK,
    Heard,
    Rig,
    Rows,
    Scripted,
    asyncio_only,
    effects_of,
    told,
    traces_without_threads,  # noqa: F401
)


@asyncio_only
async def test_a_tools_failure_is_told_as_the_framework_tells_it():
    @tool
    async def look(row: int) -> str:
        """Look."""
        await anyio.sleep(1)
        raise ToolException("no such row")

    look.handle_tool_error = True
    rig = Rig([[LOOK], "Done."], [look], effects=effects_of, expects=[LOOK])
    assert await rig.run() == ["Go on.", "", "no such row", "Done."]
    assert rig.state["messages"][2].status == "error"


@asyncio_only
async def test_a_tools_exception_ends_the_run_as_it_does_without():
    @tool
    async def look(row: int) -> str:
        """Look."""
        raise LookupError("gone")

    rig = Rig([[LOOK], "Done."], [look], effects=effects_of, expects=[LOOK])
    with pytest.raises(LookupError, match="gone"):
        await rig.run()


@asyncio_only
async def test_arguments_that_do_not_fit_are_refused_in_the_frameworks_words():
    said = []
    for early in (False, True):
        wrong = ("look", {"row": "seven"})
        rig = Rig([[wrong], "Done."], Rows().tools, effects=effects_of, expects=[wrong])
        said.append(await rig.run(early=early))
    assert said[0] == said[1]
    assert "Error invoking tool" in said[0][2]


@asyncio_only
async def test_a_call_is_run_again_by_the_middleware_that_retries():
    attempts = []

    @tool
    async def change(row: int) -> str:
        """Change a row."""
        attempts.append(row)
        if context := current_context():
            context.early_result("changed")
            await context.barrier.wait()
        if len(attempts) == 1:
            raise ConnectionError("try again")
        return "changed"

    retry = ToolRetryMiddleware(max_retries=2, initial_delay=1.0, jitter=False)
    rig = Rig([[CHANGE], "Done."], [change], effects=effects_of, middleware=[retry])
    assert await rig.run() == ["Go on.", "", "changed", "Done."]
    assert attempts == [7, 7]


@asyncio_only
async def test_a_tool_with_approval_is_not_started_before_it():
    rows = Rows()
    rig = Rig(
        [[LOOK], "Done."],
        rows.tools,
        effects=effects_of,
        expects=[LOOK],
        approvals=["look"],
        middleware=[HumanInTheLoopMiddleware({"look": True})],
        agent={"checkpointer": InMemorySaver()},
    )
    config = {"configurable": {"thread_id": "1"}}
    await rig.run(config=config)
    assert rig.state["__interrupt__"]
    assert (rig.launches, rows.looks) == (0, 0)
    resume = Command(resume={"decisions": [{"type": "approve"}]})
    assert await rig.run(resume, config=config) == ["Go on.", "", "row 7", "Done."]


@asyncio_only
async def test_arguments_that_a_person_has_changed_are_what_runs():
    rows = Rows()
    rig = Rig(
        [[CHANGE], "Done."],
        rows.tools,
        effects=effects_of,
        expects=[CHANGE],
        middleware=[HumanInTheLoopMiddleware({"change": True})],
        agent={"checkpointer": InMemorySaver()},
    )
    config = {"configurable": {"thread_id": "1"}}
    edited = {"type": "edit", "edited_action": {"name": "change", "args": {"row": 8}}}
    async with rig.speculation.run():
        given = {"messages": [HumanMessage("Go on.")]}
        await rig.agent.ainvoke(given, config)
        assert rows.changes == []
        resume = Command(resume={"decisions": [edited]})
        state = await rig.agent.ainvoke(resume, config)
    assert state["messages"][-1].text == "Done."
    assert rows.changes == [8]


@asyncio_only
@pytest.mark.parametrize("again", [True, False])
async def test_a_tool_that_interrupts_is_resumed_in_the_same_run_or_in_another(again):
    @tool
    async def look(row: int) -> str:
        """Look."""
        return f"row {interrupt('Which row?')}"

    rig = Rig(
        [[LOOK], "Done."],
        [look],
        effects=effects_of,
        expects=[LOOK],
        agent={"checkpointer": InMemorySaver()},
    )
    config = {"configurable": {"thread_id": "1"}}
    if again:
        async with rig.speculation.run():
            given = {"messages": [HumanMessage("Go on.")]}
            state = await rig.agent.ainvoke(given, config)
            assert state["__interrupt__"][0].value == "Which row?"
            state = await rig.agent.ainvoke(Command(resume="9"), config)
    else:
        await rig.run(config=config)
        assert rig.state["__interrupt__"][0].value == "Which row?"
        await rig.run(Command(resume="9"), config=config)
        state = rig.state
    texts = [message.text for message in state["messages"]]
    assert texts == ["Go on.", "", "row 9", "Done."]


@asyncio_only
async def test_checkpoints_are_those_of_the_agent_alone():
    kept = []
    for early in (False, True):
        saver = InMemorySaver()
        rig = Rig(
            [[CHANGE], [LOOK], "Done."],
            Rows("something else").tools,
            effects=effects_of,
            expects=[CHANGE],
            agent={"checkpointer": saver},
        )
        config = {"configurable": {"thread_id": "1"}}
        await rig.run(config=config, early=early)
        kept.append(
            [
                (state.next, [told(m) for m in state.values.get("messages", ())])
                async for state in rig.agent.aget_state_history(config)
            ]
        )
    assert kept[0] == kept[1]


@asyncio_only
async def test_a_tool_that_takes_what_is_not_known_yet_is_not_started_early():
    @tool
    async def by_state(row: int, state: Annotated[dict, InjectedState]) -> str:
        """By the state."""
        return f"{len(state['messages'])} messages"

    @tool
    async def by_runtime(row: int, runtime: ToolRuntime) -> str:
        """By the runtime."""
        return runtime.tool_call_id

    @tool
    async def by_config(row: int, config: RunnableConfig) -> str:
        """By the configuration."""
        return config["configurable"]["user"]

    @tool
    async def by_callbacks(row: int, callbacks: Any = None) -> str:
        """By the callbacks."""
        return str(callbacks is not None)

    async def single(row: str) -> str:
        return f"row {row}"

    by_text = Tool("by_text", func=None, description="By a text.", coroutine=single)
    tools = [by_state, by_runtime, by_config, by_callbacks, by_text]
    calls = [(each.name, {"row": 1}) for each in tools]
    rig = Rig(
        [calls, "Done."],
        tools,
        effects={each.name: "READ" for each in tools},
        expects=calls,
    )
    texts = await rig.run(config={"configurable": {"user": "Ada"}})
    told = ["2 messages", "call_1_1", "Ada", "True", "row 1"]
    assert texts[2:7] == told
    assert rig.launches == 0


@asyncio_only
async def test_nothing_is_asked_ahead_of_a_tool_that_ends_the_agent():
    rows = Rows()
    rows.tools[1].return_direct = True
    rig = Rig([[CHANGE], "Done."], rows.tools, effects=effects_of)
    assert await rig.run() == ["Go on.", "", "changed"]
    assert len(rig.model.records) == 1


@asyncio_only
async def test_what_a_tool_returns_is_shown_and_kept_as_the_framework_does():
    @tool(response_format="content_and_artifact")
    async def change(row: int):
        """Change a row."""
        value = [{"type": "text", "text": "changed"}], {"row": row}
        if context := current_context():
            context.early_result(value)
            await context.barrier.wait()
        await anyio.sleep(1)
        return value

    @tool
    async def look(row: int) -> dict:
        """Look."""
        await anyio.sleep(1)
        return {"row": row, "é": [1, None]}

    effects = {
        "look": {"effect": "READ", "reads": ["row"]},
        "change": {"effect": "GATED", "reads": ["log"], "writes": ["log"]},
    }
    script = [[CHANGE, LOOK], "Done."]
    rig = Rig(script, [change, look], effects=effects, expects=[LOOK])
    texts = await rig.run()
    assert texts[2:] == ["changed", '{"row": 7, "é": [1, null]}', "Done."]
    assert rig.state["messages"][2].artifact == {"row": 7}
    assert rig.adopted == ["speculation_adopted", "turn_confirmed"]


@pytest.mark.real_time
async def test_sync_tools_run_in_threads_and_their_effects_are_held():
    steps = []
    prepared = threading.Event()

    @tool
    def change(row: int) -> str:
        """Change a row."""
        context = current_context()
        steps.append(("prepared", context.speculative))
        prepared.set()
        context.barrier.wait_blocking()
        steps.append(("changed", context.speculative))
        return "changed"

    class Waits(ScriptedModel):
        async def respond(self, request, on_delta):
            await asyncio.to_thread(prepared.wait, 5)
            return await super().respond(request, on_delta)

    rig = Rig([[CHANGE], "Done."], [change], effects=effects_of, expects=[CHANGE])
    rig.agent = create_agent(
        Scripted(script=Waits([[CHANGE], "Done."])),
        [change],
        middleware=[rig.speculation.middleware()],
    )
    assert await rig.run() == ["Go on.", "", "changed", "Done."]
    assert steps == [("prepared", True), ("changed", False)]
    assert rig.adopted == ["speculation_adopted"]


@pytest.mark.real_time
async def test_a_run_that_is_cancelled_lets_go_of_a_thread_that_is_held():
    steps = []
    began, ended = threading.Event(), threading.Event()

    @tool
    def change(row: int) -> str:
        """Change a row."""
        try:
            began.set()
            current_context().barrier.wait_blocking()
            steps.append("changed")
        finally:
            ended.set()
        return "changed"

    rig = Rig([[CHANGE], "Done."], [change], effects=effects_of, expects=[CHANGE])
    rig.model._delay = 10.0
    task = asyncio.create_task(rig.run())
    assert await asyncio.to_thread(began.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(ended.wait, 5)
    assert steps == []


@asyncio_only
async def test_an_agent_inside_a_tool_is_not_part_of_the_run():
    rows = Rows()
    inner = Rig([[CHANGE], "Inner done."], rows.tools, effects=effects_of)

    @tool
    async def ask_clerk(what: str) -> str:
        """Ask the clerk."""
        state = await inner.agent.ainvoke({"messages": [HumanMessage(what)]})
        return state["messages"][-1].text

    asked = ("ask_clerk", {"what": "Change it."})
    rig = Rig([[asked, LOOK], "Done."], [ask_clerk, *rows.tools], effects=effects_of)
    texts = await rig.run()
    assert texts[2:] == ["Inner done.", "row 7", "Done."]
    assert rows.changes == [7]
    assert inner.log.events == []
    assert len(rig.happened("model_answered")) == 2


@asyncio_only
async def test_an_agent_inside_a_launched_tool_is_seen_by_nobody():
    inner = Rig(["Inner done."], Rows().tools, delay=0.25).agent

    @tool
    async def ask_clerk(what: str) -> str:
        """Ask the clerk."""
        await anyio.sleep(1.5)  # until the agent's own request is answered
        state = await inner.ainvoke({"messages": [HumanMessage(what)]})
        return state["messages"][-1].text

    seen = []
    for early in (False, True):
        heard = Heard()
        rig = Rig(
            [[LOOK], "Done."],
            [ask_clerk, *Rows().tools],
            effects={"ask_clerk": "READ", "look": "READ"},
            expects=[("ask_clerk", {"what": "Anything."})],
        )
        with get_usage_metadata_callback() as used:
            await rig.run(config={"callbacks": [heard]}, early=early)
        seen.append((heard.heard, used.usage_metadata))
    assert rig.launches == 1
    ends = [event.reason for event in rig.log.events if hasattr(event, "reason")]
    assert ends == ["the session ended"]
    assert seen[0] == seen[1]


@asyncio_only
async def test_effects_may_stand_in_a_tools_metadata():
    rows = Rows()
    rows.tools[0].metadata = {"headstart": {"effect": "READ", "reads": ["row:{row}"]}}
    rig = Rig([[LOOK], "Done."], rows.tools, expects=[LOOK])
    await rig.run()
    assert rig.adopted == ["speculation_adopted"]


@asyncio_only
async def test_a_tool_that_a_hook_has_put_in_anothers_place_is_what_runs():
    @tool("look")
    async def other(row: int) -> str:
        """Look elsewhere."""
        return "elsewhere"

    class Instead(AgentMiddleware):
        async def awrap_tool_call(self, request, handler):
            return await handler(request.override(tool=other))

    rig = Rig(
        [[LOOK], "Done."],
        Rows().tools,
        effects=effects_of,
        expects=[LOOK],
        middleware=[Instead()],
    )
    assert await rig.run() == ["Go on.", "", "elsewhere", "Done."]


@asyncio_only
async def test_nothing_is_asked_ahead_of_a_failure_told_in_the_frameworks_words():
    @tool
    async def look(row: int) -> str:
        """Look."""
        raise ToolException("no such row")

    look.handle_tool_error = True
    change = Rows().tools[1]
    rig = Rig([[LOOK, CHANGE], "Done."], [look, change], effects=effects_of)
    assert (await rig.run())[2:] == ["no such row", "changed", "Done."]
    assert len(rig.model.records) == 2
