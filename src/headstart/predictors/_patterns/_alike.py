"""Arguments of one kind: what is known of those of a tool that was hardly called.

Rules of this file:

1. Arguments and fields whose names end with the same word (`orderId`, `order_id`) are of
   one kind. Where the arguments of one kind come from is counted for all tools together,
   and so is where any argument comes from.
2. Such sources name no tool: `>id` is a field of that kind in any result, `<id` an
   argument in any call, `>~path` a piece of any result's text, `user~9{}` any number that
   the user said.
"""

from __future__ import annotations

import functools
import json
import math
import re
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ._moment import Moment
    from ._options import Option
    from ._values import Item

FEW = 2.0
"""A tool that was called less often is hardly known."""
ANY = "*<"
"""What the sources of all arguments are counted under."""
_SHARES = 0.7, 0.3
"""How much arguments of the same kind count, and how much all of them."""
_MAX_SOURCES = 8
"""Sources of such an argument that are looked at."""
_MAX_NAMES = 3
"""Of a schema that does not say what is required: so many arguments are all given."""
_NUMBER = "9{}"
"""The shape of numbers of any length."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+|[^\W\d_]+")


@functools.lru_cache(maxsize=4_096)
def kind_of(name: str) -> str:
    """The last word of a name, in lower case."""
    words = _WORD.findall(name[-80:])
    return words[-1].lower() if words else ""


@functools.lru_cache(maxsize=8_192)
def generalise(source: str) -> str:
    """A source without the tool's name; empty if it makes no sense for another tool."""
    if source[:1] in ("=", "["):
        return ""
    if "|+" in source:
        return ""
    path, _, change = source.partition("|")
    where, tilde, shape = path.partition("~")
    if shape.startswith("9{"):
        shape = _NUMBER
    at = max(where.find("<"), where.find(">"))
    if at >= 0:
        where = where[at] if tilde else f"{where[at]}{kind_of(where[at + 1 :])}"
    named = f"{where}~{shape}" if tilde else where
    return f"{named}|{change}" if change else named


def generalise_all(sources: Iterable[str]) -> list[str]:
    """Sources without the tools' names, each once."""
    return [*dict.fromkeys([each for each in map(generalise, sources) if each])]


def is_general(source: str) -> bool:
    """Whether a source stands for several, of different tools or shapes."""
    return source[:1] in ("<", ">") or source.endswith(_NUMBER)


def shared_slots(name: str) -> tuple[str, str]:
    """What the sources of an argument are counted under for all tools."""
    return f"{ANY}{kind_of(name)}", ANY


def find_alike(source: str, moment: Moment) -> list[tuple[int, Sequence[Item]]]:
    """The groups of values of a source that names no tool, the newest first."""
    history = moment.history.read()
    found: dict[int, list[Item]] = {}
    for name in history.alike.get(source, ()):
        for at, items in history.by_source.get(name, ()):
            if at < moment.length:
                found.setdefault(at, []).extend(items)
    return sorted(found.items(), reverse=True)


def add_alike(
    counts: Mapping[str, float], name: str, tables: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """The counts of an argument's sources, with those of arguments that are alike.

    Args:
        counts: Its own.
        name: Its name.
        tables: The counts of all arguments.
    """
    found: dict[str, float] = {}
    for slot, share in zip(shared_slots(name), _SHARES, strict=True):
        shared = tables.get(slot, {})
        total = sum(shared.values())
        for source, count in shared.items():
            found[source] = found.get(source, 0.0) + share * count / total
    for source, count in counts.items():
        found[source] = found.get(source, 0.0) + count
    best = sorted(found, key=lambda source: -found[source])[:_MAX_SOURCES]
    return {source: found[source] for source in best}


def expect_signature(tool: str, moment: Moment) -> dict[str, float]:
    """The signature of a tool that was never called; none if it cannot be told."""
    known = moment.tools.get(tool)
    if known is None:
        return {}
    required: object = known.parameters.get("required")
    if isinstance(required, list):
        return {json.dumps([*map(str, cast("list[object]", required))]): 1.0}
    properties: object = known.parameters.get("properties")
    names = (
        [*cast("dict[str, object]", properties)] if isinstance(properties, dict) else []
    )
    return {json.dumps(names): 1.0} if len(names) <= _MAX_NAMES else {}


def weigh_sources(options: Iterable[Option], counts: Mapping[str, float]) -> None:
    """Add to scores of values how usual their sources are, before weights are learned."""
    total = sum(counts.values()) or 1.0
    for option in options:
        seen = max([counts.get(source, 0.0) for source in option.sources])
        option.score += math.log((seen + 0.1) / total)
