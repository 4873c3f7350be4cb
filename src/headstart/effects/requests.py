"""Requests of `requests` that change something wait at the barrier, in threads.

```python
from headstart.effects.requests import hold_requests

hold_requests(session)  # a requests.Session
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headstart._errors import UsageError
from headstart._seams import MAX_HOLD, Seam
from headstart._thread_guard import passing, unconfirmed_call

from ._request_rules import RequestRules, Rule, what_is

try:
    from requests.adapters import BaseAdapter
except ImportError as missing:
    message = 'Please install `requests`: pip install "headstart[requests]"'
    raise ImportError(message, name="requests") from missing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from requests import PreparedRequest, Response, Session

__all__ = ("hold_requests",)


def hold_requests(
    session: Session,
    *,
    unsafe: Iterable[Rule] = (),
    safe: Iterable[Rule] = (),
    max_hold: float | None = MAX_HOLD,
) -> Seam:
    """Hold the requests of a session that may change something, from now on.

    In a tool call that is not confirmed, a `GET`, `HEAD`, `OPTIONS` or `TRACE` is sent at
    once, and any other request blocks its thread. In the event loop's own thread, where
    it would block all, the call is given up instead. Each hop of a redirect is looked
    at by itself. Elsewhere all are sent at once.

    What is mounted on the session later is not held. The functions of the module, such
    as `requests.post`, make sessions of their own, of which nothing is held.

    Args:
        session: Whose adapters are replaced by ones that hold.
        unsafe: What changes something, though its method says that it only reads.
        safe: What only reads, though its method does not say so; a pattern is for `POST`.
        max_hold: Seconds that a request waits at most: see `Seam`.

    Returns:
        The seam, for its `counts`.

    Raises:
        UsageError: The requests are held already, or an argument cannot work.
    """
    adapters = dict(session.adapters)
    if any(isinstance(adapter, _HeldAdapter) for adapter in adapters.values()):
        raise UsageError("The requests of this session are held already.")
    seam = Seam("HTTP", max_hold=max_hold)
    rules = RequestRules(unsafe=unsafe, safe=safe)
    for prefix, adapter in adapters.items():
        session.mount(prefix, _HeldAdapter(adapter, seam, rules))
    return seam


class _HeldAdapter(BaseAdapter):
    def __init__(self, adapter: BaseAdapter, seam: Seam, rules: RequestRules) -> None:
        super().__init__()
        self._adapter = adapter
        self._seam = seam
        self._rules = rules

    def send(self, request: PreparedRequest, *args: Any, **options: Any) -> Response:
        if unconfirmed_call() is not None:
            if self._rules.only_reads(request):
                with passing():
                    return self._adapter.send(request, *args, **options)
            self._seam.wait_blocking(what_is(request))
        return self._adapter.send(request, *args, **options)

    def close(self) -> None:
        self._adapter.close()
