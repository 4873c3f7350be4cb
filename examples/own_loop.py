"""The three primitives in an agent loop of your own, in virtual time, without a key.

python examples/own_loop.py
"""

from __future__ import annotations

import anyio

from headstart import (
    Effect,
    Message,
    ModelRequest,
    ModelResponse,
    ResultSpeculator,
    ToolCallSpeculator,
    ToolContext,
    ToolResult,
    tool,
)
from headstart.testing import ScriptedModel, run_virtual

posted: list[str] = []


@tool(effect=Effect.GATED)
async def post_update(ctx: ToolContext[None], text: str) -> str:
    """Post a status update."""
    await anyio.sleep(1.0)  # look up the channel, check the permission
    await ctx.barrier.wait()  # nothing is posted before the model has asked for it
    await anyio.sleep(2.0)
    posted.append(text)
    return "posted"


model = ScriptedModel([[("post_update", {"text": "All clear."})], "Done."], delay=1.5)


async def ask_model(request: ModelRequest) -> ModelResponse:
    return await model.respond(request, lambda delta: None)


async def main() -> None:
    request = ModelRequest([Message(role="user", content='Post "All clear."')])
    async with ToolCallSpeculator(post_update, '{"text": "All clear."}') as guess:
        response = await ask_model(request)  # the tool prepares itself meanwhile
        print(f"{anyio.current_time():4.1f} s  asked for; posted so far: {posted}")
        call = response.tool_calls[0]
        if not guess.matches(call):
            raise SystemExit("The guess was wrong: run the call yourself.")
        following = request.extended([response.message])
        async with ResultSpeculator(following, [call], ask_model) as ahead:
            ahead.receive(0, ToolResult("posted"))  # what it will be, as far as we know
            result = ToolResult.from_value(await guess.adopt())
            reply = await ahead.resolve([result])  # written while the update was posted
    print(f"{anyio.current_time():4.1f} s  posted: {posted}")
    print(f"{anyio.current_time():4.1f} s  {reply.text if reply else 'ask again'}")


run_virtual(main)
