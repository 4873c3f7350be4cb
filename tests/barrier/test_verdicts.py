"""What is held, flushed and denied, and what a verdict means further down."""

import threading

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest

from headstart import WriteBarrier
from headstart._errors import WriteDenied

from .scene import DENIED, FLUSHED, HELD, perform, perform_or_note, settle_tasks

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
