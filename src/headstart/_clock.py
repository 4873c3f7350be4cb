"""The event loop's clock, looked up once instead of at every reading."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

if TYPE_CHECKING:
    from collections.abc import Callable


def running_clock() -> Callable[[], float]:
    """The clock of the running event loop: what `anyio.current_time` reads.

    A reading through anyio finds out each time which event loop runs. The engine reads
    the clock a dozen times a turn, all on the same loop.
    """
    loop: Any = anyio.lowlevel.current_token().native_token
    return getattr(loop, "time", anyio.current_time)
