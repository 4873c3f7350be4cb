"""Several predictors as one: merged, calibrated, and never slowed down by a slow one."""

from __future__ import annotations

import json
import math

import anyio
import pytest
from hypothesis import given, strategies as st

from headstart import Agent, Effect, ModelResponse, ToolResult, UsageError
from headstart._events import CallPredicted, PredictorFailed, SpeculationAdopted
from headstart.predictors import Combination, Prediction, ResultMemory, ResultPrediction
from headstart.testing import ScriptedModel

from .conversations import (
    call,
    called,
    contents,
    look,
    make_tool,
    play_both,
    said,
    talk,
)

GET = make_tool("get")
SET = make_tool("set", Effect.GATED)
TOOLS = (GET, SET)
ASKED = talk([said("Get it.")], TOOLS)


class Says:
    """A predictor that always says the same, after a while."""

    def __init__(self, *predictions, delay=0.0, error=None):
        self.predictions = predictions
        self.delay = delay
        self.error = error

    async def predict(self, conversation):
        await anyio.sleep(self.delay)
        if self.error is not None:
            raise self.error
        return self.predictions


class States:
    """A predictor that states results, and keeps what it is taught."""

    def __init__(self, *stated, error=None):
        self.stated = [
            ResultPrediction(result=ToolResult(text), probability=p)
            for text, p in stated
        ]
        self.error = error
        self.learned = []

    async def predict(self, conversation):
        return []

    def predict_results(self, call, conversation):
        if self.error is not None:
            raise self.error
        return self.stated

    def learn(self, conversation, response):
        self.learned.append(response)
        if self.error is not None:
            raise self.error


def expects(arguments=None, probability=0.5, *, tool="get", **options):
    return Prediction(
        tool=tool, arguments=arguments or {}, probability=probability, **options
    )


def figures(predictions):
    return [
        (each.tool, each.arguments_text, round(each.probability, 6))
        for each in predictions
    ]


async def test_equal_calls_are_proposed_once_and_are_more_probable_together():
    combination = Combination(
        [
            Says(expects('{"a":1,"b":2}', 0.5, origin="patterns")),
            Says(expects('{"b": 2.0, "a": 1}', 0.4, origin="drafter")),
        ]
    )
    (merged,) = await combination.predict(ASKED)
    assert merged.probability == pytest.approx(1 - 0.5 * 0.6)
    assert merged.eventually == pytest.approx(1 - 0.5 * 0.6)
    assert merged.origin == "drafter + patterns"
    assert merged.arguments_text == '{"a":1,"b":2}'  # as the surer one writes it


async def test_what_is_expected_sooner_or_later_is_combined_as_well():
    combination = Combination(
        [Says(expects(probability=0.2, eventually=0.6)), Says(expects(probability=0.5))]
    )
    (merged,) = await combination.predict(ASKED)
    assert merged.probability == pytest.approx(1 - 0.8 * 0.5)
    assert merged.eventually == pytest.approx(1 - 0.4 * 0.5)


async def test_different_calls_stay_apart_the_most_probable_first():
    combination = Combination(
        [
            Says(expects({"a": 1}, 0.3), expects({"a": 2}, 0.6)),
            Says(expects(tool="set"), expects("no JSON", 0.1, tool="unknown")),
        ]
    )
    assert figures(await combination.predict(ASKED)) == [
        ("get", '{"a": 2}', 0.6),
        ("set", "{}", 0.5),
        ("get", '{"a": 1}', 0.3),
        ("unknown", "no JSON", 0.1),
    ]


async def test_a_call_expected_twice_is_still_expected_twice():
    combination = Combination(
        [Says(expects(), expects(probability=0.2)), Says(expects(probability=0.5))]
    )
    assert figures(await combination.predict(ASKED)) == [
        ("get", "{}", 0.75),
        ("get", "{}", 0.2),
    ]


async def test_the_origin_is_the_members_name_where_it_gives_none():
    (merged,) = await Combination([Says(expects())]).predict(ASKED)
    assert merged.origin == "Says"


async def test_arguments_without_a_style_stay_without_one():
    combination = Combination([Says(expects({"b": 1})), Says(expects('{"b":1}', 0.1))])
    (merged,) = await combination.predict(ASKED)
    assert merged.styled


async def test_members_are_asked_at_once_and_predict_takes_as_long_as_the_slowest():
    combination = Combination([Says(delay=1.0), Says(expects(), delay=3.0)])
    began = anyio.current_time()
    assert len(await combination.predict(ASKED)) == 1
    assert anyio.current_time() - began == 3.0


async def test_a_member_that_fails_is_left_out():
    combination = Combination([Says(error=ValueError("no")), Says(expects())])
    assert len(await combination.predict(ASKED)) == 1


async def test_when_all_members_fail_the_failure_is_raised():
    combination = Combination([Says(error=ValueError("no"))] * 2)
    with pytest.raises(ValueError, match="no"):
        await combination.predict(ASKED)


async def test_cancelling_it_cancels_the_members():
    combination = Combination([Says(delay=math.inf), Says(expects())])
    with anyio.move_on_after(1.0) as scope:
        await combination.predict(ASKED)
    assert scope.cancelled_caught


@pytest.mark.parametrize("members", [[], [object()], [None]])
def test_something_that_is_no_predictor_is_refused(members):
    with pytest.raises(UsageError):
        Combination(members)


def answer(*calls):
    return ModelResponse(tool_calls=called(*calls).tool_calls)


async def asked(combination, number=0):
    """What it expects in a conversation of its own."""
    return await combination.predict(talk([said(f"Number {number}")], TOOLS))


async def teach(combination, outcomes, start=0):
    for number, right in enumerate(outcomes, start):
        conversation = talk([said(f"Number {number}")], TOOLS)
        await combination.predict(conversation)
        response = answer(("get", {})) if right else answer(("get", {"other": number}))
        combination.learn(conversation, response)


async def test_members_that_are_right_more_often_than_they_say_are_believed_more():
    combination = Combination([Says(expects(probability=0.3))])
    await teach(combination, [True] * 30)
    (merged,) = await asked(combination, "x")
    assert 0.85 < merged.probability <= 0.98


async def test_members_that_are_wrong_more_often_than_they_say_are_believed_less():
    combination = Combination([Says(expects(probability=0.9))])
    await teach(combination, [False] * 30)
    (merged,) = await asked(combination, "x")
    assert 0.02 <= merged.probability < 0.15


async def test_members_that_know_the_same_are_no_surer_together_once_that_is_seen():
    combination = Combination(
        [Says(expects(origin="one")), Says(expects(origin="two"))]
    )
    (before,) = await asked(combination, "x")
    assert before.probability == 0.75
    await teach(combination, [True, False] * 60)
    (after,) = await asked(combination, "y")
    assert after.probability == pytest.approx(0.5, abs=0.1)


async def test_each_origin_is_corrected_by_itself():
    wrong, right = Says(expects({"a": 1}, origin="w")), Says(expects(origin="r"))
    combination = Combination([wrong, right])
    await teach(combination, [True] * 40)
    good, bad = await asked(combination, "x")
    assert (good.origin, bad.origin) == ("r", "w")
    assert good.probability > 0.9
    assert bad.probability < 0.1


async def test_uncorrected_probabilities_stay_as_they_are():
    combination = Combination([Says(expects(probability=0.3))], calibrate=False)
    await teach(combination, [True] * 30)
    (merged,) = await asked(combination, "x")
    assert merged.probability == pytest.approx(0.3)


async def test_a_second_equal_call_is_a_hit_only_if_there_are_two():
    combination = Combination([Says(expects(origin="a"), expects(origin="b"))])
    await teach(combination, [True] * 30)
    first, second = await asked(combination, "x")
    assert first.probability > 0.9
    assert second.probability < 0.1


def test_results_are_merged_and_are_never_more_than_certain_together():
    combination = Combination(
        [States(("a", 0.9), ("b", 0.3)), Says(), States(("a", 0.6), ("c", 0.3))]
    )
    stated = combination.predict_results(call("get", {}), ASKED)
    assert contents(stated) == ["a", "b", "c"]
    assert [each.probability for each in stated] == pytest.approx([0.6, 0.2, 0.2])


def test_a_failure_to_state_a_result_is_raised_only_if_nobody_can():
    failing = States(error=ValueError("no"))
    wanted = call("get", {})
    combination = Combination([failing, States(("a", 0.9))])
    assert contents(combination.predict_results(wanted, ASKED)) == ["a"]
    with pytest.raises(ValueError, match="no"):
        Combination([failing]).predict_results(wanted, ASKED)


def test_every_member_learns_though_one_fails():
    failing, learner = States(error=ValueError("no")), States()
    combination = Combination([failing, Says(), learner])
    with pytest.raises(ValueError, match="no"):
        combination.learn(ASKED, answer())
    assert len(learner.learned) == 1


async def test_voices_speak_as_soon_as_their_member_does_for_all_that_have():
    fast, slow = Combination(
        [
            Says(expects(origin="fast")),
            Says(expects(origin="slow"), expects({"a": 1}, 0.1), delay=2.0),
        ]
    ).voices()
    assert figures(await fast.predict(ASKED)) == [("get", "{}", 0.5)]
    assert figures(await slow.predict(ASKED)) == [
        ("get", "{}", 0.75),
        ("get", '{"a": 1}', 0.1),
    ]
    assert len(await fast.predict(ASKED)) == 2


async def test_voices_do_not_mix_the_answers_about_two_conversations_or_tenants():
    one, other = Combination([Says(expects()), Says(expects({"a": 1}))]).voices()
    await one.predict(ASKED)
    assert len(await other.predict(talk([said("Else.")], TOOLS))) == 1
    deps = [{}, {}]
    await one.predict(talk(ASKED.messages, TOOLS, deps=deps[0]))
    assert len(await other.predict(talk(ASKED.messages, TOOLS, deps=deps[1]))) == 1


async def test_one_voice_learns_and_states_results_for_all():
    learner = States(("a", 0.9))
    first, second = Combination([learner, Says()]).voices()
    first.learn(ASKED, answer())
    assert len(learner.learned) == 1
    assert contents(first.predict_results(call("get", {}), ASKED)) == ["a"]
    assert not hasattr(second, "learn")
    assert not hasattr(second, "predict_results")


async def test_only_the_last_conversations_are_remembered():
    combination = Combination([Says(expects())])
    for number in range(200):
        await asked(combination, number)
    assert len(combination._open) <= 32


@pytest.mark.parametrize("voices", [False, True])
async def test_an_agent_takes_a_combination_or_its_voices(voices):
    seen = ("look", {"row": 7})
    members = [
        Says(expects({"row": 7}, 0.9, tool="look", origin="fast")),
        Says(expects({"row": 7}, 0.9, tool="look", origin="slow"), delay=0.5),
        ResultMemory(),
    ]
    combination = Combination(members)
    agent = Agent(
        ScriptedModel([[seen], "Done."], delay=1.0),
        [look],
        predictors=combination.voices() if voices else [combination],
    )
    off, on, events = await play_both(agent)
    assert off == 4.0
    assert on == (3.0 if voices else 3.5)  # launched at once, or after the slow one
    origins = {e.origin for e in events if isinstance(e, CallPredicted)}
    assert origins >= ({"fast"} if voices else {"fast + slow"})
    assert [type(e) for e in events].count(SpeculationAdopted) == 1


async def test_a_voice_that_fails_is_an_event_and_the_others_speak():
    seen = ("look", {"row": 7})
    members = [
        Says(error=ValueError("no")),
        Says(expects({"row": 7}, 0.9, tool="look")),
    ]
    agent = Agent(
        ScriptedModel([[seen], "Done."], delay=1.0),
        [look],
        predictors=Combination(members).voices(),
    )
    off, on, events = await play_both(agent)
    assert (off, on) == (4.0, 3.0)
    assert any(isinstance(each, PredictorFailed) for each in events)


probabilities = st.floats(0, 1)
guesses = st.lists(
    st.builds(
        lambda a, p, e: expects({"a": a}, p, eventually=e, origin=f"o{a}"),
        st.integers(0, 3),
        probabilities,
        st.none() | probabilities,
    ),
    max_size=4,
)


@given(st.lists(guesses, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_merging_does_not_depend_on_the_order_of_the_members(answers, random):
    shuffled = list(answers)
    random.shuffle(shuffled)

    async def main(answers):
        predictions = await Combination([Says(*each) for each in answers]).predict(
            ASKED
        )
        return [
            (*each, p.origin)
            for each, p in zip(figures(predictions), predictions, strict=True)
        ]

    merged = anyio.run(main, answers)
    assert merged == anyio.run(main, shuffled)
    assert len({(tool, text) for tool, text, *_ in merged}) <= 4


@given(
    st.lists(
        st.tuples(probabilities, st.none() | probabilities, st.booleans()), max_size=60
    ),
    probabilities,
)
def test_probabilities_stay_probabilities_and_keep_their_order(history, asked_for):
    combination = Combination([Says()])
    member = combination.members[0]

    async def main():
        for number, (p, e, right) in enumerate(history):
            member.predictions = [expects({}, p, eventually=e, origin="x")]
            await teach(combination, [right], start=number)
        for p, origin in ((asked_for, "x"), (min(1.0, asked_for + 0.1), "x")):
            member.predictions = [expects({}, p, origin=origin)]
            yield_[0:0] = await asked(combination, f"last {p}")

    yield_: list[Prediction] = []
    anyio.run(main)
    higher, lower = yield_
    assert 0 <= lower.probability <= 1
    assert 0 <= higher.eventually <= 1
    assert lower.probability <= higher.probability + 1e-9
    assert lower.probability <= lower.eventually


async def test_a_styled_call_with_a_raw_twin_is_the_same_call():
    arguments = {"b": [1, {"c": None}], "a": "ü"}
    raw = json.dumps(arguments, separators=(",", ":"), ensure_ascii=False)
    merged = await Combination(
        [Says(expects(arguments)), Says(expects(raw, 0.6))]
    ).predict(ASKED)
    assert figures(merged) == [("get", raw, 0.8)]


def test_it_says_who_its_members_are():
    assert repr(Combination([Says(), States()])) == "<Combination of Says, States>"


async def test_origins_without_end_are_not_all_kept():
    combination = Combination([Says()])
    for number in range(600):
        combination.members[0].predictions = [expects(origin=f"origin {number}")]
        await teach(combination, [True], start=number)
    assert len(combination._scales) <= 512


def test_a_voice_says_whose_it_is():
    assert (
        repr(Combination([Says()]).voices()[0]) == "<Voice 1 of <Combination of Says>>"
    )
