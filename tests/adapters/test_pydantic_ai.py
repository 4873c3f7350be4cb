"""The adapter for pydantic-ai: the suite of all adapters, and the framework's own ways."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

pytest.importorskip("pydantic_ai", reason="needs headstart[pydantic-ai]")

from pydantic_ai import Agent, DeferredToolResults, ModelRetry, Tool, ToolDenied
from pydantic_ai.capabilities import HandleDeferredToolCalls
from pydantic_ai.messages import (
    ModelMessagesTypeAdapter,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ToolCallPart,
)
from pydantic_ai.models.function import (
    DeltaToolCall,
    FunctionModel,
    FunctionStreamedResponse,
)
from pydantic_ai.usage import RequestUsage

from headstart import ModelRequest, TextDelta, Usage
from headstart.adapters._pydantic_ai._messages import read_messages
from headstart.adapters.pydantic_ai import Speculation
from headstart.testing import AdapterConformance
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


def text_of(event):
    if isinstance(event, PartStartEvent) and isinstance(event.part, TextPart):
        return event.part.content
    if isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
        return event.delta.content_delta
    return ""


class TestPydanticAI(AdapterConformance):
    """The suite of all adapters."""

    async def run(self, scene, stage, model, options):
        def decide(ctx, requests):
            decided = True if scene.approve else ToolDenied()
            return DeferredToolResults(
                approvals={call.tool_call_id: decided for call in requests.approvals}
            )

        capabilities = [HandleDeferredToolCalls(handler=decide)]
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
