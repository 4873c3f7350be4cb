"""Held tool calls of MCP clients, as the server sees them."""

import contextlib
import sys
from contextlib import asynccontextmanager
from typing import Annotated

import anyio
import pytest
from pydantic import BaseModel

pytest.importorskip("mcp", reason="needs headstart[mcp]")

from mcp import Client, StdioServerParameters
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.resolve import Elicit, Resolve
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CallToolRequest,
    CallToolRequestParams,
    ElicitResult,
    ToolAnnotations,
    ToolListChangedNotification,
)

from headstart import (
    Agent,
    ToolCallSpeculator,
    UsageError,
    WriteBarrier,
    WriteDenied,
)
from headstart.effects import SeamCounts
from headstart.effects.mcp import hold_tool_calls
from headstart.testing import ScriptedModel

from .calls import Guess, tool_of, until

READS = ToolAnnotations(read_only_hint=True)
modes = pytest.mark.parametrize("mode", ["legacy", "auto"])


class Name(BaseModel):
    name: str


class Shop:
    """A server, and what was done with it. `get_order` may lie of itself."""

    def __init__(self):
        self.done = []
        self.server = MCPServer("shop", log_level="CRITICAL")

        async def get_order(order: int) -> str:
            """An order."""
            self.done.append(("get_order", order))
            return f"order {order}"

        async def cancel(order: int) -> str:
            """Cancel an order."""
            self.done.append(("cancel", order))
            return f"cancelled {order}"

        self.get_order = get_order
        self.server.add_tool(get_order, annotations=READS)
        self.server.add_tool(cancel)

        @self.server.resource("shop://hours")
        async def hours() -> str:
            return "always"

        @self.server.prompt()
        async def greeting() -> str:
            return "Be polite."

    @asynccontextmanager
    async def open(self, *, mode="auto", session=False, **options):
        async with Client(self.server, mode=mode) as client:
            hold = hold_tool_calls(client.session if session else client, **options)
            yield (client.session if session else client), hold


def launch(function, **options):
    return ToolCallSpeculator(tool_of(function), "{}", **options)


def text_of(result):
    return result.content[0].text


async def is_held(hold, function):
    before = hold.seam.counts.held
    async with launch(function) as guess:
        await anyio.sleep(1.0)
        assert guess.ended or hold.seam.counts.holding == 1
    return hold.seam.counts.held > before


@modes
@pytest.mark.parametrize("session", [False, True])
async def test_a_held_tool_is_not_called_and_a_flushed_one_is_called_once(
    mode, session
):
    shop = Shop()
    options = {"mode": mode, "session": session, "reads": ["get_order"]}
    async with shop.open(**options) as (client, hold):

        async def post() -> str:
            await client.call_tool("get_order", {"order": 7})
            return text_of(await client.call_tool("cancel", {"order": 7}))

        async with launch(post) as guess:
            await anyio.sleep(1.0)
            assert shop.done == [("get_order", 7)]
            assert await guess.adopt() == "cancelled 7"
        assert await post() == "cancelled 7"
        assert hold.seam.counts == SeamCounts(held=1, flushed=1)
    assert shop.done == [("get_order", 7), ("cancel", 7)] * 2


@modes
@pytest.mark.parametrize("end", ["denied", "cancelled", "left"])
async def test_a_call_that_is_not_confirmed_leaves_nothing(mode, end):
    shop = Shop()
    async with shop.open(mode=mode) as (client, hold):

        async def post() -> str:
            return text_of(await client.call_tool("cancel", {"order": 7}))

        async with launch(post) as guess:
            await anyio.sleep(1.0)
            if end == "denied":
                guess.barrier.deny("no")
                await guess.wait_until_ended()
                assert isinstance(guess.error, WriteDenied)
            elif end == "cancelled":
                guess.cancel()
        assert hold.seam.counts == SeamCounts(held=1, denied=1)
    assert shop.done == []


@pytest.mark.filterwarnings("ignore:.*:mcp.MCPDeprecationWarning")
async def test_lists_resources_prompts_and_pings_are_not_held():
    shop = Shop()
    async with shop.open(mode="legacy") as (client, hold):

        async def look() -> str:
            await client.list_tools()
            await client.list_resources()
            await client.list_resource_templates()
            await client.list_prompts()
            await client.read_resource("shop://hours")
            await client.get_prompt("greeting")
            await client.send_ping()
            return "looked"

        async with launch(look) as guess:
            await guess.wait_until_ended()
            assert (guess.error, guess.value) == (None, "looked")
        assert hold.seam.counts == SeamCounts()


@pytest.mark.filterwarnings("ignore:.*:mcp.MCPDeprecationWarning")
async def test_requests_that_set_something_are_held_and_so_is_a_raw_call():
    shop = Shop()
    async with shop.open(mode="legacy") as (client, hold):

        async def subscribe() -> str:
            await client.session.subscribe_resource("shop://hours")
            return "subscribed"

        async def call() -> str:
            params = CallToolRequestParams(name="cancel", arguments={"order": 7})
            request = CallToolRequest(params=params)
            await client.session.send_request(request, dict)
            return "cancelled"

        assert await is_held(hold, subscribe)
        assert await is_held(hold, call)
    assert shop.done == []


async def test_a_tool_is_no_read_because_its_server_says_so():
    shop = Shop()
    async with shop.open() as (client, hold):
        await hold.refresh()
        assert not hold.trusted

        async def read() -> str:
            return text_of(await client.call_tool("get_order", {"order": 7}))

        async with launch(read):
            await anyio.sleep(1.0)
            assert shop.done == []
        assert hold.seam.counts == SeamCounts(held=1, denied=1)
    assert shop.done == []


async def test_a_server_that_is_trusted_is_believed_once_it_was_listed():
    shop = Shop()
    async with shop.open(trusted=True) as (client, hold):

        async def read() -> str:
            return text_of(await client.call_tool("get_order", {"order": 7}))

        async def change() -> str:
            return text_of(await client.call_tool("cancel", {"order": 7}))

        assert await is_held(hold, read)
        await hold.refresh()
        assert hold.trusted
        assert not await is_held(hold, read)
        assert await is_held(hold, change)
        fingerprint = hold.fingerprint
    async with shop.open(trusted=fingerprint) as (client, hold):
        await hold.refresh()
        assert not await is_held(hold, read)
    assert shop.done == [("get_order", 7)] * 2


@pytest.mark.parametrize("seen", ["refresh", "listed by somebody", "news"])
async def test_another_schema_or_annotation_ends_trust(seen, caplog):
    shop = Shop()
    async with shop.open(trusted=True) as (client, hold):
        await hold.refresh()

        async def read() -> str:
            return text_of(await client.call_tool("get_order", {"order": 7}))

        assert not await is_held(hold, read)
        shop.server.remove_tool("get_order")
        shop.server.add_tool(
            shop.get_order,
            annotations=ToolAnnotations(read_only_hint=True, open_world_hint=True),
        )
        if seen == "refresh":
            await hold.refresh()
        elif seen == "news":
            await hold.receive(ToolListChangedNotification())
        else:
            await client.list_tools(cache_mode="refresh")
        assert not hold.trusted
        assert await is_held(hold, read)
        if seen != "news":
            assert "not those that were trusted" in caplog.text
        await hold.refresh()
        assert not hold.trusted
        hold.trust()
        assert not await is_held(hold, read)
    assert shop.done == [("get_order", 7)] * 2


async def test_news_of_a_list_that_is_the_same_suspend_trust_until_it_was_looked_at():
    async with Shop().open(trusted=True) as (_, hold):
        await hold.refresh()
        await hold.receive(ToolListChangedNotification())
        assert not hold.trusted
        await hold.receive("something else")
        await hold.refresh()
        assert hold.trusted


async def test_the_user_is_asked_nothing_before_a_call_is_confirmed():
    asked = []
    server = MCPServer("stage", log_level="CRITICAL")

    async def who(ctx: Context) -> Elicit[Name]:
        return Elicit("Who are you?", Name)

    @server.tool()
    async def greet(name: Annotated[Name, Resolve(who)]) -> str:
        """Greet."""
        return f"Hello, {name.name}."

    async def answer(context, params):
        asked.append(params.message)
        return ElicitResult(action="accept", content={"name": "Ann"})

    async with Client(server, elicitation_callback=answer) as client:
        hold = hold_tool_calls(client, reads=["greet"])

        async def post() -> str:
            return text_of(await client.call_tool("greet"))

        async with launch(post):
            await anyio.sleep(1.0)
        assert asked == []
        async with launch(post) as guess:
            await anyio.sleep(1.0)
            assert asked == []
            assert await guess.adopt() == "Hello, Ann."
        assert asked == ["Who are you?"]
        assert hold.seam.counts == SeamCounts(held=2, flushed=1, denied=1)


async def test_a_hold_that_takes_too_long_leaves_nothing_and_the_real_call_is_made():
    shop = Shop()
    async with shop.open(max_hold=3.0) as (client, hold):

        async def post() -> str:
            return text_of(await client.call_tool("cancel", {"order": 7}))

        model = ScriptedModel([[("post", {})], "Done."], delay=5.0)
        agent = Agent(model, [tool_of(post)], predictors=[Guess()])
        result = await agent.run("Go.")
        assert result.messages[-2].content == "cancelled 7"
        assert hold.seam.counts == SeamCounts(held=1, expired=1)
    assert shop.done == [("cancel", 7)]


async def test_a_time_limit_of_the_request_does_not_run_while_it_is_held():
    shop = Shop()
    async with shop.open() as (client, _):

        async def post() -> str:
            result = await client.call_tool(
                "cancel", {"order": 7}, read_timeout_seconds=2.0
            )
            return text_of(result)

        async with launch(post) as guess:
            await anyio.sleep(5.0)
            assert await guess.adopt() == "cancelled 7"
    assert shop.done == [("cancel", 7)]


async def test_a_confirmed_call_waits_for_its_conditions():
    shop = Shop()
    approval = WriteBarrier(name="approval")
    async with shop.open(max_hold=1.0) as (client, _):

        async def post() -> str:
            return text_of(await client.call_tool("cancel", {"order": 7}))

        async with launch(post, conditions=[approval]) as guess:
            guess.confirm()
            await anyio.sleep(5.0)
            assert shop.done == []
            approval.flush()
            assert await guess.wait() == "cancelled 7"


@pytest.mark.parametrize("right", [True, False])
async def test_an_agent_calls_what_was_guessed_right_once_and_nothing_else(right):
    shop = Shop()
    async with shop.open(reads=["get_order"]) as (client, hold):

        async def post() -> str:
            await client.call_tool("get_order", {"order": 7})
            return text_of(await client.call_tool("cancel", {"order": 7}))

        script = [[("post", {})], "Done."] if right else ["Done."]
        model = ScriptedModel(script, delay=5.0)
        agent = Agent(model, [tool_of(post)], predictors=[Guess()])
        result = await agent.run("Go.")
        assert result.text == "Done."
        assert hold.seam.counts.held == 1
    assert shop.done.count(("cancel", 7)) == right


async def test_real_calls_are_made_while_two_hundred_are_held():
    shop = Shop()
    async with shop.open() as (client, hold):

        async def post() -> str:
            return text_of(await client.call_tool("cancel", {"order": 7}))

        async def hold_one():
            async with launch(post):
                await leave.wait()

        leave = anyio.Event()
        async with anyio.create_task_group() as tasks:
            for _ in range(200):
                tasks.start_soon(hold_one)
            await anyio.sleep(1.0)
            assert hold.seam.counts.holding == 200
            assert await post() == "cancelled 7"
            leave.set()
    assert shop.done == [("cancel", 7)]


async def test_a_call_that_is_cancelled_at_any_step_while_it_is_held_leaves_nothing():
    shop = Shop()
    async with shop.open() as (client, hold):

        async def post() -> str:
            return text_of(await client.call_tool("cancel", {"order": 7}))

        for steps in range(12):
            async with launch(post) as guess:
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                guess.cancel()
                await guess.wait_until_ended()
        assert hold.seam.counts.holding == 0
    assert shop.done == []


SERVER = """
import sys
from mcp.server.mcpserver import MCPServer

server = MCPServer("shop", log_level="CRITICAL")

@server.tool()
async def cancel(order: int) -> str:
    with open(sys.argv[1], "a") as log:
        log.write(f"cancelled {order};")
    return f"cancelled {order}"

server.run("stdio")
"""


@pytest.mark.real_time
async def test_a_server_in_another_process_does_nothing_before_it_is_certain(tmp_path):
    log = tmp_path / "log"
    log.touch()
    program = StdioServerParameters(
        command=sys.executable, args=["-c", SERVER, str(log)]
    )
    async with Client(program) as client:
        hold = hold_tool_calls(client)

        async def post() -> str:
            return text_of(await client.call_tool("cancel", {"order": 7}))

        async with launch(post):
            await until(lambda: hold.seam.counts.holding)
        assert await client.list_tools()  # it has answered, and so has read all else
        assert log.read_text() == ""
        async with launch(post) as guess:
            await until(lambda: hold.seam.counts.holding)
            await client.list_tools()
            assert log.read_text() == ""
            assert await guess.adopt() == "cancelled 7"
    assert log.read_text() == "cancelled 7;"


async def test_a_server_that_cannot_list_its_tools_is_not_believed():
    shop = Shop()
    async with shop.open(trusted=True) as (client, hold):
        await hold.refresh()

        async def fail(*_, **__):
            raise MCPError(-32603, "No.")

        client.session.list_tools = fail
        with pytest.raises(MCPError):
            await hold.refresh()
        assert not hold.trusted


async def test_what_cannot_be_held_is_refused():
    client = Client(Shop().server)
    with pytest.raises(UsageError, match="connected"):
        hold_tool_calls(client)
    with pytest.raises(UsageError, match="ClientSession"):
        hold_tool_calls("a server")
    async with client:
        with pytest.raises(UsageError, match="list of tools"):
            hold_tool_calls(client, reads="get_order")
        hold_tool_calls(client)
        for each in (client, client.session):
            with pytest.raises(UsageError, match="already"):
                hold_tool_calls(each)


def test_a_missing_sdk_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp_types", None)
    monkeypatch.delitem(sys.modules, "headstart.effects.mcp")
    with contextlib.suppress(AttributeError):
        monkeypatch.delattr("headstart.effects.mcp")
    with pytest.raises(ImportError, match=r"headstart\[mcp\]"):
        import headstart.effects.mcp  # noqa: F401
