"""What a barrier refuses, the current barrier, and who is called back."""

import copy
import pickle
import threading

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest

from headstart import WriteBarrier, current_barrier
from headstart._barrier import running_in
from headstart._errors import UsageError, WriteDenied
from headstart.testing import run_virtual

from .scene import FLUSHED, HELD

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
        barrier.__init__()
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


def test_on_settled_in_a_thread_tells_of_either_verdict():
    for verdict in (WriteBarrier.flush, lambda barrier: barrier.deny("no")):
        told = []
        barrier = WriteBarrier()
        barrier.on_settled(lambda told=told: told.append("before"))
        assert told == []
        verdict(barrier)
        barrier.on_settled(lambda told=told: told.append("after"))
        assert told == ["before", "after"]
