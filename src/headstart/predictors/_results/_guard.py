"""What tells outcomes apart, and what may be kept of what was seen.

Rules of this file:

1. A constant is used, and saved, only when two conversations have shown it that are
   about different things: anything else may be somebody's data.
2. Few short facts decide between outcomes, so that a dozen examples are enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Mapping, Set as AbstractSet

    from ._documents import Json, Node

MAX_VALUES = 24
"""Outcomes that are told apart."""
MAX_ANSWERS = 12
"""A fact with more values than this is none, but somebody's data."""
MAX_FEATURES = 96
MANY = 8
"""Conversations that it takes where nothing says what a call was about."""
MAX_WITNESSES = 12
MAX_IDENTIFIERS = 256
MAX_TEXT = 2_000
"""Longer texts are not looked through for identifiers."""
MAX_ROWS = 256
"""Examples that are kept."""
MAX_REPEATS = 4096
MAX_QUESTIONS = 4
_N_LOG_N = tuple(n * math.log(n) if n else 0.0 for n in range(MAX_ROWS + 1))
MIN_EVIDENCE = 4.0
"""How much likelier a fact makes the outcomes seen, as a logarithm, if it is to count."""
OTHER = ""
"""The outcome that stands for all that there is no room for."""


@dataclass(frozen=True, slots=True)
class Witness:
    """Who has seen something.

    Attributes:
        conversation: Which conversation.
        about: What the call was about: the identifiers in it and in its result.
        common: Identifiers that all calls have had, which tell nothing apart.
    """

    conversation: int
    about: frozenset[int]
    common: frozenset[int] = frozenset()

    def confirms(self, other: Witness) -> bool:
        """Whether this is another conversation, about other things."""
        return (
            self.conversation != other.conversation
            and bool(self.about and other.about)
            and self.about.isdisjoint(other.about)
        )

    def of(self, value: Json) -> Witness:
        """Who has seen a value: an identifier is always about itself."""
        own = identifiers([value]) - self.common
        return replace(self, about=self.about | own) if own else self


class Supports:
    """Whether something was seen often enough by witnesses independent of one another.

    Two are enough that are about different things. Where nothing says what a call was
    about, it takes `MANY` conversations.
    """

    __slots__ = ("_seen", "trusted")

    def __init__(self, *, trusted: bool = False) -> None:
        self.trusted = trusted
        self._seen: tuple[Witness, ...] = ()

    def note(self, witness: Witness) -> None:
        """Somebody has seen it."""
        if self.trusted or witness in self._seen:
            return
        seen = (*self._seen, witness)[-MAX_WITNESSES:]
        nameless = {each.conversation for each in seen if not each.about}
        self.trusted = len(nameless) >= MANY or any(
            witness.confirms(other) for other in self._seen
        )
        self._seen = () if self.trusted else seen


def identifiers(values: list[Json]) -> frozenset[int]:
    """What looks like identifiers in values, as hashes: short texts with digits in them.

    In a longer text, each of its words is looked at.
    """
    found: set[int] = set()
    level = values
    while level and len(found) < MAX_IDENTIFIERS:
        deeper: list[Json] = []
        for value in level:
            if isinstance(value, dict):
                deeper.extend(cast("Node", value).values())
            elif isinstance(value, list):
                deeper.extend(cast("list[Json]", value))
            elif type(value) is int and abs(value) > 9:  # no counts
                found.add(hash(str(value)))
            elif isinstance(value, str) and len(value) <= MAX_TEXT:
                words = (word.strip(".,;:!?()\"'") for word in value.split())
                found |= {hash(word) for word in words if _identifies(word)}
        level = deeper
    return frozenset(found)


def _identifies(word: str) -> bool:
    return len(word) > 1 and ("@" in word or any(map(str.isdigit, word)))


@dataclass(slots=True)
class Evidence:
    """How often an expression gave the value, where it gave any."""

    hits: float = 0.0
    tries: float = 0.0
    supports: Supports = field(default_factory=Supports)

    @property
    def score(self) -> float:
        """How probable it is that it gives the value again."""
        return (self.hits + 0.5) / (self.tries + 1.0)

    def add(self, other: Evidence) -> None:
        """Count what another has counted."""
        self.hits += other.hits
        self.tries += other.tries
        self.supports.trusted |= other.supports.trusted


class Guard:
    """Tells outcomes apart by short facts about a call.

    It keeps the facts and the outcome of the last examples, and asks what became of
    those that were like the call: like it in the fact that tells them apart best, then
    in the next one, for as long as the examples bear it out.

    Facts and outcomes are sets of examples, as the bits of integers.
    """

    def __init__(self) -> None:
        self.labels: dict[str, int] = {}
        self.facts: dict[str, dict[str, int]] = {}
        self.supports: dict[tuple[str, str], Supports] = {}
        self._rows = 0
        self._repeats: set[int] = set()
        self._varied: set[str] = set()

    def learn(self, told: Mapping[str, str], label: str, witness: Witness) -> None:
        """With these facts it was this outcome."""
        if witness.about:
            repeat = hash((witness.about, label))
            if repeat in self._repeats:  # the same again is no second example
                return
            if len(self._repeats) < MAX_REPEATS:
                self._repeats.add(repeat)
        if label not in self.labels and len(self.labels) >= MAX_VALUES:
            label = OTHER
        bit = self._next_row()
        self.labels[label] = self.labels.get(label, 0) | bit
        for feature, value in told.items():
            if feature not in self._varied:
                self._note_fact(feature, value, bit, witness)

    def _note_fact(self, feature: str, value: str, bit: int, witness: Witness) -> None:
        table = self.facts.get(feature)
        if table is None:
            if len(self.facts) >= MAX_FEATURES:
                return
            table = self.facts[feature] = {}
        if value not in table and len(table) >= MAX_ANSWERS:
            self._varied.add(feature)  # a name, say, which decides nothing
            table.clear()
            return
        table[value] = table.get(value, 0) | bit
        self.supports.setdefault((feature, value), Supports()).note(witness)

    def _next_row(self) -> int:
        """The bit of a new example, which replaces the oldest when there are many."""
        bit = 1 << (self._rows % MAX_ROWS)
        if self._rows >= MAX_ROWS:
            for table in (self.labels, *self.facts.values()):
                for value in list(table):
                    table[value] &= ~bit
                    if not table[value]:
                        del table[value]
        self._rows += 1
        return bit

    def distribution(self, told: Mapping[str, str]) -> dict[str, float]:
        """How probable each outcome is."""
        alike = 0
        for rows in self.labels.values():
            alike |= rows
        chances = self._chances(alike, None)
        for _ in range(MAX_QUESTIONS):
            found = [rows & alike for rows in self.labels.values() if rows & alike]
            if len(found) < 2:
                break
            best, most = 0, MIN_EVIDENCE
            for feature, value in told.items():
                rows = self.facts.get(feature, {}).get(value, 0)
                if not rows & alike or not alike & ~rows:
                    continue
                if self.supports[feature, value].trusted:
                    gain = _gain(found, alike, rows)
                    if gain > most:
                        best, most = rows, gain
            if not best:
                break
            alike &= best
            chances = self._chances(alike, chances)
        return chances

    def _chances(self, rows: int, before: dict[str, float] | None) -> dict[str, float]:
        """The share of each outcome among examples, drawn towards what it was before."""
        seen = rows.bit_count()
        prior = before or dict.fromkeys(self.labels, 1 / max(1, len(self.labels)))
        return {
            label: ((rows & found).bit_count() + prior[label]) / (seen + 1)
            for label, found in self.labels.items()
        }

    def to_dict(self, labels: AbstractSet[str]) -> dict[str, Any]:
        """What may be saved of it; other labels than these are saved as `OTHER`."""
        found = {
            row: label if label in labels else OTHER
            for label, rows in self.labels.items()
            for row in _bits(rows)
        }
        outcomes = [found[row] for row in sorted(found)]
        kept = {row: number for number, row in enumerate(sorted(found))}
        facts: dict[str, dict[str, list[int]]] = {}
        for feature, table in self.facts.items():
            for value, rows in table.items():
                if rows and self.supports[feature, value].trusted:
                    numbers = sorted(kept[row] for row in _bits(rows) if row in kept)
                    facts.setdefault(feature, {})[value] = numbers
        return {"outcomes": outcomes, "facts": facts}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Guard:
        """Read what `to_dict` has written."""
        guard = cls()
        outcomes = list(map(str, data["outcomes"]))[-MAX_ROWS:]
        dropped = len(data["outcomes"]) - len(outcomes)
        guard._rows = len(outcomes)
        for row, label in enumerate(outcomes):
            guard.labels[label] = guard.labels.get(label, 0) | 1 << row
        for feature, table in data["facts"].items():
            for value, numbers in table.items():
                rows = 0
                for number in map(int, numbers):
                    if 0 <= number - dropped < len(outcomes):
                        rows |= 1 << (number - dropped)
                guard.facts.setdefault(str(feature), {})[str(value)] = rows
                guard.supports[str(feature), str(value)] = Supports(trusted=True)
        return guard

    def add(self, other: Guard) -> None:
        """Add the examples of another, as far as there is room."""
        room = MAX_ROWS - min(self._rows, MAX_ROWS)
        count = min(other._rows, MAX_ROWS, room)
        some = (1 << count) - 1
        start = min(self._rows, MAX_ROWS)
        for label, rows in other.labels.items():
            self.labels[label] = self.labels.get(label, 0) | (rows & some) << start
        for feature, table in other.facts.items():
            mine = self.facts.setdefault(feature, {})
            for value, rows in table.items():
                mine[value] = mine.get(value, 0) | (rows & some) << start
                supports = self.supports.setdefault((feature, value), Supports())
                supports.trusted |= other.supports[feature, value].trusted
        self._rows += count


def _gain(found: list[int], rows: int, split: int) -> float:
    """How much likelier the outcomes are when the examples are split in two."""
    inside = (rows & split).bit_count()
    gain = _N_LOG_N[rows.bit_count()] - _N_LOG_N[inside]
    gain -= _N_LOG_N[rows.bit_count() - inside]
    for outcome in found:
        count, within = outcome.bit_count(), (outcome & split).bit_count()
        gain += _N_LOG_N[within] + _N_LOG_N[count - within] - _N_LOG_N[count]
    return gain


def _bits(rows: int) -> list[int]:
    return [row for row in range(rows.bit_length()) if rows >> row & 1]
