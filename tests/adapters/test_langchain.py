"""Headstart in langchain's agents: the suite of adapters, and what a run is."""

import asyncio
from contextvars import ContextVar

import anyio
import pytest

pytest.importorskip("langchain", reason="the extra langchain is not installed")
pytest.importorskip("langgraph", reason="the extra langchain is not installed")

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, HumanInTheLoopMiddleware
from langchain_core.messages import HumanMessage
from langchain_core.tools import (
    tool,
)
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from headstart.adapters.langchain import Speculation
from headstart.testing import AdapterConformance, Outcome

from .langchain_rig import (
    LOOK,
    Rig,
    Rows,
    Scripted,
    as_tool,
    asyncio_only,
    effects_of,
    told,
    traces_without_threads,  # noqa: F401
)


async def cancelled_once(coroutine):
    """Cancel as asyncio does, once: scopes of anyio do it again and again.

    Langgraph does not get through its cleanup then, and leaves parallel tools running.
    """
    task = asyncio.create_task(coroutine)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait([task])
        raise


class Idle(AgentMiddleware):
    """A middleware that does nothing: what any of them costs."""

    async def awrap_model_call(self, request, handler):
        return await handler(request)

    async def awrap_tool_call(self, request, handler):
        return await handler(request)


class TestLangchain(AdapterConformance):
    extra = ()
    """More middleware, for benchmarks."""

    async def run(self, scene, stage, model, options):
        return await cancelled_once(self.run_scene(scene, stage, model, options))

    async def run_scene(self, scene, stage, model, options):
        speculation = Speculation(**options) if options is not None else None
        asks = {tool.name: True for tool in stage.tools if tool.approval}
        agent = create_agent(
            Scripted(script=model),
            [as_tool(tool.function) for tool in stage.tools],
            middleware=[
                HumanInTheLoopMiddleware(asks),
                *([speculation.middleware()] if speculation else self.extra),
            ],
            checkpointer=InMemorySaver(),
        )
        outcome = Outcome()
        if speculation is None:
            await self.converse(agent, scene, outcome)
        else:
            async with speculation.run():
                await self.converse(agent, scene, outcome)
        return outcome

    async def converse(self, agent, scene, outcome):
        config = {"configurable": {"thread_id": "1"}}
        given = {"messages": [HumanMessage(scene.user)]}
        if scene.stream:
            stream = agent.astream(given, config, stream_mode="messages")
            try:
                async for message, _ in stream:
                    if message.type == "AIMessageChunk" and message.text:
                        outcome.seen.append(message.text)
                        if len(outcome.seen) == scene.read:
                            return
            finally:
                await stream.aclose()
        else:
            state = await agent.ainvoke(given, config)
            while asked := state.get("__interrupt__"):
                kind = {"type": "approve" if scene.approve else "reject"}
                decisions = [kind for _ in asked[0].value["action_requests"]]
                state = await agent.ainvoke(
                    Command(resume={"decisions": decisions}), config
                )
        messages = (await agent.aget_state(config)).values["messages"]
        outcome.messages = list(map(told, messages))


@asyncio_only
async def test_a_read_that_was_expected_costs_no_time():
    rig = Rig([[LOOK], "Done."], Rows().tools, effects=effects_of, expects=[LOOK])
    assert await rig.run(early=False) == ["Go on.", "", "row 7", "Done."]
    slow = rig.seconds
    assert await rig.run() == ["Go on.", "", "row 7", "Done."]
    assert rig.seconds == slow - 1
    assert rig.adopted == ["speculation_adopted"]


@pytest.mark.real_time
async def test_sync_methods_go_straight_through_and_it_is_said_once(caplog):
    @tool
    def look(row: int) -> str:
        """Look."""
        return f"row {row}"

    rig = Rig([[LOOK], "Done."], [look], effects=effects_of, expects=[LOOK])
    rig.model._delay = rig.model._pace = 0.0
    async with rig.speculation.run():
        given = {"messages": [HumanMessage("Go on.")]}
        state = await asyncio.to_thread(rig.agent.invoke, given)
    assert state["messages"][-1].text == "Done."
    assert rig.launches == 0
    said = [record.message for record in caplog.records if "sync" in record.message]
    assert len(said) == 1


@asyncio_only
async def test_without_a_run_nothing_is_ours():
    rig = Rig([[LOOK], "Done."], Rows().tools, effects=effects_of, expects=[LOOK])
    assert await rig.run(early=False) == ["Go on.", "", "row 7", "Done."]
    assert rig.log.events == []


@asyncio_only
async def test_two_agents_at_once_in_one_run_do_not_mix():
    rigs = [
        Rig([[LOOK], f"Done {number}."], Rows().tools, effects=effects_of)
        for number in range(2)
    ]
    given = {"messages": [HumanMessage("Go on.")]}
    async with rigs[0].speculation.run():
        states = await asyncio.gather(*(rig.agent.ainvoke(given) for rig in rigs))
    assert [state["messages"][-1].text for state in states] == ["Done 0.", "Done 1."]
    assert len(rigs[0].happened("model_answered")) == 2


@asyncio_only
async def test_context_variables_of_the_user_reach_what_is_launched():
    tenant = ContextVar("tenant")

    @tool
    async def look(row: int) -> str:
        """Look."""
        await anyio.sleep(1)
        return tenant.get()

    rig = Rig([[LOOK], "Done."], [look], effects=effects_of, expects=[LOOK])
    tenant.set("Ada")
    assert (await rig.run())[2] == "Ada"
    assert rig.adopted == ["speculation_adopted"]


@asyncio_only
async def test_a_run_that_has_ended_is_not_used_any_more():
    rig = Rig([[LOOK], "Done."], Rows().tools, effects=effects_of, expects=[LOOK])
    over = anyio.Event()

    async def later():
        await over.wait()
        return await rig.agent.ainvoke({"messages": [HumanMessage("Go on.")]})

    async with rig.speculation.run():
        task = asyncio.create_task(later())
        await anyio.sleep(1)
    over.set()
    assert (await task)["messages"][-1].text == "Done."
    assert rig.launches == 0


@pytest.mark.real_time
async def test_another_event_loop_is_not_part_of_the_run():
    rig = Rig([[LOOK], "Done."], Rows().tools, effects=effects_of, expects=[LOOK])
    rig.model._delay = rig.model._pace = 0.0

    def elsewhere():
        given = {"messages": [HumanMessage("Go on.")]}
        return asyncio.run(rig.agent.ainvoke(given))

    async with rig.speculation.run():
        state = await asyncio.to_thread(elsewhere)
    assert state["messages"][-1].text == "Done."
    assert rig.launches == 0


@asyncio_only
async def test_two_messages_of_a_user_are_one_run():
    rows = Rows()
    rig = Rig(
        [[LOOK], "First.", [LOOK], "Second."],
        rows.tools,
        effects=effects_of,
        expects=[LOOK],
        agent={"checkpointer": InMemorySaver()},
    )
    config = {"configurable": {"thread_id": "1"}}
    async with rig.speculation.run():
        for said in ("first", "second"):
            given = {"messages": [HumanMessage(said)]}
            state = await rig.agent.ainvoke(given, config)
    texts = [message.text for message in state["messages"]]
    assert texts == ["first", "", "row 7", "First.", "second", "", "row 7", "Second."]
    assert rig.adopted == ["speculation_adopted"] * 2
