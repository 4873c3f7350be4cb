"""The values that an argument may have at a moment, and what is known of each."""

from __future__ import annotations

import functools
import itertools
import json
from typing import TYPE_CHECKING, Any, TypeAlias

from ._rows import NO_ROW
from ._sources import change, wrap
from ._spans import outline, stems
from ._templates import is_template, put_together

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ._moment import Moment
    from ._rows import Place
    from ._sources import Source
    from ._values import Item

MAX_OF_SOURCE = 16
MAX_SHORTLISTED = 256
MAX_PLACES = 12
_LAST_PLACE = 4
"""Later places in a list are told apart no more."""
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
_RANKS = ("0", "1", "2", "3", "4", "5", "u")
_KNOWN_SOURCES = 3
"""Sources of a value that are told from each other by what came last."""
_USED = len(_RANKS) - 1
"""The rank of a value that an earlier call had; others are counted."""

Chosen: TypeAlias = "tuple[Option, ...]"
Places: TypeAlias = "dict[Place, Item]"
"""By message, and object or text in it: what stands there."""


class Standing:
    """Where values stand among those of their source: many options share one.

    Attributes:
        named: The features of that.
        general: Those of them that do not name the source.
    """

    __slots__ = ("general", "named")

    def __init__(self, named: tuple[str, ...], general: tuple[str, ...]) -> None:
        self.named = named
        self.general = general


class Piece:
    """What is known of something that stands in a conversation, at one moment.

    Several arguments may take the same pieces.

    Attributes:
        item: What stands there.
        mention: How it is mentioned in what was said last, as a short code.
        features: What is known about it.
        worth: What that is worth for any argument; `None` until it was looked up.
    """

    __slots__ = ("features", "item", "mention", "worth")

    def __init__(self, item: Item, mention: str, features: list[str]) -> None:
        self.item = item
        self.mention = mention
        self.features = features
        self.worth: float | None = None


class Option:
    """A value that an argument may have.

    Attributes:
        value: The value, as JSON.
        text: The value as text.
        sources: Where it comes from.
        standing: Where it stands among the values of its source.
        more: Further features of its own.
        at: The position of the message where it stands; -1 for a constant.
        item: What stands there.
        piece: What is known about that.
        count: How many places it stands at.
        score: How well it fits, among the others.
        fresh: Whether no earlier call of the tool had it.
        in_row: Whether it stands in the object that a loop comes to next.
    """

    __slots__ = (
        "_places",
        "_written",
        "at",
        "count",
        "fresh",
        "in_row",
        "item",
        "more",
        "piece",
        "score",
        "sources",
        "standing",
        "text",
        "value",
    )

    def __init__(
        self,
        value: Any,
        text: str,
        source: str,
        at: int,
        item: Item | None,
        standing: Standing,
    ) -> None:
        self.value = value
        self.text = text
        self.sources: tuple[str, ...] = (source,)
        self.standing = standing
        self.more: list[str] = []
        self.at = at
        self.item = item
        self.piece: Piece | None = None
        self.count = 0 if item is None else 1
        self._places: Places | None = None
        self.score = 0.0
        self.fresh = True
        self.in_row = False
        self._written = ""

    @property
    def places(self) -> Places:
        """Every place where it stands."""
        if self._places is None:
            item = self.item
            self._places = {} if item is None else {(self.at, item.group): item}
        return self._places

    def add(self, source: Source, at: int, item: Item) -> None:
        """Note where else it stands."""
        if self.count < MAX_PLACES:
            places = self.places
            places.setdefault((at, item.group), item)
            self.count = len(places)
        if self.sources[-1] != source.name:
            self.sources += (source.name,)
            self.more.append(source.feature)

    @property
    def features(self) -> list[str]:
        """What is known about it."""
        described = () if self.piece is None else self.piece.features
        return [*self.standing.named, *self.more, *described]

    @property
    def mention(self) -> str:
        """How it is mentioned in what was said last, as a short code."""
        return "" if self.piece is None else self.piece.mention

    @property
    def written(self) -> str:
        """The value in canonical JSON."""
        if not self._written:
            self._written = _CANONICAL.encode(self.value)
        return self._written


def gather(
    sources: Iterable[Source], moment: Moment, used: dict[str, int], limit: int
) -> list[Option]:
    """The values of some sources that are known now.

    Args:
        sources: The sources, the most usual first.
        moment: When the values may be arguments.
        used: Where earlier calls of the tool had them as this argument.
        limit: How many values to find.
    """
    found: dict[str, Option] = {}
    for source in sources:
        if source.is_constant:
            _add(found, source, source.value, source.text, -1, None)
            continue
        segments = moment.newest(source.path)
        if not segments:
            continue
        if source.steps is None:
            for at, segment in segments:
                values = [item.value for item in segment[:MAX_OF_SOURCE]]
                _add(found, source, values, json.dumps(values), at, segment[0])
        else:
            _gather_values(source, segments, moment, used, found, limit)
    return list(found.values())


def _gather_values(
    source: Source,
    segments: Iterable[tuple[int, Sequence[Item]]],
    moment: Moment,
    used: dict[str, int],
    found: dict[str, Option],
    limit: int,
) -> None:
    name, how, steps = source.name, source.change, source.steps
    templated = is_template(how)
    taken = 0
    for order, (at, segment) in enumerate(segments):
        age = min(order, 3)
        unused = 0
        if len(segment) > MAX_OF_SOURCE:
            segment = moment.shortlists.get((source.path, at)) or _shortlist(  # noqa: PLW2901 - the part of it that is looked at
                source.path, at, segment, moment
            )
        for item in segment:
            value, text = item.value, item.text
            if templated:
                put = put_together(how, item, at, moment)
                if put is None:
                    continue
                value = text = put
            elif how:
                changed = change(value, how, moment.year if ":" in how else "")
                if changed is None:
                    continue
                value, text = changed
            is_used = text in used
            if not is_used:
                unused += 1
            known = found.get(text)
            if known is not None:
                known.add(source, at, item)
                continue
            if taken >= MAX_OF_SOURCE or len(found) >= limit:
                return
            taken += 1
            rank = _USED if is_used else unused if unused < _USED else _USED - 1
            if steps:
                value = wrap(steps, value)
            standing = _standing(source, age, rank, item.rank)
            found[text] = Option(value, text, name, at, item, standing)


def _add(
    found: dict[str, Option],
    source: Source,
    value: Any,
    text: str,
    at: int,
    item: Item | None,
) -> None:
    known = found.get(text)
    if known is None:
        standing = Standing((source.feature,), ())
        found[text] = Option(value, text, source.name, at, item, standing)
    else:
        known.sources += (source.name,)
        known.more.append(source.feature)


def _shortlist(
    path: str, at: int, segment: Sequence[Item], moment: Moment
) -> Sequence[Item]:
    """The first of many values, after those that what was said last refers to."""
    user_texts = moment.user_texts
    referred = [
        item
        for item in segment[:MAX_SHORTLISTED]
        if (item.kin and _mention(item, moment)) or item.folded in user_texts
    ]
    short = [*referred[:MAX_OF_SOURCE], *segment[:MAX_OF_SOURCE]]
    moment.shortlists[path, at] = short
    return short


def _standing(source: Source, age: int, rank: int, place: int) -> Standing:
    """Where a value stands: made once for each source and place."""
    place = min(place, _LAST_PLACE)
    code = (age * len(_RANKS) + rank) * (_LAST_PLACE + 1) + place
    known: Standing | None = source.standings.get(code)
    if known is None:
        feature, how = source.feature, _RANKS[rank]
        general = f"a:{age}", f"i:{place}", f"q:{how}"
        known = Standing((feature, f"{feature}:{age}{how}", *general), general)
        source.standings[code] = known
    return known


def describe(
    options: Iterable[Option], moment: Moment, used: dict[str, int], row: Place
) -> None:
    """Add what is known of options beside their sources.

    Args:
        options: The values.
        moment: When they may be arguments.
        used: Where earlier calls of the tool had them as this argument.
        row: The object that a loop comes to next.
    """
    last = moment.symbols[-1] if moment.symbols else ""
    usual = _mark(next(reversed(used))) if used else None
    last_user = moment.last_user
    pieces = moment.pieces
    behind: dict[str, str] = {}  # by source: its feature after the last symbol
    for option in options:
        more = option.more
        if row is not NO_ROW and row in option.places:
            option.in_row = True
            more.append("n:row")
        if usual is not None:
            at = used.get(option.text)
            if at is not None:
                option.fresh = False
                newest = moment.calls[-1].at
                more.append("u:last" if at == newest else "u:earlier")
            # How it is written, and how such an argument was written before.
            more.append(_marks(_mark(option.text), usual))
        for source in option.sources[:_KNOWN_SOURCES]:
            feature = behind.get(source)
            if feature is None:
                feature = behind[source] = f"s@{last}:{source}"
            more.append(feature)
        item = option.item
        if item is None:
            more.append(_mention_of_constant(option.text, moment))
            continue
        more.append("t:new" if option.at > last_user else "t:old")
        piece = pieces.get(id(item))
        if piece is None:
            piece = pieces[id(item)] = _describe_piece(item, moment)
        option.piece = piece
        if "~" in item.source:
            more.append(_SPREADS[min(4, option.count)])


def _mention_of_constant(text: str, moment: Moment) -> str:
    """The feature of who said all words of a constant last."""
    words = _words(text.casefold())[1]
    return _SAID_BY[
        bool(words) and words <= moment.user_words,
        bool(words) and words <= moment.said_words,
        bool(words) and words <= moment.partial_words,
    ]


def _describe_piece(item: Item, moment: Moment) -> Piece:
    mention = _mention(item, moment)
    features = [f"m:{mention}"]
    if "~" in item.source:
        alone, known = _words(item.folded)
        user, asked = moment.user_words, moment.asked_words
        overlap = _OVERLAPS[_part(known, user), _part(known, asked)]
        features += (*alone, overlap, _SAID[_part(known, moment.said_words)])
        if item.token >= 0 and item.sentences and ">" in item.source:
            # A result may tell in the same sentence what the user asked about.
            near = item.sentences.near(item.token)
            if near:
                features.append(_ASKED[min(len((near & user) - known), 3)])
    if item.token >= 0:
        features += _surroundings(item.left, item.right, item.text)
    return Piece(item, mention, features)


_SAID_BY = {
    each: "e:" + "".join([who for who, said in zip("usp", each, strict=True) if said])
    for each in itertools.product((False, True), repeat=3)
}
_SPREADS = [f"p:{count}" for count in range(5)]
_OVERLAPS = {(a, b): f"o:{a}{b}" for a in range(3) for b in range(3)}
_SAID = [f"os:{part}" for part in range(3)]
_ASKED = [f"y:{count}" for count in range(4)]


@functools.lru_cache(maxsize=8_192)
def _surroundings(left: str, right: str, text: str) -> tuple[str, ...]:
    """The features of a piece of a text: its neighbours, and how it is written."""
    kinds = outline(text)
    around = f"l:{left}", f"r:{right}"
    return (*around, f"h:{kinds}") if kinds else around


@functools.lru_cache(maxsize=8_192)
def _words(text: str) -> tuple[tuple[str, str], frozenset[str]]:
    """The features of a text's words, up to 6 and the first, and the words' stems."""
    words = text.split()
    first = words[0][:12] if words else ""
    return (f"w:{min(len(words), 6)}", f"lf:{first}"), stems(text)


@functools.lru_cache(maxsize=1_024)
def _marks(mark: str, usual: str) -> str:
    """The feature of what a text and one before it begin with."""
    return f"v:{mark}/{usual}"


def _mark(text: str) -> str:
    """What a text begins with, if that is a mark."""
    first = text[:1]
    return "" if first.isalnum() else first


def _part(known: frozenset[str], words: frozenset[str]) -> int:
    """How many of some words are among others: 0 for none, 2 for all."""
    if known.isdisjoint(words):
        return 0
    return 2 if known <= words else 1


def _mention(item: Item, moment: Moment) -> str:
    """How what was said last mentions a value, or what stands beside it."""
    text = item.folded
    code = moment.now if text in moment.user_texts else ""
    if text in moment.said_texts:
        code += "S"
    if moment.partial and text in moment.partial_texts:
        code += "P"
    kin = item.kin
    if kin:
        known = moment.beside.get(id(kin))
        if known is None:
            beside = "u"[: _overlap(kin, moment.user_words)]
            beside += "s"[: _overlap(kin, moment.said_words)]
            beside += "p"[: _overlap(kin, moment.partial_words)]
            known = moment.beside[id(kin)] = kin, beside
        code += known[1]
    return code


def _overlap(kin: Sequence[frozenset[str]], words: frozenset[str]) -> bool:
    return bool(words) and any(map(words.issuperset, kin))
