"""The next turn runs on early results; nothing of it shows before it is confirmed."""

import anyio
import pytest

from headstart import (
    Agent,
    CallDelta,
    LimitPolicy,
    Message,
    ModelError,
    ModelResponse,
    TextDelta,
    ToolContext,
    ToolResult,
    Usage,
    tool,
)
from headstart._events import EarlyResultGiven, TurnConfirmed, TurnDiscarded
from headstart.testing import Fault, ScriptedModel

from .scene import Arm, Expects, World, play, play_both, read, write

LOOK_7 = ("look", {"row": 7})
LOOK_8 = ("look", {"row": 8})
CHANGE_7 = ("change", {"row": 7})
CHANGE_8 = ("change", {"row": 8})
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


class States:
    """A predictor that states the results of calls, by the tool's name."""

    def __init__(self, **contents):
        self.contents = contents

    async def predict(self, _):
        return []

    def predict_result(self, call, _):
        content = self.contents.get(call.name)
        return None if content is None else ToolResult(content)


async def test_the_reply_is_ready_when_the_write_is_done():
    model = thinking([CHANGE_7], "Done.", delay=2.0)
    agent = Agent(model, [write(prepare=0.5, takes=3.0, early=TRUE)])
    off, on = await play_both(agent)
    assert off.seconds == 2.0 + 3.5 + 2.0
    assert on.seconds == 2.0 + 3.5
    assert on.when(EarlyResultGiven) == [2.5]
    (confirmed,) = on.of(TurnConfirmed)
    assert (confirmed.at_s, confirmed.hidden_s) == (5.5, 2.0)
    assert on.summary.hidden_s == off.seconds - on.seconds
    assert len(model.requests) == 2 + 2


async def test_a_reply_that_is_still_being_written_is_joined():
    agent = Agent(
        thinking([CHANGE_7], "Done.", delay=4.0), [write(takes=3.0, early=TRUE)]
    )
    off, on = await play_both(agent)
    assert on.seconds == 4.0 + 1.0 + 4.0
    assert on.summary.hidden_s == off.seconds - on.seconds == 3.0


@pytest.mark.requirement("engine:same-transcript")
async def test_an_early_result_that_proves_false_is_thrown_away():
    model = echoing(CHANGE_7)
    agent = Agent(model, [write(prepare=0.5, takes=3.0, early="all is well")])
    off, on = await play_both(agent)
    assert on.result.text == "I see: 7 is changed."
    assert on.seconds == off.seconds
    (discarded,) = on.of(TurnDiscarded)
    assert discarded.at_s == 4.5
    assert discarded.reason == "a result differs from the early one"
    assert on.summary.wasted_tokens > 0


async def test_an_early_result_that_is_corrected_in_time_is_built_on_anew():
    @tool(effect="gated", writes=["row"])
    async def settle(ctx: ToolContext[World]) -> str:
        ctx.early_result("open")
        await anyio.sleep(0.5)
        ctx.early_result("closed")
        await ctx.barrier.wait()
        await anyio.sleep(3.0)
        return "closed"

    off, on = await play_both(Agent(echoing(("settle", {})), [settle]))
    assert on.result.text == "I see: closed."
    assert on.when(TurnDiscarded) == [1.5]
    assert off.seconds - on.seconds == 1.0


async def test_the_next_turn_runs_when_every_call_has_an_early_or_a_real_result():
    agent = Agent(
        echoing(CHANGE_7, LOOK_8, ("unheard_of", {})),
        [write(prepare=0.5, takes=4.0, early=TRUE), read(seconds=2.0)],
    )
    off, on = await play_both(agent)
    # The write states its result at 1.5, and the read ends at 3.0.
    assert on.summary.run_ahead == 1
    assert on.seconds == 1.0 + 4.5
    assert on.summary.hidden_s == off.seconds - on.seconds == 1.0


async def test_two_writes_with_early_results_are_both_waited_for():
    tools = [
        write(prepare=0.5, takes=1.0, early=TRUE),
        write("alter", prepare=1.0, takes=4.0, early=TRUE),
    ]
    agent = Agent(
        echoing(
            CHANGE_7,
            ("alter", {"row": 8}),
        ),
        tools,
    )
    off, on = await play_both(agent)
    assert on.seconds == 1.0 + 5.0
    assert off.seconds == on.seconds + 1.0


async def test_a_call_without_an_early_result_keeps_the_next_turn_back():
    agent = Agent(
        echoing(CHANGE_7, LOOK_8),
        [write(prepare=0.5, takes=1.0, early=TRUE), read(seconds=3.0)],
    )
    off, on = await play_both(agent)
    assert on.summary.run_ahead == 0
    assert on.seconds == off.seconds


async def test_a_predictor_may_state_a_result():
    model = echoing(LOOK_7)
    states = States(look="7 is new")
    agent = Agent(model, [read(seconds=3.0)], predictors=[states])
    off, on = await play_both(agent)
    assert off.seconds - on.seconds == 1.0
    assert [given.source for given in on.of(EarlyResultGiven)] == ["States"]


@pytest.mark.requirement("engine:same-transcript")
@pytest.mark.requirement("engine:never-slower")
async def test_a_predictor_that_states_a_wrong_result_costs_nothing():
    agent = Agent(
        echoing(LOOK_7), [read(seconds=3.0)], predictors=[States(look="7 is lost")]
    )
    off, on = await play_both(agent)
    assert on.result.text == "I see: 7 is new."
    assert on.seconds == off.seconds


async def test_the_calls_of_a_turn_that_runs_ahead_start_early():
    agent = Agent(
        thinking([CHANGE_7], [LOOK_8], "Done."),
        [write(prepare=0.5, takes=4.0, early=TRUE), read(seconds=2.0)],
    )
    off, on = await play_both(agent)
    # Stated at 1.5; the second response is there at 2.5, and its read done at 4.5,
    # before the write ends at 5.5. The last response takes one second more.
    assert on.world.starts == [(1.0, "change 7"), (2.5, "look 8")]
    assert on.seconds == 5.5 + 1.0
    assert on.summary.hidden_s == off.seconds - on.seconds == 3.0


@pytest.mark.requirement("engine:same-effects")
async def test_the_effects_of_a_turn_that_runs_ahead_come_after_those_before_it():
    agent = Agent(
        thinking([CHANGE_7], [CHANGE_8], "Done."),
        [write(prepare=0.5, takes=4.0, early=TRUE)],
        policy=LimitPolicy(max_depth=1),
    )
    off, on = await play_both(agent)
    assert on.world.starts == [(1.0, "change 7"), (2.5, "change 8")]
    assert on.world.effects == [(5.5, "change 7"), (9.5, "change 8")]
    assert on.world.calls == off.world.calls
    assert off.world.effects[1] == (11.0, "change 8")


@pytest.mark.requirement("engine:invisible")
async def test_a_write_of_a_turn_that_is_discarded_has_no_effect():
    def respond(request):
        last = request.history[-1]
        if last.role == "user":
            return [CHANGE_7]
        return [CHANGE_8] if last.content == "all is well" else "Done."

    agent = Agent(
        ScriptedModel(respond, delay=1.0),
        [write(prepare=0.5, takes=4.0, early="all is well")],
    )
    off, on = await play_both(agent)
    assert (2.5, "change 8") in on.world.starts
    assert on.world.effects == [(5.5, "change 7")]
    assert on.seconds == off.seconds


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
async def test_a_request_that_fails_ahead_is_sent_again():
    faults = iter([Fault(error=ModelError("Too many requests.", status=429))])

    def respond(request):
        if request.history[-1].role == "user":
            return [CHANGE_7]
        return next(faults, "Done.")

    agent = Agent(ScriptedModel(respond, delay=1.0), [write(takes=3.0, early=TRUE)])
    on = await play(agent)
    assert on.result.text == "Done."
    assert on.seconds == 1.0 + 4.0 + 1.0
    assert on.of(TurnConfirmed) == []
    assert [turn.reason for turn in on.of(TurnDiscarded)] == ["ModelError was raised"]


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


@pytest.mark.requirement("engine:contained")
async def test_a_request_that_hangs_ahead_of_a_false_result_lengthens_nothing():
    def respond(request):
        last = request.history[-1]
        if last.role == "user":
            return [CHANGE_7]
        return Fault(hang=True) if last.content == "all is well" else "Done."

    agent = Agent(
        ScriptedModel(respond, delay=1.0), [write(takes=3.0, early="all is well")]
    )
    off, on = await play_both(agent)
    assert on.seconds == off.seconds


@pytest.mark.requirement("policy:never-over-budget")
async def test_no_turn_runs_ahead_deeper_than_the_policy_allows():
    responses = [[CHANGE_7], [CHANGE_8], [LOOK_7], "Done."]
    tools = [write(prepare=0.5, takes=8.0, early=TRUE), read(seconds=0.5)]
    seconds = {}
    for depth in range(3):
        agent = Agent(thinking(*responses), tools, policy=LimitPolicy(max_depth=depth))
        _, on = await play_both(agent)
        seconds[depth] = on.seconds
        assert bool(on.of(TurnConfirmed)) is (depth > 0)
    assert seconds[0] > seconds[1] >= seconds[2]


async def test_a_session_that_does_not_speculate_builds_on_nothing_early():
    agent = Agent(thinking([CHANGE_7], "Done."), [write(early=TRUE)])
    off = await play(agent, speculate=False)
    assert off.of(EarlyResultGiven) == []
    assert off.seconds == 1.0 + 2.0 + 1.0


async def test_the_response_that_ran_ahead_is_the_hosts_own_object():
    response = ModelResponse(text="Done.", usage=Usage(input_tokens=3, output_tokens=1))
    agent = Agent(thinking([CHANGE_7], response), [write(early=TRUE)])
    _, on = await play_both(agent)
    assert on.result.messages[-1] == Message(role="assistant", content="Done.")
    assert CallDelta not in map(type, on.result.messages)
