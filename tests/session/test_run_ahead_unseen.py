"""Nothing of a turn that runs ahead is seen before it is confirmed, or ever."""

import pytest

from headstart import Agent, ModelError, TextDelta
from headstart.testing import Fault, ScriptedModel

from .scene import Arm, Expects, World, play, play_both, write

CHANGE_7 = ("change", {"row": 7})
TRUE = "{row} is {to}"


def thinking(*responses, delay=1.0, **options):
    return ScriptedModel(responses, delay=delay, **options)


def echoing(*first, delay=1.0):
    """A model that asks for calls and then answers with what it was told."""

    def respond(request):
        if request.history[-1].role == "user":
            return list(first)
        told = [m.content for m in request.history if m.role == "tool"]
        return f"I see: {', '.join(told)}."

    return ScriptedModel(respond, delay=delay)


async def streamed(agent, *, speculate):
    """The deltas of a run, each with the time at which it was delivered."""
    arm, deltas = Arm(World()), []
    async with agent.open_session(deps=arm.world, speculate=speculate) as session:
        async with agent.stream("Go.", session=session) as stream:
            deltas += [
                (arm.world.now, item.text)
                async for item in stream
                if isinstance(item, TextDelta)
            ]
    return deltas


@pytest.mark.requirement("engine:invisible")
async def test_the_text_of_a_turn_that_runs_ahead_is_held_and_then_delivered_in_order():
    agent = Agent(
        thinking([CHANGE_7], "One two six.", delay=1.0, seconds_per_delta=0.5),
        [write(prepare=0.5, takes=3.0, early=TRUE)],
    )
    # The call's four deltas end at 2.5. Run ahead from 3.0, the text comes at 4.0, 4.5
    # and 5.0, and at 6.0 the write is done.
    assert await streamed(agent, speculate=True) == [
        (6.0, "One "),
        (6.0, "two "),
        (6.0, "six."),
    ]
    off = await streamed(agent, speculate=False)
    assert [text for _, text in off] == ["One ", "two ", "six."]


@pytest.mark.requirement("engine:invisible")
async def test_text_that_is_being_written_at_the_confirmation_is_delivered_once():
    agent = Agent(
        thinking([CHANGE_7], "One two six.", delay=1.0, seconds_per_delta=0.5),
        [write(prepare=0.5, takes=1.25, early=TRUE)],
    )
    assert await streamed(agent, speculate=True) == [
        (4.25, "One "),
        (4.5, "two "),
        (5.0, "six."),
    ]


@pytest.mark.requirement("engine:invisible")
async def test_the_text_of_a_turn_that_is_discarded_is_never_delivered():
    def respond(request):
        last = request.history[-1]
        return [CHANGE_7] if last.role == "user" else f"({last.content})"

    model = ScriptedModel(respond, delay=1.0, characters_per_delta=40)
    agent = Agent(model, [write(prepare=0.5, takes=3.0, early="all is well")])
    on = await streamed(agent, speculate=True)
    assert on == [(5.5, "(7 is changed)")]
    assert on == await streamed(agent, speculate=False)


async def test_only_what_was_confirmed_is_billed_to_the_run():
    agent = Agent(echoing(CHANGE_7), [write(takes=3.0, early="wrong")])
    off, on = await play_both(agent)
    assert on.result.usage == off.result.usage
    assert on.summary.wasted_tokens > 0


@pytest.mark.requirement("engine:invisible")
async def test_a_predictor_learns_from_confirmed_turns_only_and_in_order():
    class Learns(Expects):
        def learn(self, conversation, response):
            learned.append((conversation.messages[-1].role, response.text))

    agent = Agent(
        echoing(CHANGE_7),
        [write(prepare=0.5, takes=3.0, early="all is well")],
        predictors=[Learns()],
    )
    learned = []
    on = await play(agent)
    assert on.summary.run_ahead_discarded == 1
    assert learned == [("user", ""), ("tool", "I see: 7 is changed.")]


@pytest.mark.requirement("engine:contained")
@pytest.mark.requirement("engine:invisible")
async def test_a_stream_that_broke_off_ahead_is_not_shown_and_asked_for_again():
    faults = iter([Fault(response="Rubbish.", after=1)])

    def respond(request):
        if request.history[-1].role == "user":
            return [CHANGE_7]
        return next(faults, "Fine.")

    model = ScriptedModel(respond, delay=1.0, characters_per_delta=20)
    agent = Agent(model, [write(takes=3.0, early=TRUE)])
    assert await streamed(agent, speculate=True) == [(6.0, "Fine.")]


async def test_a_request_that_fails_after_its_text_was_shown_fails_as_any_other():
    fault = Fault(response="One two six.", after=2, error=ModelError("Reset."))
    agent = Agent(
        thinking([CHANGE_7], fault, seconds_per_delta=0.5),
        [write(prepare=0.5, takes=1.5, early=TRUE)],
    )
    for speculate in (False, True):
        with pytest.raises(ModelError, match=r"Reset\."):
            await streamed(agent, speculate=speculate)
