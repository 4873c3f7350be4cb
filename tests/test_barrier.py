"""The write barrier: what happens behind it, and what never does."""

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import weakref

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest

from headstart import BarrierState, WriteBarrier, current_barrier
from headstart._barrier import running_in
from headstart._errors import UsageError, WriteDenied
from headstart.testing import VirtualLoop, run_virtual

HELD, FLUSHED, DENIED = BarrierState


async def perform(barrier, effects, name="effect"):
    await barrier.wait()
    effects.append(name)


async def perform_or_note(barrier, outcomes, name):
    """What an effect seam does, and whether the effect was let through."""
    try:
        await barrier.wait()
    except WriteDenied:
        outcomes[name] = "denied"
    else:
        outcomes[name] = "performed"


async def settle_tasks():
    """Let every task that can run come to where it waits."""
    await anyio.wait_all_tasks_blocked()


# --- held, flushed, denied ---------------------------------------------------------


@pytest.mark.requirement("barrier:no-effect-before-flush")
async def test_an_effect_waits_for_the_flush():
    effects = []
    with WriteBarrier() as barrier:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(perform, barrier, effects)
            await anyio.sleep(3600)
            assert effects == []
            assert barrier.state is barrier.effective_state is HELD
            assert barrier.flush()
        assert effects == ["effect"]
    assert barrier.state is barrier.effective_state is FLUSHED


@pytest.mark.requirement("barrier:no-effect-before-flush")
async def test_an_effect_waits_for_every_ancestor_in_any_order():
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1]):
        effects = []
        turn = WriteBarrier(name="turn")
        call = turn.child(name="call")
        write = call.child(name="write")
        chain = [turn, call, write]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(perform, write, effects)
            await settle_tasks()
            for position in order:
                assert effects == []
                chain[position].flush()
                await settle_tasks()
        assert effects == ["effect"]


@pytest.mark.requirement("barrier:no-effect-before-flush")
async def test_several_parents_are_conditions_that_must_all_be_met():
    effects = []
    turn, guardrail, person = (WriteBarrier(name=name) for name in "tgp")
    barrier = WriteBarrier(turn, guardrail, person)
    barrier.flush()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(perform, barrier, effects)
        for condition in (person, turn):
            condition.flush()
            await settle_tasks()
            assert effects == []
        guardrail.flush()
    assert effects == ["effect"]


async def test_one_parent_given_twice_is_one_condition():
    parent = WriteBarrier()
    barrier = WriteBarrier(parent, parent)
    barrier.require(parent)
    barrier.flush()
    parent.flush()
    await barrier.wait()


async def test_a_condition_that_is_added_later_counts_while_the_barrier_is_held():
    person = WriteBarrier(name="person")
    barrier = WriteBarrier()
    barrier.require(person)
    barrier.flush()
    assert barrier.effective_state is HELD
    person.flush()
    assert barrier.effective_state is FLUSHED


@pytest.mark.parametrize("settle", ["hold", "deny", "deny_first"])
async def test_a_condition_that_is_added_to_an_open_barrier_changes_nothing(settle):
    condition = WriteBarrier()
    barrier = WriteBarrier()
    child = barrier.child()
    barrier.flush()
    if settle == "deny_first":
        condition.deny("no")
    barrier.require(condition)
    if settle == "deny":
        condition.deny("no")
    assert barrier.effective_state is FLUSHED
    assert barrier.reason is None
    child.flush()
    await child.wait()


async def test_denying_a_condition_that_is_added_later_wakes_those_who_wait():
    barrier = WriteBarrier(name="write")
    child = barrier.child()
    outcomes = {}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(perform_or_note, child, outcomes, "child")
        await settle_tasks()
        refused = WriteBarrier(name="refused")
        refused.deny("no")
        barrier.require(refused)
    assert outcomes == {"child": "denied"}


async def test_an_open_barrier_is_still_a_checkpoint():
    barrier = WriteBarrier()
    barrier.flush()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await barrier.wait()
    assert scope.cancelled_caught


async def test_a_wait_that_is_cancelled_just_before_the_flush_has_no_effect():
    effects = []
    barrier = WriteBarrier()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(perform, barrier, effects)
        await settle_tasks()
        tasks.cancel_scope.cancel()
        barrier.flush()
    assert effects == []


# --- terminal ----------------------------------------------------------------------


@pytest.mark.requirement("barrier:terminal")
async def test_the_first_of_flush_and_deny_wins():
    flushed, denied = WriteBarrier(), WriteBarrier()
    assert flushed.flush()
    assert not flushed.deny("late")
    assert not flushed.flush()
    assert (flushed.state, flushed.reason) == (FLUSHED, None)
    assert denied.deny("no")
    assert not denied.flush()
    assert not denied.deny("again")
    assert (denied.state, denied.reason) == (DENIED, "no")
    await flushed.wait()
    with pytest.raises(WriteDenied):
        await denied.wait()


@pytest.mark.requirement("barrier:terminal")
def test_of_many_threads_exactly_one_settles_the_barrier():
    for _ in range(50):
        barrier = WriteBarrier()
        start = threading.Barrier(8)
        won = []

        def settle(number, barrier=barrier, start=start, won=won):
            start.wait()
            if barrier.flush() if number % 2 else barrier.deny(f"by {number}"):
                won.append(number)

        threads = [threading.Thread(target=settle, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = won
        assert barrier.state is (FLUSHED if winner % 2 else DENIED)
        assert barrier.reason == (None if winner % 2 else f"by {winner}")


# --- parent first ------------------------------------------------------------------


@pytest.mark.requirement("barrier:parent-first")
async def test_a_denied_ancestor_denies_a_flushed_descendant():
    turn = WriteBarrier(name="turn")
    call = turn.child(name="call")
    write = call.child(name="write")
    call.flush()
    write.flush()
    turn.deny("the model asked for something else")
    assert write.state is FLUSHED
    assert write.effective_state is DENIED
    assert write.reason == "the model asked for something else"
    with pytest.raises(WriteDenied):
        await write.wait()


@pytest.mark.requirement("barrier:parent-first")
async def test_a_flushed_ancestor_leaves_a_held_child_held():
    parent = WriteBarrier()
    child = parent.child()
    parent.flush()
    assert child.effective_state is HELD
    with anyio.move_on_after(1) as scope:
        await child.wait()
    assert scope.cancelled_caught


@pytest.mark.requirement("barrier:parent-first")
@pytest.mark.parametrize("denied", [0, 1, 2])
async def test_any_denied_parent_denies_at_once_while_others_are_undecided(denied):
    parents = [WriteBarrier(name=f"parent {number}") for number in range(3)]
    barrier = WriteBarrier(*parents)
    outcomes = {}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(perform_or_note, barrier, outcomes, "it")
        await settle_tasks()
        parents[denied].deny("no")
    assert outcomes == {"it": "denied"}


async def test_a_child_of_a_denied_barrier_is_denied_from_the_start():
    parent = WriteBarrier()
    parent.deny("no")
    child = parent.child()
    assert child.effective_state is DENIED
    assert child.state is HELD
    with pytest.raises(WriteDenied):
        await child.child().wait()


async def test_denying_a_child_leaves_parent_and_siblings_alone():
    parent = WriteBarrier()
    first, second = parent.child(), parent.child()
    first.deny("no")
    assert parent.effective_state is second.effective_state is HELD
    parent.flush()
    second.flush()
    await second.wait()


async def test_the_error_names_the_ancestor_and_has_its_denial_as_cause():
    turn = WriteBarrier(name="turn 3")
    call = turn.child(name="call")
    write = call.child(name="write")
    turn.deny("the model changed its mind")
    with pytest.raises(WriteDenied) as caught:
        await write.wait()
    error = caught.value
    assert (error.barrier, error.denied_by) == ("write", "turn 3")
    assert error.reason == "the model changed its mind"
    assert "turn 3" in str(error)
    assert "write" in str(error)
    cause = error.__cause__
    assert isinstance(cause, WriteDenied)
    assert (cause.barrier, cause.denied_by) == ("turn 3", "turn 3")


async def test_the_error_of_its_own_denial_has_no_cause():
    barrier = WriteBarrier(name="write")
    barrier.deny("no")
    with pytest.raises(WriteDenied) as caught:
        await barrier.wait()
    assert (caught.value.barrier, caught.value.denied_by) == ("write", "write")
    assert caught.value.__cause__ is None


async def test_every_wait_raises_an_error_of_its_own():
    barrier = WriteBarrier()
    barrier.deny("no")
    errors = []
    for _ in range(2):
        with pytest.raises(WriteDenied) as caught:
            await barrier.wait()
        errors.append(caught.value)
    assert errors[0] is not errors[1]


# --- fail closed -------------------------------------------------------------------


@pytest.mark.requirement("barrier:fail-closed")
async def test_leaving_the_scope_denies_what_is_held():
    with WriteBarrier() as barrier:
        pass
    assert barrier.state is DENIED
    with pytest.raises(WriteDenied):
        await barrier.wait()


@pytest.mark.requirement("barrier:fail-closed")
def test_an_exception_in_the_scope_denies_and_goes_on():
    with pytest.raises(ZeroDivisionError):
        with WriteBarrier() as barrier:
            1 / 0  # noqa: B018
    assert barrier.state is DENIED
    assert "ZeroDivisionError" in barrier.reason


@pytest.mark.requirement("barrier:fail-closed")
async def test_cancelling_the_scope_denies():
    with anyio.move_on_after(1):
        with WriteBarrier() as barrier:
            await anyio.sleep_forever()
    assert barrier.state is DENIED


@pytest.mark.requirement("barrier:fail-closed")
async def test_a_scope_that_was_flushed_stays_flushed_on_an_exception():
    with pytest.raises(ZeroDivisionError):
        with WriteBarrier() as barrier:
            barrier.flush()
            1 / 0  # noqa: B018
    await barrier.wait()


@pytest.mark.requirement("barrier:fail-closed")
async def test_dropping_the_last_reference_denies_those_who_wait():
    outcomes = {}
    barrier = WriteBarrier()

    async def wait(waiting):
        try:
            await waiting
        except WriteDenied as error:
            outcomes["it"] = error.reason

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, barrier.wait())
        await settle_tasks()
        assert outcomes == {}
        del barrier
        gc.collect()
    assert "dropped" in outcomes["it"]


@pytest.mark.requirement("barrier:fail-closed")
async def test_a_barrier_that_is_lost_in_a_cycle_denies_its_children():
    parent = WriteBarrier(name="lost")
    child = parent.child()
    ring = [parent]
    ring.append(ring)
    del parent, ring
    gc.collect()
    assert child.effective_state is DENIED


@pytest.mark.requirement("barrier:fail-closed")
def test_garbage_that_is_collected_while_the_lock_is_held_is_denied_after_it():
    for _ in range(50):
        parent = WriteBarrier()
        children = [parent.child() for _ in range(10)]
        grandchildren = [child.child() for child in children]
        ring = [children]
        ring.append(ring)
        gc.disable()
        del children, ring
        thresholds = gc.get_threshold()
        gc.set_threshold(1, 1, 1)
        gc.enable()
        try:
            parent.flush()  # its walk under the lock makes objects, so it collects
        finally:
            gc.set_threshold(*thresholds)
        gc.collect()
        states = {grandchild.effective_state for grandchild in grandchildren}
        assert states == {DENIED}


@pytest.mark.requirement("barrier:fail-closed")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_finds_every_barrier_denied():
    program = """
import os, sys, threading, warnings
warnings.simplefilter("ignore")
import anyio
from headstart import BarrierState, WriteBarrier
from headstart._errors import WriteDenied

held, flushed = WriteBarrier(name="held"), WriteBarrier(name="flushed")
child = held.child()
flushed.flush()
if os.fork():
    _, status = os.wait()
    assert held.effective_state is BarrierState.HELD
    assert held.flush()
    sys.exit(os.waitstatus_to_exitcode(status))
for barrier in (held, flushed, child):
    assert barrier.state is barrier.effective_state is BarrierState.DENIED
    assert "fork" in barrier.reason
    assert not barrier.flush()
    assert not barrier.deny("again")
    for wait in (barrier.wait_blocking, lambda: anyio.run(barrier.wait)):
        try:
            wait()
        except WriteDenied as error:
            assert "fork" in error.reason
        else:
            os._exit(1)
    below = WriteBarrier(barrier)
    assert below.effective_state is BarrierState.DENIED
fresh = WriteBarrier()
fresh.flush()
anyio.run(fresh.wait)
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=15)


@pytest.mark.requirement("barrier:fail-closed")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_beside_busy_threads_leaves_a_usable_lock():
    program = """
import os, sys, threading, warnings
warnings.simplefilter("ignore")
from headstart import BarrierState, WriteBarrier

stop = threading.Event()

def churn():
    while not stop.is_set():
        with WriteBarrier() as barrier:
            [barrier.child() for _ in range(50)]

threads = [threading.Thread(target=churn) for _ in range(2)]
for thread in threads:
    thread.start()
codes = []
for _ in range(20):
    child = os.fork()
    if not child:
        fresh = WriteBarrier()
        below = fresh.child()
        below.flush()
        os._exit(0 if fresh.flush() and below.effective_state.value == "flushed" else 1)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
stop.set()
for thread in threads:
    thread.join()
sys.exit(any(codes))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=15)


@pytest.mark.requirement("barrier:fail-closed")
async def test_scopes_nest_and_deny_from_the_inside_out():
    with WriteBarrier(name="outer") as outer:
        with outer.child(name="inner") as inner:
            pass
        assert inner.state is DENIED
        assert outer.state is HELD
        outer.flush()
    assert inner.effective_state is DENIED
    assert outer.effective_state is FLUSHED


# --- waiting across tasks, threads and event loops ---------------------------------


async def test_a_thousand_tasks_wait_and_all_go_on():
    effects = []
    barrier = WriteBarrier()
    async with anyio.create_task_group() as tasks:
        for number in range(1000):
            tasks.start_soon(perform, barrier, effects, number)
        await settle_tasks()
        barrier.flush()
    assert sorted(effects) == list(range(1000))


async def test_a_thousand_tasks_wait_and_all_are_denied():
    outcomes = {}
    barrier = WriteBarrier()
    async with anyio.create_task_group() as tasks:
        for number in range(1000):
            tasks.start_soon(perform_or_note, barrier, outcomes, number)
        await settle_tasks()
        barrier.deny("no")
    assert outcomes == dict.fromkeys(range(1000), "denied")


async def test_cancelling_one_wait_leaves_the_others_and_the_barrier_alone():
    effects = []
    barrier = WriteBarrier()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(perform, barrier, effects)
        with anyio.move_on_after(1) as scope:
            await barrier.wait()
        assert scope.cancelled_caught
        assert barrier.state is HELD
        barrier.flush()
    assert effects == ["effect"]


async def test_a_cancelled_wait_leaves_nothing_behind():
    barrier = WriteBarrier()
    with anyio.move_on_after(1):
        await barrier.wait()
    assert barrier._core.waiters == set()


async def test_settled_descendants_are_not_kept_by_a_held_ancestor():
    parent = WriteBarrier()
    for _ in range(10):
        parent.child().deny("no")
        parent.child()
        with parent.child():
            pass
    gc.collect()
    assert parent._core.children == set()


async def test_open_ancestors_are_not_kept_in_memory():
    first = barrier = WriteBarrier()
    gone = weakref.ref(first)
    for _ in range(10):
        child = barrier.child()
        barrier.flush()
        barrier = child
    del first, child
    gc.collect()
    assert gone() is None
    (parent,) = barrier._core.parents
    assert parent.parents == []


@pytest.mark.real_time
async def test_a_flush_in_a_thread_wakes_a_task():
    barrier = WriteBarrier()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(barrier.wait)
        await settle_tasks()
        assert await anyio.to_thread.run_sync(barrier.flush)


@pytest.mark.real_time
async def test_threads_and_tasks_wait_at_one_barrier():
    outcomes = []

    def wait(number):
        barrier.wait_blocking()
        outcomes.append(number)

    with WriteBarrier() as barrier:
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(anyio.to_thread.run_sync, wait, number)
                tasks.start_soon(perform, barrier, outcomes, number)
            await settle_tasks()
            barrier.flush()
    assert sorted(outcomes) == sorted([*range(5)] * 2)


def test_two_event_loops_in_two_threads_wait_at_one_barrier():
    for backend, options in (
        ("asyncio", {}),
        ("asyncio", {"loop_factory": VirtualLoop}),
        ("trio", {}),
    ):
        with WriteBarrier() as barrier:
            waiting = threading.Barrier(3)
            outcomes = {}

            async def wait(name, barrier=barrier, waiting=waiting, outcomes=outcomes):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(perform_or_note, barrier, outcomes, name)
                    await settle_tasks()
                    waiting.wait()

            threads = [
                threading.Thread(
                    target=anyio.run,
                    args=(wait, name),
                    kwargs={"backend": backend, "backend_options": options},
                )
                for name in ("one", "two")
            ]
            for thread in threads:
                thread.start()
            waiting.wait()
            barrier.flush()
            for thread in threads:
                thread.join()
        assert outcomes == {"one": "performed", "two": "performed"}


def test_a_task_of_one_event_loop_denies_a_task_of_another():
    with WriteBarrier() as barrier:
        outcomes = {}
        waiting = threading.Event()

        async def wait():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(perform_or_note, barrier, outcomes, "it")
                await settle_tasks()
                waiting.set()

        async def deny():
            barrier.deny("no")

        thread = threading.Thread(target=anyio.run, args=(wait,))
        thread.start()
        waiting.wait()
        anyio.run(deny, backend="trio")
        thread.join()
    assert outcomes == {"it": "denied"}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_wait_whose_event_loop_is_gone_harms_nobody(backend):
    barrier = WriteBarrier()

    async def abandon():
        async def wait():
            try:
                await barrier.wait()
            finally:
                waiting.append(barrier._core.waiters.copy())

        waiting = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await settle_tasks()
            (waiter,) = barrier._core.waiters
            tasks.cancel_scope.cancel()
        return waiter

    waiter = anyio.run(abandon, backend=backend)
    barrier._core.waiters.add(waiter)  # as if the loop had died before the task left
    assert barrier.flush()


def test_wait_blocking_in_a_thread_returns_or_raises():
    for settle, expected in (
        (WriteBarrier.flush, []),
        (lambda b: b.deny("no"), ["no"]),
    ):
        barrier = WriteBarrier()
        outcomes = []

        def wait(barrier=barrier, outcomes=outcomes):
            try:
                barrier.wait_blocking()
            except WriteDenied as error:
                outcomes.append(error.reason)

        thread = threading.Thread(target=wait)
        thread.start()
        settle(barrier)
        thread.join()
        assert outcomes == expected
        wait()
        assert outcomes == expected * 2


def test_wait_blocking_gives_up_after_its_timeout_and_leaves_the_barrier_held():
    barrier = WriteBarrier()
    for timeout in (0, 0.001):
        with pytest.raises(TimeoutError):
            barrier.wait_blocking(timeout)
    assert barrier.state is HELD
    assert barrier._core.waiters == set()


async def test_wait_blocking_in_an_event_loop_is_a_usage_error():
    barrier = WriteBarrier()
    with pytest.raises(UsageError):
        barrier.wait_blocking()
    barrier.flush()
    barrier.wait_blocking()


def test_a_thread_that_waits_while_its_parent_is_dropped_is_denied():
    parent = WriteBarrier(name="dropped")
    child = parent.child()
    reasons = []

    def wait():
        with pytest.raises(WriteDenied) as caught:
            child.wait_blocking()
        reasons.append((caught.value.denied_by, caught.value.reason))

    thread = threading.Thread(target=wait)
    thread.start()
    del parent
    gc.collect()
    thread.join()
    assert reasons == [("dropped", "its owner dropped it")]


def test_waits_flushes_and_denials_from_many_threads_agree():
    for _ in range(20):
        root = WriteBarrier()
        barriers = [root, *(root.child() for _ in range(5))]
        barriers += [WriteBarrier(root, one) for one in barriers[1:]]
        start = threading.Barrier(2 * len(barriers))
        outcomes = []

        def wait(barrier, start=start, outcomes=outcomes):
            start.wait()
            try:
                barrier.wait_blocking()
            except WriteDenied:
                outcomes.append((barrier, DENIED))
            else:
                outcomes.append((barrier, FLUSHED))

        def settle(barrier, number, start=start):
            start.wait()
            barrier.deny("no") if number in (3, 7) else barrier.flush()

        threads = [threading.Thread(target=wait, args=(one,)) for one in barriers]
        threads += [
            threading.Thread(target=settle, args=(one, number))
            for number, one in enumerate(barriers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = [
            DENIED if number in (3, 7, 5 + 3) else FLUSHED
            for number in range(len(barriers))
        ]
        assert [barrier.effective_state for barrier in barriers] == expected
        assert dict(outcomes) == dict(zip(barriers, expected, strict=True))


# --- size --------------------------------------------------------------------------


@pytest.mark.parametrize("settle", ["flush", "deny", "drop"])
async def test_a_tree_may_be_a_thousand_deep(settle):
    root = WriteBarrier(name="root")
    chain = [root.child()]
    while len(chain) < 1000:
        chain.append(chain[-1].child())
    outcomes = {}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(perform_or_note, chain[-1], outcomes, "leaf")
        await settle_tasks()
        for barrier in chain:
            barrier.flush()
        await settle_tasks()
        assert outcomes == {}
        if settle == "flush":
            root.flush()
        elif settle == "deny":
            root.deny("no")
        else:
            del root
            gc.collect()
    assert outcomes == {"leaf": "performed" if settle == "flush" else "denied"}
    expected = FLUSHED if settle == "flush" else DENIED
    assert {barrier.effective_state for barrier in chain} == {expected}


@pytest.mark.parametrize("settle", ["flush", "deny"])
def test_a_tree_may_be_ten_thousand_wide(settle):
    root = WriteBarrier()
    children = [root.child() for _ in range(10_000)]
    for child in children:
        child.flush()
    root.flush() if settle == "flush" else root.deny("no")
    expected = FLUSHED if settle == "flush" else DENIED
    assert {child.effective_state for child in children} == {expected}


def test_a_barrier_may_have_ten_thousand_conditions():
    parents = [WriteBarrier() for _ in range(10_000)]
    barrier = WriteBarrier()
    for parent in parents:
        barrier.require(parent)
    barrier.flush()
    for parent in parents[1:]:
        parent.flush()
    assert barrier.effective_state is HELD
    parents[0].flush()
    assert barrier.effective_state is FLUSHED


def test_a_deep_tree_is_freed_without_recursion():
    chain = [WriteBarrier()]
    for _ in range(20_000):
        chain.append(chain[-1].child())
    last = chain[-1]
    del chain
    gc.collect()
    assert last.effective_state is DENIED


# --- misuse ------------------------------------------------------------------------


def test_a_cycle_is_a_usage_error_and_changes_nothing():
    first = WriteBarrier(name="first")
    second = first.child(name="second")
    third = second.child(name="third")
    for parent in (third, first):
        with pytest.raises(UsageError, match="first"):
            first.require(WriteBarrier(), parent)
    assert first._core.pending == 1


def test_a_cycle_through_barriers_that_are_settled_cannot_be_seen_and_opens():
    first = WriteBarrier()
    second = first.child()
    first.flush()
    second.flush()
    first.require(second)
    assert first.effective_state is second.effective_state is FLUSHED


@pytest.mark.parametrize("parent", [None, "turn", 7, object()])
def test_a_parent_that_is_no_barrier_is_a_usage_error(parent):
    with pytest.raises(UsageError):
        WriteBarrier(parent)
    with pytest.raises(UsageError):
        WriteBarrier().require(WriteBarrier(), parent)


def test_a_barrier_is_set_up_once():
    barrier = WriteBarrier()
    barrier.flush()
    with pytest.raises(UsageError):
        barrier.__init__()  # noqa: PLC2801
    assert barrier.state is FLUSHED


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_barrier_is_neither_copied_nor_pickled(duplicate):
    with pytest.raises(TypeError):
        duplicate(WriteBarrier())


async def test_a_denial_pickles():
    barrier = WriteBarrier(name="write")
    barrier.deny("no")
    with pytest.raises(WriteDenied) as caught:
        await barrier.wait()
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.barrier, error.denied_by, error.reason) == ("write", "write", "no")
    assert str(error) == str(caught.value)


def test_names_are_given_or_numbered():
    assert WriteBarrier(name="refund").name == "refund"
    assert WriteBarrier().name != WriteBarrier().name
    assert repr(WriteBarrier(name="refund")) == "<WriteBarrier 'refund' held>"


# --- the current barrier -----------------------------------------------------------


def test_outside_a_tool_call_there_is_no_current_barrier():
    assert current_barrier() is None


async def test_the_current_barrier_reaches_tasks_and_worker_threads():
    barrier = WriteBarrier()
    seen = []

    async def look():
        seen.append(current_barrier())

    with running_in(barrier):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look)
        seen.append(await anyio.to_thread.run_sync(current_barrier))
        with running_in(inner := barrier.child()):
            assert current_barrier() is inner
        await look()
    assert seen == [barrier] * 3
    assert current_barrier() is None


# --- callbacks ---------------------------------------------------------------------


async def test_on_settled_tells_of_either_verdict():
    for settle in (WriteBarrier.flush, lambda barrier: barrier.deny("no")):
        barrier = WriteBarrier()
        told = []
        barrier.on_settled(lambda told=told: told.append("before"))
        assert told == []
        settle(barrier)
        barrier.on_settled(lambda told=told: told.append("after"))
        assert told == ["before", "after"]


@pytest.mark.real_time
async def test_on_settled_calls_back_in_its_own_event_loop():
    barrier = WriteBarrier()
    threads = []
    called = anyio.Event()

    def note():
        threads.append(threading.get_ident())
        called.set()

    barrier.on_settled(note)
    await anyio.to_thread.run_sync(barrier.flush)
    await called.wait()
    assert threads == [threading.get_ident()]


async def test_on_first_wait_tells_of_the_first_wait_only():
    barrier = WriteBarrier()
    told = []
    barrier.on_first_wait(lambda: told.append(barrier.state))
    for _ in range(2):
        with anyio.move_on_after(1):
            await barrier.wait()
    assert told == [HELD]


async def test_on_first_wait_is_silent_when_nobody_has_to_wait():
    barrier = WriteBarrier()
    told = []
    barrier.on_first_wait(lambda: told.append("waits"))
    barrier.flush()
    await barrier.wait()
    assert told == []


def test_a_barrier_works_in_virtual_time_with_a_thread_that_waits():
    async def main():
        barrier = WriteBarrier()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, barrier.wait_blocking)
            await anyio.sleep(10)
            barrier.flush()
        return anyio.current_time()

    assert run_virtual(main) == 10
