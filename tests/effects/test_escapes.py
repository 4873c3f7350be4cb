"""The seven ways out of asyncio, through seams: a plain hold, and a real redis."""

import asyncio
import contextlib
import threading

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from headstart import (
    DiscardedError,
    Effect,
    Tool,
    ToolCallSpeculator,
    WriteDenied,
)
from headstart.effects import Seam, SeamCounts

pytestmark = pytest.mark.real_time

KEY = "headstart-test-escapes"


def tool_of(function):
    return Tool(function, name="post", effect=Effect.GATED)


async def until_held(seam):
    with anyio.fail_after(15):
        while not seam.counts.holding:  # noqa: ASYNC110 - a seam has no event
            await anyio.sleep(0.001)


class Plain:
    """Effects behind `hold` and `hold_blocking`."""

    def __init__(self):
        self.seam = Seam("posts")
        self.effects = []

    async def send(self):
        async with self.seam.hold("a post"):
            self.effects.append("posted")

    def send_blocking(self):
        with self.seam.hold_blocking("a post"):
            self.effects.append("posted")

    async def received(self):
        return self.effects


class Redis:
    """Effects that are commands to a server."""

    def __init__(self, url):
        redis = pytest.importorskip("redis")
        from headstart.effects.redis import hold_commands

        self.outside = redis.asyncio.Redis.from_url(url, decode_responses=True)
        self.client = redis.asyncio.Redis.from_url(url)
        self.sync_client = redis.Redis.from_url(url)
        self.seam = hold_commands(self.client).seam
        hold_commands(self.sync_client)

    async def send(self):
        await self.client.rpush(KEY, "posted")

    def send_blocking(self):
        self.sync_client.rpush(KEY, "posted")

    async def received(self):
        return await self.outside.lrange(KEY, 0, -1)

    async def close(self):
        await self.outside.delete(KEY)
        await self.outside.aclose()
        await self.client.aclose()
        self.sync_client.close()


@pytest.fixture(params=["hold", "redis"])
async def post_office(request):
    if request.param == "hold":
        yield Plain()
    else:
        made = Redis(request.getfixturevalue("redis_url"))
        yield made
        await made.close()


def outcome_of(function, outcomes, ended):
    """Run it, and keep what it raises."""
    try:
        function()
    except BaseException as error:
        outcomes.append(type(error))
    else:
        outcomes.append(None)
    finally:
        ended.set()


@pytest.mark.parametrize("how", ["cancelled", "timed out"])
async def test_escape_1_a_thread_that_its_tool_gave_up_comes_to_no_effect(
    post_office, how
):
    started, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    outcomes = []

    def work():
        started.set()
        go_on.wait()
        outcome_of(post_office.send_blocking, outcomes, ended)

    async def post() -> str:
        if how == "timed out":
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.to_thread(work), 0.01)
            return "too slow"
        await asyncio.to_thread(work)
        return "posted"

    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        await anyio.to_thread.run_sync(started.wait)
        if how == "timed out":
            assert await guess.wait() == "too slow"
    go_on.set()
    await anyio.to_thread.run_sync(ended.wait)
    assert outcomes == [DiscardedError]
    assert await post_office.received() == []


async def test_escape_2_a_tool_that_swallows_its_cancellation_has_no_effect(
    post_office,
):
    outcomes = []

    async def stubborn() -> str:
        for _ in range(3):
            try:
                await anyio.sleep(0.01)
            except asyncio.CancelledError:
                asyncio.current_task().uncancel()
        try:
            await post_office.send()
        except (WriteDenied, asyncio.CancelledError) as error:
            outcomes.append(type(error))
        return "posted, says the tool"

    async with ToolCallSpeculator(tool_of(stubborn), "{}") as guess:
        await anyio.lowlevel.checkpoint()
        guess.cancel()
        await guess.wait_until_ended()
    assert len(outcomes) == 1
    assert await post_office.received() == []


async def by_executor(function):
    await asyncio.get_running_loop().run_in_executor(None, function)


async def by_thread(function):
    threading.Thread(target=function).start()


@pytest.mark.parametrize("hop", [by_executor, by_thread])
async def test_escape_3_a_thread_that_lost_its_call_is_refused(post_office, hop):
    outcomes, ended = [], threading.Event()

    async def post() -> str:
        await hop(lambda: outcome_of(post_office.send_blocking, outcomes, ended))
        await anyio.sleep_forever()

    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        await anyio.to_thread.run_sync(ended.wait)
        assert guess.barrier.state.value == "denied"
    assert outcomes == [WriteDenied]
    assert await post_office.received() == []


@pytest.mark.parametrize("wanted", [False, True])
async def test_escape_4_an_orphan_task_is_held_by_the_barrier_of_its_tool(
    post_office, wanted
):
    tasks = []

    async def post() -> str:
        tasks.append(asyncio.create_task(post_office.send()))
        return "on its way"

    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        assert await guess.wait() == "on its way"
        await until_held(post_office.seam)
        assert await post_office.received() == []
        if wanted:
            await guess.adopt()
    (outcome,) = await asyncio.gather(*tasks, return_exceptions=True)
    assert (outcome is None) is wanted
    assert await post_office.received() == ["posted"] * wanted
    assert post_office.seam.counts == SeamCounts(
        held=1, flushed=wanted, denied=not wanted
    )


@pytest.mark.parametrize("cancelled_first", [False, True])
async def test_escape_5_a_confirmed_effect_outlives_the_task_that_waits_for_it(
    post_office, cancelled_first
):
    async def post() -> str:
        await post_office.send()
        return "posted"

    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        waits = asyncio.create_task(guess.wait())
        await until_held(post_office.seam)
        if cancelled_first:
            waits.cancel()
        guess.confirm()
        guess.cancel("changed my mind")
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        assert await guess.wait() == "posted"
    assert await post_office.received() == ["posted"]
    assert post_office.seam.counts == SeamCounts(held=1, flushed=1)


async def test_escape_6_a_call_that_is_cancelled_before_its_first_step_does_nothing(
    post_office,
):
    started = []

    async def post() -> str:
        started.append("post")
        await post_office.send()
        return "posted"

    guess = ToolCallSpeculator(tool_of(post), "{}")
    async with anyio.create_task_group() as tasks:
        guess.launch(tasks)
        tasks.cancel_scope.cancel()
    assert started == []
    assert guess.barrier.state.value == "denied"
    assert await post_office.received() == []
    assert post_office.seam.counts == SeamCounts()


async def test_escape_6_a_hold_that_is_cancelled_before_its_first_step_does_nothing(
    post_office,
):
    tasks = []

    async def post() -> str:
        tasks.append(asyncio.create_task(post_office.send()))
        tasks[0].cancel()
        return "posted"

    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        assert await guess.adopt() == "posted"
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    assert await post_office.received() == []
    assert post_office.seam.counts == SeamCounts()


def pages_of(post_office):
    async def pages():
        try:
            yield "first"
        finally:
            await post_office.send()

    return pages()


async def test_escape_7_an_effect_in_the_finally_of_a_late_generator_is_refused(
    post_office,
):
    async def post() -> str:
        async for page in pages_of(post_office):
            return page
        return "nothing"

    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        before = asyncio.all_tasks()
        assert await guess.wait() == "first"
        await until_held(post_office.seam)  # the event loop closes what is dropped
        closing = asyncio.all_tasks() - before
    outcomes = await asyncio.gather(*closing, return_exceptions=True)
    assert WriteDenied in map(type, outcomes)
    assert await post_office.received() == []


async def test_escape_7_a_generator_that_others_close_runs_as_theirs(post_office):
    """A limit: a generator has no context of its own (see docs/limits.md)."""
    kept = []

    async def post() -> str:
        kept.append(pages_of(post_office))
        return await anext(kept[0])

    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        assert await guess.wait() == "first"
    await kept[0].aclose()
    assert await post_office.received() == ["posted"]
