"""Requests of aiohttp to a server of this process, on the loopback interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp

from headstart.demo._http import HTTPRequest, HTTPResponse, open_http_server
from headstart.effects.aiohttp import hold_requests

if TYPE_CHECKING:
    from contextlib import AsyncExitStack


async def answer(_: HTTPRequest) -> HTTPResponse:
    return HTTPResponse.from_json({"state": "open"})


async def open_pairs(stack: AsyncExitStack) -> dict[str, Any]:
    url = await stack.enter_async_context(open_http_server(answer))
    hold = hold_requests(unsafe=[f"{url}/leave"], safe=[f"{url}/search"])
    bare = await stack.enter_async_context(aiohttp.ClientSession())
    held = await stack.enter_async_context(aiohttp.ClientSession(middlewares=[hold]))

    def pair(method: str) -> Any:
        async def without() -> None:
            async with bare.request(method, url) as response:
                await response.read()

        async def with_it() -> None:
            async with held.request(method, url) as response:
                await response.read()

        return without, with_it

    return {"GET": pair("GET"), "POST": pair("POST")}
