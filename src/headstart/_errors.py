"""Every error that headstart raises.

```
HeadstartError(Exception)
  UsageError                  called in a way that can never work; raised eagerly
    ToolDefinitionError       a function that cannot be made a tool
  WriteDenied                 raised out of a barrier's wait()
  SpeculationError            contained in a speculation; an event, not an exception
    PredictorError            a predictor raised, or proposed something unusable
    BudgetExceeded            a limit of the policy was reached
  ToolFailed                  raised by a tool that says itself what the model is told
  ModelError                  the model's endpoint failed, or answered with nonsense
  StoreError                  a store could not be read or written
  TraceFormatError            a recorded trace cannot be read
  ReplayError                 a trace was read but cannot be replayed
  InternalError               a bug in headstart
DiscardedError(BaseException) only for sync tools in threads, after the discard
LeakedSpeculationWarning(ResourceWarning)
HeadstartDeprecationWarning(UserWarning)
```

Messages are sentences that say what to do; the data stands in attributes. Every
error pickles. Cancellation is never wrapped in any of these.
"""

from __future__ import annotations

from typing import Any


def _rebuild(
    kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]
) -> BaseException:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class Pickling:
    """Pickling for errors whose constructors take keywords."""

    args: tuple[Any, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())


class HeadstartError(Pickling, Exception):
    """Base of every ordinary error of headstart."""


class UsageError(HeadstartError):
    """Something was called in a way that can never work."""


class ToolDefinitionError(UsageError):
    """A function cannot be made a tool.

    Attributes:
        tool: The name of the tool or function.
    """

    def __init__(self, message: str, *, tool: str) -> None:
        super().__init__(message)
        self.tool = tool


class WriteDenied(HeadstartError):  # noqa: N818 - the design's name: it is a verdict
    """A write barrier was denied, so the effect behind it must not happen.

    Attributes:
        barrier: The name of the barrier that was waited on.
        denied_by: The name of the barrier that was denied: itself, or an ancestor.
        reason: Why, in the words of whoever denied it.
    """

    def __init__(
        self, message: str, *, barrier: str, denied_by: str, reason: str
    ) -> None:
        super().__init__(message)
        self.barrier = barrier
        self.denied_by = denied_by
        self.reason = reason


class SpeculationError(HeadstartError):
    """Something about a speculation failed; the real call is not affected.

    Attributes:
        reason: A short reason, as it stands in events.
    """

    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class PredictorError(SpeculationError):
    """A predictor raised, or proposed something that cannot be used."""


class BudgetExceeded(SpeculationError):  # noqa: N818 - the design's name
    """A speculation was not started, or was ended, because of a limit."""


class ToolFailed(HeadstartError):  # noqa: N818 - it says what happened
    """A tool failed, and its message is what the model is told.

    Raised by tools: of any other error the model is told its class as well.
    """


class ModelError(HeadstartError):
    """The model's endpoint failed, or its answer cannot be used.

    Attributes:
        status: The HTTP status, where there was one.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class StoreError(HeadstartError):
    """A store could not be read or written."""


class TraceFormatError(HeadstartError):
    """A recorded trace cannot be read.

    Attributes:
        line: The number of the line, from 1, or `None` when it is the whole file.
    """

    def __init__(self, message: str, *, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


class ReplayError(HeadstartError):
    """A trace was read but cannot be replayed."""


class InternalError(HeadstartError):
    """A bug in headstart. Please report it, with the traceback."""


class DiscardedError(Pickling, BaseException):
    """A sync tool in a thread reached a held effect after its call was discarded.

    It derives from `BaseException` so that a tool's `except Exception` cannot take it
    for an ordinary failure and go on to the next effect.
    """


class LeakedSpeculationWarning(ResourceWarning):
    """A speculation was dropped without being adopted or discarded."""


class HeadstartDeprecationWarning(UserWarning):
    """Something will be removed; the message says when, and what to use."""
