"""The values that an argument may have at a moment, and what is known of each.

A source is a name for a kind of place (see `Item.source`), with how the value is changed
behind a `|`. `=` stands for a constant, and `[*]` before a source for a list of all its
values. Steps before a source say in what one of its values is wrapped, the outermost
first: `[1]` in a list of one, `[1,"path"]` in a list of one object with one field.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

from ._dates import FORMS, read_date, write_date
from ._spans import outline, stems
from ._values import is_mapping

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._moment import Moment
    from ._rows import Place
    from ._values import Item

MAX_SEGMENTS = 6
"""Messages that are looked at for one source, the newest ones."""
MAX_OF_SOURCE = 16
MAX_SHORTLISTED = 256
MAX_PLACES = 12
_MAX_EXPLAINING = 32
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
_DECODER = json.JSONDecoder()
_OWN = re.compile(r"[^<>~]*<[^>]*$")
_STEPS = 4
"""Lists and objects that a value may be wrapped in."""
_RANKS = ("0", "1", "2", "3", "4", "5")
_NUMBER = re.compile(r"-?\d{1,15}(\.\d{1,15})?")


def _number(value: Any) -> int | float:
    text = str(value)
    if not _NUMBER.fullmatch(text):
        raise ValueError(text)
    return float(text) if "." in text else int(text)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "lower": lambda value: str(value).lower(),
    "upper": lambda value: str(value).upper(),
    "title": lambda value: str(value).title(),
    "text": str,
    "quoted": lambda value: f'"{value}"',
    "number": _number,
}
"""How a value may be changed on its way into an argument."""

Chosen: TypeAlias = "tuple[Option, ...]"
Places: TypeAlias = "dict[tuple[int, int], Item]"
"""By message, and object or text in it: what stands there."""


class Option:
    """A value that an argument may have.

    Attributes:
        value: The value, as JSON.
        text: The value as text.
        sources: Where it comes from.
        features: What is known about it.
        at: The position of the message where it stands; -1 for a constant.
        item: What stands there.
        places: Every place where it stands.
        score: How well it fits, among the others.
        mention: How it is mentioned in what was said last, as a short code.
        fresh: Whether no earlier call of the tool had it.
    """

    __slots__ = (
        "_written",
        "at",
        "features",
        "fresh",
        "item",
        "mention",
        "places",
        "score",
        "sources",
        "text",
        "value",
    )

    def __init__(
        self, value: Any, text: str, source: str, at: int, item: Item | None
    ) -> None:
        self.value = value
        self.text = text
        self.sources = [source]
        self.features: list[str] = []
        self.at = at
        self.item = item
        self.places: Places = {} if item is None else {(at, item.group): item}
        self.score = 0.0
        self.mention = ""
        self.fresh = True
        self._written = ""

    @property
    def written(self) -> str:
        """The value in canonical JSON."""
        if not self._written:
            self._written = _CANONICAL.encode(self.value)
        return self._written


def same(left: Any, right: Any) -> bool:
    """Whether two JSON values are written the same, but for `1` and `1.0`."""
    return left == right and isinstance(left, bool) == isinstance(right, bool)


def explain(value: Any, moment: Moment) -> list[str]:
    """The sources that a value could have come from."""
    found: dict[str, None] = {}
    if isinstance(value, list | dict):
        return _explain_nested(value, moment)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return []
    text = value if isinstance(value, str) else json.dumps(value)
    places = moment.places(text)[-_MAX_EXPLAINING:]
    if len(text) > 2 and text[0] == text[-1] == '"':
        places += moment.places(text[1:-1])[-_MAX_EXPLAINING:]
    for _, item in places:
        change = _change(item.value, value)
        if change is not None:
            found[f"{item.source}{change}"] = None
    found.update(dict.fromkeys(_explain_date(text, moment)))
    return list(found)


def _explain_date(text: str, moment: Moment) -> list[str]:
    """The sources of a date that stands elsewhere in another form.

    The year of one that was said without is that of the conversation, or a constant.
    """
    read = read_date(text)
    if read is None:
        return []
    date, form = read
    found: list[str] = []
    if form != "iso":
        places = moment.places(date)[-_MAX_EXPLAINING:]
        found += [f"{item.source}|{form}:" for _, item in places]
    year, partial = date[:4], f"-{date[4:]}"
    for _, item in moment.places(partial)[-_MAX_EXPLAINING:]:
        if year == moment.year:
            found.append(f"{item.source}|{form}:")
        found.append(f"{item.source}|{form}:{year}")
    return found


def is_dated(source: str) -> bool:
    """Whether a year is a part of a source."""
    return source[-5:-4] == ":" and source[-4:].isdecimal()


def _explain_nested(value: Any, moment: Moment) -> list[str]:
    """The sources of a value that is wrapped in others, or of a list of values."""
    steps, inner = _unwrap(value)
    if isinstance(inner, list):
        return [] if steps else _explain_list(cast("list[Any]", inner), moment)
    form = _CANONICAL.encode(steps)
    return [f"{form}{source}" for source in explain(inner, moment)]


def _unwrap(value: Any) -> tuple[list[int | str], Any]:
    """What a value is wrapped in, and the value: lists of one, objects of one field."""
    steps: list[int | str] = []
    while len(steps) < _STEPS:
        if isinstance(value, list) and len(cast("list[Any]", value)) == 1:
            steps.append(1)
            value = cast("list[Any]", value)[0]
        elif isinstance(value, dict) and len(cast("dict[str, Any]", value)) == 1:
            fields = cast("dict[str, Any]", value)
            if is_mapping(fields):
                return steps, None  # its key is a value of this run
            ((key, value),) = fields.items()
            steps.append(key)
        else:
            break
    return steps, None if isinstance(value, dict) else cast("Any", value)


def _wrap(steps: Sequence[int | str], value: Any) -> Any:
    for step in reversed(steps):
        value = {step: value} if isinstance(step, str) else [value]
    return value


def _explain_list(values: list[Any], moment: Moment) -> list[str]:
    if not values or isinstance(values[0], list | dict):
        return []
    wanted = {str(value) for value in values if isinstance(value, str | int | float)}
    found: list[str] = []
    for source in explain(values[0], moment):
        if "|" not in source:
            for _, segment in moment.segments(source, 2):
                if {item.text for item in segment} == wanted:
                    found.append(f"[*]{source}")
                    break
    return found


def _change(found: Any, value: Any) -> str | None:
    if same(found, value) and isinstance(found, str) == isinstance(value, str):
        return ""
    for name, change in CHANGES.items():
        try:
            if same(change(found), value):
                return f"|{name}"
        except ValueError:
            continue
    return None


def gather(
    source: str,
    moment: Moment,
    used: dict[str, int],
    found: dict[str, Option],
    limit: int,
) -> None:
    """Add the values of one source that are known now."""
    named = f"s:{source}"
    if source[0] == "=":
        value = json.loads(source[1:])
        text = value if isinstance(value, str) else json.dumps(value)
        _add(found, Option(value, text, source, -1, None), named)
        return
    steps, path, change = _read_source(source)
    taken = 0
    for order, (at, segment) in enumerate(moment.segments(path, MAX_SEGMENTS)):
        age = min(order, 3)
        if steps is None:
            values = [item.value for item in segment[:MAX_OF_SOURCE]]
            option = Option(values, json.dumps(values), source, at, segment[0])
            _add(found, option, named)
            continue
        unused = 0
        for item in _shortlist(segment, moment):
            value, text = item.value, item.text
            if change:
                try:
                    value = _apply(change, value, moment)
                except ValueError:
                    continue
                text = str(value)
            is_used = text in used
            unused += not is_used
            known = found.get(text)
            if known is not None:
                if len(known.places) < MAX_PLACES:
                    known.places.setdefault((at, item.group), item)
                if known.sources[-1] != source:
                    known.sources.append(source)
                    known.features.append(named)
                continue
            if taken >= MAX_OF_SOURCE or len(found) >= limit:
                return
            taken += 1
            option = Option(_wrap(steps, value), text, source, at, item)
            rank = "u" if is_used else _RANKS[min(unused, 5)]
            option.features = [*_standing(named, age, rank, min(item.rank, 4))]
            found[text] = option


@functools.lru_cache(maxsize=8_192)
def _standing(named: str, age: int, rank: str, place: int) -> tuple[str, ...]:
    """The features of where a value stands among those of its source."""
    return named, f"{named}:{age}{rank}", f"a:{age}", f"i:{place}", f"q:{rank}"


@functools.lru_cache(maxsize=4_096)
def _read_source(source: str) -> tuple[tuple[int | str, ...] | None, str, str]:
    """In what a source's values are wrapped, its place, and how they are changed.

    A source that is a list of all values has `None` for what they are wrapped in.
    """
    steps: tuple[int | str, ...] | None = ()
    path = source
    if source.startswith("[*]"):
        steps, path = None, source[3:]
    elif source[:1] == "[":
        read: list[int | str] = []
        end = 0
        with contextlib.suppress(ValueError, RecursionError):
            read, end = _DECODER.raw_decode(source)
        if all(each == 1 or isinstance(each, str) for each in read):
            steps, path = tuple(read), source[end:]
    place, _, change = path.rpartition("|")
    known = change in CHANGES or change.partition(":")[0] in FORMS
    return (steps, place, change) if known and place else (steps, path, "")


def _apply(change: str, value: Any, moment: Moment) -> Any:
    """A value as an argument has it."""
    if change in CHANGES:
        return CHANGES[change](value)
    form, _, year = change.partition(":")
    return write_date(str(value), form, year or moment.year)


def is_own(source: str) -> bool:
    """Whether nobody else can plant a source's values: they are the model's own."""
    return source[0] == "=" or bool(_OWN.match(_read_source(source)[1]))


def _shortlist(segment: Sequence[Item], moment: Moment) -> Sequence[Item]:
    """The first of many values, after those that what was said last refers to."""
    if len(segment) <= MAX_OF_SOURCE:
        return segment
    referred = [
        item
        for item in segment[:MAX_SHORTLISTED]
        if (item.kin and _mention(item, moment)) or item.folded in moment.user_texts
    ]
    return [*referred[:MAX_OF_SOURCE], *segment[:MAX_OF_SOURCE]]


def _add(found: dict[str, Option], option: Option, named: str) -> None:
    known = found.get(option.text)
    if known is None:
        option.features.append(named)
        found[option.text] = option
    else:
        known.sources.append(option.sources[0])
        known.features.append(named)


def describe(option: Option, moment: Moment, used: dict[str, int], row: Place) -> None:
    """Add what is known of an option beside its sources.

    Args:
        option: The value.
        moment: When it may be an argument.
        used: Where earlier calls of the tool had it as this argument.
        row: The object that a loop comes to next.
    """
    if row in option.places:
        option.features.append("n:row")
    features = option.features
    at = used.get(option.text)
    if at is not None:
        option.fresh = False
        newest = moment.calls[-1].at
        features.append("u:last" if at == newest else "u:earlier")
    if used:  # how it is written, and how such an argument was written before
        features.append(f"v:{_mark(option.text)}/{_mark(next(reversed(used)))}")
    last = moment.symbols[-1] if moment.symbols else ""
    features += [f"s@{last}:{source}" for source in option.sources[:3]]
    item = option.item
    if item is None:
        return
    mention = _mention(item, moment)
    option.mention = mention
    features.append(f"m:{mention}")
    features.append("t:new" if option.at > moment.last_user else "t:old")
    if "~" in item.source:
        first, length, known = _words(item.folded)
        features += (
            f"w:{length}",
            f"lf:{first}",
            f"p:{min(len(option.places), 4)}",
            f"o:{_part(known, moment.user_words)}{_part(known, moment.asked_words)}",
            f"os:{_part(known, moment.said_words)}",
        )
        if item.near and ">" in item.source:
            # A result may tell in the same sentence what the user asked about.
            asked = len((item.near & moment.user_words) - known)
            features.append(f"y:{min(asked, 3)}")
    if item.token >= 0:
        features += _surroundings(item.left, item.right, item.text)


@functools.lru_cache(maxsize=8_192)
def _surroundings(left: str, right: str, text: str) -> tuple[str, ...]:
    """The features of a piece of a text: its neighbours, and how it is written."""
    kinds = outline(text)
    around = f"l:{left}", f"r:{right}"
    return (*around, f"h:{kinds}") if kinds else around


@functools.lru_cache(maxsize=8_192)
def _words(text: str) -> tuple[str, int, frozenset[str]]:
    """A text's first word, the number of its words, up to 6, and the words' stems."""
    words = text.split()
    return (words[0][:12] if words else "", min(len(words), 6), stems(text))


def _mark(text: str) -> str:
    """What a text begins with, if that is a mark."""
    return "" if text[:1].isalnum() else text[:1]


def _part(known: frozenset[str], words: frozenset[str]) -> str:
    """How many of some words are among others."""
    if not known or known.isdisjoint(words):
        return "0"
    return "2" if known <= words else "1"


def _mention(item: Item, moment: Moment) -> str:
    """How what was said last mentions a value, or what stands beside it."""
    text = item.folded
    user = text in moment.user_texts
    said = text in moment.said_texts
    partial = bool(moment.partial) and text in moment.partial_texts
    now = "U" if moment.asked_now else "O"
    code = (now if user else "") + ("S" if said else "") + ("P" if partial else "")
    kin = item.kin
    if kin:
        code += "u"[: _overlap(kin, moment.user_words)]
        code += "s"[: _overlap(kin, moment.said_words)]
        code += "p"[: _overlap(kin, moment.partial_words)]
    return code


def _overlap(kin: Sequence[frozenset[str]], words: frozenset[str]) -> bool:
    return bool(words) and any(each <= words for each in kin)


class Together(NamedTuple):
    """The arguments chosen so far, as the one after them sees them.

    Attributes:
        texts: Their values.
        places: Where they stand together; where the last does, if nowhere.
        whole: Whether all of them stand there.
        made: What earlier calls that had the same values had for the next argument.
    """

    texts: set[str]
    places: Places
    whole: bool
    made: set[str]


def join(
    chosen: Chosen, names: Sequence[str], tool: str, name: str, moment: Moment
) -> Together:
    """What an argument sees of those before it.

    Args:
        chosen: The values of the arguments before it.
        names: Their names.
        tool: The tool.
        name: The argument.
        moment: When the tool may be called.
    """
    places = chosen[-1].places
    whole = True
    for option in chosen[-2::-1]:
        both = places.keys() & option.places.keys()
        if not both:
            places, whole = chosen[-1].places, False
            break
        places = {place: places[place] for place in both}
    made: set[str] = set()
    before = list(zip(names, [option.value for option in chosen], strict=True))
    for call in moment.calls_of(tool):
        if name in call.arguments:
            arguments = call.arguments
            if all(arguments.get(each) == value for each, value in before):
                made.add(str(arguments[name]))
    return Together({option.text for option in chosen}, places, whole, made)


def relate(option: Option, together: Together) -> tuple[str, ...]:
    """How a value stands to those of the arguments before it."""
    here, there = option.places, together.places
    if here.keys().isdisjoint(there):  # most do
        return _APART[option.text in together.texts, option.text in together.made]
    features: list[str] = []
    if option.text in together.texts:
        features.append("x:same")
    both = here.keys() & there.keys()
    near, row = 99, None
    for place in both:
        left, right = there[place], here[place]
        if min(left.token, right.token) < 0:
            row = place if row is None else max(row, place)
        elif abs(right.token - left.token) < abs(near):
            near = right.token - left.token
    if row is not None:
        features.append("x:object!" if together.whole else "x:object")
        features.append(f"s&{there[row].source}&{here[row].source}")
    if near != 99:
        features.append(f"x:{max(-4, min(8, near))}")
    if option.text in together.made:
        features.append("x:made")
    return tuple(features)


_APART: dict[tuple[bool, bool], tuple[str, ...]] = {
    (False, False): ("x:apart",),
    (False, True): ("x:apart", "x:made"),
    (True, False): ("x:same", "x:apart"),
    (True, True): ("x:same", "x:apart", "x:made"),
}
"""The features of a value that stands nowhere with those before it: whether it is the
same as one of them, and whether an earlier call had it."""
