"""How models write arguments as JSON text: spacing, letters that are escaped, order."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

from headstart._calls import decode_arguments

from ._history import read_arguments

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from headstart._calls import ToolCall

    from ._moment import Moment

_SEPARATORS = {"spaced": (", ", ": "), "compact": (",", ":"), "mixed": (",", ": ")}
STYLES: dict[str, json.JSONEncoder] = {
    f"{name}{suffix}": json.JSONEncoder(separators=separators, ensure_ascii=escaped)
    for escaped, suffix in ((False, ""), (True, " escaped"))
    for name, separators in _SEPARATORS.items()
}
"""The ways to write that are told apart, the most usual first."""
ANY = "*"
"""Where the counts of styles are, among those of the tools' orders."""
MAX_TABLES = 1_000
MAX_ORDERS = 8
"""Orders of one tool's arguments that are remembered."""
_MEMORY = 200.0
"""Calls that a table remembers: more, and the older count half."""
_MAX_CHARACTERS = 10_000
"""Longer arguments say nothing about the style: to look would cost too much."""
_RECENT = 8
"""Calls of the conversation that are looked at, the newest."""


class Writing:
    """Learns how arguments are written, and writes them so.

    An answer that is begun on expected calls is of use only where these are written to
    the letter as the model writes them. Different models may work behind one agent: how
    the conversation's own calls are written goes before what was learned.

    Attributes:
        counts: By `ANY`: how many calls were written in each style. By style and tool:
            how many had their arguments in each order.
    """

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, float]] = {}

    def find_style(self, moment: Moment) -> str:
        """The style that the next call will have."""
        possible = list(STYLES)
        for call in moment.recent_calls[:_RECENT]:
            fitting = styles_of(call.arguments)
            possible = [style for style in possible if style in fitting] or possible
        known = self.counts.get(ANY, {})
        return max(possible, key=lambda style: known.get(style, 0.0))

    def write(
        self, tool: str, arguments: Mapping[str, Any], moment: Moment, style: str
    ) -> str:
        """Write the arguments of a call in a style, in the order that is usual."""
        if len(arguments) > 1:
            order = self._find_order(tool, arguments, moment, style)
            first = {name: arguments[name] for name in order if name in arguments}
            arguments = {**first, **arguments}
        return STYLES[style].encode(arguments)

    def learn(self, calls: Iterable[ToolCall]) -> None:
        """Learn how an answer's calls are written."""
        for call in calls:
            fitting = styles_of(call.arguments)
            if len(fitting) == len(STYLES):
                continue
            self._count(ANY, fitting)
            names = list(decode_arguments(call.arguments) or ())
            if len(names) > 1:
                order = json.dumps(names)
                for style in fitting:
                    self._count(f"{style}/{call.name}", (order,))

    def merge(self, other: Writing) -> None:
        """Add what others counted."""
        for name, theirs in other.counts.items():
            for each, count in theirs.items():
                self._count(name, (each,), count)

    def read(self, counts: dict[str, dict[str, float]]) -> None:
        """Fill in counts that were written down."""
        for name, written in counts.items():
            for each, count in written.items():
                self._count(name, (each,), min(count, _MEMORY))

    def _find_order(
        self, tool: str, arguments: Mapping[str, Any], moment: Moment, style: str
    ) -> Iterable[str]:
        for call in moment.recent_calls:
            if call.name == tool and len(call.arguments) <= _MAX_CHARACTERS:
                order = read_arguments(call)
                if order.keys() >= arguments.keys():
                    return order
        orders = self.counts.get(f"{style}/{tool}", {})
        for order in sorted(orders, key=lambda order: -orders[order]):
            names = _names(order)
            if arguments.keys() <= set(names):
                return names
        known = moment.tools.get(tool)
        return (known.parameters.get("properties") or ()) if known else ()

    def _count(self, name: str, seen: Iterable[str], count: float = 1.0) -> None:
        counts = self.counts.get(name)
        if counts is None:
            if len(self.counts) >= MAX_TABLES:
                return
            counts = self.counts[name] = {}
        for each in seen:
            counts[each] = counts.get(each, 0.0) + count
        if sum(counts.values()) > _MEMORY or len(counts) > MAX_ORDERS:
            kept = sorted(counts, key=lambda each: -counts[each])[: MAX_ORDERS // 2]
            self.counts[name] = {each: counts[each] / 2 for each in kept}


@functools.lru_cache(maxsize=1_024)
def styles_of(text: str) -> tuple[str, ...]:
    """The styles in which an argument text may have been written; all, if it is none."""
    decoded = decode_arguments(text) if len(text) <= _MAX_CHARACTERS else None
    if decoded:
        fitting = [
            name for name, each in STYLES.items() if each.encode(decoded) == text
        ]
        if fitting:
            return tuple(fitting)
    return tuple(STYLES)


@functools.lru_cache(maxsize=1_024)
def _names(order: str) -> tuple[str, ...]:
    """Read an order of arguments that was written down; none, if it is no such."""
    try:
        names: object = json.loads(order)
    except (ValueError, RecursionError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()  # pyright: ignore[reportUnknownArgumentType]
