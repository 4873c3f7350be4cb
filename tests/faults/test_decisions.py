"""Faults of a decision and of the tree of barriers."""

import anyio
import pytest

from headstart import (
    Agent,
    BarrierState,
    Effect,
    LimitPolicy,
    SpeculationError,
    ToolCallSpeculator,
    ToolContext,
    WriteBarrier,
    WriteDenied,
    tool,
)
from headstart.testing import ScriptedModel

from .scene import CHANGE_8, LOOK_8, Expects, play_both, read, write

HELD, FLUSHED, DENIED = BarrierState


async def test_fault_1_a_wrong_guess_leaves_no_trace_and_gives_its_slot_back(caplog):
    wrong = ("change", {"row": 7, "to": "xyzzy"})
    agent = Agent(
        ScriptedModel([[LOOK_8], [CHANGE_8], "Done."], delay=2.0),
        [write(prepare=0.5), read()],
        predictors=[Expects(wrong), Expects(CHANGE_8, after="tool", at=3)],
        policy=LimitPolicy(max_in_flight=1),
    )
    _, on = await play_both(agent)
    assert [what for _, what in on.world.starts] == ["change 7", "look 8", "change 8"]
    assert on.world.rows == {8: "changed"}
    assert on.summary.hits == 1  # in the slot that the wrong one had
    said = [message.to_dict() for message in on.result.messages]
    assert "xyzzy" not in repr((said, on.log.events, caplog.text))


async def test_fault_1_the_result_of_a_denied_call_is_unusable():
    @tool(effect=Effect.READ)
    async def look_up() -> str:
        return "found"

    async with ToolCallSpeculator(look_up, "{}") as guess:
        await guess.wait()
        guess.barrier.deny("a wrong guess")
        with pytest.raises(SpeculationError):
            await guess.adopt()


@pytest.mark.parametrize("grace", [0.0, 1.0])
async def test_fault_3_a_denial_ends_a_tool_that_swallows_its_cancellation(grace):
    effects, refused = [], []

    @tool(effect=Effect.GATED)
    async def stubborn(ctx: ToolContext) -> str:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await anyio.sleep(grace)
                try:
                    await ctx.barrier.wait()
                    effects.append("posted")
                except WriteDenied as denial:
                    refused.append(denial.reason)
        return "posted"

    async with ToolCallSpeculator(stubborn, "{}") as guess:
        await anyio.sleep(1.0)
        guess.barrier.deny("a wrong guess")
        denied_at = anyio.current_time()
        with pytest.raises(SpeculationError):
            await guess.wait()
        assert anyio.current_time() == denied_at
    assert anyio.current_time() == denied_at + grace
    assert effects == []
    assert refused == ["a wrong guess"]


@pytest.mark.parametrize("parent_state", [FLUSHED, DENIED])
async def test_fault_9_a_child_of_a_settled_parent_is_held_or_denied(parent_state):
    parent = WriteBarrier()
    parent.flush() if parent_state is FLUSHED else parent.deny("no")
    child = parent.child()
    held = parent_state is FLUSHED
    assert child.effective_state is (HELD if held else DENIED)
    child.flush()
    assert child.effective_state is parent_state
    if not held:
        with pytest.raises(WriteDenied):
            await child.wait()


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt, SystemExit])
def test_fault_11_whatever_leaves_a_scope_denies_and_goes_on(error):
    with pytest.raises(error) as caught:
        with WriteBarrier() as barrier:
            raise error("mine")
    assert caught.value.args == ("mine",)
    assert barrier.state is DENIED


def test_fault_11_closing_a_generator_denies_the_barrier_in_it():
    def scope():
        with WriteBarrier() as barrier:
            yield barrier

    generator = scope()
    barrier = next(generator)
    assert barrier.state is HELD
    generator.close()
    assert barrier.state is DENIED
