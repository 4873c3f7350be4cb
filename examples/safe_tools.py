"""A careless tool, caught by the test kit, and made safe by a seam in one line.

python examples/safe_tools.py
"""

from __future__ import annotations

import anyio
import httpx2

from headstart import Effect, ToolContext, tool
from headstart.effects.httpx import hold_requests
from headstart.testing import HTTPSink, assert_speculation_safe


@tool(effect=Effect.GATED)
async def post_update(ctx: ToolContext[httpx2.AsyncClient], text: str) -> str:
    """Post an update to the incident's channel."""
    channel = await ctx.deps.get("/incidents/7/channel")
    await ctx.deps.post(f"/channels/{channel.json()['id']}/messages", json=text)
    return "posted"  # declared GATED, and it has never waited for its barrier


async def main() -> None:
    with HTTPSink(answer={"id": "inc-7"}) as sink:
        async with httpx2.AsyncClient(base_url=sink.url, trust_env=False) as client:
            arguments = {"text": "All clear."}
            try:
                await assert_speculation_safe(
                    post_update, arguments, deps=client, observe=sink
                )
            except AssertionError as error:
                print(error, end="\n\n")
            else:
                raise SystemExit("A careless tool was not caught.")

            hold_requests(client)  # the one line

            safety = await assert_speculation_safe(
                post_update, arguments, deps=client, observe=sink
            )
            print(safety)


anyio.run(main)
