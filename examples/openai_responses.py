"""A loop of one's own over `openai` responses, with and without headstart.

The SDK is the real one; what it talks to is a function in this file.

python examples/openai_responses.py
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
import openai

from headstart import Effect, Session, tool
from headstart.adapters.openai import Responses
from headstart.predictors import RulePredictor, rule
from headstart.testing import run_virtual

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@tool(effect=Effect.READ, reads=["order:{order_id}"])
async def get_order(order_id: int) -> str:
    """An order's state."""
    await anyio.sleep(1)
    return f"Order {order_id} is on its way."


async def converse(api: Responses, session: Session, question: str) -> str:
    items: list[Any] = [{"role": "user", "content": question}]
    while True:
        request = api.request(items, session.tools)
        response = await session.ask(request, api.respond)
        items += api.reply(response)
        if not response.tool_calls:
            return response.text
        results = await session.call_all(response.tool_calls)
        items += api.results(response.tool_calls, results)


CALL = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "get_order"}


class Answer(httpx2.AsyncByteStream):
    """What the endpoint answers: a call at first, and then what came of it."""

    def __init__(self, items: list[dict[str, Any]]) -> None:
        self.told = items[-1].get("output")
        self.output: list[dict[str, Any]] = []

    async def __aiter__(self) -> AsyncIterator[bytes]:
        await anyio.sleep(0.5)
        if self.told is None:
            arguments = '{"order_id": 7}'
            yield self.event("output_item.added", item={**CALL, "arguments": ""})
            await anyio.sleep(0.5)
            yield self.event("function_call_arguments.delta", delta=arguments)
            self.output.append({**CALL, "arguments": arguments})
        else:
            part: dict[str, Any] = {
                "type": "output_text",
                "text": self.told,
                "annotations": [],
            }
            yield self.event("output_text.delta", delta=self.told, content_index=0)
            said = {"type": "message", "id": "msg_1", "role": "assistant"}
            self.output.append({**said, "content": [part]})
        response = {"id": "resp_1", "status": "completed", "output": self.output}
        yield self.event("completed", response=response)

    def event(self, kind: str, **fields: Any) -> bytes:
        whole = {"type": f"response.{kind}", "output_index": 0, **fields}
        return f"data: {json.dumps(whole)}\n\n".encode()


async def endpoint(request: httpx2.Request) -> httpx2.Response:
    items = json.loads(request.content)["input"]
    headers = {"content-type": "text/event-stream"}
    return httpx2.Response(200, headers=headers, stream=Answer(items))


async def main(*, speculate: bool) -> None:
    rules = RulePredictor([rule(r"order (?P<order_id>\d+)", "get_order")])
    transport = httpx2.MockTransport(endpoint)
    async with (
        httpx2.AsyncClient(transport=transport) as http,
        openai.AsyncOpenAI(api_key="none", http_client=http) as client,
        Session([get_order], predictors=[rules], speculate=speculate) as session,
    ):
        began = anyio.current_time()
        api = Responses(client, model="some-model")
        text = await converse(api, session, "Where is order 7?")
        seconds = anyio.current_time() - began
    print(f"{'with' if speculate else 'without':>7}: {seconds:.1f} s  {text}")


async def both() -> None:
    await main(speculate=False)
    await main(speculate=True)


run_virtual(both)
