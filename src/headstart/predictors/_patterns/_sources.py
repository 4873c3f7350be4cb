"""Sources: names for kinds of places that values of arguments come from.

A source is a name for a kind of place (see `Item.source`), with how the value is changed
behind a `|`: a name of `CHANGES`, a form of dates, or a template (see `_templates`). `=`
stands for a constant, and `[*]` before a source for a list of all its values. Steps
before a source say in what one of its values is wrapped, the outermost first: `[1]` in a
list of one, `[1,"path"]` in a list of one object with one field.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from typing import TYPE_CHECKING, Any, TypeAlias

from ._dates import FORMS, write_date
from ._templates import is_template, paths_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Scalar: TypeAlias = "str | int | float"
_DECODER = json.JSONDecoder()
_OWN = re.compile(r"[^<>~]*<[^>]*$")
_NUMBER = re.compile(r"-?\d{1,15}(\.\d{1,15})?")


def _number(value: Any) -> int | float:
    text = str(value)
    if not _NUMBER.fullmatch(text):
        raise ValueError(text)
    return float(text) if "." in text else int(text)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "lower": lambda value: str(value).lower(),
    "upper": lambda value: str(value).upper(),
    "title": lambda value: str(value).title(),
    "text": str,
    "quoted": lambda value: f'"{value}"',
    "number": _number,
}
"""How a value may be changed on its way into an argument."""


class Source:
    """A source as it was named, and what its name says.

    Attributes:
        name: Its name.
        feature: The feature of what comes from it.
        is_constant: Whether it is a constant.
        value: The constant.
        text: The constant as text.
        standings: What `_options` found out of values from it.
        steps: In what a value is wrapped; `None` for a list of all values.
        path: The kind of place.
        change: How a value is changed; empty if it is not.
    """

    __slots__ = (
        "change",
        "feature",
        "is_constant",
        "name",
        "path",
        "standings",
        "steps",
        "text",
        "value",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.feature = f"s:{name}"
        self.is_constant = name[0] == "="
        self.value: Any = None
        self.text = ""
        self.steps: tuple[int | str, ...] | None = ()
        self.path = self.change = ""
        self.standings: dict[int, Any] = {}
        if self.is_constant:
            self.value = json.loads(name[1:])
            text = isinstance(self.value, str)
            self.text = self.value if text else json.dumps(self.value)
        else:
            self._read()

    def _read(self) -> None:
        self.path = name = self.name
        if name.startswith("[*]"):
            self.steps, self.path = None, name[3:]
        elif name[:1] == "[":
            read: list[int | str] = []
            end = 0
            with contextlib.suppress(ValueError, RecursionError):
                read, end = _DECODER.raw_decode(name)
            if all(each == 1 or isinstance(each, str) for each in read):
                self.steps, self.path = tuple(read), name[end:]
        place, _, change = self.path.rpartition("|")
        if place and (
            change in CHANGES
            or change.partition(":")[0] in FORMS
            or is_template(change)
        ):
            self.path, self.change = place, change


read_source = functools.lru_cache(maxsize=4_096)(Source)
"""A source by its name."""


@functools.lru_cache(maxsize=8_192, typed=True)
def change(value: Scalar, how: str, year: str) -> tuple[Any, str] | None:
    """A value as an argument has it, and as text; `None` if it is none of the kind.

    Args:
        value: The value as it was found.
        how: How it is changed.
        year: The year of dates that have none.
    """
    try:
        if how in CHANGES:
            changed = CHANGES[how](value)
        else:
            form, _, own = how.partition(":")
            changed = write_date(str(value), form, own or year)
    except ValueError:
        return None
    return changed, str(changed)


def wrap(steps: Sequence[int | str], value: Any) -> Any:
    """A value in lists of one and objects of one field."""
    for step in reversed(steps):
        value = {step: value} if isinstance(step, str) else [value]
    return value


def is_own(source: str) -> bool:
    """Whether nobody else can plant a source's values: they are the model's own."""
    if source[0] == "=":
        return True
    read = read_source(source)
    return all(map(_OWN.match, (read.path, *paths_of(read.change))))


def shown(source: str) -> str:
    """A source without anything that an argument holds word for word."""
    if source[0] == "=":
        return "="
    read = read_source(source)
    return f"{read.path}|+" if is_template(read.change) else source


def is_dated(source: str) -> bool:
    """Whether a year is a part of a source."""
    return source[-5:-4] == ":" and source[-4:].isdecimal()
