"""`hold()` around next to nothing, and around a millisecond of somebody else's time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from headstart.effects import hold

if TYPE_CHECKING:
    from contextlib import AsyncExitStack


async def open_pairs(_: AsyncExitStack) -> dict[str, Any]:
    async def nothing() -> None:
        await anyio.lowlevel.checkpoint()

    async def held_nothing() -> None:
        async with hold():
            await anyio.lowlevel.checkpoint()

    async def a_millisecond() -> None:
        await anyio.sleep(0.001)

    async def held_millisecond() -> None:
        async with hold():
            await anyio.sleep(0.001)

    return {
        "a checkpoint": (nothing, held_nothing),
        "a millisecond": (a_millisecond, held_millisecond),
    }
