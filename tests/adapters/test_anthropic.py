"""A loop of one's own over the `anthropic` SDK."""

import json

import pytest

pytest.importorskip("anthropic", reason="needs headstart[anthropic]")

import anthropic

from headstart import ToolCall, Usage
from headstart.adapters.anthropic import Messages

from .endpoints import Blocks
from .loops import Loop


def connect(http):
    return anthropic.AsyncAnthropic(
        base_url="http://model", api_key="k", http_client=http, max_retries=0
    )


class TestMessages(Loop):
    dialect = Blocks

    def connect(self, http, *, stream):
        return Messages(connect(http), model="m", max_tokens=99, stream=stream)

    async def ask_bare(self, client, messages, tools, say, *, stream):
        asked = {"model": "m", "max_tokens": 99, "messages": messages, "tools": tools}
        if stream:
            async with client.messages.stream(**asked) as events:
                async for text in events.text_stream:
                    say(text)
                message = await events.get_final_message()
        else:
            message = await client.messages.create(**asked)
        blocks = [block.to_dict() for block in message.content]
        for block in blocks:
            block.pop("parsed_output", None)
        calls = [
            ToolCall(block["id"], block["name"], json.dumps(block["input"]))
            for block in blocks
            if block["type"] == "tool_use"
        ]
        usage = Usage(
            input_tokens=message.usage.input_tokens,
            output_tokens=message.usage.output_tokens,
        )
        return [{"role": "assistant", "content": blocks}], calls, usage
