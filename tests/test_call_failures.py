"""What a predicted call cannot do to its host: fail, hang, outlast its time, interrupt."""

import asyncio
import gc
import math
import threading

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio.testing

from headstart import (
    BarrierState,
    DiscardedError,
    Effect,
    SpeculationError,
    ToolCallSpeculator,
    ToolContext,
    ToolResult,
    WriteBarrier,
    WriteDenied,
    current_barrier,
    disowned_threads,
    tool,
)
from headstart._call_speculation import in_this_loop
from headstart._lifecycle import SpeculationState
from headstart._tools import InvalidArgumentsError
from headstart.testing import VirtualLoop, run_virtual

HELD, FLUSHED, DENIED = BarrierState


class StopEverything(BaseException):
    """What a tool should not raise, and some do."""


FAILURES = [
    ValueError("no such incident"),
    TimeoutError("the database is slow"),
    StopEverything(),
    DiscardedError(),
    ExceptionGroup("two", [ValueError(), KeyError()]),
    BaseExceptionGroup("two", [StopEverything(), ValueError()]),
    WriteDenied("denied", barrier="other", denied_by="other", reason="somebody's own"),
    SpeculationError("the tool's own"),
]


def failing(error, *, before=0.0):
    @tool(effect=Effect.READ)
    async def fail() -> None:
        await anyio.sleep(before)
        raise error

    return fail


async def settle_tasks():
    """Let every task that can run come to where it waits."""
    await anyio.wait_all_tasks_blocked()


# --- what the tool raises ------------------------------------------------------------


@pytest.mark.requirement("engine:contained")
@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
async def test_what_a_tool_raises_is_kept_for_whoever_waits(error):
    started = anyio.current_time()
    async with ToolCallSpeculator(failing(error, before=1), "{}") as guess:
        await anyio.sleep(2)  # the host goes on
        assert guess.state is SpeculationState.FAILED
        for use in (guess.wait, guess.wait, guess.adopt, guess.adopt):
            with pytest.raises(type(error)) as caught:
                await use()
            assert caught.value is error
        assert guess.error is error
    assert anyio.current_time() - started == 2


@pytest.mark.requirement("engine:contained")
@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("before", [0, 1, 3])
async def test_what_a_tool_raises_and_nobody_asks_for_is_dropped(error, before):
    started = anyio.current_time()
    async with ToolCallSpeculator(failing(error, before=before), "{}") as guess:
        await anyio.sleep(2)
    assert anyio.current_time() - started == 2
    with pytest.raises(SpeculationError) as caught:
        await guess.wait()
    assert caught.value.__cause__ is (error if before < 2 else None)


async def test_several_waiters_all_get_what_the_tool_raised():
    error, caught = ValueError("no such incident"), []

    async def wait_for(guess):
        try:
            await guess.wait()
        except ValueError as raised:
            caught.append(raised)

    async with ToolCallSpeculator(failing(error, before=1), "{}") as guess:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(wait_for, guess)
    assert caught == [error] * 3


async def test_a_tool_that_fails_after_it_was_adopted_fails_its_adopter():
    @tool(effect=Effect.GATED)
    async def fail_behind_the_barrier() -> None:
        await current_barrier().wait()
        raise ValueError("the row is locked")

    async with ToolCallSpeculator(fail_behind_the_barrier, "{}") as guess:
        with pytest.raises(ValueError, match="locked"):
            await guess.adopt()
    assert guess.state is SpeculationState.ADOPTED


@pytest.mark.requirement("engine:contained")
@pytest.mark.parametrize("raised", [ValueError(), StopEverything()])
async def test_what_a_tool_raises_while_it_is_discarded_is_dropped(raised):
    @tool(effect=Effect.READ)
    async def untidy() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise raised

    async with ToolCallSpeculator(untidy, "{}") as guess:
        await settle_tasks()
    with pytest.raises(SpeculationError) as caught:
        await guess.wait()
    assert caught.value.__cause__ is raised


@pytest.mark.parametrize("arguments", ["not json", '{"key": "x"}', "{}", "[]"])
async def test_arguments_that_do_not_fit_are_an_error_of_the_call(arguments):
    @tool(effect=Effect.READ)
    async def look_up(key: int) -> None:
        pytest.fail(f"It ran with {key!r}.")

    async with ToolCallSpeculator(look_up, arguments) as guess:
        with pytest.raises(InvalidArgumentsError):
            await guess.wait()


# --- what the host raises ------------------------------------------------------------


@pytest.mark.requirement("engine:contained")
@pytest.mark.parametrize("tool_fails", [False, True])
@pytest.mark.parametrize("adopted", [False, True])
@pytest.mark.parametrize(
    "error",
    [ValueError(), StopEverything(), ExceptionGroup("two", [ValueError(), KeyError()])],
    ids=lambda error: type(error).__name__,
)
async def test_what_the_host_raises_passes_unchanged(error, adopted, tool_fails):
    @tool(effect=Effect.READ)
    async def look_up() -> None:
        await anyio.sleep(1)
        if tool_fails:
            raise RuntimeError("the tool's own")

    cause = KeyError("why")
    guess = ToolCallSpeculator(look_up, "{}")

    async def host():
        async with guess:
            if adopted:
                guess.confirm()
            raise error from cause

    with pytest.raises(type(error)) as caught:
        await host()
    assert caught.value is error
    assert error.__cause__ is cause
    assert guess.state in {SpeculationState.ADOPTED, SpeculationState.DISCARDED}


@pytest.mark.requirement("cancel:outside-wins")
async def test_cancelling_the_host_passes_through_and_discards():
    reached = []
    with anyio.CancelScope() as scope:
        async with ToolCallSpeculator(failing(ValueError(), before=9), "{}") as guess:
            scope.cancel()
            await anyio.sleep_forever()
        reached.append("past the speculation")
    assert scope.cancelled_caught
    assert reached == []
    assert guess.state is SpeculationState.DISCARDED
    assert guess.ended


@pytest.mark.requirement("cancel:outside-wins")
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("adopted", [False, True])
@pytest.mark.parametrize("at_s", [0, 1])
async def test_a_native_cancellation_passes_through_and_cancels(adopted, at_s):
    effects, guesses = [], []

    @tool(effect=Effect.GATED)
    async def post() -> None:
        await anyio.sleep(5)
        await current_barrier().wait()
        effects.append("posted")

    async def host():
        async with ToolCallSpeculator(post, "{}") as guess:
            guesses.append(guess)
            if adopted:
                await guess.adopt()
            await anyio.sleep_forever()

    task = asyncio.create_task(host())
    await anyio.lowlevel.checkpoint()
    await anyio.sleep(at_s)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (guess,) = guesses
    assert guess.ended
    await anyio.sleep(3600)
    assert effects == []
    with pytest.raises(SpeculationError):
        await guess.wait()


@pytest.mark.requirement("cancel:outside-wins")
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_native_cancellation_while_it_is_left_cancels_an_adopted_call():
    effects = []

    @tool(effect=Effect.GATED)
    async def post() -> None:
        await anyio.sleep(5)
        await current_barrier().wait()
        effects.append("posted")

    guess = ToolCallSpeculator(post, "{}")

    async def host():
        async with guess:
            guess.confirm()

    task = asyncio.create_task(host())
    await anyio.sleep(1)
    assert not task.done()
    started = anyio.current_time()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert anyio.current_time() == started
    assert guess.state is SpeculationState.CANCELLED
    assert effects == []


@pytest.mark.requirement("cancel:no-orphans")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("adopted", [False, True])
def test_an_event_loop_that_ends_settles_calls_that_never_came_to_run(adopted):
    guess = ToolCallSpeculator(failing(ValueError()), "{}")

    async def host():
        async with guess:
            if adopted:
                guess.confirm()
            await anyio.sleep_forever()

    async def interrupt():
        task = asyncio.create_task(host())
        asyncio.get_running_loop().call_soon(task.cancel)
        asyncio.get_running_loop().call_soon(cancel_everything)
        await anyio.sleep(1)

    def cancel_everything():
        for task in asyncio.all_tasks():
            if task.get_name().startswith("headstart"):
                task.cancel()

    run_virtual(interrupt)
    gc.collect()  # a task that is cancelled before it has begun leaves its coroutine
    assert guess.ended
    assert guess.error is None
    assert guess.barrier.state is (FLUSHED if adopted else DENIED)


# --- cancellations of the tool's own ---------------------------------------------------


@pytest.mark.requirement("engine:contained")
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_tool_that_awaits_something_cancelled_does_not_cancel_its_host():
    @tool(effect=Effect.READ)
    async def await_a_cancelled_future() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async with ToolCallSpeculator(await_a_cancelled_future, "{}") as guess:
        await anyio.sleep(2)  # the host goes on
        with pytest.raises(SpeculationError) as caught:
            await guess.wait()
        assert isinstance(caught.value.__cause__, RuntimeError)
    assert guess.barrier.state is DENIED


@pytest.mark.requirement("engine:contained")
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_tool_that_is_cancelled_within_after_its_adoption_has_failed():
    @tool(effect=Effect.GATED)
    async def await_a_cancelled_future() -> None:
        await current_barrier().wait()
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async with ToolCallSpeculator(await_a_cancelled_future, "{}") as guess:
        await settle_tasks()
        with pytest.raises(RuntimeError) as caught:
            await guess.adopt()
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)
        await anyio.lowlevel.checkpoint()  # the host is not cancelled


@pytest.mark.requirement("engine:contained")
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_tool_that_raises_another_cancellation_when_discarded_harms_nobody():
    @tool(effect=Effect.READ)
    async def restate() -> None:
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            raise asyncio.CancelledError from None

    async with ToolCallSpeculator(restate, "{}") as guess:
        await settle_tasks()
        guess.cancel()
        await anyio.sleep(1)
    with pytest.raises(SpeculationError):
        await guess.wait()


# --- interrupts of the process ---------------------------------------------------------


def run_on(backend, function):
    options = (
        {"loop_factory": VirtualLoop}
        if backend == "asyncio"
        else {"clock": trio.testing.MockClock(autojump_threshold=0)}
    )
    return anyio.run(function, backend=backend, backend_options=options)


@pytest.mark.requirement("cancel:outside-wins")
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("adopted", [False, True])
@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_interrupt_in_a_tool_ends_the_host_at_once(
    backend, interrupt, adopted, grouped
):
    guesses, reached = [], []

    @tool(effect=Effect.READ)
    async def interrupted() -> None:
        await anyio.sleep(1)
        error = interrupt("now")
        raise BaseExceptionGroup("one", [error]) if grouped else error

    async def host():
        async with ToolCallSpeculator(interrupted, "{}") as guess:
            guesses.append(guess)
            if adopted:
                await guess.adopt()
            await anyio.sleep(3600)
            reached.append("the end")

    expected = BaseExceptionGroup if grouped else interrupt
    with pytest.raises(expected) as caught:
        run_on(backend, host)
    if grouped:
        assert caught.value.subgroup(interrupt) is not None
    assert reached == []
    (guess,) = guesses
    assert guess.ended
    assert guess.state in {SpeculationState.DISCARDED, SpeculationState.CANCELLED}


# --- time limits -------------------------------------------------------------------------


def slow(seconds, **options):
    @tool(effect=Effect.READ, **options)
    async def look_up() -> str:
        await anyio.sleep(seconds)
        return "found"

    return look_up


@pytest.mark.requirement("engine:contained")
async def test_a_tool_that_takes_too_long_fails_when_its_time_is_up():
    started = anyio.current_time()
    async with ToolCallSpeculator(slow(math.inf, timeout=4), "{}") as guess:
        with pytest.raises(TimeoutError):
            await guess.wait()
        assert anyio.current_time() - started == 4
        assert guess.state is SpeculationState.FAILED
        with pytest.raises(TimeoutError):
            await guess.adopt()


async def test_an_early_start_gives_a_tool_no_more_time_than_a_real_one_has():
    started = anyio.current_time()
    async with ToolCallSpeculator(slow(7, timeout=4), "{}") as guess:
        await anyio.sleep(3.5)
        with pytest.raises(TimeoutError):
            await guess.adopt()
    assert anyio.current_time() - started == 4


@pytest.mark.parametrize(("after_s", "outcome"), [(0.5, "posted"), (2, "too late")])
async def test_the_time_that_a_call_is_held_does_not_count_as_slow(after_s, outcome):
    effects = []

    @tool(effect=Effect.GATED, timeout=4)
    async def post() -> str:
        await anyio.sleep(3)
        await current_barrier().wait()
        effects.append("posted")
        await anyio.sleep(after_s)
        return "posted"

    async with ToolCallSpeculator(post, "{}") as guess:
        await anyio.sleep(3600)
        started = anyio.current_time()
        if outcome == "posted":
            assert await guess.adopt() == "posted"
        else:
            with pytest.raises(TimeoutError):
                await guess.adopt()
        assert anyio.current_time() - started == min(after_s, 1)
    assert effects == ["posted"]


async def test_a_call_discarded_before_its_time_is_up_has_not_timed_out():
    async with ToolCallSpeculator(slow(math.inf, timeout=4), "{}") as guess:
        await anyio.sleep(1)
    assert guess.error is None
    with pytest.raises(SpeculationError):
        await guess.wait()


# --- sync tools, in threads --------------------------------------------------------------


class Thread:
    """A sync tool that tells what became of it, and its tool."""

    def __init__(self, *, early=None):
        self.effects = []
        self.arrived = threading.Event()
        self.ended = threading.Event()
        self.outcome = None

        @tool(effect=Effect.GATED)
        def post(ctx: ToolContext) -> str:
            try:
                if early is not None:
                    ctx.early_result(early)
                self.arrived.set()
                current_barrier().wait_blocking()
                self.effects.append(threading.get_ident())
            except BaseException as error:
                self.outcome = error
                raise
            finally:
                self.ended.set()
            return "posted"

        self.tool = post

    async def until(self, event):
        await anyio.to_thread.run_sync(event.wait)

    async def until_held(self, guess):
        """Wait until the thread has announced that it waits at the barrier."""
        await self.until(self.arrived)
        while guess.held_at < 0:
            await anyio.lowlevel.checkpoint()


@pytest.mark.real_time
@pytest.mark.requirement("barrier:no-effect-before-flush")
async def test_a_sync_tool_runs_in_a_thread_up_to_its_barrier():
    thread = Thread()
    async with ToolCallSpeculator(thread.tool, "{}") as guess:
        await thread.until_held(guess)
        assert thread.effects == []
        assert not guess.ended
        assert await guess.adopt() == "posted"
    (ident,) = thread.effects
    assert ident != threading.get_ident()


@pytest.mark.real_time
@pytest.mark.requirement("barrier:fail-closed")
@pytest.mark.requirement("cancel:no-orphans")
@pytest.mark.parametrize("how", ["leave", "cancel", "deny", "deny in a thread"])
async def test_a_thread_that_is_held_ends_when_its_call_is_discarded(how):
    thread = Thread()
    parent = WriteBarrier()
    async with ToolCallSpeculator(thread.tool, "{}", parent=parent) as guess:
        await thread.until_held(guess)
        if how == "cancel":
            guess.cancel()
        if how == "deny":
            parent.deny("the turn was wrong")
        if how == "deny in a thread":
            await anyio.to_thread.run_sync(parent.deny, "the turn was wrong")
    await thread.until(thread.ended)
    assert isinstance(thread.outcome, WriteDenied)
    assert thread.effects == []
    with pytest.raises(SpeculationError):
        await guess.wait()
    while disowned_threads():
        await anyio.lowlevel.checkpoint()


@pytest.mark.real_time
@pytest.mark.requirement("engine:never-slower")
async def test_leaving_does_not_wait_for_a_thread_that_does_not_listen():
    started, release = threading.Event(), threading.Event()

    @tool(effect=Effect.READ)
    def deaf() -> str:
        started.set()
        release.wait()
        return "found"

    before = disowned_threads()
    async with ToolCallSpeculator(deaf, "{}") as guess:
        await anyio.to_thread.run_sync(started.wait)
    assert guess.state is SpeculationState.DISCARDED
    assert disowned_threads() == before + 1
    release.set()
    while disowned_threads() > before:
        await anyio.lowlevel.checkpoint()
    assert guess.value is None


@pytest.mark.real_time
async def test_a_thread_states_its_result_early():
    received = []
    thread = Thread(early={"paused": True})
    outer = ToolContext(
        deps=None,
        call=None,
        barrier=WriteBarrier(),
        on_early_result=lambda result: received.append((result, threading.get_ident())),
    )
    async with ToolCallSpeculator(thread.tool, "{}", context=outer) as guess:
        await thread.until_held(guess)
        stated = ToolResult('{"paused":true}')
        assert guess.early_result == stated
        assert received == [(stated, threading.get_ident())]
    await thread.until(thread.ended)


@pytest.mark.real_time
async def test_a_hold_in_a_thread_is_told_in_the_event_loop():
    thread, told = Thread(), []

    def on_hold():
        told.append((threading.get_ident(), guess.held_at >= 0))

    guess = ToolCallSpeculator(thread.tool, "{}")
    async with anyio.create_task_group() as tasks:
        guess.launch(tasks, on_hold=on_hold)
        await thread.until_held(guess)
        assert told == [(threading.get_ident(), True)]
        await guess.adopt()


@pytest.mark.real_time
@pytest.mark.requirement("engine:contained")
async def test_a_hold_that_a_thread_tells_after_the_release_stops_no_clock():
    started, go, arrived, end = (threading.Event() for _ in range(4))

    @tool(effect=Effect.GATED, timeout=0.05)
    def stuck() -> None:
        started.set()
        go.wait()
        current_barrier().wait_blocking()
        end.wait()

    guess = ToolCallSpeculator(stuck, "{}")
    async with anyio.create_task_group() as tasks:
        guess.launch(tasks)
        tell = in_this_loop(guess._hold)
        guess.barrier.on_first_wait(lambda: (arrived.set(), tell()))
        while not started.is_set():
            await anyio.lowlevel.checkpoint()
        go.set()
        arrived.wait()  # in the event loop, which so cannot be told before the release
        guess.confirm()
        with pytest.raises(TimeoutError):
            await guess.wait()
        end.set()
    while disowned_threads():
        await anyio.lowlevel.checkpoint()


@pytest.mark.real_time
async def test_a_hold_in_an_event_loop_of_the_tools_own_is_told_in_the_hosts():
    told, effects = [], []

    @tool(effect=Effect.GATED)
    def run_own_loop() -> str:
        async def effect():
            await current_barrier().wait()
            effects.append(threading.get_ident())

        anyio.run(effect)
        return "posted"

    guess = ToolCallSpeculator(run_own_loop, "{}")
    held = anyio.Event()

    def on_hold():
        told.append(threading.get_ident())
        held.set()

    async with anyio.create_task_group() as tasks:
        guess.launch(tasks, on_hold=on_hold)
        await held.wait()
        assert effects == []
        assert await guess.adopt() == "posted"
    assert told == [threading.get_ident()]
    assert len(effects) == 1


@pytest.mark.real_time
async def test_a_hold_in_a_foreign_thread_still_holds():
    effects, arrived = [], threading.Event()

    @tool(effect=Effect.GATED)
    async def delegate(ctx: ToolContext) -> str:
        def effect():
            arrived.set()
            ctx.barrier.wait_blocking()
            effects.append("posted")

        thread = threading.Thread(target=effect)
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
        return "posted"

    async with ToolCallSpeculator(delegate, "{}") as guess:
        await anyio.to_thread.run_sync(arrived.wait)
        assert effects == []
        assert await guess.adopt() == "posted"
    assert effects == ["posted"]
