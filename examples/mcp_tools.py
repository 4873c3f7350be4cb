"""The tools of an MCP server in an agent, with and without headstart.

The server runs in this process, behind the SDK's in-memory transport.

python examples/mcp_tools.py
"""

from __future__ import annotations

import anyio
from mcp import Client
from mcp.server.mcpserver import MCPServer
from mcp_types import ToolAnnotations

from headstart import Agent, Effect, ToolContext, tool
from headstart.adapters.mcp import mcp_tools
from headstart.predictors import RulePredictor, rule
from headstart.testing import ScriptedModel, run_virtual

server = MCPServer("shop")
shipped: list[int] = []


@server.tool(annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False))
async def get_order(order_id: int) -> str:
    """An order's state."""
    await anyio.sleep(1)
    return f"Order {order_id} is packed."


@server.tool()
async def ship_order(order_id: int) -> str:
    """Ship an order."""
    shipped.append(order_id)
    return "shipped"


async def main(*, speculate: bool) -> None:
    async with Client(server, mode="legacy") as client:
        theirs = await mcp_tools(client, trusted=True)  # of hints: get_order only reads

        @tool(effect=Effect.GATED, writes=["order:{order_id}"])
        async def send(ctx: ToolContext, order_id: int) -> str:
            """Print a label, and ship an order."""
            await anyio.sleep(1)  # the label
            ctx.early_result("sent")
            await theirs.call_tool("ship_order", {"order_id": order_id})  # is held
            return "sent"

        rules = RulePredictor(
            [
                rule(r"order (?P<order_id>\d+)", "get_order"),
                rule(r"order (?P<order_id>\d+)", "send"),
            ]
        )
        order = {"order_id": 7}
        answers = [[("get_order", order)], [("send", order)], "It is on its way."]
        agent = Agent(
            ScriptedModel(answers, delay=1), [*theirs, send], predictors=[rules]
        )
        async with agent.open_session(speculate=speculate) as session:
            began = anyio.current_time()
            result = await agent.run("Send order 7.", session=session)
            seconds = anyio.current_time() - began
    print(f"{'with' if speculate else 'without':>7}: {seconds:.1f} s  {result.text}")


async def both() -> None:
    await main(speculate=False)
    await main(speculate=True)
    print(f"shipped: {shipped}")


run_virtual(both)
