"""The next model request, run on early results while the tools finish.

Rules of this file:

1. It runs once at most, on one result a call; which ones, is fixed when it starts.
2. The run's outcome, exception included, reaches only whoever resolves. The task
   never raises into its task group, interrupts of the process aside.
3. A response is given out only if every actual result equals the one it ran on.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import anyio
import anyio.lowlevel

from ._call_speculation import as_failure, close_quietly, comes_from_outside
from ._errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType

    from anyio.abc import TaskGroup

    from ._calls import ToolCall, ToolResult
    from ._messages import ModelRequest

Response = TypeVar("Response")
logger = logging.getLogger("headstart")


class ResultSpeculator(Generic[Response]):
    """Runs the next model request as soon as every call has an early or final result.

    An async context manager that owns the run's task; leaving cancels it.

    ```python
    async with ResultSpeculator(request, calls, ask_model) as ahead:
        results = await run_tools(calls, on_early_result=ahead.receive)
        response = await ahead.resolve(results)  # None: ask the model yourself
    ```

    Args:
        request: What was asked, with the assistant message that asks for `calls` at its
            end. It is not changed: the run gets a new request with the tool messages,
            in call order, added.
        calls: The calls of this turn. Without any, nothing is ever run.
        ask_model: Answers a request. It is called once at most.
    """

    __slots__ = (
        "_ask_model",
        "_calls",
        "_closed",
        "_done",
        "_error",
        "_owned",
        "_ran_on",
        "_request",
        "_response",
        "_results",
        "_scope",
        "_task_group",
    )

    def __init__(
        self,
        request: ModelRequest,
        calls: Sequence[ToolCall],
        ask_model: Callable[[ModelRequest], Awaitable[Response]],
    ) -> None:
        self._request = request
        self._calls = tuple(calls)
        self._ask_model = ask_model
        self._results: dict[int, ToolResult] = {}
        self._ran_on: tuple[ToolResult, ...] | None = None
        self._response: Response | None = None
        self._error: BaseException | None = None
        self._closed = False
        self._owned: TaskGroup | None = None
        self._task_group: TaskGroup | None = None

    @property
    def running(self) -> bool:
        """Whether the request was sent and is not answered, cancelled or failed."""
        return self._ran_on is not None and not self._closed and not self._done.is_set()

    @property
    def error(self) -> BaseException | None:
        """What `ask_model` raised."""
        return self._error

    def start(self, task_group: TaskGroup) -> None:
        """Run in a task group of the caller's, instead of `async with`.

        The caller then calls `resolve` or `cancel` before the task group ends.
        """
        self._task_group = task_group
        self._run_if_complete()

    def receive(self, index: int, result: ToolResult) -> None:
        """Take an early or final result of the call at `index`. Never waits.

        The last result of a call counts until the run starts; later ones are ignored,
        as `resolve` compares. An index out of range is ignored and logged.
        """
        if not 0 <= index < len(self._calls):
            logger.warning(
                "A result for call %d of a turn of %d calls is ignored.",
                index,
                len(self._calls),
            )
            return
        if self._ran_on is None and not self._closed:
            self._results[index] = result
            self._run_if_complete()

    def _run_if_complete(self) -> None:
        if (
            self._task_group is None
            or not self._calls
            or len(self._results) < len(self._calls)
        ):
            return
        self._ran_on = tuple(self._results[index] for index in range(len(self._calls)))
        self._done = anyio.Event()
        self._scope = anyio.CancelScope()
        self._task_group.start_soon(self._run, self._ran_on, name="headstart run-ahead")

    async def _run(self, results: Sequence[ToolResult]) -> None:
        try:
            with self._scope:
                await anyio.lowlevel.checkpoint_if_cancelled()
                request = self._request.answered(self._calls, results)
                self._response = await self._ask_model(request)
        except BaseException as error:
            if comes_from_outside(error):
                self._closed = True
                raise
            self._error = as_failure(error, "The model request")
        finally:
            self._done.set()

    async def wait_if_running(self) -> Response | None:
        """Wait for the response of the run; `None` when it never ran or was cancelled.

        Cancelling cancels the wait alone.

        Raises:
            BaseException: Whatever `ask_model` raised.
        """
        if self._ran_on is None or self._closed:
            return None
        await self._done.wait()
        if self._closed:
            return None
        if self._error is not None:
            raise self._error
        return self._response

    async def resolve(self, actual_results: Sequence[ToolResult]) -> Response | None:
        """Wait for the response, if it was run on exactly these results.

        Otherwise the run is cancelled. After this no result is taken any more.
        Cancelling cancels the wait alone: call it again, or leave.

        Returns:
            The response, or `None`: it never ran, or on something else.

        Raises:
            BaseException: Whatever `ask_model` raised, on these results.
        """
        if self._ran_on is None or self._ran_on != tuple(actual_results):
            self.cancel()
            return None
        return await self.wait_if_running()

    def cancel(self) -> None:
        """Cancel the run and take no more results. Never waits."""
        self._closed = True
        self._results.clear()
        if self._ran_on is not None and not self._done.is_set():
            self._scope.cancel()

    async def __aenter__(self) -> Self:
        if self._task_group is not None:
            msg = "A ResultSpeculator is entered once."
            raise UsageError(msg)
        self._owned = anyio.create_task_group()
        await self._owned.__aenter__()
        self.start(self._owned)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()
        if self._owned is not None:
            await close_quietly(self._owned)
