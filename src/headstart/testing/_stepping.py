"""Runs a coroutine await by await, so that it can be interrupted at each of them."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator


class StubbornError(RuntimeError):
    """A coroutine was closed, as no cancellation would end it."""


class Stepping:
    """Awaits a coroutine, and calls a function each time that it is about to wait.

    What the coroutine's own tasks await is not seen, and neither is an await that does
    not wait.

    Args:
        coroutine: What runs.
        on_step: Called in its task, before it waits. If it returns an async function, the
            coroutine goes on after that: somebody is about to interrupt it. It is not
            interrupted there and then, since a task that runs cannot be cancelled.
        is_over: Asked when it has waited: whether to close it instead of going on.
    """

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Any],
        on_step: Callable[[], Callable[[], Coroutine[Any, Any, Any]] | None],
        is_over: Callable[[], bool],
    ) -> None:
        self._coroutine = coroutine
        self._on_step = on_step
        self._is_over = is_over

    def __await__(self) -> Generator[Any, Any, Any]:
        coroutine = self._coroutine
        try:
            waits_for = coroutine.send(None)
            while True:
                wait = self._on_step()
                try:
                    sent = yield waits_for
                    if wait is not None:
                        yield from wait().__await__()
                except GeneratorExit:
                    coroutine.close()
                    raise
                except BaseException as error:  # noqa: BLE001 - it is the coroutine's
                    self._close_if_over()
                    waits_for = coroutine.throw(error)
                else:
                    self._close_if_over()
                    waits_for = coroutine.send(sent)
        except StopIteration as end:
            return end.value

    def _close_if_over(self) -> None:
        """Close it where it is over; here, since nothing that it waited for is left."""
        if self._is_over():
            with suppress(RuntimeError):  # it may swallow that as well
                self._coroutine.close()
            msg = "It swallows its cancellation, and was closed."
            raise StubbornError(msg)
