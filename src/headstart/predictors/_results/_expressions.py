"""Expressions: how a value of a result follows from what is known before.

An expression is a tuple that can be written as JSON. Its first item says what it is:

| expression | value |
|---|---|
| `("same",)` | what stands at this place in the base, the object that the call is about |
| `("const", text)` | always this, as JSON text |
| `("arg", name, *path)` | an argument, or a part of it |
| `("item", name, *path)` | an argument that is a list: the element whose turn it is |
| `("sorted", name)` | an argument that is a list, sorted |
| `("base", *path)` | a field of the base |
| `("element", key)` | a field of the base's element whose turn it is |
| `("negative", expression)`, `("positive", expression)` | a number of that sign |
| `("found", key, expression, field)` | a field of the newest object whose `key` has a value |
| `("held", key, expression, field)` | the same, of an object within the base |
| `("total", plus, minus, digits)` | a sum of numbers, less another, rounded |

The terms of a total are `(kind, key, argument, field)`: what is found or held for each
element of an argument.
"""

from __future__ import annotations

import functools
import itertools
import json
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from ._documents import Json, Node, decode, equal, is_identifying

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Expression: TypeAlias = "tuple[Any, ...]"
MAX_PATH = 3
MAX_WALKED = 2_000
"""Fields of a base that are looked at."""
MAX_CONSTANT = 400
MAX_LISTED = 40

MISSING: Final[Any] = object()
"""No value: there is no such field, or nothing was found."""


def as_constant(value: Json) -> Expression | None:
    """The expression that always gives a value: a short one, or names of fields."""
    if isinstance(value, list):
        listed = cast("list[Json]", value)
        if len(listed) > MAX_LISTED or not all(isinstance(v, str) for v in listed):
            return None
    elif (isinstance(value, dict) and value) or (
        isinstance(value, str) and len(value) > MAX_CONSTANT
    ):
        return None
    text = json.dumps(value)
    return ("const", text) if len(text) <= MAX_CONSTANT else None


def is_expression(value: Any) -> bool:
    """Whether a value that was read from a file can be evaluated."""
    if not isinstance(value, tuple) or not value:
        return False
    kind, *rest = cast("tuple[Any, ...]", value)
    texts = all(isinstance(each, str) for each in rest)
    if kind == "same":
        return not rest
    if kind == "const":
        return (
            texts
            and len(rest) == 1
            and (rest[0] == "null" or decode(rest[0]) is not None)
        )
    if kind in ("arg", "item", "base", "element"):
        return texts and bool(rest)
    if kind == "sorted":
        return texts and len(rest) == 1
    if kind in ("negative", "positive"):
        return len(rest) == 1 and is_expression(rest[0])
    if kind in ("found", "held"):
        return (
            len(rest) == 3
            and isinstance(rest[0], str)
            and isinstance(rest[2], str)
            and is_expression(rest[1])
        )
    return (
        kind == "total"
        and len(rest) == 3
        and _is_term(rest[0])
        and (rest[1] == () or _is_term(rest[1]))
        and type(rest[2]) is int
    )


def _is_term(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(cast("tuple[Any, ...]", value)) == 4
        and all(isinstance(each, str) for each in cast("tuple[Any, ...]", value))
        and value[0] in ("found", "held")
    )


@functools.lru_cache(4096)
def read_constant(text: str) -> Json:
    """The value of a constant expression."""
    return json.loads(text)


def follow(value: Json, path: Sequence[str]) -> Json:
    """What stands at the end of a path of keys, or `MISSING`."""
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return MISSING
        value = cast("Node", value)[key]
    return value


def paths_to(value: Json, held: Json, depth: int = MAX_PATH) -> list[tuple[str, ...]]:
    """The paths of keys that lead to an equal value."""
    if equal(held, value):
        return [()]
    if depth == 0 or not isinstance(held, dict):
        return []
    node = cast("Node", held)
    return [
        (key, *rest)
        for key, inner in itertools.islice(node.items(), 64)
        for rest in paths_to(value, inner, depth - 1)
    ]


def walk_fields(base: Node) -> Iterator[tuple[tuple[str, ...], Json]]:
    """The fields of a base and of the objects in it, with their paths."""
    level: list[tuple[tuple[str, ...], Node]] = [((), base)]
    left = MAX_WALKED
    for _ in range(MAX_PATH):
        deeper: list[tuple[tuple[str, ...], Node]] = []
        for path, node in level:
            for key, held in itertools.islice(node.items(), left):
                left -= 1
                yield (*path, key), held
                if isinstance(held, dict):
                    deeper.append(((*path, key), cast("Node", held)))
        level = deeper


def rough(value: Json) -> object:
    """What equal values have in common: themselves, or how long they are."""
    if isinstance(value, (dict, list)):
        return isinstance(value, list), len(cast("list[Json]", value))
    return value


def is_telling(value: Json) -> bool:
    """Whether two equal values are hardly equal by chance."""
    if isinstance(value, (dict, list)):
        return bool(value)  # pyright: ignore[reportUnknownArgumentType]
    return is_identifying(value) or isinstance(value, float)
