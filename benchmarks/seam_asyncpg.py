"""Statements of asyncpg by two equal pools, one of which is held.

PostgreSQL is started without fsync: the disk would hide what the seam costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg
from tests.servers import NoServerError, open_postgres

from headstart.effects.asyncpg import hold_statements

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

TABLE = "CREATE TABLE IF NOT EXISTS headstart_bench (id SERIAL PRIMARY KEY, word TEXT)"
INSERT = "INSERT INTO headstart_bench (word) VALUES ($1)"
SELECT = "SELECT word FROM headstart_bench WHERE id = $1"


async def open_pairs(stack: AsyncExitStack) -> dict[str, Any]:
    try:
        url = stack.enter_context(open_postgres())
    except NoServerError as error:
        print(f"{error}: left out.")
        return {}
    bare, held = [
        await stack.enter_async_context(
            asyncpg.create_pool(url, min_size=2, max_size=2)
        )
        for _ in range(2)
    ]
    hold_statements(held)
    await bare.execute(TABLE)

    def read(pool: asyncpg.Pool) -> Any:
        return lambda: pool.fetchval(SELECT, 1)

    def transaction(pool: asyncpg.Pool) -> Any:
        async def run() -> None:
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute(INSERT, "a")
                await connection.fetchval(SELECT, 1)

        return run

    return {
        "SELECT by a pool": (read(bare), read(held)),
        "a transaction": (transaction(bare), transaction(held)),
    }
