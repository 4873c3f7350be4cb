"""Shapes: how a value of a result may be put together from what stood there before.

| shape | value |
|---|---|
| `("into",)` | the base's object, with fields changed, added at the end, or removed |
| `("build",)` | a new object |
| `("append",)` | the base's list, with elements added at the end |
| `("where", key, argument)` | the base's list, with those elements changed that an argument names |
| `("each", argument)` | a list with one element for each of an argument's |
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final, cast

from ._derivations import Place, Scope
from ._documents import Json, Node, equal
from ._expressions import MISSING, Expression

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_APPENDED = 4
INTO: Final = ("into",)
BUILD: Final = ("build",)
APPEND: Final = ("append",)
SHAPES: Final = ("into", "build", "append", "where", "each")


def is_shape(value: Any) -> bool:
    """Whether a value that was read from a file is a shape."""
    return value in (INTO, BUILD, APPEND) or (
        isinstance(value, tuple)
        and all(isinstance(each, str) for each in cast("tuple[Any, ...]", value))
        and (value[:1], len(cast("tuple[Any, ...]", value)))
        in ((("where",), 3), (("each",), 2))
    )


def find_shapes(value: Json, place: Place, scope: Scope) -> Iterator[Expression]:
    """The ways in which a value may be put together from what is there."""
    here = place.here
    if isinstance(value, dict):
        node = cast("Node", value)
        if not isinstance(here, dict):
            yield BUILD
        elif _in_order(node, cast("Node", here)):
            yield INTO
    elif isinstance(value, list):
        listed = cast("list[Json]", value)
        if isinstance(here, list):
            before = cast("list[Json]", here)
            grown = len(listed) - len(before)
            if 0 <= grown <= MAX_APPENDED and equal(listed[: len(before)], before):
                yield APPEND
            if grown == 0:
                yield from _named(listed, before, scope)
            return
        for name, argument in scope.arguments.items():
            if isinstance(argument, list) and (
                len(cast("list[Json]", argument)) == len(listed) > 0
            ):
                yield ("each", name)


def _in_order(node: Node, base: Node) -> bool:
    kept = [key for key in base if key in node]
    return list(node)[: len(kept)] == kept


def _named(
    listed: list[Json], before: list[Json], scope: Scope
) -> Iterator[Expression]:
    """The ways in which arguments name just the elements that have changed."""
    changed = [
        (old, new)
        for old, new in zip(before, listed, strict=True)
        if not equal(old, new)
    ]
    if not changed or not all(
        isinstance(each, dict) for pair in changed for each in pair
    ):
        return
    first = cast("Node", changed[0][0])
    for key, name in itertools.product(first, scope.arguments):
        numbers = [number_of(old, key, scope.arguments[name]) for old, _ in changed]
        if None not in numbers:
            yield ("where", key, name)


def number_of(element: Json, key: str, argument: Json) -> int | None:
    """Which element of an argument names an element by its key; -1 where it is all."""
    if not isinstance(element, dict) or key not in element:
        return None
    value = cast("Node", element)[key]
    if isinstance(argument, list):
        listed = cast("list[Json]", argument)
        return listed.index(value) if value in listed else None
    return -1 if equal(argument, value) else None


def parts_of(
    shape: Expression, value: Json, place: Place, scope: Scope
) -> Iterator[tuple[str, Json, Place]]:
    """The parts of a value that has a shape: where, what, and what stands there."""
    here = place.here
    if shape in (INTO, BUILD):
        node = cast("Node", value)
        base = cast("Node", here) if shape == INTO else {}
        if shape == BUILD:
            yield "#keys", list(node), place.at(MISSING)
        else:
            yield "#added", [k for k in node if k not in base], place.at([])
            yield "#removed", [k for k in base if k not in node], place.at([])
        for key, part in node.items():
            yield f".{key}", part, place.at(base.get(key, MISSING))
    elif shape == APPEND:
        before = len(cast("list[Json]", here))
        appended = cast("list[Json]", value)[before:]
        yield "#grown", len(appended), place.at(0)
        for index, part in enumerate(appended):
            yield f"+{index}", part, turn_at(cast("list[Json]", here), index)
    elif shape[0] == "where":
        _, key, name = shape
        pairs = zip(cast("list[Json]", here), cast("list[Json]", value), strict=True)
        for old, new in pairs:
            number = number_of(old, key, scope.arguments[name])
            if number is not None:
                yield f"?{key}|{name}", new, Place(old, old, number)
    else:
        for index, part in enumerate(cast("list[Json]", value)):
            yield f"*{shape[1]}", part, Place(number=index)


def turn_at(base: list[Json], index: int) -> Place:
    """The place of an appended element, beside the base's element of its number."""
    element = base[index] if index < len(base) else MISSING
    return Place(MISSING, element, index)
