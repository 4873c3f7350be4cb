"""Loops over objects: which object the next call of a tool would take its arguments from.

When several arguments of the newest call of a tool stand in one object of a result, and
other objects have the same fields, then the next of them in order, of which no call was
made yet, is the likely source of the next call. That needs no learning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._history import PastCall
    from ._moment import Moment

Place = tuple[int, int]
"""A message, and an object in it."""
_MAX_ROWS = 128
_MAX_PLACES = 64
"""Places of one value that are looked at: in a loop, some stand in most of the objects."""
NO_ROW: Place = (-1, -1)


def next_row(tool: str, moment: Moment) -> Place:
    """The object that a loop over objects comes to next; `NO_ROW` if there is none."""
    calls = moment.calls_of(tool)
    if not calls or len(calls[-1].arguments) < 2:
        return NO_ROW
    row, fields = _find_row(calls[-1], moment)
    if len(fields) < 2:
        return NO_ROW
    rows: dict[Place, list[str]] = {}
    for number, source in enumerate(fields.values()):
        for at, items in moment.segments(source, _MAX_ROWS)[::-1]:
            for item in items:
                values = rows.setdefault((at, item.group), [])
                if len(values) == number:
                    values.append(item.text)
            if len(rows) >= _MAX_ROWS:
                break
    made = {tuple(str(call.arguments.get(name)) for name in fields) for call in calls}
    order = [place for place, values in rows.items() if len(values) == len(fields)]
    order.sort()
    later = [place for place in order if place > row]
    for place in (*later, *order):
        if tuple(rows[place]) not in made:
            return place
    return NO_ROW


def _find_row(call: PastCall, moment: Moment) -> tuple[Place, dict[str, str]]:
    """The object where most arguments of a call stand, and their fields there."""
    found: dict[Place, dict[str, str]] = {}
    for name, value in call.arguments.items():
        if isinstance(value, str | int | float):
            for at, item in moment.places(str(value))[-_MAX_PLACES:]:
                if item.token < 0 and ">" in item.source and at < call.at:
                    found.setdefault((at, item.group), {}).setdefault(name, item.source)
    if not found:
        return NO_ROW, {}
    best = max(found, key=lambda place: (len(found[place]), place))
    return best, found[best]
