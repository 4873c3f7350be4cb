"""Tool calls of an MCP client, to a server of this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mcp import Client
from mcp.server.mcpserver import MCPServer

from headstart.effects.mcp import hold_tool_calls

if TYPE_CHECKING:
    from contextlib import AsyncExitStack


async def open_pairs(stack: AsyncExitStack) -> dict[str, Any]:
    server = MCPServer("shop", log_level="CRITICAL")

    @server.tool()
    async def get_order(order: int) -> str:
        return f"order {order}"

    bare = await stack.enter_async_context(Client(server))
    held = await stack.enter_async_context(Client(server))
    hold_tool_calls(held, reads=["get_order"])

    async def without() -> None:
        await bare.call_tool("get_order", {"order": 7})

    async def with_it() -> None:
        await held.call_tool("get_order", {"order": 7})

    return {"a call": (without, with_it)}
