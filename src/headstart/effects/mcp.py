"""Calls of an MCP server's tools, from within your own tools, wait at the barrier.

```python
from headstart.effects.mcp import hold_tool_calls

hold_tool_calls(client, reads=["get_order"])  # a Client or a ClientSession
```

Rules of this file:

1. What is not known to read, waits: a tool that is not named, and a request that is not
   listed below.
2. Of a call that may never be, the user is asked nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headstart._errors import UsageError
from headstart._mcp_trust import ToolList, Trust
from headstart._seams import MAX_HOLD, Seam
from headstart._thread_guard import passing, unconfirmed_call

try:
    import mcp_types
    from mcp import Client, ClientSession
    from mcp.client.subscriptions import ToolsListChanged
except ImportError as missing:
    message = 'Please install `mcp`: pip install "headstart[mcp]"'
    raise ImportError(message, name="mcp") from missing

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ("ToolCallHold", "hold_tool_calls")

_READS = frozenset(
    {
        "completion/complete",
        "initialize",
        "ping",
        "prompts/get",
        "prompts/list",
        "resources/list",
        "resources/read",
        "resources/templates/list",
        "server/discover",
        "tools/list",
    }
)


def hold_tool_calls(
    session: Client | ClientSession,
    *,
    reads: Iterable[str] = (),
    trusted: Trust = False,
    max_hold: float | None = MAX_HOLD,
) -> ToolCallHold:
    """Hold the tool calls of an MCP client from now on, but for those that only read.

    In a tool call that is not confirmed, a tool that `reads` names is called at once, and
    any other waits. So does any request that is not a list, a read of a resource, a
    prompt, a completion or a ping. Elsewhere all are sent at once.

    Args:
        session: A connected `Client`, or a `ClientSession`: its `send_request` is
            replaced.
        reads: The names of tools that change nothing, by your own word.
        trusted: Whether what the server says of its tools counts as well, once
            `refresh()` has listed them: `True` trusts the list as it is then, and a
            fingerprint that list alone.
        max_hold: Seconds that a request waits at most: see `Seam`.

    Raises:
        UsageError: It is not connected or held already, or an argument cannot work.
    """
    if isinstance(reads, str):
        raise UsageError("'reads' is a list of tools: reads=[...].")
    if isinstance(session, Client):
        try:
            session = session.session
        except RuntimeError:
            msg = "hold_tool_calls takes a connected Client: call it in `async with`."
            raise UsageError(msg) from None
    if not isinstance(session, ClientSession):  # pyright: ignore[reportUnnecessaryIsInstance]
        msg = (
            "hold_tool_calls takes a Client or a ClientSession of mcp, not "
            f"{type(session).__name__!r}."
        )
        raise UsageError(msg)
    if "send_request" in vars(session):
        raise UsageError("The tool calls of this session are held already.")
    return ToolCallHold(session, frozenset(reads), trusted, max_hold)


class ToolCallHold:
    """What `hold_tool_calls` makes.

    Attributes:
        seam: Where requests are held.
    """

    def __init__(
        self,
        session: ClientSession,
        reads: frozenset[str],
        trusted: Trust,
        max_hold: float | None,
    ) -> None:
        self.seam = Seam("MCP", max_hold=max_hold)
        self._session = session
        self._reads = reads
        self._listed = ToolList(self._list_page, trusted=trusted)
        self._send: Any = session.send_request
        vars(session)["send_request"] = self._send_request

    @property
    def trusted(self) -> bool:
        """Whether what the server says of its tools is believed now."""
        return self._listed.trusted

    @property
    def fingerprint(self) -> str:
        """Stands for the list as it was last seen: names, schemas and annotations."""
        return self._listed.fingerprint

    async def refresh(self) -> None:
        """List the tools, for a server that is trusted; again, when they have changed.

        Where a name, a schema or an annotation is another than when the server was
        trusted, it is not trusted any more, and a warning is logged. The same goes for
        what anybody lists by this session.

        Raises:
            MCPError: The server cannot list its tools; nothing is believed then.
        """
        await self._listed.refresh()

    def trust(self) -> None:
        """Believe what the server says of its tools as they were last listed."""
        self._listed.trust()

    async def receive(self, message: object) -> None:
        """Take a message of the server: a `message_handler`, and for events of `listen()`.

        When the tools have changed, what the server says of them is not believed until
        `refresh()` has found the list to be the same. Other messages are ignored.
        """
        if isinstance(
            message, (mcp_types.ToolListChangedNotification, ToolsListChanged)
        ):
            self._listed.doubt()

    async def _list_page(self, cursor: str | None) -> Any:
        params = mcp_types.PaginatedRequestParams(cursor=cursor)
        return await self._session.list_tools(params=params)

    async def _send_request(self, request: Any, *args: Any, **options: Any) -> Any:
        if unconfirmed_call() is None:
            result = await self._send(request, *args, **options)
        elif self._only_reads(request):
            with passing():
                result = await self._send(request, *args, **options)
            if isinstance(result, mcp_types.InputRequiredResult) or not isinstance(
                result, _ENDS.get(request.method, object)
            ):
                await self.seam.wait(f"what {request.method} asks for")
        else:
            await self.seam.wait(_what_is(request))
            result = await self._send(request, *args, **options)
        if isinstance(result, mcp_types.ListToolsResult):
            self._listed.compare(result.tools)
        return result

    def _only_reads(self, request: Any) -> bool:
        if request.method != "tools/call":
            return request.method in _READS
        name = request.params.name
        return name in self._reads or self._listed.only_reads(name)


_ENDS = {"tools/call": mcp_types.CallToolResult}
"""What ends a request. Anything else is for an extension to go on with."""


def _what_is(request: Any) -> str:
    if request.method == "tools/call":
        return f"a call of {request.params.name!r}"
    return f"a request of {request.method}"
