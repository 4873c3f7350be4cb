"""Virtual time on both event loops, and the asyncio loop that headstart ships for it."""

import asyncio
import threading

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest

from headstart import WriteBarrier
from headstart._errors import UsageError
from headstart.testing import VirtualLoop, _clock, run_virtual


async def test_an_hour_of_sleep_takes_exactly_an_hour():
    started = anyio.current_time()
    await anyio.sleep(3600)
    assert anyio.current_time() - started == 3600


async def test_sleepers_wake_in_the_order_of_their_delays():
    woken = []

    async def sleeper(delay):
        await anyio.sleep(delay)
        woken.append((delay, anyio.current_time() - started))

    started = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for delay in (3, 0.25, 2, 0.5, 100_000):
            tasks.start_soon(sleeper, delay)
    assert woken == [(delay, delay) for delay in (0.25, 0.5, 2, 3, 100_000)]


async def test_a_timeout_fires_at_its_deadline():
    started = anyio.current_time()
    with anyio.move_on_after(1.5) as scope:
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert anyio.current_time() - started == 1.5


def test_the_clock_starts_at_zero_and_keeps_every_bit():
    async def sleep_three_tenths():
        started = anyio.current_time()
        await anyio.sleep(0.1)
        await anyio.sleep(0.2)
        return started, anyio.current_time()

    assert run_virtual(sleep_three_tenths) == (0.0, 0.1 + 0.2)


@pytest.mark.parametrize("far", [1e6, 1e9, 1e15])
def test_timers_far_from_zero_still_fire_one_by_one(far):
    async def sleep_far():
        await anyio.sleep(far)
        await anyio.sleep(0.25)
        return anyio.current_time()

    assert run_virtual(sleep_far) == far + 0.25


@pytest.fixture
def impatient(monkeypatch):
    """Threads that earlier tests left idle are not waited for."""
    monkeypatch.setattr(_clock, "PATIENCE", 0.01)


def test_nothing_to_wait_for_is_an_error_that_names_the_waiting_task(impatient):
    async def wait_for_nobody():
        await anyio.Event().wait()

    with pytest.raises(UsageError, match="wait_for_nobody"):
        run_virtual(wait_for_nobody)


def test_sleeping_forever_alone_is_a_deadlock_too(impatient):
    with pytest.raises(UsageError, match="no timer"):
        run_virtual(anyio.sleep_forever)


def test_a_deadlock_still_runs_the_cleanup_of_those_who_wait(impatient):
    cleaned = []

    async def wait_for_nobody():
        try:
            await anyio.Event().wait()
        finally:
            cleaned.append(anyio.current_time())

    with pytest.raises(UsageError):
        run_virtual(wait_for_nobody)
    assert cleaned == [0.0]


class LoopThatIsAsked(VirtualLoop):
    """Sets `asked` when it has found a thread running three times over."""

    def __init__(self):
        super().__init__()
        self.asked = threading.Event()
        self._times = 0

    def threads_running(self):
        running = super().threads_running()
        self._times += running
        if self._times == 3:
            self.asked.set()
        return running


def run_asked(function):
    options = {"loop_factory": LoopThatIsAsked}
    return anyio.run(function, backend="asyncio", backend_options=options)


def test_a_worker_thread_holds_the_clock_still():
    async def work_beside_a_timer():
        times = []

        async def work():
            await anyio.to_thread.run_sync(asyncio.get_running_loop().asked.wait)
            times.append(anyio.current_time())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            tasks.start_soon(anyio.sleep, 1)
        times.append(anyio.current_time())
        return times

    assert run_asked(work_beside_a_timer) == [0.0, 1.0]


def test_a_worker_that_calls_back_into_the_loop_does_so_at_the_same_moment():
    async def call_back():
        def work():
            return [anyio.from_thread.run_sync(anyio.current_time) for _ in range(50)]

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, 1)
            return set(await anyio.to_thread.run_sync(work))

    assert run_virtual(call_back) == {0.0}


def test_the_default_executor_holds_the_clock_still_and_shuts_down():
    async def execute():
        loop = asyncio.get_running_loop()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, 1)
            await loop.run_in_executor(None, loop.asked.wait)
            return anyio.current_time()

    assert run_asked(execute) == 0.0


def test_a_worker_at_a_held_barrier_lets_the_clock_run():
    async def gate():
        with WriteBarrier(name="gate") as barrier:
            moments = []

            async def work():
                await anyio.to_thread.run_sync(barrier.wait_blocking)
                moments.append(anyio.current_time())

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(work)
                await anyio.sleep(2)
                barrier.flush()
            return moments

    assert run_virtual(gate) == [2.0]


def test_a_foreign_thread_may_wake_a_loop_that_has_no_timer():
    async def wait_for_a_thread():
        with WriteBarrier(name="gate") as barrier:
            flusher = threading.Thread(target=barrier.flush)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(barrier.wait)
                await anyio.lowlevel.checkpoint()
                flusher.start()
            flusher.join()
            return anyio.current_time()

    assert run_virtual(wait_for_a_thread) == 0.0


def test_patience_with_a_foreign_thread_ends(impatient):
    stop = threading.Event()
    idle = threading.Thread(target=stop.wait)
    idle.start()
    try:
        with pytest.raises(UsageError, match="no timer"):
            run_virtual(anyio.sleep_forever)
    finally:
        stop.set()
        idle.join()


def test_two_virtual_loops_in_two_threads_have_clocks_of_their_own():
    ended = {}

    async def sleep(delay):
        await anyio.sleep(delay)
        ended[delay] = anyio.current_time()

    threads = [
        threading.Thread(target=run_virtual, args=(sleep, delay)) for delay in (5, 7)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == {5: 5.0, 7: 7.0}


def test_run_virtual_passes_arguments_results_and_exceptions():
    async def divide(left, right):
        return left / right

    assert run_virtual(divide, 3, 2) == 1.5
    with pytest.raises(ZeroDivisionError):
        run_virtual(divide, 1, 0)


def test_the_loop_is_an_ordinary_asyncio_loop():
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert runner.run(asyncio.sleep(86_400 * 365, "a year")) == "a year"
        assert runner.get_loop().time() == 86_400 * 365


@pytest.mark.real_time
async def test_real_time_tests_run_on_the_real_clock():
    assert not isinstance(asyncio.get_running_loop(), VirtualLoop)
