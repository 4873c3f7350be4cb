"""What engines commit is held, seen from a second connection to a real database."""

import asyncio
import contextlib
from functools import partial

import anyio
import anyio.lowlevel
import anyio.to_thread
import asyncpg.transaction
import pytest
from sqlalchemy import String, create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool, StaticPool
from sqlalchemy.util import greenlet_spawn

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
from headstart.effects.sqlalchemy import hold_commits
from headstart.predictors import RulePredictor, rule

from .scene import WaitingModel, opened, tool_of, until

pytestmark = pytest.mark.real_time

ASYNC = ["asyncpg", "psycopg", "aiosqlite", "aiomysql"]
SERVED = ["asyncpg", "psycopg", "aiomysql"]


@pytest.fixture
def at(request, tmp_path):
    """Where the database of a driver is."""

    def url_for(driver):
        if "sqlite" in driver:
            return f"sqlite:///{tmp_path}/file.db"
        if "mysql" in driver:
            return request.getfixturevalue("mariadb_url")
        return request.getfixturevalue("postgres_url")

    return url_for


@pytest.mark.parametrize("driver", ASYNC)
async def test_nobody_sees_what_a_call_writes_before_it_is_confirmed(driver, at):
    async with opened(at(driver), driver) as db:
        made = tool_of(db.post)
        async with ToolCallSpeculator(made, "{}") as guess:
            await db.until_held()
            assert db.outside.rows() == []
            assert await guess.adopt() == ["posted"]
        assert db.outside.rows() == ["posted"]
        assert db.seam.counts == SeamCounts(held=1, flushed=1)
        assert db.checked_out == 0


@pytest.mark.parametrize("driver", ASYNC)
async def test_what_a_discarded_call_wrote_is_gone_with_its_connection_returned(
    driver, at
):
    async with opened(at(driver), driver) as db:
        async with ToolCallSpeculator(tool_of(db.post), "{}"):
            await db.until_held()
        assert db.checked_out == 0
        assert db.seam.counts == SeamCounts(held=1, denied=1)
        assert await db.post("real") == ["real"]
        assert db.outside.rows() == ["real"]


@pytest.mark.parametrize("driver", SERVED)
async def test_a_tool_reads_its_own_writes_while_its_commit_is_held(driver, at):
    async with opened(at(driver), driver, hold_at="commit") as db:
        seen = []

        async def post() -> str:
            async with db.engine.begin() as connection:
                await connection.execute(db.insert, {"word": "mine"})
                seen.extend((await connection.execute(db.select)).scalars())
            return "posted"

        async with ToolCallSpeculator(tool_of(post), "{}"):
            await db.until_held()
            assert seen == ["mine"]
            assert db.outside.rows() == []


@pytest.mark.parametrize("driver", ASYNC)
async def test_work_outside_of_any_call_is_not_held(driver, at):
    async with opened(at(driver), driver) as db:
        await db.post()
        assert db.outside.rows() == ["posted"]
        assert db.seam.counts == SeamCounts()


@pytest.mark.parametrize("driver", ASYNC)
async def test_a_call_that_only_reads_is_not_held(driver, at):
    async with opened(at(driver), driver) as db:
        db.outside.run(f"INSERT INTO {db.table} VALUES ('there')")

        async def look() -> list[str]:
            async with db.engine.begin() as connection:
                return list((await connection.execute(db.select)).scalars())

        async with ToolCallSpeculator(tool_of(look), "{}") as guess:
            await guess.wait_until_ended()
            assert await guess.adopt() == ["there"]
        assert db.seam.counts == SeamCounts()


@pytest.mark.parametrize("driver", ASYNC)
async def test_a_hold_that_lasts_too_long_gives_the_call_and_its_connection_up(
    driver, at
):
    async with opened(at(driver), driver, max_hold=0.05) as db:
        async with ToolCallSpeculator(tool_of(db.post), "{}") as guess:
            await guess.wait_until_ended()
            assert "was held at the seam 'sqlalchemy' for" in guess.barrier.reason
            assert db.checked_out == 0
        assert db.outside.rows() == []
        assert db.seam.counts == SeamCounts(held=1, expired=1)


@pytest.mark.parametrize("driver", ASYNC)
async def test_a_confirmed_call_waits_for_an_approval(driver, at):
    async with opened(at(driver), driver, max_hold=0.01) as db:
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
        assert db.checked_out == 0


@pytest.mark.parametrize("driver", ASYNC)
@pytest.mark.parametrize(("says", "rows"), [("Post", ["real"]), ("Wait", ["real"])])
async def test_an_agent_writes_what_its_model_asked_for_once(driver, at, says, rows):
    async with opened(at(driver), driver) as db:

        async def post(word: str) -> list[str]:
            return await db.post(word)

        made = Tool(post, effect=Effect.GATED)
        guessed = "real" if says == "Post" else "guessed"
        expects = RulePredictor([rule("Go", "post", word=guessed)])
        model = WaitingModel([[("post", {"word": "real"})], "Done."], db.seam)
        result = await Agent(model, [made], predictors=[expects]).run("Go.")
        assert result.text == "Done."
        assert db.outside.rows() == rows
        assert db.seam.counts.held == 1
        assert db.checked_out == 0


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "headstart_notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    word: Mapped[str] = mapped_column(String(30))


@pytest.mark.parametrize("driver", ASYNC)
async def test_a_session_flushes_and_its_commit_is_held(driver, at):
    async with opened(at(driver), driver) as db:
        async with db.engine.begin() as connection:
            await connection.run_sync(Base.metadata.drop_all)
            await connection.run_sync(Base.metadata.create_all)
        sessions = async_sessionmaker(db.engine, expire_on_commit=False)

        async def post() -> str:
            async with sessions() as session:
                session.add(Note(word="one"))
                await session.flush()
                async with session.begin_nested():
                    session.add(Note(word="two"))
                await session.commit()
                session.add(Note(word="three"))
                await session.commit()
            return "posted"

        def notes():
            return db.outside.run("SELECT count(*) FROM headstart_notes")[0][0]

        async with ToolCallSpeculator(tool_of(post), "{}") as guess:
            await db.until_held()
            assert notes() == 0
            await guess.adopt()
        assert notes() == 3
        async with ToolCallSpeculator(tool_of(post), "{}"):
            await db.until_held()
        assert notes() == 3
        async with db.engine.begin() as connection:
            await connection.run_sync(Base.metadata.drop_all)
        assert db.seam.counts == SeamCounts(held=2, flushed=1, denied=1)


async def in_a_transaction(db, *statements):
    async with db.engine.connect() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)


async def with_an_option(db, *statements):
    async with db.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        for statement in statements:
            await connection.exec_driver_sql(statement)


async def on_an_engine_with_an_option(db, *statements):
    async with db.engine.execution_options(
        isolation_level="AUTOCOMMIT"
    ).connect() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)


async def in_run_sync(db, *statements):
    def run(connection):
        for statement in statements:
            connection.exec_driver_sql(statement)

    async with db.engine.execution_options(
        isolation_level="AUTOCOMMIT"
    ).connect() as connection:
        await connection.run_sync(run)


ENDINGS = {
    "a COMMIT as text": (in_a_transaction, "INSERT INTO {} VALUES ('a')", "COMMIT"),
    "an END with a comment": (
        in_a_transaction,
        "INSERT INTO {} VALUES ('a')",
        "/* b */ end",
    ),
    "an option of a connection": (with_an_option, "INSERT INTO {} VALUES ('a')"),
    "an option of an engine": (
        on_an_engine_with_an_option,
        "INSERT INTO {} VALUES ('a')",
    ),
    "run_sync": (in_run_sync, "INSERT INTO {} VALUES ('a')"),
    "a CTE": (
        with_an_option,
        "WITH a AS (INSERT INTO {} VALUES ('a') RETURNING 1) SELECT * FROM a",
    ),
    "a beginning, on MariaDB": (
        in_a_transaction,
        "INSERT INTO {} VALUES ('a')",
        "START TRANSACTION",
    ),
    "a lock, on MariaDB": (
        in_a_transaction,
        "INSERT INTO {} VALUES ('a')",
        "LOCK TABLES {} READ",
    ),
    "a setting, on MariaDB": (
        in_a_transaction,
        "INSERT INTO {} VALUES ('a')",
        "SET autocommit = 1",
    ),
    "a definition, on MariaDB": (
        in_a_transaction,
        "INSERT INTO {} VALUES ('a')",
        "ALTER TABLE {} ADD COLUMN other INT DEFAULT 1",
    ),
}
NOT_ON_MARIADB = {"an END with a comment", "a CTE"}
ONLY_ON_MARIADB = {ending for ending in ENDINGS if "MariaDB" in ending}


@pytest.mark.parametrize(
    ("driver", "ending"),
    [
        (driver, ending)
        for driver in SERVED
        for ending in ENDINGS
        if ending not in (NOT_ON_MARIADB if "mysql" in driver else ONLY_ON_MARIADB)
    ],
)
async def test_whatever_else_commits_is_held(driver, at, ending):
    run, *statements = ENDINGS[ending]
    async with opened(at(driver), driver, hold_at="commit") as db:

        async def post() -> str:
            await run(db, *(statement.format(db.table) for statement in statements))
            return "posted"

        async with ToolCallSpeculator(tool_of(post), "{}"):
            await db.until_held()
            assert db.outside.rows() == []
        assert db.outside.rows() == []
        assert db.checked_out == 0
        async with ToolCallSpeculator(tool_of(post), "{}") as guess:
            await db.until_held()
            assert await guess.adopt() == "posted"
        assert db.outside.rows() == ["a"]


@pytest.mark.parametrize(
    ("driver", "settings"),
    [
        ("asyncpg", {"isolation_level": "AUTOCOMMIT"}),
        ("psycopg", {"isolation_level": "AUTOCOMMIT"}),
        ("psycopg", {"connect_args": {"autocommit": True}}),
        ("aiosqlite", {"isolation_level": "AUTOCOMMIT"}),
        ("aiosqlite", {"connect_args": {"isolation_level": None}}),
    ],
)
async def test_an_engine_that_commits_each_statement_holds_each(driver, at, settings):
    async with opened(at(driver), driver, engine=settings) as db:
        async with ToolCallSpeculator(tool_of(db.post), "{}"):
            await db.until_held()
            assert db.outside.rows() == []
        assert db.outside.rows() == []
        assert db.seam.counts == SeamCounts(held=1, denied=1)


@pytest.mark.parametrize("driver", ASYNC)
async def test_hold_at_write_locks_nothing(driver, at):
    async with opened(at(driver), driver, hold_at="write") as db:
        db.outside.run(f"INSERT INTO {db.table} VALUES ('a')")

        async def change() -> str:
            async with db.engine.begin() as connection:
                await connection.execute(db.select)
                await connection.execute(text(f"UPDATE {db.table} SET word = 'b'"))
            return "changed"

        async with ToolCallSpeculator(tool_of(change), "{}") as guess:
            await db.until_held()
            db.outside.run(f"UPDATE {db.table} SET word = 'c'")
            await guess.adopt()
        assert db.outside.rows() == ["b"]


@pytest.mark.parametrize("engine", ["InnoDB", "MyISAM"])
async def test_on_mariadb_writes_are_held_even_where_no_rollback_undoes_them(
    engine, at
):
    async with opened(at("aiomysql"), "aiomysql") as db:
        assert db.held.hold_at == "write"
        db.outside.run(f"ALTER TABLE {db.table} ENGINE = {engine}")
        async with ToolCallSpeculator(tool_of(db.post), "{}"):
            await db.until_held()
            assert db.outside.rows() == []
        assert db.outside.rows() == []
        async with ToolCallSpeculator(tool_of(db.post), "{}") as guess:
            await db.until_held()
            await guess.adopt()
        assert db.outside.rows() == ["posted"]


async def test_a_prepared_transaction_is_held_before_it_is_prepared(at):
    async with opened(at("psycopg-sync"), "psycopg-sync") as db:

        def post() -> str:
            with db.engine.connect() as connection:
                transaction = connection.begin_twophase("headstart")
                connection.execute(db.insert, {"word": "a"})
                transaction.prepare()
                transaction.commit()
            return "posted"

        async with ToolCallSpeculator(tool_of(post), "{}") as guess:
            await db.until_held()
            assert db.outside.run("SELECT * FROM pg_prepared_xacts") == []
            await guess.adopt()
        assert db.outside.rows() == ["a"]
        db.outside.run("BEGIN")
        db.outside.run(f"INSERT INTO {db.table} VALUES ('b')")
        db.outside.run("PREPARE TRANSACTION 'headstart'")

        def recover() -> str:
            with db.engine.connect() as connection:
                connection.commit_prepared("headstart", recover=True)
            return "recovered"

        async with ToolCallSpeculator(tool_of(recover), "{}") as guess:
            await db.until_held()
            assert db.outside.rows() == ["a"]
            await guess.adopt()
        assert db.outside.rows() == ["a", "b"]
        db.outside.run("BEGIN")
        db.outside.run(f"INSERT INTO {db.table} VALUES ('c')")
        db.outside.run("PREPARE TRANSACTION 'headstart'")

        def forget() -> str:
            with db.engine.connect() as connection:
                connection.rollback_prepared("headstart", recover=True)
            return "forgotten"

        prepared = "SELECT gid FROM pg_prepared_xacts"
        async with ToolCallSpeculator(tool_of(forget), "{}") as guess:
            await until(lambda: db.seam.counts.holding or guess.ended)
            assert db.outside.run(prepared) == [("headstart",)]
            await guess.adopt()
        assert db.outside.run(prepared) == []


@pytest.mark.parametrize("driver", SERVED)
async def test_what_a_listener_makes_of_a_statement_is_held(driver, at):
    async with opened(at(driver), driver, hold_at="commit") as db:

        @event.listens_for(db.engine.sync_engine, "before_cursor_execute", retval=True)
        def change(_, __, statement, parameters, *___):
            written = f"INSERT INTO {db.table} VALUES ('listened')"
            return statement.replace("SELECT 1", written), parameters

        async def look() -> str:
            async with db.engine.begin() as connection:
                await connection.exec_driver_sql("SELECT 1")
            return "looked"

        async with ToolCallSpeculator(tool_of(look), "{}") as guess:
            await until(lambda: db.seam.counts.holding or guess.ended)
            assert db.outside.rows() == []
            await guess.adopt()
        assert db.outside.rows() == ["listened"]


@pytest.mark.parametrize("driver", ASYNC)
async def test_a_call_does_not_write_on_the_connection_of_another(driver, at):
    async with opened(at(driver), driver) as db:
        lent, written = [], anyio.Event()

        async def lend() -> str:
            async with db.engine.connect() as connection:
                await connection.execute(db.select)
                lent.append(connection)
                await written.wait()
                await connection.commit()
            return "lent"

        async def borrow() -> str:
            await lent[0].execute(db.insert, {"word": "guessed"})
            return "borrowed"

        async with ToolCallSpeculator(tool_of(lend), "{}") as lender:
            await until(lambda: lent)
            async with ToolCallSpeculator(tool_of(borrow), "{}") as guess:
                await until(lambda: db.seam.counts.holding or guess.ended)
                assert not guess.ended
            written.set()
            await lender.adopt()
        assert db.outside.rows() == []


async def with_a_raw_connection(db):
    raw = await db.engine.raw_connection()
    try:
        raw.cursor().execute("anything")
    finally:
        await greenlet_spawn(raw.close)


async def with_the_driver(db):
    async with db.engine.connect() as connection:
        raw = await connection.get_raw_connection()
        await raw.driver_connection.execute("anything")


async def with_the_adapted_connection(db):
    async with db.engine.connect() as connection:
        raw = await connection.get_raw_connection()
        raw.dbapi_connection.commit()


async def with_an_attribute(db):
    async with db.engine.connect() as connection:
        await connection.run_sync(lambda sync: sync.connection.execute("anything"))


async def with_a_detached_connection(db):
    async with db.engine.connect() as connection:
        await connection.run_sync(lambda sync: sync.detach())


PAST = [
    with_a_raw_connection,
    with_the_driver,
    with_the_adapted_connection,
    with_an_attribute,
    with_a_detached_connection,
]


@pytest.mark.parametrize("way", PAST)
@pytest.mark.parametrize("driver", ASYNC)
async def test_a_way_past_the_events_gives_the_call_up(driver, at, way):
    async with opened(at(driver), driver) as db:

        async def post() -> str:
            await way(db)
            return "posted"

        async with ToolCallSpeculator(tool_of(post), "{}") as guess:
            await guess.wait_until_ended()
            assert "could not be held" in guess.barrier.reason
        assert db.seam.counts == SeamCounts(refused=1)
        assert db.checked_out == 0


@pytest.mark.parametrize("driver", ASYNC)
async def test_a_raw_connection_is_as_usual_outside_of_calls(driver, at):
    async with opened(at(driver), driver) as db:
        async with db.engine.connect() as connection:
            raw = await connection.get_raw_connection()
            assert raw.driver_connection is not None
            assert raw.is_valid
            assert not raw.is_detached
            assert raw.info == {}

        def post(connection):
            cursor = connection.connection.cursor()
            cursor.execute(f"INSERT INTO {db.table} VALUES ('raw')")
            cursor.close()
            connection.connection.commit()

        async with db.engine.connect() as connection:
            await connection.run_sync(post)
        assert db.outside.rows() == ["raw"]


@pytest.mark.parametrize("driver", ASYNC)
async def test_a_connection_of_somebody_else_is_held_at_the_write(driver, at):
    async with opened(at(driver), driver) as db, db.engine.connect() as connection:

        async def post() -> str:
            await connection.execute(db.insert, {"word": "the tool's"})
            await connection.commit()
            return "posted"

        await connection.execute(db.select)
        async with ToolCallSpeculator(tool_of(post), "{}"):
            await db.until_held()
            await connection.commit()  # of whoever shares it: nothing was written
        assert db.outside.rows() == []


@pytest.mark.parametrize("driver", ASYNC)
async def test_a_commit_of_what_somebody_else_wrote_is_held(driver, at):
    async with opened(at(driver), driver) as db, db.engine.connect() as connection:

        async def post() -> str:
            await connection.commit()
            return "posted"

        await connection.execute(db.insert, {"word": "the host's"})
        async with ToolCallSpeculator(tool_of(post), "{}"):
            await db.until_held()
            assert db.outside.rows() == []


@pytest.mark.parametrize("driver", SERVED)
async def test_a_stream_of_rows_is_read_while_the_call_is_not_confirmed(driver, at):
    async with opened(at(driver), driver) as db:
        db.outside.run(f"INSERT INTO {db.table} VALUES ('a'), ('b')")

        async def look() -> list[str]:
            async with db.engine.connect() as connection:
                rows = await connection.stream_scalars(db.select)
                return [word async for word in rows]

        async with ToolCallSpeculator(tool_of(look), "{}") as guess:
            await guess.wait_until_ended()
            assert await guess.adopt() == ["a", "b"]
        assert db.seam.counts == SeamCounts()


SYNC = ["psycopg-sync", "pysqlite"]


@pytest.mark.parametrize("driver", SYNC)
async def test_a_sync_engine_is_held_in_the_thread_of_a_tool(driver, at):
    async with opened(at(driver), driver) as db:

        def post() -> str:
            with Session(db.engine) as session:
                session.execute(db.insert, {"word": "posted"})
                session.commit()
            return "posted"

        async with ToolCallSpeculator(tool_of(post), "{}") as guess:
            await db.until_held()
            assert db.outside.rows() == []
            assert await guess.adopt() == "posted"
        assert db.outside.rows() == ["posted"]
        async with ToolCallSpeculator(tool_of(post), "{}"):
            await db.until_held()
        await until(lambda: db.checked_out == 0)
        assert db.outside.rows() == ["posted"]
        assert db.seam.counts == SeamCounts(held=2, flushed=1, denied=1)


@pytest.mark.parametrize("driver", SYNC)
async def test_a_sync_engine_in_the_event_loop_gives_the_call_up(driver, at):
    async with opened(at(driver), driver) as db:

        async def post() -> list[str]:
            return db.post_blocking()

        async with ToolCallSpeculator(tool_of(post), "{}") as guess:
            await guess.wait_until_ended()
            assert isinstance(guess.error, WriteDenied)
        assert db.outside.rows() == []
        assert db.checked_out == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool),
            "share",
        ),
        (lambda: create_engine("sqlite://"), "share"),
        (
            lambda: create_engine("sqlite:///a.db", pool_reset_on_return="commit"),
            "rollback",
        ),
    ],
    ids=["static", "thread", "commits"],
)
def test_a_pool_that_commits_for_others_is_refused(make, message):
    with pytest.raises(UsageError, match=message):
        hold_commits(make())


@pytest.mark.parametrize(
    "options",
    [
        {"hold_at": "commit"},
        {"hold_at": "never"},
        {"connections": -1},
        {"connections": 15},
        {"max_hold": 0},
    ],
)
def test_an_option_that_could_not_work_is_refused(options):
    with pytest.raises(UsageError):
        hold_commits(create_engine("sqlite:///a.db"), **options)


def test_an_engine_is_held_once():
    engine = create_engine("sqlite:///a.db")
    hold_commits(engine)
    with pytest.raises(UsageError, match="already"):
        hold_commits(engine)


def test_a_function_of_the_user_reads_if_he_says_so():
    engine = create_engine("sqlite:///a.db", poolclass=NullPool)
    held = hold_commits(engine, functions=["mine"])
    assert (held.hold_at, held.connections) == ("write", 5)


async def test_a_function_that_is_not_known_is_held(at):
    for functions, held in (((), 1), (("pg_typeof",), 0)):
        async with opened(at("asyncpg"), "asyncpg", functions=functions) as db:

            async def look(db) -> str:
                async with AsyncSession(db.engine) as session:
                    return await session.scalar(text("SELECT pg_typeof(1)::text"))

            async with ToolCallSpeculator(tool_of(partial(look, db)), "{}") as guess:
                if held:
                    await db.until_held()
                else:
                    await guess.wait_until_ended()
                assert await guess.adopt() == "integer"
            assert db.seam.counts.held == held


@pytest.mark.parametrize("driver", ASYNC)
async def test_an_engine_that_was_disposed_is_held_as_before(driver, at):
    async with opened(at(driver), driver) as db:
        await db.engine.dispose()
        async with ToolCallSpeculator(tool_of(db.post), "{}"):
            await db.until_held()
            assert db.outside.rows() == []
        assert db.outside.rows() == []


def pool_events(db):
    """What a pool does with its connections from now on."""
    seen = []
    for name in ("connect", "invalidate", "close", "reset"):
        event.listen(
            db.engine.sync_engine.pool, name, lambda *_, name=name: seen.append(name)
        )
    return seen


@pytest.mark.parametrize("driver", ASYNC)
async def test_a_discarded_call_leaves_its_connection_and_no_task(driver, at):
    async with opened(at(driver), driver) as db:
        await db.post("real")
        seen, tasks = pool_events(db), asyncio.all_tasks()
        for _ in range(3):
            async with ToolCallSpeculator(tool_of(db.post), "{}"):
                await db.until_held()
            assert asyncio.all_tasks() == tasks
            assert db.checked_out == 0
        assert set(seen) == {"reset"}
        assert db.outside.rows() == ["real"]


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
SLOW = {
    "asyncpg": "SELECT pg_sleep(0.2)",
    "psycopg": "SELECT pg_sleep(0.2)",
    "aiomysql": "SELECT SLEEP(0.2)",
    "aiosqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n"
    " WHERE i < 600000) SELECT max(i) FROM n",
}


@pytest.mark.parametrize("driver", ASYNC)
async def test_a_call_discarded_while_it_reads_leaves_no_task(driver, at):
    async with opened(at(driver), driver) as db:
        started = anyio.Event()

        async def look() -> str:
            async with db.engine.begin() as connection:
                started.set()
                await connection.exec_driver_sql(SLOW[driver])
            return "seen"

        tasks = asyncio.all_tasks()
        async with ToolCallSpeculator(tool_of(look), "{}"):
            await started.wait()
            await anyio.sleep(0.02)
        assert asyncio.all_tasks() == tasks
        assert db.checked_out == 0
        assert await db.post("real") == ["real"]


async def test_a_discarded_call_does_not_wait_for_a_long_statement_of_sqlite(
    at, monkeypatch
):
    monkeypatch.setattr("headstart.effects.sqlalchemy.RETURN", None)
    async with opened(at("aiosqlite"), "aiosqlite") as db:
        started = anyio.Event()

        async def look() -> str:
            async with db.engine.begin() as connection:
                started.set()
                await connection.exec_driver_sql(ENDLESS)
            return "seen"

        async with ToolCallSpeculator(tool_of(look), "{}"):
            await started.wait()
            await anyio.sleep(0.05)
        assert db.checked_out == 0
        assert await db.post("real") == ["real"]


@pytest.mark.parametrize(
    ("driver", "rollback"),
    [
        ("asyncpg", "asyncpg.transaction.Transaction.rollback"),
        ("psycopg", "psycopg.AsyncConnection.rollback"),
        ("aiosqlite", "aiosqlite.Connection.rollback"),
        ("aiomysql", "aiomysql.Connection.rollback"),
    ],
)
async def test_a_rollback_that_hangs_costs_a_moment_and_its_connection(
    driver, rollback, at, monkeypatch
):
    monkeypatch.setattr("headstart.effects.sqlalchemy.RETURN", 0.05)
    async with opened(at(driver), driver) as db:
        await db.post("real")
        seen, tasks = pool_events(db), asyncio.all_tasks()
        with pytest.MonkeyPatch.context() as patch:
            async with ToolCallSpeculator(tool_of(db.post), "{}"):
                await db.until_held()
                patch.setattr(rollback, lambda _: anyio.sleep_forever())
        assert seen[-2:] == ["invalidate", "close"]
        assert asyncio.all_tasks() == tasks
        assert db.checked_out == 0
        assert await db.post("real") == ["real", "real"]


async def test_a_slow_rollback_of_a_call_that_nobody_discards_takes_its_time(
    at, monkeypatch
):
    monkeypatch.setattr("headstart.effects.sqlalchemy.RETURN", 0.01)
    async with opened(at("asyncpg"), "asyncpg") as db:
        await db.post("real")
        seen = pool_events(db)
        roll_back = asyncpg.transaction.Transaction.rollback

        async def roll_back_slowly(self) -> None:
            await anyio.sleep(0.1)
            await roll_back(self)

        monkeypatch.setattr(
            asyncpg.transaction.Transaction, "rollback", roll_back_slowly
        )

        async def look() -> list[str]:
            async with db.engine.connect() as connection:
                return list((await connection.execute(db.select)).scalars())

        async with ToolCallSpeculator(tool_of(look), "{}") as guess:
            await guess.wait_until_ended()
            assert await guess.adopt() == ["real"]
        assert seen == ["reset"]


@pytest.mark.parametrize("driver", ASYNC)
async def test_a_discarded_call_closes_a_connection_without_a_pool(driver, at):
    async with opened(at(driver), driver, engine={"poolclass": NullPool}) as db:
        await db.post("real")
        seen, tasks = pool_events(db), asyncio.all_tasks()
        async with ToolCallSpeculator(tool_of(db.post), "{}"):
            await db.until_held()
        assert asyncio.all_tasks() == tasks
        assert seen == ["connect", "reset", "close"]
        assert await db.post("real") == ["real", "real"]


@pytest.mark.parametrize("driver", ASYNC)
async def test_two_hundred_held_calls_leave_connections_to_others(driver, at):
    settings = {"pool_size": 5, "max_overflow": 0, "pool_timeout": 5}
    async with opened(at(driver), driver, engine=settings) as db:
        assert db.held.connections == 2
        made = tool_of(db.post)
        async with contextlib.AsyncExitStack() as stack:
            guesses = [
                await stack.enter_async_context(ToolCallSpeculator(made, "{}"))
                for _ in range(200)
            ]
            await db.until_held(200)
            assert db.checked_out <= 2
            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(db.post, f"real {number:02}")
            assert len(db.outside.rows()) == 20
            for guess in guesses[::-50]:  # a confirmed one waits behind nobody
                await guess.adopt()
            assert db.outside.rows().count("posted") == 4
        assert db.outside.rows().count("posted") == 4
        await until(lambda: db.checked_out == 0)
        assert db.held._places.free == 2
        assert db.seam.counts.holding == 0


async def test_held_threads_leave_connections_to_others(at):
    settings = {"pool_size": 3, "max_overflow": 0, "pool_timeout": 5}
    async with opened(at("psycopg-sync"), "psycopg-sync", engine=settings) as db:
        made = tool_of(db.post_blocking)
        async with contextlib.AsyncExitStack() as stack:
            guesses = [
                await stack.enter_async_context(ToolCallSpeculator(made, "{}"))
                for _ in range(10)
            ]
            await db.until_held(10)
            assert db.checked_out == 1
            await anyio.to_thread.run_sync(db.post_blocking, "real")
            await guesses[-1].adopt()
            assert db.outside.rows() == ["posted", "real"]
        await until(lambda: db.checked_out == 0 and db.seam.counts.holding == 0)
        assert db.outside.rows() == ["posted", "real"]
        assert db.held._places.free == 1


@pytest.mark.parametrize("driver", SERVED)
async def test_a_place_is_free_once_its_call_is_confirmed(driver, at):
    settings = {"pool_size": 3, "max_overflow": 0}
    async with opened(at(driver), driver, engine=settings) as db:
        goes_on = anyio.Event()

        async def post() -> str:
            async with db.engine.begin() as connection:
                await connection.execute(db.insert, {"word": "first"})
                await goes_on.wait()
            return "posted"

        async with ToolCallSpeculator(tool_of(post), "{}") as first:
            await until(lambda: db.checked_out == 1)
            async with ToolCallSpeculator(tool_of(db.post), "{}"):
                await db.until_held()  # for a place
                first.confirm()
                await until(lambda: db.checked_out == 2)
                goes_on.set()
                assert await first.wait() == "posted"
        assert db.outside.rows() == ["first"]


@pytest.mark.parametrize("driver", SERVED)
async def test_a_call_that_needs_two_connections_has_them_once_it_is_confirmed(
    driver, at
):
    settings = {"pool_size": 3, "max_overflow": 0}
    async with opened(at(driver), driver, engine=settings) as db:

        async def post() -> str:
            async with db.engine.connect() as outer:
                await outer.execute(db.select)
                await db.post()
            return "posted"

        async with ToolCallSpeculator(tool_of(post), "{}") as guess:
            await db.until_held()
            assert db.checked_out == 1
            assert await guess.adopt() == "posted"
        assert db.outside.rows() == ["posted"]


@pytest.mark.parametrize("step", range(12))
@pytest.mark.parametrize("driver", ASYNC)
async def test_a_call_that_is_cancelled_anywhere_leaves_nothing(driver, at, step):
    settings = {"pool_size": 3, "max_overflow": 0}
    async with opened(at(driver), driver, engine=settings) as db:
        # Connected before: asyncpg complains of itself when connecting is cancelled.
        await db.until_connected(2)
        made = tool_of(db.post)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(2):  # one has a place, the other waits for it
                await stack.enter_async_context(ToolCallSpeculator(made, "{}"))
            for _ in range(step * step):
                await anyio.lowlevel.checkpoint()
        await until(lambda: db.checked_out == 0)
        assert db.outside.rows() == []
        assert db.held._places.free == 1
        assert await db.post() == ["posted"]
