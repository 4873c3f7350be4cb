"""Tools of MCP servers in this process, over the SDK's own transports."""

from functools import wraps

import anyio
import anyio.lowlevel
import pytest

pytest.importorskip("mcp", reason="needs headstart[mcp]")

from mcp import Client
from mcp.server.mcpserver import MCPServer
from mcp_types import CallToolResult, TextContent

from headstart import Agent, TextDelta
from headstart.adapters.mcp import mcp_tools
from headstart.testing import AdapterConformance
from headstart.testing._conformance import Outcome

ROUNDS = 50


def serve(stage):
    server = MCPServer("stage", log_level="CRITICAL")
    for each in stage.tools:
        server.add_tool(told(each.function), name=each.name)
    return server


def told(function):
    """A failure as a server tells it, and in the words of `Agent`, which count as tokens."""

    @wraps(function)
    async def tool(**arguments):
        try:
            return await function(**arguments)
        except LookupError as error:
            said = TextContent(text=f"{type(error).__name__}: {error}")
            return CallToolResult(content=[said], is_error=True)

    return tool


class Tied:
    """A model whose last word takes some rounds of the event loop.

    The answer of a server takes rounds as well, and no time: where the two come in the
    same instant, as they do on this stage, who is first is to be as without a server.
    """

    def __init__(self, model):
        self._model = model

    async def respond(self, request, on_delta):
        response = await self._model.respond(request, on_delta)
        for _ in range(ROUNDS):
            await anyio.lowlevel.checkpoint()
        return response


class TestMCP(AdapterConformance):
    """Our own agent, with a server that runs the tools of the stage."""

    mode = "legacy"

    async def run(self, scene, stage, model, options):
        async def approve(call, deps):
            return scene.approve

        options = {**(options or {"speculate": False})}
        effects = {**options.pop("effects", {}), "erase": {"approval": True}}
        sink, speculate = options.pop("sink", None), options.pop("speculate")
        outcome = Outcome()
        async with Client(serve(stage), mode=self.mode) as client:
            tools = await mcp_tools(client, effects=effects, gated_in_server=["change"])
            agent = Agent(Tied(model), tools, approve=approve, **options)
            async with agent.open_session(sink=sink, speculate=speculate) as session:
                if not scene.stream:
                    result = await agent.run(scene.user, session=session)
                else:
                    async with agent.stream(scene.user, session=session) as stream:
                        async for item in stream:
                            if isinstance(item, TextDelta):
                                outcome.seen.append(item.text)
                                if len(outcome.seen) == scene.read:
                                    return outcome
                    result = stream.result
        outcome.messages = [message.to_dict() for message in result.messages]
        outcome.usage = result.usage
        return outcome


class TestMCPInProcess(TestMCP):
    """The same, over the transport without streams."""

    mode = "auto"
