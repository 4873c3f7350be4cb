"""Where a value of a result may come from: found by example, and evaluated again."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from ._documents import Document, Json, Node, equal, is_identifying
from ._expressions import (
    MISSING,
    Expression,
    as_constant,
    follow,
    is_telling,
    paths_to,
    read_constant,
    rough,
    walk_fields,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MAX_FOUND = 4
"""Objects that are looked at for one value."""
MAX_DERIVATIONS = 24
"""Expressions that are kept of those that explain one value."""
MAX_FIELDS = 128
"""Fields of one object that are looked at."""
MAX_SOURCES = 32
MAX_TERMS = 12
MAX_SUMMED = 8
MAX_PAIRS = 28
_UNROUNDED = -1


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a result a value stands.

    Attributes:
        here: What stands there in the base.
        element: The element of the base's list, where one after the other is looked at.
        number: Which element of an argument that is a list; negative for none.
    """

    here: Json = MISSING
    element: Json = MISSING
    number: int = -1

    def at(self, here: Json) -> Place:
        """The same turn, another place."""
        return replace(self, here=here)


class Scope:
    """What a result may be derived from.

    Args:
        arguments: Of the call.
        documents: Earlier results, the newest first.
        base: The object that the call is about; empty where there is none.
    """

    def __init__(
        self,
        arguments: Mapping[str, Json],
        documents: Sequence[Document],
        base: Node | None = None,
    ) -> None:
        self.arguments = arguments
        self.documents = documents
        self.base = base
        self._held = Document({} if base is None else base)
        self._told: dict[str, str] | None = None
        self._paths: dict[object, list[tuple[tuple[str, ...], Json]]] | None = None

    def about(self, base: Node | None) -> Scope:
        """The same, with a base."""
        return Scope(self.arguments, self.documents, base)

    @property
    def told(self) -> dict[str, str]:
        """What may decide between outcomes: short facts about the call and its base."""
        if self._told is None:
            self._told = features(self)
        return self._told

    def found(self, value: Json, *, held: bool) -> Iterator[tuple[str, Node]]:
        """The objects that have a field of a value, the newest first."""
        if not is_identifying(value):
            return iter(())
        if held:
            return iter(self._held.holding(value))
        return itertools.chain.from_iterable(
            document.holding(value) for document in self.documents
        )

    def evaluate(self, expression: Expression, place: Place) -> Json:
        """The value of an expression, or `MISSING`."""
        kind = expression[0]
        if kind == "same":
            return place.here
        if kind == "const":
            return read_constant(expression[1])
        if kind == "arg":
            return follow(self.arguments, expression[1:])
        if kind == "base":
            return MISSING if self.base is None else follow(self.base, expression[1:])
        if kind == "element":
            return follow(place.element, expression[1:])
        if kind == "item":
            listed = self.arguments.get(expression[1])
            if isinstance(listed, list) and 0 <= place.number < len(
                cast("list[Json]", listed)
            ):
                return follow(cast("list[Json]", listed)[place.number], expression[2:])
            return MISSING
        if kind == "sorted":
            return _sorted(self.arguments.get(expression[1]))
        return self._compute(expression, place)

    def _compute(self, expression: Expression, place: Place) -> Json:
        kind = expression[0]
        if kind in ("found", "held"):
            _, key, source, field = expression
            value = self.evaluate(source, place)
            return self._look_up(kind, key, value, field)
        if kind == "total":
            return self._total(*expression[1:])
        number = self.evaluate(expression[1], place)
        if not _is_number(number):
            return MISSING
        return -number if kind == "negative" else abs(number)

    def _look_up(self, kind: str, key: str, value: Json, field: str) -> Json:
        for name, node in self.found(value, held=kind == "held"):
            if name == key and field in node:
                return node[field]
        return MISSING

    def _total(self, plus: Expression, minus: Expression, digits: int) -> Json:
        added, taken = self._terms(plus), self._terms(minus)
        if not added or (minus and not taken):
            return MISSING
        if not taken:
            taken = [0] * len(added)
        elif len(taken) != len(added):
            return MISSING
        total: Any = 0
        for one, other in zip(added, taken, strict=True):
            total += one - other
        return total if digits == _UNROUNDED else round(total, digits)

    def _terms(self, term: Expression) -> list[Any]:
        if not term:
            return []
        kind, key, name, field = term
        values = self.arguments.get(name)
        listed = cast("list[Json]", values if isinstance(values, list) else [values])
        if len(listed) > MAX_SUMMED:
            return []
        found = [self._look_up(kind, key, value, field) for value in listed]
        return found if all(map(_is_number, found)) else []

    def derive(self, value: Json, place: Place) -> list[Expression]:
        """The expressions that give a value here, the plainer first."""
        plain = self._plain(value, place)
        derived: Iterator[Expression] = iter(plain)
        if value is not None and not isinstance(value, bool):
            derived = itertools.chain(plain, self._looked_up(value, place))
        if _is_number(value):
            derived = itertools.chain(derived, self._numbers(value, place, plain))
        found = list(itertools.islice(dict.fromkeys(derived), MAX_DERIVATIONS))
        constant = as_constant(value)
        return found if constant is None else [*found, constant]

    def _plain(self, value: Json, place: Place) -> list[Expression]:
        found: list[Expression] = []
        for name, argument in self.arguments.items():
            found += [("arg", name, *path) for path in paths_to(value, argument)]
            if isinstance(argument, list):
                listed = cast("list[Json]", argument)
                if equal(_sorted(listed), value):
                    found.append(("sorted", name))
                if 0 <= place.number < len(listed):
                    item = listed[place.number]
                    found += [("item", name, *path) for path in paths_to(value, item)]
        if isinstance(place.element, dict):
            element = cast("Node", place.element)  # pyright: ignore[reportUnknownMemberType]
            fields = itertools.islice(element.items(), MAX_FIELDS)
            found += [("element", key) for key, v in fields if equal(v, value)]
        if self.base is not None and is_telling(value):
            found += [("base", *path) for path in self._in_base(value)]
        if equal(place.here, value):
            found.append(("same",))
        return found

    def _in_base(self, value: Json) -> list[tuple[str, ...]]:
        """The paths of keys that lead to an equal value in the base."""
        if self._paths is None:
            self._paths = {}
            for path, held in walk_fields(self.base or {}):
                self._paths.setdefault(rough(held), []).append((path, held))
        near = self._paths.get(rough(value), [])[:MAX_FIELDS]
        return [path for path, held in near if equal(held, value)]

    def _looked_up(self, value: Json, place: Place) -> Iterator[Expression]:
        for source in self._sources(place):
            identity = self.evaluate(source, place)
            for kind in ("held", "found"):
                near = itertools.islice(
                    self.found(identity, held=kind == "held"), MAX_FOUND
                )
                for key, node in near:
                    for field, held in itertools.islice(node.items(), MAX_FIELDS):
                        if field != key and equal(held, value):
                            yield (kind, key, source, field)

    def _sources(self, place: Place) -> Iterator[Expression]:
        for name, argument in self.arguments.items():
            if isinstance(argument, list):
                listed = cast("list[Json]", argument)
                if 0 <= place.number < len(listed):
                    item = listed[place.number]
                    yield ("item", name)
                    if isinstance(item, dict):
                        for key in itertools.islice(cast("Node", item), MAX_SOURCES):
                            yield ("item", name, key)
            else:
                yield ("arg", name)
        if isinstance(place.element, dict):
            element = cast("Node", place.element)  # pyright: ignore[reportUnknownMemberType]
            for key in itertools.islice(element, MAX_SOURCES):
                yield ("element", key)

    def _numbers(
        self, value: Any, place: Place, plain: list[Expression]
    ) -> Iterator[Expression]:
        if value and not any(each[0] != "same" for each in plain):
            for sign in ("negative", "positive"):
                opposite = -value
                if sign == "positive" and value < 0:
                    continue
                for each in self._plain(opposite, place):
                    if each != ("same",):
                        yield (sign, each)
            yield from self._totals(value)

    def _totals(self, value: Any) -> Iterator[Expression]:
        terms = list(itertools.islice(self._possible_terms(), MAX_TERMS))
        for plus in terms:
            for minus in [(), *terms]:
                if plus == minus:
                    continue
                total = self._total(plus, minus, _UNROUNDED)
                if total is MISSING or not total:
                    continue
                for digits in (_UNROUNDED, 2):
                    rounded = total if digits == _UNROUNDED else round(total, digits)
                    if rounded == value:
                        yield ("total", plus, minus, digits)
                    if abs(rounded) == value:
                        yield ("positive", ("total", plus, minus, digits))

    def _possible_terms(self) -> Iterator[Expression]:
        for name, argument in self.arguments.items():
            listed = cast(
                "list[Json]", argument if isinstance(argument, list) else [argument]
            )
            if not 0 < len(listed) <= MAX_SUMMED:
                continue
            for kind in ("found", "held"):
                seen: set[tuple[str, str]] = set()
                near = itertools.islice(
                    self.found(listed[0], held=kind == "held"), MAX_FOUND
                )
                for key, node in near:
                    for field, held in itertools.islice(node.items(), MAX_FIELDS):
                        if _is_number(held) and (key, field) not in seen:
                            seen.add((key, field))
                            yield (kind, key, name, field)


def features(scope: Scope) -> dict[str, str]:
    """What may decide between outcomes: short facts about the call and its base."""
    told = {"base": "none" if scope.base is None else "found"}
    arguments = scope.arguments
    lists = {name: _as_list(value) for name, value in arguments.items()}
    for one, other in itertools.islice(itertools.combinations(lists, 2), MAX_PAIRS):
        if isinstance(arguments[one], list) and isinstance(arguments[other], list):
            same = len(lists[one]) == len(lists[other])
            told[f"{one} and {other} are as many"] = _answer(same)
        if any(map(is_identifying, lists[one])):
            shared = any(value in lists[other] for value in lists[one])
            told[f"{one} and {other} share"] = _answer(shared)
    for name, value in arguments.items():
        if isinstance(value, bool) or _is_word(value):
            told[f"{name} is"] = str(value)
        if lists[name] and all(map(is_identifying, lists[name])):
            told |= _look_at(name, lists[name], scope)
    for key, value in itertools.islice((scope.base or {}).items(), 64):
        if value is None or isinstance(value, bool) or _is_word(value):
            told[f"base.{key} is"] = str(value)
    return told


def _look_at(name: str, values: list[Json], scope: Scope) -> dict[str, str]:
    """Facts about what an argument names."""
    known = [next(scope.found(value, held=False), None) for value in values]
    told = {f"{name} was seen": _answer(None not in known)}
    if scope.base is not None:
        held = [next(scope.found(value, held=True), None) for value in values]
        told[f"{name} is in base"] = _answer(None not in held)
    flags: dict[str, list[bool]] = {}
    for key, node in filter(None, known):
        for field, value in itertools.islice(node.items(), 64):
            if isinstance(value, bool):
                flags.setdefault(f"{name} by {key} is {field}", []).append(value)
    return told | {question: _answer(all(flags[question])) for question in flags}


def _as_list(value: Json) -> list[Json]:
    return cast("list[Json]", value) if isinstance(value, list) else [value]


def _answer(true: bool) -> str:  # noqa: FBT001
    return "yes" if true else "no"


def _is_word(value: Json) -> bool:
    return (
        isinstance(value, str)
        and len(value) <= 40
        and not any(character.isdigit() for character in value)
    )


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _sorted(value: Json) -> Json:
    if not isinstance(value, list):
        return MISSING
    try:
        return sorted(cast("list[Any]", value))
    except TypeError:
        return MISSING
