"""Databases for effects: an engine whose commits are held, and somebody outside."""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3

import anyio
import psycopg
import pymysql
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from headstart import Effect, Tool
from headstart.effects.sqlalchemy import hold_commits
from headstart.testing import ScriptedModel

_numbers = itertools.count(1)


def tool_of(function, **options):
    return Tool(function, name="post", effect=Effect.GATED, **options)


async def until(condition):
    while not condition():  # noqa: ASYNC110 - what threads and servers do has no event
        await anyio.sleep(0.001)


class WaitingModel(ScriptedModel):
    """A model that answers once a seam has held something: a guess came that far."""

    def __init__(self, responses, seam) -> None:
        super().__init__(responses)
        self.seam = seam

    async def respond(self, request, on_delta):
        await until(lambda: self.seam.counts.held)
        return await super().respond(request, on_delta)


class Outside:
    """Somebody with a connection of their own, who sees what is committed."""

    def __init__(self, url: str, table: str) -> None:
        self.url, self.table = url, table
        if url.startswith("sqlite"):
            self.connection = sqlite3.connect(
                url.partition("///")[2], isolation_level=None, timeout=5
            )
        elif url.startswith("mysql"):
            self.connection = _connect_to_mariadb(url)
        else:
            self.connection = psycopg.connect(url, autocommit=True)
        self.run(f"CREATE TABLE {table} (word VARCHAR(30))")

    def run(self, statement: str) -> list[tuple]:
        if isinstance(self.connection, pymysql.Connection):
            cursor = self.connection.cursor()
            cursor.execute(statement)
        else:
            cursor = self.connection.execute(statement)
        return list(cursor.fetchall()) if cursor.description else []

    def rows(self) -> list[str]:
        found = self.run(f"SELECT word FROM {self.table} ORDER BY word")
        return [word for (word,) in found]

    def connections(self) -> int:
        """How many others are connected and in a transaction."""
        return self.run(
            "SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            " AND datname = current_database() AND state LIKE 'idle in%'"
        )[0][0]

    def close(self) -> None:
        self.run(f"DROP TABLE {self.table}")
        self.connection.close()


def _connect_to_mariadb(url: str) -> pymysql.Connection:
    at = make_url(url)
    return pymysql.connect(
        host=at.host,
        port=at.port,
        user=at.username,
        database=at.database,
        autocommit=True,
    )


class Database:
    """An engine whose commits are held, a table, and somebody outside."""

    def __init__(self, engine, outside, held) -> None:
        self.engine, self.outside, self.held = engine, outside, held
        self.table = outside.table
        self.insert = text(f"INSERT INTO {self.table} VALUES (:word)")
        self.select = text(f"SELECT word FROM {self.table} ORDER BY word")

    @property
    def seam(self):
        return self.held.seam

    async def post(self, word: str = "posted") -> list[str]:
        """What most tools do: write, read it back, commit."""
        async with self.engine.begin() as connection:
            await connection.execute(self.insert, {"word": word})
            return list((await connection.execute(self.select)).scalars())

    def post_blocking(self, word: str = "posted") -> list[str]:
        with self.engine.begin() as connection:
            connection.execute(self.insert, {"word": word})
            return list(connection.execute(self.select).scalars())

    async def until_held(self, count: int = 1) -> None:
        await until(lambda: self.seam.counts.holding >= count)

    async def until_connected(self, count: int) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(count):
                await stack.enter_async_context(self.engine.connect())

    @property
    def checked_out(self) -> int:
        pool = getattr(self.engine, "sync_engine", self.engine).pool
        return pool.checkedout()


@contextlib.asynccontextmanager
async def opened(url: str, driver: str, engine=None, **options):
    """A database at `url` by a driver: `asyncpg`, `aiosqlite`, `aiomysql`, `psycopg`."""
    table = f"headstart_{os.getpid()}_{next(_numbers)}"
    kind, _, rest = url.partition(":")
    name = f"{kind}+{driver.removesuffix('-sync')}:{rest}"
    settings = engine or {}
    if "poolclass" not in settings:
        settings = {"pool_size": 4, "max_overflow": 0, **settings}
    asynchronous = driver in ("asyncpg", "aiosqlite", "aiomysql", "psycopg")
    outside = Outside(url, table)
    try:
        if asynchronous:
            made = create_async_engine(name, **settings)
        else:
            made = create_engine(name, **settings)
        try:
            yield Database(made, outside, hold_commits(made, **options))
        finally:
            if asynchronous:
                await made.dispose()
            else:
                await anyio.to_thread.run_sync(made.dispose)
    finally:
        outside.close()
