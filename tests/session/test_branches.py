"""Several turns run ahead of one, on alternative results: the true one is used."""

import anyio
import pytest

from headstart import (
    Agent,
    Experience,
    LimitPolicy,
    Message,
    ModelRequest,
    ModelResponse,
    Session,
    ToolCall,
    ToolResult,
    Usage,
    ValuePolicy,
)
from headstart._events import (
    CallLaunched,
    CallRefused,
    EarlyResultGiven,
    TurnConfirmed,
    TurnDiscarded,
    TurnStarted,
)
from headstart.predictors import ResultPrediction
from headstart.testing import ScriptedModel

from .scene import Arm, Expects, World, play, play_both, read, talk, write

LOOK_7, LOOK_8 = ("look", {"row": 7}), ("look", {"row": 8})
CHANGE_7 = ("change", {"row": 7})


def thinking(*responses, delay=1.0, **options):
    return ScriptedModel(responses, delay=delay, **options)


class Alternatives:
    """States several results of each call of a tool: contents with probabilities."""

    def __init__(self, tool="look", **contents):
        self.tool = tool
        self.contents = contents

    async def predict(self, _):
        return []

    def predict_results(self, call, _):
        if call.name != self.tool:
            return []
        return [
            ResultPrediction(
                result=ToolResult(text.replace("_", " ")), probability=probability
            )
            for text, probability in self.contents.items()
        ]


def looking(*predictors, seconds=3.0, **options):
    return Agent(
        thinking([LOOK_7], "Done.", delay=2.0),
        [read(seconds=seconds)],
        predictors=predictors,
        **options,
    )


def ahead(arm):
    return [event for event in arm.of(TurnStarted) if event.speculative]


async def test_the_branch_that_comes_true_is_used_and_the_others_end():
    class Knows(Alternatives):
        def predict_results(self, call, _):
            return [
                ResultPrediction(result=ToolResult(text), probability=probability)
                for text, probability in (("7 is changed", 0.5), ("7 is new", 0.4))
            ]

    off, on = await play_both(looking(Knows()))
    assert off.seconds == 2.0 + 3.0 + 2.0
    assert on.seconds == 2.0 + 3.0
    assert len(ahead(on)) == 2
    (confirmed,), (discarded,) = on.of(TurnConfirmed), on.of(TurnDiscarded)
    assert (confirmed.turn, discarded.turn) == (3, 2)
    assert len(on.of(EarlyResultGiven)) == 1


@pytest.mark.parametrize("branches", [0, 1, 2, 3])
async def test_the_policy_says_how_many_branches_there_are(branches):
    agent = looking(
        Alternatives(old=0.3, older=0.3, oldest=0.3),
        policy=LimitPolicy(max_branches=branches, min_ahead_probability=0.0),
    )
    off, on = await play_both(agent)
    assert len(ahead(on)) == branches
    assert on.seconds == off.seconds


async def test_the_most_probable_results_are_tried_first_however_they_are_stated():
    agent = looking(
        Alternatives(no=0.1, **{"7_is_new": 0.6}),
        policy=LimitPolicy(max_branches=1),
    )
    off, on = await play_both(agent)
    assert on.seconds == off.seconds - 2.0


async def test_improbable_results_are_not_run_ahead_on():
    policy = LimitPolicy(max_branches=8, min_ahead_probability=0.3)
    agent = looking(Alternatives(a=0.4, b=0.3, c=0.29), policy=policy)
    assert len(ahead(await play(agent))) == 2


async def test_results_of_several_calls_are_combined_by_their_probability():
    agent = Agent(
        thinking([LOOK_7, LOOK_8], "Done.", delay=2.0),
        [read(seconds=3.0)],
        predictors=[Alternatives(a=0.6, b=0.4)],
        policy=LimitPolicy(max_branches=8, min_ahead_probability=0.2),
    )
    started = [event.at_s for event in ahead(await play(agent))]
    assert started.count(2.0) == 3  # a a, a b, b a; and not b b, which has 0.16


async def test_a_result_that_has_come_ends_the_branches_it_contradicts():
    agent = Agent(
        thinking([LOOK_7, ("glance", {"row": 8})], "Done.", delay=4.0),
        [read(seconds=1.0), read("glance", seconds=5.0)],
        predictors=[Alternatives(no=0.5, **{"7_is_new": 0.4}), Glance()],
    )
    off, on = await play_both(agent)
    (discarded,) = on.of(TurnDiscarded)
    assert discarded.at_s == 5.0
    assert on.seconds == off.seconds - 4.0


class Glance(Alternatives):
    def predict_results(self, call, _):
        if call.name != "glance":
            return []
        return [ResultPrediction(result=ToolResult("8 is new"), probability=0.9)]


async def test_what_a_tool_states_itself_takes_the_place_of_alternatives():
    agent = Agent(
        thinking([CHANGE_7], "Done.", delay=2.0),
        [write(prepare=0.5, takes=4.0, early="{row} is {to}")],
        predictors=[Alternatives("change", no=0.5, never=0.5)],
    )
    off, on = await play_both(agent)
    assert [event.source for event in on.of(EarlyResultGiven)] == [
        "Alternatives",
        "tool",
    ]
    assert [event.at_s for event in on.of(TurnDiscarded)] == [2.5, 2.5]
    assert on.seconds == off.seconds - 2.0


@pytest.mark.requirement("cancel:no-orphans")
async def test_the_other_branches_end_when_the_host_has_a_result_of_its_own():
    model = thinking([LOOK_7], "Done.", delay=2.0)
    arm = Arm(World())
    session = Session(
        [read()], deps=arm.world, sink=arm.log, predictors=[Alternatives(a=0.5, b=0.5)]
    )
    async with session:
        request = ModelRequest([Message(role="user", content="Go.")], session.tools)
        first = await session.ask(request, model.respond)
        answered = request.extended([first.message]).answered(
            first.tool_calls, [ToolResult("b")]
        )
        await session.ask(answered, model.respond)
        assert len(arm.of(TurnConfirmed)) == len(arm.of(TurnDiscarded)) == 1
        assert arm.world.now == 4.0


@pytest.mark.requirement("engine:contained")
async def test_reads_of_a_branch_are_used_only_if_it_comes_true():
    def respond(request):
        told = [m.content for m in request.history if m.role == "tool"]
        match told:
            case []:
                return [CHANGE_7]
            case ["7 is changed"]:
                return [LOOK_7]
            case ["no"]:
                return [LOOK_8]
            case _:
                return "Done."

    agent = Agent(
        ScriptedModel(respond, delay=1.0),
        [read(seconds=1.0), write(prepare=0.0, takes=5.0)],
        predictors=[
            Alternatives("change", no=0.5, **{"7_is_changed": 0.4}),
        ],
        policy=LimitPolicy(max_depth=2),
    )
    off, on = await play_both(agent)
    assert off.seconds == 1 + 5 + 1 + 1 + 1
    # Row 8 is read in the branch that is wrong; row 7 waits until the write has ended.
    assert len(on.of(CallLaunched)) == 3
    assert on.answers == ["7 is changed", "7 is changed"]
    assert on.seconds < off.seconds
    assert on.summary.early_starts == 2


@pytest.mark.requirement("engine:contained")
async def test_branches_of_branches_end_with_what_they_stand_on():
    def respond(request):
        told = sum(message.role == "tool" for message in request.history)
        return [CHANGE_7] if told < 3 else "Done."

    agent = Agent(
        ScriptedModel(respond, delay=1.0),
        [write(prepare=0.5, takes=20.0)],
        predictors=[Alternatives("change", no=0.5, never=0.4)],
        policy=LimitPolicy(max_depth=2, min_ahead_probability=0.0),
    )
    off, on = await play_both(agent)
    started = [event.parent for event in ahead(on)]
    assert len(started) > 6
    assert len(on.of(TurnDiscarded)) == len(started)
    assert on.seconds == off.seconds


@pytest.mark.requirement("engine:invisible")
async def test_only_the_branch_that_comes_true_is_shown():
    def respond(request):
        told = [m.content for m in request.history if m.role == "tool"]
        return f"I see that {told[0]}." if told else [LOOK_7]

    agent = Agent(
        ScriptedModel(respond, delay=0.5, seconds_per_delta=0.1),
        [read(seconds=4.0)],
        predictors=[Alternatives(no=0.5, **{"7_is_new": 0.5})],
    )
    async with agent.stream("Go.", deps=(await play(agent)).world) as stream:
        shown = [getattr(item, "text", "") async for item in stream]
    assert "".join(shown) == "I see that 7 is new."


# Limits and learning


@pytest.mark.requirement("policy:never-over-budget")
async def test_requests_under_way_count_against_the_tokens_that_may_be_wasted():
    usage = Usage(input_tokens=80, output_tokens=20)
    call = ToolCall("call", "look", '{"row": 7}')

    def respond(request):
        if request.history[-1].role == "user":
            return ModelResponse(tool_calls=(call,), usage=usage)
        return ModelResponse(text="Done.", usage=usage)

    agent = Agent(
        ScriptedModel(respond, delay=2.0),
        [read(seconds=1.0)],
        predictors=[Alternatives(a=0.3, b=0.3, c=0.3)],
        policy=LimitPolicy(max_branches=3, max_wasted_tokens=150),
    )
    arm = await talk(agent, ["Go.", "Again.", "Again."])
    # Requests that were cancelled before their answer count as much as the last one.
    assert [event.at_s for event in ahead(arm)] == [2.0, 2.0]
    assert arm.summary.wasted_tokens == 200


@pytest.mark.requirement("policy:never-over-budget")
async def test_results_that_never_come_true_are_not_run_ahead_on_for_long():
    experience = Experience()
    agent = looking(Alternatives(no=0.9), policy=ValuePolicy(probe_every=5))
    counts = [len(ahead(await play(agent, experience=experience))) for _ in range(40)]
    assert counts[:3] == [1, 1, 1]
    assert 2 < sum(counts[-20:]) < 6  # probes
    record = experience.record("look", "results of Alternatives")
    assert record.hits == 0
    assert record.misses > 10


async def test_results_that_come_true_again_are_run_ahead_on_again():
    experience = Experience(half_life=5)
    for _ in range(30):
        experience.note_outcome(
            "look", "results of Alternatives", hit=False, stated=0.9
        )
    for _ in range(8):
        experience.note_outcome("look", "results of Alternatives", hit=True, stated=0.9)
    agent = looking(Alternatives(**{"7_is_new": 0.9}))
    off, _ = await play_both(agent)
    on = await play(agent, experience=experience)
    assert on.seconds == off.seconds - 2.0


async def test_a_cancelled_run_leaves_no_branch():
    agent = looking(Alternatives(a=0.5, b=0.5))
    with anyio.move_on_after(2.5):
        await play(agent)
    await anyio.wait_all_tasks_blocked()
    assert sum(record.outcome == "cancelled" for record in agent.model.records) == 2


async def test_what_a_prediction_expects_counts_once_for_all_branches():
    agent = Agent(
        thinking([LOOK_7], [LOOK_8], "Done.", delay=2.0),
        [read(seconds=3.0)],
        predictors=[
            Alternatives(no=0.5, **{"7_is_new": 0.4}),
            Expects(LOOK_8, after="tool"),
        ],
    )
    off, on = await play_both(agent)
    assert on.answers == ["7 is new", "8 is new"]
    assert on.seconds < off.seconds


async def test_a_call_of_an_improbable_turn_is_worth_less_unless_it_is_kept():
    def agent(likely, call=("alter", {"row": 8})):
        return Agent(
            thinking([CHANGE_7], [call], "Done.", delay=2.0),
            [write(takes=6.0), write("alter"), read(seconds=2.0)],
            predictors=[
                Alternatives("change", **{"7_is_changed": likely}),
                Expects(call, after="tool", probability=0.3),
            ],
            policy=ValuePolicy(min_ahead_probability=0.0),
        )

    launched = [event.turn for event in (await play(agent(0.9))).of(CallLaunched)]
    assert 2 in launched
    refused = (await play(agent(0.3))).of(CallRefused)
    assert (refused[0].turn, refused[0].reason) == (2, "improbable")
    # Reads are kept, whatever becomes of the turn.
    launched = [
        event.turn for event in (await play(agent(0.3, LOOK_8))).of(CallLaunched)
    ]
    assert 2 in launched
