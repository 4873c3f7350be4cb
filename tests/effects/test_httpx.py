"""Held requests of httpx and httpx2, as a server on the loopback interface sees them."""

import importlib
import json
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
import pytest

from headstart import (
    DiscardedError,
    ToolCallSpeculator,
    UsageError,
    WriteBarrier,
    WriteDenied,
)
from headstart.effects import SeamCounts
from headstart.effects.httpx import hold_requests, hold_transport

from .calls import run_agent, tool_of, until
from .http_server import serve

pytestmark = pytest.mark.real_time

both_loops = pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {}), ("trio", {})], ids=["asyncio", "trio"]
)


@pytest.fixture(params=["httpx", "httpx2"])
def library(request):
    pytest.importorskip(request.param, reason=f"needs {request.param}")
    return importlib.import_module(request.param)


@pytest.fixture
def server():
    with serve() as seen:
        yield seen


@asynccontextmanager
async def holding(library, server, *, unsafe=(), safe=(), max_hold=30.0, **options):
    """A client whose requests are held, and its seam."""
    # Without the variables of the machine, which may name proxies.
    options = {"trust_env": False, **options}
    async with library.AsyncClient(base_url=server.url, **options) as client:
        seam = hold_requests(client, unsafe=unsafe, safe=safe, max_hold=max_hold)
        yield client, seam


def launch(function, **options):
    return ToolCallSpeculator(tool_of(function), "{}", **options)


def connections_of(client):
    return client._transport._pool.connections


@both_loops
async def test_a_held_request_is_not_seen_and_a_flushed_one_is_sent_once(
    library, server
):
    async with holding(library, server) as (client, seam):

        async def post() -> str:
            before = (await client.get("/orders")).status_code
            answer = await client.post("/orders", json={"order": 7})
            return f"{before}, {answer.json()['body']}"

        async with launch(post) as guess:
            await until(lambda: seam.counts.holding)
            assert server.requests == [("GET", "/orders", b"")]
            result = await guess.adopt()
        assert json.loads(result.removeprefix("200, ")) == {"order": 7}
    assert server.paths("POST") == ["/orders"]
    assert seam.counts == SeamCounts(held=1, flushed=1)


@both_loops
@pytest.mark.parametrize("end", ["denied", "cancelled", "left"])
async def test_a_request_that_is_not_confirmed_leaves_nothing(library, server, end):
    async with holding(library, server) as (client, seam):

        async def post() -> str:
            return (await client.post("/orders")).text

        async with launch(post) as guess:
            await until(lambda: seam.counts.holding)
            if end == "denied":
                guess.barrier.deny("no")
                await guess.wait_until_ended()
                assert isinstance(guess.error, WriteDenied)
            elif end == "cancelled":
                guess.cancel()
        assert seam.counts == SeamCounts(held=1, denied=1)
        assert connections_of(client) == []
        assert server.connections == 0
        assert (await client.post("/orders")).status_code == 200
    assert server.paths("POST") == ["/orders"]


@both_loops
async def test_only_methods_that_read_are_sent_early(library, server):
    reads = ["GET", "HEAD", "OPTIONS", "TRACE"]
    changes = ["POST", "PUT", "PATCH", "DELETE", "PROPFIND"]
    async with holding(library, server) as (client, seam):

        async def post(method):
            async def send() -> str:
                return (await client.request(method, "/")).reason_phrase

            async with launch(send) as guess:
                await until(lambda: seam.counts.holding or guess.ended)
                return guess.ended

        assert [method for method in reads + changes if await post(method)] == reads
    assert [method for method, _, _ in server.requests] == reads


@both_loops
async def test_requests_outside_of_a_call_and_of_confirmed_ones_are_not_held(
    library, server
):
    async with holding(library, server) as (client, seam):

        async def post() -> str:
            return (await client.post("/orders")).reason_phrase

        assert await post() == "OK"
        async with launch(post) as guess:
            guess.confirm()
            assert await guess.wait() == "OK"
    assert server.paths("POST") == ["/orders", "/orders"]
    assert seam.counts == SeamCounts()


@both_loops
async def test_each_hop_of_a_redirect_is_looked_at(library, server):
    unsafe = [f"{server.url}/leave"]
    options = {"unsafe": unsafe, "follow_redirects": True}
    async with holding(library, server, **options) as (client, seam):

        async def visit() -> str:
            return (await client.get("/to?status=302&location=/leave")).reason_phrase

        async with launch(visit) as guess:
            await until(lambda: seam.counts.holding)
            assert server.paths("GET") == ["/to"]
            assert await guess.adopt() == "OK"
        assert server.paths("GET") == ["/to", "/leave"]

        async def move() -> str:
            answer = await client.post(
                "/to?status=307&location=/orders", content=b"order 7"
            )
            return answer.json()["body"]

        async with launch(move) as guess:
            await until(lambda: seam.counts.holding)
            assert await guess.adopt() == "order 7"
    assert server.requests[2:] == [
        ("POST", "/to", b"order 7"),
        ("POST", "/orders", b"order 7"),
    ]


def token_auth(library, url):
    class TokenAuth(library.Auth):
        requires_response_body = True

        def auth_flow(self, request):
            answer = yield library.Request("POST", f"{url}/token")
            request.headers["Authorization"] = str(answer.status_code)
            yield request

    return TokenAuth()


@both_loops
async def test_a_token_that_an_authentication_posts_for_is_held_as_well(
    library, server
):
    auth = token_auth(library, server.url)
    async with holding(library, server, auth=auth) as (client, seam):

        async def read() -> str:
            return (await client.get("/orders")).reason_phrase

        async with launch(read) as guess:
            await until(lambda: seam.counts.holding)
            assert server.requests == []
            assert await guess.adopt() == "OK"
        assert server.requests == [("POST", "/token", b""), ("GET", "/orders", b"")]
    safe = [f"{server.url}/token"]
    async with holding(library, server, auth=auth, safe=safe) as (client, seam):
        async with launch(read) as guess:
            await guess.wait_until_ended()
            assert guess.value == "OK"
    assert len(server.requests) == 4
    assert seam.counts == SeamCounts()


@both_loops
async def test_a_body_is_not_read_while_it_is_held(library, server):
    read = []

    async def body():
        for piece in (b"one ", b"two"):
            read.append(piece)
            yield piece

    async with holding(library, server) as (client, seam):

        async def post() -> str:
            return (await client.post("/orders", content=body())).json()["body"]

        async with launch(post):
            await until(lambda: seam.counts.holding)
        assert read == []
        async with launch(post) as guess:
            await until(lambda: seam.counts.holding == 1)
            assert read == []
            assert await guess.adopt() == "one two"
    assert read == [b"one ", b"two"]
    assert server.requests == [("POST", "/orders", b"one two")]


@both_loops
async def test_the_time_limits_of_a_client_do_not_run_while_it_is_held(library, server):
    timeout = library.Timeout(30, pool=0.05, connect=0.5)
    async with holding(library, server, timeout=timeout) as (client, seam):

        async def post() -> str:
            return (await client.post("/orders")).reason_phrase

        async with launch(post) as guess:
            await until(lambda: seam.counts.holding)
            await anyio.sleep(0.6)
            assert await guess.adopt() == "OK"
    assert server.paths("POST") == ["/orders"]


@both_loops
async def test_two_hundred_held_requests_leave_a_pool_of_five_to_real_work(
    library, server
):
    limits = library.Limits(max_connections=5)
    async with holding(library, server, limits=limits) as (client, seam):

        async def post() -> str:
            await client.get("/before")
            return (await client.post("/held")).reason_phrase

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
                assert (await client.post("/real")).status_code == 200
            assert await guesses[0].adopt() == "OK"
            leave.set()
        assert all(each.is_idle() for each in connections_of(client))
    assert server.paths("POST").count("/real") == 10
    assert server.paths("POST").count("/held") == 1
    assert server.connections <= 5
    assert seam.counts == SeamCounts(held=200, flushed=1, denied=199)


@both_loops
async def test_a_hold_that_takes_too_long_leaves_nothing_and_the_real_call_is_made(
    library, server
):
    async with holding(library, server, max_hold=0.05) as (client, seam):

        async def post() -> str:
            return (await client.post("/orders")).reason_phrase

        def expired():
            assert server.requests == []
            return seam.counts.expired

        result = await run_agent(post, expired, right=True)
        assert result.messages[-2].content == "OK"
    assert server.paths("POST") == ["/orders"]


@both_loops
async def test_a_confirmed_request_waits_for_its_conditions(library, server):
    approval = WriteBarrier(name="approval")
    async with holding(library, server, max_hold=0.01) as (client, seam):

        async def post() -> str:
            return (await client.post("/orders")).reason_phrase

        async with launch(post, conditions=[approval]) as guess:
            guess.confirm()
            await until(lambda: seam.counts.holding)
            await anyio.sleep(0.05)
            assert server.requests == []
            approval.flush()
            assert await guess.wait() == "OK"
    assert server.paths("POST") == ["/orders"]


@both_loops
@pytest.mark.parametrize("right", [True, False])
async def test_an_agent_sends_what_was_guessed_right_once_and_nothing_else(
    library, server, right
):
    async with holding(library, server) as (client, seam):

        async def post() -> str:
            return (await client.post("/orders")).reason_phrase

        def held():
            assert server.requests == []
            return seam.counts.holding

        result = await run_agent(post, held, right=right)
        assert result.text == "Done."
        assert seam.counts.held == 1
    assert server.paths("POST") == ["/orders"] * right


@both_loops
async def test_a_request_that_is_cancelled_at_any_step_while_it_is_held_leaves_nothing(
    library, server
):
    async with holding(library, server) as (client, seam):

        async def post() -> str:
            return (await client.post("/orders")).reason_phrase

        for steps in range(12):
            async with launch(post) as guess:
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                guess.cancel()
                await guess.wait_until_ended()
        assert seam.counts.holding == 0
        assert connections_of(client) == []
    assert server.connections == 0


@both_loops
async def test_a_guess_that_was_injected_sends_no_secret_to_another_host(
    library, server
):
    def is_foreign(request):
        return request.url.host != "127.0.0.1"

    with serve() as canary:
        foreign = canary.url.replace("127.0.0.1", "localhost")
        async with holding(library, server, unsafe=[is_foreign]) as (client, seam):

            async def fetch() -> str:
                await client.get("/orders")
                return (await client.get(f"{foreign}/?q=secret")).text

            def held():
                return seam.counts.holding

            await run_agent(fetch, held, right=False)
            assert seam.counts == SeamCounts(held=1, denied=1)
        assert canary.connections == 0
    assert server.paths("GET") == ["/orders"]


@both_loops
async def test_mounts_are_held_and_a_client_may_be_opened_later(library, server):
    mounts = {
        "all://127.0.0.1": library.AsyncHTTPTransport(),
        "all://elsewhere": None,
    }
    client = library.AsyncClient(mounts=mounts, trust_env=False)
    seam = hold_requests(client)

    async def post() -> str:
        return (await client.post(f"{server.url}/orders")).reason_phrase

    async with client:
        async with launch(post):
            await until(lambda: seam.counts.holding)
        assert await post() == "OK"
    assert server.paths("POST") == ["/orders"]


@both_loops
async def test_a_transport_may_be_held_before_there_is_a_client(library):
    sent = []

    def answer(request):
        sent.append(request.method)
        return library.Response(200)

    transport = hold_transport(library.MockTransport(answer), max_hold=5.0)
    assert isinstance(transport, library.AsyncBaseTransport)
    assert transport.seam.max_hold == 5.0
    assert transport.handler is answer
    async with library.AsyncClient(transport=transport) as client:

        async def post() -> str:
            return (await client.post("http://a/")).reason_phrase

        async with launch(post):
            await until(lambda: transport.seam.counts.holding)
        assert sent == []
        assert await post() == "OK"
    with library.Client(transport=transport) as client:
        assert client.post("http://a/").status_code == 200
    assert sent == ["POST", "POST"]


@both_loops
async def test_a_get_that_is_sent_to_another_target_than_its_url_is_held(
    library, server
):
    async with holding(library, server) as (client, seam):

        async def get() -> str:
            target = {"target": b"/leave"}
            return (await client.get("/", extensions=target)).reason_phrase

        async with launch(get):
            await until(lambda: seam.counts.holding)
    assert server.requests == []


@both_loops
async def test_a_sync_client_waits_in_the_thread_of_its_tool(library, server):
    with library.Client(base_url=server.url, trust_env=False) as client:
        seam = hold_requests(client)
        ended = []

        def post() -> str:
            client.get("/orders")
            try:
                return client.post("/orders").reason_phrase
            except BaseException as error:
                ended.append(error)
                raise

        async with launch(post):
            await until(lambda: seam.counts.holding)
        await until(lambda: ended)
        assert isinstance(ended[0], DiscardedError)
        assert server.paths("POST") == []
        async with launch(post) as guess:
            await until(lambda: seam.counts.holding)
            assert server.paths("POST") == []
            assert await guess.adopt() == "OK"
        assert await anyio.to_thread.run_sync(post) == "OK"
    assert server.paths("POST") == ["/orders", "/orders"]
    assert seam.counts == SeamCounts(held=2, flushed=1, denied=1)


@both_loops
async def test_a_sync_client_in_the_event_loop_gives_its_call_up(library, server):
    with library.Client(base_url=server.url, trust_env=False) as client:
        seam = hold_requests(client)

        async def post() -> str:
            return client.post("/orders").reason_phrase

        async with launch(post) as guess:
            await guess.wait_until_ended()
            assert isinstance(guess.error, WriteDenied)
            assert "block the event loop" in guess.barrier.reason
        assert seam.counts == SeamCounts(refused=1)
        assert server.requests == []


def test_what_cannot_be_held_is_refused(library):
    client = library.Client(trust_env=False)
    hold_requests(client)
    with pytest.raises(UsageError, match="already"):
        hold_requests(client)
    with pytest.raises(UsageError, match="AsyncClient"):
        hold_requests(client._transport)
    with pytest.raises(UsageError, match="pattern"):
        hold_requests(library.Client(trust_env=False), unsafe=["/leave"])
    for each in (client, client._transport):
        with pytest.raises(UsageError, match="transport"):
            hold_transport(each)
    client.close()
