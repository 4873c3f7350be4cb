"""Requests of `httpx` and `httpx2` that change something wait at the barrier.

```python
from headstart.effects.httpx import hold_requests

hold_requests(client)  # an AsyncClient or a Client, of either library
```

They wait in front of the transport: a held request has no connection, its body was not
read, and the timeouts of the client have not begun. Neither library is imported here.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from headstart._errors import UsageError
from headstart._seams import MAX_HOLD, Seam
from headstart._thread_guard import passing, unconfirmed_call

from ._request_rules import RequestRules, Rule, what_is

if TYPE_CHECKING:
    from collections.abc import Iterable

    import httpx
    import httpx2

__all__ = ("hold_requests", "hold_transport")

_LIBRARIES = ("httpx", "httpx2")


def hold_requests(
    client: httpx.AsyncClient | httpx.Client | httpx2.AsyncClient | httpx2.Client,
    *,
    unsafe: Iterable[Rule] = (),
    safe: Iterable[Rule] = (),
    max_hold: float | None = MAX_HOLD,
) -> Seam:
    """Hold the requests of a client that may change something, from now on.

    In a tool call that is not confirmed, a `GET`, `HEAD`, `OPTIONS` or `TRACE` is sent at
    once, and any other request waits. Each hop of a redirect and each request of an
    authentication is looked at by itself. Elsewhere all are sent at once.

    A rule is a pattern like `"https://api.example.com/search/*"`, which is compared with
    the URL without its query, or a function of the request.

    Args:
        client: A client, open or not: its transport and its mounts are replaced.
        unsafe: What changes something, though its method says that it only reads.
        safe: What only reads, though its method does not say so; a pattern is for `POST`.
        max_hold: Seconds that a request waits at most: see `Seam`.

    Returns:
        The seam, for its `counts`.

    Raises:
        UsageError: It is no such client, or its requests are held already; or an
            argument cannot work.
    """
    library = _library_of(client, "AsyncClient", "Client")
    transport: Any = getattr(client, "_transport", None)
    mounts: Any = getattr(client, "_mounts", None)
    if library is None or transport is None or not isinstance(mounts, dict):
        msg = (
            "hold_requests takes an AsyncClient or a Client of httpx or httpx2, not "
            f"{type(client).__name__!r}. Where another library makes the client, give "
            "it one whose requests are held."
        )
        raise UsageError(msg)
    if isinstance(transport, _HeldTransport):
        raise UsageError("The requests of this client are held already.")
    seam = Seam("HTTP", max_hold=max_hold)
    rules = RequestRules(unsafe=unsafe, safe=safe)
    kind = _kind_for(library)
    client._transport = kind(transport, seam, rules)  # pyright: ignore[reportPrivateUsage] # noqa: SLF001
    for pattern, mounted in list(mounts.items()):  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        if mounted is not None:
            mounts[pattern] = kind(mounted, seam, rules)
    return seam


def hold_transport(
    transport: Any,
    *,
    unsafe: Iterable[Rule] = (),
    safe: Iterable[Rule] = (),
    max_hold: float | None = MAX_HOLD,
) -> Any:
    """Hold requests in front of one transport, for a client that is yet to be made.

    ```python
    client = httpx.AsyncClient(transport=hold_transport(httpx.AsyncHTTPTransport()))
    ```

    Args:
        transport: A transport of httpx or httpx2, for either kind of client.
        unsafe: As of `hold_requests`.
        safe: As of `hold_requests`.
        max_hold: As of `hold_requests`.

    Returns:
        A transport, with its `seam`.

    Raises:
        UsageError: It is no transport, or an argument cannot work.
    """
    library = _library_of(transport, "AsyncBaseTransport", "BaseTransport")
    if library is None or isinstance(transport, _HeldTransport):
        msg = (
            "hold_transport takes a transport of httpx or httpx2 that is not held yet, "
            f"not {type(transport).__name__!r}."
        )
        raise UsageError(msg)
    rules = RequestRules(unsafe=unsafe, safe=safe)
    return _kind_for(library)(transport, Seam("HTTP", max_hold=max_hold), rules)


class _HeldTransport:
    """A transport that holds what another one sends; for both kinds of clients."""

    def __init__(self, transport: Any, seam: Seam, rules: RequestRules) -> None:
        self.seam = seam
        self._transport = transport
        self._rules = rules

    def __getattr__(self, name: str) -> Any:
        if name == "_transport":  # in the making
            raise AttributeError(name)
        return getattr(self._transport, name)

    def _only_reads(self, request: Any) -> bool:
        if "target" in request.extensions:  # it is sent to another path than its URL's
            return False
        return self._rules.only_reads(request)

    async def handle_async_request(self, request: Any) -> Any:
        if unconfirmed_call() is not None:
            if self._only_reads(request):
                with passing():
                    return await self._transport.handle_async_request(request)
            await self.seam.wait(what_is(request))
        return await self._transport.handle_async_request(request)

    def handle_request(self, request: Any) -> Any:
        if unconfirmed_call() is not None:
            if self._only_reads(request):
                with passing():
                    return self._transport.handle_request(request)
            self.seam.wait_blocking(what_is(request))
        return self._transport.handle_request(request)

    async def __aenter__(self) -> Any:
        await self._transport.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._transport.__aexit__(*error)

    async def aclose(self) -> None:
        await self._transport.aclose()

    def __enter__(self) -> Any:
        self._transport.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._transport.__exit__(*error)

    def close(self) -> None:
        self._transport.close()


_kinds: dict[str, Any] = {}


def _kind_for(library: str) -> Any:
    """The held transport as a transport of a library, which is loaded, as it is used."""
    if library not in _kinds:
        loaded = sys.modules[library]
        bases = (_HeldTransport, loaded.AsyncBaseTransport, loaded.BaseTransport)
        _kinds[library] = type("HeldTransport", bases, {})
    return _kinds[library]


def _library_of(value: object, *names: str) -> str | None:
    for kind in type(value).__mro__:
        library = kind.__module__.partition(".")[0]
        if library in _LIBRARIES and kind.__name__ in names:
            return library
    return None
