"""Whatever goes wrong with a barrier's owner denies it."""

import gc
import os
import subprocess
import sys

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest

from headstart import WriteBarrier, _barrier
from headstart._errors import WriteDenied

from .scene import DENIED, FLUSHED, HELD, settle_tasks

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
    barrier = WriteBarrier()
    with pytest.raises(ZeroDivisionError), barrier:  # noqa: PT012 - it is about both
        barrier.flush()
        raise ZeroDivisionError
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


KEPT = WriteBarrier()


def give_up_waiting(barrier):
    with pytest.raises(TimeoutError):
        barrier.wait_blocking(0)


@pytest.mark.requirement("barrier:fail-closed")
@pytest.mark.parametrize(
    "operation",
    [
        WriteBarrier.flush,
        lambda barrier: barrier.deny("no"),
        lambda barrier: barrier.require(KEPT),
        give_up_waiting,
    ],
    ids=["flush", "deny", "require", "wait"],
)
def test_a_barrier_that_is_dropped_while_the_lock_is_held_is_denied_after_it(operation):
    parent, other = WriteBarrier(), WriteBarrier()
    child = parent.child()
    with _barrier._lock:  # as when the garbage collector runs inside a walk
        del parent
        gc.collect()
    assert child.effective_state is HELD
    operation(other)
    assert child.effective_state is DENIED


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
