"""One predicted call: it runs while the host waits, and is adopted or discarded."""

import contextlib
import gc
import threading

import anyio
import anyio.lowlevel
import pytest

from headstart import (
    BarrierState,
    Effect,
    SpeculationError,
    Tool,
    ToolCall,
    ToolCallSpeculator,
    ToolContext,
    ToolResult,
    UsageError,
    WriteBarrier,
    WriteDenied,
    current_barrier,
    tool,
)
from headstart._lifecycle import SpeculationState
from headstart.testing import run_virtual

HELD, FLUSHED, DENIED = BarrierState


def read(seconds=0.0, result="found", **options):
    """A tool that only looks something up, and takes its time."""

    @tool(effect=Effect.READ, **options)
    async def look_up(key: int = 0) -> str:
        await anyio.sleep(seconds)
        return result

    return look_up


def gated(effects, *, before=0.0, after=0.0, **options):
    """A tool with one effect, behind its barrier."""

    @tool(effect=Effect.GATED, **options)
    async def post(text: str = "hello") -> str:
        await anyio.sleep(before)
        await current_barrier().wait()
        effects.append(text)
        await anyio.sleep(after)
        return f"posted {text}"

    return post


async def settle_tasks():
    """Let every task that can run come to where it waits."""
    await anyio.wait_all_tasks_blocked()


async def flush(barrier):
    barrier.flush()


# --- running ahead, and adoption ---------------------------------------------------


@pytest.mark.parametrize(
    ("tool_s", "host_s", "total_s"), [(2, 3, 3), (3, 3, 3), (5, 3, 5), (0, 3, 3)]
)
async def test_the_tool_runs_while_the_host_waits(tool_s, host_s, total_s):
    started = anyio.current_time()
    async with ToolCallSpeculator(read(tool_s), "{}") as guess:
        await anyio.sleep(host_s)
        assert await guess.adopt() == "found"
    assert anyio.current_time() - started == total_s


@pytest.mark.requirement("barrier:no-effect-before-flush")
async def test_a_gated_call_stops_at_its_barrier_until_it_is_adopted():
    effects = []
    async with ToolCallSpeculator(gated(effects, before=1), "{}") as guess:
        await anyio.sleep(3600)
        assert effects == []
        assert guess.barrier.state is HELD
        started = anyio.current_time()
        assert await guess.adopt() == "posted hello"
        assert anyio.current_time() == started
    assert effects == ["hello"]
    assert guess.barrier.state is FLUSHED
    assert guess.state is SpeculationState.ADOPTED


async def test_adopting_twice_gives_the_result_twice_and_the_effect_once():
    effects = []
    async with ToolCallSpeculator(gated(effects), "{}") as guess:
        results = [await guess.adopt(), await guess.adopt()]
    results += [await guess.adopt(), await guess.wait()]  # and after it was left
    assert results == ["posted hello"] * 4
    assert effects == ["hello"]


@pytest.mark.requirement("barrier:no-effect-before-flush")
async def test_waiting_for_the_result_does_not_flush():
    effects = []
    async with ToolCallSpeculator(gated(effects), "{}") as guess:
        with anyio.move_on_after(3600) as patience:
            await guess.wait()
        assert patience.cancelled_caught
        assert guess.barrier.state is HELD
    assert effects == []


async def test_waiting_gives_the_result_of_a_read_and_leaves_it_unconfirmed():
    async with ToolCallSpeculator(read(2), "{}") as guess:
        assert await guess.wait() == "found"
        assert guess.barrier.state is HELD
        assert guess.state is SpeculationState.READY
    assert guess.state is SpeculationState.DISCARDED


async def test_every_waiter_gets_the_result_and_a_cancelled_one_harms_nobody():
    got = []

    async def wait_for(guess, patience):
        with anyio.move_on_after(patience):
            got.append((await guess.wait(), anyio.current_time() - started))

    started = anyio.current_time()
    async with ToolCallSpeculator(read(2), "{}") as guess:
        async with anyio.create_task_group() as tasks:
            for patience in (1, 3, 3, 3):
                tasks.start_soon(wait_for, guess, patience)
        assert guess.state is SpeculationState.READY
    assert got == [("found", 2)] * 3


async def test_the_tool_is_told_of_its_barrier_its_call_and_its_confirmation():
    seen = []

    @tool(effect=Effect.GATED)
    async def look(ctx: ToolContext) -> None:
        seen.append((ctx.speculative, ctx.call, ctx.deps, ctx.barrier))
        assert current_barrier() is ctx.barrier
        await ctx.barrier.wait()
        seen.append((ctx.speculative, ctx.call, ctx.deps, ctx.barrier))

    call = ToolCall("call-of-the-model", "look", "{ }")
    outer = ToolContext(deps="database", call=call, barrier=WriteBarrier())
    async with ToolCallSpeculator(look, "{}", context=outer) as guess:
        await settle_tasks()
        assert current_barrier() is None
        guess.confirm(call)
        await guess.wait()
    own = ToolCall(guess.span_id, "look", "{}")
    assert seen == [
        (True, own, "database", guess.barrier),
        (False, call, "database", guess.barrier),
    ]


async def test_its_attributes_say_what_it_runs():
    look_up = read(1)
    async with (
        ToolCallSpeculator(look_up, '{"key": 1}') as guess,
        ToolCallSpeculator(look_up, '{"key": 1}') as other,
    ):
        assert guess.tool is look_up
        assert guess.arguments == '{"key": 1}'
        assert guess.span_id != other.span_id
        assert not guess.ended
        assert "look_up" in repr(guess)
        assert guess.value is guess.error is None
        await guess.wait()
        assert guess.ended
        assert guess.value == "found"


# --- leaving and cancelling ---------------------------------------------------------


@pytest.mark.requirement("barrier:fail-closed")
async def test_leaving_discards_what_was_not_adopted():
    effects = []
    async with ToolCallSpeculator(gated(effects, before=1), "{}") as guess:
        await anyio.sleep(2)
    assert not guess.barrier.flush()
    assert guess.barrier.state is DENIED
    assert guess.state is SpeculationState.DISCARDED
    await anyio.sleep(3600)
    assert effects == []


@pytest.mark.requirement("engine:never-slower")
@pytest.mark.parametrize("tool_s", [0, 1, 3600])
async def test_leaving_does_not_wait_for_the_tool(tool_s):
    started = anyio.current_time()
    async with ToolCallSpeculator(read(tool_s), "{}"):
        await anyio.sleep(1)
    assert anyio.current_time() - started == 1


async def test_cancelling_discards_at_once_and_gives_the_reason():
    ended = []

    @tool(effect=Effect.READ)
    async def hang() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(anyio.current_time())

    async with ToolCallSpeculator(hang, "{}") as guess:
        await anyio.sleep(1)
        assert guess.cancel("the model asked for another")
        assert guess.state is SpeculationState.DISCARDED
        assert not guess.cancel("again")
        await settle_tasks()
        assert ended == [anyio.current_time()]
        for use in (guess.wait, guess.adopt):
            with pytest.raises(SpeculationError) as caught:
                await use()
            assert caught.value.reason == "the model asked for another"
        assert guess.barrier.reason == "the model asked for another"


async def test_a_finished_call_that_is_discarded_gives_out_nothing():
    async with ToolCallSpeculator(read(), "{}") as guess:
        assert await guess.wait() == "found"
    for use in (guess.wait, guess.adopt):
        with pytest.raises(SpeculationError):
            await use()


@pytest.mark.parametrize("settle", ["cancel", "leave", "deny"])
async def test_a_tool_that_swallows_its_cancellation_is_still_unusable(settle):
    @tool(effect=Effect.READ)
    async def stubborn() -> str:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            return "found"

    async with ToolCallSpeculator(stubborn, "{}") as guess:
        await settle_tasks()
        if settle == "cancel":
            guess.cancel()
        if settle == "deny":
            guess.barrier.deny("because")
        await settle_tasks()
    assert guess.value == "found"
    with pytest.raises(SpeculationError):
        await guess.wait()
    with pytest.raises(SpeculationError):
        await guess.adopt()


async def test_who_waits_for_a_tool_that_swallows_its_cancellation_gets_an_error():
    caught = []

    @tool(effect=Effect.READ)
    async def stubborn() -> str:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            return "found"

    async def wait_for(guess):
        try:
            await guess.wait()
        except SpeculationError as error:
            caught.append(error.reason)

    async with ToolCallSpeculator(stubborn, "{}") as guess:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(wait_for, guess)
            await settle_tasks()
            guess.cancel("the model asked for another")
    assert caught == ["the model asked for another"] * 3


@pytest.mark.requirement("engine:invisible")
@pytest.mark.parametrize("how", ["cancel", "deny", "leave", "before", "parent before"])
async def test_a_call_cancelled_before_its_first_step_never_runs(how):
    ran = []

    @tool(effect=Effect.READ)
    async def note() -> None:
        ran.append("async")

    @tool(effect=Effect.READ)
    def note_in_thread() -> None:
        ran.append("sync")

    for noting in (note, note_in_thread):
        parent = WriteBarrier()
        guess = ToolCallSpeculator(noting, "{}", parent=parent)
        if how == "before":
            assert guess.cancel("too late")
        if how == "parent before":
            parent.deny("too late")
        async with guess:
            if how == "cancel":
                assert guess.cancel()
            if how == "deny":
                guess.barrier.deny("because")
            if how != "leave":
                await settle_tasks()
        assert guess.state is SpeculationState.DISCARDED
        with pytest.raises(SpeculationError):
            await guess.wait()
    assert ran == []


async def test_leaving_waits_until_the_discarded_tool_has_cleaned_up():
    cleaned = []

    @tool(effect=Effect.READ)
    async def tidy() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
            cleaned.append(True)

    async with ToolCallSpeculator(tidy, "{}"):
        await settle_tasks()
    assert cleaned == [True]


# --- a confirmed call is not lost ----------------------------------------------------


async def adopt_in_a_scope_that_is_cancelled(guess):
    with anyio.CancelScope() as scope:
        scope.cancel()
        await guess.adopt()


async def adopt_for_a_second(guess):
    with anyio.move_on_after(1) as patience:
        await guess.adopt()
    assert patience.cancelled_caught


async def confirm_and_cancel(guess):
    guess.confirm()
    assert not guess.cancel("changed my mind")


async def flush_and_cancel(guess):
    guess.barrier.flush()
    assert not guess.cancel("changed my mind")


async def confirm_only(guess):
    guess.confirm()


async def flush_only(guess):
    guess.barrier.flush()


async def flush_and_deny(guess):
    guess.barrier.flush()
    assert not guess.barrier.deny("changed my mind")


@pytest.mark.requirement("barrier:flushed-runs")
@pytest.mark.parametrize("already", ["unstarted", "before", "held"])
@pytest.mark.parametrize(
    "confirm",
    [
        adopt_in_a_scope_that_is_cancelled,
        adopt_for_a_second,
        confirm_and_cancel,
        confirm_only,
        flush_and_cancel,
        flush_and_deny,
        flush_only,
    ],
)
async def test_a_confirmed_call_performs_its_effect_once(confirm, already):
    effects = []
    async with ToolCallSpeculator(gated(effects, before=2, after=2), "{}") as guess:
        await anyio.sleep({"unstarted": 0, "before": 1, "held": 3}[already])
        await confirm(guess)
        assert not guess.cancel("it is too late")
    assert effects == ["hello"]
    assert guess.state is SpeculationState.ADOPTED
    assert await guess.wait() == "posted hello"


@pytest.mark.requirement("barrier:flushed-runs")
async def test_a_result_that_was_confirmed_by_its_barrier_stays_usable():
    async with ToolCallSpeculator(read(), "{}") as guess:
        await guess.wait()
        guess.barrier.flush()
    assert await guess.wait() == "found"


@pytest.mark.requirement("barrier:flushed-runs")
async def test_a_call_whose_barrier_was_flushed_before_it_is_launched_just_runs():
    effects = []
    guess = ToolCallSpeculator(gated(effects, before=1), "{}")
    guess.barrier.flush()
    async with guess:
        assert not guess.cancel()
    assert effects == ["hello"]


@pytest.mark.requirement("cancel:outside-wins")
@pytest.mark.parametrize("confirm", ["adopt", "flush"])
async def test_cancelling_the_host_cancels_an_adopted_call_too(confirm):
    effects = []
    with anyio.move_on_after(3) as patience:
        async with ToolCallSpeculator(gated(effects, before=5), "{}") as guess:
            if confirm == "flush":
                guess.barrier.flush()
                await anyio.sleep_forever()
            await guess.adopt()
    assert patience.cancelled_caught
    assert guess.state is SpeculationState.CANCELLED
    await anyio.sleep(3600)
    assert effects == []
    with pytest.raises(SpeculationError):
        await guess.wait()


@pytest.mark.requirement("cancel:outside-wins")
async def test_cancelling_the_host_while_it_leaves_cancels_an_adopted_call():
    effects = []
    started = anyio.current_time()
    with anyio.move_on_after(3) as patience:
        async with ToolCallSpeculator(gated(effects, before=5), "{}") as guess:
            guess.confirm()
    assert patience.cancelled_caught
    assert anyio.current_time() - started == 3
    assert effects == []
    assert guess.state is SpeculationState.CANCELLED


# --- denied by somebody else ---------------------------------------------------------


@pytest.mark.requirement("barrier:parent-first")
@pytest.mark.parametrize("who", ["itself", "parent", "grandparent"])
async def test_a_denial_by_somebody_else_cancels_the_tool_at_once(who):
    ended = []

    @tool(effect=Effect.READ)
    async def hang() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(anyio.current_time())

    grandparent = WriteBarrier(name="grandparent")
    parent = grandparent.child(name="parent")
    async with ToolCallSpeculator(hang, "{}", parent=parent) as guess:
        await anyio.sleep(1)
        barriers = {"parent": parent, "grandparent": grandparent}
        barriers.get(who, guess.barrier).deny("the turn was wrong")
        assert guess.state is SpeculationState.DISCARDED
        with pytest.raises(SpeculationError) as caught:
            await guess.wait()
        assert caught.value.reason == "the turn was wrong"
        await settle_tasks()
        assert ended == [anyio.current_time()]


@pytest.mark.requirement("barrier:terminal")
@pytest.mark.parametrize("ready", [False, True])
async def test_a_denial_from_a_thread_wins_over_the_adoption_that_follows(ready):
    effects = []
    called = read() if ready else gated(effects)
    async with ToolCallSpeculator(called, "{}") as guess:
        await settle_tasks()
        thread = threading.Thread(target=guess.barrier.deny, args=["from a thread"])
        thread.start()
        thread.join()  # the event loop has not heard of it
        with pytest.raises(SpeculationError) as caught:
            await guess.adopt()
        assert caught.value.reason == "from a thread"
    assert guess.state is SpeculationState.DISCARDED
    assert effects == []


@pytest.mark.requirement("barrier:fail-closed")
async def test_losing_the_parent_discards_even_a_finished_call():
    async with ToolCallSpeculator(read(), "{}", parent=WriteBarrier()) as guess:
        await settle_tasks()
        gc.collect()
        with pytest.raises(SpeculationError):
            await guess.adopt()


@pytest.mark.requirement("barrier:parent-first")
async def test_a_parent_that_is_denied_after_the_adoption_cancels_the_call():
    effects = []
    parent = WriteBarrier()
    async with ToolCallSpeculator(gated(effects), "{}", parent=parent) as guess:
        guess.confirm()
        await settle_tasks()
        parent.deny("the turn was wrong")
        with pytest.raises(SpeculationError):
            await guess.wait()
    assert guess.state is SpeculationState.CANCELLED
    assert effects == []


@pytest.mark.requirement("barrier:parent-first")
async def test_an_adopted_call_waits_for_its_parent():
    effects = []
    parent = WriteBarrier()
    async with ToolCallSpeculator(gated(effects), "{}", parent=parent) as guess:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(guess.adopt)
            await anyio.sleep(3600)
            assert effects == []
            tasks.start_soon(flush, parent)
        assert effects == ["hello"]


# --- conditions -----------------------------------------------------------------------


@pytest.mark.requirement("barrier:no-effect-before-flush")
@pytest.mark.parametrize("first", ["adopt", "condition"])
@pytest.mark.parametrize("barrier_of", ["context", "variable"])
async def test_an_effect_needs_its_conditions_as_well_as_the_adoption(
    first, barrier_of
):
    effects = []

    @tool(effect=Effect.GATED)
    async def post(ctx: ToolContext) -> None:
        barrier = ctx.barrier if barrier_of == "context" else current_barrier()
        await barrier.wait()
        effects.append("hello")

    with WriteBarrier(name="guardrail") as guardrail:
        async with ToolCallSpeculator(post, "{}", conditions=[guardrail]) as guess:
            async with anyio.create_task_group() as tasks:
                if first == "adopt":
                    tasks.start_soon(guess.adopt)
                else:
                    guardrail.flush()
                await anyio.sleep(3600)
                assert effects == []
                if first == "adopt":
                    guardrail.flush()
                else:
                    tasks.start_soon(guess.adopt)
            assert effects == ["hello"]


async def test_a_condition_that_is_denied_refuses_the_effect_of_an_adopted_call():
    effects = []
    guardrail = WriteBarrier(name="guardrail")
    post = gated(effects, before=1)
    async with ToolCallSpeculator(post, "{}", conditions=[guardrail]) as guess:
        guess.confirm()
        await anyio.sleep(2)
        guardrail.deny("not on a Sunday")
        with pytest.raises(WriteDenied) as caught:
            await guess.wait()
        assert caught.value.reason == "not on a Sunday"
    assert effects == []


async def test_a_condition_that_is_denied_leaves_a_read_usable():
    guardrail = WriteBarrier(name="guardrail")
    async with ToolCallSpeculator(read(1), "{}", conditions=[guardrail]) as guess:
        guardrail.deny("not on a Sunday")
        assert await guess.adopt() == "found"


async def test_the_seconds_that_a_condition_holds_an_adopted_call_count():
    guardrail = WriteBarrier(name="guardrail")
    post = gated([], before=1, after=2)
    async with ToolCallSpeculator(post, "{}", conditions=[guardrail]) as guess:
        await anyio.sleep(10)
        guess.confirm()
        await anyio.sleep(4)
        guardrail.flush()
        await guess.wait()
        assert guess.running_seconds(anyio.current_time()) == 4 + 2


# --- nested ---------------------------------------------------------------------------


@pytest.mark.requirement("barrier:parent-first")
async def test_discarding_the_outer_call_discards_the_one_that_stands_on_it():
    effects = []
    async with ToolCallSpeculator(read(1), "{}") as outer:
        parent = outer.barrier
        async with ToolCallSpeculator(gated(effects), "{}", parent=parent) as inner:
            await settle_tasks()
            outer.cancel("the first one was wrong")
            with pytest.raises(SpeculationError) as caught:
                await inner.adopt()
            assert caught.value.reason == "the first one was wrong"
    assert effects == []


async def test_nested_calls_are_adopted_from_the_outside_in():
    effects = []
    started = anyio.current_time()
    async with ToolCallSpeculator(gated(effects, before=2), '{"text": "1"}') as outer:
        async with ToolCallSpeculator(
            gated(effects, before=2), '{"text": "2"}', parent=outer.barrier
        ) as inner:
            assert await outer.adopt() == "posted 1"
            assert await inner.adopt() == "posted 2"
    assert effects == ["1", "2"]
    assert anyio.current_time() - started == 2


@pytest.mark.requirement("engine:contained")
async def test_an_error_of_the_host_is_not_held_up_by_a_call_that_can_never_go_on():
    effects = []
    outer = ToolCallSpeculator(read(), "{}")
    inner = ToolCallSpeculator(gated(effects), "{}", parent=outer.barrier)

    async def host():
        async with outer, inner:
            inner.confirm()  # and outer, which it waits for, never is
            raise ValueError("the host failed")

    with pytest.raises(ValueError, match="the host failed"):
        await host()
    assert effects == []
    assert inner.state is SpeculationState.CANCELLED


# --- in a task group of the caller's -----------------------------------------------


async def test_a_call_may_be_launched_in_a_task_group_of_the_callers():
    effects, notes = [], []
    guess = ToolCallSpeculator(gated(effects, before=1, after=1), "{}")
    started = anyio.current_time()

    def note(what):
        return lambda: notes.append((what, anyio.current_time() - started))

    async with anyio.create_task_group() as tasks:
        guess.launch(tasks, on_hold=note("held"), on_end=note("ended"))
        await anyio.sleep(4)
        assert await guess.adopt() == "posted hello"
    assert notes == [("held", 1), ("ended", 5)]


@pytest.mark.requirement("cancel:no-orphans")
@pytest.mark.parametrize("confirmed", [False, True])
async def test_cancelling_the_task_group_settles_the_calls_in_it(confirmed):
    effects, notes = [], []
    guess = ToolCallSpeculator(gated(effects, before=1), "{}")
    async with anyio.create_task_group() as tasks:
        guess.launch(tasks, on_end=lambda: notes.append("ended"))
        if confirmed:
            guess.confirm()
        await anyio.sleep(0.5)
        tasks.cancel_scope.cancel()
    assert notes == ["ended"]
    assert guess.ended
    assert guess.barrier.state is (FLUSHED if confirmed else DENIED)
    with pytest.raises(SpeculationError):
        await guess.wait()
    assert effects == []


# --- dropped --------------------------------------------------------------------------


@pytest.mark.requirement("barrier:fail-closed")
def test_a_call_that_is_dropped_before_it_was_launched_is_denied():
    guess = ToolCallSpeculator(read(), "{}")
    child = guess.barrier.child()
    del guess
    gc.collect()
    assert child.effective_state is DENIED


@pytest.mark.requirement("barrier:fail-closed")
def test_a_call_that_is_never_left_is_denied_when_its_event_loop_ends():
    effects, children = [], []

    async def drop():
        guess = await ToolCallSpeculator(gated(effects), "{}").__aenter__()
        await settle_tasks()
        children.append(guess.barrier.child())

    run_virtual(drop)
    gc.collect()
    assert children[0].effective_state is DENIED
    assert effects == []


# --- misuse ---------------------------------------------------------------------------


async def test_using_a_call_that_was_not_launched_is_an_error():
    guess = ToolCallSpeculator(read(), "{}")
    for use in (guess.wait, guess.adopt):
        with pytest.raises(UsageError):
            await use()
    with pytest.raises(UsageError):
        guess.confirm()
    assert guess.state is SpeculationState.PREDICTED
    assert guess.barrier.state is HELD
    assert guess.running_seconds(anyio.current_time()) == 0


async def test_a_call_is_launched_once():
    guess = ToolCallSpeculator(read(), "{}")
    with anyio.CancelScope():  # which could not be left if another one were left open
        async with guess:
            with pytest.raises(UsageError):
                await guess.__aenter__()
            async with anyio.create_task_group() as tasks:
                with pytest.raises(UsageError):
                    guess.launch(tasks)
            assert await guess.adopt() == "found"
        with pytest.raises(UsageError):
            await guess.__aenter__()


@pytest.mark.requirement("engine:default-deny")
def test_a_tool_that_declares_no_effect_is_refused():
    @tool
    def pay() -> None:
        pytest.fail("It ran early.")

    assert isinstance(pay, Tool)
    with pytest.raises(UsageError):
        ToolCallSpeculator(pay, "{}")


def test_something_that_is_no_tool_is_refused():
    with pytest.raises(UsageError):
        ToolCallSpeculator(print, "{}")


# --- early results --------------------------------------------------------------------


async def test_the_last_early_result_is_kept_and_passed_on():
    received = []

    @tool(effect=Effect.GATED)
    async def pause(ctx: ToolContext) -> dict:
        ctx.early_result({"paused": 1})
        await anyio.sleep(1)
        ctx.early_result({"paused": True})
        await ctx.barrier.wait()
        return {"paused": True}

    call = ToolCall("", "pause")
    outer = ToolContext(
        deps=None, call=call, barrier=WriteBarrier(), on_early_result=received.append
    )
    async with ToolCallSpeculator(pause, "{}", context=outer) as guess:
        assert guess.early_result is None
        await anyio.sleep(2)
        assert guess.early_result == ToolResult('{"paused":true}')
        assert guess.barrier.state is HELD
    assert received == [ToolResult('{"paused":1}'), ToolResult('{"paused":true}')]


@pytest.mark.requirement("engine:invisible")
async def test_what_a_discarded_call_still_states_is_ignored():
    received = []

    @tool(effect=Effect.READ)
    async def stubborn(ctx: ToolContext) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ctx.early_result("too late")

    outer = ToolContext(
        deps=None,
        call=ToolCall("", "stubborn"),
        barrier=WriteBarrier(),
        on_early_result=received.append,
    )
    async with ToolCallSpeculator(stubborn, "{}", context=outer) as guess:
        await settle_tasks()
    assert guess.early_result is None
    assert received == []


# --- seconds --------------------------------------------------------------------------


async def test_the_seconds_of_a_read_count_until_it_ends():
    async with ToolCallSpeculator(read(4), "{}") as guess:
        await anyio.sleep(1)
        assert guess.running_seconds(anyio.current_time()) == 1
        await anyio.sleep(9)
        assert guess.running_seconds(anyio.current_time()) == 4
        assert guess.held_at < 0


async def test_the_seconds_that_a_call_is_held_do_not_count():
    async with ToolCallSpeculator(gated([], before=1, after=2), "{}") as guess:
        started = anyio.current_time()
        await anyio.sleep(0.5)
        assert guess.running_seconds(anyio.current_time()) == 0.5
        await anyio.sleep(9.5)
        assert guess.held_at == started + 1
        assert guess.running_seconds(anyio.current_time()) == 1
        await guess.adopt()
        assert guess.confirmed_at == started + 10
        assert guess.running_seconds(anyio.current_time()) == 3


@tool(effect=Effect.GATED)
async def impatient() -> str:
    await anyio.sleep(1)
    with anyio.move_on_after(1):
        await current_barrier().wait()
        return "patient"
    return "gave up"


async def test_a_call_that_stops_waiting_for_its_verdict_is_not_adopted():
    async with ToolCallSpeculator(impatient, "{}") as guess:
        await anyio.sleep(10)
        assert guess.barrier.reason == "its tool stopped waiting for the verdict"
        assert guess.running_seconds(anyio.current_time()) == 1
        with pytest.raises(SpeculationError):
            await guess.adopt()


async def test_a_call_that_is_confirmed_while_it_waits_is_adopted():
    async with ToolCallSpeculator(impatient, "{}") as guess:
        await anyio.sleep(1.5)
        assert await guess.adopt() == "patient"


@pytest.mark.parametrize("early", [0, 1, 2, 3])
async def test_a_flush_while_a_tool_stops_waiting_does_not_adopt_what_it_tells(early):
    async with ToolCallSpeculator(impatient, "{}") as guess:
        await anyio.sleep_until(guess.started_at + 1)
        await anyio.wait_all_tasks_blocked()
        for _ in range(early):  # who is first at one moment depends on the event loop
            await anyio.lowlevel.checkpoint()
        await anyio.sleep_until(guess.started_at + 2)
        try:
            told = await guess.adopt()
        except SpeculationError:
            told = "made again"
    assert told in ("patient", "made again")


async def test_a_confirmed_call_that_stops_waiting_for_a_condition_tells_so_itself():
    approval = WriteBarrier(name="approval")
    async with ToolCallSpeculator(impatient, "{}", conditions=[approval]) as guess:
        guess.confirm()
        assert await guess.wait() == "gave up"


async def test_somebody_else_may_stop_waiting_for_the_verdict_of_a_call():
    @tool(effect=Effect.GATED)
    async def post() -> str:
        await current_barrier().wait()
        return "posted"

    async with ToolCallSpeculator(post, "{}") as guess:
        with anyio.move_on_after(1):
            await guess.barrier.wait()
        assert await guess.adopt() == "posted"


@pytest.mark.real_time
async def test_a_thread_that_stops_waiting_for_its_verdict_gives_its_call_up():
    @tool(effect=Effect.GATED)
    def post() -> str:
        with contextlib.suppress(TimeoutError):
            current_barrier().wait_blocking(0.01)
            return "posted"
        return "gave up"

    async with ToolCallSpeculator(post, "{}") as guess:
        await guess.wait_until_ended()
        assert guess.barrier.reason == "its tool stopped waiting for the verdict"
