"""Statements of psycopg by two equal pools, one of which is held.

PostgreSQL is started without fsync: the disk would hide what the seam costs. The sync
pools work in the thread of the event loop, as nothing else runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg_pool import AsyncConnectionPool, ConnectionPool
from tests.servers import NoServerError, open_postgres

from headstart.effects.psycopg import hold_statements

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

TABLE = "CREATE TABLE IF NOT EXISTS headstart_bench (id SERIAL PRIMARY KEY, word TEXT)"
INSERT = "INSERT INTO headstart_bench (word) VALUES (%s)"
SELECT = "SELECT word FROM headstart_bench WHERE id = %s"


def work(pool: AsyncConnectionPool) -> Any:
    async def run() -> None:
        async with pool.connection() as connection:
            await connection.execute(INSERT, ("a",))
            await (await connection.execute(SELECT, (1,))).fetchone()

    return run


def work_blocking(pool: ConnectionPool) -> Any:
    async def run() -> None:
        with pool.connection() as connection:
            connection.execute(INSERT, ("a",))
            connection.execute(SELECT, (1,)).fetchone()

    return run


async def open_pairs(stack: AsyncExitStack) -> dict[str, Any]:
    try:
        url = stack.enter_context(open_postgres())
    except NoServerError as error:
        print(f"{error}: left out.")
        return {}
    bare, held = [
        await stack.enter_async_context(
            AsyncConnectionPool(url, open=False, min_size=2, max_size=2)
        )
        for _ in range(2)
    ]
    bare_sync, held_sync = [
        stack.enter_context(ConnectionPool(url, open=False, min_size=2, max_size=2))
        for _ in range(2)
    ]
    hold_statements(held)
    hold_statements(held_sync)
    async with bare.connection() as connection:
        await connection.execute(TABLE)
    return {
        "a transaction": (work(bare), work(held)),
        "a transaction, blocking": (work_blocking(bare_sync), work_blocking(held_sync)),
    }
