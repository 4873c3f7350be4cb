"""Faults of what is started early: what it is taken for, and what becomes of it."""

import anyio
import pytest

from headstart import (
    Agent,
    Effect,
    LimitPolicy,
    TextDelta,
    Tool,
    ToolContext,
    tool,
)
from headstart._events import TurnDiscarded
from headstart.testing import ScriptedModel

from .scene import CHANGE_7, CHANGE_8, Arm, Expects, World, play_both, write


@pytest.mark.parametrize(
    ("predicted", "asked", "hit"),
    [
        ('{"a": 1.0, "b": "x"}', '{ "b":"x","a":1.0 }', True),
        ('{"a": 1}', '{"a": 1.0}', True),
        ('{"a": 1.0}', '{"a": 1.0, "b": "x"}', True),  # its default
        ('{"a": 1.0, "b": "\\u00e9"}', '{"a": 1.0, "b": "é"}', True),
        ('{"a": 1.0, "b": "é"}', '{"a": 1.0, "b": "e\\u0301"}', False),
        ('{"a": 0.0}', '{"a": -0.0}', False),
        ('{"a": 1.0}', '{"a": 2.0}', False),
        ('{"a": 1.0, "b": "X"}', '{"a": 1.0, "b": "x"}', False),
    ],
)
async def test_fault_36_a_guess_is_a_hit_only_if_it_means_the_same(
    predicted, asked, hit
):
    @tool(effect=Effect.READ)
    async def show(ctx: ToolContext[World], a: float, b: str = "x") -> str:
        return repr((a, b))

    model = ScriptedModel([[("show", asked)], "Done."], delay=1.0, stream=False)
    agent = Agent(model, [show], predictors=[Expects(("show", predicted))])
    _, on = await play_both(agent)
    assert on.summary.hits == hit


async def test_fault_36_without_a_schema_a_type_is_a_difference():
    async def show(arguments: dict) -> str:
        return repr(arguments)

    for predicted, asked in (("1", '"1"'), ("1", "true"), ("null", "0")):
        model = ScriptedModel([[("show", f'{{"a": {asked}}}')], "Done."], stream=False)
        guess = Expects(("show", f'{{"a": {predicted}}}'))
        made = Tool(show, parameters={"type": "object"}, effect=Effect.READ)
        _, on = await play_both(Agent(model, [made], predictors=[guess]))
        assert on.summary.hits == 0


@pytest.mark.parametrize("guesses", [1, 2, 3])
async def test_fault_37_two_equal_calls_side_by_side_are_two_effects(guesses):
    model = ScriptedModel([[CHANGE_7, CHANGE_7], "Done."], delay=2.0, stream=False)
    agent = Agent(
        model,
        [write(writes=())],  # nothing in common, such as sending a message
        predictors=[Expects(*[CHANGE_7] * guesses)],
    )
    _, on = await play_both(agent)
    assert len(on.world.effects) == 2
    assert sorted(on.world.calls) == ["call_1_0", "call_1_1"]
    assert 1 <= on.summary.hits <= min(guesses, 2)


async def test_fault_40_a_chain_of_turns_on_a_wrong_guess_is_thrown_away_whole():
    def respond(request):
        told = [m.content for m in request.history if m.role == "tool"]
        if not told:
            return ["One. ", CHANGE_7]
        if len(told) == 1:
            return [f"After {told[0]}. ", CHANGE_8]
        return f"Last of {told}."

    learned = []

    class Learns(Expects):
        def learn(self, conversation, response):
            learned.append(response.text)

    model = ScriptedModel(respond, delay=0.5, characters_per_delta=80)
    slow = write(prepare=0.25, takes=8.0, early="{row} is a lie")
    agent = Agent(model, [slow], predictors=[Learns()], policy=LimitPolicy(max_depth=2))
    off, on = await play_both(agent)
    lies = [r for r in model.records if "is a lie" in str(_contents(r.request))]
    assert len({len(record.request.history) for record in lies}) == 2  # two turns deep
    assert len(on.of(TurnDiscarded)) >= 2
    assert on.seconds == off.seconds
    assert on.result.usage == off.result.usage
    assert on.summary.wasted_tokens > 0  # thrown away, and paid for
    assert "lie" not in "".join(learned)

    shown = []
    arm = Arm(World())
    async with agent.open_session(deps=arm.world) as session:
        async with agent.stream("Go.", session=session) as stream:
            shown += [i.text async for i in stream if isinstance(i, TextDelta)]
    assert "lie" not in "".join(shown)
    assert shown[-1] == on.result.text


def _contents(request):
    return [message.content for message in request.history]


@pytest.mark.parametrize("fault", ["fails", "hangs", "takes too long"])
async def test_fault_42_a_launch_that_fails_is_not_shown_and_the_real_call_is_made(
    fault,
):
    @tool(effect=Effect.READ, timeout=0.5)
    async def look_up(ctx: ToolContext[World]) -> str:
        if ctx.speculative:
            if fault == "fails":
                raise ConnectionError("no slot for a guess")
            await anyio.sleep(0.75 if fault == "takes too long" else 60.0)
        return "fine"

    model = ScriptedModel([[("look_up", {})], "Done."], delay=1.0, stream=False)
    agent = Agent(model, [look_up], predictors=[Expects(("look_up", {}))])
    off, on = await play_both(agent)
    assert on.answers == ["fine"]
    assert on.seconds == off.seconds
    assert on.summary.launches == 1
