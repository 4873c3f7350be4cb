"""What is left of turns that were run ahead, and of requests that broke off: nothing."""

from contextlib import asynccontextmanager

import anyio
import pytest

from headstart import (
    Agent,
    BarrierState,
    CallDelta,
    LimitPolicy,
    Message,
    ModelError,
    ModelRequest,
    ModelResponse,
    Session,
    TextDelta,
    ToolCall,
    Usage,
)
from headstart._events import (
    CallLaunched,
    CallPredicted,
    TurnConfirmed,
    TurnDiscarded,
    TurnStarted,
)
from headstart.testing import Fault, ScriptedModel

from .scene import Arm, Expects, World, play, play_both, read, write

LOOK_7, LOOK_8 = ("look", {"row": 7}), ("look", {"row": 8})
CHANGE_7 = ("change", {"row": 7})
TRUE, FALSE = "{row} is {to}", "?"


def thinking(*responses, delay=1.0, **options):
    return ScriptedModel(responses, delay=delay, **options)


@asynccontextmanager
async def hosted(tools, **options):
    """A session driven by hand, what is seen of it, and the first request."""
    arm = Arm(World())
    session = Session(tools, deps=arm.world, sink=arm.log, **options)
    async with session:
        said = Message(role="user", content="Go.")
        yield session, arm, ModelRequest([said], session.tools)


async def test_a_read_that_a_discarded_turn_expected_serves_the_one_that_came():
    agent = Agent(
        thinking([CHANGE_7], [LOOK_8], "Done."),
        [write(prepare=0.5, takes=3.0, early=FALSE), read()],
        predictors=[Expects(LOOK_8, after="tool", at=3)],
    )
    off, on = await play_both(agent)
    (discarded,) = on.of(TurnDiscarded)
    (launched,) = (each for each in on.of(CallLaunched) if each.cause == "predicted")
    assert launched.turn == discarded.turn  # its early result was another
    assert on.seconds == off.seconds - 2.0
    assert on.summary.hits == 1


def chain(early):
    """Two writes in two turns, the second run ahead of the first, and a third turn."""
    tools = [
        write(prepare=0.5, takes=10.0, early=early),
        write("alter", prepare=0.5, takes=10.0, early=TRUE),
        write("fix", prepare=0.5, takes=10.0, early=TRUE),
    ]
    model = thinking(
        [CHANGE_7], [("alter", {"row": 8})], [("fix", {"row": 9})], "Done."
    )
    return model, tools, LimitPolicy(max_depth=3)


@pytest.mark.requirement("barrier:parent-first")
async def test_denying_a_turns_barrier_ends_all_that_stands_on_it():
    model, tools, policy = chain(TRUE)
    async with hosted(tools, policy=policy) as (session, arm, request):
        first = await session.ask(request, model.respond)
        async with anyio.create_task_group() as group:
            group.start_soon(session.call, first.tool_calls[0])
            await anyio.sleep(5.0)
            _, alter, fix = arm.world.barriers
            assert {b.effective_state for b in (alter, fix)} == {BarrierState.HELD}
            session._turns.current.children[0].barrier.deny("a test says so")
            await anyio.wait_all_tasks_blocked()
            assert {b.effective_state for b in (alter, fix)} == {BarrierState.DENIED}
            assert arm.world.running == 1
            group.cancel_scope.cancel()


@pytest.mark.requirement("barrier:parent-first")
async def test_the_barrier_of_a_discarded_turn_is_denied():
    model, tools, policy = chain(FALSE)
    async with hosted(tools, policy=policy) as (session, arm, request):
        first = await session.ask(request, model.respond)
        async with anyio.create_task_group() as group:
            group.start_soon(session.call, first.tool_calls[0])
            await anyio.sleep(5.0)
            ahead = session._turns.current.children[0]
            assert ahead.barrier.state is BarrierState.HELD
        assert {turn.at_s for turn in arm.of(TurnDiscarded)} == {11.5}
        assert ahead.barrier.state is BarrierState.DENIED


@pytest.mark.requirement("engine:contained")
@pytest.mark.parametrize("depth", [1, 2])
async def test_requests_of_discarded_turns_are_cancelled_at_once(depth):
    """The last request of the chain hangs, as it stands on something false."""

    def respond(request):
        told = [m.content for m in request.history if m.role == "tool"]
        if "?" not in told:
            return "Done." if told else [CHANGE_7]
        return Fault(hang=True) if len(told) == depth else [("alter", {"row": 8})]

    model = ScriptedModel(respond, delay=1.0)
    _, tools, policy = chain(FALSE)
    agent, world = Agent(model, tools, policy=policy), World()
    async with agent.open_session(deps=world) as session:
        await agent.run("Go.", session=session)
        asked = [
            (record.outcome, record.ended_s - world.began) for record in model.records
        ]
    assert asked[depth] == ("cancelled", 11.5)
    assert asked[-1] == ("answered", 12.5)


@pytest.mark.requirement("engine:invisible")
async def test_a_call_that_waits_for_a_write_and_is_withdrawn_is_never_started():
    async def takes_back(_, on_delta):
        on_delta(CallDelta(index=0, id="a", name="look", arguments='{"row": 7}'))
        await anyio.sleep(0.5)
        return ModelResponse(text="No.")

    async with hosted([read(), write(takes=3.0)]) as (session, arm, request):
        first = await session.ask(request, thinking([CHANGE_7]).respond)
        async with anyio.create_task_group() as group:
            group.start_soon(session.call, first.tool_calls[0])
            await anyio.sleep(0.5)
            await session.ask(request.extended([first.message]), takes_back)
        await anyio.sleep(5.0)
        assert [what for _, what in arm.world.starts] == ["change 7"]


@pytest.mark.requirement("cancel:no-orphans")
async def test_calls_of_a_request_that_broke_off_are_ended_before_the_session():
    async def breaks_off(_, on_delta):
        on_delta(CallDelta(index=0, id="a", name="look", arguments='{"row": 7}'))
        await anyio.sleep(0.5)
        msg = "overloaded"
        raise ModelError(msg)

    async with hosted([read(seconds=50.0)]) as (session, arm, request):
        with pytest.raises(ModelError):
            await session.ask(request, breaks_off)
        await anyio.wait_all_tasks_blocked()
        assert arm.world.starts == [(0.0, "look 7")]
        assert arm.world.running == 0


@pytest.mark.requirement("cancel:no-orphans")
async def test_a_call_that_outlives_its_session_starts_nothing_more():
    results = []

    async def run(session, call):
        results.append(await session.call(call))

    model = thinking([CHANGE_7], "Done.")
    async with anyio.create_task_group() as group:
        tools = [write(prepare=1.0, early=TRUE)]
        async with hosted(tools) as (session, arm, request):
            first = await session.ask(request, model.respond)
            group.start_soon(run, session, first.tool_calls[0])
            await anyio.sleep(0.5)
    assert [result.content for result in results] == ["7 is changed"]
    assert len(arm.of(TurnStarted)) == len(model.records) == 1


@pytest.mark.requirement("engine:invisible")
async def test_a_run_ahead_that_breaks_off_once_it_is_shown_is_not_asked_again():
    def respond(request):
        said = request.history[-1].role == "user"
        return [CHANGE_7] if said else Fault(response="One two six.", after=2)

    model = ScriptedModel(respond, delay=1.0, seconds_per_delta=1.0)
    agent = Agent(model, [write(prepare=0.5, takes=1.5, early=TRUE)])
    shown = []
    async with agent.stream("Go.", deps=World()) as stream:
        try:
            async for item in stream:
                shown += [item.text] if isinstance(item, TextDelta) else []
        except ModelError:
            shown.append("(broke off)")
    assert shown == ["One ", "two ", "(broke off)"]
    assert len(model.records) == 2


@pytest.mark.requirement("cancel:no-orphans")
async def test_predictors_are_not_asked_about_a_discarded_turn_any_longer():
    class Slow(Expects):
        waiting = 0

        async def predict(self, conversation):
            if conversation.messages[-1].content != "?":
                return []
            self.waiting += 1
            try:
                await anyio.sleep(20.0)
            finally:
                self.waiting -= 1
            return self.predictions

    slow = Slow(LOOK_8)
    agent = Agent(
        thinking([CHANGE_7], "Done."),
        [read(), write(prepare=0.5, takes=3.0, early=FALSE)],
        predictors=[slow],
    )
    arm = Arm(World())
    async with agent.open_session(deps=arm.world, sink=arm.log) as session:
        await agent.run("Go.", session=session)
        assert slow.waiting == 0
        await anyio.sleep(30.0)
    assert arm.summary.run_ahead_discarded == 1
    assert arm.of(CallPredicted) == []


@pytest.mark.requirement("engine:contained")
async def test_what_a_predictor_says_after_it_was_cancelled_is_not_heard():
    class Clings(Expects):
        async def predict(self, conversation):
            if conversation.messages[-1].role != "user":
                return []
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1.5)
            return self.predictions

    predictors = [Clings(LOOK_8)]
    agent = Agent(thinking([LOOK_7], "Done."), [read()], predictors=predictors)
    _, on = await play_both(agent)
    assert on.of(CallPredicted) == []


@pytest.mark.requirement("cancel:no-orphans")
async def test_what_waits_in_a_discarded_turn_is_never_started():
    agent = Agent(
        thinking([CHANGE_7], "Done."),
        [read(), write(prepare=0.5, takes=3.0, early=FALSE)],
        predictors=[Expects(LOOK_7, after="tool", at=3)],
    )
    arm = await play(agent)
    (discarded,) = arm.of(TurnDiscarded)
    assert discarded.turn in [event.turn for event in arm.of(CallPredicted)]
    assert discarded.turn not in [event.turn for event in arm.of(CallLaunched)]


# Limits


@pytest.mark.requirement("policy:never-over-budget")
async def test_turns_run_ahead_until_too_many_tokens_are_wasted():
    def respond(request):
        told = sum(message.role == "tool" for message in request.history)
        call = ToolCall(f"call_{told}", "change", '{"row": 7}')
        usage = Usage(input_tokens=5, output_tokens=5)
        if told == 3:
            return ModelResponse(text="Done.", usage=usage)
        return ModelResponse(tool_calls=(call,), usage=usage)

    agent = Agent(
        ScriptedModel(respond, delay=1.0),
        [write(prepare=0.5, takes=3.0, early=FALSE)],
        policy=LimitPolicy(max_wasted_tokens=15),
    )
    arm = await play(agent)
    ahead = [event for event in arm.of(TurnStarted) if event.speculative]
    assert len(ahead) == 2
    assert arm.summary.wasted_tokens == 20


@pytest.mark.requirement("policy:never-over-budget")
async def test_the_depth_of_a_turn_counts_from_the_confirmed_one():
    model, tools, _ = chain(TRUE)
    _, on = await play_both(Agent(model, tools, policy=LimitPolicy(max_depth=1)))
    assert len(on.of(TurnConfirmed)) == 3
