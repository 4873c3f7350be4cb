"""A small transaction on two equal engines, one of which holds commits.

An INSERT and a SELECT by key, then COMMIT. PostgreSQL is started without fsync, and SQLite
is a file with `synchronous=OFF`: the disk would hide what the seam costs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from tests.servers import NoServerError, open_postgres

from headstart.effects.sqlalchemy import hold_commits

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

INSERT = text("INSERT INTO headstart_bench (word) VALUES (:word)")
SELECT = text("SELECT word FROM headstart_bench WHERE id = :id")


def sqlite_settings(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute("PRAGMA synchronous = off")


async def open_pair(stack: AsyncExitStack, url: str, key: str) -> tuple[Any, Any]:
    async def engine() -> AsyncEngine:
        made = create_async_engine(url, pool_size=2, max_overflow=0)
        if "sqlite" in url:
            event.listen(made.sync_engine, "connect", sqlite_settings)
        stack.push_async_callback(made.dispose)
        return made

    def work(engine: AsyncEngine) -> Any:
        async def transaction() -> None:
            async with engine.begin() as connection:
                await connection.execute(INSERT, {"word": "a"})
                await connection.execute(SELECT, {"id": 1})

        return transaction

    bare, held = await engine(), await engine()
    async with bare.begin() as connection:
        await connection.execute(text("DROP TABLE IF EXISTS headstart_bench"))
        await connection.execute(
            text(f"CREATE TABLE headstart_bench (id {key}, word TEXT)")
        )
    hold_commits(held)
    return work(bare), work(held)


async def open_pairs(stack: AsyncExitStack) -> dict[str, Any]:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    key = "INTEGER PRIMARY KEY"
    file = f"sqlite+aiosqlite:///{folder}/file.db"
    pairs = {"SQLite, aiosqlite": await open_pair(stack, file, key)}
    try:
        url = stack.enter_context(open_postgres())
    except NoServerError as error:
        print(f"{error}: left out.")
        return pairs
    for driver in ("asyncpg", "psycopg"):
        named = url.replace("postgresql:", f"postgresql+{driver}:", 1)
        serial = "SERIAL PRIMARY KEY"
        pairs[f"PostgreSQL, {driver}"] = await open_pair(stack, named, serial)
    return pairs
