"""What a test looks at to see whether a tool has changed anything."""

from __future__ import annotations

import copy
import hashlib
import inspect
import itertools
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast, runtime_checkable

import anyio.to_thread

from headstart._errors import UsageError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


@runtime_checkable
class Observer(Protocol):
    """Looks at a part of the world from outside of the tools.

    Attributes:
        name: What it is called in reports.
    """

    name: str

    async def snapshot(self) -> object:
        """What is there now, as mappings, lists and values that compare by `==`.

        New objects each time. What it uses, such as a database connection, is not the
        tools' own, which may hold it at the time.
        """
        ...


Observed: TypeAlias = "Observer | Callable[[], Any] | Path | Any"
"""An observer, or what one is made of: see `as_observer`."""


class CallableObserver:
    """Observes what a function returns: `CallableObserver(lambda: outbox)`.

    Args:
        function: Takes nothing, and may be async. What it returns is copied.
        name: What it is called in reports.
    """

    def __init__(self, function: Callable[[], Any], *, name: str | None = None) -> None:
        called = getattr(function, "__name__", "")
        self.name = name or (called if called.isidentifier() else "state")
        self._function = function

    async def snapshot(self) -> object:
        """What the function returns now."""
        value = self._function()
        if inspect.isawaitable(value):
            value = await value
        return copy.deepcopy(value)


class FileObserver:
    """Observes a file, or every file under a folder: names, sizes and hashes.

    Args:
        path: The file or folder.
        name: What it is called in reports.
    """

    def __init__(self, path: Path | str, *, name: str = "files") -> None:
        self.name = name
        self._path = Path(path)

    async def snapshot(self) -> object:
        """What is there now."""
        return await anyio.to_thread.run_sync(self._read)

    def _read(self) -> dict[str, str]:
        if self._path.is_file():
            return {self._path.name: _file_text(self._path)}
        found = sorted(self._path.rglob("*"))
        return {
            path.relative_to(self._path).as_posix(): text
            for path in found
            if (text := _file_text(path))
        }


def _file_text(path: Path) -> str:
    try:
        if path.is_symlink():
            return f"link to {path.readlink()}"
        if path.is_dir():
            return "folder"
        content = path.read_bytes()
    except OSError:  # gone in the meantime, or nobody's to read
        return ""
    return f"{len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()[:16]}"


class DatabaseObserver:
    """Observes every row of a database's tables.

    ```python
    DatabaseObserver(engine)  # SQLAlchemy's, async or sync
    DatabaseObserver(engine, tables=["incidents", "changes"])
    DatabaseObserver(Path("app.db"))  # a file of SQLite
    ```

    It takes a connection from the engine's pool for each snapshot: the pool needs one
    beside the tool's. An SQLite database in memory has one connection for all, which
    sees what is not committed: use a file.

    Args:
        database: A SQLAlchemy engine, or the path of an SQLite file.
        tables: Which tables of the default schema; all if not given.
        name: What it is called in reports.
    """

    def __init__(
        self,
        database: Any,
        *,
        tables: Sequence[str] | None = None,
        name: str = "database",
    ) -> None:
        if isinstance(tables, str):
            msg = "The tables to observe are a list of names."
            raise UsageError(msg)
        self.name = name
        self._database = database
        self._tables = None if tables is None else tuple(tables)

    @property
    def shares_its_connection(self) -> bool:
        """Whether there is one connection for all, so that it sees what is open."""
        pool = getattr(self._database, "pool", None)
        return type(pool).__name__ in ("StaticPool", "SingletonThreadPool")

    async def snapshot(self) -> object:
        """Every row now, by table and primary key."""
        database = self._database
        if isinstance(database, (str, Path)):
            return await anyio.to_thread.run_sync(self._read_file, Path(database))
        if hasattr(database, "sync_engine"):
            async with database.connect() as connection:
                return await connection.run_sync(self._read)
        return await anyio.to_thread.run_sync(self._read_engine)

    def _read_file(self, path: Path) -> dict[str, Any]:
        uri = f"{path.resolve().as_uri()}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, timeout=5.0)
        try:
            connection.row_factory = sqlite3.Row
            tables = self._tables
            if tables is None:
                listed = connection.execute(
                    "SELECT name FROM sqlite_master WHERE type = 'table' "
                    "AND name NOT LIKE 'sqlite_%' ORDER BY name"
                )
                tables = tuple(row["name"] for row in listed)
            return {name: _sqlite_rows(connection, name) for name in tables}
        finally:
            connection.close()

    def _read_engine(self) -> dict[str, Any]:
        opened: AbstractContextManager[Any] = self._database.connect()
        with opened as connection:
            return self._read(connection)

    def _read(self, connection: Any) -> dict[str, Any]:
        import sqlalchemy  # only where an engine is observed

        inspector: Any = sqlalchemy.inspect(connection)
        quote = connection.dialect.identifier_preparer.quote
        names = sorted(inspector.get_table_names())
        found: dict[str, Any] = {}
        for name in names if self._tables is None else self._tables:
            if name not in names:
                msg = f"The database has no table {name!r} in its default schema."
                raise UsageError(msg)
            keys = inspector.get_pk_constraint(name)["constrained_columns"]
            query = sqlalchemy.text(f"SELECT * FROM {quote(name)}")  # noqa: S608 - it is quoted
            rows = connection.execute(query).mappings()
            found[name] = _by_key([dict(row) for row in rows], keys)
        return found


def _sqlite_rows(connection: sqlite3.Connection, table: str) -> Any:
    quoted = '"' + table.replace('"', '""') + '"'
    columns = connection.execute(f"PRAGMA table_info({quoted})").fetchall()
    if not columns:
        msg = f"The database has no table {table!r}."
        raise UsageError(msg)
    keys = [row["name"] for row in sorted(columns, key=lambda r: r["pk"]) if row["pk"]]
    rows = connection.execute(f"SELECT * FROM {quoted}")  # noqa: S608 - it is quoted
    return _by_key([dict(row) for row in rows], keys)


def _by_key(rows: list[dict[str, Any]], keys: Sequence[str]) -> Any:
    if not keys:
        return sorted(rows, key=repr)
    return {
        tuple(row[key] for key in keys): {
            column: value for column, value in row.items() if column not in keys
        }
        for row in sorted(rows, key=lambda row: repr([row[key] for key in keys]))
    }


class RedisObserver:
    """Observes every key of a redis database, but not when they expire.

    What is published is kept nowhere, so that no observer sees it.

    Args:
        client: A `redis.asyncio` or `redis` client.
        match: Only keys that match this pattern.
        name: What it is called in reports.
    """

    def __init__(
        self, client: Any, *, match: str | None = None, name: str = "redis"
    ) -> None:
        self.name = name
        self._client = client
        self._match = match

    async def snapshot(self) -> object:
        """Every key and its value now."""
        found = self._client.scan_iter(match=self._match, count=1000)
        if hasattr(found, "__aiter__"):
            keys = {key async for key in found}
            return {_text(key): await self._value(key) for key in sorted(keys)}
        return await anyio.to_thread.run_sync(self._read, found)

    async def _value(self, key: Any) -> Any:
        kind = _text(await self._client.type(key))
        command, *arguments = _command(kind, key)
        return _plain(await self._client.execute_command(command, *arguments))

    def _read(self, found: Iterable[Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key in sorted(set(found)):
            command, *arguments = _command(_text(self._client.type(key)), key)
            values[_text(key)] = _plain(
                self._client.execute_command(command, *arguments)
            )
        return values


def _command(kind: str, key: Any) -> tuple[Any, ...]:
    match kind:
        case "string":
            return "GET", key
        case "hash":
            return "HGETALL", key
        case "list":
            return "LRANGE", key, 0, -1
        case "set":
            return "SMEMBERS", key
        case "zset":
            return "ZRANGE", key, 0, -1, "WITHSCORES"
        case "stream":
            return "XRANGE", key, "-", "+"
        case _:
            return "DUMP", key


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return _text(value)
    if isinstance(value, Mapping):
        parts = cast("Mapping[Any, Any]", value)
        return {_text(key): _plain(part) for key, part in parts.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in cast("list[Any]", value)]
    if isinstance(value, (set, frozenset)):
        return {_text(part) for part in cast("set[Any]", value)}
    return value


def as_observer(observed: Observed) -> Observer:
    """Make an observer of what a test has at hand.

    A SQLAlchemy engine is observed by its tables, a path by its files (an SQLite file by
    its tables), a redis client by its keys, a function by what it returns. An observer
    is itself.

    Raises:
        UsageError: It is none of these.
    """
    if isinstance(observed, Observer):
        return observed
    if isinstance(observed, Path):
        is_database = observed.is_file() and _is_sqlite(observed)
        return DatabaseObserver(observed) if is_database else FileObserver(observed)
    origin = _origin(cast("type", type(observed)))
    if "sqlalchemy" in origin and hasattr(observed, "connect"):
        return DatabaseObserver(observed)
    if origin & {"redis", "fakeredis", "valkey"} and hasattr(observed, "scan_iter"):
        return RedisObserver(observed)
    if callable(observed):
        return CallableObserver(cast("Callable[[], Any]", observed))
    msg = (
        f"A {type(observed).__name__} cannot be observed: give a SQLAlchemy engine, a "
        "Path, a redis client, an HTTPSink, a function that returns what to compare, or "
        "an object with a name and an async snapshot()."
    )
    raise UsageError(msg)


def _origin(kind: type) -> set[str]:
    """The packages that a class and its bases come from."""
    return {base.__module__.partition(".")[0] for base in inspect.getmro(kind)}


def as_observers(observe: Observed | Iterable[Observed]) -> tuple[Observer, ...]:
    """Observers of one thing or of several, each with a name of its own.

    Raises:
        UsageError: There is nothing, or it cannot be observed.
    """
    several = isinstance(observe, (list, tuple, set, frozenset))
    given = tuple(cast("Iterable[Any]", observe)) if several else (observe,)
    if not given:
        msg = (
            "With nothing observed, nothing is seen: pass observe=..., such as a "
            "SQLAlchemy engine, a Path, an HTTPSink, or a function that returns what "
            "the tool changes."
        )
        raise UsageError(msg)
    observers = tuple(map(as_observer, given))
    taken: set[str] = set()
    for observer, thing in zip(observers, given, strict=True):
        if observer.name in taken:
            if observer is thing:
                msg = f"Two observers are called {observer.name!r}: rename one."
                raise UsageError(msg)
            numbers = itertools.count(2)
            names = (f"{observer.name} {number}" for number in numbers)
            observer.name = next(name for name in names if name not in taken)
        taken.add(observer.name)
    return observers


async def take_snapshot(observers: Iterable[Observer]) -> dict[str, object]:
    """What all observers see now, by their names."""
    return {observer.name: await observer.snapshot() for observer in observers}


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(15) == b"SQLite format 3"
