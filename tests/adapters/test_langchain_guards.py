"""The adapter for langchain: what it must not take for the same, or leave open."""

import anyio
import pytest

pytest.importorskip("langchain", reason="the extra langchain is not installed")
pytest.importorskip("langgraph", reason="the extra langchain is not installed")

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from headstart.adapters._langchain import Run
from headstart.adapters.langchain import Speculation
from headstart.testing import ScriptedModel

from .langchain_rig import (
    CHANGE,
    Rig,
    Rows,
    Scripted,
    asyncio_only,
    effects_of,
    traces_without_threads,  # noqa: F401
)


def say(message):
    message.content = "Stop."


def call(message):
    message.tool_calls[0]["args"]["row"] = True


def add(message):
    message.additional_kwargs["thought"] = "so"


def answer(message):
    message.status = "error"


def nest(message):
    message.content[0]["text"] = "Stop."


CALL = {"id": "a", "name": "look", "args": {"row": 1}}
TEXT = {"type": "text", "text": "Go."}


@asyncio_only
@pytest.mark.parametrize(
    ("message", "change"),
    [
        (HumanMessage("Go."), say),
        (AIMessage("", tool_calls=[CALL]), call),
        (AIMessage("I look."), add),
        (ToolMessage("new", tool_call_id="a"), answer),
        (HumanMessage([TEXT]), nest),
    ],
)
async def test_a_message_that_is_changed_in_place_is_read_anew(message, change):
    async with Speculation().run() as host:
        run = Run(host, approvals=())
        (before,) = run.translate_all([message])
        assert run.translate_all([message]) == [before]
        change(message)
        (after,) = run.translate_all([message])
        assert after is not before
        assert (after.content, after.tool_calls, after.is_error, after.rest) != (
            before.content,
            before.tool_calls,
            before.is_error,
            before.rest,
        )


@asyncio_only
async def test_a_message_that_stays_is_read_once():
    messages = [HumanMessage("Go.")]
    async with Speculation().run() as host:
        run = Run(host, approvals=())
        (before,) = run.translate_all(messages)
        messages.append(AIMessage("", tool_calls=[CALL]))
        first, second = run.translate_all(messages)
        assert first is before
        assert run.translate_all(messages[1:])[0] is second
        assert run.translate_all(messages)[0] is not before


@asyncio_only
async def test_a_history_that_a_hook_changes_in_place_is_asked_anew():
    class Rewrites(AgentMiddleware):
        async def awrap_model_call(self, request, handler):
            if len(request.messages) > 1:
                request.messages[0].content = "Stop."
            return await handler(request)

    def respond(request):
        done = request.history[-1].role == "tool"
        return request.history[0].content if done else [CHANGE]

    speculation = Speculation(effects=effects_of)
    agent = create_agent(
        Scripted(script=ScriptedModel(respond, delay=1)),
        Rows().tools,
        middleware=[Rewrites(), speculation.middleware()],
    )
    async with speculation.run():
        state = await agent.ainvoke({"messages": [HumanMessage("Go.")]})
    assert state["messages"][-1].text == "Stop."


@asyncio_only
async def test_a_stream_of_the_model_is_closed_when_its_reader_leaves():
    closed = []

    class Closing(Scripted):
        async def _astream(self, messages, stop=None, run_manager=None, **kwargs):
            try:
                async for each in super()._astream(messages, stop, **kwargs):
                    yield each
            finally:
                closed.append(anyio.current_time())

    script = ScriptedModel(["One, two, three, four."], delay=1, seconds_per_delta=1)
    speculation = Speculation(effects=effects_of)
    agent = create_agent(
        Closing(script=script), Rows().tools, middleware=[speculation.middleware()]
    )
    began = anyio.current_time()
    async with speculation.run():
        given = {"messages": [HumanMessage("Go.")]}
        stream = agent.astream(given, stream_mode="messages")
        async for _ in stream:
            break
        await stream.aclose()
        left = anyio.current_time()
        assert closed == [left]
    assert left - began < 3


@pytest.mark.requirement("barrier:no-effect-before-flush")
@asyncio_only
@pytest.mark.parametrize(("kind", "confirmed"), [("web_search", 1), ("mcp", 0)])
async def test_nothing_is_run_ahead_where_the_provider_may_change_something(
    kind, confirmed
):
    class Adds(AgentMiddleware):
        async def awrap_model_call(self, request, handler):
            tools = [*request.tools, {"type": kind}]
            return await handler(request.override(tools=tools))

    class Takes(Scripted):
        def bind_tools(self, tools, **kwargs):
            own = [each for each in tools if isinstance(each, dict)]
            bound = super().bind_tools(
                [each for each in tools if each not in own], **kwargs
            )
            return bound.bind(tools=[*bound.kwargs["tools"], *own])

    rig = Rig([[CHANGE], "Done."], Rows().tools, effects=effects_of)
    agent = create_agent(
        Takes(script=rig.model),
        Rows().tools,
        middleware=[Adds(), rig.speculation.middleware()],
    )
    async with rig.speculation.run():
        state = await agent.ainvoke({"messages": [HumanMessage("Go.")]})
    assert state["messages"][-1].text == "Done."
    assert len(rig.happened("turn_confirmed")) == confirmed
