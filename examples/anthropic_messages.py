"""A loop of one's own over `anthropic` messages, with and without headstart.

The SDK is the real one; what it talks to is a function in this file.

python examples/anthropic_messages.py
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import httpx2

from headstart import Effect, Session, tool
from headstart.adapters.anthropic import Messages
from headstart.predictors import RulePredictor, rule
from headstart.testing import run_virtual

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@tool(effect=Effect.READ, reads=["order:{order_id}"])
async def get_order(order_id: int) -> str:
    """An order's state."""
    await anyio.sleep(1)
    return f"Order {order_id} is on its way."


async def converse(claude: Messages, session: Session, question: str) -> str:
    messages: list[Any] = [{"role": "user", "content": question}]
    while True:
        request = claude.request(messages, session.tools)
        response = await session.ask(request, claude.respond)
        messages += claude.reply(response)
        if not response.tool_calls:
            return response.text
        results = await session.call_all(response.tool_calls)
        messages += claude.results(response.tool_calls, results)


class Answer(httpx2.AsyncByteStream):
    """What the endpoint answers: a call at first, and then what came of it."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        last = messages[-1]["content"]
        self.told = None if isinstance(last, str) else last[0]["content"]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        await anyio.sleep(0.5)
        usage = {"input_tokens": 10, "output_tokens": 1}
        start: dict[str, Any] = {
            "id": "msg_1",
            "role": "assistant",
            "content": [],
            "usage": usage,
        }
        yield self.event("message_start", message=start)
        if self.told is None:
            block: dict[str, Any] = {"type": "tool_use", "id": "toolu_1", "input": {}}
            block["name"] = "get_order"
            delta = {"type": "input_json_delta", "partial_json": '{"order_id": 7}'}
        else:
            block = {"type": "text", "text": ""}
            delta = {"type": "text_delta", "text": self.told}
        yield self.event("content_block_start", index=0, content_block=block)
        await anyio.sleep(0.5 if self.told is None else 0)
        yield self.event("content_block_delta", index=0, delta=delta)
        yield self.event("content_block_stop", index=0)
        end = {"stop_reason": "tool_use" if self.told is None else "end_turn"}
        yield self.event("message_delta", delta=end, usage={"output_tokens": 20})
        yield self.event("message_stop")

    def event(self, kind: str, **fields: Any) -> bytes:
        whole = json.dumps({"type": kind, **fields})
        return f"event: {kind}\ndata: {whole}\n\n".encode()


async def endpoint(request: httpx2.Request) -> httpx2.Response:
    messages = json.loads(request.content)["messages"]
    headers = {"content-type": "text/event-stream"}
    return httpx2.Response(200, headers=headers, stream=Answer(messages))


async def main(*, speculate: bool) -> None:
    rules = RulePredictor([rule(r"order (?P<order_id>\d+)", "get_order")])
    transport = httpx2.MockTransport(endpoint)
    async with (
        httpx2.AsyncClient(transport=transport) as http,
        anthropic.AsyncAnthropic(api_key="none", http_client=http) as client,
        Session([get_order], predictors=[rules], speculate=speculate) as session,
    ):
        began = anyio.current_time()
        claude = Messages(client, model="some-model", max_tokens=1000)
        text = await converse(claude, session, "Where is order 7?")
        seconds = anyio.current_time() - began
    print(f"{'with' if speculate else 'without':>7}: {seconds:.1f} s  {text}")


async def both() -> None:
    await main(speculate=False)
    await main(speculate=True)


run_virtual(both)
