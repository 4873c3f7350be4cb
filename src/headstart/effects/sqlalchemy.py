"""Hold what an engine of SQLAlchemy 2 commits until the call that wrote it is confirmed.

```python
from headstart.effects.sqlalchemy import hold_commits

hold_commits(engine)
```

In a tool call that is not confirmed, statements that are known to read run at once, and
so do writes inside a transaction. What waits is the COMMIT, and whatever a rollback would
not undo: see `docs/effects.md`.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import anyio

from headstart._barrier import BarrierState, current_barrier
from headstart._errors import UsageError
from headstart._seams import MAX_HOLD, Seam
from headstart._thread_guard import UnconfirmedCall, passing, unconfirmed_call

from ._places import RETURN, Place, Places, read_connections
from ._sql import Kind, classify

try:
    from sqlalchemy import Connection, Engine, PoolProxiedConnection, event
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import NullPool, Pool, QueuePool
    from sqlalchemy.util import await_only
    from sqlalchemy.util.concurrency import in_greenlet
except ModuleNotFoundError as error:
    msg = 'Please install `sqlalchemy`: pip install "headstart[sqlalchemy]".'
    raise ImportError(msg) from error

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

__all__ = ("HeldEngine", "hold_commits")

HoldAt: TypeAlias = Literal["commit", "write"]

_HELD = "headstart_held"
_PLACE = "headstart_place"  # in the `info` of a connection that is checked out
_is_opening: ContextVar[bool] = ContextVar("headstart_opening", default=False)
_TRANSACTIONAL = frozenset({"postgresql", "mysql", "mariadb"})


def hold_commits(
    engine: Engine | AsyncEngine,
    *,
    hold_at: HoldAt | None = None,
    connections: int | None = None,
    functions: Iterable[str] = (),
    max_hold: float | None = MAX_HOLD,
) -> HeldEngine:
    """Hold what unconfirmed tool calls write through `engine`, from now on.

    It applies to everything that is made of the engine: connections, sessions, ORM. Other
    work passes, at the price of a context variable a statement.

    Args:
        engine: Of PostgreSQL, MySQL, MariaDB or SQLite. Of other databases no statement
            is known to read, so that each waits.
        hold_at: `"commit"` holds the COMMIT: a tool reads what it wrote, and its rows stay
            locked meanwhile. `"write"` holds the first statement that is not known to
            read: nothing is locked. The default is `"commit"` on PostgreSQL, and
            `"write"` elsewhere: on SQLite a transaction that waits would keep everybody
            else from writing, on MySQL and MariaDB a rollback undoes no write to a table
            whose engine has no transactions.
        connections: How many connections calls that are not confirmed may have at once,
            so that others find one. Half of what the pool may open, unless told.
        functions: SQL functions of yours that only read, by name.
        max_hold: Seconds that an effect waits at most; its call is then given up.

    Raises:
        UsageError: What would be held could happen nevertheless: connections are shared
            between callers, or committed when they are returned.
    """
    return HeldEngine(
        engine.sync_engine if isinstance(engine, AsyncEngine) else engine,
        hold_at=hold_at,
        connections=connections,
        functions=frozenset(name.upper() for name in functions),
        seam=Seam("sqlalchemy", max_hold=max_hold),
    )


class HeldEngine:
    """An engine whose commits are held. Made by `hold_commits`.

    Attributes:
        seam: What was held so far: `seam.counts`.
        hold_at: `"commit"` or `"write"`.
        connections: How many connections unconfirmed calls may have at once.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        hold_at: HoldAt | None,
        connections: int | None,
        functions: frozenset[str],
        seam: Seam,
    ) -> None:
        self.seam = seam
        self._dialect = engine.dialect
        self._functions = functions
        dialects = (each.__module__ for each in type(self._dialect).mro())
        self._trusted = frozenset((*dialects, __name__))
        _check_pool(engine.pool)
        self.hold_at: HoldAt = _read_hold_at(hold_at, self._dialect.name)
        self._places = Places(_read_connections(connections, engine.pool))
        self.connections = self._places.count
        # The class, because the engine makes its next pool of the same one.
        engine.pool.__class__ = _held_pool(type(engine.pool), self)
        event.listen(engine.pool, "checkin", self._on_checkin)
        event.listen(engine.pool, "detach", self._on_checkin)
        self._gate_statements(engine)
        self._gate_commits()
        self._gate_prepared()
        if self._dialect.is_async:
            self._shield_returns()

    def __repr__(self) -> str:
        return f"<HeldEngine {self._dialect.name} {self.hold_at} {self.seam!r}>"

    def hold(self, effect: str) -> None:
        """Wait for the verdict: in SQLAlchemy's greenlet, or in a thread."""
        self._wait(effect, None)

    def is_internal(self, module: str) -> bool:
        """Whether code is SQLAlchemy's own: what it does comes by the events."""
        return module.startswith("sqlalchemy.") or module in self._trusted

    def connect(self, open_connection: Callable[[], Any]) -> PoolProxiedConnection:
        """Take a connection, or wait for a place first."""
        call = unconfirmed_call()
        if call is None:
            return _HeldConnection(open_connection(), self)
        place = self._places.ask(call)
        try:
            if not place.is_open:
                self._wait("a connection", place)
            with passing(), _opening():
                connection = open_connection()
        except BaseException:
            place.end()
            raise
        connection.info[_PLACE] = place
        return _HeldConnection(connection, self)

    def _wait(self, effect: str, place: Place | None) -> None:
        gate = None if place is None else place.gate
        if self._dialect.is_async:
            await_only(self.seam.wait(effect, at=gate))
        else:
            self.seam.wait_blocking(effect, at=gate)

    def _on_checkin(self, _: Any, record: Any) -> None:
        place: Place | None = record.info.pop(_PLACE, None)
        if place is not None:
            place.end()

    def _gate_statements(self, engine: Engine) -> None:
        """Gate each statement before it is executed, and again as it is.

        Not by the engine's own events: with one listener, SQLAlchemy looks for listeners
        of every kind, which took a third of the time of a small transaction on SQLite.
        The first gate is where an error leaves the connection as it is. To the second
        comes what the first does not see: a default's statement, or one that a listener
        changed.
        """
        dialect: Any = self._dialect
        kind, gate = dialect.execution_ctx_cls, self._on_statement

        class HeldExecution(kind):
            def pre_exec(self) -> None:
                if unconfirmed_call() is not None:
                    gate(self.root_connection, self.statement)
                super().pre_exec()  # pyright: ignore[reportUnknownMemberType]

        dialect.execution_ctx_cls = HeldExecution
        for name in ("do_execute", "do_executemany", "do_execute_no_params"):
            event.listen(engine, name, self._on_execute)

    def _on_execute(self, _: Any, statement: str, *rest: Any) -> None:
        if unconfirmed_call() is not None:
            self._on_statement(rest[-1].root_connection, statement)

    def _on_statement(self, connection: Connection, statement: str) -> None:
        call = unconfirmed_call()
        if call is None or _is_opening.get():
            return
        kind = classify(statement, self._dialect.name, self._functions)
        if kind is Kind.READS:
            return
        place = _own_place(connection.info, call)
        if (
            place is not None
            and kind is Kind.WRITES
            and self.hold_at == "commit"
            and place.is_open
            and not self._commits_at_once(connection)
        ):
            if not place.dirty:
                place.dirty = True
                # Where an error leaves the connection as it is; see _gate_commits.
                event.listen(connection, "commit", self._on_commit)
            return
        self.hold("a statement")

    def _on_commit(self, connection: Any) -> None:
        call = unconfirmed_call()
        if call is not None:
            place = _own_place(getattr(connection, "info", {}), call)
            if place is None or place.dirty:
                self.hold("a COMMIT")

    def _gate_commits(self) -> None:
        """Gate each COMMIT at the dialect: also of connections of somebody else's."""
        dialect = self._dialect
        commit = dialect.do_commit

        def held_commit(dbapi_connection: Any) -> None:
            if unconfirmed_call() is not None:
                self._on_commit(dbapi_connection)
            commit(dbapi_connection)

        dialect.do_commit = held_commit

    def _gate_prepared(self) -> None:
        """Gate what prepares, and verdicts on what was prepared, maybe by others."""
        dialect = self._dialect
        prepare = dialect.do_prepare_twophase
        commit, roll_back = dialect.do_commit_twophase, dialect.do_rollback_twophase

        def held_prepare(connection: Connection, xid: Any) -> None:
            self._on_two_phase()
            prepare(connection, xid)

        def held_commit(
            connection: Connection, xid: Any, *args: Any, **how: Any
        ) -> None:
            self._on_two_phase()
            commit(connection, xid, *args, **how)

        def held_rollback(
            connection: Connection,
            xid: Any,
            is_prepared: bool = True,  # noqa: FBT001, FBT002 - as the dialect has it
            recover: bool = False,  # noqa: FBT001, FBT002
        ) -> None:
            if is_prepared:
                self._on_two_phase()
            roll_back(connection, xid, is_prepared, recover)

        dialect.do_prepare_twophase = held_prepare
        dialect.do_commit_twophase = held_commit
        dialect.do_rollback_twophase = held_rollback

    def _shield_returns(self) -> None:
        """Let a cancelled call return its connection as it should be returned.

        A tool call is cancelled by a scope, which cancels every await of the way out as
        well: the rollback, so that the connection is lost; and then its closing, which
        leaves a task of aiosqlite behind that nothing ever ends.
        """
        for name in ("do_rollback", "do_close", "do_terminate"):
            setattr(self._dialect, name, _shielded(getattr(self._dialect, name)))

    def _on_two_phase(self, *_: Any) -> None:
        if unconfirmed_call() is not None:
            self.hold("a two-phase COMMIT")

    def _commits_at_once(self, connection: Connection) -> bool:
        level = connection.get_execution_options().get("isolation_level")
        if level == "AUTOCOMMIT":
            return True
        driver: Any = connection.connection.dbapi_connection
        try:
            return self._dialect.detect_autocommit_setting(driver)
        except NotImplementedError:
            return True


@contextlib.contextmanager
def _opening() -> Generator[None, None, None]:
    """Let pass what SQLAlchemy itself asks a connection that it opens."""
    token = _is_opening.set(True)
    try:
        yield
    finally:
        _is_opening.reset(token)


def _shielded(end: Callable[[Any], None]) -> Callable[[Any], None]:
    """Do it although its call is cancelled or discarded, for a moment."""

    def shielded(dbapi_connection: Any) -> None:
        barrier = current_barrier()
        if (
            barrier is None
            or not in_greenlet()
            or (
                barrier.effective_state is not BarrierState.DENIED
                and anyio.current_effective_deadline() > -math.inf
            )
        ):
            end(dbapi_connection)
            return
        with anyio.move_on_after(RETURN, shield=True) as scope:  # noqa: ASYNC100 - see await_only
            _interrupt(dbapi_connection)
            end(dbapi_connection)
        if scope.cancelled_caught:
            msg = f"A connection could not be returned within {RETURN} s."
            raise TimeoutError(msg)

    return shielded


def _interrupt(dbapi_connection: Any) -> None:
    """End the statement of SQLite that a cancelled call has left to its thread."""
    driver = getattr(dbapi_connection, "driver_connection", None)
    interrupt = getattr(driver, "interrupt", None)
    if interrupt is not None:
        with contextlib.suppress(ValueError):  # it is closed
            await_only(interrupt())


def _own_place(info: Any, call: UnconfirmedCall) -> Place | None:
    """The place of a connection that the call took itself.

    Somebody else's may have been written on before, and may be committed by them.
    """
    place: Place | None = info.get(_PLACE)
    return place if place is not None and place.is_of(call) else None


def _read_hold_at(hold_at: HoldAt | None, dialect: str) -> HoldAt:
    if hold_at not in (None, "commit", "write"):
        msg = f'hold_at is "commit" or "write", not {hold_at!r}.'
        raise UsageError(msg)
    if hold_at == "commit" and dialect not in _TRANSACTIONAL:
        msg = (
            f'hold_at="commit" is not possible on {dialect}, as a transaction that waits '
            "would keep everybody else from writing, or what a rollback undoes there is "
            'not known. Use hold_at="write".'
        )
        raise UsageError(msg)
    return hold_at or ("commit" if dialect == "postgresql" else "write")


def _read_connections(connections: int | None, pool: Pool) -> int:
    limit = None
    if isinstance(pool, QueuePool):
        overflow = cast("int", getattr(pool, "_max_overflow", -1))
        if pool.size() > 0 and overflow >= 0:
            limit = pool.size() + overflow
    return read_connections(connections, limit)


def _check_pool(pool: Pool) -> None:
    name = type(pool).__name__
    if hasattr(pool, _HELD):
        msg = "The commits of this engine are held already."
        raise UsageError(msg)
    if not isinstance(pool, QueuePool | NullPool) or type(pool).connect is not (
        Pool.connect
    ):
        msg = (
            f"The engine's pool is a {name}, in which callers share a connection, so that "
            "one would commit what another holds, or keep it from the others. Create the "
            "engine with poolclass=NullPool, QueuePool or AsyncAdaptedQueuePool, and "
            "SQLite with a file."
        )
        raise UsageError(msg)
    reset = getattr(pool, "_reset_on_return", None)
    if getattr(reset, "name", "") == "reset_commit":
        msg = (
            "The engine's pool commits what is returned to it, as pool_reset_on_return is "
            '"commit". Create the engine with pool_reset_on_return="rollback".'
        )
        raise UsageError(msg)


def _held_pool(kind: type[Pool], held: HeldEngine) -> type[Pool]:
    def connect(self: Pool) -> PoolProxiedConnection:
        return held.connect(lambda: kind.connect(self))

    # The names are the old ones: they are those of the pool's logger.
    names = {"connect": connect, "__module__": kind.__module__, _HELD: held}
    return cast("type[Pool]", type(kind.__name__, (kind,), names))


_UNSEEN = "what is done with a driver's own connection is not seen: use SQLAlchemy's"


class _HeldConnection(PoolProxiedConnection):
    """A connection as SQLAlchemy itself sees it, and as it is outside of tool calls.

    In a call that is not confirmed its driver cannot be reached past the events.
    """

    __slots__ = ("__weakref__", "_connection", "_held")

    def __init__(self, connection: PoolProxiedConnection, held: HeldEngine) -> None:
        self._connection = connection
        self._held = held

    def _check(self, name: str) -> None:
        frame = inspect.currentframe()
        for _ in range(2):  # over this method and the one that was asked
            frame = frame and frame.f_back
        asking = frame.f_globals.get("__name__", "") if frame is not None else ""
        if not self._held.is_internal(asking):
            self._held.seam.refuse(f"{name!r} of a driver's connection", _UNSEEN)

    def __getattr__(self, name: str) -> Any:
        if unconfirmed_call() is not None:
            self._check(name)
        return getattr(self._connection, name)

    @property
    def dbapi_connection(self) -> Any:  # type: ignore[override]
        if unconfirmed_call() is not None:
            self._check("dbapi_connection")
        return self._connection.dbapi_connection

    @property
    def driver_connection(self) -> Any:
        if unconfirmed_call() is not None:
            self._check("driver_connection")
        return self._connection.driver_connection

    @property
    def is_valid(self) -> bool:
        return self._connection.is_valid

    @property
    def is_detached(self) -> bool:
        return self._connection.is_detached

    @property
    def info(self) -> Any:
        return self._connection.info

    @property
    def record_info(self) -> Any:
        return self._connection.record_info

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        if unconfirmed_call() is not None:
            self._check("cursor")
        return self._connection.cursor(*args, **kwargs)

    def commit(self) -> None:
        if unconfirmed_call() is not None:
            self._check("commit")
        self._connection.commit()

    def rollback(self) -> None:
        self._connection.rollback()

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:  # noqa: FBT001, FBT002
        self._connection.invalidate(e, soft)

    def detach(self) -> None:
        self._held.seam.refuse("detach()", "nobody would know when it is closed")
        self._connection.detach()

    def close(self) -> None:
        self._connection.close()
