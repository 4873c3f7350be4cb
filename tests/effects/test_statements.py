"""Statements of drivers used directly are held, seen from a second connection."""

import asyncio
import contextlib
import os
import signal
import threading

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from headstart import (
    Agent,
    Effect,
    Tool,
    ToolCallSpeculator,
    UsageError,
    WriteBarrier,
    WriteDenied,
)
from headstart.effects import SeamCounts
from headstart.effects._statements import HeldStatements
from headstart.predictors import RulePredictor, rule
from headstart.testing import tripwire

from .drivers import ASYNC, opened
from .scene import WaitingModel, tool_of, until

pytestmark = pytest.mark.real_time

each_async = pytest.mark.parametrize("driver", ASYNC)


@each_async
async def test_nobody_sees_what_a_call_writes_before_it_is_confirmed(
    driver, postgres_url
):
    async with opened(postgres_url, driver) as db:
        async with ToolCallSpeculator(tool_of(db.post), "{}") as guess:
            await db.until_held()
            assert db.outside.rows() == []
            assert await guess.adopt() == ["posted"]
        assert db.outside.rows() == ["posted"]
        assert db.seam.counts == SeamCounts(held=1, flushed=1)
        await db.until_returned()


@each_async
async def test_what_a_discarded_call_would_write_never_happens(driver, postgres_url):
    async with opened(postgres_url, driver) as db:
        async with ToolCallSpeculator(tool_of(db.post), "{}"):
            await db.until_held()
        assert db.in_use == 0
        assert db.seam.counts == SeamCounts(held=1, denied=1)
        assert await db.post("real") == ["real"]
        assert db.outside.rows() == ["real"]


@each_async
async def test_work_outside_of_any_call_is_not_held(driver, postgres_url):
    async with opened(postgres_url, driver) as db:
        await db.post()
        assert db.outside.rows() == ["posted"]
        assert db.seam.counts == SeamCounts()


@each_async
async def test_a_call_that_only_reads_is_not_held(driver, postgres_url):
    async with opened(postgres_url, driver) as db:
        db.outside.run(db.insert("there"))
        async with ToolCallSpeculator(tool_of(db.look), "{}") as guess:
            assert await guess.wait() == ["there"]
            assert guess.barrier.state.value == "held"
            assert db.in_transactions() == 0
        assert db.seam.counts == SeamCounts()
        assert db.in_use == 0


@each_async
async def test_nothing_is_locked_while_a_write_is_held(driver, postgres_url):
    async with opened(postgres_url, driver) as db:
        db.outside.run(db.insert("a"))

        async def change() -> str:
            async with db.connection() as connection, connection.transaction():
                await db.rows(connection)
                await connection.execute(f"UPDATE {db.table} SET word = 'b'")
            return "changed"

        async with ToolCallSpeculator(tool_of(change), "{}") as guess:
            await db.until_held()
            db.outside.run(f"UPDATE {db.table} SET word = 'c'")
            await guess.adopt()
        assert db.outside.rows() == ["b"]


@each_async
async def test_a_hold_that_lasts_too_long_gives_the_call_and_its_connection_up(
    driver, postgres_url
):
    async with opened(postgres_url, driver, max_hold=0.05) as db:
        backends = db.backends()
        async with ToolCallSpeculator(tool_of(db.post), "{}") as guess:
            await guess.wait_until_ended()
            assert f"was held at the seam {driver!r} for" in guess.barrier.reason
            assert db.in_use == 0
        assert db.outside.rows() == []
        assert db.seam.counts == SeamCounts(held=1, expired=1)
        assert db.backends() == backends


@each_async
async def test_a_confirmed_call_waits_for_an_approval(driver, postgres_url):
    async with opened(postgres_url, driver, max_hold=0.01) as db:
        for verdict in (WriteBarrier.flush, lambda barrier: barrier.deny("no")):
            approval = WriteBarrier(name="approval")
            made = tool_of(db.post)
            async with ToolCallSpeculator(made, "{}", conditions=[approval]) as guess:
                guess.confirm()
                await db.until_held()
                await anyio.sleep(0.05)
                assert db.seam.counts.holding == 1
                verdict(approval)
                with contextlib.suppress(WriteDenied):
                    await guess.wait()
        assert db.outside.rows() == ["posted"]
        assert db.in_use == 0


@each_async
@pytest.mark.parametrize("says", ["right", "wrong"])
async def test_an_agent_writes_what_its_model_asked_for_once(
    driver, postgres_url, says
):
    async with opened(postgres_url, driver) as db:

        async def post(word: str) -> list[str]:
            return await db.post(word)

        made = Tool(post, effect=Effect.GATED)
        guessed = "real" if says == "right" else "guessed"
        expects = RulePredictor([rule("Go", "post", word=guessed)])
        model = WaitingModel([[("post", {"word": "real"})], "Done."], db.seam)
        result = await Agent(model, [made], predictors=[expects]).run("Go.")
        assert result.text == "Done."
        assert db.outside.rows() == ["real"]
        assert db.seam.counts.held == 1
        assert db.in_use == 0


@each_async
async def test_a_function_that_is_not_known_is_held_unless_it_is_named(
    driver, postgres_url
):
    for functions, held in (((), 1), (("pg_typeof",), 0)):
        async with opened(postgres_url, driver, functions=functions) as db:

            async def look() -> list[str]:
                async with db.connection() as connection:
                    return await db.rows(connection, "SELECT pg_typeof(1)::text")

            async with ToolCallSpeculator(tool_of(look), "{}") as guess:
                if held:
                    await db.until_held()
                else:
                    await guess.wait()
                assert await guess.adopt() == ["integer"]
            assert db.seam.counts.held == held


@each_async
async def test_the_tripwire_lets_a_read_connect(driver, postgres_url):
    async with opened(postgres_url, driver, pool={"min_size": 0}) as db:
        with tripwire(deny=True) as findings:
            async with ToolCallSpeculator(tool_of(db.look), "{}") as guess:
                assert await guess.wait() == []
        assert findings == []


# Connections of somebody else


@each_async
async def test_everything_waits_on_a_connection_of_somebody_else(driver, postgres_url):
    async with opened(postgres_url, driver) as db, db.connection() as connection:

        async def read() -> list[str]:
            return await db.rows(connection)

        async def nest() -> list[str]:
            async with connection.transaction():
                return []

        async def close() -> list[str]:
            await connection.close()
            return []

        async with connection.transaction():
            await connection.execute(db.insert("the host"))
            for work in (read, nest, close):
                before = db.seam.counts.held
                async with ToolCallSpeculator(tool_of(work), "{}"):
                    await db.until_held()
                assert db.seam.counts.held == before + 1
        assert db.outside.rows() == ["the host"]


@each_async
async def test_a_single_connection_is_held_with_everything(driver, postgres_url):
    async with opened(postgres_url, driver) as db:
        connection = await db.connect()
        held = db.hold(connection)
        assert isinstance(held, HeldStatements)
        assert held.connections == 0
        try:

            async def post() -> list[str]:
                await connection.execute(db.insert())
                return await db.rows(connection)

            async with ToolCallSpeculator(tool_of(post), "{}") as guess:
                await until(lambda: held.seam.counts.holding)
                assert await guess.adopt() == ["posted"]
        finally:
            await connection.close()


@each_async
async def test_a_connection_that_a_call_makes_and_holds_is_its_own(
    driver, postgres_url
):
    async with opened(postgres_url, driver) as db:
        seams = []

        async def post() -> str:
            connection = await db.connect()
            try:
                seams.append(db.hold(connection).seam)
                async with connection.transaction():
                    await db.rows(connection)
                    await connection.execute(db.insert())
            finally:
                await connection.close()
            return "posted"

        for end in ("adopted", "discarded"):
            backends = db.backends()
            async with ToolCallSpeculator(tool_of(post), "{}") as guess:
                await until(lambda: seams and seams[-1].counts.holding)
                assert db.outside.rows() == ([] if end == "adopted" else ["posted"])
                if end == "adopted":
                    await guess.adopt()
            assert db.outside.rows() == ["posted"]
            with anyio.fail_after(5):
                await until(lambda before=backends: db.backends() == before)
            seams.clear()


@each_async
async def test_a_connection_is_a_calls_own_until_somebody_else_uses_it(
    driver, postgres_url
):
    async with opened(postgres_url, driver) as db:
        lent, used = [], anyio.Event()

        async def look() -> str:
            async with db.connection() as connection:
                await db.rows(connection)
                lent.append(connection)
                await used.wait()
                await db.rows(connection)
            return "seen"

        async with ToolCallSpeculator(tool_of(look), "{}") as guess:
            await until(lambda: lent)
            await lent[0].execute(db.insert("the host"))
            used.set()
            await db.until_held()
            await guess.adopt()
        assert db.outside.rows() == ["the host"]


@each_async
async def test_a_call_does_not_use_what_another_took(driver, postgres_url):
    async with opened(postgres_url, driver) as db:
        lent, done = [], anyio.Event()

        async def lend() -> str:
            async with db.connection() as connection:
                lent.append(connection)
                await done.wait()
            return "lent"

        async def borrow() -> list[str]:
            return await db.rows(lent[0])

        async with ToolCallSpeculator(tool_of(lend), "{}"):
            await until(lambda: lent)
            async with ToolCallSpeculator(tool_of(borrow), "{}"):
                await db.until_held()
            done.set()


# What cancelling leaves


@each_async
async def test_a_discarded_call_leaves_its_connection_and_no_task(driver, postgres_url):
    async with opened(postgres_url, driver) as db:
        backends, tasks = db.backends(), asyncio.all_tasks()
        for _ in range(5):
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(6):
                    await stack.enter_async_context(
                        ToolCallSpeculator(tool_of(db.post), "{}")
                    )
                await db.until_held(6)
            assert asyncio.all_tasks() == tasks
            assert db.in_use == 0
        assert db.backends() == backends
        assert db.in_transactions() == 0
        assert db.outside.rows() == []


@each_async
async def test_a_call_discarded_while_it_reads_leaves_its_connection_and_no_task(
    driver, postgres_url
):
    async with opened(postgres_url, driver, functions=["pg_sleep"]) as db:

        async def look() -> str:
            async with db.connection() as connection, connection.transaction():
                await db.rows(connection, "SELECT 'a' FROM pg_sleep(30)")
            return "seen"

        backends, tasks = db.backends(), asyncio.all_tasks()

        def sleeping() -> int:
            return db.outside.run(
                "SELECT count(*) FROM pg_stat_activity WHERE state = 'active'"
                f" AND application_name = '{db.name}'"
            )[0][0]

        async with ToolCallSpeculator(tool_of(look), "{}"):
            await until(sleeping)
        assert sleeping() == 0
        assert asyncio.all_tasks() == tasks
        await db.until_returned()
        assert db.backends() == backends
        assert await db.post("real") == ["real"]


@pytest.mark.parametrize("step", range(14))
@each_async
async def test_a_call_that_is_cancelled_anywhere_leaves_nothing(
    driver, postgres_url, step
):
    async with opened(postgres_url, driver) as db:
        made, tasks = tool_of(db.post), asyncio.all_tasks()
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(2):  # one has a place, the other waits for it
                await stack.enter_async_context(ToolCallSpeculator(made, "{}"))
            for _ in range(step * step):
                await anyio.lowlevel.checkpoint()
        await db.until_returned()
        await until(lambda: asyncio.all_tasks() == tasks)
        assert db.in_transactions() == 0
        assert db.outside.rows() == []
        assert db.held._places.free == 1
        assert await db.post() == ["posted"]


@each_async
async def test_a_rollback_that_hangs_costs_a_moment_and_its_connection(
    driver, postgres_url, monkeypatch
):
    for module in ("_statements", "psycopg"):
        monkeypatch.setattr(f"headstart.effects.{module}.RETURN", 0.05)
    async with opened(postgres_url, driver) as db:
        backends = db.backends()
        async with ToolCallSpeculator(tool_of(db.post), "{}"):
            await db.until_held()
            hanging = db.outside.run(
                "SELECT pid FROM pg_stat_activity WHERE state LIKE 'idle in%'"
                f" AND application_name = '{db.name}'"
            )[0][0]
            stop(hanging)
            # Not for ever, or what waits for it would end by this test's time limit.
            later = threading.Timer(3, go_on, [hanging])
            later.start()
        await db.until_returned()
        later.cancel()
        later.join()
        go_on(hanging)
        with anyio.fail_after(5):
            await until(lambda: hanging not in db.backends())
        assert backends - db.backends() == {hanging}
        assert db.held._places.free == 1
        assert await db.post("real") == ["real"]


def stop(process: int) -> None:
    try:
        os.kill(process, signal.SIGSTOP)
    except OSError as error:
        pytest.skip(f"the server is not ours to stop: {error}")


def go_on(process: int) -> None:
    os.kill(process, signal.SIGCONT)


@each_async
async def test_a_commit_that_takes_long_is_not_cut(driver, postgres_url, monkeypatch):
    monkeypatch.setattr("headstart.effects._statements.RETURN", 0.05)
    async with opened(postgres_url, driver) as db:
        db.outside.run(
            f"CREATE FUNCTION {db.table}_slow() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END'"
        )
        db.outside.run(
            f"CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON {db.table} INITIALLY"
            f" DEFERRED FOR EACH ROW EXECUTE FUNCTION {db.table}_slow()"
        )
        try:
            async with ToolCallSpeculator(tool_of(db.post), "{}") as guess:
                await db.until_held()
                assert await guess.adopt() == ["posted"]
            assert db.outside.rows() == ["posted"]
        finally:
            db.outside.run(f"DROP FUNCTION {db.table}_slow CASCADE")


@each_async
async def test_a_return_that_takes_long_is_not_cut(driver, postgres_url, monkeypatch):
    monkeypatch.setattr("headstart.effects._statements.RETURN", 0.05)

    async def reset(connection):
        await connection.execute("SELECT pg_sleep(0.3)")
        if driver == "psycopg":
            await connection.commit()

    async with opened(postgres_url, driver, pool={"reset": reset}) as db:
        backends = db.backends()
        async with ToolCallSpeculator(tool_of(db.look), "{}") as guess:
            assert await guess.wait() == []
            await db.until_returned()
        assert db.backends() == backends


# Pools


@each_async
async def test_two_hundred_held_calls_leave_connections_to_others(driver, postgres_url):
    async with opened(postgres_url, driver, size=5) as db:
        assert db.held.connections == 2
        backends = db.backends()
        made = tool_of(db.post)
        async with contextlib.AsyncExitStack() as stack:
            guesses = [
                await stack.enter_async_context(ToolCallSpeculator(made, "{}"))
                for _ in range(200)
            ]
            await db.until_held(200)
            assert db.in_use <= 2
            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(db.post, f"real {number:02}")
            assert len(db.outside.rows()) == 20
            for guess in guesses[::-50]:  # a confirmed one waits behind nobody
                await guess.adopt()
            assert db.outside.rows().count("posted") == 4
        assert db.outside.rows().count("posted") == 4
        await db.until_returned()
        assert db.held._places.free == 2
        assert db.seam.counts.holding == 0
        assert db.backends() == backends


@each_async
async def test_a_place_is_free_once_its_call_is_confirmed(driver, postgres_url):
    async with opened(postgres_url, driver) as db:
        goes_on = anyio.Event()

        async def post() -> str:
            async with db.connection() as connection:
                await db.rows(connection)
                await goes_on.wait()
                await connection.execute(db.insert("first"))
            return "posted"

        async with ToolCallSpeculator(tool_of(post), "{}") as first:
            await until(lambda: db.in_use == 1)
            async with ToolCallSpeculator(tool_of(db.post), "{}"):
                await db.until_held()  # for a place
                first.confirm()
                await until(lambda: db.in_use == 2)
                goes_on.set()
                assert await first.wait() == "posted"
        assert db.outside.rows() == ["first"]


@each_async
async def test_a_place_is_not_taken_from_the_next_who_has_the_connection(
    driver, postgres_url
):
    async with opened(postgres_url, driver, size=2) as db:
        for _ in range(10):
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(4):
                    await stack.enter_async_context(
                        ToolCallSpeculator(tool_of(db.look), "{}")
                    )
                assert db.in_use <= 1
            assert db.held._places.free == 1
            assert len(db.held._taken) == len(db.held._owners) == 0


@each_async
@pytest.mark.parametrize("connections", [-1, 3, 4])
async def test_a_pool_leaves_a_connection_to_others(driver, postgres_url, connections):
    with pytest.raises(UsageError, match="leave at least one"):
        async with opened(postgres_url, driver, connections=connections):
            raise AssertionError


@each_async
async def test_a_thing_is_held_once_and_has_to_be_one_of_the_drivers(
    driver, postgres_url
):
    async with opened(postgres_url, driver) as db, db.connection() as connection:
        for target, message in (
            (db.pool, "already"),
            (connection, "already|takes a pool"),
            (object(), "takes a pool"),
        ):
            with pytest.raises(UsageError, match=message):
                db.hold(target)
        own = await db.connect()
        try:
            with pytest.raises(UsageError, match="for pools"):
                db.hold(own, connections=1)
        finally:
            await own.close()


# Threads


async def test_a_sync_pool_is_held_in_the_thread_of_a_tool(postgres_url):
    async with opened(postgres_url, "psycopg-sync") as db:

        def post() -> list[str]:
            return db.post_blocking()

        async with ToolCallSpeculator(tool_of(post), "{}") as guess:
            await db.until_held()
            assert db.outside.rows() == []
            assert await guess.adopt() == ["posted"]
        assert db.outside.rows() == ["posted"]
        async with ToolCallSpeculator(tool_of(post), "{}"):
            await db.until_held()
        await db.until_returned()
        assert db.outside.rows() == ["posted"]
        assert db.seam.counts == SeamCounts(held=2, flushed=1, denied=1)
        assert await anyio.to_thread.run_sync(db.post_blocking, "b") == ["b", "posted"]
        assert db.held._places.free == 1


async def test_a_sync_pool_reads_at_once_in_the_thread_of_a_tool(postgres_url):
    async with opened(postgres_url, "psycopg-sync") as db:
        db.outside.run(db.insert("there"))

        def look() -> list[str]:
            return db.look_blocking()

        async with ToolCallSpeculator(tool_of(look), "{}") as guess:
            assert await guess.wait() == ["there"]
        assert db.seam.counts == SeamCounts()


async def test_a_sync_pool_in_the_event_loop_gives_the_call_up(postgres_url):
    async with opened(postgres_url, "psycopg-sync") as db:

        async def post() -> list[str]:
            return db.post_blocking()

        async with ToolCallSpeculator(tool_of(post), "{}") as guess:
            await guess.wait_until_ended()
            assert isinstance(guess.error, WriteDenied)
        assert db.outside.rows() == []
        assert db.in_use == 0


async def test_a_thread_without_context_gives_the_call_up(postgres_url):
    async with opened(postgres_url, "psycopg-sync") as db:
        failures = []

        def run() -> None:
            try:
                db.post_blocking()
            except WriteDenied as denial:
                failures.append(denial)

        def post() -> str:
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
            return "posted"

        async with ToolCallSpeculator(tool_of(post), "{}") as guess:
            await guess.wait_until_ended()
        await until(lambda: failures)  # the thread ends a little later
        assert db.outside.rows() == []
        await db.until_returned()


async def test_held_threads_leave_connections_to_others(postgres_url):
    async with opened(postgres_url, "psycopg-sync") as db:
        threads = threading.active_count()

        def post() -> list[str]:
            return db.post_blocking()

        made = tool_of(post)
        async with contextlib.AsyncExitStack() as stack:
            guesses = [
                await stack.enter_async_context(ToolCallSpeculator(made, "{}"))
                for _ in range(10)
            ]
            await db.until_held(10)
            assert db.in_use == 1
            await anyio.to_thread.run_sync(db.post_blocking, "real")
            await guesses[-1].adopt()
            assert db.outside.rows() == ["posted", "real"]
        await until(lambda: db.in_use == 0 and db.seam.counts.holding == 0)
        assert db.outside.rows() == ["posted", "real"]
        assert db.held._places.free == 1
        assert threading.active_count() <= threads + 12  # threads of tools are kept
