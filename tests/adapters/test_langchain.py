"""Headstart in langchain's agents and langgraph's graphs."""

import asyncio
import functools
import json

import anyio
import pytest

pytest.importorskip("langchain", reason="the extra langchain is not installed")
pytest.importorskip("langgraph", reason="the extra langchain is not installed")

from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import StructuredTool, ToolException
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from headstart import Message, ModelRequest, TextDelta, ToolCall
from headstart.adapters.langchain import Speculation
from headstart.testing import AdapterConformance, Outcome, ScriptedModel

asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)


class Scripted(BaseChatModel):
    """A chat model that asks a `ScriptedModel`."""

    script: ScriptedModel
    model_config = {"arbitrary_types_allowed": True}

    @property
    def _llm_type(self):
        return "scripted"

    def bind_tools(self, tools, **kwargs):
        return self.bind(tools=[convert_to_openai_tool(each) for each in tools])

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        response = anyio.run(self._respond, messages, lambda delta: None)
        return ChatResult(generations=[ChatGeneration(message=whole(response))])

    async def _respond(self, messages, on_delta):
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
    return AIMessage(response.text, tool_calls=calls, usage_metadata=usage(response))


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
