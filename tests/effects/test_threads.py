"""Effects from threads: held in one's own, refused where the context was lost."""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import subprocess
import sys
import threading

import anyio
import anyio.to_thread
import pytest

from headstart import (
    DiscardedError,
    Effect,
    Tool,
    ToolCallSpeculator,
    WriteBarrier,
    WriteDenied,
)
from headstart._seams import FOREIGN_THREADS
from headstart.effects import Seam, SeamCounts, run_in_thread

pytestmark = pytest.mark.real_time


def tool_of(function, **options):
    return Tool(function, name="post", effect=Effect.GATED, **options)


async def until(condition):
    while not condition():  # noqa: ASYNC110 - what threads do has no event
        await anyio.sleep(0.001)


class Rig:
    """A seam, an effect behind it, and what became of attempts at it."""

    def __init__(self, **options):
        self.seam = Seam("posts", **options)
        self.effects = []
        self.outcomes = []
        self.ended = threading.Semaphore(0)

    def post(self):
        try:
            with self.seam.hold_blocking("a post"):
                self.effects.append("posted")
        except BaseException as error:
            self.outcomes.append(error)
            raise
        finally:
            self.ended.release()
        return "posted"

    async def until_held(self, count=1):
        await until(lambda: self.seam.counts.holding >= count)

    async def until_ended(self):
        await anyio.to_thread.run_sync(self.ended.acquire)


async def in_an_executor(function):
    return await asyncio.get_running_loop().run_in_executor(None, function)


async def in_a_pool(function):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return await asyncio.wrap_future(pool.submit(function))


async def in_a_plain_thread(function):
    future = concurrent.futures.Future()
    future.set_running_or_notify_cancel()

    def run():
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run).start()
    return await asyncio.wrap_future(future)


async def in_a_thread_of_a_thread(function):
    def outer():
        box = []
        inner = threading.Thread(target=lambda: box.append(attempt(function)))
        inner.start()
        inner.join()
        if isinstance(box[0], BaseException):
            raise box[0]
        return box[0]

    return await in_a_plain_thread(outer)


def attempt(function):
    try:
        return function()
    except BaseException as error:
        return error


async def in_a_timer(function):
    future = concurrent.futures.Future()
    future.set_running_or_notify_cancel()

    def run():
        outcome = attempt(function)
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    threading.Timer(0.0, run).start()
    return await asyncio.wrap_future(future)


async def on_a_loop_of_its_own(function):
    return await in_a_plain_thread(lambda: asyncio.run(asyncio.to_thread(function)))


LOSING = [
    in_an_executor,
    in_a_pool,
    in_a_plain_thread,
    in_a_thread_of_a_thread,
    in_a_timer,
    on_a_loop_of_its_own,
]


@pytest.mark.parametrize("hop", LOSING)
async def test_an_effect_whose_thread_lost_its_call_is_refused_and_the_call_given_up(
    hop,
):
    rig = Rig()

    async def post() -> str:
        with contextlib.suppress(WriteDenied):
            await hop(rig.post)
        return "posted"

    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        await guess.wait_until_ended()
        assert guess.barrier.state.value == "denied"
        assert "started without the context" in guess.barrier.reason
    await rig.until_ended()
    assert rig.effects == []
    assert [type(error) for error in rig.outcomes] == [WriteDenied]
    assert rig.seam.counts == SeamCounts(refused=1)


@pytest.mark.parametrize("hop", LOSING)
async def test_a_thread_that_lost_a_confirmed_call_goes_ahead(hop):
    rig = Rig()

    async def post() -> str:
        return await hop(rig.post)

    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        assert await guess.adopt() == "posted"
    assert rig.effects == ["posted"]


@pytest.mark.parametrize("hop", LOSING[:-1])
async def test_a_thread_that_outlives_its_discarded_call_comes_to_no_effect(hop):
    rig, go_on = Rig(), threading.Event()

    def late():
        go_on.wait()
        return rig.post()

    async def post() -> str:
        return await hop(late)

    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        await anyio.sleep(0.01)
        guess.cancel("the model did not ask for it")
        go_on.set()  # a pool that is left is waited for
    await rig.until_ended()
    assert rig.effects == []
    assert [type(error) for error in rig.outcomes] == [DiscardedError]


@pytest.mark.parametrize("hop", LOSING)
async def test_threads_outside_of_any_call_pass_while_others_are_held(hop):
    rig = Rig()
    made = tool_of(rig.post)
    async with ToolCallSpeculator(made, "{}"):
        await rig.until_held()
        assert await hop(rig.post) == "posted"
    assert rig.effects == ["posted"]


async def test_workers_that_a_discarded_call_was_the_first_to_use_serve_others_later():
    rig = Rig()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:

        async def post() -> str:
            await asyncio.wrap_future(pool.submit(lambda: None))
            await anyio.to_thread.run_sync(lambda: None)
            await asyncio.to_thread(lambda: None)
            return "nothing"

        async with ToolCallSpeculator(tool_of(post), "{}") as guess:
            await guess.wait_until_ended()
        assert await asyncio.wrap_future(pool.submit(rig.post)) == "posted"
    assert await anyio.to_thread.run_sync(rig.post) == "posted"
    assert await asyncio.to_thread(rig.post) == "posted"
    assert rig.effects == ["posted"] * 3


KEEPING = [anyio.to_thread.run_sync, asyncio.to_thread, run_in_thread]


@pytest.mark.parametrize("hop", KEEPING, ids=["anyio", "asyncio", "own"])
async def test_an_effect_in_a_thread_with_its_context_is_held(hop):
    rig = Rig()

    async def post() -> str:
        return await hop(rig.post)

    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        await rig.until_held()
        assert rig.effects == []
        assert await guess.adopt() == "posted"
    assert rig.effects == ["posted"]
    assert rig.seam.counts == SeamCounts(held=1, flushed=1)


async def test_an_executor_that_is_handed_the_context_holds_too():
    rig = Rig()

    async def post() -> str:
        context = contextvars.copy_context()
        return await in_an_executor(lambda: context.run(rig.post))

    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        await rig.until_held()
        assert await guess.adopt() == "posted"
    assert rig.effects == ["posted"]


@pytest.mark.parametrize("hop", KEEPING, ids=["anyio", "asyncio", "own"])
async def test_cancelling_a_call_ends_its_held_thread_before_the_effect(hop):
    rig = Rig()

    async def post() -> str:
        return await hop(rig.post)

    async with ToolCallSpeculator(tool_of(post), "{}"):
        await rig.until_held()
    await rig.until_ended()
    assert rig.effects == []
    assert [type(error) for error in rig.outcomes] == [DiscardedError]
    assert rig.seam.counts == SeamCounts(held=1, denied=1)


async def test_a_sync_tool_that_swallows_exceptions_does_not_go_on_after_its_discard():
    rig, went_on = Rig(), []

    def post() -> str:
        try:
            rig.post()
        except Exception:
            went_on.append("to another effect")
        return "posted"

    async with ToolCallSpeculator(tool_of(post), "{}"):
        await rig.until_held()
    await rig.until_ended()
    assert went_on == []


async def test_a_sync_tool_is_told_of_a_refused_condition_as_any_other():
    rig = Rig()
    approval = WriteBarrier(name="approval")
    made = tool_of(rig.post)
    async with ToolCallSpeculator(made, "{}", conditions=[approval]) as guess:
        guess.confirm()
        await rig.until_held()
        approval.deny("a person said no")
        with pytest.raises(WriteDenied):
            await guess.wait()
    assert rig.effects == []


async def test_a_thread_that_is_held_too_long_gives_its_call_up():
    rig = Rig(max_hold=0.01)
    async with ToolCallSpeculator(tool_of(rig.post), "{}") as guess:
        await rig.until_ended()
        assert guess.barrier.state.value == "denied"
    assert rig.effects == []
    assert rig.seam.counts == SeamCounts(held=1, expired=1)


@pytest.mark.parametrize("hop", KEEPING[:2], ids=["anyio", "asyncio"])
async def test_threads_of_other_pools_are_held_in_small_numbers_only(hop):
    rig = Rig()

    async def post() -> str:
        return await hop(rig.post)

    made = tool_of(post)
    async with contextlib.AsyncExitStack() as stack:
        guesses = [
            await stack.enter_async_context(ToolCallSpeculator(made, "{}"))
            for _ in range(20)
        ]
        await rig.until_held(FOREIGN_THREADS)
        # The pool is usable by others, however many calls would like to be held in it.
        assert await hop(lambda: "answered") == "answered"
        await until(lambda: rig.seam.counts.refused == 20 - FOREIGN_THREADS)
        held = [guess for guess in guesses if guess.barrier.state.value == "held"]
        assert len(held) == FOREIGN_THREADS
        for guess in held:
            assert await guess.adopt() == "posted"
    assert rig.effects == ["posted"] * FOREIGN_THREADS


async def test_forty_held_tools_leave_the_threads_of_others_alone():
    rig = Rig()
    async with contextlib.AsyncExitStack() as stack:
        for number in range(60):
            post = rig.post if number % 2 else lambda: run_in_thread(rig.post)
            await stack.enter_async_context(ToolCallSpeculator(tool_of(post), "{}"))
        await rig.until_held(40)
        assert await anyio.to_thread.run_sync(lambda: "answered") == "answered"
        assert await run_in_thread(lambda: "answered") == "answered"
    assert rig.effects == []


async def test_a_thread_inherits_nothing_from_a_call_that_is_over():
    rig = Rig()
    threads = []

    async def post() -> str:
        threads.append(threading.Thread(target=rig.post))
        return "posted"

    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        await guess.wait_until_ended()
    threads[0].start()  # by somebody outside of any call
    await anyio.to_thread.run_sync(threads[0].join)
    assert rig.effects == ["posted"]


@pytest.mark.timeout(60)
def test_the_first_hold_of_a_process_is_refused_in_a_thread_without_a_context():
    program = """
import asyncio
from headstart import Effect, Tool, ToolCallSpeculator, WriteDenied
from headstart.effects import hold_blocking

effects = []

def effect():
    with hold_blocking("a post"):
        effects.append("posted")

async def post() -> None:
    await asyncio.get_running_loop().run_in_executor(None, effect)

async def main():
    async with ToolCallSpeculator(Tool(post, effect=Effect.GATED), "{}") as guess:
        await guess.wait_until_ended()
    assert effects == [], effects

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("hop", KEEPING, ids=["anyio", "asyncio", "own"])
async def test_time_that_a_thread_is_held_does_not_count_for_the_tools_own_limit(hop):
    rig = Rig()

    async def post() -> str:
        return await hop(rig.post)

    async with ToolCallSpeculator(tool_of(post, timeout=5.0), "{}") as guess:
        await rig.until_held()
        await until(lambda: guess.held)  # which ends the limit of 5 seconds
        assert await guess.adopt() == "posted"
    assert rig.effects == ["posted"]
