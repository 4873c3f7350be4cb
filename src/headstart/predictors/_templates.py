"""Templates over what is known: `"{order_id}"`, `"{results.get_user.orders[0].id}"`.

Rules of this file:

1. Nothing is evaluated. A path goes through mapping keys, sequence indices and the
   declared fields of dataclasses, and nothing else; no name with two underscores.
2. What is missing, null or no JSON value has no values: whoever asks proposes nothing.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, cast

from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python

from headstart._errors import UsageError

EVERY = "*"
_FIRST = re.compile(r"[^.\[\]]+")
_STEP = re.compile(r"\.([^.\[\]]+)|\[([^\[\]]+)\]")


@dataclass(frozen=True, slots=True)
class Placeholder:
    """One `{...}` of a template.

    Attributes:
        root: The first name: a group, `result`, `results`, `deps` or `user_text`.
        path: The steps from there: keys, indices, and `"*"` for every element.
    """

    root: str
    path: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Placeholder:
        """Read what stands between the braces.

        Raises:
            UsageError: It is no path.
        """
        first = _FIRST.match(text)
        position = first.end() if first else 0
        steps: list[str] = []
        while first and (step := _STEP.match(text, position)):
            steps.append(step[1] or step[2])
            position = step.end()
        if first is None or position != len(text):
            msg = f"{{{text}}} is no path such as {{result.orders[0].id}}."
            raise UsageError(msg)
        if any("__" in name for name in (first[0], *steps)):
            msg = f"{{{text}}} has a name with two underscores, which is not looked up."
            raise UsageError(msg)
        return cls(first[0], tuple(steps))

    def __str__(self) -> str:
        return "{" + ".".join((self.root, *self.path)) + "}"


@dataclass(frozen=True, slots=True)
class Template:
    """Text with placeholders, read once."""

    parts: tuple[str | Placeholder, ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Read a template. `{{` and `}}` stand for braces.

        Raises:
            UsageError: The braces do not fit, or a placeholder is no plain path.
        """
        parts: list[str | Placeholder] = []
        try:
            for literal, name, form, conversion in string.Formatter().parse(text):
                if literal:
                    parts.append(literal)
                if name is None:
                    continue
                if form or conversion:
                    msg = f"{text!r}: a placeholder has no ':' format and no '!'."
                    raise UsageError(msg)
                parts.append(Placeholder.parse(name))
        except ValueError as error:
            msg = f"{text!r} cannot be read: {error}. Write {{{{ and }}}} for braces."
            raise UsageError(msg) from error
        return cls(tuple(parts))

    def render(self, values: Mapping[Placeholder, object]) -> object:
        """Fill in the values. A single placeholder keeps its JSON type.

        Raises:
            LookupError: A list or an object would stand in the middle of a text.
        """
        if len(self.parts) == 1 and isinstance(self.parts[0], Placeholder):
            return values[self.parts[0]]
        return "".join(
            part if isinstance(part, str) else _as_text(values[part])
            for part in self.parts
        )


def _as_text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return to_json(value).decode()
    raise LookupError


def read_value(value: object) -> tuple[object, tuple[Placeholder, ...]]:
    """Read an argument: its texts as templates, at any depth.

    Returns:
        What `fill` takes, and the placeholders in it.

    Raises:
        UsageError: It has a template that cannot be read, or is no JSON value.
    """
    found: list[Placeholder] = []

    def read(value: object) -> object:
        kind = type(value).__name__
        if isinstance(value, str):
            template = Template.parse(value)
            found.extend(part for part in template.parts if not isinstance(part, str))
            return template
        if isinstance(value, Mapping):
            entries = cast("Mapping[object, object]", value)
            if all(isinstance(key, str) for key in entries):
                return {key: read(each) for key, each in entries.items()}
        elif isinstance(value, list | tuple):
            return [read(each) for each in cast("list[object]", value)]
        elif value is None or isinstance(value, bool | int | float):
            return value
        msg = f"An argument is a template or a JSON value, not {kind}."
        raise UsageError(msg)

    return read(value), tuple(dict.fromkeys(found))


def fill(value: object, values: Mapping[Placeholder, object]) -> Any:
    """Give an argument that `read_value` read its values.

    Raises:
        LookupError: A value does not fit its place.
    """
    if isinstance(value, Template):
        return value.render(values)
    if isinstance(value, dict):
        entries = cast("dict[str, object]", value)
        return {key: fill(each, values) for key, each in entries.items()}
    if isinstance(value, list):
        return [fill(each, values) for each in cast("list[object]", value)]
    return value


def values_at(value: object, path: tuple[str, ...]) -> Iterator[object]:
    """The JSON values that a path leads to: none, one, or with `[*]` several."""
    for position, step in enumerate(path):
        if step == EVERY:
            if isinstance(value, list | tuple):
                for item in cast("list[object]", value):
                    yield from values_at(item, path[position + 1 :])
            return
        try:
            value = _step(value, step)
        except LookupError:
            return
    try:
        rendered = to_jsonable_python(value, inf_nan_mode="constants")
    except (PydanticSerializationError, ValueError, RecursionError):
        return
    if rendered is not None:
        yield rendered


def _step(value: object, step: str) -> object:
    if isinstance(value, Mapping):
        return cast("Mapping[str, object]", value)[step]
    if isinstance(value, list | tuple):
        if not re.fullmatch(r"-?[0-9]{1,9}", step):
            raise LookupError
        return cast("list[object]", value)[int(step)]
    if (
        is_dataclass(value)
        and not isinstance(value, type)
        and any(field.name == step for field in fields(value))
    ):
        return getattr(value, step)
    raise LookupError
