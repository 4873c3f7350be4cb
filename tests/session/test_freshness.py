"""What was read or prepared before an overlapping write is never used after it."""

import anyio
import pytest

from headstart import (
    Agent,
    Effect,
    Message,
    ModelRequest,
    Session,
    Tool,
    ToolCall,
    ToolContext,
)
from headstart._events import SpeculationAdopted, SpeculationDiscarded
from headstart.testing import ScriptedModel

from .scene import Expects, World, play, play_both, read, talk, write

pytestmark = pytest.mark.requirement("engine:no-stale-read")
LOOK_7 = ("look", {"row": 7})
CHANGE_7 = ("change", {"row": 7})
CHANGE_8 = ("change", {"row": 8})
STALE = "a write ahead of it changed what it touches"


def thinking(*responses, delay=1.0):
    return ScriptedModel(responses, delay=delay)


def reasons(arm):
    return {(lost.tool, lost.reason) for lost in arm.of(SpeculationDiscarded)}


async def test_a_read_that_ended_before_a_write_began_runs_again():
    agent = Agent(
        thinking([CHANGE_7], [LOOK_7], "Done."),
        [read(seconds=0.5), write()],
        predictors=[Expects(LOOK_7)],
    )
    off, on = await play_both(agent)
    assert on.world.starts[0] == (0.0, "look 7")
    assert on.answers == ["7 is changed", "7 is changed"]
    assert ("look", STALE) in reasons(on)
    assert on.seconds == off.seconds


async def test_a_read_that_still_runs_when_a_write_begins_runs_again():
    agent = Agent(
        thinking([CHANGE_7], [LOOK_7], "Done."),
        [read(seconds=20.0), write()],
        predictors=[Expects(LOOK_7)],
    )
    off, on = await play_both(agent)
    assert on.when(SpeculationDiscarded)[0] == 1.0
    assert on.answers[1] == "7 is changed"
    assert on.seconds == off.seconds


@pytest.mark.parametrize("delay", [0.0, 0.5, 1.0, 1.5])
async def test_a_read_that_is_expected_during_a_write_starts_when_it_has_ended(delay):
    agent = Agent(
        thinking([CHANGE_7], [LOOK_7], "Done.", delay=1.0),
        [read(seconds=1.0), write(prepare=1.0, takes=1.0)],
        predictors=[Expects(LOOK_7, after="assistant", at=2, delay=delay)],
    )
    off, on = await play_both(agent)
    assert on.world.starts == [(1.0, "change 7"), (3.0, "look 7")]
    assert on.answers[1] == "7 is changed"
    assert on.seconds == off.seconds - 1.0


async def test_a_read_that_is_expected_after_a_write_is_used():
    agent = Agent(
        thinking([CHANGE_7], [LOOK_7], "Done."),
        [read(seconds=1.0), write()],
        predictors=[Expects(LOOK_7, after="tool", at=3)],
    )
    off, on = await play_both(agent)
    assert on.answers[1] == "7 is changed"
    assert on.seconds == off.seconds - 1.0


async def test_a_write_of_something_else_leaves_a_read_as_it_is():
    agent = Agent(
        thinking([CHANGE_8], [LOOK_7], "Done."),
        [read(seconds=1.0), write()],
        predictors=[Expects(LOOK_7)],
    )
    off, on = await play_both(agent)
    assert on.world.starts == [(0.0, "look 7"), (1.0, "change 8")]
    assert on.seconds == off.seconds - 1.0


@pytest.mark.parametrize(
    ("reads", "writes", "overlap"),
    [
        (("row",), ("row:{row}",), True),
        (("row:{row}",), ("row",), True),
        (("row:{row}:name",), ("row:{row}",), True),
        (("row:{row}",), ("row:{row}:name",), True),
        (None, ("row:{row}",), True),
        (("row:{row}",), None, True),
        ((), None, False),
        (("rows",), ("row",), False),
        (("row:{row}0",), ("row:{row}",), False),
        (("row:{row}:name",), ("row:{row}:state",), False),
        (("row:{row}", "log"), ("log:last",), True),
    ],
)
async def test_resource_keys_overlap_where_one_covers_the_other(reads, writes, overlap):
    agent = Agent(
        thinking([CHANGE_7], [LOOK_7], "Done."),
        [read(seconds=1.0, reads=reads), write(writes=writes)],
        predictors=[Expects(LOOK_7)],
    )
    on = await play(agent)
    looked = [at for at, what in on.world.starts if what == "look 7"]
    assert looked == ([0.0, 4.0] if overlap else [0.0])


@pytest.mark.parametrize("effect", [Effect.UNSAFE, Effect.GATED])
async def test_a_write_that_declares_nothing_writes_everything(effect):
    async def shake(ctx: ToolContext[World]) -> str:
        await anyio.sleep(1.0)
        ctx.deps.change(ctx, "shake", 7, "shaken")
        return "shaken"

    agent = Agent(
        thinking([("shake", {})], [LOOK_7], "Done."),
        [read(seconds=0.5), Tool(shake, effect=effect)],
        predictors=[Expects(LOOK_7)],
    )
    _, on = await play_both(agent)
    assert on.answers[1] == "7 is shaken"


async def test_a_write_that_fails_counts_as_a_write():
    async def smash(ctx: ToolContext[World], row: int) -> str:
        ctx.deps.change(ctx, "smash", row, "smashed")
        await anyio.sleep(1.0)
        raise OSError("and then it fell over")

    agent = Agent(
        thinking([("smash", {"row": 7})], [LOOK_7], "Done."),
        [read(seconds=0.5), Tool(smash, writes=["row:{row}"])],
        predictors=[Expects(LOOK_7)],
    )
    _, on = await play_both(agent)
    assert on.answers[1] == "7 is smashed"


async def test_a_write_that_was_prepared_before_an_overlapping_write_is_prepared_again():
    async def append(ctx: ToolContext[World], row: int) -> str:
        seen = ctx.deps.rows.get(row, "")
        ctx.deps.note_start(ctx, "append", row)
        await anyio.sleep(0.5)
        await ctx.barrier.wait()
        ctx.deps.change(ctx, "append", row, seen + "+")
        return ctx.deps.rows[row]

    keys = ["row:{row}"]
    tools = [write(), Tool(append, effect=Effect.GATED, reads=keys, writes=keys)]
    expected = ("append", {"row": 7})
    session = Session(tools, deps=World(), predictors=[Expects(expected)])
    async with session:
        request = ModelRequest([Message(role="user", content="Go.")], session.tools)
        response = await session.ask(request, thinking([expected]).respond)
        # The host runs a call of its own before the one that the model asked for.
        await session.call(ToolCall("mine", "change", '{"row": 7}'))
        result = await session.call(response.tool_calls[0])
    assert result.content == session.deps.rows[7] == "changed+"
    assert [what for _, what in session.deps.starts] == [
        "append 7",
        "change 7",
        "append 7",
    ]
    assert [what for _, what in session.deps.effects] == ["change 7", "append 7"]


async def test_of_one_turns_calls_a_write_and_a_read_of_the_same_run_as_if_unspeculated():
    agent = Agent(
        thinking([LOOK_7, CHANGE_7], "Done."),
        [read(seconds=0.5), write(prepare=0.25, takes=0.5)],
        predictors=[Expects(LOOK_7, CHANGE_7)],
    )
    off, on = await play_both(agent)
    assert on.seconds == off.seconds
    assert on.of(SpeculationAdopted) == []
    assert ("look", "its turn writes what it touches") in reasons(on)
    assert sorted(on.world.starts[2:]) == sorted(off.world.starts)


async def test_of_one_turns_calls_those_that_touch_nothing_in_common_are_adopted():
    agent = Agent(
        thinking([LOOK_7, CHANGE_8], "Done."),
        [read(seconds=0.5), write(prepare=0.25, takes=0.5)],
        predictors=[Expects(LOOK_7, CHANGE_8)],
    )
    off, on = await play_both(agent)
    assert on.summary.hits == 2
    assert off.seconds - on.seconds == 0.25


async def test_two_writes_of_one_turn_to_the_same_run_as_if_unspeculated():
    calls = [("alter", {"row": 7, "to": "a"}), ("change", {"row": 7, "to": "b"})]
    tools = [write("alter", takes=1.5), write()]
    agent = Agent(thinking(calls, "Done."), tools, predictors=[Expects(*calls)])
    off, on = await play_both(agent)
    assert on.world.rows == {7: "a"}
    assert on.seconds == off.seconds
    assert on.world.effects == off.world.effects


async def test_a_kept_read_is_dropped_by_a_write_of_a_later_user_message():
    agent = Agent(
        thinking("Hello.", [CHANGE_7], "Changed.", [LOOK_7], "Done."),
        [read(seconds=0.5), write()],
        predictors=[Expects(LOOK_7, after="assistant", at=2)],
    )
    texts = ["Hi.", "Change row 7.", "How is it?"]
    on = await talk(agent, texts, pause=1.0)
    assert on.answers == ["7 is changed", "7 is changed"]


async def test_a_read_in_a_turn_that_is_run_ahead_of_a_write_waits_for_that_write():
    agent = Agent(
        thinking([CHANGE_7], [LOOK_7], "Done."),
        [read(seconds=1.0), write(prepare=0.5, takes=3.0, early="{row} is {to}")],
    )
    off, on = await play_both(agent)
    assert on.summary.run_ahead == 1
    assert on.world.starts == [(1.0, "change 7"), (4.5, "look 7")]
    assert on.answers[1] == "7 is changed"
    assert on.seconds == off.seconds - 1.0


async def test_a_read_that_was_claimed_ahead_of_a_write_is_dropped_when_it_begins():
    approvals = []

    async def approve(call, _):
        approvals.append(call.name)
        await anyio.sleep(5.0)
        return True

    # The write waits for its approval while the next turn, run ahead on its early
    # result, already claims the read; then the write begins.
    agent = Agent(
        thinking([CHANGE_7], [LOOK_7], "Done."),
        [read(seconds=0.5), write(prepare=0.5, early="{row} is {to}", approval=True)],
        predictors=[Expects(LOOK_7)],
        approve=approve,
    )
    _, on = await play_both(agent)
    assert approvals == ["change", "change"]
    assert on.answers[1] == "7 is changed"
    assert ("look", STALE) in reasons(on)


async def test_a_read_ahead_of_a_write_that_nobody_has_approved_yet_waits_for_it():
    async def approve(*_):
        await anyio.sleep(5.0)
        return True

    agent = Agent(
        thinking([CHANGE_7], [LOOK_7], "Done."),
        [read(seconds=0.5), write(prepare=0.5, early="{row} is {to}", approval=True)],
        approve=approve,
    )
    _, on = await play_both(agent)
    # Approved at 6.0 and written at 7.0; the turn that asks to read is there at 2.5.
    assert on.world.starts == [(1.0, "change 7"), (7.0, "look 7")]


async def test_a_read_in_the_stream_waits_for_a_write_that_the_host_still_runs():
    world = World()
    session = Session([read(seconds=0.5), write(takes=3.0)], deps=world)
    model = ScriptedModel(
        [[CHANGE_7], [LOOK_7, ("look", {"row": 8})]],
        delay=1.0,
        seconds_per_delta=0.5,
        characters_per_delta=10,
    )
    request = ModelRequest([Message(role="user", content="Go.")], session.tools)
    async with session, anyio.create_task_group() as group:
        response = await session.ask(request, model.respond)
        group.start_soon(session.call, response.tool_calls[0])
        await anyio.sleep(0.5)
        # The host goes on before the write has ended at 5.5.
        request = request.extended([response.message])
        response = await session.ask(request, model.respond)
        await anyio.wait_all_tasks_blocked()
        assert world.now == 4.5
        assert [what for _, what in world.starts] == ["change 7", "look 8"]
        await anyio.sleep(2.0)
        assert (await session.call(response.tool_calls[0])).content == "7 is changed"


async def test_calls_that_a_host_runs_one_by_one_see_each_others_writes():
    session = Session(
        [read(seconds=0.5), write()], deps=World(), predictors=[Expects(LOOK_7)]
    )
    model = thinking([CHANGE_7, LOOK_7])
    async with session:
        request = ModelRequest([Message(role="user", content="Go.")], session.tools)
        response = await session.ask(request, model.respond)
        contents = [(await session.call(call)).content for call in response.tool_calls]
    assert contents == ["7 is changed", "7 is changed"]
