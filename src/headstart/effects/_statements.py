"""Statements of a driver used directly: what reads passes, all else waits unsent.

Rules of this file:

1. In a call that is not confirmed nothing is sent on a connection that the call did not
   take itself. It could end, or spoil, a transaction of somebody else.
2. On its own connection it sends what is known to read, and BEGIN, COMMIT, ROLLBACK and
   savepoints by the driver's methods: they concern its own reads only. Everything else
   waits before it is sent, so that nothing is locked.
3. A connection is a call's own from when it takes it until anybody else uses it.
4. A driver's class has a table of rules, one a method. Below them lies what every method
   sends through: there, what no rule let pass is refused. So a method that the table
   lacks costs the speculation, and never happens early.
"""

from __future__ import annotations

import math
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary, ref

import anyio

from headstart._barrier import BarrierState, current_barrier
from headstart._errors import UsageError
from headstart._seams import Seam
from headstart._thread_guard import passing, unconfirmed_call

from ._places import RETURN, Place, Places, read_connections
from ._sql import Kind, classify

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterable
    from contextlib import AbstractContextManager

    from headstart._barrier import WriteBarrier
    from headstart._thread_guard import UnconfirmedCall

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a method does in a call that is not confirmed.

    Attributes:
        effect: What waits, for errors.
        reads: Passes on the call's own connection if its statement is known to read.
        own: Passes on the call's own connection.
        ends: Ends what was begun: a cancelled call still has a moment for it.
    """

    effect: str
    reads: bool = False
    own: bool = False
    ends: bool = False


STATEMENT = Rule(effect="a statement", reads=True)
FETCH = Rule(effect="fetching rows", own=True)
BEGIN = Rule(effect="a transaction", own=True)
END = Rule(effect="the end of a transaction", own=True, ends=True)
CLOSE = Rule(effect="closing a connection", own=True, ends=True)


def waits(effect: str) -> Rule:
    """A rule for what always waits."""
    return Rule(effect=effect)


class _Everything:
    """What a pool does for itself may use any connection."""


EVERYTHING = _Everything()
_sending: ContextVar[sending | None] = ContextVar("headstart_sending", default=None)


class sending:  # noqa: N801 - reads as a statement
    """Let a block send on a connection, and say so to the tripwire.

    Tasks that start in it have its context; they may send until it ends, and a pool's own
    for as long as they run.
    """

    __slots__ = ("_connection", "_passing", "_token")

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._token = _sending.set(self)
        self._passing = passing()
        self._passing.__enter__()

    def __exit__(self, *_: object) -> None:
        self._passing.__exit__()
        _sending.reset(self._token)
        if self._connection is not EVERYTHING:
            self._connection = None

    def lets(self, connection: Any) -> bool:
        """Whether it lets send on a connection."""
        let = self._connection
        return let is EVERYTHING or (let is not None and let is connection)


class HeldStatements:
    """What `hold_statements` did to a pool or a connection.

    Attributes:
        seam: Where statements wait, with counts.
        connections: How many connections of the pool unconfirmed calls may have at once;
            0 for a single connection.
    """

    def __init__(
        self,
        name: str,
        *,
        limit: int | None,
        connections: int | None,
        functions: Iterable[str],
        max_hold: float | None,
    ) -> None:
        self.seam = Seam(name, max_hold=max_hold)
        self.connections = read_connections(connections, limit)
        self._functions = frozenset(each.upper() for each in functions)
        self._places = Places(self.connections)
        self._owners: WeakKeyDictionary[Any, ref[WriteBarrier]] = WeakKeyDictionary()
        self._taken: dict[Any, Place] = {}
        self._classes: dict[type, type] = {}
        self._guarded: dict[type, type] = {}

    def __repr__(self) -> str:
        return f"<HeldStatements {self.seam!r}>"

    # Classes of the driver, with rules

    def hold(self, thing: Any, make_methods: Callable[[type], dict[str, Any]]) -> None:
        """Make a driver's object one of a class with rules. Nothing if it is."""
        kind: Any = thing.__class__
        held = self._classes.get(kind)
        if held is None:
            if getattr(kind, HELD, None) is self:
                return
            # The names are the old ones: people read them in logs.
            names = {"__slots__": (), "__module__": kind.__module__, HELD: self}
            held = type(kind)(kind.__name__, (kind,), names | make_methods(kind))
            self._classes[kind] = held
        thing.__class__ = held

    def guard(self, thing: Any, methods: dict[str, Any]) -> None:
        """Add what would cost too much where no unconfirmed call has a thing."""
        kind: Any = thing.__class__
        guarded = self._guarded.get(kind)
        if guarded is None:
            names = {"__slots__": (), "__module__": kind.__module__, GUARDED: kind}
            guarded = type(kind)(kind.__name__, (kind,), names | methods)
            self._guarded[kind] = guarded
        thing.__class__ = guarded

    def unguard(self, thing: Any) -> None:
        """Take away what `guard` added."""
        kind = getattr(thing.__class__, GUARDED, None)
        if kind is not None:
            thing.__class__ = kind

    # Whose a connection is

    def own(self, connection: Any, call: UnconfirmedCall) -> None:
        """Note that a call took a connection that nobody else uses."""
        self._owners[connection] = ref(call.barrier)

    def owns(self, connection: Any, call: UnconfirmedCall) -> bool:
        """Whether a connection is a call's own."""
        if connection is None:  # of a pool's own methods
            return False
        owner = self._owners.get(connection)
        return owner is not None and owner() is call.barrier

    def touch(self, connection: Any) -> None:
        """Note that somebody who is not an unconfirmed call uses a connection."""
        # Not its length, which takes long, as each statement asks.
        owned: Any = getattr(self._owners, "data", True)
        if owned and connection is not None:
            self._owners.pop(connection, None)

    def may_send(self, connection: Any, call: UnconfirmedCall) -> bool:
        """Whether a rule let pass what is sent now."""
        let = _sending.get()
        return let is not None and (
            let.lets(EVERYTHING)
            or (let.lets(connection) and self.owns(connection, call))
        )

    def is_sending(self, connection: Any) -> bool:
        """Whether this is part of what a rule let pass, or of a pool's own work."""
        let = _sending.get()
        return let is not None and let.lets(connection)

    def reads(self, text: str | None) -> bool:
        """Whether a statement is known to read."""
        return (
            text is not None
            and classify(text, "postgresql", self._functions) is Kind.READS
        )

    # Deciding

    def _passes(
        self, connection: Any, rule: Rule, text: str | None
    ) -> AbstractContextManager[None] | None:
        """What to run a method in; `None` where it has to wait first."""
        call = unconfirmed_call()
        if call is None:
            self.touch(connection)
            return _FREE
        if self.is_sending(connection):
            return _FREE
        if self.owns(connection, call) and (
            rule.own or (rule.reads and self.reads(text))
        ):
            return sending(connection)
        return None

    async def admit(
        self, connection: Any, rule: Rule, text: str | None = None
    ) -> AbstractContextManager[None]:
        """Wait until a method may run, and give what to run it in."""
        passes = self._passes(connection, rule, text)
        if passes is None:
            await self.seam.wait(rule.effect)
            self.touch(connection)
        return passes or _FREE

    def admit_blocking(
        self, connection: Any, rule: Rule, text: str | None = None
    ) -> AbstractContextManager[None]:
        """Wait like `admit`, in a thread."""
        passes = self._passes(connection, rule, text)
        if passes is None:
            self.seam.wait_blocking(rule.effect)
            self.touch(connection)
        return passes or _FREE

    def admit_at_once(
        self, connection: Any, rule: Rule
    ) -> AbstractContextManager[None]:
        """What to run a method in that cannot wait."""
        passes = self._passes(connection, rule, None)
        if passes is None:
            self.seam.refuse(rule.effect, "it cannot wait where it is asked for")
        return passes or _FREE

    def refuse_unknown(self) -> None:
        """Refuse what came to a connection past every rule."""
        self.seam.refuse("something that was sent past the seam", _UNKNOWN)

    # Connections of a pool

    async def take(
        self, call: UnconfirmedCall, get: Callable[[], Awaitable[T]]
    ) -> tuple[T, Place]:
        """Take a connection for a call, or wait for a place first."""
        place = self._places.ask(call)
        try:
            if not place.is_open:
                await self.seam.wait("a connection", at=place.gate)
            with sending(EVERYTHING):
                return await get(), place
        except BaseException:
            place.end()
            raise

    def take_blocking(
        self, call: UnconfirmedCall, get: Callable[[], T]
    ) -> tuple[T, Place]:
        """Take a connection like `take`, in a thread."""
        place = self._places.ask(call)
        try:
            if not place.is_open:
                self.seam.wait_blocking("a connection", at=place.gate)
            with sending(EVERYTHING):
                return get(), place
        except BaseException:
            place.end()
            raise

    def taken(self, connection: Any, call: UnconfirmedCall, place: Place) -> None:
        """Note whose a connection of a pool is now."""
        self._taken[connection] = place
        self.own(connection, call)

    def has_place(self, connection: Any) -> bool:
        """Whether a call that was not confirmed took a connection."""
        return connection in self._taken

    def end_places(self, is_gone: Callable[[Any], bool]) -> None:
        """Take the places back of connections that left their pool."""
        for connection in [each for each in self._taken if is_gone(each)]:
            self._taken.pop(connection).end()

    @contextmanager
    def giving_back(self, connection: Any) -> Generator[None]:
        """Let a block give a connection back to its pool, and its place with it."""
        # Before it is back: somebody may have it when the pool returns from this.
        self._owners.pop(connection, None)
        place = self._taken.pop(connection, None)
        self.unguard(connection)
        try:
            with sending(EVERYTHING):
                yield
        finally:
            if place is not None:
                place.end()


HELD = "_headstart_held"
GUARDED = "_headstart_guarded"
_FREE = nullcontext()
_UNKNOWN = (
    "the seam does not know by what method: use those of the connection and of what it "
    "made after it was held"
)


def check_not_held(thing: Any) -> None:
    """Refuse to hold a thing twice.

    Raises:
        UsageError: It is held.
    """
    if hasattr(thing, HELD):
        msg = (
            f"The statements of this {type(thing).__name__} are held already: call "
            "hold_statements once."
        )
        raise UsageError(msg)


def refuse_connections(connections: int | None) -> None:
    """Refuse an option that means nothing.

    Raises:
        UsageError: There is one.
    """
    if connections is not None:
        msg = f"connections={connections!r} is for pools: leave it out here."
        raise UsageError(msg)


async def shielded(work: Callable[[], Awaitable[T]], give_up: Callable[[], None]) -> T:
    """Run what ends something although the call is cancelled, for a moment.

    A tool call is cancelled by a scope, which cancels every await of the way out as well:
    the ROLLBACK, and the return to the pool. Then the connection would be lost. Where
    nothing is cancelled it takes as long as it takes.
    """
    barrier = current_barrier()
    if barrier is None or (
        barrier.effective_state is BarrierState.FLUSHED
        and anyio.current_effective_deadline() > -math.inf
    ):
        return await work()
    outcome: Callable[[], T] | None = None
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope(shield=True) as scope:
            tasks.start_soon(_limit_when_cancelled, scope)
            try:
                result = await work()
            except Exception as error:  # noqa: BLE001 - it is raised again below
                outcome = partial(_raise, error)
            else:
                outcome = partial(_give, result)
        if outcome is None:
            give_up()
        tasks.cancel_scope.cancel()
    if outcome is None:
        msg = f"A connection could not be returned within {RETURN} s."
        raise TimeoutError(msg)
    return outcome()


async def _limit_when_cancelled(scope: anyio.CancelScope) -> None:
    try:
        await anyio.sleep_forever()
    finally:
        scope.deadline = anyio.current_time() + RETURN


def _raise(error: Exception) -> Any:
    raise error


def _give(result: T) -> T:
    return result
