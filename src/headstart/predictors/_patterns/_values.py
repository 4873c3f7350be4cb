"""The values that a message holds, and where in it they stand."""

from __future__ import annotations

import functools
import json
import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ._spans import MAX_VALUE_CHARACTERS, Sentences, spans, stems

if TYPE_CHECKING:
    from collections.abc import Iterator

PARSED_CHARACTERS = 200_000
"""A longer result has no fields, only text."""
MAX_VALUES = 1_024
"""Values that are taken from one result."""
_MAX_DEPTH = 12
_MAX_KEYS = 24
"""An object with more keys is a map, whose keys are values."""
_TEXT_CHARACTERS = 40
"""A longer string that has spaces is a text as well as a value."""
_DIGIT_GROUP = re.compile(r"(?:.*\d){3}")
_NAME = re.compile(r"[A-Za-z_][\w-]{0,40}$")
_MAX_NAME = 41
_FAILURE = re.compile(
    r"\W*(?:\w+ ){0,2}(?:\w*error|\w*exception|traceback|failed|failure|invalid|"
    r"could not|unable|not found|no such)\b",
    re.IGNORECASE,
)

_NUMBERS = int, float
Kin = tuple[frozenset[str], ...]
"""The words of the strings that stand beside a value."""
NO_KIN: Kin = ()


class Item(NamedTuple):
    """A value in a message.

    Attributes:
        text: The value as text.
        folded: The same without the case of letters.
        value: The value as JSON.
        source: Where values like this come from: the tool and the path in its results,
            the tool and its argument, or who said it and its shape. Positions in lists
            and keys that are values are left out.
        rank: Its number among the message's values of this source.
        group: The number of the object or text that it stands in, in its message.
        token: The number of its token, in a text; else -1.
        left: The word before it, in a text.
        right: The word behind it.
        kin: What stands beside it in its object.
        sentences: The sentences of the text that it stands in.
    """

    text: str
    folded: str
    value: Any
    source: str
    rank: int
    group: int
    token: int
    left: str
    right: str
    kin: Kin
    sentences: Sentences | None = None


_make_item = functools.partial(tuple[Any, ...].__new__, Item)
"""Faster than by name, which counts where a text has hundreds of pieces."""


class Reading:
    """Collects the items of one message."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self._ranks: dict[str, int] = {}
        self._groups = 0

    def add_text(self, source: str, text: str) -> None:
        """Take the pieces of a text that stand out."""
        group = self.new_group()
        found, sentences = spans(text)
        ranks, items = self._ranks, self.items
        named: dict[str, str] = {}
        for piece, kind, token, left, right in found:
            name = named.get(kind)
            if name is None:
                name = named[kind] = f"{source}~{kind}"
            rank = ranks.get(name, 0)
            ranks[name] = rank + 1
            if rank < MAX_VALUES:
                folded = piece.casefold()
                fields = (piece, folded, piece, name, rank, group, token, left, right)
                items.append(_make_item((*fields, NO_KIN, sentences)))

    def add_result(self, tool: str, content: str) -> None:
        """Take the values of a result: fields where it is JSON, else pieces of text."""
        parsed = parse(content)
        if parsed is None:
            text = content.strip()
            if 0 < len(text) <= MAX_VALUE_CHARACTERS and "\n" not in text:
                self.add_value(f"{tool}>", text, self.new_group(), NO_KIN)
            if " " in text or "\n" in text:
                self.add_text(f"{tool}>", content)
        else:
            self.add_json(f"{tool}>", parsed)

    def add_json(
        self,
        source: str,
        value: Any,
        *,
        kin: Kin = NO_KIN,
        group: int = 0,
        depth: int = 0,
    ) -> None:
        """Take the values of a JSON value."""
        if len(self.items) >= MAX_VALUES or depth > _MAX_DEPTH:
            return
        if isinstance(value, str):
            if value and len(value) <= MAX_VALUE_CHARACTERS:
                self.add_value(source, value, group, kin)
            if len(value) > _TEXT_CHARACTERS and " " in value:
                self._add_long(source, value, depth)
        elif isinstance(value, dict):
            self._add_object(source, cast("dict[str, Any]", value), depth)
        elif isinstance(value, list):
            inner = f"{source}[]"
            for each in cast("list[Any]", value):
                self.add_json(inner, each, kin=kin, group=group, depth=depth + 1)
        elif isinstance(value, _NUMBERS) and not isinstance(value, bool):
            self.add_value(source, value, group, kin)

    def _add_long(self, source: str, value: str, depth: int) -> None:
        """Take the values of a long string, which may be JSON itself."""
        parsed = parse(value)
        if parsed is None:
            self.add_text(source, value)
        else:
            group = self.new_group()
            self.add_json(f"{source}:", parsed, group=group, depth=depth + 1)

    def _add_object(self, source: str, fields: dict[str, Any], depth: int) -> None:
        group = self.new_group()
        mapping = is_mapping(fields)
        kin = tuple(_kin(fields)) if not mapping else NO_KIN
        depth += 1
        for key, value in fields.items():
            if len(self.items) >= MAX_VALUES:
                return
            if not mapping:
                path = _field(source, key)
                self.add_json(path, value, kin=kin, group=group, depth=depth)
                continue
            words = stems(key)
            named = (words,) if words else NO_KIN
            self.add_value(f"{source}{{key}}", key, group, NO_KIN)
            self.add_json(f"{source}{{}}", value, kin=named, group=group, depth=depth)

    def add_value(self, source: str, value: Any, group: int, kin: Kin) -> None:
        """Take one value as it is."""
        text = value if isinstance(value, str) else _written(value)
        if len(text) <= MAX_VALUE_CHARACTERS:
            rank = self._ranks.get(source, 0)
            self._ranks[source] = rank + 1
            folded = text.casefold()
            item = (text, folded, value, source, rank, group, -1, "", "", kin, None)
            self.items.append(_make_item(item))

    def new_group(self) -> int:
        """Begin another object or text."""
        self._groups += 1
        return self._groups


def _written(number: float) -> str:
    """A number as JSON has it: `json.dumps` takes ten times as long."""
    finite = isinstance(number, int) or math.isfinite(number)
    return repr(number) if finite else json.dumps(number)


def parse(content: str) -> Any:
    """A result's JSON object or list, or `None` where it is none."""
    start = content[:64].lstrip()[:1]
    if start not in ("{", "[") or len(content) > PARSED_CHARACTERS:
        return None
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return parsed


def is_failure(content: str) -> bool:
    """Whether a result looks like an error message."""
    head = content[:200]
    return bool(_FAILURE.match(head[:60])) or '"error"' in head[:20]


@functools.lru_cache(maxsize=4_096)
def _field(source: str, key: str) -> str:
    """The source of an object's field: the same text each time, which is found faster."""
    return f"{source}.{key}"


def is_mapping(fields: dict[str, Any]) -> bool:
    """Whether an object's keys are values rather than names of fields."""
    if len(fields) > _MAX_KEYS:
        return True
    odd = sum([len(key) > _MAX_NAME or _is_odd(key) for key in fields])
    return 2 * odd > len(fields)


@functools.lru_cache(maxsize=8_192)
def _is_odd(key: str) -> bool:
    """Whether a key looks like a value."""
    return not _NAME.match(key) or bool(_DIGIT_GROUP.match(key))


def _kin(fields: dict[str, Any]) -> Iterator[frozenset[str]]:
    for value in fields.values():
        if isinstance(value, str) and len(value) <= _TEXT_CHARACTERS * 2:
            words = _short_stems(value)
            if words:
                yield words


_short_stems = functools.lru_cache(maxsize=8_192)(stems)
