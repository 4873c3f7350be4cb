"""How a tool's results come about: learned by example, each part with its own evidence.

The rules for what may be kept stand in `_guard`.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from ._derivations import Place, Scope
from ._documents import Json, Node, equal
from ._expressions import MISSING, Expression, as_constant, is_expression
from ._guard import OTHER, Evidence, Guard, Supports
from ._shapes import (
    APPEND,
    BUILD,
    INTO,
    MAX_APPENDED,
    SHAPES,
    find_shapes,
    is_shape,
    number_of,
    parts_of,
    turn_at,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._guard import Witness

MAX_SLOTS = 256
MAX_EXPRESSIONS = 48
MAX_DEPTH = 12
SETTLED = 3

Path: TypeAlias = tuple[str, ...]
"""Where in a result: `.key`, `+0` (appended to the base's list), `?key|argument` (the
elements that an argument names), `*argument` (one for each element of an argument)."""

_RANKS: Final = {
    kind: rank
    for rank, kinds in enumerate(
        (
            ("arg", "item", "sorted"),
            ("element", "found", "held"),
            ("total", "positive", "negative"),
            ("base", "same"),
            SHAPES,
            ("const",),
        )
    )
    for kind in kinds
}


class Slot:
    """One place in a tool's results, and what has explained its values."""

    def __init__(self) -> None:
        self.known: dict[Expression, Evidence] = {}
        self.guard = Guard()
        self.supports = Supports()
        self.tries = 0.0

    def learn(
        self,
        value: Json,
        explained: list[Expression],
        shapes: list[Expression],
        place: Place,
        scope: Scope,
        witness: Witness,
        *,
        widen: bool,
    ) -> None:
        """The value was this, which these expressions give, and which has these shapes.

        New shapes are taken where it is to be `widen`-ed.
        """
        self.supports.note(witness)
        self.tries += 1
        hits = set(explained)
        for expression, evidence in self.known.items():
            if expression in hits:
                hit = True
            elif expression[0] in SHAPES:
                hit = expression in shapes
            else:
                given = scope.evaluate(expression, place)
                if given is MISSING:
                    continue
                hit = equal(given, value)
            evidence.tries += 1
            if hit:
                evidence.hits += 1
                own = expression[0] == "const"
                evidence.supports.note(witness.of(value) if own else witness)
        for expression in (*explained, *shapes) if widen else explained:
            if expression not in self.known:
                # It would have been seen before, had it been true and its parts there.
                always = expression[0] in ("same", "const")
                before = (self.tries - 1) * (1.0 if always else 0.25)
                evidence = Evidence(1.0, 1.0 + before)
                self.known[expression] = evidence
                own = expression[0] == "const"
                evidence.supports.note(witness.of(value) if own else witness)
        if len(self.known) > MAX_EXPRESSIONS:
            kept = sorted(self.known.items(), key=lambda each: -each[1].score)
            self.known = dict(kept[: MAX_EXPRESSIONS * 2 // 3])
        constant = as_constant(value)
        if constant is not None:
            self.guard.learn(scope.told, constant[1], witness)

    def is_settled(self, explained: list[Expression]) -> bool:
        """Whether one of these expressions was right each time, and not by chance."""
        return any(
            known.tries >= SETTLED and known.hits == known.tries
            for each in explained
            if each[0] not in ("same", "const")
            and (known := self.known.get(each)) is not None
        )

    def ranked(self, scope: Scope) -> list[tuple[float, Expression]]:
        """The expressions with the chance of each, the best first."""
        usable = [
            (each, evidence)
            for each, evidence in self.known.items()
            if each[0] != "const" or evidence.supports.trusted
        ]
        chances: Mapping[str, float] = {}
        if sum(each[0] == "const" for each, _ in usable) > 1:
            chances = self.guard.distribution(scope.told)
        ranked = [
            (
                chances.get(each[1], evidence.score)
                if each[0] == "const"
                else evidence.score,
                each,
            )
            for each, evidence in usable
        ]
        ranked.sort(key=lambda each: (-round(each[0], 6), _RANKS[each[1][0]]))
        return ranked

    def to_dict(self) -> dict[str, Any]:
        """What may be saved of it."""
        kept = {
            expression: evidence
            for expression, evidence in self.known.items()
            if evidence.supports.trusted
        }
        constants = {each[1] for each in kept if each[0] == "const"}
        guard = self.guard if len(constants) > 1 else Guard()
        return {
            "tries": self.tries,
            "known": [
                [list(expression), evidence.hits, evidence.tries]
                for expression, evidence in kept.items()
            ],
            "guard": guard.to_dict(constants | {OTHER}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Slot:
        """Read what `to_dict` has written."""
        slot = cls()
        slot.supports.trusted = True
        slot.tries = float(data["tries"])
        for expression, hits, tries in data["known"]:
            trusted = Supports(trusted=True)
            evidence = Evidence(float(hits), float(tries), trusted)
            read = _as_tuple(expression)
            if not (is_shape(read) or is_expression(read)):
                raise ValueError(read)
            slot.known[read] = evidence
        slot.guard = Guard.from_dict(data["guard"])
        return slot

    def add(self, other: Slot) -> None:
        """Add what another has learned."""
        self.supports.trusted |= other.supports.trusted
        self.tries += other.tries
        for expression, evidence in other.known.items():
            self.known.setdefault(expression, Evidence()).add(evidence)
        self.guard.add(other.guard)


def _as_tuple(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return tuple(map(_as_tuple, cast("list[Any]", value)))


class Program:
    """How the JSON results of one tool are made."""

    def __init__(self) -> None:
        self.slots: dict[Path, Slot] = {}
        self.totals: dict[Expression, float] = {}

    def tell(self, scope: Scope) -> None:
        """Add what decides between values beside the plain facts: signs of totals."""
        for total in itertools.islice(self.totals, 4):
            number = scope.evaluate(total, Place())
            if number is not MISSING:
                name = json.dumps(total)
                scope.told[name] = "+" if number > 0 else "-" if number < 0 else "0"

    def learn(self, value: Node, scope: Scope, witness: Witness) -> None:
        """The result was this."""
        here = MISSING if scope.base is None else scope.base
        self._walk((), value, Place(here), scope, witness)

    def build(self, scope: Scope) -> tuple[Json, float]:
        """The result that is expected, and how sure each part of it is at least."""
        here = MISSING if scope.base is None else scope.base
        builder = _Builder(self.slots, scope)
        value = builder.build((), Place(here), 0)
        return value, builder.sureness

    def to_dict(self) -> dict[str, Any]:
        """What may be saved of it."""
        return {
            "slots": [
                [list(path), slot.to_dict()]
                for path, slot in self.slots.items()
                if slot.supports.trusted
            ],
            "totals": [[list(each), n] for each, n in self.totals.items()],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Program:
        """Read what `to_dict` has written."""
        program = cls()
        for path, slot in data["slots"]:
            program.slots[tuple(map(str, path))] = Slot.from_dict(slot)
        for total, n in data["totals"]:
            read = _as_tuple(total)
            if not is_expression(read):
                raise ValueError(read)
            program.totals[read] = float(n)
        return program

    def add(self, other: Program) -> None:
        """Add what another has learned."""
        for path, slot in other.slots.items():
            if path in self.slots or len(self.slots) < MAX_SLOTS:
                self.slots.setdefault(path, Slot()).add(slot)
        for total, n in other.totals.items():
            self.totals[total] = self.totals.get(total, 0.0) + n

    def _walk(
        self, path: Path, value: Json, place: Place, scope: Scope, witness: Witness
    ) -> None:
        slot = self.slots.get(path)
        if slot is None:
            if len(self.slots) >= MAX_SLOTS or len(path) > MAX_DEPTH:
                return
            slot = self.slots[path] = Slot()
        explained = scope.derive(value, place)
        shapes = list(find_shapes(value, place, scope))
        # A value that was always found as a whole has parts that tell nothing.
        wanted = not slot.is_settled(explained)
        slot.learn(value, explained, shapes, place, scope, witness, widen=wanted)
        for each in explained:
            total = each[1] if each[0] in ("positive", "negative") else each
            if total[0] == "total":
                self.totals[total] = self.totals.get(total, 0.0) + 1
        if len(self.totals) > MAX_EXPRESSIONS:
            best = sorted(self.totals.items(), key=lambda each: -each[1])
            self.totals = dict(best[:MAX_APPENDED])
        unchanged = ("same",) in explained
        for shape in shapes if wanted else ():
            if not unchanged or shape == INTO:
                for step, part, inner in parts_of(shape, value, place, scope):
                    deeper = (*path, step)
                    if deeper in self.slots or not equal(inner.here, part):
                        self._walk(deeper, part, inner, scope, witness)


class _Builder:
    """Puts one result together, and notes how sure its least sure part is."""

    def __init__(self, slots: Mapping[Path, Slot], scope: Scope) -> None:
        self._slots = slots
        self._scope = scope
        self.sureness = 1.0

    def build(self, path: Path, place: Place, depth: int) -> Json:
        slot = self._slots.get(path)
        if slot is None or depth > MAX_DEPTH:
            return place.here
        for score, expression in slot.ranked(self._scope)[:6]:
            before = self.sureness
            self.sureness = min(self.sureness, score)
            if expression[0] in SHAPES:
                value = self._shape(expression, path, place, depth + 1)
            else:
                value = self._scope.evaluate(expression, place)
            if value is not MISSING:
                return value
            self.sureness = before
        return MISSING

    def _shape(self, shape: Expression, path: Path, place: Place, depth: int) -> Json:
        if shape == INTO:
            return self._into(path, place, depth)
        if shape == BUILD:
            return self._new(path, place, depth)
        if shape == APPEND:
            return self._append(path, place, depth)
        if shape[0] == "where":
            return self._where(shape, path, place, depth)
        argument = self._scope.arguments.get(shape[1])
        if not isinstance(argument, list):
            return MISSING
        count = len(cast("list[Json]", argument))
        inner = (*path, f"*{shape[1]}")
        parts = [self.build(inner, Place(number=n), depth) for n in range(count)]
        return MISSING if MISSING in parts or not parts else parts

    def _into(self, path: Path, place: Place, depth: int) -> Json:
        if not isinstance(place.here, dict):
            return MISSING
        base = cast("Node", place.here)  # pyright: ignore[reportUnknownMemberType]
        added = self.build((*path, "#added"), place.at([]), depth)
        removed = self.build((*path, "#removed"), place.at([]), depth)
        if added is MISSING or removed is MISSING:
            return MISSING
        built: Node = {}
        for key in (*base, *(each for each in added if each not in base)):
            if key in removed:
                continue
            inner = place.at(base.get(key, MISSING))
            part = self.build((*path, f".{key}"), inner, depth)
            if part is MISSING:
                return MISSING
            built[key] = part
        return built

    def _new(self, path: Path, place: Place, depth: int) -> Json:
        keys = self.build((*path, "#keys"), place.at(MISSING), depth)
        if not isinstance(keys, list) or isinstance(place.here, dict):
            return MISSING
        built: Node = {}
        for key in cast("list[str]", keys):
            part = self.build((*path, f".{key}"), place.at(MISSING), depth)
            if part is MISSING:
                return MISSING
            built[key] = part
        return built

    def _append(self, path: Path, place: Place, depth: int) -> Json:
        if not isinstance(place.here, list):
            return MISSING
        base = cast("list[Json]", place.here)  # pyright: ignore[reportUnknownMemberType]
        grown = self.build((*path, "#grown"), place.at(0), depth)
        if type(grown) is not int or not 0 <= grown <= MAX_APPENDED:
            return MISSING
        appended = [
            self.build((*path, f"+{n}"), turn_at(base, n), depth) for n in range(grown)
        ]
        return MISSING if MISSING in appended else [*base, *appended]

    def _where(self, shape: Any, path: Path, place: Place, depth: int) -> Json:
        _, key, name = shape
        if not isinstance(place.here, list) or name not in self._scope.arguments:
            return MISSING
        argument = self._scope.arguments[name]
        inner = (*path, f"?{key}|{name}")
        parts: list[Json] = []
        named = False
        for element in cast("list[Json]", place.here):  # pyright: ignore[reportUnknownMemberType]
            number = number_of(element, key, argument)
            if number is None:
                parts.append(element)
                continue
            named = True
            parts.append(self.build(inner, Place(element, element, number), depth))
        return parts if named and MISSING not in parts else MISSING
