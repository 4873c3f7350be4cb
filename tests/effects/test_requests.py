"""Held requests of `requests`, in threads, as a loopback server sees them."""

import contextlib
import sys

import anyio.to_thread
import pytest

pytest.importorskip("requests", reason="needs headstart[requests]")

import requests

from headstart import DiscardedError, ToolCallSpeculator, UsageError, WriteDenied
from headstart.effects import SeamCounts
from headstart.effects.requests import hold_requests

from .calls import run_agent, tool_of, until
from .http_server import serve

pytestmark = pytest.mark.real_time


@pytest.fixture
def server():
    with serve() as seen:
        yield seen


@pytest.fixture
def session():
    with requests.Session() as session:
        session.trust_env = False
        yield session


def launch(function, **options):
    return ToolCallSpeculator(tool_of(function), "{}", **options)


async def test_a_held_request_is_not_seen_and_a_flushed_one_is_sent_once(
    server, session
):
    seam = hold_requests(session)

    def post() -> str:
        session.get(f"{server.url}/orders")
        return session.post(f"{server.url}/orders", data="7").json()["body"]

    async with launch(post) as guess:
        await until(lambda: seam.counts.holding)
        assert server.requests == [("GET", "/orders", b"")]
        assert await guess.adopt() == "7"
    assert await anyio.to_thread.run_sync(post) == "7"
    assert server.paths("POST") == ["/orders", "/orders"]
    assert seam.counts == SeamCounts(held=1, flushed=1)


@pytest.mark.parametrize("end", ["denied", "cancelled", "left"])
async def test_a_request_that_is_not_confirmed_leaves_nothing(server, session, end):
    seam = hold_requests(session)
    ended = []

    def post() -> str:
        try:
            return session.post(f"{server.url}/orders").text
        except BaseException as error:
            ended.append(error)
            raise

    async with launch(post) as guess:
        await until(lambda: seam.counts.holding)
        if end == "denied":
            guess.barrier.deny("no")
        elif end == "cancelled":
            guess.cancel()
    await until(lambda: ended)
    assert isinstance(ended[0], DiscardedError)
    assert seam.counts == SeamCounts(held=1, denied=1)
    assert server.connections == 0


async def test_each_hop_of_a_redirect_is_looked_at(server, session):
    seam = hold_requests(session, unsafe=[f"{server.url}/leave"])

    def visit() -> str:
        path = "/to?status=302&location=/leave"
        return session.get(f"{server.url}{path}").json()["method"]

    async with launch(visit) as guess:
        await until(lambda: seam.counts.holding)
        assert server.paths("GET") == ["/to"]
        assert await guess.adopt() == "GET"
    assert server.paths("GET") == ["/to", "/leave"]


async def test_a_post_that_is_declared_safe_is_not_held(server, session):
    seam = hold_requests(session, safe=[f"{server.url}/search"])

    def search() -> str:
        return session.post(f"{server.url}/search").json()["method"]

    async with launch(search) as guess:
        await guess.wait_until_ended()
        assert guess.value == "POST"
    assert seam.counts == SeamCounts()


async def test_a_request_in_the_event_loop_gives_its_call_up(server, session):
    seam = hold_requests(session)

    async def post() -> str:
        return session.post(f"{server.url}/orders").text

    async with launch(post) as guess:
        await guess.wait_until_ended()
        assert isinstance(guess.error, WriteDenied)
    assert seam.counts == SeamCounts(refused=1)
    assert server.connections == 0


async def test_a_hold_that_takes_too_long_leaves_nothing_and_the_real_call_is_made(
    server, session
):
    seam = hold_requests(session, max_hold=0.05)

    def post() -> str:
        return session.post(f"{server.url}/orders").json()["method"]

    def expired():
        assert server.requests == []
        return seam.counts.expired

    result = await run_agent(post, expired, right=True)
    assert result.messages[-2].content == "POST"
    assert server.paths("POST") == ["/orders"]


@pytest.mark.parametrize("right", [True, False])
async def test_an_agent_sends_what_was_guessed_right_once_and_nothing_else(
    server, session, right
):
    seam = hold_requests(session)

    def post() -> str:
        return session.post(f"{server.url}/orders").json()["method"]

    def held():
        assert server.requests == []
        return seam.counts.holding

    await run_agent(post, held, right=right)
    await until(lambda: not seam.counts.holding)
    assert seam.counts.held == 1
    assert server.paths("POST") == ["/orders"] * right


def test_a_session_is_held_once(session):
    hold_requests(session)
    with pytest.raises(UsageError, match="already"):
        hold_requests(session)


def test_a_missing_requests_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "requests.adapters", None)
    monkeypatch.delitem(sys.modules, "headstart.effects.requests")
    with contextlib.suppress(AttributeError):
        monkeypatch.delattr("headstart.effects.requests")
    with pytest.raises(ImportError, match=r"headstart\[requests\]"):
        import headstart.effects.requests  # noqa: F401
