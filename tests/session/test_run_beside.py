"""A request that would follow is sent beside the running one, if a policy says so."""

import pytest

from headstart import (
    Agent,
    Experience,
    LimitPolicy,
    ModelResponse,
    TextDelta,
    ToolCall,
    ToolResult,
    ValuePolicy,
)
from headstart._events import CallRefused, TurnConfirmed, TurnDiscarded, TurnStarted
from headstart.predictors import ResultPrediction, RulePredictor, rule
from headstart.testing import ScriptedModel

from .scene import Arm, Expects, World, play, play_both, read, talk, write

LOOK_7 = ("look", '{"row":7}')  # as most models write it
LOOK_8 = ("look", '{"row":8}')
LOOK_9 = ("look", '{"row":9}')
CHANGE_7 = ("change", '{"row":7}')
BESIDE = LimitPolicy(min_beside_probability=0.5, max_depth=2)


def agent_for(
    *responses, expects=(LOOK_7,), policy=BESIDE, delay=2.0, tools=None, predictors=()
):
    model = ScriptedModel(responses, delay=delay)
    tools = tools or [read(seconds=0.5), write(prepare=0.5, early="{row} is {to}")]
    predictors = [Expects(*expects), *predictors]
    return Agent(model, tools, predictors=predictors, policy=policy)


async def test_the_reply_to_a_predicted_read_is_written_while_the_read_is_asked_for():
    off, on = await play_both(agent_for([LOOK_7], "Done."))
    # Read at 0.5, and the second request sent; both answers are there at 2.5.
    assert off.seconds == 2.0 + 0.5 + 2.0
    assert on.seconds == 0.5 + 2.0
    assert on.summary.run_ahead == 1
    assert on.summary.hidden_s == off.seconds - on.seconds


async def test_calls_are_expected_to_be_written_as_the_model_wrote_them_before():
    before, spaced = ("look", '{"row": 8}'), ("look", '{"row": 7}')
    agent = agent_for([before], [spaced], "Done.", expects=[])
    agent.predictors = (Expects(("look", {"row": 7}), after="tool"),)
    off, on = await play_both(agent)
    assert on.summary.run_ahead == 1
    assert on.summary.hidden_s == off.seconds - on.seconds


@pytest.mark.parametrize("arguments", ['{ "row": 7 }', '{"row": 7}', '{"row":7}'])
async def test_arguments_that_are_predicted_as_text_are_taken_to_the_letter(arguments):
    call = ("look", arguments)
    _, on = await play_both(agent_for([call], "Done.", expects=[call]))
    assert on.summary.run_ahead == 1


async def test_nothing_is_sent_beside_unless_the_policy_says_so():
    off, on = await play_both(agent_for([LOOK_7], "Done.", policy=None))
    assert on.summary.run_ahead == on.summary.run_ahead_discarded == 0
    assert on.seconds == off.seconds - 0.5


@pytest.mark.requirement("engine:same-transcript")
@pytest.mark.requirement("engine:never-slower")
@pytest.mark.parametrize(
    "answer",
    [
        "Never mind.",
        [LOOK_8],
        [LOOK_7, LOOK_8],
        [LOOK_7, LOOK_7],
        ["Let me see.", LOOK_7],
        [("look", '{"row": 7}')],
        [("look", '{"row":7,"debug_x":1}')],
        ModelResponse(
            tool_calls=(ToolCall("call_1_0", "look", '{"row":7}'),), rest="a thought"
        ),
    ],
    ids=str,
)
async def test_an_answer_that_is_another_discards_what_ran_beside_it(answer):
    responses = [answer] if isinstance(answer, str) else [answer, "Done."]
    off, on = await play_both(agent_for(*responses))
    assert on.of(TurnConfirmed) == []
    assert [turn.reason for turn in on.of(TurnDiscarded)] == ["the answer is another"]
    assert on.seconds <= off.seconds


@pytest.mark.requirement("engine:invisible")
async def test_what_was_written_beside_another_answer_is_never_shown():
    for answer in ("No.", [LOOK_8]):
        agent = agent_for(answer, "Done.")
        shown = {}
        for speculate in (False, True):
            async with agent.open_session(deps=World(), speculate=speculate) as session:
                async with agent.stream("Go.", session=session) as stream:
                    shown[speculate] = [
                        item.text
                        async for item in stream
                        if isinstance(item, TextDelta)
                    ]
        assert shown[True] == shown[False]


@pytest.mark.requirement("engine:same-effects")
async def test_a_predicted_write_with_an_early_result_is_replied_to_beside():
    off, on = await play_both(agent_for([CHANGE_7], "Done.", expects=[CHANGE_7]))
    # Stated at 0.5; asked for at 2.0, and done at 3.0, after the reply at 2.5.
    assert on.world.effects == [(3.0, "change 7")]
    assert on.seconds == 3.0
    assert on.summary.hidden_s == off.seconds - on.seconds == 2.5


@pytest.mark.requirement("engine:invisible")
async def test_a_write_that_is_replied_to_beside_and_not_asked_for_has_no_effect():
    _, on = await play_both(agent_for([LOOK_8], "Done.", expects=[CHANGE_7]))
    assert on.world.starts[0] == (0.0, "change 7")
    assert on.world.effects == []


@pytest.mark.requirement("engine:once")
async def test_the_same_call_in_the_next_turn_is_an_execution_of_its_own():
    off, on = await play_both(agent_for([LOOK_7], [LOOK_7], "Done."))
    assert len([what for _, what in on.world.starts if what == "look 7"]) >= 2
    assert on.seconds < off.seconds


@pytest.mark.requirement("engine:no-stale-read")
async def test_a_read_that_follows_a_write_beside_waits_for_the_write():
    off, on = await play_both(
        agent_for([CHANGE_7], [LOOK_7], "Done.", expects=[CHANGE_7])
    )
    assert on.answers == ["7 is changed", "7 is changed"]
    assert on.world.starts == [(0.0, "change 7"), (3.0, "look 7")]
    assert on.seconds < off.seconds


@pytest.mark.requirement("engine:no-stale-read")
async def test_a_write_and_a_read_of_the_same_that_are_both_expected_run_for_real():
    agent = agent_for([CHANGE_7, LOOK_7], "Done.", expects=[CHANGE_7, LOOK_7])
    off, on = await play_both(agent)
    assert on.seconds <= off.seconds


@pytest.mark.requirement("engine:contained")
async def test_a_model_that_fails_beside_is_asked_again():
    def respond(request):
        if request.history[-1].role == "user":
            return [LOOK_7]
        if "expected" in request.history[-1].tool_call_id:
            raise RuntimeError("the client is busy")
        return "Done."

    agent = Agent(
        ScriptedModel(respond, delay=2.0),
        [read(seconds=0.5)],
        predictors=[Expects(LOOK_7)],
        policy=BESIDE,
    )
    off, on = await play_both(agent)
    assert on.seconds == off.seconds - 0.5


async def test_a_write_that_was_declined_is_not_prepared_again_until_the_user_speaks():
    responses = [LOOK_8], [LOOK_8], "No.", [LOOK_8], "No."
    agent = Agent(
        ScriptedModel(responses, delay=2.0),
        [read(seconds=0.5), write()],
        predictors=[Expects(CHANGE_7), Expects(CHANGE_7, after="tool")],
    )
    on = await talk(agent, ["May I?", "And now?"])
    prepared = [at for at, what in on.world.starts if what == "change 7"]
    assert prepared == [0.0, 7.0]
    assert {refused.reason for refused in on.of(CallRefused)} == {
        "the model declined it before"
    }
    assert on.world.effects == []


async def test_an_arm_is_the_same_when_it_is_played_twice():
    agent = agent_for([LOOK_7], [CHANGE_7], "Done.", expects=[LOOK_7, CHANGE_7])
    first, second = await play(agent), await play(agent)
    assert first.world.effects == second.world.effects
    assert isinstance(first, Arm)
    assert first.seconds == second.seconds


async def test_what_a_rule_expects_is_written_as_the_model_writes_it():
    rules = RulePredictor([rule(r"row (?P<row>\d+)", "look")])
    model = ScriptedModel([[LOOK_7], "Done."], delay=2.0)
    agent = Agent(model, [read(seconds=0.5)], predictors=[rules], policy=BESIDE)
    off, on = await play_both(agent, "What about row 7?")
    assert on.summary.run_ahead == 1
    assert on.seconds == off.seconds - 2.0


async def test_requests_beside_are_sent_for_alternative_answers():
    agent = agent_for(
        [LOOK_8],
        "Done.",
        expects=[],
        policy=LimitPolicy(min_beside_probability=0.3, max_branches=2),
        predictors=[
            Expects(("see", '{"row":7}'), probability=0.45),
            Expects(LOOK_8, probability=0.4),
            Expects(("find", '{"row":9}'), probability=0.35),
        ],
        tools=[read(name, seconds=0.5) for name in ("look", "see", "find")],
    )
    off, on = await play_both(agent)
    ahead = [event for event in on.of(TurnStarted) if event.speculative]
    assert [event.at_s for event in ahead] == [0.5, 0.5]
    assert on.summary.run_ahead == 1
    # The read is ready when it is asked for, and so is most of the answer to it.
    assert on.seconds == off.seconds - 0.5 - 1.5


async def test_calls_that_are_expected_together_are_one_answer():
    both = [LOOK_7, LOOK_8]
    agent = agent_for(both, "Done.", expects=both)
    off, on = await play_both(agent)
    assert on.seconds == off.seconds - 0.5 - 1.5
    assert on.summary.run_ahead == 1


@pytest.mark.parametrize(
    ("said", "asked"), [("7, 8?", [LOOK_7, LOOK_8]), ("8, 7?", [LOOK_8, LOOK_7])]
)
async def test_calls_of_one_tool_that_may_both_come_are_one_answer_in_the_order_of_what_was_said(
    said, asked
):
    agent = agent_for(
        asked,
        "Done.",
        expects=[],
        policy=LimitPolicy(min_beside_probability=0.25, max_branches=1),
        predictors=[Expects(LOOK_7, probability=0.5), Expects(LOOK_8, probability=0.4)],
    )
    off, on = await play_both(agent, said)
    assert on.summary.run_ahead == 1
    assert on.seconds == off.seconds - 0.5 - 1.5


async def test_calls_that_are_certain_come_together_as_they_were_predicted():
    agent = agent_for(
        [LOOK_7, LOOK_8],
        "Done.",
        expects=[],
        policy=LimitPolicy(min_beside_probability=0.9, max_branches=1),
        predictors=[Expects(LOOK_7, LOOK_8, probability=1.0)],
    )
    off, on = await play_both(agent, "8, 7?")
    assert on.summary.run_ahead == 1
    assert on.seconds == off.seconds - 0.5 - 1.5


async def test_a_request_beside_one_beside_is_as_probable_as_both_together():
    def agent(probability):
        return agent_for(
            [LOOK_7],
            [LOOK_8],
            "Done.",
            expects=[],
            predictors=[
                Expects(LOOK_7, probability=probability),
                Expects(LOOK_8, probability=0.7, after="tool"),
            ],
        )

    def ahead(arm):
        return [event.at_s for event in arm.of(TurnStarted) if event.speculative]

    # Turn 2 runs from 0.5, and what it reads is there at 1; it is confirmed at 2.
    assert ahead(await play(agent(0.9))) == [0.5, 1.0]
    assert ahead(await play(agent(0.6))) == [0.5, 2.0]


async def test_what_runs_beside_on_results_that_were_never_right_is_refused():
    class Lies(Expects):
        def predict_results(self, call, _):
            yield ResultPrediction(result=ToolResult("nonsense"), probability=0.9)

    policy = ValuePolicy(min_beside_probability=0.3, min_probability=1.0)
    agent = agent_for(
        [LOOK_7], "Done.", expects=[], predictors=[Lies(LOOK_7)], policy=policy
    )
    experience = Experience()
    counts = []
    for _ in range(30):
        arm = await play(agent, experience=experience)
        counts.append(sum(event.speculative for event in arm.of(TurnStarted)))
    assert counts[0] == 1
    assert sum(counts[-10:]) <= 2  # probes
