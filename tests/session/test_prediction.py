"""Calls that a predictor expects run while the model thinks; hits save exact time."""

import anyio
import pytest

from headstart import (
    Agent,
    Effect,
    LimitPolicy,
    Message,
    ModelRequest,
    Session,
    Tool,
    ToolContext,
)
from headstart._events import (
    CallLaunched,
    CallPredicted,
    CallRefused,
    EffectHeld,
    SpeculationAdopted,
    SpeculationDiscarded,
)
from headstart.predictors import Prediction
from headstart.testing import ScriptedModel

from .scene import Expects, World, play, play_both, read, talk, write

LOOK_7 = ("look", {"row": 7})
LOOK_8 = ("look", {"row": 8})
CHANGE_7 = ("change", {"row": 7})


def thinking(*responses, delay=1.0):
    return ScriptedModel(responses, delay=delay)


async def test_a_predicted_read_runs_while_the_model_thinks_and_is_joined():
    agent = Agent(
        thinking([LOOK_7], "Done."), [read(seconds=2.0)], predictors=[Expects(LOOK_7)]
    )
    off, on = await play_both(agent)
    assert off.seconds == 1.0 + 2.0 + 1.0
    assert on.seconds == 2.0 + 1.0
    assert on.world.starts == [(0.0, "look 7")]
    (adopted,) = on.of(SpeculationAdopted)
    assert (adopted.hidden_s, adopted.ready) == (1.0, False)
    assert on.summary.hidden_s == off.seconds - on.seconds


async def test_a_predicted_read_that_has_ended_costs_no_time_at_all():
    agent = Agent(
        thinking([LOOK_7], "Done."), [read(seconds=0.75)], predictors=[Expects(LOOK_7)]
    )
    off, on = await play_both(agent)
    assert on.seconds == 2.0
    assert on.summary.ready == on.summary.hits == 1
    assert on.summary.hidden_s == off.seconds - on.seconds == 0.75


async def test_a_read_is_launched_for_what_it_is_worth_later_and_a_write_is_not():
    class Foresees(Expects):
        async def predict(self, conversation):
            return [
                Prediction(tool=name, arguments=row, probability=0.01, eventually=0.9)
                for name, row in (LOOK_7, CHANGE_7)
            ]

    agent = Agent(
        thinking([LOOK_8], [LOOK_7], "Done."),
        [read(seconds=1.0), write()],
        predictors=[Foresees()],
    )
    off, on = await play_both(agent)
    assert [(e.tool, e.reason) for e in on.of(CallRefused)][:1] == [
        ("change", "improbable")
    ]
    assert on.seconds == off.seconds - 1.0


async def test_arguments_that_mean_the_same_are_a_hit():
    agent = Agent(
        thinking([("look", '{"debug_why": "x",  "row": 7}')], "Done."),
        [read()],
        predictors=[Expects(LOOK_7)],
    )
    _, on = await play_both(agent)
    assert on.summary.hits == 1


@pytest.mark.requirement("engine:same-effects")
async def test_a_predicted_write_is_prepared_and_has_its_effect_after_it_was_asked_for():
    agent = Agent(
        thinking([CHANGE_7], "Done.", delay=3.0),
        [write(prepare=1.0, takes=0.5)],
        predictors=[Expects(CHANGE_7)],
    )
    off, on = await play_both(agent)
    assert on.world.starts == [(0.0, "change 7")]
    assert on.when(EffectHeld) == [1.0]
    assert on.world.effects == [(3.5, "change 7")]
    assert off.world.effects == [(4.5, "change 7")]
    assert on.world.calls == off.world.calls == ["call_1_0"]
    assert on.summary.hidden_s == off.seconds - on.seconds == 1.0


async def test_a_write_that_is_asked_for_while_it_is_prepared_never_waits_at_its_barrier():
    agent = Agent(
        thinking([CHANGE_7], "Done."),
        [write(prepare=2.5, takes=0.5)],
        predictors=[Expects(CHANGE_7)],
    )
    _, on = await play_both(agent)
    assert on.of(EffectHeld) == []
    assert on.world.effects == [(3.0, "change 7")]


@pytest.mark.requirement("engine:invisible")
@pytest.mark.requirement("engine:never-slower")
async def test_a_wrong_prediction_has_no_effect_and_shows_nowhere_but_in_the_events():
    agent = Agent(
        thinking([LOOK_7], "Done."),
        [read(), write()],
        predictors=[Expects(LOOK_8, CHANGE_7)],
    )
    off, on = await play_both(agent)
    assert on.seconds == off.seconds
    assert on.world.effects == []
    assert on.summary.hits == 0
    reasons = {lost.tool: lost.reason for lost in on.of(SpeculationDiscarded)}
    assert reasons["change"] == "the model did not ask for it"


async def test_a_write_that_was_not_asked_for_is_cancelled_at_the_response():
    agent = Agent(
        thinking("Nothing to do."), [write(prepare=5.0)], predictors=[Expects(CHANGE_7)]
    )
    on = await play(agent)
    assert on.when(SpeculationDiscarded) == [1.0]
    assert on.seconds == 1.0
    assert all(barrier.reason for barrier in on.world.barriers)


@pytest.mark.requirement("engine:default-deny")
@pytest.mark.parametrize("effect", [Effect.UNSAFE, None])
async def test_a_tool_that_is_unsafe_or_undeclared_is_never_launched(effect):
    options = {} if effect is None else {"effect": effect}

    async def zap(ctx: ToolContext[World], row: int) -> str:
        ctx.deps.change(ctx, "zap", row, "gone")
        return "gone"

    agent = Agent(
        thinking([("zap", {"row": 7})], "Done."),
        [Tool(zap, **options)],
        predictors=[Expects(("zap", {"row": 7}))],
    )
    _, on = await play_both(agent)
    assert on.world.effects == [(1.0, "zap 7")]
    assert on.of(CallPredicted)
    assert {refused.reason for refused in on.of(CallRefused)} == {"effect"}


@pytest.mark.requirement("engine:default-deny")
async def test_arguments_that_leave_the_system_are_not_sent_on_a_guess():
    agent = Agent(
        thinking([LOOK_7], "Done."), [read(egress=True)], predictors=[Expects(LOOK_7)]
    )
    off, on = await play_both(agent)
    assert on.seconds == off.seconds
    assert {refused.reason for refused in on.of(CallRefused)} == {"egress"}


@pytest.mark.requirement("engine:once")
async def test_two_equal_calls_are_two_executions_with_one_launch():
    agent = Agent(
        thinking([LOOK_7, LOOK_7], "Done."), [read()], predictors=[Expects(LOOK_7)]
    )
    _, on = await play_both(agent)
    assert on.world.starts == [(0.0, "look 7"), (1.0, "look 7")]
    causes = {adopted.call_id: adopted.cause for adopted in on.of(SpeculationAdopted)}
    assert causes == {"call_1_0": "predicted", "call_1_1": "sealed"}


@pytest.mark.requirement("engine:once")
async def test_the_kth_equal_call_adopts_the_kth_launch():
    counts = iter(range(100))

    async def draw() -> int:
        drawn = next(counts)
        await anyio.sleep(2.0 - drawn)
        return drawn

    agent = Agent(
        thinking([("draw", {}), ("draw", {})], "Done."),
        [Tool(draw, effect=Effect.READ)],
        predictors=[
            Expects(("draw", {})),
            Expects(("draw", {}), ("draw", {}), delay=0.25),
        ],
    )
    on = await play(agent)
    assert on.answers == ["0", "1"]  # though the second launch ended first
    adopted = on.of(SpeculationAdopted)
    launched = on.of(CallLaunched)[:2]
    assert {a.call_id: a.span for a in adopted} == {
        "call_1_0": launched[0].span,
        "call_1_1": launched[1].span,
    }
    assert on.seconds == 3.0


@pytest.mark.requirement("engine:once")
async def test_two_equal_writes_have_two_effects():
    agent = Agent(
        thinking([CHANGE_7], [CHANGE_7], "Done."),
        [write()],
        predictors=[Expects(CHANGE_7), Expects(CHANGE_7, after="tool")],
    )
    off, on = await play_both(agent)
    assert [what for _, what in on.world.effects] == ["change 7", "change 7"]
    assert len(set(on.world.calls)) == 2
    assert on.seconds == off.seconds - 2.0


@pytest.mark.requirement("engine:once")
async def test_a_launch_that_was_adopted_is_not_used_for_the_next_turn():
    agent = Agent(
        thinking([LOOK_7], [LOOK_7], "Done."),
        [read(seconds=0.5)],
        predictors=[Expects(LOOK_7)],
    )
    off, on = await play_both(agent)
    assert on.world.starts == [(0.0, "look 7"), (2.0, "look 7")]
    assert on.seconds == off.seconds - 0.5


async def test_a_call_that_already_runs_is_not_launched_once_more():
    agent = Agent(
        thinking([LOOK_7], "Done."),
        [read()],
        predictors=[
            Expects(LOOK_7),
            Expects(LOOK_7),
            Expects(LOOK_7, after="assistant"),
        ],
    )
    on = await play(agent)
    assert on.world.starts == [(0.0, "look 7")]


async def test_an_early_read_is_kept_for_a_later_turn():
    agent = Agent(
        thinking([LOOK_8], [LOOK_7], "Done."),
        [read(seconds=1.0)],
        predictors=[Expects(LOOK_7)],
    )
    off, on = await play_both(agent)
    assert on.seconds == off.seconds - 1.0
    assert on.world.starts == [(0.0, "look 7"), (1.0, "look 8")]


async def test_a_read_that_runs_while_the_user_thinks_is_kept_for_the_next_message():
    agent = Agent(
        thinking("How can I help?", [LOOK_7], "Done."),
        [read(seconds=2.0)],
        predictors=[Expects(LOOK_7, after="assistant", at=2)],
    )
    texts = ["Hello.", "How is row 7?"]
    off = await talk(agent, texts, pause=10.0, speculate=False)
    on = await talk(agent, texts, pause=10.0)
    assert on.result == off.result
    assert on.world.starts == [(1.0, "look 7")]
    assert (off.seconds, on.seconds) == (5.0, 3.0)


async def test_a_kept_read_is_used_up_to_its_max_age_and_not_beyond():
    for age, started in ((11.0, [1.0]), (10.75, [1.0, 12.0])):
        agent = Agent(
            thinking("How can I help?", [LOOK_7], "Done."),
            [read(seconds=2.0, max_age=age)],
            predictors=[Expects(LOOK_7, after="assistant", at=2)],
        )
        on = await talk(agent, ["Hello.", "How is row 7?"], pause=10.0)
        assert [at for at, _ in on.world.starts] == started
        assert on.answers == ["7 is new"]


async def test_a_read_that_grows_too_old_between_response_and_call_runs_again():
    tool = read(seconds=0.5, max_age=2.0)
    session = Session([tool], deps=World(), predictors=[Expects(LOOK_7)])
    model = thinking([LOOK_7])
    async with session:
        request = ModelRequest([Message(role="user", content="Go.")], session.tools)
        response = await session.ask(request, model.respond)
        await anyio.sleep(1.25)
        assert (await session.call(response.tool_calls[0])).content == "7 is new"
    assert session.deps.starts == [(0.0, "look 7"), (2.25, "look 7")]


async def test_hidden_seconds_add_up_to_what_was_saved_over_a_whole_run():
    agent = Agent(
        thinking([LOOK_7, ("glance", {"row": 1})], [CHANGE_7], [LOOK_8], "Done."),
        [read(), read("glance", seconds=1.5), write()],
        predictors=[
            Expects(LOOK_7, ("glance", {"row": 1})),
            Expects(CHANGE_7, after="tool", at=4),
            Expects(LOOK_8, after="tool", at=6),
        ],
    )
    off, on = await play_both(agent)
    assert on.summary.hits == 4
    assert on.summary.hidden_s == off.seconds - on.seconds == 3.0
    assert on.summary.model_s == off.summary.model_s == 4.0
    assert on.summary.tool_s == off.summary.tool_s == 6.0


async def test_predictors_are_asked_once_about_each_state_of_the_conversation():
    class Asked:
        def __init__(self):
            self.known = []

        async def predict(self, conversation):
            self.known.append([message.role for message in conversation.messages])
            return []

    asked = Asked()
    agent = Agent(thinking([LOOK_7], "Done."), [read()], predictors=[asked])
    await play(agent)
    assert asked.known == [
        ["user"],
        ["user", "assistant"],
        ["user", "assistant", "tool"],
        ["user", "assistant", "tool", "assistant"],
    ]


async def test_only_the_newest_reads_that_nobody_asked_for_are_kept():
    def rows(first):
        return [("look", {"row": row}) for row in range(first, first + 40)]

    agent = Agent(
        thinking([("look", {"row": 0}), ("look", {"row": 79})], "Done.", delay=2.0),
        [read(seconds=0.25)],
        predictors=[Expects(*rows(40 * n), delay=n / 2) for n in range(3)],
        policy=LimitPolicy(max_in_flight=100, max_in_flight_of_tool=100),
    )
    on = await play(agent)
    oldest = [lost for lost in on.of(SpeculationDiscarded) if lost.at_s == 1.0]
    assert [lost.reason for lost in oldest] == ["too many are kept"] * 16
    assert [at for at, what in on.world.starts if what == "look 0"] == [0.0, 2.0]
    assert [at for at, what in on.world.starts if what == "look 79"] == [0.5]


@pytest.mark.requirement("engine:once")
async def test_equal_calls_of_a_deterministic_tool_share_the_first_result():
    agent = Agent(
        ScriptedModel([[("look", {"row": 7})], [("look", {"row": 7})], "Done."]),
        [read(deterministic=True)],
    )
    arm = await play(agent)
    assert arm.answers == ["7 is new", "7 is new"]
    assert len(arm.world.starts) == 1
    assert arm.seconds == 2.0
