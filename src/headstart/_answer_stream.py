"""An answer that is read while it comes, for hosts that stream.

Rules of this file:

1. The request runs in a task of the session, so that no cancel scope of it is entered
   in the frames of whoever reads: a framework may leave its stream in another task.
2. Leaving the stream ends the request, and waits until it has ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import anyio

from ._errors import UsageError
from ._messages import ModelDelta

if TYPE_CHECKING:
    from types import TracebackType

    from ._messages import AskModel, ModelRequest, ModelResponse
    from ._session import Session


class AnswerStream:
    """The pieces of one answer, as they come. Made by `Session.stream`.

    Attributes:
        response: The whole answer, once the pieces have ended; `None` before.
    """

    def __init__(
        self, session: Session[Any], request: ModelRequest, ask_model: AskModel
    ) -> None:
        self._session = session
        self._request = request
        self._ask_model = ask_model
        self._error: Exception | None = None
        self._scope = anyio.CancelScope()
        self._entered = False
        self.response: ModelResponse | None = None

    async def __aenter__(self) -> Self:
        if self._entered:
            msg = "An answer is streamed once: call stream() again."
            raise UsageError(msg)
        self._entered = True
        self._ended = anyio.Event()
        self._put, self._deltas = anyio.create_memory_object_stream[ModelDelta](
            float("inf")
        )
        self._session.run_in_background(self._run)
        return self

    async def _run(self) -> None:
        try:
            with self._scope, self._put:
                self.response = await self._session.ask(
                    self._request, self._ask_model, self._put.send_nowait
                )
        except Exception as error:  # noqa: BLE001 - raised where it is read
            self._error = error
        finally:
            self._ended.set()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._scope.cancel()
        with anyio.CancelScope(shield=True):
            await self._ended.wait()
        self._deltas.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ModelDelta:
        """The next piece.

        Raises:
            UsageError: The session has ended, or the stream is not open.
            BaseException: What `Session.ask` raised, after the last piece.
        """
        if not self._entered:
            msg = "A stream is read while it is open: use it in 'async with'."
            raise UsageError(msg)
        try:
            return await self._deltas.receive()
        except anyio.EndOfStream:
            await self._ended.wait()
            error, self._error = self._error, None
        if error is not None:
            raise error  # outside of the `except`, so that its own context stays
        if self.response is None:
            msg = f"The session {self._session.name!r} ended before the answer did."
            raise UsageError(msg)
        raise StopAsyncIteration
