"""The next turn runs on early results; nothing of it shows before it is confirmed."""

import anyio
import pytest

from headstart import (
    Agent,
    CallDelta,
    LimitPolicy,
    Message,
    ModelError,
    ModelRequest,
    ModelResponse,
    Session,
    ToolContext,
    ToolResult,
    Usage,
    tool,
)
from headstart._events import EarlyResultGiven, TurnConfirmed, TurnDiscarded
from headstart.predictors import ResultPrediction
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

    def predict_results(self, call, _):
        content = self.contents.get(call.name)
        return [] if content is None else [ResultPrediction(result=ToolResult(content))]


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


async def test_nothing_is_run_ahead_where_the_provider_keeps_the_conversation():
    model = thinking([CHANGE_7], "Done.")
    policy = LimitPolicy(min_beside_probability=0.1)
    tools, seen = [write(early=TRUE)], []
    async with Session(
        tools, deps=World(), policy=policy, predictors=[Expects(CHANGE_7)]
    ) as session:
        asked = ModelRequest([Message(role="user")], tools, stateful=True)
        response = await session.ask(asked, model.respond)
        seen += await session.call_all(response.tool_calls)
    assert [result.content for result in seen] == ["7 is changed"]
    assert len(model.requests) == 1


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


@pytest.mark.requirement("engine:same-transcript")
async def test_a_host_that_asks_for_something_else_gets_the_answer_to_that():
    arm = Arm(World())
    tool = write(prepare=0.5, takes=3.0, early=TRUE)
    model = ScriptedModel(
        lambda r: [CHANGE_7] if len(r.history) == 1 else r.history[-1].content,
        delay=1.0,
    )
    session = Session([tool], deps=arm.world, sink=arm.log)
    async with session:
        request = ModelRequest([Message(role="user", content="Go.")], session.tools)
        first = await session.ask(request, model.respond)
        await session.call_all(first.tool_calls)
        cut = Message(role="tool", content="(cut)", tool_call_id="call_1_0")
        answer = await session.ask(
            request.extended([first.message, cut]), model.respond
        )
    assert answer.text == "(cut)"
    assert arm.world.now == 1.0 + 3.5 + 1.0
    (discarded,) = arm.of(TurnDiscarded)
    assert discarded.reason == "the host asked for something else"


async def test_a_read_that_a_discarded_turn_had_claimed_is_there_for_the_real_one():
    def respond(request):
        last = request.history[-1]
        if last.role == "user":
            return [CHANGE_7]
        return "Done." if last.name == "look" else [f"{last.content}, so ", LOOK_8]

    agent = Agent(
        ScriptedModel(respond, delay=1.0),
        [write(takes=4.0, early="all is well"), read(seconds=3.0)],
        predictors=[Expects(LOOK_8)],
    )
    _, on = await play_both(agent)
    assert on.summary.run_ahead_discarded == 1
    assert on.summary.hits == 1
    assert [at for at, what in on.world.starts if what == "look 8"] == [0.0]


@pytest.mark.requirement("engine:contained")
async def test_a_request_that_fails_after_it_was_joined_and_showed_nothing_is_sent_again():
    faults = iter([Fault(error=ModelError("Too many requests.", status=429))])

    def respond(request):
        if request.history[-1].role == "user":
            return [CHANGE_7]
        return next(faults, "Done.")

    agent = Agent(ScriptedModel(respond, delay=4.0), [write(takes=1.0, early=TRUE)])
    on = await play(agent)
    assert on.result.text == "Done."
    # Run ahead at 5.0, asked for at 6.0, failed at 9.0.
    assert on.seconds == 9.0 + 4.0


async def test_a_tool_that_keeps_changing_its_mind_is_believed_three_times():
    @tool(effect="gated", writes=["row"])
    async def waver(ctx: ToolContext[World]) -> str:
        for number in range(6):
            ctx.early_result(f"perhaps {number}")
            await anyio.sleep(0.25)
        await ctx.barrier.wait()
        return "certainly 7"

    model = echoing(("waver", {}))
    off, on = await play_both(Agent(model, [waver]))
    assert on.summary.run_ahead_discarded == 3
    assert len(model.requests) == 2 + 2 + 3
    assert on.seconds == off.seconds
