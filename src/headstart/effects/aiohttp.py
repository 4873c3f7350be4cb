"""Requests of `aiohttp`'s client that change something wait at the barrier.

```python
from headstart.effects.aiohttp import hold_requests

session = aiohttp.ClientSession(middlewares=[hold_requests()])
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstart._seams import MAX_HOLD, Seam
from headstart._thread_guard import passing, unconfirmed_call

from ._request_rules import RequestRules, Rule, what_is

try:
    import aiohttp as aiohttp
except ImportError as missing:
    message = 'Please install `aiohttp`: pip install "headstart[aiohttp]"'
    raise ImportError(message, name="aiohttp") from missing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

__all__ = ("RequestHold", "hold_requests")


def hold_requests(
    *,
    unsafe: Iterable[Rule] = (),
    safe: Iterable[Rule] = (),
    max_hold: float | None = MAX_HOLD,
) -> RequestHold:
    """Hold the requests of a session that may change something: a client middleware.

    In a tool call that is not confirmed, a `GET`, `HEAD`, `OPTIONS` or `TRACE` is sent at
    once, and any other request waits, as does the `GET` that opens a websocket. Each hop
    of a redirect is looked at by itself. Elsewhere all are sent at once.

    Put it last in `middlewares`: it sees the request that the others made. A held
    request has no connection, and its body was not read. `ClientTimeout.total` counts
    all the while; where it ends a hold, the call is given up and made again.

    A rule is a pattern like `"https://api.example.com/search/*"`, which is compared with
    the URL without its query, or a function of the request.

    Args:
        unsafe: What changes something, though its method says that it only reads.
        safe: What only reads, though its method does not say so; a pattern is for `POST`.
        max_hold: Seconds that a request waits at most: see `Seam`.

    Raises:
        UsageError: An argument cannot work.
    """
    return RequestHold(
        Seam("HTTP", max_hold=max_hold), RequestRules(unsafe=unsafe, safe=safe)
    )


class RequestHold:
    """What `hold_requests` makes: a client middleware with its `seam`."""

    __slots__ = ("_rules", "seam")

    def __init__(self, seam: Seam, rules: RequestRules) -> None:
        self.seam = seam
        self._rules = rules

    async def __call__(
        self, request: ClientRequest, handler: ClientHandlerType
    ) -> ClientResponse:
        """Hold a request, or let it pass."""
        if unconfirmed_call() is not None:
            if self._rules.only_reads(request):
                with passing():
                    return await handler(request)
            await self.seam.wait(what_is(request))
        return await handler(request)
