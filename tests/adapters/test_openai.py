"""Loops of one's own over the `openai` SDK."""

import pytest

pytest.importorskip("openai", reason="needs headstart[openai]")

import openai
from openai.lib.streaming.chat import ChatCompletionStreamState

from headstart import ToolCall, Usage
from headstart.adapters.openai import ChatCompletions, Responses

from .endpoints import Chat, Items
from .loops import Loop


def connect(http):
    return openai.AsyncOpenAI(
        base_url="http://model/v1", api_key="k", http_client=http, max_retries=0
    )


class TestChatCompletions(Loop):
    dialect = Chat

    def connect(self, http, *, stream):
        return ChatCompletions(connect(http), model="m", stream=stream)

    async def ask_bare(self, client, messages, tools, say, *, stream):
        ask = client.chat.completions.create
        if stream:
            state = ChatCompletionStreamState()
            options = {"include_usage": True}
            async with await ask(
                model="m",
                messages=messages,
                tools=tools,
                stream=True,
                stream_options=options,
            ) as chunks:
                async for chunk in chunks:
                    state.handle_chunk(chunk)
                    if chunk.choices and chunk.choices[0].delta.content:
                        say(chunk.choices[0].delta.content)
            completion = state.get_final_completion()
        else:
            completion = await ask(model="m", messages=messages, tools=tools)
        said = completion.choices[0].message
        calls = [
            ToolCall(call.id, call.function.name, call.function.arguments)
            for call in said.tool_calls or ()
        ]
        message = {"role": "assistant", "content": said.content}
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in calls
        ]
        usage = completion.usage
        return (
            [message],
            calls,
            Usage(
                input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens
            ),
        )


class TestResponses(Loop):
    dialect = Items

    def connect(self, http, *, stream):
        return Responses(connect(http), model="m", stream=stream)

    def tidy(self, messages):
        return messages

    async def ask_bare(self, client, messages, tools, say, *, stream):
        if stream:
            async with client.responses.stream(
                model="m", input=messages, tools=tools
            ) as events:
                async for event in events:
                    if event.type == "response.output_text.delta":
                        say(event.delta)
                response = await events.get_final_response()
        else:
            response = await client.responses.create(
                model="m", input=messages, tools=tools
            )
        calls = [
            ToolCall(item.call_id, item.name, item.arguments)
            for item in response.output
            if item.type == "function_call"
        ]
        items = []
        for item in response.output:
            dumped = item.to_dict()
            dumped.pop("parsed_arguments", None)
            for part in dumped.get("content") or ():
                part.pop("parsed", None)
            items.append(dumped)
        usage = response.usage
        return (
            items,
            calls,
            Usage(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens),
        )
