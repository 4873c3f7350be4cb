"""Faults of event loops and threads."""

import asyncio
import concurrent.futures
import contextlib
import math
import pickle
import threading

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio.testing

from headstart import (
    Agent,
    BarrierState,
    Effect,
    LimitPolicy,
    Message,
    ModelResponse,
    Tool,
    ToolCall,
    ToolCallSpeculator,
    ToolContext,
    WriteBarrier,
    WriteDenied,
    current_barrier,
    disowned_threads,
    tool,
)
from headstart._events import CallLaunched
from headstart._lifecycle import SpeculationState
from headstart.effects import hold_blocking
from headstart.testing import ScriptedModel, VirtualLoop

from .scene import CHANGE_7, Expects, World, play, play_both, talk, write

HELD, FLUSHED, DENIED = BarrierState


async def until(event):
    """Wait for an event of a thread, in a thread."""
    await anyio.to_thread.run_sync(event.wait)


async def until_no_more_threads_are_disowned():
    while disowned_threads():
        await anyio.lowlevel.checkpoint()


@pytest.mark.real_time
async def test_fault_13_the_effect_of_a_thread_that_was_cancelled_is_refused():
    started, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    effects, refused = [], []

    @tool(effect=Effect.GATED)
    def post(ctx: ToolContext) -> None:
        started.set()
        go_on.wait()
        try:
            ctx.barrier.wait_blocking()
            effects.append("posted")
        except WriteDenied as denial:
            refused.append(denial.reason)
        finally:
            ended.set()

    with anyio.CancelScope() as scope:
        async with ToolCallSpeculator(post, "{}"):
            await until(started)
            scope.cancel()
            await anyio.sleep_forever()
    assert not ended.is_set()  # the caller is back, and the thread still runs
    assert disowned_threads() == 1
    go_on.set()
    await until(ended)
    await until_no_more_threads_are_disowned()
    assert effects == []
    assert len(refused) == 1


def hop_to_executor(function):
    loop = asyncio.get_running_loop()
    return asyncio.wrap_future(loop.run_in_executor(None, function))


def hop_to_pool(function):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return asyncio.wrap_future(pool.submit(function))


async def hop_to_thread(function):
    future = concurrent.futures.Future()
    future.set_running_or_notify_cancel()  # its tool may be cancelled meanwhile

    def run():
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run).start()
    return await asyncio.wrap_future(future)


@pytest.mark.real_time
@pytest.mark.parametrize("confirmed", [False, True])
@pytest.mark.parametrize("hop", [hop_to_executor, hop_to_pool, hop_to_thread])
async def test_fault_14_an_effect_that_lost_its_context_finds_no_barrier_to_pass(
    hop, confirmed
):
    effects, barriers = [], []

    def effect():
        barriers.append(current_barrier())
        current_barrier().wait_blocking()
        effects.append("posted")

    async def post():
        await hop(effect)

    made = Tool(post, effect=Effect.GATED)
    async with ToolCallSpeculator(made, "{}") as guess:
        if confirmed:
            guess.confirm()
        with pytest.raises(AttributeError):
            await guess.wait()
    assert barriers == [None]
    assert effects == []


@pytest.mark.real_time
@pytest.mark.parametrize("confirmed", [False, True])
@pytest.mark.parametrize("hop", [hop_to_executor, hop_to_pool, hop_to_thread])
async def test_fault_14_a_seam_refuses_an_effect_that_lost_its_context(hop, confirmed):
    effects = []

    def effect():
        with hold_blocking("a post"):
            effects.append("posted")

    async def post():
        with contextlib.suppress(WriteDenied):
            await hop(effect)

    async with ToolCallSpeculator(Tool(post, effect=Effect.GATED), "{}") as guess:
        if confirmed:
            guess.confirm()
        await guess.wait_until_ended()
        assert guess.barrier.state is (FLUSHED if confirmed else DENIED)
    assert effects == ["posted"] * confirmed


async def test_fault_14_no_barrier_reaches_another_process():
    @tool(effect=Effect.GATED)
    async def post(ctx: ToolContext) -> bytes:
        return pickle.dumps(ctx.barrier)

    async with ToolCallSpeculator(post, "{}") as guess:
        with pytest.raises(TypeError):
            await guess.wait()


def by_task(function, tasks):
    tasks.append(asyncio.create_task(function()))


def by_callback(function, tasks):
    asyncio.get_running_loop().call_later(0.5, by_task, function, tasks)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("settled", ["denied", "held", "flushed"])
@pytest.mark.parametrize("start", [by_task, by_callback])
async def test_fault_15_what_a_tool_leaves_behind_is_held_and_obeys_the_verdict(
    start, settled
):
    effects, tasks = [], []

    async def orphan():
        await anyio.sleep(1.0)
        await current_barrier().wait()
        effects.append("posted")

    @tool(effect=Effect.GATED)
    async def post() -> str:
        start(orphan, tasks)
        return "posted"

    async with ToolCallSpeculator(post, "{}") as guess:
        assert await guess.wait() == "posted"
        if settled == "denied":
            guess.cancel()
        await anyio.sleep(10.0)
        assert effects == []
        assert tasks[0].done() is (settled == "denied")
        if settled == "flushed":
            await guess.adopt()
    (outcome,) = await asyncio.gather(*tasks, return_exceptions=True)
    assert effects == (["posted"] if settled == "flushed" else [])
    assert (outcome is None) is (settled == "flushed")
    assert isinstance(outcome, WriteDenied | None)


async def deny(guess, _):
    guess.barrier.deny("because")


async def discard(guess, _):
    guess.cancel()


async def cancel_the_host(_, tasks):
    tasks.cancel_scope.cancel()


@pytest.mark.parametrize("end", [deny, discard, cancel_the_host])
async def test_fault_17_a_call_that_is_cancelled_before_its_first_step_is_settled(end):
    world, ends = World(), []
    context = ToolContext(
        deps=world, call=ToolCall("", "change", '{"row": 7}'), barrier=WriteBarrier()
    )
    guess = ToolCallSpeculator(write(), '{"row": 7}', context=context)
    async with anyio.create_task_group() as tasks:
        guess.launch(tasks, on_end=lambda: ends.append(guess.state))
        await end(guess, tasks)
    assert world.starts == []
    assert guess.barrier.state is DENIED
    assert ends == [SpeculationState.DISCARDED]  # by which a pool frees its slot


async def test_fault_17_guesses_that_are_discarded_at_once_use_no_slot_up():
    agent = Agent(
        ScriptedModel(lambda _: "No need."),
        [write()],
        predictors=[Expects(CHANGE_7)],
        policy=LimitPolicy(max_in_flight=1, max_in_flight_of_tool=1),
    )
    on = await talk(agent, ["Go."] * 5)
    assert len(on.of(CallLaunched)) == 5
    assert on.world.effects == []


@pytest.mark.real_time
async def test_fault_18_a_thread_that_never_returns_is_counted_and_holds_up_nothing():
    release, starts = threading.Event(), []

    @tool(effect=Effect.GATED, max_concurrency=1)
    def deaf() -> None:
        starts.append(threading.get_ident())
        release.wait()

    class WaitsForStart:
        async def respond(self, request, on_delta):
            while len(starts) < len(request.history) // 2 + 1:
                await anyio.lowlevel.checkpoint()
            return ModelResponse(text="Never mind.")

    agent = Agent(
        WaitsForStart(),
        [deaf],
        predictors=[Expects(("deaf", {}))],
        policy=LimitPolicy(),
    )
    async with agent.open_session() as session:
        first = await agent.run("Go.", session=session)
        messages = [*first.messages, Message(role="user", content="Go on.")]
        await agent.run(messages, session=session)
    assert len(starts) == 2  # the slot was free again, though the thread is not
    assert disowned_threads() == 2
    release.set()
    await until_no_more_threads_are_disowned()


async def test_fault_18_a_call_that_never_returns_ends_at_its_deadline():
    @tool(effect=Effect.GATED, timeout=2.0)
    async def hang() -> None:
        await anyio.sleep_forever()

    model = ScriptedModel([[("hang", {})], "Done."], delay=1.0)
    agent = Agent(model, [hang], predictors=[Expects(("hang", {}))])
    off, on = await play_both(agent)
    assert "2.0 s" in on.answers[0]
    assert on.seconds <= off.seconds == 4.0


async def test_fault_18_a_guess_that_clings_to_life_lengthens_no_turn():
    @tool(effect=Effect.GATED)
    async def cling() -> None:
        until = anyio.current_time() + 60.0
        with anyio.CancelScope(shield=True):
            await anyio.sleep(until - anyio.current_time())

    model = ScriptedModel(["Never mind."], delay=1.0)
    agent = Agent(model, [cling], predictors=[Expects(("cling", {}))])
    async with agent.open_session(deps=World()) as session:
        await agent.run("Go.", session=session)
        assert session.deps.now == 1.0


BACKENDS = {
    "asyncio": {"loop_factory": VirtualLoop},
    "trio": {"clock": trio.testing.MockClock(autojump_threshold=0)},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_fault_19_an_interrupt_with_a_hundred_held_barriers_denies_them_all(
    backend, interrupt
):
    worlds = []

    async def host():
        world = World()
        worlds.append(world)
        rows = [("change", {"row": row}) for row in range(100)]
        agent = Agent(
            ScriptedModel(["Done."], delay=math.inf),
            [write(prepare=0.5)],
            predictors=[Expects(*rows[at : at + 20]) for at in range(0, 100, 20)],
            policy=LimitPolicy(max_in_flight=100, max_in_flight_of_tool=100),
        )
        async with agent.open_session(deps=world) as session:
            with anyio.move_on_after(5.0):
                await agent.run("Go.", session=session)
            states = [barrier.effective_state for barrier in world.barriers]
            assert states == [HELD] * 100
            raise interrupt("now")

    with pytest.raises(interrupt):
        anyio.run(host, backend=backend, backend_options=BACKENDS[backend])
    (world,) = worlds
    assert all(barrier.state is DENIED for barrier in world.barriers)
    assert world.effects == []
    assert world.running == 0


class Alarm(BaseException):
    """What gets past `except Exception`."""


def endless():
    value = []
    value.append(value)
    return value


VALUES = {
    "an object": object,
    "NaN": lambda: math.nan,
    "infinity": lambda: {"a": [-math.inf]},
    "recursion": endless,
    "a lone surrogate": lambda: "\ud800",
    "a lone surrogate within": lambda: {"a": "\udfff"},
    "16 MiB": lambda: "x" * 2**24,
    "bytes that are no text": lambda: b"\xff",
}


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("early", [False, True])
async def test_fault_21_what_is_no_result_is_answered_as_without_speculation(
    make, early
):
    @tool(effect=Effect.GATED, name="odd")
    async def odd(ctx: ToolContext) -> object:
        if early:
            ctx.early_result(make())
        await anyio.sleep(2.0)
        await ctx.barrier.wait()
        return make()

    model = ScriptedModel([[("odd", {})], "Done."], delay=1.0)
    agent = Agent(model, [odd], predictors=[Expects(("odd", {}))])
    off, on = await play_both(agent)
    assert len(on.answers) == 1
    assert on.seconds <= off.seconds


@pytest.mark.parametrize("fails", ["always", "in a guess"])
async def test_fault_21_a_base_exception_is_the_real_calls_alone(fails):
    @tool(effect=Effect.READ)
    async def alarm(ctx: ToolContext) -> str:
        if ctx.speculative or fails == "always":
            raise Alarm
        return "fine"

    model = ScriptedModel([[("alarm", {})], "Done."], delay=1.0)
    agent = Agent(model, [alarm], predictors=[Expects(("alarm", {}))])
    if fails == "always":
        for speculate in (False, True):
            with pytest.raises(Alarm):
                await play(agent, speculate=speculate)
    else:
        _, on = await play_both(agent)
        assert on.answers == ["fine"]
