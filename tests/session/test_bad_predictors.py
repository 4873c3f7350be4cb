"""Predictors that fail, hang, lie or talk nonsense: nothing happens but events."""

import asyncio
import itertools

import anyio
import pytest

from headstart import (
    Agent,
    LimitPolicy,
    PredictorError,
    ToolResult,
)
from headstart._events import (
    CallLaunched,
    CallPredicted,
    CallRefused,
    PredictorFailed,
)
from headstart.predictors import Prediction, ResultPrediction
from headstart.testing import ScriptedModel

from .scene import Expects, World, play, play_both, read, write

pytestmark = pytest.mark.requirement("engine:contained")
LOOK_7 = ("look", {"row": 7})
CHANGE_8 = ("change", {"row": 8})


class Answers:
    """A predictor that gives, returns or raises whatever a function does."""

    def __init__(self, function, delay=0.0):
        self.function = function
        self.delay = delay

    async def predict(self, conversation):
        await anyio.sleep(self.delay)
        return self.function(conversation)


def raise_(error):
    raise error


def propose(tool="look", arguments=None, probability=0.9):
    return Prediction(
        tool=tool, arguments=arguments or {"row": 7}, probability=probability
    )


def agent_with(*predictors, policy=None):
    model = ScriptedModel([[LOOK_7], [CHANGE_8], "Done."], delay=1.0)
    return Agent(model, [read(), write()], predictors=predictors, policy=policy)


def broken_off():
    yield propose()
    raise OSError("in the middle")


NONSENSE = {
    "raises": lambda _: raise_(RuntimeError("no idea")),
    "nothing": lambda _: None,
    "a number": lambda _: 7,
    "dicts": lambda _: [{"tool": "look", "arguments": {"row": 7}}],
    "text": lambda _: "look",
    "improbable": lambda _: [propose(probability=1.5)],
    "not json": lambda _: [propose(arguments={"row": object()})],
    "unknown tool": lambda _: [propose(tool="unheard_of")],
    "unhashable tool": lambda _: [propose(tool=[])],
}


@pytest.mark.requirement("engine:never-slower")
@pytest.mark.parametrize("kind", NONSENSE)
async def test_nonsense_becomes_an_event_and_costs_no_time(kind):
    off, on = await play_both(agent_with(Answers(NONSENSE[kind])))
    assert on.seconds == off.seconds
    assert on.of(CallLaunched)[0].cause == "sealed"
    assert {failed.predictor for failed in on.of(PredictorFailed)} == {"Answers"}


INVALID = {
    "no object": "[7]",
    "not complete": '{"row": 7',
    "not finite": '{"row": NaN}',
    "wrong type": '{"row": "seven"}',
    "missing": "{}",
    "deep": '{"row": ' + "[" * 5000 + "]" * 5000 + "}",
}


@pytest.mark.requirement("engine:default-deny")
@pytest.mark.requirement("engine:never-slower")
@pytest.mark.parametrize("kind", INVALID)
async def test_invalid_arguments_are_not_launched_and_costs_no_time(kind):
    guess = Answers(lambda _: [propose(arguments=INVALID[kind])])
    off, on = await play_both(agent_with(guess))
    assert on.seconds == off.seconds
    assert [launch.cause for launch in on.of(CallLaunched)] == ["sealed", "sealed"]
    assert on.of(PredictorFailed) or on.of(CallRefused)


async def test_what_is_proposed_before_a_failure_counts():
    off, on = await play_both(agent_with(Answers(lambda _: broken_off())))
    assert on.world.starts[0] == (0.0, "look 7")
    assert on.seconds == off.seconds - 1.0
    assert on.of(PredictorFailed)[0].error == "OSError"


async def test_other_predictors_go_on_when_one_fails():
    fails = Answers(NONSENSE["raises"])
    off, on = await play_both(agent_with(fails, Expects(LOOK_7), fails))
    assert on.seconds == off.seconds - 1.0


async def test_a_predictor_without_a_predict_method_is_contained():
    off, on = await play_both(agent_with(object(), Expects(LOOK_7)))
    assert on.seconds == off.seconds - 1.0


@pytest.mark.requirement("engine:never-slower")
async def test_a_predictor_that_hangs_lengthens_nothing():
    hanging = Answers(lambda _: [], delay=float("inf"))
    off, on = await play_both(agent_with(hanging))
    assert on.seconds == off.seconds


async def test_a_predictor_that_hangs_is_asked_by_one_task_at_a_time():
    class Hangs:
        waiting = 0

        async def predict(self, _):
            self.waiting += 1
            try:
                await anyio.sleep_forever()
            finally:
                self.waiting -= 1

    hangs = Hangs()
    agent = agent_with(hangs)
    async with agent.open_session(deps=World()) as session:
        await agent.run("Go.", session=session)
        await anyio.wait_all_tasks_blocked()
        assert hangs.waiting == 1
    assert hangs.waiting == 0


async def test_a_predictor_that_is_late_for_its_turn_is_cancelled():
    late = Expects(LOOK_7, delay=1.5)
    off, on = await play_both(agent_with(late))
    assert on.of(CallPredicted) == []
    assert on.seconds == off.seconds


async def test_a_predictor_that_clings_to_life_lengthens_no_turn():
    class Clings:
        async def predict(self, _):
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.75)
            return [propose()]

    off, on = await play_both(agent_with(Clings()))
    assert on.seconds <= off.seconds


@pytest.mark.requirement("policy:never-over-budget")
@pytest.mark.requirement("engine:never-slower")
async def test_a_thousand_predictions_are_looked_at_in_part_and_launched_within_limits():
    flood = Answers(lambda _: [propose(arguments={"row": row}) for row in range(1000)])
    policy = LimitPolicy(max_in_flight=3, max_in_flight_of_tool=8)
    off, on = await play_both(agent_with(flood, policy=policy))
    launched = [launch for launch in on.of(CallLaunched) if launch.at_s == 0.0]
    assert len(launched) == 3
    first = [refused.reason for refused in on.of(CallRefused) if refused.at_s == 0.0]
    assert len(first) == 64 - 3
    assert set(first) == {"too many in flight"}
    assert on.seconds == off.seconds


@pytest.mark.requirement("policy:never-over-budget")
async def test_predictions_without_end_are_cut_off():
    endless = Answers(
        lambda _: (propose(arguments={"row": row}) for row in itertools.count(100))
    )
    off, on = await play_both(agent_with(endless))
    assert on.seconds == off.seconds
    assert len([event for event in on.of(CallPredicted) if event.at_s == 0.0]) == 64


@pytest.mark.requirement("policy:never-over-budget")
async def test_no_more_calls_of_a_tool_run_early_than_it_allows():
    flood = Answers(lambda _: [propose(arguments={"row": row}) for row in range(9)])
    model = ScriptedModel(["Done."], delay=1.0)
    agent = Agent(model, [read(max_concurrency=2)], predictors=[flood])
    on = await play(agent)
    assert [launch.at_s for launch in on.of(CallLaunched)] == [0.0, 0.0]


@pytest.mark.requirement("engine:never-slower")
@pytest.mark.requirement("engine:same-effects")
async def test_wrong_predictions_everywhere_take_exactly_the_time_of_none():
    wrong = [("look", {"row": row}) for row in (1, 2)] + [("change", {"row": 3})]
    agent = agent_with(
        *(Expects(*wrong, after=role) for role in ("user", "assistant", "tool"))
    )
    off, on = await play_both(agent)
    assert on.seconds == off.seconds == 3.0 + 2.0 + 2.0
    assert on.world.effects == off.world.effects
    assert on.summary.hits == 0
    assert on.summary.misses > 2


@pytest.mark.parametrize(
    "answer", [None, "7 is new", 7, ToolResult, [ToolResult("7 is new")]]
)
async def test_a_result_that_is_no_result_is_not_used(answer):
    class States(Expects):
        def predict_results(self, *_):
            return answer

    off, on = await play_both(agent_with(States()))
    assert on.summary.run_ahead == on.summary.run_ahead_discarded == 0
    assert on.seconds == off.seconds


async def test_a_predictor_that_fails_to_state_a_result_is_an_event():
    class Fails(Expects):
        def predict_results(self, *_):
            raise PredictorError("no idea")

    class Knows(Expects):
        def predict_results(self, call, _):
            if call.name == "look":
                yield ResultPrediction(result=ToolResult("7 is new"))

    off, on = await play_both(agent_with(Fails(), Knows()))
    assert {failed.predictor for failed in on.of(PredictorFailed)} == {"Fails"}
    assert on.summary.run_ahead == 1
    assert on.seconds == off.seconds - 2.0


async def test_a_result_that_is_stated_as_something_else_is_an_event():
    class Misstates(Expects):
        def predict_results(self, *_):
            yield ResultPrediction(result="7 is new")

    off, on = await play_both(agent_with(Misstates()))
    assert {failed.predictor for failed in on.of(PredictorFailed)} == {"Misstates"}
    assert on.seconds == off.seconds


async def test_a_predictor_that_fails_to_learn_is_an_event():
    class Forgets(Expects):
        def learn(self, *_):
            raise KeyError("all of it")

    off, on = await play_both(agent_with(Forgets(LOOK_7)))
    assert [failed.error for failed in on.of(PredictorFailed)] == ["KeyError"] * 3
    assert on.seconds == off.seconds - 1.0


class Alarm(BaseException):
    """Not an `Exception`: what a library uses to get past `except Exception`."""


async def test_whatever_a_predictor_raises_is_an_event():
    off, on = await play_both(
        agent_with(Answers(lambda _: raise_(Alarm())), Expects(LOOK_7))
    )
    assert {failed.error for failed in on.of(PredictorFailed)} == {"Alarm"}
    assert on.seconds == off.seconds - 1.0


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_predictor_whose_own_future_was_cancelled_is_an_event(anyio_backend):
    class Loses:
        async def predict(self, _):
            answer = asyncio.get_running_loop().create_future()
            answer.cancel()
            return await answer

    off, on = await play_both(agent_with(Loses(), Expects(LOOK_7)))
    assert on.of(PredictorFailed)
    assert on.seconds == off.seconds - 1.0
