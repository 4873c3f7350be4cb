"""What the tests of the write barrier do again and again."""

import anyio

from headstart import BarrierState
from headstart._errors import WriteDenied

HELD, FLUSHED, DENIED = BarrierState


async def perform(barrier, effects, name="effect"):
    await barrier.wait()
    effects.append(name)


async def perform_or_note(barrier, outcomes, name):
    """What an effect seam does, and whether the effect was let through."""
    try:
        await barrier.wait()
    except WriteDenied:
        outcomes[name] = "denied"
    else:
        outcomes[name] = "performed"


async def settle_tasks():
    """Let every task that can run come to where it waits."""
    await anyio.wait_all_tasks_blocked()
