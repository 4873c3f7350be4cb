"""Methods of a driver's class that follow a rule: of each kind, async and in threads.

The method that is replaced is called as it was. Where no unconfirmed call runs, that is
all there is, at the price of a context variable.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from headstart._barrier import current_barrier
from headstart._thread_guard import unconfirmed_call

from ._statements import END, sending, shielded

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

    from ._statements import HeldStatements, Rule

    Arguments = tuple[Any, ...]
    Options = dict[str, Any]


def _no_text(_this: Any, _args: Any, _options: Any) -> str | None:
    return None


class Methods:
    """Makes methods for a class of a driver.

    Args:
        held: Where they wait.
        kind: The class.
        connection_of: An object's connection.
        text_of: A statement, of an object and its method's arguments.
        give_up: Closes a connection that cannot be returned.
    """

    def __init__(
        self,
        held: HeldStatements,
        kind: type,
        *,
        connection_of: Callable[[Any], Any],
        text_of: Callable[[Any, Arguments, Options], str | None] = _no_text,
        give_up: Callable[[Any], None] = lambda _: None,
    ) -> None:
        self._held = held
        self._kind: Any = kind
        self._connection_of = connection_of
        self._text_of = text_of
        self._give_up = give_up

    def coroutine(
        self, name: str, rule: Rule, made: Callable[[Any], None] | None = None
    ) -> Any:
        """A coroutine function, and what to do with its result."""
        real = getattr(self._kind, name)
        held, connection_of, give_up = self._held, self._connection_of, self._give_up

        async def held_method(this: Any, args: Arguments, options: Options) -> Any:
            connection = connection_of(this)
            text = self._text_of(this, args, options) if rule.reads else None
            with await held.admit(connection, rule, text):
                work = partial(real, this, *args, **options)
                if rule.ends:
                    result = await shielded(work, partial(give_up, connection))
                else:
                    result = await work()
            if made is not None:
                made(result)
            return result

        # Not itself a coroutine function, which would cost a frame for each await.
        @wraps(real)
        def method(this: Any, *args: Any, **options: Any) -> Any:
            if (
                unconfirmed_call() is None
                and made is None
                and not (rule.ends and current_barrier() is not None)
            ):
                held.touch(connection_of(this))
                return real(this, *args, **options)
            return held_method(this, args, options)

        return method

    def blocking(self, name: str, rule: Rule) -> Any:
        """A function that blocks its thread."""
        real = getattr(self._kind, name)
        held, connection_of = self._held, self._connection_of

        @wraps(real)
        def method(this: Any, *args: Any, **options: Any) -> Any:
            connection = connection_of(this)
            if unconfirmed_call() is None:
                held.touch(connection)
                return real(this, *args, **options)
            text = self._text_of(this, args, options) if rule.reads else None
            with held.admit_blocking(connection, rule, text):
                return real(this, *args, **options)

        return method

    def at_once(self, name: str, rule: Rule) -> Any:
        """A function that does not wait, wherever it is called."""
        real = getattr(self._kind, name)
        held, connection_of = self._held, self._connection_of

        @wraps(real)
        def method(this: Any, *args: Any, **options: Any) -> Any:
            with held.admit_at_once(connection_of(this), rule):
                return real(this, *args, **options)

        return method

    def block(self, name: str, rule: Rule) -> Any:
        """A function that gives an asynchronous context manager."""
        real = getattr(self._kind, name)
        held = self._held

        @asynccontextmanager
        async def held_block(this: Any, manager: Any) -> AsyncGenerator[Any]:
            connection = self._connection_of(this)
            with await held.admit(connection, rule):
                entered = await manager.__aenter__()
            how: Arguments = (None, None, None)
            try:
                yield entered
            except BaseException as error:  # noqa: BLE001 - it is raised again below
                how = (type(error), error, error.__traceback__)
            with await held.admit(connection, END):
                leave = partial(manager.__aexit__, *how)
                swallowed = await shielded(leave, partial(self._give_up, connection))
            if how[1] is not None and not swallowed:
                raise how[1]

        @wraps(real)
        def method(this: Any, *args: Any, **options: Any) -> Any:
            manager = real(this, *args, **options)
            if current_barrier() is None and unconfirmed_call() is None:
                return manager
            return held_block(this, manager)

        return method

    def block_blocking(self, name: str, rule: Rule) -> Any:
        """A function that gives a context manager."""
        real = getattr(self._kind, name)
        held = self._held

        @contextmanager
        def held_block(this: Any, manager: Any) -> Generator[Any]:
            connection = self._connection_of(this)
            with held.admit_blocking(connection, rule):
                entered = manager.__enter__()
            how: Arguments = (None, None, None)
            try:
                yield entered
            except BaseException as error:  # noqa: BLE001 - it is raised again below
                how = (type(error), error, error.__traceback__)
            with held.admit_blocking(connection, END):
                swallowed = manager.__exit__(*how)
            if how[1] is not None and not swallowed:
                raise how[1]

        @wraps(real)
        def method(this: Any, *args: Any, **options: Any) -> Any:
            manager = real(this, *args, **options)
            if unconfirmed_call() is None:
                return manager
            return held_block(this, manager)

        return method

    def rows(self, name: str, rule: Rule) -> Any:
        """A function that gives an asynchronous generator."""
        real = getattr(self._kind, name)
        held = self._held

        async def held_rows(
            this: Any, rows: Any, text: str | None
        ) -> AsyncGenerator[Any]:
            connection = self._connection_of(this)
            try:
                while True:
                    with await held.admit(connection, rule, text):
                        try:
                            row = await anext(rows)
                        except StopAsyncIteration:
                            return
                    yield row
            finally:
                with sending(connection):
                    await shielded(rows.aclose, partial(self._give_up, connection))

        @wraps(real)
        def method(this: Any, *args: Any, **options: Any) -> Any:
            rows = real(this, *args, **options)
            if current_barrier() is None and unconfirmed_call() is None:
                return rows
            text = self._text_of(this, args, options) if rule.reads else None
            return held_rows(this, rows, text)

        return method

    def rows_blocking(self, name: str, rule: Rule) -> Any:
        """A function that gives a generator."""
        real = getattr(self._kind, name)
        held = self._held

        def held_rows(this: Any, rows: Any, text: str | None) -> Generator[Any]:
            connection = self._connection_of(this)
            try:
                while True:
                    with held.admit_blocking(connection, rule, text):
                        try:
                            row = next(rows)
                        except StopIteration:
                            return
                    yield row
            finally:
                with sending(connection):
                    rows.close()

        @wraps(real)
        def method(this: Any, *args: Any, **options: Any) -> Any:
            rows = real(this, *args, **options)
            if unconfirmed_call() is None:
                return rows
            text = self._text_of(this, args, options) if rule.reads else None
            return held_rows(this, rows, text)

        return method
