"""Where the value of an argument could have come from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from ._dates import read_date
from ._sources import CHANGES
from ._values import is_mapping

if TYPE_CHECKING:
    from ._moment import Moment

_MAX_EXPLAINING = 32
"""Places of one value that are looked at, the newest."""
_STEPS = 4
"""Lists and objects that a value may be wrapped in."""
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def same(left: Any, right: Any) -> bool:
    """Whether two JSON values are written the same, but for `1` and `1.0`."""
    return left == right and isinstance(left, bool) == isinstance(right, bool)


def explain(value: Any, moment: Moment) -> list[str]:
    """The sources that a value could have come from."""
    found: dict[str, None] = {}
    if isinstance(value, list | dict):
        return _explain_nested(value, moment)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return []
    text = value if isinstance(value, str) else json.dumps(value)
    places = moment.places(text)[-_MAX_EXPLAINING:]
    if len(text) > 2 and text[0] == text[-1] == '"':
        places += moment.places(text[1:-1])[-_MAX_EXPLAINING:]
    for _, item in places:
        change = _change(item.value, value)
        if change is not None:
            found[f"{item.source}{change}"] = None
    found.update(dict.fromkeys(_explain_date(text, moment)))
    return list(found)


def _explain_date(text: str, moment: Moment) -> list[str]:
    """The sources of a date that stands elsewhere in another form.

    The year of one that was said without is that of the conversation, or a constant.
    """
    read = read_date(text)
    if read is None:
        return []
    date, form = read
    found: list[str] = []
    if form != "iso":
        places = moment.places(date)[-_MAX_EXPLAINING:]
        found += [f"{item.source}|{form}:" for _, item in places]
    year, partial = date[:4], f"-{date[4:]}"
    for _, item in moment.places(partial)[-_MAX_EXPLAINING:]:
        if year == moment.year:
            found.append(f"{item.source}|{form}:")
        found.append(f"{item.source}|{form}:{year}")
    return found


def _explain_nested(value: Any, moment: Moment) -> list[str]:
    """The sources of a value that is wrapped in others, or of a list of values."""
    steps, inner = _unwrap(value)
    if isinstance(inner, list):
        return [] if steps else _explain_list(cast("list[Any]", inner), moment)
    form = _CANONICAL.encode(steps)
    return [f"{form}{source}" for source in explain(inner, moment)]


def _unwrap(value: Any) -> tuple[list[int | str], Any]:
    """What a value is wrapped in, and the value: lists of one, objects of one field."""
    steps: list[int | str] = []
    while len(steps) < _STEPS:
        if isinstance(value, list) and len(cast("list[Any]", value)) == 1:
            steps.append(1)
            value = cast("list[Any]", value)[0]
        elif isinstance(value, dict) and len(cast("dict[str, Any]", value)) == 1:
            fields = cast("dict[str, Any]", value)
            if is_mapping(fields):
                return steps, None  # its key is a value of this run
            ((key, value),) = fields.items()
            steps.append(key)
        else:
            break
    return steps, None if isinstance(value, dict) else cast("Any", value)


def _explain_list(values: list[Any], moment: Moment) -> list[str]:
    if not values or isinstance(values[0], list | dict):
        return []
    wanted = {str(value) for value in values if isinstance(value, str | int | float)}
    found: list[str] = []
    for source in explain(values[0], moment):
        if "|" not in source:
            for _, segment in moment.segments(source, 2):
                if {item.text for item in segment} == wanted:
                    found.append(f"[*]{source}")
                    break
    return found


def _change(found: Any, value: Any) -> str | None:
    if same(found, value) and isinstance(found, str) == isinstance(value, str):
        return ""
    for name, change in CHANGES.items():
        try:
            if same(change(found), value):
                return f"|{name}"
        except ValueError:
            continue
    return None
