"""Waiting across tasks, threads and event loops, at trees of any size."""

import gc
import threading
import weakref

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest

from headstart import WriteBarrier
from headstart._errors import UsageError, WriteDenied
from headstart.testing import VirtualLoop

from .scene import DENIED, FLUSHED, HELD, perform, perform_or_note, settle_tasks

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
    assert barrier._core.waiters == {}


async def test_settled_descendants_are_not_kept_by_a_held_ancestor():
    parent = WriteBarrier()
    for _ in range(10):
        parent.child().deny("no")
        parent.child()
        with parent.child():
            pass
    gc.collect()
    assert parent._core.children == {}


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
    assert not parent.parents


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
    barrier._core.waiters[waiter] = None  # as if the loop had died before the task left
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
    assert barrier._core.waiters == {}


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
