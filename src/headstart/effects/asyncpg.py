"""Hold what asyncpg sends until the call that asked for it is confirmed.

```python
from headstart.effects.asyncpg import hold_statements

hold_statements(pool)
```

In a tool call that is not confirmed, statements that are known to read run at once on the
connection that the call took from the pool. Everything else waits before it is sent.
"""

from __future__ import annotations

from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from headstart._barrier import current_barrier
from headstart._errors import UsageError
from headstart._seams import MAX_HOLD
from headstart._thread_guard import unconfirmed_call

from ._held_methods import Methods
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
    from asyncpg.connection import Connection
    from asyncpg.pool import Pool, PoolConnectionProxy
except ImportError as missing:
    message = 'Please install `asyncpg`: pip install "headstart[asyncpg]"'
    raise ImportError(message, name="asyncpg") from missing

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ("HeldStatements", "hold_statements")

# The methods of a class, and the kind of each: see Methods.
CONNECTION: dict[str, tuple[str, Rule]] = {
    "add_listener": ("coroutine", waits("listening")),
    "close": ("coroutine", CLOSE),
    "copy_from_query": ("coroutine", waits("a COPY")),
    "copy_from_table": ("coroutine", waits("a COPY")),
    "copy_records_to_table": ("coroutine", waits("a COPY")),
    "copy_to_table": ("coroutine", waits("a COPY")),
    "execute": ("coroutine", STATEMENT),
    "executemany": ("coroutine", STATEMENT),
    "fetch": ("coroutine", STATEMENT),
    "fetchmany": ("coroutine", STATEMENT),
    "fetchrow": ("coroutine", STATEMENT),
    "fetchval": ("coroutine", STATEMENT),
    "prepare": ("coroutine", STATEMENT),
    "reload_schema_state": ("coroutine", waits("a connection's settings")),
    "remove_listener": ("coroutine", waits("listening")),
    "reset": ("coroutine", waits("a connection's settings")),
    "reset_type_codec": ("coroutine", waits("a connection's settings")),
    "set_builtin_type_codec": ("coroutine", waits("a connection's settings")),
    "set_type_codec": ("coroutine", waits("a connection's settings")),
    "terminate": ("at_once", CLOSE),
}
PREPARED: dict[str, tuple[str, Rule]] = dict.fromkeys(
    ("executemany", "fetch", "fetchmany", "fetchrow", "fetchval"),
    ("coroutine", STATEMENT),
)
TRANSACTION: dict[str, tuple[str, Rule]] = {
    "__aexit__": ("coroutine", END),
    "commit": ("coroutine", END),
    "rollback": ("coroutine", END),
    "start": ("coroutine", BEGIN),
}
CURSOR: dict[str, tuple[str, Rule]] = {
    "fetch": ("coroutine", FETCH),
    "fetchrow": ("coroutine", FETCH),
    "forward": ("coroutine", FETCH),
}
ITERATOR: dict[str, tuple[str, Rule]] = {"__anext__": ("coroutine", STATEMENT)}
POOL: dict[str, tuple[str, Rule]] = {
    "close": ("coroutine", waits("close() of a pool")),
    "copy_from_query": ("coroutine", waits("a COPY")),
    "copy_from_table": ("coroutine", waits("a COPY")),
    "copy_records_to_table": ("coroutine", waits("a COPY")),
    "copy_to_table": ("coroutine", waits("a COPY")),
    "expire_connections": ("coroutine", waits("expire_connections() of a pool")),
    "set_connect_args": ("at_once", waits("set_connect_args() of a pool")),
    "terminate": ("at_once", waits("terminate() of a pool")),
}
# Statements of a pool, which wait without a connection.
POOL_STATEMENTS = (
    "execute",
    "executemany",
    "fetch",
    "fetchmany",
    "fetchrow",
    "fetchval",
)
# What may be asked of the protocol at any time: it sends nothing.
ASKED = frozenset(
    {
        "backend_pid",
        "backend_secret",
        "get_record_class",
        "get_server_pid",
        "get_settings",
        "is_connected",
        "is_in_transaction",
        "queries_count",
    }
)


def hold_statements(
    target: Pool | Connection,
    *,
    connections: int | None = None,
    functions: Iterable[str] = (),
    max_hold: float | None = MAX_HOLD,
) -> HeldStatements:
    """Hold what unconfirmed tool calls send through a pool, or on a connection.

    Call it right after the pool is made: connections that are in use are not held.

    Args:
        target: What `create_pool` or `connect` of asyncpg gives. A single connection is
            nobody's own: everything waits on it, reads as well. Except where a call
            that is not confirmed made it and holds it here.
        connections: How many connections of the pool calls that are not confirmed may
            have at once, so that others find one. Half of its `max_size`, unless told.
        functions: SQL functions of yours that only read, by name.
        max_hold: Seconds that a statement waits at most; its call is then given up.

    Raises:
        UsageError: It is neither, or a connection of a pool, or it is held already, or
            no connection of the pool would be left to others.
    """
    given: Any = target
    if isinstance(given, PoolConnectionProxy) or not isinstance(
        given, Pool | Connection
    ):
        msg = (
            "hold_statements takes a pool or a connection of asyncpg, and not "
            f"{type(target).__module__}.{type(target).__name__}. Of a pool's connection "
            "give it the pool."
        )
        raise UsageError(msg)
    check_not_held(target)
    is_pool = isinstance(target, Pool)
    if not is_pool:
        refuse_connections(connections)
    held = HeldStatements(
        "asyncpg",
        limit=target.get_max_size() if isinstance(target, Pool) else 0,
        connections=connections,
        functions=functions,
        max_hold=max_hold,
    )
    if isinstance(target, Pool):
        held.hold(target, partial(_pool_methods, held))
        return held
    _hold_connection(held, target)
    _guard(held, target)
    call = unconfirmed_call()
    if call is not None and not target.is_in_transaction():
        held.own(target, call)
    return held


def _methods(
    held: HeldStatements,
    kind: Any,
    rules: dict[str, tuple[str, Rule]],
    *,
    of_connection: bool = False,
) -> dict[str, Any]:
    methods = Methods(
        held,
        kind,
        connection_of=(lambda it: it) if of_connection else _connection_of,
        text_of=_argument if of_connection else _query_of,
        give_up=lambda connection: connection.terminate(),
    )
    return {
        name: getattr(methods, sort)(name, rule)
        for name, (sort, rule) in rules.items()
        if hasattr(kind, name)  # not each is in every version
    }


def _connection_of(resource: Any) -> Any:
    return resource._connection  # noqa: SLF001 - it has no other name


def _query_of(resource: Any, *_: Any) -> str | None:
    return resource._query  # noqa: SLF001


def _argument(_: Any, args: tuple[Any, ...], options: dict[str, Any]) -> str | None:
    text = args[0] if args else options.get("query", options.get("command"))
    return text if isinstance(text, str) else None


def _hold_connection(held: HeldStatements, connection: Any) -> None:
    held.hold(connection, partial(_connection_methods, held))


def _connection_methods(held: HeldStatements, kind: Any) -> dict[str, Any]:
    made = _methods(held, kind, CONNECTION, of_connection=True)
    hold_transaction = partial(_methods, held, rules=TRANSACTION)
    prepare = Methods(
        held, kind, connection_of=lambda it: it, text_of=_argument
    ).coroutine(
        "prepare",
        STATEMENT,
        made=lambda it: held.hold(it, partial(_prepared_methods, held)),
    )
    make_transaction = kind.transaction

    @wraps(make_transaction)
    def transaction(this: Any, *args: Any, **options: Any) -> Any:
        made = make_transaction(this, *args, **options)
        held.hold(made, hold_transaction)
        return made

    made.update(
        prepare=prepare,
        transaction=transaction,
        cursor=_held_cursor(held, kind),
    )
    return made


def _guard(held: HeldStatements, connection: Any) -> None:
    """Gate what a driver's own code asks for two dozen times a transaction."""
    real: Any = vars(Connection)["_protocol"]
    get, put = real.__get__, real.__set__

    def protocol(this: Any) -> Any:
        found = get(this)
        call = unconfirmed_call()
        if call is None or found is None or held.may_send(this, call):
            return found
        return _Protocol(found, held)

    held.guard(connection, {"_protocol": property(protocol, put)})


class _Protocol:
    """What a connection sends through, to those that no rule let pass."""

    __slots__ = ("_held", "_protocol")

    def __init__(self, protocol: Any, held: HeldStatements) -> None:
        self._protocol = protocol
        self._held = held

    def __getattr__(self, name: str) -> Any:
        if name not in ASKED:
            self._held.refuse_unknown()
        return getattr(self._protocol, name)


def _held_cursor(held: HeldStatements, kind: Any) -> Any:
    make_cursor = kind.cursor

    @wraps(make_cursor)
    def cursor(this: Any, *args: Any, **options: Any) -> Any:
        made = make_cursor(this, *args, **options)
        held.hold(made, partial(_factory_methods, held))
        return made

    return cursor


def _prepared_methods(held: HeldStatements, kind: Any) -> dict[str, Any]:
    return _methods(held, kind, PREPARED) | {"cursor": _held_cursor(held, kind)}


def _factory_methods(held: HeldStatements, kind: Any) -> dict[str, Any]:
    iterate, wait = kind.__aiter__, kind.__await__

    def aiter_held(this: Any) -> Any:
        rows = iterate(this)
        held.hold(rows, partial(_methods, held, rules=ITERATOR))
        return rows

    async def open_it(this: Any) -> Any:
        connection = _connection_of(this)
        with await held.admit(connection, STATEMENT, _query_of(this)):
            cursor = await _Waiting(wait(this))
        held.hold(cursor, partial(_methods, held, rules=CURSOR))
        return cursor

    def await_held(this: Any) -> Any:
        return open_it(this).__await__()

    return {"__aiter__": aiter_held, "__await__": await_held}


class _Waiting:
    __slots__ = ("_steps",)

    def __init__(self, steps: Any) -> None:
        self._steps = steps

    def __await__(self) -> Any:
        return self._steps


def _pool_methods(held: HeldStatements, kind: Any) -> dict[str, Any]:
    methods = Methods(held, kind, connection_of=lambda _: None)
    made = {
        name: getattr(methods, sort)(name, rule) for name, (sort, rule) in POOL.items()
    }
    made.update((name, _pool_statement(held, kind, name)) for name in POOL_STATEMENTS)
    acquire, release = kind._acquire, kind.release  # noqa: SLF001 - what acquire() awaits

    async def held_acquire(this: Any, *args: Any, **options: Any) -> Any:
        call = unconfirmed_call()
        if call is None:
            proxy = await acquire(this, *args, **options)
            _hold_connection(held, proxy._con)  # noqa: SLF001
            return proxy
        proxy, place = await held.take(call, lambda: acquire(this, *args, **options))
        connection = proxy._con  # noqa: SLF001
        _hold_connection(held, connection)
        _guard(held, connection)
        held.taken(connection, call, place)
        return proxy

    @wraps(release)
    async def held_release(this: Any, connection: Any, **options: Any) -> None:
        real = getattr(connection, "_con", None)
        if real is None:  # it was closed
            held.end_places(lambda each: each.is_closed())
        if real is None or (current_barrier() is None and not held.has_place(real)):
            await release(this, connection, **options)
            return
        with held.giving_back(real):
            await shielded(lambda: release(this, connection, **options), real.terminate)

    return made | {"_acquire": held_acquire, "release": held_release}


def _pool_statement(held: HeldStatements, kind: Any, name: str) -> Any:
    """A statement of a pool: what does not read waits without a connection."""
    real = getattr(kind, name)

    @wraps(real)
    async def method(this: Any, *args: Any, **options: Any) -> Any:
        if unconfirmed_call() is not None and not held.reads(
            _argument(this, args, options)
        ):
            await held.seam.wait(STATEMENT.effect)
        return await real(this, *args, **options)

    return method
