"""The adapter for the OpenAI Agents SDK: the suite of all adapters, and the SDK's own ways.

Over 400 lines: a test a feature, on a few shared tools and one scripted model.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest

pytest.importorskip("agents", reason="needs headstart[openai-agents]")

import agents
from agents import Agent, RunConfig, Runner
from agents.testing import assistant_message, function_call
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionCallArgumentsDeltaEvent,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
    ResponseTextDeltaEvent,
)
from openai.types.responses.response_usage import ResponseUsage

from headstart import CallDelta, ModelRequest, TextDelta, ToolResult, Usage
from headstart.adapters._openai_agents._items import as_items, read_items
from headstart.adapters.openai_agents import Speculation
from headstart.testing import AdapterConformance
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
            result = await Runner.run(agent, scene.user, run_config=config)
            while result.interruptions:
                state = result.to_state()
                for each in result.interruptions:
                    (state.approve if scene.approve else state.reject)(each)
                result = await Runner.run(agent, state, run_config=config)
        else:
            result = Runner.run_streamed(agent, scene.user, run_config=config)
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
