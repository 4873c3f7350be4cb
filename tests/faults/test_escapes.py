"""The ways out of asyncio that a barrier survives."""

import asyncio
import contextlib
import threading

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from headstart import (
    Agent,
    BarrierState,
    Effect,
    ModelResponse,
    ToolCallSpeculator,
    ToolContext,
    WriteBarrier,
    WriteDenied,
    current_barrier,
    tool,
)
from headstart._events import SpeculationDiscarded
from headstart.testing import ScriptedModel

from .scene import Expects, World, play

HELD, FLUSHED, DENIED = BarrierState
on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)


@pytest.mark.real_time
@pytest.mark.parametrize("how", ["cancelled", "timed out"])
async def test_escape_1_a_thread_that_its_tool_gave_up_comes_to_no_effect(how):
    started, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    effects, refused = [], []

    def work():
        started.set()
        go_on.wait()
        try:
            current_barrier().wait_blocking()
            effects.append("posted")
        except WriteDenied as denial:
            refused.append(denial.reason)
        finally:
            ended.set()

    @tool(effect=Effect.GATED)
    async def post() -> str:
        if how == "timed out":
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.to_thread(work), 0.01)
            return "too slow"
        await asyncio.to_thread(work)
        return "posted"

    class Declines:
        async def respond(self, request, on_delta):
            await anyio.to_thread.run_sync(started.wait)
            return ModelResponse(text="Never mind.")

    agent = Agent(Declines(), [post], predictors=[Expects(("post", {}))])
    async with agent.open_session() as session:
        assert (await agent.run("Go.", session=session)).text == "Never mind."
    assert not ended.is_set()
    go_on.set()
    await anyio.to_thread.run_sync(ended.wait)
    assert effects == []
    assert len(refused) == 1


@on_asyncio
async def test_escape_2_a_tool_that_swallows_its_cancellation_has_no_effect():
    outcomes = []

    @tool(effect=Effect.GATED)
    async def stubborn(ctx: ToolContext[World]) -> str:
        for _ in range(3):
            try:
                await anyio.sleep(100.0)
            except asyncio.CancelledError:
                asyncio.current_task().uncancel()
        try:
            await ctx.barrier.wait()
        except (WriteDenied, asyncio.CancelledError) as error:
            outcomes.append(type(error))
            return "posted, says the tool"
        ctx.deps.change(ctx, "post", 0, "posted")
        return "posted"

    model = ScriptedModel(["Never mind."], delay=1.0)
    agent = Agent(model, [stubborn], predictors=[Expects(("stubborn", {}))])
    on = await play(agent)
    assert len(outcomes) == 1
    assert on.world.effects == []
    assert on.when(SpeculationDiscarded) == [1.0]
    assert on.answers == []


@on_asyncio
@pytest.mark.parametrize("wanted", [False, True])
async def test_escape_4_an_orphan_task_is_held_by_the_barrier_of_its_tool(wanted):
    tasks = []

    @tool(effect=Effect.GATED)
    async def post(ctx: ToolContext[World]) -> str:
        async def orphan():
            await anyio.sleep(0.25)
            await ctx.barrier.wait()
            ctx.deps.change(ctx, "post", 0, "posted")

        tasks.append(asyncio.create_task(orphan()))
        return "on its way"

    asked = [("post", {})] if wanted else [("other", {})]
    model = ScriptedModel([asked, "Done."], delay=1.0)
    agent = Agent(model, [post], predictors=[Expects(("post", {}))])
    on = await play(agent)
    (outcome,) = await asyncio.gather(*tasks, return_exceptions=True)
    assert on.world.effects == ([(1.0, "post 0")] if wanted else [])
    assert (outcome is None) is wanted


@on_asyncio
@pytest.mark.parametrize("cancelled_first", [False, True])
async def test_escape_5_a_confirmed_effect_outlives_the_task_that_waits_for_it(
    cancelled_first,
):
    effects = []

    @tool(effect=Effect.GATED)
    async def post() -> str:
        await current_barrier().wait()
        effects.append("posted")
        return "posted"

    async with ToolCallSpeculator(post, "{}") as guess:
        waits = asyncio.create_task(guess.wait())
        await anyio.wait_all_tasks_blocked()
        if cancelled_first:
            waits.cancel()
        guess.confirm()
        guess.cancel("changed my mind")
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
    assert effects == ["posted"]
    assert await guess.wait() == "posted"


async def test_escape_7_a_scope_in_a_generator_left_by_break_opens_nothing():
    effects = []

    async def guesses():
        with WriteBarrier() as barrier:
            yield barrier

    async def effect(barrier):
        with contextlib.suppress(WriteDenied):
            await barrier.wait()
            effects.append("posted")

    generator = guesses()
    async with anyio.create_task_group() as tasks:
        async for barrier in generator:
            tasks.start_soon(effect, barrier)
            break
        await anyio.wait_all_tasks_blocked()
        assert barrier.state is HELD  # nobody has closed the generator
        await generator.aclose()
    assert barrier.state is DENIED
    assert effects == []


async def test_escape_7_an_effect_in_the_finally_of_a_late_generator_is_refused():
    effects, generators = [], []

    @tool(effect=Effect.GATED)
    async def post(ctx: ToolContext) -> str:
        async def pages():
            try:
                yield "first"
            finally:
                await ctx.barrier.wait()
                effects.append("posted")

        generators.append(pages())
        async for page in generators[0]:
            return page
        return "nothing"

    async with ToolCallSpeculator(post, "{}") as guess:
        assert await guess.wait() == "first"
    with pytest.raises(WriteDenied):
        await generators[0].aclose()
    assert effects == []
