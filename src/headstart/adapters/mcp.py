"""Tools of an MCP server, and a gate for the calls that other tools make of it.

Rules of this file:

1. What a server says of its tools is a hint. It counts only where the caller trusts the
   server, and only as long as its list is the one that was trusted.
2. In doubt a tool is `UNSAFE`, and a request waits at its barrier.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from typing import TYPE_CHECKING, Any

from headstart._calls import ToolResult
from headstart._errors import ToolFailed, UsageError
from headstart._mcp_trust import ToolList, Trust, says_it_only_reads
from headstart._seams import Seam
from headstart._thread_guard import passing, unconfirmed_call
from headstart._tools import Effect, Tool, ToolContext

from ._speculation import Declaration, Speculation

try:
    import mcp_types
    from mcp import Client, ClientSession
    from mcp.client.subscriptions import ToolsListChanged
    from mcp.server import Server
    from mcp.server.mcpserver import MCPServer
    from mcp.shared.exceptions import MCPError
except ImportError as missing:
    message = 'Please install `mcp`: pip install "headstart[mcp]"'
    raise ImportError(message, name="mcp") from missing

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

__all__ = ("MCPTools", "mcp_tools")

logger = logging.getLogger("headstart")


async def mcp_tools(
    client: Client | ClientSession,
    *,
    effects: Mapping[str, Declaration] | None = None,
    trusted: Trust = False,
    prefix: str = "",
    gated_in_server: Collection[str] = (),
) -> MCPTools:
    """List the tools of an MCP server, for an `Agent` or a `Session`.

    ```python
    async with Client("https://...") as client:
        tools = await mcp_tools(client, effects={"get_order": "READ"})
        agent = Agent(model, tools=[*tools])
    ```

    Args:
        client: A connected `mcp.Client`, or a `ClientSession`.
        effects: What is declared of tools, by the server's name of them. It takes
            precedence over what the server says.
        trusted: Whether what the server says of its tools is believed: that one only
            reads, and whether it reaches the open world. `True` trusts the list as it is
            now, and a fingerprint that list alone.
        prefix: Put before the names that the model is given.
        gated_in_server: Tools that await their barrier themselves, in a server of this
            process: their requests are not held here.

    Raises:
        UsageError: An argument cannot work.
        MCPError: The server cannot list its tools.
    """
    tools = MCPTools(
        client,
        effects=effects,
        trusted=trusted,
        prefix=prefix,
        gated_in_server=gated_in_server,
    )
    await tools.refresh()
    return tools


class MCPTools:
    """The tools of one MCP server. Made by `mcp_tools`, whose arguments it takes.

    Attributes:
        tools: The tools as they were last listed. Iterating gives them, too.
        seam: Where requests are held. It has no limit of its own: a launch has.
    """

    def __init__(
        self,
        client: Client | ClientSession,
        *,
        effects: Mapping[str, Declaration] | None = None,
        trusted: Trust = False,
        prefix: str = "",
        gated_in_server: Collection[str] = (),
    ) -> None:
        in_process = isinstance(client, Client) and isinstance(
            client.server, (Server, MCPServer)
        )
        if gated_in_server and not in_process:
            msg = (
                "Only a server of this process knows the barriers here: for any other, "
                "leave 'gated_in_server' out, and its requests are held."
            )
            raise UsageError(msg)
        self.tools: tuple[Tool, ...] = ()
        self.seam = Seam("MCP", max_hold=None)
        self._client = client
        self._declared = Speculation(effects=effects).effects
        self._listed = ToolList(self._list_page, trusted=trusted)
        self._prefix = prefix
        self._own_gates = frozenset(gated_in_server)
        self._made: dict[str, tuple[object, Tool]] = {}

    def __iter__(self) -> Iterator[Tool]:
        return iter(self.tools)

    def __len__(self) -> int:
        return len(self.tools)

    @property
    def trusted(self) -> bool:
        """Whether what the server says of its tools is believed now."""
        return self._listed.trusted

    @property
    def fingerprint(self) -> str:
        """Stands for the list as it was last seen: names, schemas and annotations."""
        return self._listed.fingerprint

    async def refresh(self) -> bool:
        """List the tools again; to be called between requests of the model.

        Where a name, a schema or an annotation is another than when the server was
        trusted, it is not trusted any more, and a warning is logged.

        Returns:
            Whether there is anything new: `session.use_tools([*tools])` then.

        Raises:
            MCPError: The server cannot list its tools; they are as before then.
        """
        before = self.tools
        try:
            await self._listed.refresh()
        except BaseException:
            self._make_tools()
            raise
        known = {definition.name for definition in self._listed.definitions}
        for name in sorted(self._declared.keys() - known):
            logger.warning(
                "The MCP server has no tool %r, which 'effects' names.", name
            )
        self._make_tools()
        return self.tools != before

    def trust(self) -> None:
        """Believe what the server says of its tools as they were last listed."""
        self._listed.trust()
        self._make_tools()

    async def receive(self, message: object) -> None:
        """Take a message of the server: a `message_handler`, and for events of `listen()`.

        When the tools have changed, what the server says of them is not believed until
        `refresh()` has found the list to be the same. Other messages are ignored.
        """
        if isinstance(
            message, (mcp_types.ToolListChangedNotification, ToolsListChanged)
        ):
            logger.info("The tools of an MCP server have changed: call refresh().")
            self._listed.doubt()
            self._make_tools()

    async def call_tool(
        self, name: str, arguments: dict[str, Any] | None = None, **options: Any
    ) -> mcp_types.CallToolResult:
        """Call a tool from within another one, held by the barrier of that.

        A tool that is declared `READ` is called at once. Any other waits until the
        barrier is open; outside a tool there is none.

        Args:
            name: The server's name of it.
            arguments: Its arguments.
            options: What else `call_tool` of the client takes.

        Raises:
            WriteDenied: The barrier was denied; nothing was sent.
            MCPError: As `call_tool` of the client.

        Cancelling it tells the server.
        """
        if unconfirmed_call() is None:
            return await self._call(name, arguments, options)
        if not (name in self._own_gates or self._only_reads(name)):
            await self.seam.wait(f"a call of {name!r}")
            return await self._call(name, arguments, options)
        with passing():
            return await self._call_quietly(name, arguments, options)

    async def _call(
        self, name: str, arguments: dict[str, Any] | None, options: dict[str, Any]
    ) -> mcp_types.CallToolResult:
        call: Any = self._client.call_tool
        return await call(name, arguments, **options)

    async def _call_quietly(
        self, name: str, arguments: dict[str, Any] | None, options: dict[str, Any]
    ) -> mcp_types.CallToolResult:
        """Call on a guess: of a call that may never be, the user is asked nothing."""
        if not isinstance(self._client, Client):
            return await self._call(name, arguments, options)
        call: Any = self._client.session.call_tool
        open_ends = {"allow_input_required": True, "allow_claimed": True}
        result: object = None
        try:
            result = await call(name, arguments, **options, **open_ends)
        except MCPError as error:
            if error.code != mcp_types.HEADER_MISMATCH:
                raise
        if isinstance(result, mcp_types.CallToolResult):
            return result
        await self.seam.wait(f"what {name!r} asks for")
        return await self._call(name, arguments, options)

    def _only_reads(self, name: str) -> bool:
        known = self._made.get(name)
        return known is not None and known[1].effect is Effect.READ

    async def _list_page(self, cursor: str | None) -> Any:
        if isinstance(self._client, Client):
            return await self._client.list_tools(cursor=cursor, cache_mode="refresh")
        params = mcp_types.PaginatedRequestParams(cursor=cursor)
        return await self._client.list_tools(params=params)

    def _make_tools(self) -> None:
        """Make a `Tool` of each definition; one that has not changed is the same."""
        old, self._made = self._made, {}
        for definition in self._listed.definitions:
            if not definition.name:
                continue
            options = self._options_of(definition)
            identity = definition, options
            known = old.pop(definition.name, None)
            if known is None or known[0] != identity:
                if known is not None:
                    known[1].effect = Effect.UNSAFE  # in sessions that have it still
                known = identity, self._make_tool(definition, options)
            self._made[definition.name] = known
        for _, gone in old.values():
            gone.effect = Effect.UNSAFE
        self.tools = tuple(tool for _, tool in self._made.values())

    def _options_of(self, definition: mcp_types.Tool) -> dict[str, Any]:
        declared = self._declared.get(definition.name, {})
        if self.trusted and "writes" not in declared:
            return {**_hints(definition.annotations), **declared}
        return declared

    def _make_tool(self, definition: mcp_types.Tool, options: dict[str, Any]) -> Tool:
        async def function(
            context: ToolContext[Any], arguments: dict[str, Any]
        ) -> ToolResult:
            del context
            return show(await self.call_tool(definition.name, arguments))

        return Tool(
            function,
            name=self._prefix + definition.name,
            description=definition.description or definition.title or definition.name,
            parameters=definition.input_schema,
            **options,
        )


def _hints(annotations: mcp_types.ToolAnnotations | None) -> dict[str, Any]:
    """What a trusted server's annotations declare; what it leaves out is the spec's default."""
    if annotations is None or not says_it_only_reads(annotations):
        return {}
    return {"effect": Effect.READ, "egress": annotations.open_world_hint is not False}


def show(result: mcp_types.CallToolResult) -> ToolResult:
    """A result as the model is told of it: text, and of anything else what it is.

    Raises:
        ToolFailed: The server says that it is an error.
    """
    text = "\n".join(map(_show_block, result.content))
    if not result.content and result.structured_content is not None:
        text = json.dumps(result.structured_content, ensure_ascii=False)
    if result.is_error:
        raise ToolFailed(text)
    return ToolResult(text, value=result)


def _show_block(block: mcp_types.ContentBlock) -> str:
    match block:
        case mcp_types.TextContent():
            return block.text
        case mcp_types.ResourceLink():
            return f"[resource {block.name}: {block.uri}]"
        case mcp_types.EmbeddedResource():
            inner = block.resource
            if isinstance(inner, mcp_types.TextResourceContents):
                return inner.text
            return _show_bytes(f"resource {inner.uri}", inner.mime_type, inner.blob)
        case _:
            return _show_bytes(block.type, block.mime_type, block.data)


def _show_bytes(what: str, mime_type: str | None, data: str) -> str:
    """Bytes that a text cannot hold: two of them are equal if these lines are."""
    try:
        held = base64.b64decode(data, validate=True)
    except ValueError:
        held = data.encode()
    digest = hashlib.sha256(held).hexdigest()[:16]
    kind = mime_type or "of no stated type"
    return f"[{what}, {kind}, {len(held)} bytes, sha256 {digest}]"
