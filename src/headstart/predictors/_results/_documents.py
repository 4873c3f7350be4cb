"""Results as JSON: read once, searched by value, written again to the letter."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any, Final, TypeAlias, cast

MAX_CHARACTERS = 200_000
"""A longer result is passed over."""
MAX_LEVELS = 64
MAX_NODES = 5_000
"""Objects that are looked at in one document."""
MAX_CACHED_CHARACTERS = 4_000_000

Json: TypeAlias = Any
"""A decoded JSON value."""
Node: TypeAlias = "dict[str, Json]"
Style: TypeAlias = "tuple[str, str, bool, int]"
"""How JSON is written: item and key separators, whether as ASCII, spaces to indent."""

STYLES: Final[tuple[Style, ...]] = tuple(
    (*separators, ascii_only, indent)
    for separators, indent in (
        ((", ", ": "), 0),
        ((",", ":"), 0),
        ((",", ": "), 2),
        ((",", ": "), 4),
    )
    for ascii_only in (True, False)
)


class Document:
    """A result that is a JSON object or list.

    Attributes:
        value: What it says.
        nodes: Every object in it, the outer before the inner.
    """

    __slots__ = ("_by_value", "nodes", "value")

    def __init__(self, value: Json) -> None:
        self.value = value
        self.nodes = find_nodes(value)
        self._by_value: dict[object, list[tuple[str, Node]]] | None = None

    def holding(self, value: object) -> list[tuple[str, Node]]:
        """The objects that have a field of this value, with the field's name."""
        if self._by_value is None:
            self._by_value = {}
            for node in self.nodes:
                for key, held in node.items():
                    if is_identifying(held):
                        self._by_value.setdefault(held, []).append((key, node))
        return self._by_value.get(value, [])


class DocumentReader:
    """Reads results, each text once."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Document | None] = OrderedDict()
        self._characters = 0

    def read(self, text: str) -> Document | None:
        """The JSON object or list that a result is; `None` where it is none."""
        if len(text) > MAX_CHARACTERS or text.lstrip()[:1] not in ("{", "["):
            return None
        if text in self._known:
            self._known.move_to_end(text)
            return self._known[text]
        value = decode(text)
        document = Document(value) if is_shallow(value) else None
        self._known[text] = document
        self._characters += len(text)
        while self._characters > MAX_CACHED_CHARACTERS:
            dropped, _ = self._known.popitem(last=False)
            self._characters -= len(dropped)
        return document


def decode(text: str) -> Json | None:
    """Read JSON; `None` where it is none, or one that could not be written again."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(name: str) -> object:
    raise ValueError(name)


def encode(value: Json, style: Style) -> str:
    """Write JSON in a style."""
    item, key, ascii_only, indent = style
    return json.dumps(
        value,
        separators=(item, key),
        ensure_ascii=ascii_only,
        indent=indent or None,
    )


def find_style(text: str, value: Json, likely: Style | None = None) -> Style | None:
    """The style in which `text` is written; `None` where it is another one."""
    styles = STYLES if likely is None else (likely, *STYLES)
    return next((each for each in styles if encode(value, each) == text), None)


def is_shallow(value: Json) -> bool:
    """Whether a value is an object or list, and not nested deeper than is looked into."""
    level: list[Json] = [value]
    for _ in range(MAX_LEVELS):
        deeper: list[Json] = []
        for each in level:
            if isinstance(each, dict):
                deeper.extend(cast("Node", each).values())
            elif isinstance(each, list):
                deeper.extend(cast("list[Json]", each))
        if not deeper:
            return isinstance(value, (dict, list))
        level = deeper
    return False


def find_nodes(value: Json) -> list[Node]:
    """Every object in a JSON value, the outer before the inner."""
    found: list[Node] = []
    level: list[Json] = [value]
    while level and len(found) < MAX_NODES:
        deeper: list[Json] = []
        for each in level:
            if isinstance(each, dict):
                node = cast("Node", each)
                found.append(node)
                deeper.extend(node.values())
            elif isinstance(each, list):
                deeper.extend(cast("list[Json]", each))
        level = deeper
    return found[:MAX_NODES]


def is_identifying(value: object) -> bool:
    """Whether a value may tell one object from others: text, or a larger integer."""
    if isinstance(value, str):
        return 1 < len(value) <= 200  # no prose, no flags
    return type(value) is int and abs(value) > 9  # no counts


def equal(left: Json, right: Json) -> bool:
    """Whether two JSON values are the same, and of one type."""
    return type(left) is type(right) and left == right
