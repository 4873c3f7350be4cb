"""Drivers of PostgreSQL used directly: a pool whose statements are held."""

from __future__ import annotations

import contextlib
import itertools
import os

import anyio
import asyncpg
import psycopg
import psycopg_pool

from headstart.effects import asyncpg as held_asyncpg, psycopg as held_psycopg

from .scene import Outside, until

_numbers = itertools.count(1)

ASYNC = ["psycopg", "asyncpg"]


class Database:
    """A pool that is held, a table with a row, and somebody outside."""

    def __init__(self, driver, pool, outside, held, name) -> None:
        self.driver, self.pool, self.outside, self.held = driver, pool, outside, held
        self.name = name
        self.table = outside.table
        self.select = f"SELECT word FROM {self.table} ORDER BY word"
        self.url = outside.url

    @property
    def seam(self):
        return self.held.seam

    def insert(self, word: str = "posted") -> str:
        return f"INSERT INTO {self.table} VALUES ('{word}')"

    def connection(self):
        if self.driver == "asyncpg":
            return self.pool.acquire()
        return self.pool.connection()

    async def rows(self, connection, statement: str | None = None) -> list[str]:
        if self.driver == "asyncpg":
            found = await connection.fetch(statement or self.select)
        else:
            found = await (
                await connection.execute(statement or self.select)
            ).fetchall()
        return [word for (word,) in found]

    async def look(self) -> list[str]:
        async with self.connection() as connection, connection.transaction():
            return await self.rows(connection)

    async def post(self, word: str = "posted") -> list[str]:
        """What most tools do: read, write, read it back, commit."""
        async with self.connection() as connection, connection.transaction():
            await self.rows(connection)
            await connection.execute(self.insert(word))
            return await self.rows(connection)

    def post_blocking(self, word: str = "posted") -> list[str]:
        with self.pool.connection() as connection, connection.transaction():
            connection.execute(self.select)
            connection.execute(self.insert(word))
            return [word for (word,) in connection.execute(self.select)]

    def look_blocking(self) -> list[str]:
        with self.pool.connection() as connection:
            return [word for (word,) in connection.execute(self.select)]

    async def connect(self):
        """A connection of one's own, which is not held."""
        if self.driver == "asyncpg":
            return await asyncpg.connect(
                self.url, server_settings={"application_name": self.name}
            )
        return await psycopg.AsyncConnection.connect(
            self.url, application_name=self.name
        )

    def hold(self, target, **options):
        module = held_asyncpg if self.driver == "asyncpg" else held_psycopg
        return module.hold_statements(target, **options)

    async def until_held(self, count: int = 1) -> None:
        with anyio.fail_after(15):
            await until(lambda: self.seam.counts.holding >= count)

    async def until_returned(self) -> None:
        with anyio.fail_after(5):
            await until(lambda: self.in_use == 0)

    @property
    def in_use(self) -> int:
        if self.driver == "asyncpg":
            return self.pool.get_size() - self.pool.get_idle_size()
        stats = self.pool.get_stats()
        return stats["pool_size"] - stats["pool_available"]

    def backends(self) -> set[int]:
        """The server's processes that serve us."""
        found = self.outside.run(
            "SELECT pid FROM pg_stat_activity WHERE application_name = '"
            + self.name
            + "'"
        )
        return {pid for (pid,) in found}

    def in_transactions(self) -> int:
        return self.outside.run(
            "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%'"
            f" AND application_name = '{self.name}'"
        )[0][0]


@contextlib.asynccontextmanager
async def opened(url: str, driver: str, *, size: int = 3, pool=None, **options):
    """A database at `url` by `asyncpg`, `psycopg` or `psycopg-sync`."""
    table = f"headstart_{driver.replace('-', '_')}_{os.getpid()}_{next(_numbers)}"
    outside = Outside(url, table)
    settings = {"min_size": size, "max_size": size, **(pool or {})}
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(outside.close)
        if driver == "asyncpg":
            made = asyncpg.create_pool(
                url, server_settings={"application_name": table}, **settings
            )
            held = held_asyncpg.hold_statements(made, **options)
            await stack.enter_async_context(made)
        else:
            in_threads = driver == "psycopg-sync"
            kind = "ConnectionPool" if in_threads else "AsyncConnectionPool"
            settings.setdefault("kwargs", {"application_name": table})
            made = getattr(psycopg_pool, kind)(url, open=False, **settings)
            held = held_psycopg.hold_statements(made, **options)
            if in_threads:
                stack.enter_context(made)
                made.wait()
            else:
                await stack.enter_async_context(made)
                await made.wait()
        yield Database(driver, made, outside, held, table)
