"""Tool calls, their results, and when two sets of arguments mean the same."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from dataclasses import dataclass, field
from datetime import datetime, time
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel
from pydantic_core import to_json

from ._errors import ToolFailed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

logger = logging.getLogger("headstart")

IGNORED_PREFIXES = ("debug_",)
"""Top-level argument names that begin so never decide whether two calls match."""

_NATIVE_INTEGER_DIGITS = 4000
"""Longer integers are compared as text, and never become values: CPython refuses to
convert above 4,300, and so does pydantic."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model asks for.

    Attributes:
        id: The model's identifier of this call, unique within its conversation.
        name: The tool's name.
        arguments: The arguments as the model wrote them: JSON text.
    """

    id: str
    name: str
    arguments: str = field(default="{}", repr=False)


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What the model is shown of a call that ended.

    Two results are equal when the model would see the same.

    Attributes:
        content: The text of the tool message.
        is_error: Whether the tool failed, and `content` says how.
        value: What the tool returned, where one ran: for hosts that show it otherwise.
        error: What the tool raised, where it did.
    """

    content: str = field(repr=False)
    is_error: bool = False
    value: Any = field(default=None, compare=False, repr=False)
    error: BaseException | None = field(default=None, compare=False, repr=False)

    @classmethod
    def from_value(cls, value: object) -> ToolResult:
        """Render what a tool returned: text as it is, anything else as JSON.

        Raises:
            ValueError: The value cannot be rendered (it refers to itself, say).
        """
        if isinstance(value, ToolResult):
            return value
        if isinstance(value, str):
            return cls(value, value=value)
        try:
            rendered = to_json(value, inf_nan_mode="constants").decode()
        except RecursionError as error:
            msg = "The value is nested too deeply to be rendered as JSON."
            raise ValueError(msg) from error
        return cls(rendered, value=value)

    @classmethod
    def from_error(cls, error: BaseException) -> ToolResult:
        """Render what a tool raised, as the model is told of it."""
        own = isinstance(error, ToolFailed)
        text = str(error) if own else f"{type(error).__name__}: {error}"
        return cls(text, is_error=True, error=error)


class _NotCanonicalError(ValueError):
    pass


@dataclass(frozen=True, slots=True)
class _HugeInteger:
    digits: str


def _parse_integer(text: str) -> object:
    if len(text) <= _NATIVE_INTEGER_DIGITS:
        return int(text)
    raise _NotCanonicalError


def _parse_integer_of_any_size(text: str) -> object:
    if len(text) <= _NATIVE_INTEGER_DIGITS:
        return int(text)
    return _HugeInteger(text)


def _parse_float(text: str) -> object:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _NotCanonicalError
    if value.is_integer() and not (value == 0 and text.startswith("-")):
        try:
            exact = Decimal(text)
        except InvalidOperation:  # an exponent of twenty digits
            return value
        if exact == exact.to_integral_value():
            return int(exact)
    return value


def _refuse_constant(_: str) -> object:
    raise _NotCanonicalError


_DECODER = json.JSONDecoder(
    parse_int=_parse_integer, parse_float=_parse_float, parse_constant=_refuse_constant
)
_COMPARING_DECODER = json.JSONDecoder(
    parse_int=_parse_integer_of_any_size,
    parse_float=_parse_float,
    parse_constant=_refuse_constant,
)


def decode_arguments(text: str) -> dict[str, Any] | None:
    """Read an argument text as the JSON object that it means, or `None`.

    An empty text means `{}`. Numbers are read so that equal ones are equal: `1.0` is
    read as the integer 1, and integers keep every digit. NaN, Infinity, numbers beyond
    a double's range, integers of more than 4,000 digits, and anything that is not a
    JSON object mean nothing.
    """
    return _decode(text, _DECODER)


def _decode(text: str, decoder: json.JSONDecoder) -> dict[str, Any] | None:
    if not text or text.isspace():
        return {}
    try:
        decoded = decoder.decode(text.strip(" \t\n\r"))
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", decoded) if type(decoded) is dict else None


def comparable_arguments(text: str) -> dict[str, Any] | None:
    """Read an argument text so that `same_value` tells whether two mean the same.

    Like `decode_arguments`, and integers may have any size: those too long for an `int`
    are read as something that only equals itself. `None` is logged at warning level,
    without the text.
    """
    decoded = _decode(text, _COMPARING_DECODER)
    if decoded is None:
        logger.warning(
            "Arguments of %d characters are not a JSON object of finite numbers, "
            "so they match nothing.",
            len(text),
        )
    return decoded


def canonical_arguments(
    text: str, *, ignored_prefixes: Sequence[str] = IGNORED_PREFIXES
) -> str | None:
    """Write the meaning of an argument text in one canonical form.

    Two argument texts mean the same if and only if their canonical forms are equal: key
    order and white space do not matter, `1` equals `1.0`, `true` is never `1`, and
    integers are compared exactly at any size. `0.0` and `-0.0` differ, as do strings
    of different Unicode normal forms: in doubt two calls are different calls.

    Args:
        text: The arguments as JSON text.
        ignored_prefixes: Top-level keys that begin with one of these, and are longer,
            are left out.

    Returns:
        The canonical text, or `None` where `text` means nothing (see
        `decode_arguments`; an integer may be longer here), which is logged at warning
        level, without the text.
    """
    decoded = comparable_arguments(text)
    if decoded is None:
        return None
    kept = {
        key: value
        for key, value in decoded.items()
        if not is_ignored(key, ignored_prefixes)
    }
    try:
        return json.dumps(
            kept, sort_keys=True, separators=(",", ":"), default=_write_huge
        )
    except RecursionError:
        logger.warning("Arguments nested too deeply match nothing.")
        return None


def is_ignored(name: str, prefixes: Sequence[str]) -> bool:
    """Whether an argument's name begins with one of `prefixes`, and is longer."""
    return any(
        len(name) > len(prefix) and name.startswith(prefix) for prefix in prefixes
    )


def _write_huge(value: object) -> list[object]:
    # NaN cannot come from decoding, so no other value is written like this.
    return [math.nan, value.digits if isinstance(value, _HugeInteger) else None]


def same_value(left: object, right: object) -> bool:
    """Compare two validated values type by type: `1`, `1.0` and `True` all differ.

    Values that are equal but not alike differ too, since a tool may show the
    difference: `0.0` and `-0.0`, `Decimal("1.0")` and `Decimal("1.00")`, the same
    moment in two time zones. Models and dataclasses are compared by their own equality,
    and field by field. Whatever raises while it is compared is not equal, and
    neither is NaN.
    """
    kind = type(left)
    if kind is not type(right):
        return False
    if kind is str or kind is int or kind is bool or left is None:
        return left == right
    try:
        if isinstance(left, dict) and isinstance(right, dict):
            return _same_dicts(left, right)  # pyright: ignore[reportUnknownArgumentType]
        if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
            return _same_sequences(left, right)  # pyright: ignore[reportUnknownArgumentType]
        if isinstance(left, (set, frozenset)) and isinstance(right, (set, frozenset)):
            return _typed(left) == _typed(right)  # pyright: ignore[reportUnknownArgumentType]
        if isinstance(left, BaseModel) and isinstance(right, BaseModel):
            return left == right and same_value(
                [vars(left), left.model_extra], [vars(right), right.model_extra]
            )
        if dataclasses.is_dataclass(kind):
            return _same_dataclasses(left, right, dataclasses.fields(kind))
        if isinstance(left, (float, Decimal, datetime, time)):
            return left == right and str(left) == str(right)
        return bool(left == right)
    except Exception:  # noqa: BLE001 - a foreign __eq__ may raise anything
        return False


def _same_dicts(left: dict[Any, Any], right: dict[Any, Any]) -> bool:
    if left.keys() != right.keys():
        return False
    for key, value in left.items():
        if not same_value(value, right[key]):
            return False
    plain = all(type(key) is str for key in left)
    return plain or _typed(left) == _typed(right)


def _same_dataclasses(
    left: Any, right: Any, fields: Iterable[dataclasses.Field[Any]]
) -> bool:
    return bool(left == right) and all(
        same_value(getattr(left, each.name), getattr(right, each.name))
        for each in fields
    )


def _typed(values: Iterable[Any]) -> set[tuple[type, Any]]:
    return {(type(value), value) for value in values}


def _same_sequences(left: Sequence[Any], right: Sequence[Any]) -> bool:
    return len(left) == len(right) and all(map(same_value, left, right))
