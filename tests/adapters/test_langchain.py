"""Headstart in langchain's agents and langgraph's graphs."""

import asyncio
import functools
import json
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Annotated, Any

import anyio
import pytest
from pydantic import BaseModel

pytest.importorskip("langchain", reason="the extra langchain is not installed")
pytest.importorskip("langgraph", reason="the extra langchain is not installed")

import langsmith
from langchain.agents import AgentState, create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    HumanInTheLoopMiddleware,
    ToolRetryMiddleware,
)
from langchain.agents.structured_output import ToolStrategy
from langchain.tools import InjectedState, ToolRuntime
from langchain_core.callbacks import AsyncCallbackHandler, get_usage_metadata_callback
from langchain_core.language_models import BaseChatModel, FakeMessagesListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import (
    InjectedToolCallId,
    StructuredTool,
    Tool,
    ToolException,
    tool,
)
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command, interrupt

from headstart import (
    EventLog,
    Message,
    ModelRequest,
    TextDelta,
    ToolCall,
    current_context,
    dump_event,
)
from headstart.adapters.langchain import Speculation
from headstart.predictors import Prediction
from headstart.testing import AdapterConformance, Fault, Outcome, ScriptedModel

asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)


@pytest.fixture(autouse=True)
def traces_without_threads(request):
    """Langsmith has a thread for each hook of a middleware, traced or not."""

    async def inline(default, context, function, /, *args, **kwargs):
        return context.run(function, *args, **kwargs)

    if not request.node.get_closest_marker("real_time"):
        langsmith.set_runtime_overrides(aio_to_thread=inline)
    yield
    langsmith.set_runtime_overrides()


class Scripted(BaseChatModel):
    """A chat model that asks a `ScriptedModel`."""

    script: ScriptedModel

    @property
    def _llm_type(self):
        return "scripted"

    def bind_tools(self, tools, **kwargs):
        kwargs["tools"] = [convert_to_openai_tool(each) for each in tools]
        return self.bind(**kwargs)

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        response = asyncio.run(self._respond(messages, lambda delta: None))
        return ChatResult(generations=[ChatGeneration(message=whole(response))])

    async def _respond(self, messages, on_delta):
        if hasattr(self.script, "names"):
            self.script.names.append([message.name for message in messages])
        request = ModelRequest(list(map(read_message, messages)))
        return await self.script.respond(request, on_delta)

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
        response = await self._respond(messages, lambda delta: None)
        return ChatResult(generations=[ChatGeneration(message=whole(response))])

    async def _astream(self, messages, stop=None, run_manager=None, **kwargs):
        pieces = asyncio.Queue()
        task = asyncio.create_task(self._respond(messages, pieces.put_nowait))
        task.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (delta := await pieces.get()) is not None:
                yield piece(delta)
            used = usage(await task)
            yield ChatGenerationChunk(message=AIMessageChunk("", usage_metadata=used))
        finally:
            task.cancel()


def read_message(message):
    role = {"human": "user", "ai": "assistant", "tool": "tool", "system": "system"}
    calls = [
        ToolCall(call["id"], call["name"], json.dumps(call["args"]))
        for call in getattr(message, "tool_calls", ())
    ]
    return Message(
        role=role[message.type],
        content=message.text,
        tool_calls=tuple(calls),
        tool_call_id=getattr(message, "tool_call_id", None),
    )


def usage(response):
    used = response.usage
    return {
        "input_tokens": used.input_tokens,
        "output_tokens": used.output_tokens,
        "total_tokens": used.input_tokens + used.output_tokens,
    }


def whole(response):
    calls = [
        {"id": call.id, "name": call.name, "args": json.loads(call.arguments)}
        for call in response.tool_calls
    ]
    return AIMessage(
        response.text,
        tool_calls=calls,
        usage_metadata=usage(response),
        response_metadata={"model_name": "scripted"},
    )


def piece(delta):
    if isinstance(delta, TextDelta):
        return ChatGenerationChunk(message=AIMessageChunk(delta.text))
    chunk = {
        "index": delta.index,
        "id": delta.id,
        "name": delta.name,
        "args": delta.arguments,
        "type": "tool_call_chunk",
    }
    return ChatGenerationChunk(message=AIMessageChunk("", tool_call_chunks=[chunk]))


def as_tool(function, **options):
    @functools.wraps(function)
    async def run(*args, **kwargs):
        try:
            return await function(*args, **kwargs)
        except LookupError as error:
            raise ToolException(f"LookupError: {error}") from error

    return StructuredTool.from_function(
        coroutine=run, handle_tool_error=True, name=function.__name__, **options
    )


def told(message):
    """What can be compared of a message."""
    return {
        "type": message.type,
        "text": message.text,
        "calls": getattr(message, "tool_calls", None),
        "status": getattr(message, "status", None),
        "usage": getattr(message, "usage_metadata", None),
        "name": message.name,
    }


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


class TestLangchain(AdapterConformance):
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
                *([speculation.middleware()] if speculation else []),
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


class Rig:
    """An agent, a script for its model, and what was seen of a run."""

    def __init__(
        self, script, tools, *, effects=None, expects=(), delay=1.0, **options
    ):
        agent = options.pop("agent", {})
        middleware = options.pop("middleware", [])
        self.model = ScriptedModel(script, delay=delay, seconds_per_delta=0.125)
        self.log = EventLog()
        self.speculation = Speculation(
            effects=effects or {},
            predictors=[Guesses(expects)],
            sink=self.log,
            **options,
        )
        self.agent = create_agent(
            Scripted(script=self.model),
            tools,
            middleware=[*middleware, self.speculation.middleware()],
            **agent,
        )
        self.seconds = 0.0

    async def run(self, given="Go on.", *, config=None, early=True):
        """The texts of the messages, with headstart or without."""
        given = {"messages": [HumanMessage(given)]} if isinstance(given, str) else given
        began = anyio.current_time()
        if early:
            async with self.speculation.run():
                self.state = await self.agent.ainvoke(given, config)
        else:
            self.state = await self.agent.ainvoke(given, config)
        self.seconds = anyio.current_time() - began
        return [message.text for message in self.state["messages"]]

    def happened(self, *kinds):
        names = [json.loads(dump_event(event))["event"] for event in self.log.events]
        return [name for name in names if name in kinds] if kinds else names

    @property
    def launches(self):
        return len(self.happened("call_launched"))

    @property
    def adopted(self):
        return self.happened("speculation_adopted", "turn_confirmed")


class Guesses:
    """Expects calls once the user has spoken."""

    def __init__(self, calls):
        self.calls = calls

    async def predict(self, conversation, /):
        if conversation.messages[-1].role != "user":
            return []
        return [
            Prediction(tool=name, arguments=arguments, probability=0.9)
            for name, arguments in self.calls
        ]


LOOK = ("look", {"row": 7})
CHANGE = ("change", {"row": 7})
effects_of = {"look": "READ", "change": "GATED"}


class Rows:
    """A world of two tools: one that reads it, and one that changes it."""

    def __init__(self, says="changed"):
        self.changes = []
        self.looks = 0

        @tool
        async def look(row: int) -> str:
            """Look at a row."""
            self.looks += 1
            await anyio.sleep(1)
            return f"row {row}"

        @tool
        async def change(row: int) -> str:
            """Change a row."""
            if context := current_context():
                context.early_result(says)
                await context.barrier.wait()
            await anyio.sleep(1.5)
            self.changes.append(row)
            return "changed"

        self.tools = [look, change]


@asyncio_only
async def test_a_read_that_was_expected_costs_no_time():
    rig = Rig([[LOOK], "Done."], Rows().tools, effects=effects_of, expects=[LOOK])
    assert await rig.run(early=False) == ["Go on.", "", "row 7", "Done."]
    slow = rig.seconds
    assert await rig.run() == ["Go on.", "", "row 7", "Done."]
    assert rig.seconds == slow - 1
    assert rig.adopted == ["speculation_adopted"]


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


class Heard(AsyncCallbackHandler):
    def __init__(self):
        self.heard = []

    async def on_chat_model_start(self, serialized, messages, *, run_id, **kwargs):
        self.heard.append(("model", len(messages[0])))

    async def on_llm_end(self, response, **kwargs):
        self.heard.append(("answer", response.generations[0][0].message.usage_metadata))

    async def on_tool_start(self, serialized, text, *, inputs=None, **kwargs):
        self.heard.append(("tool", serialized["name"], inputs))

    async def on_tool_end(self, output, **kwargs):
        self.heard.append(("result", output.content))


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


class Topic(AgentState):
    topic: str


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


class Weather(BaseModel):
    """The weather."""

    sky: str


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
async def test_effects_may_stand_in_a_tools_metadata():
    rows = Rows()
    rows.tools[0].metadata = {"headstart": {"effect": "READ", "reads": ["row:{row}"]}}
    rig = Rig([[LOOK], "Done."], rows.tools, expects=[LOOK])
    await rig.run()
    assert rig.adopted == ["speculation_adopted"]


@asyncio_only
async def test_a_models_error_is_raised_and_nothing_of_its_answer_runs():
    rows = Rows()
    broken = Fault(response=[CHANGE, "More."], after=5, error=ConnectionError("gone"))
    rig = Rig([broken], rows.tools, effects=effects_of, stream=True)
    with pytest.raises(ConnectionError, match="gone"):
        await rig.run()
    assert rows.changes == []


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


class Router(Scripted):
    """Asks another model inside of a request, and says more than it should."""

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
        inner = Scripted(script=ScriptedModel(lambda request: "Anyone.", delay=1))
        await inner.ainvoke(messages)
        if run_manager is not None:
            await run_manager.on_llm_new_token("a token")
        return await super()._agenerate(messages, stop, run_manager, **kwargs)


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


@asynccontextmanager
async def nothing():
    yield


def plain(part):
    """What can be compared of a streamed part: no identifiers, and no times."""
    if isinstance(part, (list, tuple)):
        return [plain(each) for each in part]
    if isinstance(part, dict):
        left_out = ("langgraph_checkpoint_ns", "checkpoint_ns", "thread_id", "versions")
        return {
            name: plain(value)
            for name, value in part.items()
            if name not in left_out and not name.endswith("_ns")
        }
    return told(part) if hasattr(part, "type") and hasattr(part, "text") else part
