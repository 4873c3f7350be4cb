"""What fails, hangs or misbehaves ahead of the run never reaches the run."""

import logging

import anyio
import pytest

from headstart import (
    Agent,
    BarrierState,
    Effect,
    Message,
    ModelRequest,
    ModelResponse,
    Session,
    Tool,
    ToolContext,
    WriteDenied,
)
from headstart._events import CallLaunched, EffectHeld, SpeculationDiscarded
from headstart.testing import ScriptedModel

from .scene import Arm, Expects, World, play, play_both, read, write

contained = pytest.mark.requirement("engine:contained")
LOOK_7, LOOK_8 = ("look", {"row": 7}), ("look", {"row": 8})
CHANGE_7 = ("change", {"row": 7})
WORK = ("work", {})


def thinking(*responses, delay=1.0, **options):
    return ScriptedModel(responses, delay=delay, **options)


def working(work, effect=Effect.READ, **options):
    """A tool named `work` that awaits `work(ctx)`."""

    async def function(ctx: ToolContext[World]) -> object:
        ctx.deps.note_start(ctx, "work", 0)
        return await ctx.deps.run(work(ctx))

    return Tool(function, name="work", effect=effect, reads=[], writes=None, **options)


def expecting(tool, *responses, delay=1.0):
    responses = responses or ([WORK], "Done.")
    return Agent(thinking(*responses, delay=delay), [tool], predictors=[Expects(WORK)])


@contained
async def test_a_launch_that_fails_where_the_real_call_would_not_is_run_again():
    async def work(ctx):
        await anyio.sleep(0.5)
        if ctx.speculative:
            raise ConnectionError("no slot for a guess")
        return "fine"

    off, on = await play_both(expecting(working(work)))
    assert on.answers == ["fine"]
    assert on.world.starts == [(0.0, "work 0"), (1.0, "work 0")]
    assert on.seconds == off.seconds
    assert on.of(SpeculationDiscarded)[0].at_s == 0.5


@contained
async def test_a_call_that_always_fails_tells_the_model_so_once():
    async def work(_):
        await anyio.sleep(0.5)
        raise LookupError("no such thing")

    off, on = await play_both(expecting(working(work)))
    assert on.answers == ["LookupError: no such thing"]
    assert on.seconds == off.seconds


async def test_a_call_that_fails_after_it_was_adopted_has_failed_for_good():
    async def work(_):
        await anyio.sleep(1.5)
        raise LookupError("no such thing")

    off, on = await play_both(expecting(working(work)))
    assert on.world.starts == [(0.0, "work 0")]
    assert on.seconds == off.seconds - 1.0


@contained
@pytest.mark.requirement("engine:never-slower")
async def test_a_launch_that_hangs_and_was_not_asked_for_lengthens_nothing():
    tool = working(lambda _: anyio.sleep_forever())
    off, on = await play_both(expecting(tool, "Never mind."))
    assert on.seconds == off.seconds == 1.0
    assert on.when(SpeculationDiscarded) == [1.0]


@contained
async def test_a_write_that_ignores_its_cancellation_once_lengthens_no_turn():
    async def work(ctx):
        try:
            await anyio.sleep(100.0)
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.25)
            raise
        return "late"

    tools = [working(work, Effect.GATED), read(reads=[])]
    agent = Agent(thinking([LOOK_7], "Done."), tools, predictors=[Expects(WORK)])
    off, on = await play_both(agent)
    assert on.seconds == off.seconds


@contained
@pytest.mark.requirement("engine:invisible")
async def test_a_write_that_swallows_its_denial_is_not_believed():
    async def work(ctx):
        try:
            await ctx.barrier.wait()
        except (WriteDenied, anyio.get_cancelled_exc_class()):
            return "never mind"
        return "done"

    def respond(request):
        calls = sum(len(m.tool_calls) for m in request.history)
        return ["Done.", [WORK], [LOOK_7]][2 - min(calls, 2)]

    tools = [working(work, Effect.GATED), read(reads=[])]
    agent = Agent(ScriptedModel(respond, delay=1.0), tools, predictors=[Expects(WORK)])
    _, on = await play_both(agent)
    assert on.answers == ["7 is new", "done"]


@contained
@pytest.mark.parametrize("seconds", [0.5, 1.5, 2.0, 3.0])
async def test_a_time_limit_ends_a_call_the_same_with_and_without_a_launch(seconds):
    async def work(_):
        await anyio.sleep(seconds)
        return "in time"

    off, on = await play_both(expecting(working(work, timeout=1.75)))
    assert (on.answers == ["in time"]) is (seconds < 1.75)
    assert on.seconds <= off.seconds


@pytest.mark.parametrize("wait", [1.0, 20.0])
async def test_time_that_a_write_is_held_does_not_count_towards_its_limit(wait):
    tool = write(prepare=0.5, takes=1.0, timeout=1.75)
    agent = Agent(
        thinking([CHANGE_7], "Done.", delay=wait),
        [tool],
        predictors=[Expects(CHANGE_7)],
    )
    off, on = await play_both(agent)
    assert on.answers == ["7 is changed"]
    assert off.seconds - on.seconds == 0.5


@contained
async def test_a_hanging_call_that_was_asked_for_ends_at_its_limit_at_the_latest():
    tool = working(lambda _: anyio.sleep_forever(), timeout=2.0)
    off, on = await play_both(expecting(tool))
    assert "took over 2.0 s" in on.answers[0]
    assert on.seconds <= off.seconds


@contained
async def test_a_result_that_cannot_be_rendered_is_the_same_failure():
    async def work(_):
        endless = []
        endless.append(endless)
        return endless

    off, on = await play_both(expecting(working(work)))
    assert on.answers == off.answers


@contained
async def test_an_early_result_that_cannot_be_rendered_fails_the_tool_the_same():
    async def work(ctx):
        ctx.early_result({"a": object()})

    off, on = await play_both(expecting(working(work)))
    assert on.answers == off.answers


class Alarm(BaseException):
    """Not an `Exception`: what a library uses to get past `except Exception`."""


@contained
async def test_a_base_exception_in_a_guess_is_contained():
    async def work(ctx):
        raise Alarm

    off, on = await play_both(expecting(working(work), "Never mind."))
    assert on.seconds == off.seconds


@pytest.mark.parametrize("speculate", [True, False])
async def test_a_base_exception_of_a_real_call_reaches_the_host_unwrapped(speculate):
    async def work(ctx):
        await anyio.sleep(1.5)
        raise Alarm

    agent = Agent(
        thinking([WORK, LOOK_7], "Done."),
        [working(work), read(seconds=9.0)],
        predictors=[Expects(WORK, LOOK_7)],
    )
    world = World()
    with pytest.raises(Alarm):
        async with agent.open_session(deps=world, speculate=speculate) as session:
            await agent.run("Go.", session=session)
    assert world.running == 0


async def test_an_exception_of_the_host_passes_the_session_unwrapped():
    agent = Agent(thinking("Done.", delay=9.0), [read()], predictors=[Expects(LOOK_7)])
    arm, error = Arm(World()), KeyError("mine")

    async def host():
        async with agent.open_session(deps=arm.world, sink=arm.log) as session:
            with anyio.move_on_after(1.0):
                await agent.run("Go.", session=session)
            raise error

    with pytest.raises(KeyError) as caught:
        await host()
    assert caught.value is error
    assert error.__cause__ is error.__context__ is None
    assert arm.world.running == 0


@pytest.mark.parametrize("speculate", [True, False])
async def test_what_the_hosts_receiver_raises_reaches_the_host(speculate):
    error = BrokenPipeError("the user left")

    def on_delta(delta):
        raise error

    tool = write(takes=3.0, early="{row} is {to}")
    session = Session([tool], deps=World(), speculate=speculate)
    model = thinking([CHANGE_7], "Done.")

    async def host():
        async with session:
            request = ModelRequest([Message(role="user", content="Go.")], session.tools)
            first = await session.ask(request, model.respond)
            results = await session.call_all(first.tool_calls)
            request = request.extended([first.message])
            request = request.answered(first.tool_calls, results)
            await session.ask(request, model.respond, on_delta)

    with pytest.raises(BrokenPipeError) as caught:
        await host()
    assert caught.value is error


@pytest.mark.parametrize("speculate", [True, False])
async def test_what_one_of_several_calls_raises_keeps_its_cause(speculate):
    class Alarm(BaseException):
        pass

    cause = OSError("the disk is full")

    async def fail(row: int) -> str:
        if row == 7:
            raise Alarm from cause
        await anyio.sleep(5.0)
        return "fine"

    model = thinking([LOOK_7, LOOK_8])
    session = Session([Tool(fail, name="look")], speculate=speculate)

    async def host():
        async with session:
            request = ModelRequest([Message(role="user", content="Go.")], session.tools)
            first = await session.ask(request, model.respond)
            await session.call_all(first.tool_calls)

    with pytest.raises(Alarm) as caught:
        await host()
    assert caught.value.__cause__ is cause


@pytest.mark.requirement("cancel:no-orphans")
async def test_a_session_that_ends_denies_whatever_is_still_held():
    arm = Arm(World())
    changes = [("change", {"row": row}) for row in range(3)]
    agent = Agent(
        thinking("Done.", delay=9.0), [write()], predictors=[Expects(*changes)]
    )
    async with agent.open_session(deps=arm.world, sink=arm.log) as session:
        with anyio.move_on_after(2.0):
            await agent.run("Go.", session=session)
        states = {barrier.effective_state for barrier in arm.world.barriers}
        assert states == {BarrierState.HELD}
    assert len(arm.world.barriers) == 3
    assert all(barrier.state is BarrierState.DENIED for barrier in arm.world.barriers)
    assert arm.world.effects == []
    assert arm.world.running == 0


@contained
async def test_a_sink_that_fails_is_told_nothing_more_and_the_run_goes_on(caplog):
    class Fails:
        heard = 0

        def emit(self, event):
            self.heard += 1
            raise OSError("disk full")

    sink, world = Fails(), World()
    agent = Agent(thinking([LOOK_7], "Done."), [read()], predictors=[Expects(LOOK_7)])
    async with agent.open_session(deps=world, sink=sink) as session:
        result = await agent.run("Go.", session=session)
    assert result.text == "Done."
    assert world.now == 3.0
    assert sink.heard == 1
    assert [r.levelno for r in caplog.records] == [logging.ERROR]


@contained
@pytest.mark.parametrize("method", ["refuse_launch", "refuse_run_ahead"])
async def test_a_policy_that_fails_admits_nothing(method, caplog):
    class Fails:
        def refuse_launch(self, candidate):
            return None

        def refuse_run_ahead(self, candidate):
            return None

    def fail(*_, **__):
        raise ArithmeticError("no idea")

    policy = Fails()
    setattr(policy, method, fail)
    agent = Agent(
        thinking([CHANGE_7], "Done."),
        [write(takes=2.0, early="{row} is {to}")],
        predictors=[Expects(CHANGE_7)],
        policy=policy,
    )
    _, on = await play_both(agent)
    assert bool(on.of(CallLaunched)) is (method == "refuse_run_ahead")
    assert bool(on.summary.run_ahead) is (method == "refuse_launch")
    assert any("policy failed" in r.message or r.exc_info for r in caplog.records)


@contained
async def test_a_run_goes_on_in_the_same_session_after_a_request_was_cut_short():
    arm = Arm(World())
    agent = Agent(thinking([LOOK_7], "Done."), [read()], predictors=[Expects(LOOK_7)])
    async with agent.open_session(deps=arm.world, sink=arm.log) as session:
        for seconds in (0.5, 1.5):
            with anyio.move_on_after(seconds) as scope:
                await agent.run("Go.", session=session)
            assert scope.cancelled_caught
        result = await agent.run("Go.", session=session)
    assert result.text == "Done."
    assert [m.content for m in result.messages if m.role == "tool"] == ["7 is new"]


@pytest.mark.real_time
async def test_a_tool_in_a_thread_is_launched_and_adopted_like_any_other():
    def look(row: int) -> str:
        return f"{row} is new"

    tool = Tool(look, effect=Effect.READ)
    agent = Agent(
        thinking([LOOK_7], "Done.", delay=0), [tool], predictors=[Expects(LOOK_7)]
    )
    on = await play(agent)
    assert on.answers == ["7 is new"]
    assert on.summary.hits + on.summary.early_starts == 1


@pytest.mark.real_time
@pytest.mark.requirement("engine:invisible")
async def test_a_write_in_a_thread_is_held_and_denied_when_it_is_not_asked_for():
    held, effects = anyio.Event(), []

    class Watches:
        def emit(self, event):
            if isinstance(event, EffectHeld):
                held.set()

    class Patient:
        async def respond(self, request, on_delta):
            with anyio.fail_after(5.0):
                await held.wait()
            return ModelResponse(text="Never mind.")

    def change(ctx: ToolContext[World], row: int) -> str:
        ctx.barrier.wait_blocking()
        effects.append(row)
        return "changed"

    tool = Tool(change, effect=Effect.GATED)
    agent = Agent(Patient(), [tool], predictors=[Expects(CHANGE_7)])
    async with agent.open_session(sink=Watches()) as session:
        assert (await agent.run("Go.", session=session)).text == "Never mind."
    assert effects == []
