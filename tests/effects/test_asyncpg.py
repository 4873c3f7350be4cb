"""What asyncpg offers: each of its ways to a server waits, is known to read, or is refused."""

import asyncpg
import pytest
from asyncpg.connection import Connection
from asyncpg.cursor import Cursor, CursorFactory, CursorIterator
from asyncpg.pool import Pool, PoolAcquireContext, PoolConnectionProxy
from asyncpg.prepared_stmt import PreparedStatement
from asyncpg.transaction import Transaction

from headstart import ToolCallSpeculator
from headstart.effects import SeamCounts
from headstart.effects.asyncpg import (
    CONNECTION,
    CURSOR,
    ITERATOR,
    POOL,
    POOL_STATEMENTS,
    PREPARED,
    TRANSACTION,
    hold_statements,
)

from .drivers import opened
from .scene import tool_of, until

pytestmark = pytest.mark.real_time


async def execute(db, connection):
    await connection.execute(db.insert())


async def execute_with_arguments(db, connection):
    await connection.execute(f"INSERT INTO {db.table} VALUES ($1)", "posted")


async def execute_many(db, connection):
    await connection.executemany(f"INSERT INTO {db.table} VALUES ($1)", [("posted",)])


async def fetch(db, connection):
    assert await connection.fetch(db.insert() + " RETURNING 1")


async def fetch_many(db, connection):
    statement = f"INSERT INTO {db.table} VALUES ($1) RETURNING 1"
    assert await connection.fetchmany(statement, [("posted",)])


async def fetch_a_row(db, connection):
    assert await connection.fetchrow(db.insert() + " RETURNING 1")


async def fetch_a_value(db, connection):
    assert await connection.fetchval(query=db.insert() + " RETURNING 1")


async def prepare(db, connection):
    statement = await connection.prepare(db.insert() + " RETURNING 1")
    assert await statement.fetch()


async def copy_records(db, connection):
    await connection.copy_records_to_table(db.table, records=[("posted",)])


async def copy_to_table(db, connection):
    async def source():
        yield b"posted\n"

    await connection.copy_to_table(db.table, source=source())


async def iterate(db, connection):
    async with connection.transaction():
        statement = db.insert() + " RETURNING 1"
        assert [row async for row in connection.cursor(statement)]


async def open_a_cursor(db, connection):
    async with connection.transaction():
        cursor = await connection.cursor(db.insert() + " RETURNING 1")
        assert await cursor.fetchrow()


async def in_a_transaction(db, connection):
    async with connection.transaction(), connection.transaction():
        await connection.execute(db.insert())


async def in_a_transaction_by_hand(db, connection):
    transaction = connection.transaction(isolation="serializable")
    await transaction.start()
    await connection.execute(db.insert())
    await transaction.commit()


async def with_words(db, connection):
    await connection.fetch(
        f"WITH a AS (INSERT INTO {db.table} VALUES ('posted') RETURNING 1)"
        " SELECT * FROM a"
    )


async def two_statements(db, connection):
    await connection.execute(f"{db.select}; {db.insert()}")


async def by_the_pool(db, _):
    await db.pool.execute(db.insert())


async def many_by_the_pool(db, _):
    await db.pool.executemany(f"INSERT INTO {db.table} VALUES ($1)", [("posted",)])


async def copy_by_the_pool(db, _):
    await db.pool.copy_records_to_table(db.table, records=[("posted",)])


WRITES = [
    execute,
    execute_with_arguments,
    execute_many,
    fetch,
    fetch_many,
    fetch_a_row,
    fetch_a_value,
    prepare,
    copy_records,
    copy_to_table,
    iterate,
    open_a_cursor,
    in_a_transaction,
    in_a_transaction_by_hand,
    with_words,
    two_statements,
    by_the_pool,
    many_by_the_pool,
    copy_by_the_pool,
]


def ignore(*_):
    pass


async def lock_rows(db, connection):
    await connection.fetch(db.select + " FOR UPDATE")


async def listen(_, connection):
    await connection.add_listener("headstart_test", ignore)


async def stop_listening(_, connection):
    await connection.remove_listener("headstart_test", ignore)


async def begin_as_text(_, connection):
    await connection.execute("BEGIN")


async def copy_out(db, connection):
    await connection.copy_from_query(db.select, output=ignore)


async def copy_a_table_out(db, connection):
    await connection.copy_from_table(db.table, output=ignore)


async def reset(_, connection):
    await connection.reset()


async def set_codec(_, connection):
    await connection.set_type_codec(
        "json", encoder=str, decoder=str, schema="pg_catalog"
    )


async def set_builtin_codec(_, connection):
    await connection.set_builtin_type_codec(
        "text", codec_name="text", schema="pg_catalog"
    )


async def reset_codec(_, connection):
    await connection.reset_type_codec("json", schema="pg_catalog")


async def reload(_, connection):
    await connection.reload_schema_state()


async def explain(db, connection):
    await (await connection.prepare(db.select)).explain(analyze=True)


async def close_the_pool(db, _):
    await db.pool.close()


async def expire_the_pool(db, _):
    await db.pool.expire_connections()


OTHERS = [
    lock_rows,
    listen,
    stop_listening,
    begin_as_text,
    copy_out,
    copy_a_table_out,
    reset,
    set_codec,
    set_builtin_codec,
    reset_codec,
    reload,
    explain,
    close_the_pool,
    expire_the_pool,
]


def doing(db, way):
    async def post() -> str:
        async with db.connection() as connection:
            await connection.fetch(db.select)
            await way(db, connection)
        return "posted"

    return tool_of(post)


@pytest.mark.parametrize("way", WRITES + OTHERS)
async def test_a_way_that_is_not_known_to_read_waits(postgres_url, way):
    async with opened(postgres_url, "asyncpg") as db:
        backends = db.backends()
        async with ToolCallSpeculator(doing(db, way), "{}"):
            await db.until_held()
            assert db.outside.rows() == []
        assert db.outside.rows() == []
        assert db.in_use == 0
        assert db.seam.counts == SeamCounts(held=1, denied=1)
        assert db.backends() == backends
        if way in OTHERS:
            return
        async with ToolCallSpeculator(doing(db, way), "{}") as guess:
            await db.until_held()
            assert await guess.adopt() == "posted"
        assert db.outside.rows() == ["posted"]
        assert db.seam.counts == SeamCounts(held=2, denied=1, flushed=1)


async def read(db, connection):
    return await connection.fetch(db.select)


async def read_a_row(db, connection):
    return [await connection.fetchrow(db.select)]


async def read_a_value(db, connection):
    return [(await connection.fetchval(db.select),)]


async def read_by_execute(db, connection):
    assert await connection.execute(db.select) == "SELECT 1"
    return await read(db, connection)


async def read_many(db, connection):
    statement = f"SELECT word FROM {db.table} WHERE word = $1"
    await connection.executemany(statement, [("there",)])
    return await connection.fetchmany(statement, [("there",)])


async def read_prepared(db, connection):
    statement = await connection.prepare(db.select)
    assert await statement.fetchval() == "there"
    async with connection.transaction():
        assert [row async for row in statement.cursor()] == [await statement.fetchrow()]
    return await statement.fetch()


async def read_by_a_cursor(db, connection):
    async with connection.transaction():
        cursor = await connection.cursor(db.select)
        assert await cursor.forward(0 + 1) == 1
        assert await cursor.fetch(1) == []
        cursor = await connection.cursor(db.select)
        row = await cursor.fetchrow()
        assert [each async for each in connection.cursor(db.select)] == [row]
        return [row]


async def read_in_transactions(db, connection):
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        transaction = connection.transaction()
        await transaction.start()
        rows = await read(db, connection)
        await transaction.rollback()
        return rows


async def read_by_the_pool(db, _):
    assert await db.pool.fetchval(db.select) == "there"
    return await db.pool.fetch(db.select)


async def read_a_type_of_ones_own(db, connection):
    return await connection.fetch(f"SELECT word::{db.table}_word FROM {db.table}")


READS = [
    read,
    read_a_row,
    read_a_value,
    read_by_execute,
    read_many,
    read_prepared,
    read_by_a_cursor,
    read_in_transactions,
    read_by_the_pool,
    read_a_type_of_ones_own,
]


@pytest.mark.parametrize("way", READS)
async def test_a_way_that_is_known_to_read_does_not_wait(postgres_url, way):
    async with opened(postgres_url, "asyncpg", size=4) as db:
        backends = db.backends()
        db.outside.run(db.insert("there"))
        db.outside.run(f"CREATE DOMAIN {db.table}_word AS varchar")

        async def look() -> list[str]:
            async with db.connection() as connection:
                return [word for (word,) in await way(db, connection)]

        try:
            async with ToolCallSpeculator(tool_of(look), "{}") as guess:
                assert await guess.wait() == ["there"]
            assert await look() == ["there"]
        finally:
            db.outside.run(f"DROP DOMAIN {db.table}_word")
        assert db.seam.counts == SeamCounts()
        assert db.in_use == 0
        assert db.backends() == backends


async def by_the_protocol(_, connection):
    await connection._protocol.query("SELECT 1", None)


async def by_a_statement_of_its_class(db, connection):
    state = await connection._get_statement(db.select, None)
    await PreparedStatement(connection._con, db.select, state).fetch()


async def by_a_method_with_an_underscore(db, connection):
    await connection._execute(db.select, (), 0, None)


async def by_terminating_the_pool(db, _):
    db.pool.terminate()


async def by_connecting_elsewhere(db, _):
    db.pool.set_connect_args(db.url)


PAST = [
    by_the_protocol,
    by_a_statement_of_its_class,
    by_a_method_with_an_underscore,
    by_terminating_the_pool,
    by_connecting_elsewhere,
]


@pytest.mark.parametrize("way", PAST)
async def test_a_way_past_the_rules_gives_the_call_up(postgres_url, way):
    async with opened(postgres_url, "asyncpg") as db:
        async with ToolCallSpeculator(doing(db, way), "{}") as guess:
            await guess.wait_until_ended()
            assert "could not be held" in guess.barrier.reason
        assert db.seam.counts == SeamCounts(refused=1)
        assert db.in_use == 0
        async with db.connection() as connection:  # as usual outside of calls
            assert await connection._execute("SELECT 1", (), 0, None)


async def test_a_call_may_end_its_own_connection(postgres_url):
    async with opened(postgres_url, "asyncpg") as db:

        async def look() -> list[str]:
            connection = await db.pool.acquire()
            await connection.fetch(db.select)
            connection.terminate()
            await db.pool.release(connection)
            async with db.pool.acquire() as connection:
                await connection.close()
            return await db.look()

        async with ToolCallSpeculator(tool_of(look), "{}") as guess:
            assert await guess.wait() == []
        assert db.held._places.free == 1
        assert db.seam.counts == SeamCounts()


async def test_a_pool_that_was_open_before_is_held(postgres_url):
    async with asyncpg.create_pool(postgres_url, min_size=2, max_size=2) as pool:
        held = hold_statements(pool)

        async def post() -> str:
            async with pool.acquire() as connection:
                await connection.execute("CREATE TABLE headstart_never (a int)")
            return "made"

        async with ToolCallSpeculator(tool_of(post), "{}"):
            await until(lambda: held.seam.counts.holding)


async def test_a_statement_of_a_pool_waits_without_a_connection(postgres_url):
    async with opened(postgres_url, "asyncpg") as db:

        async def post() -> str:
            return await db.pool.execute(db.insert())

        async with ToolCallSpeculator(tool_of(post), "{}") as guess:
            await db.until_held()
            assert db.in_use == 0
            assert await guess.adopt() == "INSERT 0 1"
        assert db.outside.rows() == ["posted"]


async def test_what_a_pool_does_for_itself_is_not_held(postgres_url):
    done = []

    async def init(connection):
        await connection.set_type_codec(
            "json", encoder=str, decoder=str, schema="pg_catalog"
        )
        done.append("init")

    async def setup(connection):
        await connection.execute("SET application_name = 'headstart'")
        done.append("setup")

    async def give_back(connection):
        await connection.execute("UNLISTEN *")
        done.append("reset")

    settings = {"init": init, "setup": setup, "reset": give_back}
    async with opened(postgres_url, "asyncpg", size=2, pool=settings) as db:
        for _ in range(2):
            async with ToolCallSpeculator(tool_of(db.look), "{}") as guess:
                assert await guess.wait() == []
        assert done == ["init"] * 2 + ["setup", "reset"] * 2
        assert db.seam.counts == SeamCounts()


# Nothing is forgotten

LOCAL = {
    Connection: {
        *("add_log_listener", "remove_log_listener", "query_logger"),
        *("add_query_logger", "remove_query_logger"),
        *("add_termination_listener", "remove_termination_listener"),
        *("get_reset_query", "get_server_pid", "get_server_version", "get_settings"),
        *("is_closed", "is_in_transaction"),
    },
    Pool: {
        *("get_idle_size", "get_init_size", "get_max_size", "get_min_size"),
        *("get_size", "is_closing", "acquire"),  # by _acquire
        *("__aenter__", "__aexit__", "__await__"),
    },
    PreparedStatement: {
        *("explain", "get_attributes", "get_name", "get_parameters", "get_query"),
        "get_statusmsg",
    },
    Cursor: set(),
    CursorIterator: {"__aiter__"},
    CursorFactory: set(),
    Transaction: {"__aenter__"},  # by start()
    PoolAcquireContext: {
        *("connection", "done", "pool", "timeout"),
        *("__aenter__", "__aexit__", "__await__"),  # by _acquire and release()
    },
}
RULES = {
    Connection: {*CONNECTION, "transaction", "cursor"},
    Pool: {*POOL, *POOL_STATEMENTS, "release"},
    PreparedStatement: {*PREPARED, "cursor"},
    Cursor: {*CURSOR},
    CursorIterator: {*ITERATOR},
    CursorFactory: {"__aiter__", "__await__"},
    Transaction: {*TRANSACTION},
    PoolAcquireContext: set(),
}
LOCAL[PoolConnectionProxy] = LOCAL[Connection]
RULES[PoolConnectionProxy] = RULES[Connection]

SPECIAL = {"__aenter__", "__aexit__", "__aiter__", "__anext__", "__await__", "__call__"}


@pytest.mark.parametrize("kind", LOCAL)
def test_there_is_a_rule_for_each_method_of(kind):
    public = {name for name in dir(kind) if not name.startswith("_") or name in SPECIAL}
    assert public == LOCAL[kind] | RULES[kind] & public
    assert not LOCAL[kind] & RULES[kind]


async def test_each_rule_has_its_method(postgres_url):
    async with opened(postgres_url, "asyncpg") as db, db.connection() as connection:
        async with connection.transaction():
            statement = await connection.prepare(db.select)
            things = [
                *(db.pool, connection._con, connection.transaction(), statement),
                *(
                    statement.cursor(),
                    aiter(statement.cursor()),
                    await statement.cursor(),
                ),
            ]
        for thing in things:
            assert {*vars(type(thing))} >= RULES[type(thing).__base__]
