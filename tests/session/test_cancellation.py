"""A run that is cancelled, at whatever moment, ends at once and leaves nothing."""

import anyio
import anyio.lowlevel
import pytest

from headstart import Agent, BarrierState, LimitPolicy, TextDelta
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
        seconds_per_delta=0.125,
    )
    return Agent(
        model,
        [
            read(),
            write(prepare=0.5, takes=1.25, early="{row} is {to}", approval=True),
            write("alter", prepare=0.75, takes=1.5, early="a lie"),
        ],
        predictors=[
            Expects(LOOK_7, LOOK_8, CHANGE_7, CHANGE_8),
            Expects(LOOK_8, CHANGE_8, after="tool", delay=0.125),
            Expects(LOOK_8, after="assistant"),
        ],
        policy=LimitPolicy(max_depth=2),
        approve=approve,
    )


class Recorded(BaseException):
    """Stands for nothing; never raised."""


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
async def test_a_run_that_is_cancelled_at_any_eighth_of_a_second_leaves_nothing(stream):
    whole = await play(busy_agent())
    off = await play(busy_agent(), speculate=False)
    order = [what for _, what in off.world.effects]
    assert [what for _, what in whole.world.effects] == order
    for eighths in range(int(whole.seconds * 8) + 2):

        async def after(seconds=eighths / 8):
            await anyio.sleep(seconds)

        arm = await cut_short(after, stream=stream)
        assert is_beginning([what for _, what in arm.world.effects], order)
        assert is_beginning(arm.world.effects, whole.world.effects)
    assert arm.result == whole.result


@pytest.mark.requirement("engine:same-effects")
async def test_a_run_that_is_cancelled_after_any_number_of_steps_leaves_nothing():
    whole = await play(busy_agent())
    steps = 0
    while True:
        steps += 1

        async def after(steps=steps):
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
                if not anyio.get_current_task():
                    break
            await anyio.sleep(0.125 * (steps // 8))

        arm = await cut_short(after)
        assert is_beginning(arm.world.effects, whole.world.effects)
        if arm.result is not None:
            break
    assert arm.result == whole.result


async def test_a_call_that_is_cancelled_alone_ends_alone():
    agent = busy_agent()
    del agent


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
