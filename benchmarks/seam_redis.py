"""Commands to a redis on the loopback interface, with and without `hold_commands`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import redis.asyncio
from tests.servers import open_redis

from headstart.effects.redis import hold_commands

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

KEY = "headstart-benchmark"


async def open_pairs(stack: AsyncExitStack) -> dict[str, Any]:
    url = stack.enter_context(open_redis())
    bare, held = redis.asyncio.Redis.from_url(url), redis.asyncio.Redis.from_url(url)
    for client in (bare, held):
        stack.push_async_callback(client.aclose)
    hold_commands(held)

    def get(client: Any) -> Any:
        return lambda: client.get(KEY)

    def put(client: Any) -> Any:
        return lambda: client.set(KEY, "x")

    def ten(client: Any) -> Any:
        async def run() -> None:
            async with client.pipeline() as pipe:
                for _ in range(10):
                    pipe.set(KEY, "x")
                await pipe.execute()

        return run

    return {
        "GET": (get(bare), get(held)),
        "SET": (put(bare), put(held)),
        "a transaction of ten": (ten(bare), ten(held)),
    }
