"""A run that is cancelled, at whatever moment, ends at once and leaves nothing."""

import asyncio
import itertools
from functools import partial

import anyio
import anyio.lowlevel
import pytest
import sniffio
import trio

from headstart import (
    Agent,
    BarrierState,
    LimitPolicy,
    Message,
    ModelRequest,
    ModelResponse,
    Session,
    TextDelta,
    ToolCall,
    WriteBarrier,
    tool,
)
from headstart._events import SessionEnded
from headstart.testing import ScriptedModel

from .scene import Arm, Expects, World, play, read, write

LOOK_7 = ("look", {"row": 7})
LOOK_8 = ("look", {"row": 8})
CHANGE_7 = ("change", {"row": 7})
CHANGE_8 = ("change", {"row": 8})

pytestmark = [
    pytest.mark.requirement("cancel:outside-wins"),
    pytest.mark.requirement("cancel:no-orphans"),
]


async def approve(call, _):
    await anyio.sleep(0.5)
    return True


def busy_agent():
    """An agent that uses every way of starting early, right and wrong, in one run.

    Predicted reads and writes, hits, misses and a deferred one; calls sealed in the
    stream; an approval; early results, true and false; and turns that run ahead.
    """
    model = ScriptedModel(
        [
            ["Let me see. ", LOOK_7, CHANGE_7],
            [CHANGE_8, ("alter", {"row": 9})],
            [LOOK_8],
            "All done, have a nice day.",
        ],
        delay=0.75,
        seconds_per_delta=0.25,
        characters_per_delta=8,
    )
    return Agent(
        model,
        [
            read(),
            write(prepare=0.5, takes=1.25, early="{row} is {to}", approval=True),
            write("alter", prepare=0.75, takes=2.5, early="a lie"),
        ],
        predictors=[
            Expects(LOOK_7, LOOK_8, CHANGE_7, ("alter", {"row": 1})),
            Expects(LOOK_8, CHANGE_8, after="tool", delay=0.25),
            Expects(LOOK_8, after="assistant"),
        ],
        policy=LimitPolicy(max_depth=2),
        approve=approve,
    )


async def cut_short(cancel_when, *, stream=False):
    """Run the busy agent, cancel it when told, and look at what is left."""
    agent = busy_agent()
    arm = Arm(World())
    seen = []

    async def host():
        try:
            async with agent.open_session(deps=arm.world, sink=arm.log) as session:
                if stream:
                    async with agent.stream("Go.", session=session) as items:
                        seen.extend([item async for item in items])
                    arm.result = items.result
                else:
                    arm.result = await agent.run("Go.", session=session)
        except BaseException as error:
            seen.append(error)
            raise

    async with anyio.create_task_group() as group:
        group.start_soon(host)
        await cancel_when()
        cancelled_at = arm.world.now
        group.cancel_scope.cancel()
    if arm.result is None:
        assert isinstance(seen[-1], anyio.get_cancelled_exc_class())
        assert arm.world.now == cancelled_at  # it did not take any time to stop
    assert arm.world.running == 0
    states = {barrier.effective_state for barrier in arm.world.barriers}
    assert BarrierState.HELD not in states
    assert arm.log.events == [] or isinstance(arm.log.events[-1], SessionEnded)
    return arm


def is_beginning(effects, of):
    return effects == of[: len(effects)]


async def test_the_run_that_is_cut_short_below_uses_everything():
    arm = await play(busy_agent())
    figures = arm.summary
    assert figures.hits >= 2
    assert figures.early_starts >= 1
    assert figures.run_ahead >= 1
    assert figures.run_ahead_discarded >= 1
    assert figures.misses >= 1
    assert arm.result.text == "All done, have a nice day."


@pytest.mark.requirement("engine:same-effects")
@pytest.mark.parametrize("stream", [False, True])
async def test_a_run_that_is_cancelled_at_any_quarter_of_a_second_leaves_nothing(
    stream,
):
    whole = await play(busy_agent())
    off = await play(busy_agent(), speculate=False)
    order = [what for _, what in off.world.effects]
    assert [what for _, what in whole.world.effects] == order
    for quarters in range(int(whole.seconds * 4) + 2):
        arm = await cut_short(partial(anyio.sleep, quarters / 4), stream=stream)
        assert is_beginning([what for _, what in arm.world.effects], order)
        assert is_beginning(arm.world.effects, whole.world.effects)
    assert arm.result == whole.result


@pytest.mark.requirement("engine:same-effects")
def nobody_else_can_run():
    if sniffio.current_async_library() == "trio":
        return trio.lowlevel.current_statistics().tasks_runnable == 0
    return not asyncio.get_running_loop()._ready


async def steps_pass(count):
    """Let the scheduler make `count` steps; when none is left, a quarter second passes.

    All that the busy agent does happens at quarters of seconds.
    """
    quiet = 0
    for _ in range(count):
        await anyio.lowlevel.checkpoint()
        quiet = quiet + 1 if nobody_else_can_run() else 0
        if quiet == 2:  # trio's last batch may still be running after one
            await anyio.sleep(0.25)
            quiet = 0


@pytest.mark.requirement("engine:same-effects")
@pytest.mark.parametrize("first", range(4))
async def test_a_run_that_is_cancelled_at_any_step_of_the_scheduler_leaves_nothing(
    first,
):
    whole = await play(busy_agent())
    for steps in itertools.count(first, step=4):
        arm = await cut_short(partial(steps_pass, steps))
        assert is_beginning(arm.world.effects, whole.world.effects)
        if arm.result is not None:
            break
    assert arm.result == whole.result
    assert steps > 100


async def test_leaving_a_stream_early_cancels_the_run():
    agent, arm = busy_agent(), Arm(World())
    async with agent.open_session(deps=arm.world, sink=arm.log) as session:
        async with agent.stream("Go.", session=session) as stream:
            async for item in stream:
                assert isinstance(item, TextDelta)
                break
        assert arm.world.now == 0.75
        assert stream.result is None
        await anyio.sleep(20.0)
        assert arm.world.effects == []
    assert arm.world.running == 0


@pytest.mark.parametrize("speculate", [True, False])
async def test_a_call_that_is_cancelled_alone_ends_alone(speculate):
    world = World()
    expects = Expects(CHANGE_7, LOOK_8)
    session = Session(
        [read(), write(takes=5.0)],
        deps=world,
        predictors=[expects],
        speculate=speculate,
    )
    model = ScriptedModel([[CHANGE_7, LOOK_8]], delay=1.0)
    async with session:
        request = ModelRequest([Message(role="user", content="Go.")], session.tools)
        change, look = (await session.ask(request, model.respond)).tool_calls
        with anyio.move_on_after(3.0) as scope:
            await session.call(change)
        assert scope.cancelled_caught
        assert (world.now, world.running) == (4.0, 0)  # it is not left to end later
        assert (await session.call(look)).content == "8 is new"
    assert world.effects == []
    assert world.running == 0


async def test_a_request_that_ran_ahead_and_is_cancelled_takes_its_calls_with_it():
    arm = Arm(World())
    session = Session(
        [read(seconds=50.0), write(prepare=0.5, takes=1.0, early="{row} is {to}")],
        deps=arm.world,
        sink=arm.log,
    )
    model = ScriptedModel(
        [[CHANGE_7], [LOOK_8, ("look", {"row": 9})]],
        delay=1.0,
        seconds_per_delta=0.5,
        characters_per_delta=10,
    )
    async with session:
        request = ModelRequest([Message(role="user", content="Go.")], session.tools)
        first = await session.ask(request, model.respond)
        results = await session.call_all(first.tool_calls)
        request = request.extended([first.message]).answered(first.tool_calls, results)
        with anyio.move_on_after(0.75) as scope:
            await session.ask(request, model.respond)
        assert scope.cancelled_caught
        assert len(model.records) == 2
        await anyio.wait_all_tasks_blocked()
        assert [what for _, what in arm.world.starts] == ["change 7", "look 8"]
        assert arm.world.running == 0
    assert [record.outcome for record in model.records] == ["answered", "cancelled"]


async def test_a_task_that_waits_at_a_held_effect_is_cancelled_with_the_run():
    guard, world = WriteBarrier(), World()
    agent = Agent(ScriptedModel([[CHANGE_7], "Done."], delay=1.0), [write(), read()])
    async with agent.open_session(deps=world, conditions=[guard]) as session:
        with anyio.move_on_after(5.0) as scope:
            await agent.run("Go.", session=session)
    assert scope.cancelled_caught
    assert world.running == 0
    guard.flush()
    await anyio.wait_all_tasks_blocked()
    assert world.effects == []


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_host_that_cancels_the_task_of_a_call_itself_sees_it_cancelled():
    ended = []

    @tool(effect="READ")
    async def look() -> str:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(anyio.current_time())

    async def ask(request, on_delta):
        return ModelResponse(tool_calls=(ToolCall("a", "look"),))

    async with Session([look]) as session:
        request = ModelRequest([Message(role="user", content="Go.")])
        response = await session.ask(request, ask)
        began = anyio.current_time()
        # As frameworks do for their time limits, in no scope of anyio's.
        task = asyncio.create_task(session.call(response.tool_calls[0]))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(task, 2)
        assert task.cancelled()
        assert ended == [began + 2]
