"""What was learned of one tool's results: outcomes, what tells them apart, how each is made."""

from __future__ import annotations

import itertools
import json
import re
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from headstart.predictors._tally import Tally

from ._documents import STYLES, encode, find_style
from ._expressions import MISSING
from ._guard import MANY, OTHER, Evidence, Guard, Supports, Witness, identifiers
from ._outcomes import Program

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ._derivations import Scope
    from ._documents import Document, Json, Node, Style

MAX_TEXT = 2_000
"""A longer result that is no JSON object is taken to be never the same."""
MAX_TEMPLATES = 64
MAX_RULES = 64
MAX_FIELDS = 256
MAX_BASES = 16
MAX_ALTERNATIVES = 3
SIMILAR = 0.5
"""The share of fields that two objects of one kind have in common, at least."""
HOPELESS = 12
"""Results after which, none of them foreseen, only one in `GLANCE` is looked at."""
GLANCE = 8
MIN_RAW = 0.02

_OBJECT: Final = "{}"
"""The outcome that the result is an object. Others are templates, as JSON lists."""
Template: TypeAlias = "list[str | list[str]]"
"""Pieces of text, and names of arguments in lists of one."""
Rule: TypeAlias = tuple[str, str]
"""A field of an object, and the argument that has the same value: the object is what the
call is about."""


class Record:
    """What was learned of one tool's results."""

    def __init__(self) -> None:
        self.seen = 0
        self.foreseen = 0
        self.tallies = [Tally() for _ in range(4)]
        self.guard = Guard()
        self.templates: dict[str, Supports] = {}
        self.rules: dict[Rule, Evidence] = {}
        self.objects = 0
        self.fields: dict[str, Evidence] = {}
        self.style: Style = STYLES[0]
        self.about = Program()
        self.new = Program()
        self._new_seen = self._new_foreseen = 0
        self._conversations: set[int] = set()
        self._common: frozenset[int] | None = None

    def passes_over(self) -> bool:
        """Whether the next result is not looked at: none was ever foreseen."""
        self.seen += 1
        return self.seen > HOPELESS and not self.foreseen and bool(self.seen % GLANCE)

    @property
    def _new_is_hopeless(self) -> bool:
        """Whether no object was ever foreseen where the call is about none."""
        return self._new_seen > HOPELESS and not self._new_foreseen

    def state(self, scope: Scope) -> list[tuple[str, float]]:
        """The results that are possible, and how sure each of them looks."""
        scope = scope.about(self._find_base(scope))
        program = self._program(scope)
        program.tell(scope)
        outcomes = self.guard.distribution(scope.told) if self.guard.labels else {}
        likely = sorted(outcomes.items(), key=lambda each: -each[1])
        stated: dict[str, float] = {}
        for label, chance in likely:
            if chance < MIN_RAW or len(stated) >= MAX_ALTERNATIVES:
                break
            made = self._make(label, scope, program)
            if made is not None:
                content, sureness = made
                stated[content] = max(chance * sureness, stated.get(content, 0.0))
        return list(stated.items())

    def _make(
        self, label: str, scope: Scope, program: Program
    ) -> tuple[str, float] | None:
        if label == _OBJECT:
            if program is self.new and self._new_is_hopeless:
                return None
            value, sureness = program.build(scope)
            if value is MISSING or not isinstance(value, dict):
                return None
            return encode(value, self.style), sureness
        supports = self.templates.get(label)
        if supports is None or not supports.trusted:
            return None
        text = _fill(json.loads(label), scope.arguments)
        return None if text is None else (text, 1.0)

    def learn(
        self,
        scope: Scope,
        content: str,
        document: Document | None,
        conversation: int,
        *,
        right: bool,
    ) -> None:
        """A call in this scope has given this."""
        self.foreseen += right
        witness = self._witness(scope, content, document, conversation)
        label = OTHER
        if document is not None and isinstance(document.value, dict):
            style = find_style(content, document.value, self.style)  # pyright: ignore[reportUnknownMemberType]
            if style is not None:
                self.style, label = style, _OBJECT
                value = cast("Node", document.value)  # pyright: ignore[reportUnknownMemberType]
                scope = self._learn_object(scope, value, witness, right=right)
        elif len(content) <= MAX_TEXT:
            label = self._learn_text(scope, content, witness)
        if label != _OBJECT:
            scope = scope.about(self._find_base(scope))
        self._program(scope).tell(scope)
        self.guard.learn(scope.told, label, witness)

    def _witness(
        self,
        scope: Scope,
        content: str,
        document: Document | None,
        conversation: int,
    ) -> Witness:
        """Who sees this result: by the identifiers of what the call is about.

        Those that every call has had so far, once there were enough of them, tell
        nothing apart: an account that is always the same, say.
        """
        if document is None:
            shown: Json = content
        elif isinstance(document.value, dict):
            fields = cast("Node", document.value)  # pyright: ignore[reportUnknownMemberType]
            shown = [v for v in fields.values() if isinstance(v, str)]
        else:
            shown = None
        about = identifiers([*scope.arguments.values(), shown])
        if len(self._conversations) < MANY:
            self._conversations.add(conversation)
        self._common = about if self._common is None else self._common & about
        common = self._common
        if len(self._conversations) < MANY or common == about:
            common = frozenset[int]()
        return Witness(conversation, about - common, common)

    def _learn_text(self, scope: Scope, content: str, witness: Witness) -> str:
        template = json.dumps(_template(content, scope.arguments))
        supports = self.templates.get(template)
        if supports is None:
            if len(self.templates) >= MAX_TEMPLATES:
                seldom = (each for each, s in self.templates.items() if not s.trusted)
                dropped = next(seldom, None)
                if dropped is None:
                    return OTHER
                del self.templates[dropped]
            supports = self.templates[template] = Supports()
        supports.note(witness)
        return template

    def _learn_object(
        self, scope: Scope, value: Node, witness: Witness, *, right: bool
    ) -> Scope:
        self.objects += 1
        for name in itertools.islice(value, MAX_FIELDS):
            known = self.fields.get(name)
            if known is None:
                if len(self.fields) >= MAX_FIELDS:
                    continue
                known = self.fields[name] = Evidence()
            known.hits += 1
            known.supports.note(witness)
        found = self._learn_rules(scope, value, witness)
        scope = scope.about(self._find_base(scope) or found)
        program = self._program(scope)
        if program is self.new:
            self._new_seen += 1
            self._new_foreseen += right
            if self._new_is_hopeless:
                return scope
        program.tell(scope)
        program.learn(value, scope, witness)
        return scope

    def _learn_rules(self, scope: Scope, value: Node, witness: Witness) -> Node | None:
        """Learn how what a call is about is found; what it was for this one."""
        first: Node | None = None
        found: dict[Rule, None] = {}
        for name, argument in scope.arguments.items():
            if isinstance(argument, (list, dict)):
                continue
            for key, node in itertools.islice(
                scope.found(argument, held=False), MAX_BASES
            ):
                if (key, name) not in found and _are_similar(node, value):
                    found[key, name] = None
                    first = first or node
        for rule in found:
            if rule not in self.rules and len(self.rules) < MAX_RULES:
                self.rules[rule] = Evidence()
        for rule, evidence in self.rules.items():
            evidence.hits += rule in found
            evidence.tries += bool(found)
            if rule in found:
                evidence.supports.note(witness)
        return first

    def _find_base(self, scope: Scope) -> Node | None:
        """The newest object that a call is about."""
        usual = {
            name for name, seen in self.fields.items() if seen.hits * 2 >= self.objects
        }
        rules = sorted(self.rules.items(), key=lambda each: -each[1].score)
        for (key, name), evidence in rules[:4]:
            if evidence.score < SIMILAR or name not in scope.arguments:
                continue
            value = scope.arguments[name]
            if isinstance(value, (list, dict)):
                continue
            for found, node in itertools.islice(
                scope.found(value, held=False), MAX_BASES
            ):
                if found == key and _are_similar(node, usual):
                    return node
        return None

    def _program(self, scope: Scope) -> Program:
        return self.new if scope.base is None else self.about

    def to_dict(self) -> dict[str, Any]:
        """What may be saved of it, as JSON values."""
        templates = [each for each, s in self.templates.items() if s.trusted]
        return {
            "seen": self.seen,
            "foreseen": self.foreseen,
            "objects": self.objects,
            "style": list(self.style),
            "tallies": [[t.hits, t.misses] for t in self.tallies],
            "guard": self.guard.to_dict({_OBJECT, OTHER, *templates}),
            "templates": templates,
            "rules": [
                [*rule, e.hits, e.tries]
                for rule, e in self.rules.items()
                if e.supports.trusted
            ],
            "fields": {
                name: e.hits for name, e in self.fields.items() if e.supports.trusted
            },
            "new_objects": [self._new_seen, self._new_foreseen],
            "about": self.about.to_dict(),
            "new": self.new.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Record:
        """Read what `to_dict` has written; anything else raises an ordinary error."""
        record = cls()
        record.seen, record.foreseen = int(data["seen"]), int(data["foreseen"])
        record.objects = int(data["objects"])
        item, key, ascii_only, indent = data["style"]
        record.style = str(item), str(key), bool(ascii_only), int(indent)
        record.tallies = [Tally(float(h), float(m)) for h, m in data["tallies"]]
        record.guard = Guard.from_dict(data["guard"])
        for template in data["templates"]:
            pieces = json.loads(template)
            if not isinstance(pieces, list) or not all(
                isinstance(each, str) or _is_name(each)
                for each in cast("list[Any]", pieces)
            ):
                raise ValueError(template)
            record.templates[str(template)] = Supports(trusted=True)
        for field, name, hits, tries in data["rules"]:
            rule = str(field), str(name)
            record.rules[rule] = _trusted(hits, tries)
        for name, hits in data["fields"].items():
            record.fields[str(name)] = _trusted(hits, 0.0)
        record._new_seen, record._new_foreseen = map(int, data["new_objects"])
        record.about = Program.from_dict(data["about"])
        record.new = Program.from_dict(data["new"])
        return record

    def add(self, other: Record) -> None:
        """Add what another has learned."""
        if other.seen > self.seen:
            self.style = other.style
        self.seen += other.seen
        self.foreseen += other.foreseen
        self.objects += other.objects
        self._new_seen += other._new_seen
        self._new_foreseen += other._new_foreseen
        for mine, theirs in zip(self.tallies, other.tallies, strict=True):
            mine.add(theirs)
        self.guard.add(other.guard)
        for template, supports in other.templates.items():
            self.templates.setdefault(template, Supports()).trusted |= supports.trusted
        for mine, theirs in ((self.rules, other.rules), (self.fields, other.fields)):
            _add_all(mine, theirs)
        self.about.add(other.about)
        self.new.add(other.new)


def _add_all(mine: dict[Any, Evidence], theirs: Mapping[Any, Evidence]) -> None:
    for key, evidence in theirs.items():
        mine.setdefault(key, Evidence()).add(evidence)


def _trusted(hits: Any, tries: Any) -> Evidence:
    return Evidence(float(hits), float(tries), Supports(trusted=True))


def _is_name(piece: Any) -> bool:
    return isinstance(piece, list) and list(map(type, cast("list[Any]", piece))) == [
        str
    ]


def _are_similar(names: Iterable[str], others: Iterable[str]) -> bool:
    left, right = set(names), set(others)
    return bool(right) and len(left & right) >= SIMILAR * len(left | right)


def _template(text: str, arguments: Mapping[str, Json]) -> Template:
    """The text with the arguments' values taken out, the longest first."""
    names: dict[str, str] = {}
    for name, value in arguments.items():
        written = _written(value)
        if written is not None and len(written) > 1:
            names.setdefault(written, name)
    if not names:
        return [text]
    longest = sorted(names, key=len, reverse=True)
    pattern = rf"(?<!\w)({'|'.join(map(re.escape, longest))})(?!\w)"
    pieces = re.split(pattern, text)
    return [
        [names[piece]] if number % 2 else piece
        for number, piece in enumerate(pieces)
        if piece
    ]


def _fill(template: Template, arguments: Mapping[str, Json]) -> str | None:
    pieces: list[str] = []
    for piece in template:
        if isinstance(piece, str):
            pieces.append(piece)
            continue
        written = _written(arguments.get(piece[0]))
        if written is None:
            return None
        pieces.append(written)
    return "".join(pieces)


def _written(value: Json) -> str | None:
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT else None
    return json.dumps(value) if type(value) in (int, float) else None
