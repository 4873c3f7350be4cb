"""What differs between two snapshots, and whether two changes are the same effect.

Rules of this file:

1. A snapshot is made of mappings, lists, sets and whatever compares by `==`.
2. Two runs of the same call differ where nothing is wrong: in generated keys, in times, in
   the order of what runs at once. What two *plain* runs differ in is not compared.
3. Where the world cannot be brought back between runs, no two of them begin alike. Then
   growth is compared: how many entries came and went, and by how much numbers changed.
"""

from __future__ import annotations

import enum
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Set as AbstractSet
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeAlias, cast

WIDTH = 100
"""Characters of one value in a report."""

Place: TypeAlias = tuple[str, ...]


class _Mark(enum.Enum):
    """What stands where there is no value; one object each, also when it was pickled."""

    ABSENT = "nothing"
    NO_KEY = ""

    def __repr__(self) -> str:
        return self.value


ABSENT = _Mark.ABSENT
NO_KEY = _Mark.NO_KEY
"""The key of an entry of a list or set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One difference between two snapshots.

    Attributes:
        place: Where it is: the observer's name, and the keys that lead there.
        key: Which entry of it; of a list or set it has no text.
        before: What was there, or `ABSENT`.
        after: What is there now, or `ABSENT`.
    """

    place: Place
    key: Any
    before: Any = ABSENT
    after: Any = ABSENT

    def __str__(self) -> str:
        keys = () if self.key is NO_KEY else (_key_text(self.key),)
        where = _dotted((*self.place, *keys)[1:])
        where = f"{where}: " if where else ""
        if self.before is ABSENT:
            return f"+ {where}{_short(self.after)}"
        if self.after is ABSENT:
            return f"- {where}{_short(self.before)}"
        return f"~ {where}{_short(self.before)} -> {_short(self.after)}"

    @property
    def observer(self) -> str:
        """The name of the observer that saw it."""
        return self.place[0] if self.place else str(self.key)


def changes_between(before: Any, after: Any, place: Place = ()) -> tuple[Change, ...]:
    """Every difference between two snapshots, in the order of the second one."""
    return tuple(_differences(before, after, place))


def _differences(before: Any, after: Any, place: Place) -> Iterable[Change]:
    if type(before) is type(after) and before == after:
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        yield from _of_mappings(
            cast("Mapping[Any, Any]", before), cast("Mapping[Any, Any]", after), place
        )
    elif isinstance(before, (list, tuple)) and isinstance(after, (list, tuple)):
        yield from _of_lists(
            list(cast("list[Any]", before)), list(cast("list[Any]", after)), place
        )
    elif isinstance(before, AbstractSet) and isinstance(after, AbstractSet):
        olds, news = cast("set[Any]", before), cast("set[Any]", after)
        for entry in sorted(olds - news, key=repr):
            yield Change(place=place, key=NO_KEY, before=entry)
        for entry in sorted(news - olds, key=repr):
            yield Change(place=place, key=NO_KEY, after=entry)
    elif before != after:
        yield Change(place=place[:-1], key=place[-1], before=before, after=after)


def _of_mappings(
    before: Mapping[Any, Any], after: Mapping[Any, Any], place: Place
) -> Iterable[Change]:
    for key, value in before.items():
        if key not in after:
            yield Change(place=place, key=key, before=value)
    for key, value in after.items():
        if key not in before:
            yield Change(place=place, key=key, after=value)
        else:
            yield from _differences(before[key], value, (*place, _key_text(key)))


def _of_lists(before: list[Any], after: list[Any], place: Place) -> Iterable[Change]:
    same = 0  # most lists only grow
    while same < min(len(before), len(after)) and before[same] == after[same]:
        same += 1
    left = after[same:]
    for entry in before[same:]:
        if entry in left:
            left.remove(entry)
        else:
            yield Change(place=place, key=NO_KEY, before=entry)
    for entry in left:
        yield Change(place=place, key=NO_KEY, after=entry)


def report(changes: Iterable[Change], limit: int = 6) -> str:
    """Changes as lines, of each observer the first few."""
    by_observer: dict[str, list[Change]] = {}
    for change in changes:
        by_observer.setdefault(change.observer, []).append(change)
    lines: list[str] = []
    for observer, seen in by_observer.items():
        lines.append(f"{observer}:")
        lines += [f"  {change}" for change in seen[:limit]]
        if len(seen) > limit:
            lines.append(f"  ... and {len(seen) - limit} more")
    return "\n".join(lines)


def observers_of(changes: Iterable[Change]) -> tuple[str, ...]:
    """Who saw them, in order."""
    return tuple(dict.fromkeys(change.observer for change in changes))


class Reference:
    """What a call changes when nothing is speculated, from two plain runs.

    Args:
        first: What the first run changed.
        second: What the second one changed.
        exact: Both began with the world as any other run does.
    """

    def __init__(
        self, first: Iterable[Change], second: Iterable[Change], *, exact: bool
    ) -> None:
        self.changes = tuple(first)
        other = tuple(second)
        self._exact = exact
        growth, again = _growth(self.changes), _growth(other)
        self._growth = {
            feature: value
            for feature, value in growth.items()
            if again.get(feature) == value
        }
        self._ignored = _volatile(self.changes, other) if exact else _NOTHING_VOLATILE
        self._details = _details(self.changes, self._ignored)

    @property
    def tells(self) -> bool:
        """Whether once can be told from twice by it."""
        return bool(self._growth)

    def unrepeated(self, changes: Iterable[Change]) -> list[str]:
        """Where `changes` could not be compared, as plain runs change nothing there."""
        if self._exact:
            return []
        return [
            _dotted(place)
            for place, kind in _growth(changes)
            if (place, kind) not in self._growth
        ]

    def differences(self, changes: Iterable[Change]) -> list[str]:
        """How `changes` differ from what a plain run changes; empty if they do not."""
        changes = tuple(changes)
        growth = _growth(changes)
        found = [
            f"{_feature_text(feature, growth.get(feature))}, but "
            f"{_feature_text(feature, expected)} in a plain run"
            for feature, expected in self._growth.items()
            if growth.get(feature) != expected
        ]
        if found or not self._exact:
            return found
        details = _details(changes, self._ignored)
        missing, extra = self._details - details, details - self._details
        return [
            *(f"only in a plain run: {_short(text)}" for _, text in missing),
            *(f"not in a plain run: {_short(text)}" for _, text in extra),
        ]


def _feature_text(feature: tuple[Place, str], value: Any) -> str:
    place, kind = feature
    return f"{_dotted(place)}: {value or 0} {kind}"


def _growth(changes: Iterable[Change]) -> dict[tuple[Place, str], Any]:
    """What can be compared of two changes that did not begin alike."""
    features: dict[tuple[Place, str], Any] = {}
    for change in changes:
        if change.before is ABSENT or change.after is ABSENT:
            kind = "removed" if change.after is ABSENT else "added"
            feature = change.place, kind
            features[feature] = features.get(feature, 0) + 1
        else:
            place = (*change.place, _key_text(change.key))
            if _is_number(change.before) and _is_number(change.after):
                features[place, "more"] = change.after - change.before
            else:
                features[place, "changed"] = 1
    return features


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class _Volatile:
    places: frozenset[Place]  # of values that changed
    columns: frozenset[tuple[Place, str]]  # of entries that were added
    keys: frozenset[Place]  # where entries have generated keys


_NOTHING_VOLATILE = _Volatile(frozenset(), frozenset(), frozenset())


def _volatile(first: Iterable[Change], second: Iterable[Change]) -> _Volatile:
    """What two plain runs differ in."""
    first, second = tuple(first), tuple(second)
    places = {
        place
        for place, value in _changed(first).items()
        if _changed(second).get(place, value) != value
    }
    one, two = _added(first), _added(second)
    keys = {
        place
        for place, entries in one.items()
        if {repr(key) for key, _ in entries}
        != {repr(key) for key, _ in two.get(place, entries)}
    }
    columns = {
        (place, column)
        for place, entries in one.items()
        for column in {column for _, value in entries for column in _columns(value)}
        if _column(entries, column) != _column(two.get(place, entries), column)
    }
    return _Volatile(frozenset(places), frozenset(columns), frozenset(keys))


def _changed(changes: Iterable[Change]) -> dict[Place, Any]:
    return {
        (*change.place, _key_text(change.key)): change.after
        for change in changes
        if change.before is not ABSENT and change.after is not ABSENT
    }


def _added(changes: Iterable[Change]) -> dict[Place, list[tuple[Any, Any]]]:
    added: dict[Place, list[tuple[Any, Any]]] = {}
    for change in changes:
        if change.before is ABSENT:
            added.setdefault(change.place, []).append((change.key, change.after))
    return added


def _columns(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {str(key): part for key, part in cast("Any", value).items()}
    return {"": value}


def _column(entries: Iterable[tuple[Any, Any]], column: str) -> Counter[str]:
    return Counter(repr(_columns(value).get(column)) for _, value in entries)


def _details(
    changes: Iterable[Change], ignored: _Volatile
) -> Counter[tuple[Place, str]]:
    """Each change as text that equal effects have in common, in any order."""
    details: Counter[tuple[Place, str]] = Counter()
    for change in changes:
        place = (*change.place, _key_text(change.key))
        if change.before is not ABSENT and change.after is not ABSENT:
            if place in ignored.places:
                details[place, f"{_dotted(place)} changed"] += 1
            else:
                details[place, f"{_dotted(place)} is {change.after!r}"] += 1
            continue
        word = "lost" if change.after is ABSENT else "gained"
        value = change.before if change.after is ABSENT else change.after
        parts = {
            column: part
            for column, part in _columns(value).items()
            if (change.place, column) not in ignored.columns
        }
        if not (_is_generated(change.key) or change.place in ignored.keys):
            parts = {"key": _key_text(change.key), **parts}
        text = f"{_dotted(change.place)} {word} {parts!r}"
        details[change.place, text] += 1
    return details


def _is_generated(key: Any) -> bool:
    """Whether a key says in which order entries came, rather than what they are."""
    if key is NO_KEY:
        return True
    if isinstance(key, tuple):
        parts = cast("tuple[Any, ...]", key)
        return len(parts) == 1 and isinstance(parts[0], (int, uuid.UUID))
    return False


def _key_text(key: Any) -> str:
    if isinstance(key, tuple):
        return ",".join(map(str, cast("tuple[Any, ...]", key)))
    return str(key)


def _dotted(place: Iterable[str]) -> str:
    return " / ".join(place)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) and "\n" not in value else repr(value)
    if isinstance(value, str):
        text = repr(value) if len(value) < WIDTH else text
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."
