"""Observers see what changed, from outside of the tools."""

import contextlib
import shutil
import socket
import sqlite3
import subprocess
import threading
import urllib.request
from http import HTTPStatus

import anyio
import anyio.to_thread
import httpx2
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from headstart import Effect, Tool, UsageError
from headstart.testing import (
    CallableObserver,
    DatabaseObserver,
    FileObserver,
    HTTPSink,
    Observer,
    RedisObserver,
    UnsafeToolError,
    assert_speculation_safe,
)
from headstart.testing._changes import Reference, changes_between
from headstart.testing._observers import as_observers

pytestmark = pytest.mark.real_time


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "rows.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(
            'CREATE TABLE "the rows" (id INTEGER PRIMARY KEY, state TEXT);'
            "CREATE TABLE log (line TEXT);"
            "CREATE TABLE pairs (a TEXT, b TEXT, c TEXT, PRIMARY KEY (b, a));"
            "INSERT INTO \"the rows\" VALUES (7, 'open'), (8, 'open');"
            "INSERT INTO log VALUES ('begun');"
            "INSERT INTO pairs VALUES ('a', 'b', 'c');"
        )
    connection.close()
    return path


EXPECTED = {
    "the rows": {(7,): {"state": "open"}, (8,): {"state": "open"}},
    "log": [{"line": "begun"}],
    "pairs": {("b", "a"): {"c": "c"}},
}


async def test_a_database_is_seen_by_its_rows_through_engines_and_files(database):
    blocking = create_engine(f"sqlite:///{database}")
    engine = create_async_engine(f"sqlite+aiosqlite:///{database}")
    try:
        for observed in (database, blocking, engine):
            (observer,) = as_observers(observed)
            assert isinstance(observer, DatabaseObserver)
            assert not observer.shares_its_connection
            assert await observer.snapshot() == EXPECTED
            some = DatabaseObserver(observed, tables=["log"])
            assert await some.snapshot() == {"log": [{"line": "begun"}]}
            with pytest.raises(UsageError, match="no table 'logs'"):
                await DatabaseObserver(observed, tables=["logs"]).snapshot()
    finally:
        blocking.dispose()
        await engine.dispose()


async def test_what_is_not_committed_is_not_seen(database):
    engine = create_async_engine(f"sqlite+aiosqlite:///{database}")
    (observer,) = as_observers(engine)
    try:
        async with engine.begin() as connection:
            await connection.execute(text("INSERT INTO log VALUES ('open')"))
            assert await observer.snapshot() == EXPECTED
        assert await observer.snapshot() != EXPECTED
    finally:
        await engine.dispose()


async def test_a_database_with_one_connection_for_all_is_named_as_a_reason():
    engine = create_async_engine("sqlite+aiosqlite://")
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE log (line TEXT)"))

    async def post() -> str:
        async with engine.begin() as connection:
            await connection.execute(text("INSERT INTO log VALUES ('hi')"))
        return "posted"

    made = Tool(post, effect=Effect.GATED)
    with pytest.raises(UnsafeToolError, match="one connection for all"):
        await assert_speculation_safe(made, observe=engine)
    await engine.dispose()


async def test_files_are_seen_by_their_names_and_contents(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.txt").write_text("hi")
    (tmp_path / "link").symlink_to("a")
    (observer,) = as_observers(tmp_path)
    assert isinstance(observer, FileObserver)
    before = await observer.snapshot()
    assert list(before) == ["a", "a/b.txt", "link"]
    (tmp_path / "a" / "b.txt").write_text("ho")
    (tmp_path / "c").touch()
    after = await observer.snapshot()
    told = [str(change) for change in changes_between(before, after, ("files",))]
    assert [line.partition(":")[0] for line in told] == ["~ a/b.txt", "+ c"]
    one = FileObserver(tmp_path / "a" / "b.txt")
    assert list(await one.snapshot()) == ["b.txt"]


async def test_a_sink_records_requests_of_any_client_and_shows_what_may_change():
    def answer(request):
        if request.path == "/bad":
            raise ValueError(request.path)
        if request.path == "/none":
            return HTTPStatus.NO_CONTENT
        return {"path": request.path}

    with HTTPSink(answer) as sink:
        assert isinstance(sink, Observer)
        async with httpx2.AsyncClient(base_url=sink.url, trust_env=False) as client:
            response = await client.post("/a?b=c", json={"text": "hi"})
            assert response.json() == {"path": "/a?b=c"}
            assert (await client.get("/bad")).status_code == 500
            assert (await client.delete("/none")).status_code == 204
            assert (await client.head("/a")).content == b""

            async def pieces():
                yield b"one"
                yield b"two"

            await client.put("/chunks", content=pieces())
        await anyio.to_thread.run_sync(
            lambda: urllib.request.urlopen(f"{sink.url}/get").read()
        )
        assert await sink.snapshot() == [
            {"method": "POST", "path": "/a?b=c", "body": '{"text":"hi"}'},
            {"method": "DELETE", "path": "/none", "body": ""},
            {"method": "PUT", "path": "/chunks", "body": "onetwo"},
        ]
        assert [request.method for request in sink.requests] == [
            "POST",
            "GET",
            "DELETE",
            "HEAD",
            "PUT",
            "GET",
        ]
    assert len(await sink.snapshot()) == 3
    with pytest.raises(UsageError, match="while it is open"):
        sink.url  # noqa: B018


async def test_a_sink_has_seen_what_was_sent_before_it_was_asked():
    with HTTPSink() as sink:
        port = int(sink.url.rpartition(":")[2])
        for number in range(50):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(
                    b"POST /%d HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi" % number
                )
                assert len(await sink.snapshot()) == number + 1
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"POST /half HTTP/1.1\r\nContent-Length: 2\r\n\r\nh")
            assert len(await sink.snapshot()) == 50
            connection.sendall(b"i")
            assert len(await sink.snapshot()) == 51


async def test_a_sink_that_is_busy_when_asked_still_reads_what_was_sent_before():
    came, goes_on = threading.Event(), threading.Event()

    def answer(request):
        if request.path == "/slow":
            came.set()
            goes_on.wait(10.0)
        return {}

    def post(path):
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        connection.sendall(b"POST %s HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi" % path)

    async def ask():
        seen.extend(await sink.snapshot())

    seen = []
    with HTTPSink(answer) as sink, contextlib.ExitStack() as stack:
        port = int(sink.url.rpartition(":")[2])
        post(b"/slow")
        await anyio.to_thread.run_sync(came.wait, 10.0)
        async with anyio.create_task_group() as tasks:
            post(b"/late")
            tasks.start_soon(ask)
            await anyio.sleep(0.05)
            goes_on.set()
    assert [each["path"] for each in seen] == ["/slow", "/late"]


async def test_a_sink_survives_what_is_no_http():
    with HTTPSink() as sink:
        port = int(sink.url.rpartition(":")[2])
        for rubbish in (
            b"\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: much\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(rubbish)
                await sink.snapshot()
        async with httpx2.AsyncClient(base_url=sink.url, trust_env=False) as client:
            assert (await client.post("/")).status_code == 200


async def test_several_things_are_observed_by_names_of_their_own(tmp_path):
    observers = as_observers([tmp_path, lambda: 1, lambda: 2, {"a": 1}.copy])
    assert [observer.name for observer in observers] == [
        "files",
        "state",
        "state 2",
        "copy",
    ]
    assert [await observer.snapshot() for observer in observers[1:]] == [1, 2, {"a": 1}]
    two = [CallableObserver(dict, name="it"), CallableObserver(dict, name="it")]
    with pytest.raises(UsageError, match="Two observers are called 'it'"):
        as_observers(two)


@pytest.fixture
def redis_url(tmp_path):
    pytest.importorskip("redis")
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("there is no redis-server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [server, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if "Ready to accept" in line:
                break
        yield f"redis://127.0.0.1:{port}"
        process.terminate()


async def test_redis_is_seen_by_its_keys(redis_url):
    import redis
    import redis.asyncio

    blocking = redis.Redis.from_url(redis_url)
    client = redis.asyncio.Redis.from_url(redis_url, decode_responses=True)
    await client.set("a:text", "hi")
    await client.hset("hash", mapping={"b": "c"})
    await client.rpush("list", "x", "y")
    await client.sadd("set", "one", "two")
    await client.zadd("sorted", {"z": 1})
    await client.xadd("stream", {"f": "v"}, id="1-1")
    expected = {
        "a:text": "hi",
        "hash": {"b": "c"},
        "list": ["x", "y"],
        "set": {"one", "two"},
    }
    try:
        for observed in (client, blocking):
            (observer,) = as_observers(observed)
            assert isinstance(observer, RedisObserver)
            seen = await observer.snapshot()
            assert list(seen) == [*expected, "sorted", "stream"]
            assert {key: seen[key] for key in expected} == expected
            some = RedisObserver(observed, match="a:*")
            assert await some.snapshot() == {"a:text": "hi"}
    finally:
        await client.aclose()
        blocking.close()


def rows(*states, start=1):
    return {"t": {(number,): {"s": s} for number, s in enumerate(states, start)}}


def test_effects_that_differ_in_their_order_are_the_same():
    def changed(before, after):
        return changes_between({"db": before}, {"db": after})

    one, two = changed(rows(), rows("a", "b")), changed(rows(), rows("b", "a"))
    assert Reference(one, two, exact=True).differences(two) == []
    three = changed(rows(), rows("a", "c"))
    assert Reference(one, two, exact=True).differences(three) != []
    # A key that says which row it is, and is not new, counts.
    one, two = (
        changed(rows("a", "a"), rows("b", "a")),
        changed(rows("a", "a"), rows("a", "b")),
    )
    assert Reference(one, one, exact=True).differences(two) != []
    assert Reference(one, one, exact=False).differences(two) != []


def test_entries_that_are_lost_are_told():
    changes = changes_between({"s": {"a", "b"}, "l": [1, 2]}, {"s": {"a"}, "l": [2]})
    assert [str(change) for change in changes] == ["- 'b'", "- 1"]
    nothing = Reference((), (), exact=True).differences(changes)
    assert len(nothing) == 2
