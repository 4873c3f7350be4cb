"""What is believed of an MCP server's word on its tools: for the adapter and the seam.

Rules of this file:

1. What a server says of its tools is a hint. It counts only where the caller trusts the
   server, and only as long as its list is the one that was trusted.
2. Nothing here imports the SDK: it reads what the SDK made.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias

logger = logging.getLogger("headstart")

Trust: TypeAlias = bool | str
"""`True` trusts the list as it is first seen, a fingerprint that list alone."""

ListPage: TypeAlias = Callable[[str | None], Awaitable[Any]]

MAX_PAGES = 1000
"""A server whose list never ends is not listed further."""


class ToolList:
    """The tools of a server as they were last listed, and whether its word counts.

    Attributes:
        definitions: The tools, as the SDK has them.
        fingerprint: Stands for their names, schemas and annotations.
    """

    def __init__(self, list_page: ListPage, *, trusted: Trust) -> None:
        self.definitions: list[Any] = []
        self.fingerprint = ""
        self._list_page = list_page
        self._pinned = trusted if isinstance(trusted, str) else None
        self._pins_first = trusted is True
        self._changed = False
        self._news = 0

    @property
    def trusted(self) -> bool:
        """Whether what the server says of its tools is believed now."""
        return not self._changed and self._pinned == self.fingerprint != ""

    async def refresh(self) -> None:
        """List the tools again. Other ones than those that were trusted end trust.

        Raises:
            MCPError: The server cannot list its tools; nothing is believed then.
        """
        news = self._news
        self._changed = True  # until they were listed, as far as anybody knows
        self.definitions = await self._list()
        self._changed = self._news != news
        self.fingerprint = _fingerprint(self.definitions)
        if self._pins_first:
            self._pins_first, self._pinned = False, self.fingerprint
        elif self._pinned not in (None, self.fingerprint):
            self._pinned = None
            _warn_of_change()

    def trust(self) -> None:
        """Believe what the server says of its tools as they were last listed."""
        self._pinned = self.fingerprint

    def doubt(self) -> None:
        """Believe nothing until `refresh` has found the list to be the same."""
        self._changed = True
        self._news += 1

    def compare(self, definitions: Iterable[Any]) -> None:
        """Look at definitions that somebody listed: another one ends trust."""
        if not self.trusted:
            return
        known = {_described(definition) for definition in self.definitions}
        if any(_described(definition) not in known for definition in definitions):
            self._pinned = None
            _warn_of_change()

    def only_reads(self, name: str) -> bool:
        """Whether a server that is trusted now says that a tool changes nothing."""
        return self.trusted and any(
            definition.name == name and says_it_only_reads(definition.annotations)
            for definition in self.definitions
        )

    async def _list(self) -> list[Any]:
        listed: list[Any] = []
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            page = await self._list_page(cursor)
            listed += page.tools
            cursor = page.next_cursor
            if cursor is None:
                break
        return listed


def says_it_only_reads(annotations: Any) -> bool:
    """What annotations say; where they say nothing, the specification's default."""
    return annotations is not None and annotations.read_only_hint is True


def _warn_of_change() -> None:
    logger.warning(
        "The tools of an MCP server are not those that were trusted: what it "
        "says of them is not believed any more. Look at them, and call trust()."
    )


def _described(definition: Any) -> str:
    return json.dumps(
        definition.model_dump(
            mode="json",
            by_alias=True,
            exclude_none=True,
            include={"name", "input_schema", "output_schema", "annotations"},
        ),
        sort_keys=True,
    )


def _fingerprint(definitions: list[Any]) -> str:
    described = sorted(map(_described, definitions))
    return "sha256:" + hashlib.sha256("\n".join(described).encode()).hexdigest()
