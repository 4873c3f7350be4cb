"""Hold what psycopg 3 sends until the call that asked for it is confirmed.

```python
from headstart.effects.psycopg import hold_statements

hold_statements(pool)
```

In a tool call that is not confirmed, statements that are known to read run at once on the
connection that the call took from the pool. Everything else waits before it is sent.
"""

from __future__ import annotations

import inspect
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio

from headstart._barrier import current_barrier
from headstart._errors import UsageError
from headstart._seams import MAX_HOLD
from headstart._thread_guard import unconfirmed_call

from ._held_methods import Methods
from ._places import RETURN
from ._statements import (
    BEGIN,
    CLOSE,
    END,
    FETCH,
    STATEMENT,
    HeldStatements,
    Rule,
    check_not_held,
    refuse_connections,
    shielded,
    waits,
)

try:
    import psycopg
    from psycopg import AsyncConnection, AsyncServerCursor, Connection, ServerCursor
    from psycopg.pq import TransactionStatus
    from psycopg.sql import Composable
except ImportError as missing:
    message = 'Please install `psycopg`: pip install "headstart[psycopg]"'
    raise ImportError(message, name="psycopg") from missing
try:
    import psycopg_pool
except ImportError:  # single connections can be held without
    psycopg_pool = None

if TYPE_CHECKING:
    from collections.abc import Iterable

    from psycopg_pool import AsyncConnectionPool, ConnectionPool

    Holdable: TypeAlias = (
        AsyncConnectionPool[Any]
        | ConnectionPool[Any]
        | AsyncConnection[Any]
        | Connection[Any]
    )

__all__ = ("HeldStatements", "hold_statements")

# The methods of a connection, and the kind of each: see Methods. The kinds of a blocking
# connection's are the same without the loop.
CONNECTION: dict[str, tuple[str, Rule]] = {
    "cancel": ("at_once", Rule(effect="cancelling a statement", own=True)),
    "cancel_safe": ("coroutine", Rule(effect="cancelling a statement", own=True)),
    "close": ("coroutine", CLOSE),
    "commit": ("coroutine", END),
    "notifies": ("rows", waits("receiving notifications")),
    "pipeline": ("block", waits("a pipeline")),
    "rollback": ("coroutine", END),
    "set_autocommit": ("coroutine", waits("a connection's settings")),
    "set_deferrable": ("coroutine", waits("a connection's settings")),
    "set_isolation_level": ("coroutine", waits("a connection's settings")),
    "set_read_only": ("coroutine", waits("a connection's settings")),
    "tpc_begin": ("coroutine", waits("a two-phase transaction")),
    "tpc_commit": ("coroutine", waits("a two-phase COMMIT")),
    "tpc_prepare": ("coroutine", waits("a two-phase COMMIT")),
    "tpc_rollback": ("coroutine", waits("a two-phase ROLLBACK")),
    "transaction": ("block", BEGIN),
}
CURSOR: dict[str, tuple[str, Rule]] = {
    "copy": ("block", waits("a COPY")),
    "execute": ("coroutine", STATEMENT),
    "executemany": ("coroutine", STATEMENT),
    "stream": ("rows", STATEMENT),
}
SERVER_CURSOR: dict[str, tuple[str, Rule]] = CURSOR | {
    "__anext__": ("coroutine", FETCH),
    "close": ("coroutine", CLOSE),
    "fetchall": ("coroutine", FETCH),
    "fetchmany": ("coroutine", FETCH),
    "fetchone": ("coroutine", FETCH),
    "scroll": ("coroutine", FETCH),
}
POOL = {
    name: ("coroutine", waits(f"{name}() of a pool"))
    for name in ("check", "close", "drain", "open", "resize", "wait")
}
_IN_THREADS = {
    "coroutine": "blocking",
    "block": "block_blocking",
    "rows": "rows_blocking",
    "at_once": "at_once",
}


def hold_statements(
    target: Holdable,
    *,
    connections: int | None = None,
    functions: Iterable[str] = (),
    max_hold: float | None = MAX_HOLD,
) -> HeldStatements:
    """Hold what unconfirmed tool calls send through a pool, or on a connection.

    Call it right after the pool is made: connections that are in use are not held.

    Args:
        target: A pool of `psycopg_pool`, or a connection of `psycopg`, async or not.
            A single connection is nobody's own: everything waits on it, reads as well.
            Except where a call that is not confirmed made it and holds it here.
        connections: How many connections of the pool calls that are not confirmed may
            have at once, so that others find one. Half of its `max_size`, unless told.
        functions: SQL functions of yours that only read, by name.
        max_hold: Seconds that a statement waits at most; its call is then given up.

    Raises:
        UsageError: It is neither, or it is held already, or no connection of the pool
            would be left to others.
    """
    is_pool = _is_pool(target)
    given: Any = target
    kind = given.__class__
    if not is_pool and not issubclass(kind, AsyncConnection | Connection):
        msg = (
            "hold_statements takes a pool of psycopg_pool or a connection of psycopg, "
            f"and not {kind.__module__}.{kind.__name__}."
        )
        raise UsageError(msg)
    check_not_held(given)
    if not is_pool:
        refuse_connections(connections)
    held = HeldStatements(
        "psycopg",
        limit=(given.max_size or None) if is_pool else 0,
        connections=connections,
        functions=functions,
        max_hold=max_hold,
    )
    if is_pool:
        held.hold(given, _pool_methods(held))
        return held
    _hold_connection(held, given)
    _guard(held, given)
    call = unconfirmed_call()
    if call is not None and given.pgconn.transaction_status == TransactionStatus.IDLE:
        held.own(given, call)
    return held


def _is_pool(given: Any) -> bool:
    if psycopg_pool is None:
        return False
    return isinstance(
        given, psycopg_pool.AsyncConnectionPool | psycopg_pool.ConnectionPool
    )


def _hold_connection(held: HeldStatements, connection: Any) -> None:
    held.hold(connection, partial(_connection_methods, held))


def _with_rules(
    methods: Methods, kind: type, rules: dict[str, tuple[str, Rule]], *, threads: bool
) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, (sort, rule) in rules.items():
        own_name = "__next__" if threads and name == "__anext__" else name
        if hasattr(kind, own_name):  # not each is in every version
            make = getattr(methods, _IN_THREADS[sort] if threads else sort)
            made[own_name] = make(own_name, rule)
    return made


def _connection_methods(held: HeldStatements, kind: Any) -> dict[str, Any]:
    threads = not issubclass(kind, AsyncConnection)
    methods = Methods(
        held, kind, connection_of=lambda it: it, give_up=lambda it: it.pgconn.finish()
    )
    made = _with_rules(methods, kind, CONNECTION, threads=threads)
    make_cursor = kind.cursor

    hold_cursor = partial(_cursor_methods, held, threads=threads)

    @wraps(make_cursor)
    def cursor(this: Any, *args: Any, **options: Any) -> Any:
        made = make_cursor(this, *args, **options)
        held.hold(made, hold_cursor)
        return made

    made.update(cursor=cursor)
    if threads:
        made.update(wait=_held_wait_blocking(held, kind))
    else:
        made.update(_held_wait(held, kind))
    return made


def _guard(held: HeldStatements, connection: Any) -> None:
    """Gate what a driver's own code asks for two dozen times a transaction."""

    def pgconn(this: Any) -> Any:
        if unconfirmed_call() is not None and not _asked_by_driver():
            held.seam.refuse("using 'pgconn'", "what is done with it is not seen")
        return this.__dict__["pgconn"]

    held.guard(connection, {"pgconn": property(pgconn)})


def _asked_by_driver() -> bool:
    frame = inspect.currentframe()
    for _ in range(2):  # over this function and the property
        frame = frame and frame.f_back
    asking = frame.f_globals.get("__name__", "") if frame is not None else ""
    return asking.startswith(("psycopg.", "psycopg_pool.", __package__ or "psycopg."))


def _held_wait(held: HeldStatements, kind: Any) -> dict[str, Any]:
    """What all of a connection is sent through.

    Psycopg answers to a cancellation by cancelling the statement on the server, and waits
    for that. A scope that is cancelled would cancel this as well, and the connection would
    be closed: so it has a moment.
    """
    wait: Any = kind.wait
    try_cancel: Any = getattr(kind, "_try_cancel", None)

    async def wait_in_call(this: Any, gen: Any, args: Any, options: Any) -> Any:
        call = unconfirmed_call()
        if call is None:
            held.touch(this)
        elif not held.may_send(this, call):
            held.refuse_unknown()
        with anyio.CancelScope() as scope:
            this.headstart_scope = scope
            try:
                return await wait(this, gen, *args, **options)
            finally:
                this.headstart_scope = None
        raise anyio.get_cancelled_exc_class()

    @wraps(wait)
    def held_wait(this: Any, gen: Any, *args: Any, **options: Any) -> Any:
        if current_barrier() is None and unconfirmed_call() is None:
            held.touch(this)
            return wait(this, gen, *args, **options)
        return wait_in_call(this, gen, args, options)

    async def held_try_cancel(this: Any, **options: Any) -> None:
        scope: anyio.CancelScope | None = this.headstart_scope
        if scope is not None:
            scope.deadline = anyio.current_time() + RETURN
            scope.shield = True
        await try_cancel(this, **options)

    made: dict[str, Any] = {"wait": held_wait, "headstart_scope": None}
    if try_cancel is not None:
        made["_try_cancel"] = held_try_cancel
    return made


def _held_wait_blocking(held: HeldStatements, kind: Any) -> Any:
    wait = kind.wait

    @wraps(wait)
    def held_wait(this: Any, gen: Any, *args: Any, **options: Any) -> Any:
        call = unconfirmed_call()
        if call is None:
            held.touch(this)
        elif not held.may_send(this, call):
            held.refuse_unknown()
        return wait(this, gen, *args, **options)

    return held_wait


def _cursor_methods(
    held: HeldStatements, kind: type, *, threads: bool
) -> dict[str, Any]:
    methods = Methods(
        held,
        kind,
        connection_of=lambda cursor: cursor.connection,
        text_of=_text_of,
        give_up=lambda connection: connection.pgconn.finish(),
    )
    on_server = issubclass(kind, AsyncServerCursor | ServerCursor)
    rules = SERVER_CURSOR if on_server else CURSOR
    if hasattr(kind, "mogrify"):  # parameters become part of each statement
        rules = rules | {"executemany": ("coroutine", waits("statements"))}
    return _with_rules(methods, kind, rules, threads=threads)


def _text_of(cursor: Any, args: tuple[Any, ...], options: dict[str, Any]) -> str | None:
    """A cursor's statement as far as it is certain; `None` where it is not."""
    query: Any = args[0] if args else options.get("query")
    if getattr(cursor, "withhold", False):
        return None  # it is there after its transaction, for the next user
    if hasattr(cursor, "mogrify"):
        params = args[1] if len(args) > 1 else options.get("params")
        try:
            return cursor.mogrify(query, params)
        except (psycopg.Error, TypeError, ValueError):
            return None  # as it will say when it is executed
    if isinstance(query, Composable):
        query = query.as_string(cursor)
    elif isinstance(query, bytes):
        try:
            query = query.decode(cursor.connection.info.encoding)
        except ValueError:
            return None
    # A placeholder becomes `$1`, which after a `$` would end a quotation.
    return query if isinstance(query, str) and "$%" not in query else None


def _pool_methods(held: HeldStatements) -> Any:
    def make(kind: Any) -> dict[str, Any]:
        threads = not inspect.iscoroutinefunction(kind.getconn)
        methods = Methods(held, kind, connection_of=lambda _: None)
        made = _with_rules(methods, kind, POOL, threads=threads)
        return made | (_getting_blocking if threads else _getting)(held, kind)

    return make


def _getting(held: HeldStatements, kind: Any) -> dict[str, Any]:
    get, put, return_it = kind.getconn, kind.putconn, getattr(kind, "_putconn", None)

    @wraps(get)
    async def getconn(this: Any, *args: Any, **options: Any) -> Any:
        call = unconfirmed_call()
        if call is None:
            connection = await get(this, *args, **options)
            _hold_connection(held, connection)
            return connection
        connection, place = await held.take(call, lambda: get(this, *args, **options))
        _hold_connection(held, connection)
        _guard(held, connection)
        held.taken(connection, call, place)
        return connection

    def shield(real: Any) -> Any:
        @wraps(real)
        async def method(this: Any, conn: Any, *args: Any, **options: Any) -> None:
            if current_barrier() is None and not held.has_place(conn):
                await real(this, conn, *args, **options)
                return
            with held.giving_back(conn):
                await shielded(
                    lambda: real(this, conn, *args, **options),
                    conn.pgconn.finish,
                )

        return method

    made = {"getconn": getconn, "putconn": shield(put)}
    if return_it is not None:  # what a cancelled check of a connection ends in
        made["_putconn"] = shield(return_it)
    return made


def _getting_blocking(held: HeldStatements, kind: Any) -> dict[str, Any]:
    get, put = kind.getconn, kind.putconn

    @wraps(get)
    def getconn(this: Any, *args: Any, **options: Any) -> Any:
        call = unconfirmed_call()
        if call is None:
            connection = get(this, *args, **options)
            _hold_connection(held, connection)
            return connection
        connection, place = held.take_blocking(
            call, lambda: get(this, *args, **options)
        )
        _hold_connection(held, connection)
        _guard(held, connection)
        held.taken(connection, call, place)
        return connection

    @wraps(put)
    def putconn(this: Any, conn: Any, *args: Any, **options: Any) -> None:
        if unconfirmed_call() is None and not held.has_place(conn):
            put(this, conn, *args, **options)
            return
        with held.giving_back(conn):
            put(this, conn, *args, **options)

    return {"getconn": getconn, "putconn": putconn}
