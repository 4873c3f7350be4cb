"""Held requests of aiohttp, as a server on the loopback interface sees them."""

import asyncio
import contextlib
import sys
from contextlib import asynccontextmanager

import anyio
import pytest

pytest.importorskip("aiohttp", reason="needs headstart[aiohttp]")

import aiohttp
from aiohttp import web

from headstart import ToolCallSpeculator, UsageError, WriteBarrier, WriteDenied
from headstart.effects import SeamCounts
from headstart.effects.aiohttp import hold_requests

from .calls import run_agent, tool_of, until
from .http_server import serve

pytestmark = pytest.mark.real_time


@pytest.fixture
def server():
    with serve() as seen:
        yield seen


@asynccontextmanager
async def holding(server, *, limit=100, total=None, **options):
    """A session whose requests are held, and its seam."""
    hold = hold_requests(**options)
    async with aiohttp.ClientSession(
        server.url,
        middlewares=[hold],
        connector=aiohttp.TCPConnector(limit=limit),
        timeout=aiohttp.ClientTimeout(total=total),
    ) as session:
        yield session, hold.seam


def launch(function, **options):
    return ToolCallSpeculator(tool_of(function), "{}", **options)


async def answer_of(session, method, path, **options):
    async with session.request(method, path, **options) as answer:
        return await answer.json()


async def test_a_held_request_is_not_seen_and_a_flushed_one_is_sent_once(server):
    async with holding(server) as (session, seam):

        async def post() -> str:
            await answer_of(session, "GET", "/orders")
            return (await answer_of(session, "POST", "/orders", data=b"7"))["body"]

        async with launch(post) as guess:
            await until(lambda: seam.counts.holding)
            assert server.requests == [("GET", "/orders", b"")]
            assert await guess.adopt() == "7"
        await answer_of(session, "POST", "/orders")
    assert server.paths("POST") == ["/orders", "/orders"]
    assert seam.counts == SeamCounts(held=1, flushed=1)


@pytest.mark.parametrize("end", ["denied", "cancelled", "left"])
async def test_a_request_that_is_not_confirmed_leaves_nothing(server, end):
    read = []

    async def body():
        read.append("read")
        yield b"7"

    async with holding(server) as (session, seam):

        async def post() -> str:
            return await answer_of(session, "POST", "/orders", data=body())

        async with launch(post) as guess:
            await until(lambda: seam.counts.holding)
            if end == "denied":
                guess.barrier.deny("no")
                await guess.wait_until_ended()
                assert isinstance(guess.error, WriteDenied)
            elif end == "cancelled":
                guess.cancel()
        assert seam.counts == SeamCounts(held=1, denied=1)
        assert not session.connector._acquired
    assert read == []
    assert server.connections == 0


async def test_only_methods_that_read_are_sent_early(server):
    reads = ["GET", "HEAD", "OPTIONS", "TRACE"]
    changes = ["POST", "PUT", "PATCH", "DELETE", "PROPFIND"]
    async with holding(server) as (session, seam):

        async def is_sent(method):
            async def send() -> int:
                async with session.request(method, "/") as answer:
                    return answer.status

            async with launch(send) as guess:
                await until(lambda: seam.counts.holding or guess.ended)
                return guess.ended

        assert [each for each in reads + changes if await is_sent(each)] == reads
    assert [method for method, _, _ in server.requests] == reads


async def test_each_hop_of_a_redirect_is_looked_at(server):
    async with holding(server, unsafe=[f"{server.url}/leave"]) as (session, seam):

        async def visit() -> str:
            path = "/to?status=302&location=/leave"
            return (await answer_of(session, "GET", path))["method"]

        async with launch(visit) as guess:
            await until(lambda: seam.counts.holding)
            assert server.paths("GET") == ["/to"]
            assert await guess.adopt() == "GET"
    assert server.paths("GET") == ["/to", "/leave"]


async def test_a_post_that_is_declared_safe_is_not_held(server):
    async with holding(server, safe=[f"{server.url}/search"]) as (session, seam):

        async def search() -> str:
            return (await answer_of(session, "POST", "/search"))["method"]

        async with launch(search) as guess:
            await guess.wait_until_ended()
            assert guess.value == "POST"
    assert seam.counts == SeamCounts()


async def test_two_hundred_held_requests_leave_a_pool_of_five_to_real_work(server):
    async with holding(server, limit=5) as (session, seam):

        async def post() -> str:
            await answer_of(session, "GET", "/before")
            return (await answer_of(session, "POST", "/held"))["method"]

        async with anyio.create_task_group() as tasks:
            leave = anyio.Event()
            guesses = []

            async def hold_one():
                async with launch(post) as guess:
                    guesses.append(guess)
                    await leave.wait()

            for _ in range(200):
                tasks.start_soon(hold_one)
            await until(lambda: seam.counts.holding == 200)
            for _ in range(10):
                await answer_of(session, "POST", "/real")
            assert await guesses[0].adopt() == "POST"
            leave.set()
        assert not session.connector._acquired
    assert server.paths("POST").count("/real") == 10
    assert server.paths("POST").count("/held") == 1
    assert server.connections <= 5
    assert seam.counts == SeamCounts(held=200, flushed=1, denied=199)


async def test_a_hold_that_takes_too_long_leaves_nothing_and_the_real_call_is_made(
    server,
):
    async with holding(server, max_hold=0.05) as (session, seam):

        async def post() -> str:
            return (await answer_of(session, "POST", "/orders"))["method"]

        def expired():
            assert server.requests == []
            return seam.counts.expired

        result = await run_agent(post, expired, right=True)
        assert result.messages[-2].content == "POST"
    assert server.paths("POST") == ["/orders"]


async def test_a_total_time_limit_that_ends_a_hold_does_not_end_up_in_the_answer(
    server,
):
    async with holding(server, total=1.0) as (session, seam):

        async def post() -> str:
            try:
                return (await answer_of(session, "POST", "/orders"))["method"]
            except TimeoutError:
                return "The shop took too long."

        def timed_out():
            assert server.requests == []
            return seam.counts.cancelled

        result = await run_agent(post, timed_out, right=True)
        assert result.messages[-2].content == "POST"
    assert server.paths("POST") == ["/orders"]
    assert seam.counts == SeamCounts(held=1, cancelled=1)


async def test_a_confirmed_request_waits_for_its_conditions(server):
    approval = WriteBarrier(name="approval")
    async with holding(server, max_hold=0.01) as (session, seam):

        async def post() -> str:
            return (await answer_of(session, "POST", "/orders"))["method"]

        async with launch(post, conditions=[approval]) as guess:
            guess.confirm()
            await until(lambda: seam.counts.holding)
            await anyio.sleep(0.05)
            assert server.requests == []
            approval.flush()
            assert await guess.wait() == "POST"
    assert server.paths("POST") == ["/orders"]


@pytest.mark.parametrize("right", [True, False])
async def test_an_agent_sends_what_was_guessed_right_once_and_nothing_else(
    server, right
):
    async with holding(server) as (session, seam):

        async def post() -> str:
            return (await answer_of(session, "POST", "/orders"))["method"]

        def held():
            assert server.requests == []
            return seam.counts.holding

        await run_agent(post, held, right=right)
        assert seam.counts.held == 1
    assert server.paths("POST") == ["/orders"] * right


async def test_a_request_that_is_cancelled_at_any_step_while_it_is_held_leaves_nothing(
    server,
):
    async with holding(server) as (session, seam):

        async def post() -> str:
            return await answer_of(session, "POST", "/orders")

        for steps in range(12):
            async with launch(post) as guess:
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                guess.cancel()
                await guess.wait_until_ended()
        assert seam.counts.holding == 0
        assert not session.connector._acquired
    assert server.connections == 0


async def test_opening_a_websocket_is_held():
    opened = []

    async def open_socket(request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        opened.append(request.path)
        opened.append(await socket.receive_str())
        return socket

    app = web.Application()
    app.router.add_get("/socket", open_socket)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0]
    hold = hold_requests()
    try:
        async with aiohttp.ClientSession(middlewares=[hold]) as session:

            async def post() -> str:
                url = f"http://{host}:{port}/socket"
                async with session.ws_connect(url) as socket:
                    await socket.send_str("hello")
                return "sent"

            async with launch(post) as guess:
                await until(lambda: hold.seam.counts.holding)
                assert opened == []
                assert await guess.adopt() == "sent"
            await until(lambda: len(opened) == 2)
    finally:
        await runner.cleanup()
    assert opened == ["/socket", "hello"]


async def test_a_session_that_belongs_to_another_loop_is_held_in_its_thread(server):
    ended = []

    async def post_there():
        async with holding(server) as (session, seam):
            seams.append(seam)
            return (await answer_of(session, "POST", "/orders"))["method"]

    def post() -> str:
        try:
            return asyncio.run(post_there())
        except BaseException as error:
            ended.append(error)
            raise

    seams = []
    async with launch(post) as guess:
        await until(lambda: seams and seams[0].counts.holding)
        assert server.requests == []
        assert await guess.adopt() == "POST"
    async with launch(post):
        await until(lambda: len(seams) == 2 and seams[1].counts.holding)
    await until(lambda: ended)
    assert isinstance(ended[0], WriteDenied)
    assert server.paths("POST") == ["/orders"]


async def test_a_request_with_middlewares_of_its_own_is_not_held(server):
    async with holding(server) as (session, seam):

        async def post() -> str:
            options = {"middlewares": ()}
            return (await answer_of(session, "POST", "/", **options))["method"]

        async with launch(post) as guess:
            await guess.wait_until_ended()
    assert server.paths("POST") == ["/"]  # as the documentation says
    assert seam.counts == SeamCounts()


def test_a_rule_that_could_never_work_is_refused():
    with pytest.raises(UsageError):
        hold_requests(unsafe=["/leave"])


def test_a_missing_aiohttp_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.delitem(sys.modules, "headstart.effects.aiohttp")
    with contextlib.suppress(AttributeError):
        monkeypatch.delattr("headstart.effects.aiohttp")
    with pytest.raises(ImportError, match=r"headstart\[aiohttp\]"):
        import headstart.effects.aiohttp  # noqa: F401
