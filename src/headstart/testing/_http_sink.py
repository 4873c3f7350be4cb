"""A loopback HTTP server that takes every request and remembers it.

One thread serves all connections. Loopback delivers at once: when a client's `send` has
returned, the bytes lie at the server. So a snapshot that first reads whatever is there
misses no request that was complete when it was asked for.
"""

from __future__ import annotations

import json
import selectors
import socket
import threading
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self

import anyio.to_thread

from headstart._errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_READS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_CHUNK = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkRequest:
    """A request that a sink has received.

    Attributes:
        method: Such as `POST`.
        path: With the query, as it was sent.
        body: As text; bytes that are no UTF-8 are replaced.
    """

    method: str
    path: str
    body: str


class HTTPSink:
    """A loopback HTTP server that records requests: point a tool's client at its URL.

    ```python
    with HTTPSink() as sink:
        client = httpx2.AsyncClient(base_url=sink.url)
        ...
    ```

    It runs in a thread of its own, so that sync tools may use it, too. As an observer, it
    shows the requests that are not reads by their method.

    Args:
        answer: What every request is answered with: a JSON value, or a function from a
            request to one. An `HTTPStatus` answers with that status and no body.
        reads: Show GET, HEAD and OPTIONS as well.
        name: What it is called in reports.

    Attributes:
        url: Such as `http://127.0.0.1:40001`, while it is open.
        requests: Every request, in the order in which they were complete.
    """

    def __init__(
        self,
        answer: Callable[[SinkRequest], Any] | Any = None,
        *,
        reads: bool = False,
        name: str = "http",
    ) -> None:
        self.name = name
        self.requests: list[SinkRequest] = []
        self._answer = answer
        self._reads = reads
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where it listens.

        Raises:
            UsageError: It is not open.
        """
        if self._thread is None:
            msg = "An HTTPSink has a URL while it is open: use it in 'with'."
            raise UsageError(msg)
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port: int = self._listener.getsockname()[1]
        self._waker, self._woken = socket.socketpair()
        self._asked: list[threading.Event] = []
        self._ended = False
        self._thread = threading.Thread(
            target=self._serve, name="headstart HTTP sink", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._ended = True
            self._waker.send(b"e")
            thread.join()

    async def snapshot(self) -> object:
        """Every request so far that this observer shows."""
        if self._thread is not None:
            asked = threading.Event()
            self._asked.append(asked)
            self._waker.send(b"s")
            await anyio.to_thread.run_sync(asked.wait, 5.0)
        return [
            {"method": seen.method, "path": seen.path, "body": seen.body}
            for seen in self.requests
            if self._reads or seen.method not in _READS
        ]

    def _serve(self) -> None:
        self._listener.setblocking(False)  # noqa: FBT003 - the library's own
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._ended:
                self._turn(selector, None)
            for key in list(selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr] # all are sockets
        self._waker.close()

    def _turn(self, selector: selectors.DefaultSelector, timeout: float | None) -> bool:
        """Handle what is ready. Says whether anything was."""
        ready = selector.select(timeout)
        asked: list[threading.Event] = []
        for key, _ in ready:
            if key.fileobj is self._woken:
                self._woken.recv(_CHUNK)
                asked, self._asked = self._asked, []
            elif key.fileobj is self._listener:
                connection, _ = self._listener.accept()
                selector.register(connection, selectors.EVENT_READ, bytearray())
            else:
                self._receive(selector, key)
        if asked:
            while self._turn(selector, 0):  # all that was sent before
                pass
            for event in asked:
                event.set()
        return bool(ready)

    def _receive(
        self, selector: selectors.DefaultSelector, key: selectors.SelectorKey
    ) -> None:
        connection: Any = key.fileobj
        try:
            piece = connection.recv(_CHUNK)
            key.data.extend(piece)
            while (read := _read_request(key.data)) is not None:
                request, length = read
                del key.data[:length]
                self.requests.append(request)
                connection.sendall(self._respond(request))
        except (OSError, ValueError):  # it went away, or does not speak HTTP
            piece = b""
        if not piece:
            selector.unregister(connection)
            connection.close()

    def _respond(self, request: SinkRequest) -> bytes:
        answer = self._answer
        try:
            value = answer(request) if callable(answer) else answer
        except Exception as error:  # noqa: BLE001 - the user's own; the thread goes on
            value, status = {"error": repr(error)}, HTTPStatus.INTERNAL_SERVER_ERROR
        else:
            status = value if isinstance(value, HTTPStatus) else HTTPStatus.OK
        empty = isinstance(value, HTTPStatus)
        body = b"" if empty else json.dumps(value).encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + (b"" if request.method == "HEAD" else body)


def _read_request(data: bytearray) -> tuple[SinkRequest, int] | None:
    """The first request in `data` and its length, once it is complete."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    first, *lines = data[:end].decode("latin-1").split("\r\n")
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in lines)
    }
    start = end + 4
    if "chunked" in headers.get("transfer-encoding", "").lower():
        chunked = _read_chunks(data, start)
        if chunked is None:
            return None
        body, stop = chunked
    else:
        stop = start + int(headers.get("content-length") or 0)
        if len(data) < stop:
            return None
        body = bytes(data[start:stop])
    method, _, target = first.partition(" ")
    if not method.isalpha():
        msg = "The first line of a request begins with its method."
        raise ValueError(msg)
    request = SinkRequest(
        method=method.upper(),
        path=target.partition(" ")[0],
        body=body.decode(errors="replace"),
    )
    return request, stop


def _read_chunks(data: bytearray, start: int) -> tuple[bytes, int] | None:
    body = b""
    while True:
        end = data.find(b"\r\n", start)
        if end < 0:
            return None
        size = int(data[start:end].partition(b";")[0], 16)
        start, stop = end + 2, end + 2 + size
        if len(data) < stop + 2:
            return None
        body += data[start:stop]
        start = stop + 2
        if size == 0:
            return body, start
