"""The next model request, run on early results: when it starts, and who sees what of it."""

import asyncio
import logging
import math

import anyio
import anyio.lowlevel
import pytest
import trio.testing

from headstart import (
    Message,
    ModelRequest,
    ResultSpeculator,
    ToolCall,
    ToolResult,
    UsageError,
)
from headstart.testing import VirtualLoop

CALLS = tuple(ToolCall(f"call-{index}", f"tool_{index}") for index in range(3))
REQUEST = ModelRequest(
    [
        Message(role="user", content="Pause them."),
        Message(role="assistant", tool_calls=CALLS),
    ],
    tools=("pause",),
    settings={"temperature": 0},
)
EARLY = tuple(ToolResult(f"result {index}") for index in range(3))
REAL = tuple(ToolResult(f"result {index}") for index in range(3))
OTHER = (*REAL[:2], ToolResult("it is closed already"))


class StopEverything(BaseException):
    """What no one should raise, and some do."""


class Asked:
    """A model that notes what it is asked, and when a request begins and ends."""

    def __init__(self, seconds=0.0, error=None):
        self.seconds = seconds
        self.error = error
        self.requests = []
        self.began_at = []
        self.ended_at = []

    async def __call__(self, request):
        self.requests.append(request)
        self.began_at.append(anyio.current_time())
        try:
            await anyio.sleep(self.seconds)
            if self.error is not None:
                raise self.error
        finally:
            self.ended_at.append(anyio.current_time())
        return f"Answered {[message.content for message in request.history[2:]]}"


def give(ahead, results=EARLY):
    for index, result in enumerate(results):
        ahead.receive(index, result)


async def settle_tasks():
    """Let every task that can run come to where it waits."""
    await anyio.wait_all_tasks_blocked()


# --- when it starts -------------------------------------------------------------------


async def test_the_request_runs_once_every_call_has_a_result():
    ask_model = Asked(seconds=2)
    started = anyio.current_time()
    async with ResultSpeculator(REQUEST, CALLS, ask_model) as ahead:
        for index in (2, 0):
            ahead.receive(index, EARLY[index])
            await anyio.sleep(1)
            assert not ahead.running
            assert ask_model.requests == []
        ahead.receive(1, EARLY[1])
        assert ahead.running
        await anyio.sleep(1)
        assert await ahead.resolve(REAL) is not None
        assert not ahead.running
    assert ask_model.began_at == [started + 2]
    assert anyio.current_time() - started == 4


@pytest.mark.parametrize(("model_s", "tools_s", "total_s"), [(5, 3, 5), (3, 5, 5)])
async def test_the_request_runs_while_the_tools_finish(model_s, tools_s, total_s):
    started = anyio.current_time()
    async with ResultSpeculator(REQUEST, CALLS, Asked(model_s)) as ahead:
        give(ahead)
        await anyio.sleep(tools_s)
        assert await ahead.resolve(REAL) is not None
    assert anyio.current_time() - started == total_s


async def test_results_that_came_before_it_was_entered_count():
    ask_model = Asked()
    ahead = ResultSpeculator(REQUEST, CALLS, ask_model)
    give(ahead)
    assert not ahead.running
    async with ahead:
        assert ahead.running
        assert await ahead.resolve(REAL) is not None
    assert len(ask_model.requests) == 1


async def test_a_turn_without_calls_is_never_run_ahead():
    ask_model = Asked()
    async with ResultSpeculator(REQUEST, (), ask_model) as ahead:
        await settle_tasks()
        ahead.receive(0, EARLY[0])
        assert not ahead.running
        assert await ahead.wait_if_running() is None
        assert await ahead.resolve(()) is None
    assert ask_model.requests == []


async def test_one_result_short_is_never_run_ahead():
    ask_model = Asked()
    async with ResultSpeculator(REQUEST, CALLS, ask_model) as ahead:
        give(ahead, EARLY[:2])
        await settle_tasks()
        assert await ahead.wait_if_running() is None
        assert await ahead.resolve(REAL) is None
    assert ask_model.requests == []


# --- what it is run on -----------------------------------------------------------------


@pytest.mark.requirement("engine:same-transcript")
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
async def test_the_tool_messages_come_in_the_order_of_the_calls(order):
    ask_model = Asked()
    async with ResultSpeculator(REQUEST, CALLS, ask_model) as ahead:
        for index in order:
            ahead.receive(index, EARLY[index])
        await ahead.resolve(REAL)
    (request,) = ask_model.requests
    assert request == REQUEST.answered(CALLS, EARLY)
    assert [message.tool_call_id for message in request.history[2:]] == [
        "call-0",
        "call-1",
        "call-2",
    ]


@pytest.mark.requirement("engine:invisible")
async def test_the_old_request_is_not_touched():
    request = ModelRequest(REQUEST.messages, REQUEST.tools, REQUEST.settings)
    before = request.messages

    async def ask_model(asked):
        assert asked is not request
        assert asked.settings is not request.settings
        asked.settings["temperature"] = 1
        return "answer"

    async with ResultSpeculator(request, CALLS, ask_model) as ahead:
        give(ahead)
        assert await ahead.resolve(REAL) == "answer"
    assert request == REQUEST
    assert request.messages is before


async def test_a_second_result_replaces_the_first_and_counts_once():
    ask_model = Asked()
    async with ResultSpeculator(REQUEST, CALLS, ask_model) as ahead:
        for _ in range(3):
            ahead.receive(0, ToolResult("a first guess"))
        ahead.receive(1, EARLY[1])
        await settle_tasks()
        assert ask_model.requests == []
        ahead.receive(0, EARLY[0])
        ahead.receive(2, EARLY[2])
        assert await ahead.resolve(REAL) is not None
    assert ask_model.requests == [REQUEST.answered(CALLS, EARLY)]


@pytest.mark.parametrize("when", ["before its first step", "while it runs", "after it"])
async def test_a_result_that_comes_after_the_start_is_ignored(when):
    ask_model = Asked(seconds=1)
    async with ResultSpeculator(REQUEST, CALLS, ask_model) as ahead:
        give(ahead)
        if when == "while it runs":
            await settle_tasks()
        if when == "after it":
            await anyio.sleep(2)
        give(ahead, OTHER)
        assert await ahead.resolve(REAL) is not None
    assert ask_model.requests == [REQUEST.answered(CALLS, EARLY)]


@pytest.mark.parametrize("index", [-1, 3, 1000])
async def test_a_result_for_no_call_is_ignored_and_logged(index, caplog):
    caplog.set_level(logging.WARNING, logger="headstart")
    ask_model = Asked()
    async with ResultSpeculator(REQUEST, CALLS, ask_model) as ahead:
        ahead.receive(index, ToolResult("lost"))
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("headstart", logging.WARNING)
        give(ahead, EARLY[:2])
        await settle_tasks()
        assert ask_model.requests == []
        ahead.receive(2, EARLY[2])
        assert await ahead.resolve(REAL) is not None
    assert "lost" not in caplog.text


async def test_any_number_of_tasks_may_give_results():
    calls = tuple(ToolCall(f"call-{index}", "tool") for index in range(200))
    results = tuple(ToolResult(str(index)) for index in range(200))
    ask_model = Asked(seconds=1)

    async def run_tool(ahead, index):
        ahead.receive(index, ToolResult("a first guess"))
        await anyio.sleep(1 + index % 7)
        for _ in range(3):
            ahead.receive(index, results[index])
            await anyio.lowlevel.checkpoint()

    async with ResultSpeculator(REQUEST, calls, ask_model) as ahead:
        async with anyio.create_task_group() as tasks:
            for index in range(199):
                tasks.start_soon(run_tool, ahead, index)
        assert not ahead.running  # every call but one
        ahead.receive(199, results[199])
        assert await ahead.resolve(results) is not None
    assert ask_model.requests == [REQUEST.answered(calls, results)]


# --- resolving -------------------------------------------------------------------------


@pytest.mark.requirement("engine:same-transcript")
@pytest.mark.parametrize(
    "actual",
    [
        OTHER,
        REAL[:2],
        (*REAL, REAL[0]),
        (),
        REAL[::-1],
        (*REAL[:2], ToolResult("result 2", is_error=True)),
    ],
    ids=["another", "too few", "too many", "none", "another order", "an error"],
)
@pytest.mark.parametrize("answered", [False, True])
async def test_other_results_than_it_ran_on_cancel_it(actual, answered):
    ask_model = Asked(seconds=5)
    async with ResultSpeculator(REQUEST, CALLS, ask_model) as ahead:
        give(ahead)
        await anyio.sleep(9 if answered else 1)
        started = anyio.current_time()
        assert await ahead.resolve(actual) is None
        assert anyio.current_time() == started
        assert not ahead.running
        await settle_tasks()
        assert len(ask_model.ended_at) == 1  # it has ended, before it is left
        assert await ahead.resolve(REAL) is None
        assert await ahead.wait_if_running() is None
    assert len(ask_model.requests) == 1


async def test_results_are_compared_as_the_model_would_see_them():
    async with ResultSpeculator(REQUEST, CALLS, Asked()) as ahead:
        give(ahead)
        assert await ahead.resolve(list(map(ToolResult.from_value, EARLY))) is not None


async def test_resolving_twice_gives_the_same_response():
    ask_model = Asked(seconds=1)
    async with ResultSpeculator(REQUEST, CALLS, ask_model) as ahead:
        give(ahead)
        response = await ahead.resolve(REAL)
        assert response is not None
        assert await ahead.resolve(REAL) is response
    assert len(ask_model.requests) == 1


async def test_resolving_before_it_could_start_takes_no_more_results():
    ask_model = Asked()
    async with ResultSpeculator(REQUEST, CALLS, ask_model) as ahead:
        give(ahead, EARLY[:2])
        assert await ahead.resolve(REAL) is None
        give(ahead)
        await settle_tasks()
        assert await ahead.resolve(REAL) is None
    assert ask_model.requests == []


async def test_cancelling_whoever_resolves_cancels_the_wait_alone():
    ask_model = Asked(seconds=5)
    started = anyio.current_time()
    async with ResultSpeculator(REQUEST, CALLS, ask_model) as ahead:
        give(ahead)
        for wait in (ahead.wait_if_running(), ahead.resolve(REAL)):
            with anyio.move_on_after(1) as patience:
                await wait
            assert patience.cancelled_caught
            assert ahead.running
        assert await ahead.resolve(REAL) is not None
    assert anyio.current_time() - started == 5
    assert len(ask_model.requests) == 1


async def test_everyone_who_waits_gets_the_response():
    got = []

    async def wait_for(waiting):
        got.append(await waiting)

    async with ResultSpeculator(REQUEST, CALLS, Asked(seconds=1)) as ahead:
        give(ahead)
        async with anyio.create_task_group() as tasks:
            for waiting in (
                ahead.wait_if_running(),
                ahead.wait_if_running(),
                ahead.resolve(REAL),
            ):
                tasks.start_soon(wait_for, waiting)
    assert len(got) == 3
    assert set(got) == {"Answered ['result 0', 'result 1', 'result 2']"}


# --- waiting only if it runs ------------------------------------------------------------


async def test_waiting_for_what_was_not_started_gives_none():
    ahead = ResultSpeculator(REQUEST, CALLS, Asked())
    assert await ahead.wait_if_running() is None
    assert not ahead.running
    async with ahead:
        assert await ahead.wait_if_running() is None
    assert await ahead.wait_if_running() is None


async def test_waiting_gives_the_response_whatever_the_real_results():
    async with ResultSpeculator(REQUEST, CALLS, Asked(seconds=3)) as ahead:
        give(ahead)
        response = await ahead.wait_if_running()
        assert response == "Answered ['result 0', 'result 1', 'result 2']"
        assert not ahead.running
        assert await ahead.wait_if_running() is response
    assert await ahead.wait_if_running() is None


async def test_who_waits_when_it_is_cancelled_gets_none():
    got = []

    async def wait_for(ahead):
        got.append(await ahead.wait_if_running())

    async with ResultSpeculator(REQUEST, CALLS, Asked(seconds=5)) as ahead:
        give(ahead)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait_for, ahead)
            await settle_tasks()
            ahead.cancel()
            assert await ahead.wait_if_running() is None
    assert got == [None]


# --- cancelling and leaving -------------------------------------------------------------


@pytest.mark.requirement("cancel:no-orphans")
@pytest.mark.parametrize("how", ["cancel", "leave", "resolve", "error", "host"])
@pytest.mark.parametrize("seconds", [5, math.inf])
async def test_a_request_that_is_not_wanted_is_cancelled_at_once(how, seconds):
    ask_model = Asked(seconds)
    started = anyio.current_time()

    async def host():
        async with ResultSpeculator(REQUEST, CALLS, ask_model) as ahead:
            give(ahead)
            await anyio.sleep(1)
            if how == "cancel":
                ahead.cancel()
                ahead.cancel()
                await settle_tasks()
                assert len(ask_model.ended_at) == 1
            if how == "resolve":
                await ahead.resolve(OTHER)
            if how == "error":
                raise StopEverything
            if how == "host":
                await anyio.sleep_forever()

    with anyio.move_on_after(1 if how == "host" else 9):
        if how == "error":
            with pytest.raises(StopEverything):
                await host()
        else:
            await host()
    assert ask_model.ended_at == [anyio.current_time()]
    assert anyio.current_time() - started == 1


@pytest.mark.requirement("engine:invisible")
@pytest.mark.parametrize("how", ["cancel", "leave", "resolve"])
async def test_a_request_cancelled_before_its_first_step_is_never_sent(how):
    ask_model = Asked()
    async with ResultSpeculator(REQUEST, CALLS, ask_model) as ahead:
        give(ahead)
        if how == "cancel":
            ahead.cancel()
            await settle_tasks()
        if how == "resolve":
            assert await ahead.resolve(OTHER) is None
            await settle_tasks()
    assert ask_model.requests == []


async def test_nothing_is_run_after_a_cancellation():
    ask_model = Asked()
    async with ResultSpeculator(REQUEST, CALLS, ask_model) as ahead:
        ahead.cancel()
        give(ahead)
        await settle_tasks()
        assert await ahead.resolve(REAL) is None
    assert ask_model.requests == []


async def test_a_model_that_swallows_its_cancellation_is_not_believed():
    async def stubborn(request):
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            return "answer"

    async with ResultSpeculator(REQUEST, CALLS, stubborn) as ahead:
        give(ahead)
        await settle_tasks()
        ahead.cancel()
        await settle_tasks()
        assert await ahead.resolve(REAL) is None
    assert await ahead.resolve(REAL) is None


async def test_it_is_entered_once():
    ahead = ResultSpeculator(REQUEST, CALLS, Asked())
    async with ahead:
        with pytest.raises(UsageError):
            await ahead.__aenter__()
    with pytest.raises(UsageError):
        await ahead.__aenter__()


async def test_it_may_run_in_a_task_group_of_the_callers():
    ahead = ResultSpeculator(REQUEST, CALLS, Asked(seconds=1))
    give(ahead, EARLY[:2])
    async with anyio.create_task_group() as tasks:
        ahead.start(tasks)
        assert not ahead.running
        ahead.receive(2, EARLY[2])
        assert ahead.running
        assert await ahead.resolve(REAL) is not None


@pytest.mark.requirement("cancel:no-orphans")
async def test_cancelling_that_task_group_ends_the_request():
    ask_model, got = Asked(seconds=5), []

    async def wait_for(ahead):
        got.append(await ahead.wait_if_running())

    ahead = ResultSpeculator(REQUEST, CALLS, ask_model)
    async with anyio.create_task_group() as waiters:
        async with anyio.create_task_group() as tasks:
            ahead.start(tasks)
            give(ahead)
            waiters.start_soon(wait_for, ahead)
            await anyio.sleep(1)
            tasks.cancel_scope.cancel()
    assert got == [None]
    assert not ahead.running
    assert ask_model.ended_at == [ask_model.began_at[0] + 1]


# --- what the model's client raises -------------------------------------------------------


ERRORS = [
    ValueError("no choices"),
    TimeoutError("too slow"),
    StopEverything(),
    ExceptionGroup("two", [ValueError(), KeyError()]),
]


@pytest.mark.requirement("engine:contained")
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_what_the_request_raises_reaches_whoever_resolves(error):
    async with ResultSpeculator(REQUEST, CALLS, Asked(1, error)) as ahead:
        give(ahead)
        await anyio.sleep(2)  # the host goes on
        assert not ahead.running
        for use in (ahead.wait_if_running, ahead.wait_if_running):
            with pytest.raises(type(error)) as caught:
                await use()
            assert caught.value is error
        for _ in range(2):
            with pytest.raises(type(error)) as caught:
                await ahead.resolve(REAL)
            assert caught.value is error


@pytest.mark.requirement("engine:contained")
@pytest.mark.parametrize("how", ["leave", "cancel", "resolve"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_what_an_unwanted_request_raises_reaches_nobody(error, how):
    async with ResultSpeculator(REQUEST, CALLS, Asked(1, error)) as ahead:
        give(ahead)
        await anyio.sleep(2)
        if how == "cancel":
            ahead.cancel()
        if how == "resolve":
            assert await ahead.resolve(OTHER) is None
    assert await ahead.wait_if_running() is None
    assert await ahead.resolve(REAL) is None


@pytest.mark.requirement("engine:contained")
async def test_what_a_request_raises_while_it_is_cancelled_reaches_nobody():
    got = []

    async def untidy(request):
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("the connection was lost")

    async def wait_for(ahead):
        got.append(await ahead.wait_if_running())

    async with ResultSpeculator(REQUEST, CALLS, untidy) as ahead:
        give(ahead)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait_for, ahead)
            await settle_tasks()
            ahead.cancel()
        assert await ahead.resolve(REAL) is None
    assert got == [None]


@pytest.mark.requirement("engine:contained")
async def test_a_function_that_raises_before_it_awaits_is_no_different():
    def refuse(request):
        raise ValueError("no key")

    async with ResultSpeculator(REQUEST, CALLS, refuse) as ahead:
        give(ahead)
        await settle_tasks()
        with pytest.raises(ValueError, match="no key"):
            await ahead.resolve(REAL)


@pytest.mark.requirement("engine:contained")
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_request_that_is_cancelled_within_does_not_cancel_its_host():
    async def await_a_cancelled_future(request):
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async with ResultSpeculator(REQUEST, CALLS, await_a_cancelled_future) as ahead:
        give(ahead)
        await anyio.sleep(1)  # the host goes on
        with pytest.raises(RuntimeError) as caught:
            await ahead.resolve(REAL)
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)


@pytest.mark.requirement("engine:contained")
@pytest.mark.parametrize("seconds", [0, 5])
async def test_what_the_host_raises_passes_unchanged(seconds):
    error, cause = ValueError("the host's own"), KeyError("why")

    async def host():
        async with ResultSpeculator(REQUEST, CALLS, Asked(seconds, OSError())) as ahead:
            give(ahead)
            await anyio.sleep(1)
            raise error from cause

    with pytest.raises(ValueError, match="own") as caught:
        await host()
    assert caught.value is error
    assert error.__cause__ is cause


@pytest.mark.requirement("cancel:outside-wins")
@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_interrupt_in_a_request_ends_the_host_at_once(backend, interrupt):
    reached = []

    async def host():
        async with ResultSpeculator(
            REQUEST, CALLS, Asked(1, interrupt("now"))
        ) as ahead:
            give(ahead)
            await anyio.sleep(3600)
            reached.append("the end")

    options = (
        {"loop_factory": VirtualLoop}
        if backend == "asyncio"
        else {"clock": trio.testing.MockClock(autojump_threshold=0)}
    )
    with pytest.raises(interrupt):
        anyio.run(host, backend=backend, backend_options=options)
    assert reached == []
