"""Agents of langchain with a scripted model, for the tests of their adapter."""

import asyncio
import functools
import json
from contextlib import asynccontextmanager

import anyio
import pytest

pytest.importorskip("langchain", reason="the extra langchain is not installed")
pytest.importorskip("langgraph", reason="the extra langchain is not installed")

import langsmith
from langchain.agents import create_agent
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import (
    StructuredTool,
    ToolException,
    tool,
)
from langchain_core.utils.function_calling import convert_to_openai_tool

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
from headstart.testing import ScriptedModel

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
