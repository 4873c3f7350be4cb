"""A host that runs the calls of a turn one after the other."""

import pytest

from headstart import Message, ModelRequest, Session
from headstart.testing import ScriptedModel

from .scene import Arm, Expects, World, read, write

LOOK_7 = ("look", {"row": 7})
LOOK_8 = ("look", {"row": 8})
CHANGE_7 = ("change", {"row": 7})


async def host(*calls, speculate, expects, tools):
    """Ask once, run the calls, and ask for the answer."""
    arm = Arm(World())
    model = ScriptedModel([list(calls), "Done."], delay=1.0)
    session = Session(
        tools,
        deps=arm.world,
        sink=arm.log,
        predictors=[Expects(*expects)],
        speculate=speculate,
        ordered=True,
    )
    async with session:
        request = ModelRequest([Message(role="user", content="Go.")], session.tools)
        first = await session.ask(request, model.respond)
        results = await session.call_all(first.tool_calls)
        request = request.extended([first.message]).answered(first.tool_calls, results)
        await session.ask(request, model.respond)
        arm.seconds = arm.world.now
    return [result.content for result in results], arm


async def host_both(*calls, expects=None, tools=None):
    tools = tools or [read(seconds=2.0), write(prepare=1.0, takes=1.0)]
    expects = calls if expects is None else expects
    contents, off = await host(*calls, speculate=False, expects=expects, tools=tools)
    same, on = await host(*calls, speculate=True, expects=expects, tools=tools)
    assert same == contents
    assert on.world.rows == off.world.rows
    assert off.summary.hidden_s == 0
    assert on.summary.hidden_s == off.seconds - on.seconds
    return contents, off, on


async def test_calls_that_run_one_after_the_other_add_up():
    _, off, on = await host_both(LOOK_7, LOOK_8)
    assert off.seconds == 1.0 + 2.0 + 2.0 + 1.0
    assert on.seconds == 2.0 + 1.0


async def test_a_read_before_a_write_to_the_same_is_used():
    contents, _, on = await host_both(LOOK_7, CHANGE_7, expects=[LOOK_7])
    assert contents == ["7 is new", "7 is changed"]
    assert [what for _, what in on.world.starts].count("look 7") == 1


@pytest.mark.requirement("engine:no-stale-read")
async def test_a_read_after_a_write_to_the_same_is_run_again():
    contents, _, on = await host_both(CHANGE_7, LOOK_7)
    assert contents == ["7 is changed", "7 is changed"]
    assert on.world.starts[-1] == (2.0, "look 7")


@pytest.mark.requirement("engine:no-stale-read")
async def test_each_read_sees_the_writes_before_it():
    tools = [read(seconds=0.5), write(prepare=0.5, takes=2.0, early="{row} is {to}")]
    contents, _, _ = await host_both(CHANGE_7, LOOK_7, CHANGE_7, LOOK_7, tools=tools)
    assert contents == ["7 is changed"] * 4


@pytest.mark.requirement("engine:same-effects")
async def test_effects_happen_in_the_order_of_the_calls():
    tools = [write(prepare=3.0, takes=1.0), write("alter", prepare=0.0, takes=0.0)]
    alter = ("alter", {"row": 8})
    _, off, on = await host_both(CHANGE_7, alter, tools=tools)
    assert [what for _, what in on.world.effects] == ["change 7", "alter 8"]
    assert [what for _, what in off.world.effects] == ["change 7", "alter 8"]
    assert on.seconds == off.seconds - 1.0
