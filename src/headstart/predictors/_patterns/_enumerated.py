"""Arguments of which the tool's schema says what they may be: an `enum`, or a boolean."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from headstart._tools import Tool

MAX_VALUES = 16
"""Of an argument that may be one of more, nothing is said."""
_DEEP = 3
"""Schemas within each other that are looked at."""


def enumerated(tool: Tool | None, name: str) -> tuple[str, ...]:
    """The values that an argument may have, as JSON; none if that is not limited.

    Args:
        tool: The tool.
        name: The argument.
    """
    if tool is None:
        return ()
    schema: dict[str, Any] = tool.parameters
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return ()
    found = _values(cast("dict[str, Any]", properties).get(name), schema, 0)
    if not found or any(isinstance(each, dict | list) for each in found):
        return ()
    written = tuple(dict.fromkeys(map(json.dumps, found)))
    return written if len(written) <= MAX_VALUES else ()


def _values(schema: object, root: dict[str, Any], depth: int) -> list[Any] | None:
    """What a schema allows; `None` if that is not limited."""
    if not isinstance(schema, dict) or depth > _DEEP:
        return None
    fields = cast("dict[str, Any]", schema)
    listed: object = fields.get("enum")
    if isinstance(listed, list):
        values = cast("list[Any]", listed)
        return values if len(values) <= MAX_VALUES else None
    if "const" in fields:
        return [fields["const"]]
    kind = fields.get("type")
    if kind == "boolean":
        return [False, True]
    if kind == "null":
        return [None]
    reference = fields.get("$ref")
    if isinstance(reference, str):
        definitions: object = root.get("$defs")
        if isinstance(definitions, dict):
            named = cast("dict[str, Any]", definitions).get(
                reference.rpartition("/")[2]
            )
            return _values(named, root, depth + 1)
        return None
    kinds: object = fields.get("anyOf", fields.get("oneOf"))
    if not isinstance(kinds, list) or len(cast("list[object]", kinds)) > MAX_VALUES:
        return None
    found: list[Any] = []
    for each in cast("list[object]", kinds):
        inner = _values(each, root, depth + 1)
        if not inner or len(found) > MAX_VALUES:
            return None
        found += inner
    return found
