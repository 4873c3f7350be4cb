"""A loop of one's own over `openai` chat completions, with and without headstart.

The SDK is the real one; what it talks to is a function in this file.

python examples/openai_chat.py
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
import openai

from headstart import Effect, Session, tool
from headstart.adapters.openai import ChatCompletions
from headstart.predictors import RulePredictor, rule
from headstart.testing import run_virtual

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@tool(effect=Effect.READ, reads=["order:{order_id}"])
async def get_order(order_id: int) -> str:
    """An order's state."""
    await anyio.sleep(1)
    return f"Order {order_id} is on its way."


async def converse(chat: ChatCompletions, session: Session, question: str) -> str:
    messages: list[Any] = [{"role": "user", "content": question}]
    while True:
        request = chat.request(messages, session.tools)
        response = await session.ask(request, chat.respond)
        messages += chat.reply(response)
        if not response.tool_calls:
            return response.text
        results = await session.call_all(response.tool_calls)
        messages += chat.results(response.tool_calls, results)


class Answer(httpx2.AsyncByteStream):
    """What the endpoint answers: a call at first, and then what came of it."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        function = {"name": "get_order", "arguments": '{"order_id": 7}'}
        call = {"index": 0, "id": "call_1", "type": "function", "function": function}
        last = messages[-1]
        if last["role"] == "tool":
            self.deltas = [{"content": last["content"]}]
        else:
            self.deltas = [{"content": "Let me see."}, {"tool_calls": [call]}]
        self.reason = "stop" if last["role"] == "tool" else "tool_calls"
        self.events = self.write()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self.events

    async def write(self) -> AsyncIterator[bytes]:
        for delta in self.deltas:
            await anyio.sleep(0.5)
            yield self.chunk(delta, None)
        yield self.chunk({}, self.reason)
        yield b"data: [DONE]\n\n"

    def chunk(self, delta: dict[str, Any], reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        whole = {"id": "1", "object": "chat.completion.chunk", "choices": [choice]}
        return f"data: {json.dumps(whole)}\n\n".encode()


async def endpoint(request: httpx2.Request) -> httpx2.Response:
    messages = json.loads(request.content)["messages"]
    headers = {"content-type": "text/event-stream"}
    return httpx2.Response(200, headers=headers, stream=Answer(messages))


async def main(*, speculate: bool) -> None:
    rules = RulePredictor([rule(r"order (?P<order_id>\d+)", "get_order")])
    transport = httpx2.MockTransport(endpoint)
    async with (
        httpx2.AsyncClient(transport=transport) as http,
        openai.AsyncOpenAI(api_key="none", http_client=http) as client,
        Session([get_order], predictors=[rules], speculate=speculate) as session,
    ):
        began = anyio.current_time()
        chat = ChatCompletions(client, model="some-model")
        text = await converse(chat, session, "Where is order 7?")
        seconds = anyio.current_time() - began
    print(f"{'with' if speculate else 'without':>7}: {seconds:.1f} s  {text}")


async def both() -> None:
    await main(speculate=False)
    await main(speculate=True)


run_virtual(both)
