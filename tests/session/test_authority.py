"""Approvals and conditions are for the real call, and effects wait for them."""

import anyio
import pytest

from headstart import (
    Agent,
    Effect,
    EventLog,
    Session,
    Tool,
    ToolContext,
    UsageError,
    WriteBarrier,
)
from headstart._events import CallLaunched, CallRefused, SpeculationDiscarded
from headstart.testing import ScriptedModel

from .scene import Arm, Expects, World, play, play_both, read, write

pytestmark = pytest.mark.requirement("engine:authority")
LOOK_7 = ("look", {"row": 7})
CHANGE_7 = ("change", {"row": 7})
CHANGE_8 = ("change", {"row": 8})


def thinking(*responses, delay=1.0):
    return ScriptedModel(responses, delay=delay)


class Approver:
    """Says yes to some calls, after a while, and remembers what it was asked."""

    def __init__(self, *rows, takes=0.0):
        self.rows, self.takes, self.asked = rows, takes, []

    async def __call__(self, call, deps):
        assert isinstance(deps, World)
        self.asked.append((deps.now, call.id, call.arguments))
        await anyio.sleep(self.takes)
        return any(f'"row": {row}' in call.arguments for row in self.rows)


def agent_for(*responses, tools, approve=None, predictors=()):
    return Agent(thinking(*responses), tools, predictors=predictors, approve=approve)


async def test_the_real_call_is_approved_once_and_a_guess_never():
    approve = Approver(7, takes=2.0)
    agent = agent_for(
        [CHANGE_7],
        "Done.",
        tools=[write(approval=True)],
        approve=approve,
        predictors=[Expects(CHANGE_7, CHANGE_8)],
    )
    off, on = await play_both(agent)
    assert approve.asked == [(1.0, "call_1_0", '{"row": 7}')] * 2
    # Prepared from 0.0 to 1.0, approved at 3.0.
    assert on.world.effects == [(4.0, "change 7")]
    assert on.summary.hidden_s == off.seconds - on.seconds == 1.0


async def test_a_write_is_prepared_while_its_approval_is_decided():
    approve = Approver(7, takes=2.0)
    agent = agent_for(
        [CHANGE_7, ("glance", {"row": 1})],
        "Done.",
        tools=[write(prepare=2.0, approval=True), read("glance")],
        approve=approve,
    )
    off, on = await play_both(agent)
    assert on.of(CallLaunched)[0].cause == "sealed"
    assert off.seconds - on.seconds == 2.0


async def test_a_yes_for_one_call_is_no_yes_for_another():
    approve = Approver(7)
    agent = agent_for(
        [CHANGE_8],
        "Done.",
        tools=[write(approval=True)],
        approve=approve,
        predictors=[Expects(CHANGE_7, CHANGE_8)],
    )
    _, on = await play_both(agent)
    assert on.world.effects == []
    assert on.answers == ["The call was not approved."]
    assert {row for _, _, row in approve.asked} == {'{"row": 8}'}


async def test_each_of_two_equal_calls_is_approved_for_itself():
    answers = iter([True, False, True, False])

    async def approve(call, _):
        await anyio.sleep(0.25 if call.id.endswith("0") else 0.5)
        return next(answers)

    agent = agent_for(
        [CHANGE_7, CHANGE_7], "Done.", tools=[write(approval=True)], approve=approve
    )
    _, on = await play_both(agent)
    assert on.answers == ["7 is changed", "The call was not approved."]


async def test_a_refusal_denies_the_effect_and_ends_the_preparation():
    agent = agent_for(
        [CHANGE_7],
        "Done.",
        tools=[write(approval=True)],
        approve=Approver(takes=0.5),
        predictors=[Expects(CHANGE_7)],
    )
    off, on = await play_both(agent)
    assert on.world.effects == []
    assert on.seconds == off.seconds == 2.5
    assert [(d.at_s, d.reason) for d in on.of(SpeculationDiscarded)] == [
        (1.5, "it was not approved")
    ]
    assert all(barrier.reason for barrier in on.world.barriers)


async def test_what_ran_ahead_of_a_refusal_is_thrown_away():
    def respond(request):
        last = request.history[-1]
        return [CHANGE_7] if last.role == "user" else f"({last.content})"

    tool = write(prepare=0.5, early="{row} is {to}", approval=True)
    agent = Agent(
        ScriptedModel(respond, delay=1.0), [tool], approve=Approver(takes=9.0)
    )
    off, on = await play_both(agent)
    assert on.summary.run_ahead_discarded == 1
    assert on.result.text == "(The call was not approved.)"
    assert on.seconds == off.seconds


@pytest.mark.parametrize("answer", [None, 1, "yes"])
async def test_only_a_plain_yes_is_a_yes(answer):
    async def approve(*_):
        return answer

    agent = agent_for(
        [CHANGE_7], "Done.", tools=[write(approval=True)], approve=approve
    )
    _, on = await play_both(agent)
    assert on.world.effects == []


@pytest.mark.parametrize("speculate", [True, False])
async def test_what_an_approver_raises_reaches_the_host_and_nothing_happens(speculate):
    async def approve(*_):
        raise PermissionError("no session")

    agent = agent_for(
        [CHANGE_7],
        "Done.",
        tools=[write(approval=True)],
        approve=approve,
        predictors=[Expects(CHANGE_7)],
    )
    world = World()
    with pytest.raises(PermissionError):
        async with agent.open_session(deps=world, speculate=speculate) as session:
            await agent.run("Go.", session=session)
    assert world.effects == []
    assert world.running == 0


async def test_a_call_that_cannot_run_is_not_put_to_approval():
    approve = Approver(7)
    agent = agent_for(
        [("change", {"row": "seven"})],
        "Done.",
        tools=[write(approval=True)],
        approve=approve,
    )
    await play_both(agent)
    assert approve.asked == []


@pytest.mark.requirement("engine:default-deny")
async def test_a_read_that_needs_approval_does_not_run_before_it():
    agent = agent_for(
        [LOOK_7],
        "Done.",
        tools=[read(approval=True)],
        approve=Approver(7, takes=0.5),
        predictors=[Expects(LOOK_7)],
    )
    _, on = await play_both(agent)
    assert on.world.starts == [(1.5, "look 7")]
    assert {refused.reason for refused in on.of(CallRefused)} == {"approval"}


def test_a_tool_that_needs_approval_needs_somebody_to_ask():
    with pytest.raises(UsageError):
        Session([write(approval=True)])
    with pytest.raises(UsageError):
        Agent(thinking(), [write(approval=True)])


# Conditions: barriers above every effect of a session.


def unsafe(name="zap"):
    async def function(ctx: ToolContext[World], row: int) -> str:
        ctx.deps.change(ctx, name, row, "gone")
        return f"{row} is gone"

    return Tool(function, name=name, effect=Effect.UNSAFE, writes=["row:{row}"])


async def guarded(agent, *, speculate, flush_at=None, deny_at=None):
    """Run an agent whose effects wait for a guardrail that decides at some time."""
    guard = WriteBarrier(name="guardrail")
    arm = Arm(World(), EventLog())

    async def decide():
        await anyio.sleep(flush_at or deny_at)
        if deny_at is None:
            guard.flush()
        else:
            guard.deny("off topic")

    async with anyio.create_task_group() as group:
        group.start_soon(decide)
        async with agent.open_session(
            deps=arm.world, sink=arm.log, conditions=[guard], speculate=speculate
        ) as session:
            arm.result = await agent.run("Go.", session=session)
            arm.seconds = arm.world.now
    assert arm.world.running == 0
    return arm


async def guarded_both(agent, **when):
    off = await guarded(agent, speculate=False, **when)
    on = await guarded(agent, speculate=True, **when)
    assert on.result == off.result
    assert on.world.rows == off.world.rows
    return off, on


@pytest.mark.parametrize("tool", [write(), write(prepare=0.0), unsafe("change")])
async def test_effects_wait_for_every_condition(tool):
    agent = agent_for([CHANGE_7], "Done.", tools=[tool], predictors=[Expects(CHANGE_7)])
    off, on = await guarded_both(agent, flush_at=5.0)
    assert on.world.effects == off.world.effects
    assert on.world.effects[0][0] >= 5.0
    assert on.summary.hidden_s == off.seconds - on.seconds == 0.0


@pytest.mark.parametrize("deny_at", [0.25, 0.5, 1.25, 1.75, 5.0])
@pytest.mark.parametrize("tool", [write(), unsafe("change")])
async def test_a_denied_condition_refuses_the_effect_and_says_why(tool, deny_at):
    agent = agent_for([CHANGE_7], "Done.", tools=[tool], predictors=[Expects(CHANGE_7)])
    off, on = await guarded_both(agent, deny_at=deny_at)
    assert on.world.effects == off.world.effects == []
    assert on.answers == ["The call was refused: off topic."]
    assert on.seconds <= off.seconds
    assert on.summary.hidden_s == off.seconds - on.seconds


@pytest.mark.parametrize("deny_at", [0.25, 1.5, 2.5])
async def test_reads_go_on_whatever_the_conditions_say(deny_at):
    agent = agent_for([LOOK_7], "Done.", tools=[read()], predictors=[Expects(LOOK_7)])
    off, on = await guarded_both(agent, deny_at=deny_at)
    assert on.answers == ["7 is new"]
    assert on.seconds == off.seconds - 1.0


async def test_the_model_and_the_reads_do_not_wait_for_a_condition():
    agent = agent_for(
        [CHANGE_7],
        [("look", {"row": 8})],
        "Done.",
        tools=[write(early="{row} is {to}", prepare=0.5), read()],
        predictors=[Expects(CHANGE_7)],
    )
    off, on = await guarded_both(agent, flush_at=9.0)
    assert on.world.starts == [(0.0, "change 7"), (2.0, "look 8")]
    assert off.world.starts == [(1.0, "change 7"), (11.0, "look 8")]


async def test_a_write_that_turns_out_to_change_nothing_needs_no_condition():
    async def function(ctx: ToolContext[World], row: int) -> str:
        await anyio.sleep(2.0)
        return f"{row} is as it should be"

    tool = Tool(function, name="change", effect=Effect.GATED, writes=["row:{row}"])
    agent = agent_for([CHANGE_7], "Done.", tools=[tool], predictors=[Expects(CHANGE_7)])
    _, on = await guarded_both(agent, deny_at=1.5)
    assert on.answers == ["7 is as it should be"]


async def test_an_approval_and_a_condition_are_both_needed():
    agent = agent_for(
        [CHANGE_7, CHANGE_8],
        "Done.",
        tools=[write(approval=True)],
        approve=Approver(7, takes=1.0),
        predictors=[Expects(CHANGE_7)],
    )
    _, on = await guarded_both(agent, flush_at=4.0)
    assert on.world.effects == [(5.0, "change 7")]


async def test_a_condition_that_is_open_before_the_session_costs_nothing():
    guard = WriteBarrier()
    guard.flush()
    agent = agent_for(
        [CHANGE_7], "Done.", tools=[write()], predictors=[Expects(CHANGE_7)]
    )
    off, on = await play_both(agent, conditions=[guard])
    assert on.seconds == off.seconds - 1.0
    assert (await play(agent)).seconds == on.seconds
