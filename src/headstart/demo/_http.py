"""A small HTTP/1.1 server for the demo's services: loopback only, JSON and streams."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, TypeAlias

import anyio
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

logger = logging.getLogger("headstart")

_MAX_HEAD = 65_536
_MAX_BODY = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPRequest:
    """One request. Header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPResponse:
    """One response: `body` at once, or `pieces` one after the other.

    When `pieces` raises, the connection is dropped in the middle of the response.
    """

    status: int = 200
    content_type: str = "application/json"
    body: bytes = b""
    pieces: AsyncGenerator[bytes] | None = None

    @classmethod
    def from_json(cls, value: Any, *, status: int = 200) -> HTTPResponse:
        """Answer with `value` as JSON."""
        return cls(status=status, body=json.dumps(value).encode())


Handler: TypeAlias = Callable[[HTTPRequest], Awaitable[HTTPResponse]]


@asynccontextmanager
async def open_http_server(handler: Handler) -> AsyncGenerator[str]:
    """Serve on a free port of the loopback interface; gives the URL.

    Leaving ends every connection at once.
    """
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)  # noqa: S610 - no Django here
    failure: Exception | None = None
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, partial(_serve_connection, handler))
        try:
            yield f"http://127.0.0.1:{port}"
        except Exception as error:  # noqa: BLE001 - raised below, and not in a group
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _serve_connection(handler: Handler, stream: SocketStream) -> None:
    buffered = BufferedByteReceiveStream(stream)
    gone = (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError)
    async with stream:
        with suppress(*gone, anyio.DelimiterNotFound, _DroppedError):
            while (request := await _receive_request(buffered)) is not None:
                await _send(stream, await _answer(handler, request))


async def _receive_request(stream: BufferedByteReceiveStream) -> HTTPRequest | None:
    head = (await stream.receive_until(b"\r\n\r\n", _MAX_HEAD)).decode("latin-1")
    first, *lines = head.split("\r\n")
    method, _, target = first.partition(" ")
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in lines)
    }
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > _MAX_BODY:
        return None
    return HTTPRequest(
        method=method,
        path=target.partition(" ")[0],
        headers=headers,
        body=await stream.receive_exactly(int(length)) if int(length) else b"",
    )


async def _answer(handler: Handler, request: HTTPRequest) -> HTTPResponse:
    try:
        return await handler(request)
    except Exception:
        logger.exception("A service of the demo failed at %s.", request.path)
        return HTTPResponse.from_json({"error": "internal error"}, status=500)


async def _send(stream: SocketStream, response: HTTPResponse) -> None:
    head = (
        f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}\r\n"
        f"Content-Type: {response.content_type}\r\n"
    )
    if response.pieces is None:
        head += f"Content-Length: {len(response.body)}\r\n\r\n"
        await stream.send(head.encode() + response.body)
        return
    await stream.send(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
    try:
        async with aclosing(response.pieces) as pieces:
            async for piece in pieces:
                await stream.send(b"%x\r\n%s\r\n" % (len(piece), piece))
    except Exception as error:
        raise _DroppedError from error
    await stream.send(b"0\r\n\r\n")


class _DroppedError(Exception):
    pass
