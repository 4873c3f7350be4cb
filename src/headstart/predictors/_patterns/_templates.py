"""Arguments that are put together: pieces that are always the same, and values.

Rules of this file:

1. A template is how a value is changed on its way into an argument (see `_sources`): `+`
   and a JSON list of what stands in a row. `null` is the value, `{"from": PATH}` one that
   stands elsewhere, and a text stands for itself.
2. What stands for itself may belong to one run, so templates are remembered once several
   runs had them.
3. A value from elsewhere is the one in the same object, or else the newest.
"""

from __future__ import annotations

import functools
import json
import re
from itertools import islice, product
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ._moment import Moment
    from ._values import Item

Part = str | None | tuple[str]
"""A text, the value, or the path of a value that stands elsewhere."""
MAX_CHARACTERS = 300
"""Of longer values it is not asked what they are put together of."""
MAX_TEMPLATES = 6
"""Templates of one value that are looked at."""
_MAX_TOKENS = 40
_MAX_VALUES = 3
_MAX_PATHS = 2
"""Kinds of places of one piece that are looked at."""
_LEAST, _LEAST_PLAIN = 2, 3
"""Shorter pieces stand everywhere by chance, above all those of small letters alone."""
_MARK = "+"
_TOKEN = re.compile(r"[^\W_]+|[\W_]")


def is_template(how: str) -> bool:
    """Whether a change puts together."""
    return read_template(how) is not None


@functools.lru_cache(maxsize=4_096)
def read_template(how: str) -> tuple[Part, ...] | None:
    """What stands in a row; `None` for another change, and for what cannot be read."""
    if how[:1] != _MARK:
        return None
    try:
        read: object = json.loads(how[1:])
    except (ValueError, RecursionError):
        return None
    if not isinstance(read, list):
        return None
    parts: list[Part] = []
    for each in cast("list[object]", read):
        match each:
            case str() | None:
                parts.append(each)
            case {"from": str() as path}:
                parts.append((path,))
            case _:
                return None
    return tuple(parts) if parts.count(None) == 1 else None


def paths_of(how: str) -> list[str]:
    """Where the other values of a template come from; nowhere for another change."""
    return [each[0] for each in read_template(how) or () if isinstance(each, tuple)]


def put_together(how: str, item: Item, at: int, moment: Moment) -> str | None:
    """A value in its template; `None` if another value of it is unknown.

    Args:
        how: The change.
        item: The value.
        at: The message where it stands.
        moment: When it may be an argument.
    """
    texts: list[str] = []
    for part in read_template(how) or ():
        if part is None:
            texts.append(item.text)
        elif isinstance(part, str):
            texts.append(part)
        else:
            other = _beside(part[0], item, at, moment)
            if other is None:
                return None
            texts.append(other.text)
    text = "".join(texts)
    return text if len(text) <= MAX_CHARACTERS else None


def _beside(path: str, item: Item, at: int, moment: Moment) -> Item | None:
    segments = moment.newest(path)
    for place, segment in segments:
        if place == at:
            for each in segment:
                if each.group == item.group:
                    return each
    return segments[0][1][0] if segments and segments[0][1] else None


def find_templates(text: str, moment: Moment) -> list[str]:
    """The sources of a text that is put together of values and of what stands between."""
    if not 2 * _LEAST <= len(text) <= MAX_CHARACTERS:
        return []
    return list(islice(_templates(_find_pieces(text, moment)), MAX_TEMPLATES))


def _templates(pieces: Sequence[str | list[str]]) -> Iterator[str]:
    """Templates of pieces: texts, and the paths of values that may stand there."""
    places = [i for i, each in enumerate(pieces) if not isinstance(each, str)]
    for main in reversed(places):  # what changes most mostly stands last
        others = [i for i in places if i != main]
        for path in pieces[main]:
            for paths in product(*[pieces[i] for i in others]):
                from_elsewhere = dict(zip(others, paths, strict=True))
                row = [
                    None
                    if i == main
                    else {"from": from_elsewhere[i]}
                    if i in from_elsewhere
                    else piece
                    for i, piece in enumerate(pieces)
                ]
                written = json.dumps(row, separators=(",", ":"))
                yield f"{path}|{_MARK}{written.replace('|', chr(92) + 'u007c')}"


def _find_pieces(text: str, moment: Moment) -> list[str | list[str]]:
    """A text in pieces: those that stand elsewhere as kinds of places, and the others."""
    tokens = [match.span() for match in islice(_TOKEN.finditer(text), _MAX_TOKENS + 1)]
    folded = text.casefold()
    if len(tokens) > _MAX_TOKENS or len(folded) != len(text):
        return [text]
    found: dict[int, tuple[int, list[str]]] = {}  # by start: the end, and the paths
    _find_values(text, folded, tokens, moment, found)
    pieces: list[str | list[str]] = []
    done = 0
    for start, (end, paths) in sorted(found.items()):
        if start > done:
            pieces.append(text[done:start])
        pieces.append(paths)
        done = end
    if done < len(text):
        pieces.append(text[done:])
    return pieces


def _find_values(
    text: str,
    folded: str,
    tokens: Sequence[tuple[int, int]],
    moment: Moment,
    found: dict[int, tuple[int, list[str]]],
) -> None:
    """Find the longest value in a stretch of tokens, and then beside it."""
    if len(found) >= _MAX_VALUES:
        return
    known = moment.history.read().by_text
    for count in range(len(tokens), 0, -1):
        for first in range(len(tokens) - count + 1):
            start, end = tokens[first][0], tokens[first + count - 1][1]
            piece = text[start:end]
            least = _LEAST_PLAIN if piece.islower() else _LEAST
            if not least <= end - start < len(text):
                continue
            if folded[start:end] in known:
                paths = _paths(piece, moment)
                if paths:
                    found[start] = end, paths
                    _find_values(text, folded, tokens[:first], moment, found)
                    _find_values(text, folded, tokens[first + count :], moment, found)
                    return


def _paths(text: str, moment: Moment) -> list[str]:
    """Where just this text stands, the newest kinds of places first."""
    places: Iterable[Any] = reversed(moment.places(text))
    paths = dict.fromkeys(item.source for _, item in places if item.text == text)
    return list(islice(paths, _MAX_PATHS))
