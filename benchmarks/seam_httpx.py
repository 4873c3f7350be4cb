"""Requests of httpx and httpx2 to a server of this process, on the loopback interface."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from headstart.demo._http import HTTPRequest, HTTPResponse, open_http_server
from headstart.effects.httpx import hold_requests

if TYPE_CHECKING:
    from contextlib import AsyncExitStack


async def answer(_: HTTPRequest) -> HTTPResponse:
    return HTTPResponse.from_json({"state": "open"})


async def open_pairs(stack: AsyncExitStack) -> dict[str, Any]:
    url = await stack.enter_async_context(open_http_server(answer))
    pairs: dict[str, Any] = {}
    for name in ("httpx", "httpx2"):
        library = importlib.import_module(name)
        bare = await stack.enter_async_context(library.AsyncClient(trust_env=False))
        held = await stack.enter_async_context(library.AsyncClient(trust_env=False))
        hold_requests(held, unsafe=[f"{url}/leave"], safe=[f"{url}/search"])

        def pair(method: str, bare: Any = bare, held: Any = held) -> Any:
            async def without() -> None:
                await bare.request(method, url)

            async def with_it() -> None:
                await held.request(method, url)

            return without, with_it

        pairs[f"{name} GET"] = pair("GET")
        pairs[f"{name} POST"] = pair("POST")
    return pairs
