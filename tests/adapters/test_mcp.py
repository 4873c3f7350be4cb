"""Tools of MCP servers in this process, over the SDK's own transports."""

import sys
from contextlib import asynccontextmanager
from functools import wraps
from typing import Annotated

import anyio
import anyio.lowlevel
import pytest
from pydantic import BaseModel

pytest.importorskip("mcp", reason="needs headstart[mcp]")

from mcp import Client
from mcp.client.subscriptions import ToolsListChanged
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.resolve import Elicit, Resolve
from mcp_types import (
    BlobResourceContents,
    CallToolResult,
    ElicitResult,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
    ToolAnnotations,
    ToolListChangedNotification,
)

from headstart import (
    Agent,
    Effect,
    EventLog,
    Message,
    ModelRequest,
    Session,
    TextDelta,
    ToolContext,
    ToolFailed,
    ToolResult,
    UsageError,
    WriteBarrier,
    WriteDenied,
    current_context,
    tool,
)
from headstart._barrier import running_in
from headstart.adapters.mcp import mcp_tools, show
from headstart.predictors import Prediction
from headstart.testing import AdapterConformance, ScriptedModel
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
            agent = Agent(
                Tied(model),
                tools,
                approve=approve,
                max_turns=len(scene.responses),
                **options,
            )
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


READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)


class Name(BaseModel):
    name: str


class Shop:
    """A server of four tools, and what was done with it."""

    def __init__(self, *, mode="legacy", read=READS, **options):
        self.done = []
        self.cancelled = []
        self.mode = mode
        self.options = options
        self.server = MCPServer("shop", log_level="CRITICAL")
        self.messages = None

        async def get(order: int) -> str:
            """An order."""
            self.done.append(("get", order))
            try:
                await anyio.sleep(1)
            except anyio.get_cancelled_exc_class():
                self.cancelled.append(order)
                raise
            return f"order {order}"

        async def cancel(order: int) -> dict[str, int]:
            """Cancel an order."""
            self.done.append(("cancel", order))
            return {"cancelled": order}

        async def search(text: str) -> str:
            """Search the web."""
            self.done.append(("search", text))
            return text

        self.server.add_tool(get, annotations=read)
        self.server.add_tool(cancel)
        self.server.add_tool(search, annotations=ToolAnnotations(read_only_hint=True))

    @asynccontextmanager
    async def open(self, **options):
        async def handle(message):
            if self.messages is not None:
                await self.messages(message)

        async with Client(
            self.server, mode=self.mode, message_handler=handle, **self.options
        ) as client:
            yield client, await mcp_tools(client, **options)


both_modes = pytest.mark.parametrize("mode", ["legacy", "auto"])


def effects(tools):
    return {each.name: each.effect.name for each in tools}


def script(*calls):
    return ScriptedModel([list(calls), "Done."], delay=2, seconds_per_delta=0.25)


class Expect:
    def __init__(self, *calls):
        self.calls = calls

    async def predict(self, conversation):
        if conversation.messages[-1].role != "user":
            return []
        return [
            Prediction(tool=name, arguments=arguments, probability=0.9)
            for name, arguments in self.calls
        ]


GET = ("get", {"order": 7})
CANCEL = ("cancel", {"order": 7})


@both_modes
async def test_the_tools_of_a_server_serve_an_agent(mode):
    shop = Shop(mode=mode)
    async with shop.open() as (_, tools):
        result = await Agent(script(GET, CANCEL), tools).run("Go.")
    told = [each.content for each in result.messages if each.role == "tool"]
    assert told == ["order 7", '{\n  "cancelled": 7\n}']
    assert next(each.description for each in tools) == "An order."
    assert len(tools) == 3
    assert tools.tools[0].parameters["properties"]["order"]["type"] == "integer"


async def test_nothing_starts_early_on_the_word_of_a_server_that_is_not_trusted():
    shop = Shop()
    async with shop.open() as (_, tools):
        assert not tools.trusted
        assert set(effects(tools).values()) == {"UNSAFE"}
        log = EventLog()
        agent = Agent(script(GET), tools, predictors=[Expect(GET)])
        async with agent.open_session(sink=log) as session:
            await agent.run("Go.", session=session)
    assert "CallLaunched" not in [type(event).__name__ for event in log.events]


@both_modes
async def test_what_a_trusted_server_says_of_its_tools_counts(mode):
    shop = Shop(mode=mode)
    async with shop.open(trusted=True) as (_, tools):
        assert tools.trusted
        assert effects(tools) == {"get": "READ", "cancel": "UNSAFE", "search": "READ"}
        began = anyio.current_time()
        agent = Agent(
            ScriptedModel([[GET], "Done."], delay=2),
            tools,
            predictors=[Expect(GET, CANCEL)],
        )
        await agent.run("Go.")
        assert anyio.current_time() - began == 4
    assert shop.done == [("get", 7)]


async def test_a_hint_that_is_left_out_is_the_default_of_the_specification():
    async with Shop().open(trusted=True) as (_, tools):
        egress = {each.name: each.egress for each in tools}
    assert egress == {"get": False, "cancel": False, "search": True}


async def test_what_is_declared_takes_precedence_over_what_a_server_says():
    declared = {
        "get": {"reads": ["order:{order}"]},
        "cancel": {"effect": "GATED", "writes": ["order:{order}"]},
        "search": {"writes": ["everything"]},
    }
    async with Shop().open(trusted=True, effects=declared) as (_, tools):
        get, cancel, _ = tools
        assert effects(tools) == {"get": "READ", "cancel": "GATED", "search": "UNSAFE"}
        assert get.read_keys({"order": 7}) == {"order:7"}
        assert cancel.write_keys({"order": 7}) == {"order:7"}


async def test_a_gated_call_is_sent_when_it_is_certain():
    shop = Shop()
    async with shop.open(effects={"cancel": "GATED"}) as (_, tools):
        agent = Agent(script(GET), tools, predictors=[Expect(CANCEL)])
        await agent.run("Go.")
        assert shop.done == [("get", 7)]
        agent = Agent(script(CANCEL), tools, predictors=[Expect(CANCEL)])
        await agent.run("Go.")
    assert shop.done == [("get", 7), ("cancel", 7)]


async def test_a_tool_that_awaits_its_barrier_in_the_server_is_prepared_early():
    done = []
    server = MCPServer("stage", log_level="CRITICAL")

    @server.tool()
    async def pay(amount: int) -> str:
        """Pay."""
        await anyio.sleep(1)
        if context := current_context():
            context.early_result("paid")
            await context.barrier.wait()
        done.append(amount)
        return "paid"

    async with Client(server) as client:
        tools = await mcp_tools(
            client, effects={"pay": "GATED"}, gated_in_server=["pay"]
        )
        model = ScriptedModel([[("pay", {"amount": 1})], "Done."], delay=2)
        expect = Expect(("pay", {"amount": 1}), ("pay", {"amount": 2}))
        began = anyio.current_time()
        await Agent(model, tools, predictors=[expect]).run("Go.")
        assert anyio.current_time() - began == 4
    assert done == [1]


async def test_only_a_server_of_this_process_may_hold_its_own_effects():
    with pytest.raises(UsageError):
        await mcp_tools(Client("http://shop/mcp"), gated_in_server=["pay"])


@pytest.mark.parametrize(
    "change",
    [
        {"annotations": ToolAnnotations(read_only_hint=True)},
        {"annotations": None},
        {"name": "fetch"},
    ],
)
async def test_another_annotation_or_name_ends_trust(change, caplog):
    shop = Shop()
    async with shop.open(trusted=True) as (_, tools):
        before = tools.tools
        known = shop.server._tool_manager._tools.pop("get")
        shop.server.add_tool(
            known.fn, **{"name": "get", "annotations": READS, **change}
        )
        assert tools.trusted
        assert await tools.refresh()
        assert not tools.trusted
        assert set(effects(tools).values()) == {"UNSAFE"}
        assert set(effects(before).values()) == {"UNSAFE"}
        assert "not those that were trusted" in caplog.text
        tools.trust()
        assert tools.trusted
        assert effects(tools)["search"] == "READ"


async def test_another_schema_ends_trust():
    shop = Shop()

    async def get(order: str) -> str:
        """An order."""
        return order

    async with shop.open(trusted=True) as (_, tools):
        del shop.server._tool_manager._tools["get"]
        shop.server.add_tool(get, annotations=READS)
        await tools.refresh()
        assert not tools.trusted


async def test_the_same_list_again_changes_nothing():
    async with Shop().open(trusted=True) as (_, tools):
        before = tools.tools
        assert not await tools.refresh()
        assert tools.tools == before
        assert tools.trusted


async def test_a_list_that_was_looked_at_before_can_be_trusted_by_its_fingerprint(
    caplog,
):
    async with Shop().open() as (client, tools):
        pinned = tools.fingerprint
        again = await mcp_tools(client, trusted=pinned)
        assert again.trusted
        assert effects(again)["get"] == "READ"
        other = await mcp_tools(client, trusted="sha256:0")
        assert not other.trusted
        assert "not those that were trusted" in caplog.text


async def test_the_fingerprint_is_the_same_over_every_transport():
    found = set()
    for mode in ("legacy", "auto"):
        async with Shop(mode=mode).open() as (_, tools):
            found.add(tools.fingerprint)
    assert len(found) == 1


@pytest.mark.parametrize("news", [ToolListChangedNotification(), ToolsListChanged()])
async def test_news_of_the_tools_suspend_trust_until_they_were_looked_at(news):
    shop = Shop()
    async with shop.open(trusted=True) as (_, tools):
        log, before = EventLog(), tools.tools
        await tools.receive(news)
        assert not tools.trusted
        assert set(effects(before).values()) == {"UNSAFE"}
        agent = Agent(script(GET), before, predictors=[Expect(GET)])
        async with agent.open_session(sink=log) as session:
            await agent.run("Go.", session=session)
        assert "CallLaunched" not in [type(event).__name__ for event in log.events]
        await tools.refresh()
        assert tools.trusted
        assert effects(tools)["get"] == "READ"
        await tools.receive("something else")
        assert tools.trusted


async def test_the_notification_of_a_server_reaches_the_tools():
    shop = Shop()

    @shop.server.tool()
    async def grow(ctx: Context) -> str:
        """Grow."""
        await ctx.session.send_tool_list_changed()
        return "grown"

    async with shop.open(trusted=True) as (_, tools):
        shop.messages = tools.receive
        await tools.call_tool("grow")
        await anyio.wait_all_tasks_blocked()
        assert not tools.trusted


async def test_news_that_come_while_the_tools_are_listed_are_news():
    shop = Shop()
    async with shop.open(trusted=True) as (_, tools):
        async with anyio.create_task_group() as group:
            group.start_soon(tools.receive, ToolListChangedNotification())
            await tools.refresh()
        assert not tools.trusted
        await tools.refresh()
        assert tools.trusted


async def test_trust_is_suspended_where_the_tools_cannot_be_listed():
    shop = Shop()
    async with shop.open(trusted=True) as (_, tools):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await tools.refresh()
        assert scope.cancelled_caught
        assert not tools.trusted
        await tools.refresh()
        assert tools.trusted


async def test_a_name_that_a_server_does_not_know_is_told(caplog):
    async with Shop().open(effects={"gte": "READ"}) as (_, tools):
        assert "'gte'" in caplog.text
        assert "gte" not in effects(tools)


async def test_names_can_be_told_apart_by_a_prefix():
    shop = Shop()
    async with shop.open(prefix="shop_", effects={"get": "READ"}) as (_, tools):
        assert effects(tools)["shop_get"] == "READ"
        result = await Agent(script(("shop_get", {"order": 7})), tools).run("Go.")
    assert result.messages[-2].content == "order 7"
    assert shop.done == [("get", 7)]


async def test_a_client_session_serves_as_well():
    shop = Shop()
    async with shop.open() as (client, _):
        tools = await mcp_tools(client.session, trusted=True)
        assert effects(tools)["get"] == "READ"
        agent = Agent(script(GET), tools, predictors=[Expect(GET)])
        assert (await agent.run("Go.")).messages[-2].content == "order 7"
    assert shop.done == [("get", 7)]


@both_modes
async def test_a_launch_that_is_discarded_is_cancelled_in_the_server(mode):
    shop = Shop(mode=mode)
    async with shop.open(trusted=True) as (_, tools):
        agent = Agent(
            ScriptedModel(["Done."], delay=0.5), tools, predictors=[Expect(GET)]
        )
        await agent.run("Go.")
        await anyio.wait_all_tasks_blocked()
        assert shop.cancelled == [7]


@both_modes
async def test_cancelling_a_run_cancels_its_calls_in_the_server(mode):
    shop = Shop(mode=mode)
    async with shop.open() as (_, tools):
        with anyio.move_on_after(4.5):
            await Agent(ScriptedModel([[GET]], delay=4), tools).run("Go.")
        await anyio.wait_all_tasks_blocked()
        assert shop.cancelled == [7]


# The gate, for tools of one's own that call the server.


async def test_a_call_outside_of_a_tool_is_not_held():
    shop = Shop()
    async with shop.open() as (_, tools):
        result = await tools.call_tool("cancel", {"order": 7})
    assert result.structured_content == {"cancelled": 7}


async def test_a_call_within_a_tool_waits_at_its_barrier():
    shop = Shop()
    async with shop.open() as (_, tools):

        @tool(effect=Effect.GATED)
        async def undo(ctx: ToolContext, order: int) -> str:
            """Undo."""
            await anyio.sleep(1)
            await tools.call_tool("cancel", {"order": order})
            return "undone"

        undo_7 = ("undo", {"order": 7})
        model = ScriptedModel([[undo_7], "Done."], delay=2)
        expect = Expect(undo_7, ("undo", {"order": 8}))
        began = anyio.current_time()
        await Agent(model, [undo], predictors=[expect]).run("Go.")
        assert anyio.current_time() - began == 4
    assert shop.done == [("cancel", 7)]


async def test_a_declared_read_within_a_tool_is_not_held():
    shop = Shop()

    async def is_held(tools, name, arguments):
        async with held(WriteBarrier()):
            with anyio.move_on_after(5) as scope:
                await tools.call_tool(name, arguments)
        return scope.cancelled_caught

    async with shop.open(trusted=True) as (_, tools):
        assert not await is_held(tools, "get", {"order": 7})
        assert await is_held(tools, "cancel", {"order": 7})
        assert await is_held(tools, "unheard of", None)
        await tools.receive(ToolListChangedNotification())
        assert await is_held(tools, "get", {"order": 8})
        assert tools.seam.counts.cancelled == 3
    assert shop.done == [("get", 7)]


async def test_a_call_is_denied_where_its_barrier_is():
    shop = Shop()
    barrier = WriteBarrier()
    async with shop.open() as (_, tools), held(barrier):
        barrier.deny("no")
        with pytest.raises(WriteDenied):
            await tools.call_tool("cancel", {"order": 7})
    assert shop.done == []


async def test_a_call_goes_on_when_its_barrier_opens():
    shop = Shop()
    barrier = WriteBarrier()
    async with shop.open() as (_, tools), held(barrier):
        async with anyio.create_task_group() as group:
            group.start_soon(tools.call_tool, "cancel", {"order": 7})
            await anyio.sleep(1)
            assert shop.done == []
            barrier.flush()
    assert shop.done == [("cancel", 7)]


@asynccontextmanager
async def held(barrier):
    with running_in(barrier):
        yield


# What the model is told.

DIGEST = "sha256 2cf24dba5fb0a30e"
HELLO = "aGVsbG8="


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (CallToolResult(content=[]), ""),
        (CallToolResult(content=[], structured_content={"a": "ä"}), '{"a": "ä"}'),
        (
            CallToolResult(
                content=[TextContent(text="a"), TextContent(text="b")],
                structured_content={"a": 1},
            ),
            "a\nb",
        ),
        (
            CallToolResult(content=[ImageContent(data=HELLO, mime_type="image/png")]),
            f"[image, image/png, 5 bytes, {DIGEST}]",
        ),
        (
            CallToolResult(content=[ResourceLink(name="x", uri="file:///x")]),
            "[resource x: file:///x]",
        ),
        (
            CallToolResult(
                content=[
                    EmbeddedResource(
                        resource=TextResourceContents(uri="a:b", text="t")
                    ),
                    EmbeddedResource(
                        resource=BlobResourceContents(uri="a:b", blob=HELLO)
                    ),
                ]
            ),
            f"t\n[resource a:b, of no stated type, 5 bytes, {DIGEST}]",
        ),
        (
            CallToolResult(content=[ImageContent(data="no base64", mime_type="x")]),
            "[image, x, 9 bytes, sha256 0eb3de99a7c80221]",
        ),
    ],
)
def test_a_result_is_told_as_text(result, text):
    shown = show(result)
    assert shown.content == text
    assert shown.value is result
    assert not shown.is_error


def test_an_error_is_told_in_the_servers_words():
    with pytest.raises(ToolFailed) as caught:
        show(CallToolResult(content=[TextContent(text="No.")], is_error=True))
    assert ToolResult.from_error(caught.value) == ToolResult("No.", is_error=True)


async def test_an_error_on_a_guess_is_asked_about_again():
    asked = []
    server = MCPServer("stage", log_level="CRITICAL")

    @server.tool()
    async def get() -> CallToolResult:
        """Get."""
        asked.append(1)
        text = TextContent(text="No." if len(asked) == 1 else "Yes.")
        return CallToolResult(content=[text], is_error=len(asked) == 1)

    async with Client(server) as client:
        tools = await mcp_tools(client, effects={"get": "READ"})
        agent = Agent(script(("get", {})), tools, predictors=[Expect(("get", {}))])
        result = await agent.run("Go.")
    assert result.messages[-2].content == "Yes."
    assert len(asked) == 2


async def test_the_user_is_asked_nothing_for_a_guess():
    asked = []
    server = MCPServer("stage", log_level="CRITICAL")

    async def who(ctx: Context) -> Elicit[Name]:
        return Elicit("Who are you?", Name)

    @server.tool()
    async def greet(name: Annotated[Name, Resolve(who)]) -> str:
        """Greet."""
        return f"Hello, {name.name}."

    async def answer(context, params):
        asked.append(anyio.current_time())
        return ElicitResult(action="accept", content={"name": "Ann"})

    async with Client(server, elicitation_callback=answer) as client:
        tools = await mcp_tools(client, effects={"greet": "READ"})
        model = ScriptedModel([[("greet", {})], "Done."], delay=2)
        agent = Agent(model, tools, predictors=[Expect(("greet", {}))])
        result = await agent.run("Go.")
        assert result.messages[-2].content == "Hello, Ann."
        assert asked == [2]
        await Agent(
            ScriptedModel(["Done."]), tools, predictors=[Expect(("greet", {}))]
        ).run("Go.")
    assert asked == [2]


async def test_new_tools_are_used_from_the_next_request_on():
    shop = Shop()

    async def new() -> str:
        """New."""
        return "new"

    model = ScriptedModel([[("new", {})], [("new", {})], "Done."])
    async with shop.open() as (_, tools), Session(tools) as session:
        history = [{"role": "user", "content": "Go."}]
        for _ in range(2):
            request = ModelRequest(history, session.tools)
            response = await session.ask(request, model.respond)
            [result] = await session.call_all(response.tool_calls)
            [call] = response.tool_calls
            history += [response.message, Message.for_result(call, result)]
            shop.server.add_tool(new)
            if await tools.refresh():
                session.use_tools(tools)
    assert "no tool" in history[2].content.lower()
    assert history[4].content == "new"


def test_a_missing_sdk_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp_types", None)
    monkeypatch.delitem(sys.modules, "headstart.adapters.mcp")
    with pytest.raises(ImportError) as caught:
        __import__("headstart.adapters.mcp")
    assert 'pip install "headstart[mcp]"' in str(caught.value)
