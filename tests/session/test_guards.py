"""Guards that hardly anything else would miss: each has a mutant in `tests/mutants.py`."""

import anyio
import pytest

from headstart import (
    Agent,
    Effect,
    LimitPolicy,
    ModelResponse,
    Tool,
    ToolCall,
    ToolContext,
    ToolDefinitionError,
)
from headstart._events import CallLaunched, ToolsEnded
from headstart.testing import ScriptedModel

from .scene import Expects, World, play, play_both, read, write

LOOK_7, LOOK_8 = ("look", {"row": 7}), ("look", {"row": 8})
CHANGE_1, CHANGE_2 = ("change", {"row": 1}), ("alter", {"row": 2})
CHANGE_7 = ("change", {"row": 7})
TRUE = "{row} is {to}"


def thinking(*responses, delay=1.0, **options):
    return ScriptedModel(responses, delay=delay, **options)


def peek(after):
    """A read that looks at its row only after a while."""

    async def function(ctx: ToolContext[World], row: int) -> str:
        await anyio.sleep(after)
        return f"{row} is {ctx.deps.rows.get(row, 'new')}"

    return Tool(function, name="peek", effect=Effect.READ, reads=["row:{row}"])


# Which calls are launched, and adopted


@pytest.mark.requirement("engine:once")
async def test_two_calls_of_one_identifier_are_two_calls():
    calls = [ToolCall("same", "look", '{"row": 7}')] * 2
    model = thinking(ModelResponse(tool_calls=tuple(calls)), "Done.")
    agent = Agent(model, [read()], predictors=[Expects(LOOK_7, LOOK_7)])
    _, on = await play_both(agent)
    assert on.summary.hits == 2
    assert len(on.of(ToolsEnded)) == 1


@pytest.mark.requirement("engine:once")
def test_a_tool_whose_equal_calls_share_a_result_is_a_read():
    with pytest.raises(ToolDefinitionError) as caught:
        write(deterministic=True)
    assert caught.value.tool == "change"


@pytest.mark.requirement("engine:once")
async def test_a_failure_is_not_shared_by_equal_calls():
    async def function(ctx: ToolContext[World], row: int) -> str:
        ctx.deps.note_start(ctx, "look", row)
        if len(ctx.deps.starts) == 1:
            msg = "out of order"
            raise ValueError(msg)
        return f"{row} is fine"

    tool = Tool(function, name="look", effect=Effect.READ, deterministic=True)
    agent = Agent(thinking([LOOK_7], [LOOK_7], [LOOK_7], "Done.", stream=False), [tool])
    arm = await play(agent)
    assert arm.answers == ["ValueError: out of order", "7 is fine", "7 is fine"]
    assert len(arm.world.starts) == 2


@pytest.mark.requirement("engine:contained")
async def test_a_launch_that_has_denied_its_own_barrier_and_still_runs_is_not_adopted():
    async def function(ctx: ToolContext[World], row: int) -> str:
        await anyio.sleep(0.25)
        ctx.barrier.deny("it would rather not")
        with anyio.CancelScope(shield=True):
            await anyio.sleep(5.0)
        return f"{row} is fine"

    tool = Tool(function, name="look", effect=Effect.GATED)
    model = thinking([LOOK_7, ("glance", {"row": 8})], "Done.", seconds_per_delta=0.5)
    off, on = await play_both(Agent(model, [tool, read("glance", reads=[])]))
    assert on.of(CallLaunched)[0].cause == "sealed"
    assert on.answers == ["7 is fine", "8 is new"]
    assert on.seconds == off.seconds


@pytest.mark.requirement("engine:no-stale-read")
async def test_a_read_that_is_too_old_to_be_claimed_is_started_again_in_the_stream():
    model = thinking(
        [LOOK_7, ("glance", {"row": 8})],
        "Done.",
        delay=3.0,
        seconds_per_delta=0.5,
        characters_per_delta=10,
    )
    tools = [read(seconds=2.0, max_age=1.5), read("glance", seconds=0.0)]
    off, on = await play_both(Agent(model, tools, predictors=[Expects(LOOK_7)]))
    assert [at for at, what in on.world.starts if what == "look 7"] == [0.0, 3.5]
    assert on.seconds < off.seconds


async def test_a_call_does_not_claim_what_was_launched_for_a_turn_beside_it():
    model = thinking(
        [CHANGE_7, LOOK_8],
        "Done.",
        delay=2.0,
        seconds_per_delta=0.5,
        characters_per_delta=10,
    )
    agent = Agent(
        model,
        [read(seconds=0.75), write(prepare=3.0)],
        predictors=[Expects(LOOK_7), Expects(CHANGE_7, after="tool")],
        policy=LimitPolicy(min_beside_probability=0.5),
    )
    off, on = await play_both(agent)
    # Expected beside from 0.75 to 2.75, and written at 2.5; the rest takes 1.0.
    assert [at for at, what in on.world.starts if what == "change 7"] == [0.75, 2.5]
    assert on.seconds == off.seconds - 1.0


@pytest.mark.requirement("engine:no-stale-read")
async def test_a_read_that_follows_an_expected_write_is_started_once():
    agent = Agent(
        thinking([("change", '{"row":7}')], [LOOK_7], "Done.", delay=2.0),
        [read(seconds=0.5), write(prepare=0.5, early=TRUE)],
        predictors=[
            Expects(("change", '{"row":7}')),
            Expects(LOOK_7, after="tool", at=3),
        ],
        policy=LimitPolicy(min_beside_probability=0.5),
    )
    _, on = await play_both(agent)
    assert on.summary.run_ahead == 1
    assert on.world.starts == [(0.0, "change 7"), (3.0, "look 7")]


# The calls of a turn that touch the same


@pytest.mark.requirement("engine:same-transcript")
@pytest.mark.parametrize("first", [[CHANGE_1], [CHANGE_1, CHANGE_2]])
async def test_calls_that_touch_the_same_are_not_prepared_ahead_of_their_turn(first):
    tools = [
        write(prepare=1.0, takes=3.0, early=TRUE),
        write("alter", prepare=1.0, takes=2.0, early=TRUE),
        write("fix", prepare=1.0, takes=0.0),
        peek(0.5),
    ]
    second = [("fix", {"row": 7}), ("peek", {"row": 7})]
    _, on = await play_both(Agent(thinking(first, second, "Done."), tools))
    assert on.summary.run_ahead == 1
    assert on.answers[-1] == "7 is new"


@pytest.mark.requirement("engine:same-transcript")
async def test_a_write_whose_turn_reads_the_same_is_not_prepared_during_its_approval():
    async def approve(*_):
        await anyio.sleep(2.0)
        return True

    calls = [CHANGE_7, ("peek", {"row": 7})]
    tools = [write(prepare=1.0, takes=0.0, approval=True), peek(2.5)]
    _, on = await play_both(Agent(thinking(calls, "Done."), tools, approve=approve))
    assert on.answers == ["7 is changed", "7 is new"]


@pytest.mark.requirement("engine:same-effects")
async def test_calls_of_one_turn_that_wait_for_a_write_and_touch_the_same_start_afresh():
    tools = [
        write(prepare=0.5, takes=20.0, early=TRUE, writes=None),
        write("fix", prepare=1.0, takes=0.0),
    ]
    second = [("fix", {"row": 7}), ("fix", {"row": 7})]
    model = thinking([CHANGE_7], second, "Done.", seconds_per_delta=0.25)
    _, on = await play_both(Agent(model, tools))
    assert on.summary.run_ahead == 1
    assert {event.tool for event in on.of(CallLaunched)} <= {"change"}
