"""What psycopg offers: each of its ways to a server waits, is known to read, or is refused."""

import asyncio
import contextlib

import psycopg
import psycopg_pool
import pytest
from psycopg import sql

from headstart import ToolCallSpeculator, WriteDenied
from headstart.effects import SeamCounts
from headstart.effects.psycopg import (
    CONNECTION,
    CURSOR,
    POOL,
    SERVER_CURSOR,
    hold_statements,
)

from .drivers import opened
from .scene import tool_of, until

pytestmark = pytest.mark.real_time


async def execute(db, connection):
    await connection.execute(db.insert())


async def execute_with_parameters(db, connection):
    async with connection.cursor() as cursor:
        await cursor.execute(f"INSERT INTO {db.table} VALUES (%s)", ("posted",))


async def execute_many(db, connection):
    async with connection.cursor() as cursor:
        await cursor.executemany(f"INSERT INTO {db.table} VALUES (%s)", [("posted",)])


async def stream(db, connection):
    async with connection.cursor() as cursor:
        assert [row async for row in cursor.stream(db.insert() + " RETURNING 1")]


async def copy(db, connection):
    async with connection.cursor() as cursor:
        async with cursor.copy(f"COPY {db.table} FROM STDIN") as copy:
            await copy.write_row(("posted",))


async def pipeline(db, connection):
    async with connection.pipeline():
        await connection.execute(db.insert())


async def in_a_transaction(db, connection):
    async with connection.transaction(), connection.transaction():
        await connection.execute(db.insert())


async def with_words(db, connection):
    await connection.execute(
        f"WITH a AS (INSERT INTO {db.table} VALUES ('posted') RETURNING 1)"
        " SELECT * FROM a"
    )


async def two_statements(db, connection):
    await connection.execute(f"{db.select}; {db.insert()}")


async def bytes_of_a_statement(db, connection):
    await connection.execute(db.insert().encode())


async def composed(db, connection):
    await connection.execute(
        sql.SQL("INSERT INTO {} VALUES ({})").format(
            sql.Identifier(db.table), sql.Literal("posted")
        )
    )


async def bound_by_the_client(db, connection):
    connection.cursor_factory = psycopg.AsyncClientCursor
    await connection.execute(f"INSERT INTO {db.table} VALUES (%s)", ("posted",))
    connection.cursor_factory = psycopg.AsyncCursor


async def many_bound_by_the_client(db, connection):
    connection.cursor_factory = psycopg.AsyncClientCursor
    async with connection.cursor() as cursor:
        await cursor.executemany(f"INSERT INTO {db.table} VALUES (%s)", [("posted",)])
    connection.cursor_factory = psycopg.AsyncCursor


async def hidden_in_a_parameter(db, connection):
    connection.cursor_factory = psycopg.AsyncClientCursor
    hidden = f"; INSERT INTO {db.table} VALUES (chr(112)); --"
    await connection.execute("SELECT '%s'", (hidden,))
    connection.cursor_factory = psycopg.AsyncCursor


async def hidden_by_a_placeholder(db, connection):
    # $%s becomes $$1, which ends the quotation that it stands in.
    await connection.execute(
        f"WITH a AS (SELECT $$ $%s), b AS (INSERT INTO {db.table} VALUES ('posted')"
        " RETURNING 1) SELECT * FROM b --$$",
        ("b",),
    )


async def begun_as_text(db, connection):
    await connection.execute("BEGIN")
    await connection.execute(db.insert())
    await connection.execute("COMMIT")


async def in_two_phases(db, connection):
    await connection.tpc_begin(connection.xid(1, db.table, "b"))
    await connection.execute(db.insert())
    await connection.tpc_prepare()
    await connection.tpc_commit()


WRITES = [
    execute,
    execute_with_parameters,
    execute_many,
    stream,
    copy,
    pipeline,
    in_a_transaction,
    with_words,
    two_statements,
    bytes_of_a_statement,
    composed,
    bound_by_the_client,
    many_bound_by_the_client,
    in_two_phases,
]


async def lock_rows(db, connection):
    await connection.execute(db.select + " FOR UPDATE")


async def listen(_, connection):
    await connection.execute("LISTEN headstart_test")
    await connection.execute("UNLISTEN headstart_test")


async def notify(_, connection):
    await connection.execute("SELECT pg_notify('headstart_test', 'a')")


async def receive(_, connection):
    async for _ in connection.notifies(timeout=0.001):
        pass


async def copy_out(db, connection):
    async with connection.cursor() as cursor:
        async with cursor.copy(f"COPY ({db.select}) TO STDOUT") as copy:
            assert [row async for row in copy.rows()] == []


async def cursor_with_hold(db, connection):
    async with connection.cursor("headstart", withhold=True) as cursor:
        await cursor.execute(db.select)


async def settings(_, connection):
    await connection.set_read_only(None)


async def change_the_pool(db, _):
    await db.pool.resize(2, 3)


OTHERS = [
    hidden_in_a_parameter,
    hidden_by_a_placeholder,
    begun_as_text,
    lock_rows,
    listen,
    notify,
    receive,
    copy_out,
    cursor_with_hold,
    settings,
    change_the_pool,
]


def doing(db, way):
    async def post() -> str:
        async with db.connection() as connection:
            if way is not in_two_phases:  # it has to begin its transaction itself
                await connection.execute(db.select)
            await way(db, connection)
        return "posted"

    return tool_of(post)


@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize("way", WRITES + OTHERS)
async def test_a_way_that_is_not_known_to_read_waits(postgres_url, way, autocommit):
    if autocommit and way is in_two_phases:
        pytest.skip("psycopg has no two-phase transactions with autocommit")
    settings = {"kwargs": {"autocommit": autocommit, "application_name": "headstart"}}
    async with opened(postgres_url, "psycopg", pool=settings) as db:
        async with ToolCallSpeculator(doing(db, way), "{}"):
            await db.until_held()
            assert db.outside.rows() == []
        assert db.outside.rows() == []
        assert db.in_use == 0
        assert db.seam.counts == SeamCounts(held=1, denied=1)
        if way in OTHERS:
            return
        async with ToolCallSpeculator(doing(db, way), "{}") as guess:
            await db.until_held()
            assert await guess.adopt() == "posted"
        assert db.outside.rows() == ["posted"]
        assert db.seam.counts == SeamCounts(held=2, denied=1, flushed=1)


async def fetch(db, connection):
    return await (await connection.execute(db.select)).fetchall()


async def fetch_bytes(db, connection):
    return await (await connection.execute(db.select.encode())).fetchall()


async def fetch_composed(db, connection):
    statement = sql.SQL("SELECT word FROM {}").format(sql.Identifier(db.table))
    return await (await connection.execute(statement)).fetchall()


async def fetch_many_times(db, connection):
    async with connection.cursor() as cursor:
        statement = f"SELECT word FROM {db.table} WHERE word = %s"
        await cursor.executemany(statement, [("there",)], returning=True)
        return await cursor.fetchall()


async def fetch_bound_by_the_client(db, connection):
    connection.cursor_factory = psycopg.AsyncClientCursor
    statement = f"SELECT word FROM {db.table} WHERE word = %s"
    try:
        return await (await connection.execute(statement, ("there",))).fetchall()
    finally:
        connection.cursor_factory = psycopg.AsyncCursor


async def fetch_raw(db, connection):
    connection.cursor_factory = psycopg.AsyncRawCursor
    try:
        cursor = connection.cursor()
        statement = f"SELECT word FROM {db.table} WHERE word = $1"
        return await (await cursor.execute(statement, ("there",))).fetchall()
    finally:
        connection.cursor_factory = psycopg.AsyncCursor


async def read_a_stream(db, connection):
    async with connection.cursor() as cursor:
        return [row async for row in cursor.stream(db.select)]


async def read_a_part_of_a_stream(db, connection):
    statement = f"SELECT word FROM {db.table}, generate_series(1, 10000)"
    async with connection.cursor() as cursor:
        async with contextlib.aclosing(cursor.stream(statement)) as rows:
            return [await anext(rows)]


async def read_a_cursor_of_the_server(db, connection):
    async with connection.cursor("headstart", scrollable=True) as cursor:
        await cursor.execute(db.select)
        first = [await cursor.fetchone()]
        assert await cursor.fetchmany(1) == await cursor.fetchall() == []
        await cursor.scroll(0, "absolute")
        assert [row async for row in cursor] == first
        return first


async def read_in_transactions(db, connection):
    async with connection.transaction(), connection.transaction(force_rollback=True):
        return await fetch(db, connection)


async def read_and_end(db, connection):
    await fetch(db, connection)
    await connection.commit()
    rows = await fetch(db, connection)
    await connection.rollback()
    await connection.cancel_safe()
    connection.cancel()
    return rows


async def ask_for_prepared(db, connection):
    assert await connection.tpc_recover() == []
    return await fetch(db, connection)


READS = [
    fetch,
    fetch_bytes,
    fetch_composed,
    fetch_many_times,
    fetch_bound_by_the_client,
    fetch_raw,
    read_a_stream,
    read_a_part_of_a_stream,
    read_a_cursor_of_the_server,
    read_in_transactions,
    read_and_end,
    ask_for_prepared,
]


@pytest.mark.parametrize("way", READS)
async def test_a_way_that_is_known_to_read_does_not_wait(postgres_url, way):
    async with opened(postgres_url, "psycopg") as db:
        backends = db.backends()
        db.outside.run(db.insert("there"))

        async def look() -> list[str]:
            async with db.connection() as connection:
                return [word for (word,) in await way(db, connection)]

        async with ToolCallSpeculator(tool_of(look), "{}") as guess:
            assert await guess.wait() == ["there"]
        assert await look() == ["there"]
        assert db.seam.counts == SeamCounts()
        assert db.in_use == 0
        assert db.backends() == backends


async def by_the_raw_connection(_, connection):
    connection.pgconn.exec_(b"SELECT 1")


async def by_a_generator(_, connection):
    await connection.wait(psycopg.generators.execute(None))


async def by_a_cursor_of_its_class(db, connection):
    await psycopg.AsyncCursor(connection).execute(db.select)


async def by_a_method_without_an_underscore_too_few(_, connection):
    await connection.wait(connection._exec_command("SELECT 1"))


PAST = [
    by_the_raw_connection,
    by_a_generator,
    by_a_cursor_of_its_class,
    by_a_method_without_an_underscore_too_few,
]


@pytest.mark.parametrize("way", PAST)
async def test_a_way_past_the_rules_gives_the_call_up(postgres_url, way):
    async with opened(postgres_url, "psycopg") as db:
        async with ToolCallSpeculator(doing(db, way), "{}") as guess:
            await guess.wait_until_ended()
            assert "could not be held" in guess.barrier.reason
        assert db.seam.counts == SeamCounts(refused=1)
        assert db.in_use == 0
        async with db.connection() as connection:  # as usual outside of calls
            assert connection.pgconn.exec_(b"SELECT 1").ntuples == 1
            await psycopg.AsyncCursor(connection).execute(db.select)


async def test_what_a_read_started_may_not_send(postgres_url):
    async with opened(postgres_url, "psycopg", max_hold=0.3) as db:
        tasks, errors = [], []

        async def look() -> str:
            async with db.connection() as connection:

                async def write() -> None:
                    try:
                        await connection.execute(db.insert())
                        await connection.commit()
                    except WriteDenied as denial:
                        errors.append(denial)

                def on_notice(_) -> None:  # while a statement is sent
                    tasks.append(asyncio.ensure_future(write()))

                connection.add_notice_handler(on_notice)
                await connection.execute(f"SELECT word FROM {db.table}_warns")
                await asyncio.wait(tasks)
            return "seen"

        db.outside.run(
            f"CREATE FUNCTION {db.table}_warn() RETURNS text LANGUAGE plpgsql AS"
            " 'BEGIN RAISE NOTICE ''look''; RETURN 1; END'"
        )
        db.outside.run(
            f"CREATE VIEW {db.table}_warns AS SELECT {db.table}_warn() AS word"
        )
        try:
            async with ToolCallSpeculator(tool_of(look), "{}") as guess:
                await guess.wait_until_ended()
            assert len(errors) == 1
            assert db.outside.rows() == []
        finally:
            db.outside.run(f"DROP FUNCTION {db.table}_warn CASCADE")


# In threads


def execute_blocking(db, connection):
    connection.execute(db.insert())


def execute_many_blocking(db, connection):
    with connection.cursor() as cursor:
        cursor.executemany(f"INSERT INTO {db.table} VALUES (%s)", [("posted",)])


def stream_blocking(db, connection):
    with connection.cursor() as cursor:
        assert list(cursor.stream(db.insert() + " RETURNING 1"))


def copy_blocking(db, connection):
    with (
        connection.cursor() as cursor,
        cursor.copy(f"COPY {db.table} FROM STDIN") as it,
    ):
        it.write_row(("posted",))


def pipeline_blocking(db, connection):
    with connection.pipeline():
        connection.execute(db.insert())


def nested_blocking(db, connection):
    with connection.transaction(), connection.transaction():
        connection.execute(db.insert())


def settings_blocking(db, connection):
    connection.rollback()
    connection.autocommit = True
    connection.autocommit = False
    connection.execute(db.insert())


def receive_blocking(db, connection):
    assert list(connection.notifies(timeout=0.001)) == []
    connection.execute(db.insert())


@pytest.mark.parametrize(
    "way",
    [
        execute_blocking,
        execute_many_blocking,
        stream_blocking,
        copy_blocking,
        pipeline_blocking,
        nested_blocking,
        settings_blocking,
        receive_blocking,
    ],
)
async def test_a_way_of_a_blocking_connection_waits_in_its_thread(postgres_url, way):
    async with opened(postgres_url, "psycopg-sync") as db:

        def post() -> str:
            with db.pool.connection() as connection:
                connection.execute(db.select)
                way(db, connection)
            return "posted"

        async with ToolCallSpeculator(tool_of(post), "{}") as guess:
            await db.until_held()
            assert db.outside.rows() == []
            assert await guess.adopt() == "posted"
        assert db.outside.rows() == ["posted"]
        async with ToolCallSpeculator(tool_of(post), "{}"):
            await db.until_held()
        await db.until_returned()
        assert db.outside.rows() == ["posted"]
        assert db.seam.counts == SeamCounts(held=2, flushed=1, denied=1)
        assert db.in_transactions() == 0


async def test_a_blocking_connection_reads_at_once(postgres_url):
    async with opened(postgres_url, "psycopg-sync") as db:
        db.outside.run(db.insert("there"))

        def look() -> int:
            with db.pool.connection() as connection:
                found = connection.execute(db.select).fetchall()
                connection.commit()
                with connection.cursor("headstart") as cursor:
                    cursor.execute(db.select)
                    assert list(cursor) == found
                with connection.transaction(), connection.cursor() as cursor:
                    assert list(cursor.stream(db.select)) == found
                    connection.cancel()
                connection.rollback()
            return len(found)

        async with ToolCallSpeculator(tool_of(look), "{}") as guess:
            assert await guess.wait() == 1
        assert db.seam.counts == SeamCounts()


async def test_a_blocking_connection_is_refused_past_the_rules(postgres_url):
    async with opened(postgres_url, "psycopg-sync") as db:

        def look() -> str:
            with db.pool.connection() as connection:
                psycopg.Cursor(connection).execute(db.select)
            return "seen"

        async with ToolCallSpeculator(tool_of(look), "{}") as guess:
            await guess.wait_until_ended()
            assert "past the seam" in guess.barrier.reason
        await db.until_returned()


# Pools


async def test_a_pool_without_a_limit_of_its_own_is_held(postgres_url):
    pool = psycopg_pool.AsyncNullConnectionPool(postgres_url, open=False, max_size=0)
    held = hold_statements(pool)
    assert held.connections == 5

    async def post() -> str:
        async with pool.connection() as connection:
            await connection.execute("SELECT 1")
            await connection.execute("CREATE TABLE headstart_never (a int)")
        return "made"

    async with pool:
        async with ToolCallSpeculator(tool_of(post), "{}"):
            await until(lambda: held.seam.counts.holding)
        assert held._places.free == 5
        assert pool.get_stats()["pool_size"] == 0


async def test_a_pool_that_was_open_before_is_held(postgres_url):
    async with psycopg_pool.AsyncConnectionPool(
        postgres_url, open=False, min_size=2
    ) as pool:
        await pool.wait()
        held = hold_statements(pool)

        async def post() -> str:
            async with pool.connection() as connection:
                await connection.execute("CREATE TABLE headstart_never (a int)")
            return "made"

        async with ToolCallSpeculator(tool_of(post), "{}"):
            await until(lambda: held.seam.counts.holding)


async def test_what_a_pool_does_for_itself_is_not_held(postgres_url):
    done = []

    async def configure(connection):
        await connection.set_autocommit(True)
        done.append("configure")

    async def check(connection):
        await connection.execute("SELECT pg_sleep(0)")
        done.append("check")

    async def reset(connection):
        await connection.execute("DISCARD ALL")
        done.append("reset")

    settings = {"configure": configure, "check": check, "reset": reset}
    async with opened(postgres_url, "psycopg", size=2, pool=settings) as db:
        for _ in range(2):
            async with ToolCallSpeculator(tool_of(db.look), "{}") as guess:
                assert await guess.wait() == []
            await db.until_returned()
        assert done == ["configure"] * 2 + ["check", "reset"] * 2
        assert db.seam.counts == SeamCounts()


# Nothing is forgotten

ERRORS = {"Warning", *(name for name in dir(psycopg) if name.endswith("Error"))}
LOCAL = {
    psycopg.AsyncConnection: {
        *ERRORS,
        # Of this side of the wire.
        *("adapters", "broken", "closed", "connection", "fileno", "info", "xid"),
        *("add_notice_handler", "remove_notice_handler"),
        *("add_notify_handler", "remove_notify_handler"),
        *("prepare_threshold", "prepared_max"),
        # Properties: setting them calls set_...
        *("autocommit", "deferrable", "isolation_level", "read_only"),
        # A new connection, that nobody holds; and what consists of others.
        *("connect", "execute", "tpc_recover", "__aenter__", "__aexit__"),
    },
    psycopg.AsyncCursor: {
        *("adapters", "arraysize", "closed", "connection", "description", "format"),
        *("nextset", "pgresult", "results", "row_factory", "rowcount", "rownumber"),
        *("set_result", "setinputsizes", "setoutputsize", "statusmessage"),
        # Of rows that were received, and otherwise refused by wait().
        *("close", "fetchall", "fetchmany", "fetchone", "scroll"),
        *("__aenter__", "__aexit__", "__aiter__", "__anext__"),
    },
    psycopg_pool.AsyncConnectionPool: {
        *("check_connection", "closed", "connection", "get_stats", "pop_stats"),
        *("max_size", "min_size", "reconnect_failed", "__aenter__", "__aexit__"),
        # How a pool works inside.
        *("run_task", "schedule_task", "worker"),
    },
}
LOCAL[psycopg.Connection] = LOCAL[psycopg.AsyncConnection]
LOCAL[psycopg.Cursor] = LOCAL[psycopg.AsyncCursor]
LOCAL[psycopg.AsyncClientCursor] = LOCAL[psycopg.AsyncCursor] | {"mogrify"}
LOCAL[psycopg.AsyncRawCursor] = LOCAL[psycopg.AsyncCursor]
LOCAL[psycopg.AsyncServerCursor] = LOCAL[psycopg.AsyncCursor] - set(SERVER_CURSOR) | {
    *("itersize", "name", "scrollable", "withhold")
}
LOCAL[psycopg.ServerCursor] = LOCAL[psycopg.AsyncServerCursor]
LOCAL[psycopg_pool.ConnectionPool] = LOCAL[psycopg_pool.AsyncConnectionPool]
LOCAL[psycopg.AsyncTransaction] = {
    *("Status", "connection", "savepoint_name"),
    *("__aenter__", "__aexit__"),  # by transaction(), and otherwise refused by wait()
}
RULES = {
    psycopg.AsyncConnection: {*CONNECTION, "cursor", "wait"},
    psycopg.AsyncCursor: {*CURSOR},
    psycopg.AsyncServerCursor: {*SERVER_CURSOR},
    psycopg_pool.AsyncConnectionPool: {*POOL, "getconn", "putconn"},
    psycopg.AsyncTransaction: set(),
}
RULES[psycopg.Connection] = RULES[psycopg.AsyncConnection]
RULES[psycopg.Cursor] = RULES[psycopg.AsyncCursor]
RULES[psycopg.AsyncClientCursor] = RULES[psycopg.AsyncCursor]
RULES[psycopg.AsyncRawCursor] = RULES[psycopg.AsyncCursor]
RULES[psycopg.ServerCursor] = RULES[psycopg.AsyncServerCursor]
RULES[psycopg_pool.ConnectionPool] = RULES[psycopg_pool.AsyncConnectionPool]

SPECIAL = {
    *("__aenter__", "__aexit__", "__aiter__", "__anext__", "__await__"),
    *("__enter__", "__exit__", "__iter__", "__next__", "__call__"),
}
SAME = {
    "__enter__": "__aenter__",
    "__exit__": "__aexit__",
    "__iter__": "__aiter__",
    "__next__": "__anext__",
}


@pytest.mark.parametrize("kind", LOCAL)
def test_there_is_a_rule_for_each_method_of(kind):
    public = {
        SAME.get(name, name)
        for name in dir(kind)
        if not name.startswith("_") or name in SPECIAL
    }
    assert public == LOCAL[kind] | RULES[kind] & public
    assert not LOCAL[kind] & RULES[kind]


async def test_each_rule_has_its_method(postgres_url):
    for driver in ("psycopg", "psycopg-sync"):
        async with opened(postgres_url, driver) as db:
            if driver == "psycopg":
                async with db.connection() as connection:
                    named = connection.cursor("headstart")
                    things = [db.pool, connection, connection.cursor(), named]
                    await named.close()
            else:
                with db.connection() as connection:
                    named = connection.cursor("headstart")
                    things = [db.pool, connection, connection.cursor(), named]
                    named.close()
            for thing in things:
                kind = type(thing).__base__
                made = {SAME.get(name, name) for name in vars(type(thing))}
                assert made >= RULES[kind]
