"""Pieces of a text that could be arguments: tokens by shape, phrases, quotations."""

from __future__ import annotations

import functools
import re
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, TypeAlias

from ._dates import DIGIT, NAME, SLASH, find_dates, hint_at_date

if TYPE_CHECKING:
    from collections.abc import Iterator

READ_CHARACTERS = 6_000
"""Of a longer text the first two thirds of this and the last third are read."""
MAX_TOKENS = 700
MAX_VALUE_CHARACTERS = 200
_MAX_KEPT = 40
"""Longer tokens are read each time."""
_READ_TWICE = frozenset(("A", "email", "url"))
_LEAST_CODE = 5
"""Shorter words of capitals are no codes: they are abbreviations."""
_MAX_TOKENS_KEPT = 16_384
_STEM = 5
"""Words are compared by so many first letters, which makes most inflections equal."""

# Chinese, Japanese and Korean text has no spaces, and borders on numbers and names.
NO_WORDS: frozenset[str] = frozenset()
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uff00-\uffef\u3000-\u303f"
_UNSPACED_RUN = re.compile(f"[{_UNSPACED}]+")
_GLUED = re.compile(r"[?!](?=[^\W\d_a-z][a-z])")
_STEMS = re.compile(rf"([^\W\d_]{{3,{_STEM}}})[^\W\d_]*")
_QUOTED = re.compile(
    r"\"([^\"\n]{2,80})\"|(?<!\w)'([^'\n]{2,80})'(?!\w)"
    r"|\u201c([^\u201d\n]{2,80})\u201d|`([^`\n]{2,80})`"
)
_QUOTE = re.compile("[\"'\u201c`]")
_SENTENCE_END = frozenset(".!?:\u2026\u3002\uff01\uff1f\n")
_ENDING = _SENTENCE_END | frozenset(",;)]}\uff0c\u3001")
# Quotation marks, brackets, and what ends sentences and their parts in any script.
_AROUND = (
    "([{<\"'\u201c\u201d\u2018\u2019\u00ab\u00bb*`~|)]}>"
    ".,;:!?\u2026\u3002\uff0c\u3001\uff01\uff1f\u060c\u061f\u0964"
)
_CONNECTING = frozenset(("of", "the", "and", "de", "du", "la", "in", "for", "&", "von"))
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.\w+$")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://\S+$", re.IGNORECASE)
_TOKEN = re.compile(r"\S+")
_PART = re.compile(r"[^\W_]+|[\W_]+")


Span: TypeAlias = "tuple[str, str, int, str, str]"
"""A piece of a text: the piece; its kind, which is its shape, `quoted`, `place`, `date`,
`day` for a date without its year, `phrase`, or `opening` and `part` for a phrase that
begins a sentence, and one between two connecting words; the number of its first token, -1
where it has none; the word before it in lower case, or the shape of what is no word; and
the word behind it."""


class Sentences:
    """The words of a text's sentences: most are never asked for.

    Args:
        tokens: The text's tokens.
    """

    __slots__ = ("_known", "_tokens")

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._known: dict[int, frozenset[str]] = {}

    def near(self, token: int) -> frozenset[str]:
        """The words of a token's sentence, cut to their first letters."""
        known = self._known.get(token)
        if known is not None:
            return known
        tokens = self._tokens
        first = end = token
        while first and not _is_end(tokens[first - 1]):
            first -= 1
        while end + 1 < len(tokens) and not _is_end(tokens[end]):
            end += 1
        sentence = stems(" ".join(tokens[first : end + 1]))
        words = frozenset([word for word in sentence if len(word) > 3])
        self._known.update(dict.fromkeys(range(first, end + 1), words))
        return words


def _is_end(raw: str) -> bool:
    return raw[-1] in _SENTENCE_END and len(raw) > 2


def shorten(text: str) -> str:
    """The part of a text that is read at all."""
    if len(text) <= READ_CHARACTERS:
        return text
    third = READ_CHARACTERS // 3
    return f"{text[: 2 * third]}\n{text[-third:]}"


def stems(text: str) -> frozenset[str]:
    """The words of a text, cut to their first letters."""
    return frozenset(_STEMS.findall(text.casefold()))


@functools.lru_cache(maxsize=8_192)
def shape(token: str) -> str:
    """What tokens of one kind have in common: `#W1234567` has the shape `#A9`.

    Each part between punctuation is `a`, `A`, `Aa` or `9{5}` where it is of one kind,
    and `a9`, `A9` or `x9` where letters and digits mix, in whatever order.
    """
    if token.isalpha():
        return _letters(token)
    if token.isdecimal():
        return f"9{{{min(len(token), 12)}}}"
    if "@" in token and _EMAIL.match(token):
        return "email"
    if "/" in token:
        return "url" if _URL.match(token) else "path"
    parts = _PART.findall(token)
    generalised = "".join(map(_part, parts[:9]))
    return generalised if len(parts) <= 9 else f"{generalised}…"


def _letters(token: str) -> str:
    if token.islower():
        return "a"
    if token.isupper() and len(token) > 1:
        return "A"
    return "Aa" if token[0].isupper() else "w"


def _part(part: str) -> str:
    if part.isalpha():
        return _letters(part)
    if part.isdecimal():
        return "9"
    if part.isalnum():
        return "A9" if part.isupper() else "a9" if part.islower() else "x9"
    return part[:2]


@functools.lru_cache(maxsize=8_192)
def outline(token: str) -> str:
    """The kinds of a token's characters, one by one; empty where it has no digit."""
    if not any(each.isdecimal() for each in token):
        return ""
    kinds = (
        "9"
        if each.isdecimal()
        else "A"
        if each.isupper()
        else "a"
        if each.isalpha()
        else each
        for each in token[:12]
    )
    return "".join(kinds)


def spans(text: str) -> tuple[list[Span], Sentences]:
    """The pieces of a text that stand out, in their order, and its sentences.

    Plain lower-case words do not: a text has too many of them.
    """
    return _read_spans(shorten(text))


@functools.lru_cache(maxsize=64)
def _read_spans(text: str) -> tuple[list[Span], Sentences]:
    found: list[Span] = []
    text = _spaced(text)
    tokens = text.split()[:MAX_TOKENS]
    read = [*map(_read_token, tokens)]
    last = len(tokens) - 1
    run: list[int] = []
    for i, (token, kind, _, _) in enumerate(read):
        if not kind:
            if run and token not in _CONNECTING:
                _end_phrase(run, tokens, found)
            elif run:
                run.append(i)
            continue
        if len(token) > MAX_VALUE_CHARACTERS:
            continue
        left = read[i - 1][2] if i else "^"
        right = read[i + 1][2] if i < last else "$"
        found.append((token, kind, i, left, right))
        if kind in _READ_TWICE:
            found += [(*each, i, left, right) for each in _read_again(token, kind)]
        if kind in ("Aa", "A") or (run and token[0].isupper()):
            run.append(i)
            raw = tokens[i]
            if raw[-1] in _ENDING and not (raw[-1] == "." and len(token) == 1):
                _note_place(run, tokens, found)
                _end_phrase(run, tokens, found)
        elif run:
            _end_phrase(run, tokens, found)
    if run:
        _end_phrase(run, tokens, found)
    hints = [each[3] for each in read]
    slashed = max(hints, default=0) >= SLASH
    named = _names_month(hints)
    if named or slashed or not text.isascii():
        found += _dated(text, tokens, named=named, slashed=slashed)
    found += _quoted(text)
    return found, Sentences(tokens)


def _quoted(text: str) -> list[Span]:
    if not _QUOTE.search(text):
        return []
    return [
        (match[match.lastindex or 0], "quoted", -1, "", "")
        for match in _QUOTED.finditer(text)
    ]


def _names_month(hints: list[int]) -> bool:
    """Whether the name of a month stands near a number."""
    return any(
        any(each & DIGIT for each in hints[max(0, i - 2) : i + 3])
        for i, hint in enumerate(hints)
        if hint & NAME
    )


def _dated(
    text: str, tokens: list[str], *, named: bool, slashed: bool
) -> Iterator[Span]:
    starts: list[int] = []
    for start, end, date in find_dates(text, named=named, slashed=slashed):
        starts = starts or [match.start() for match in _TOKEN.finditer(text)]
        first, last = bisect_right(starts, start) - 1, bisect_left(starts, end)
        if first >= len(tokens):
            continue
        left, right = _neighbour(tokens, first - 1), _neighbour(tokens, last)
        kind = "day" if date[0] == "-" else "date"
        yield date, kind, first, left, right


def _read_again(token: str, kind: str) -> list[tuple[str, str]]:
    """What else a token may be or hold, and its shape.

    The name in an e-mail address is often an id, and so is what a web address ends
    with. Codes of capitals and digits may have no digit by chance.
    """
    if kind == "A":
        return [(token, "A9")] if len(token) >= _LEAST_CODE else []
    part = token.partition("@")[0] if kind == "email" else token.rpartition("/")[2]
    return [(part, shape(part))] if part else []


def _spaced(text: str) -> str:
    """The text with spaces between what are tokens of their own."""
    if not text.isascii():
        text = _UNSPACED_RUN.sub(r" \g<0> ", text)
    if "?" in text or "!" in text:
        text = _GLUED.sub(r"\g<0> ", text)
    return text


_Read: TypeAlias = "tuple[str, str, str, int]"


class _Tokens(dict[str, _Read]):
    """Tokens that were read before, which most are: looked up without a call."""

    def __missing__(self, raw: str) -> _Read:
        read = _read_new_token(raw)
        if len(raw) <= _MAX_KEPT:
            if len(self) >= _MAX_TOKENS_KEPT:
                self.clear()
            self[raw] = read
        return read


def _read_new_token(raw: str) -> _Read:
    """A token without what surrounds it, its shape, what its neighbours see, and hints.

    Plain words have no shape.
    """
    hints = hint_at_date(raw) if len(raw) <= MAX_VALUE_CHARACTERS else 0
    token = raw.strip(_AROUND)
    if raw[-1] in _SENTENCE_END:
        seen = "^"
    else:
        seen = token.casefold()[:12] if token.isalpha() else shape(token[:64])
    if not token or (token.islower() and token.isalpha()):
        return token, "", seen, hints
    if len(token) <= MAX_VALUE_CHARACTERS:
        token = _without_possessive(token)
    kind = shape(token) if len(token) <= MAX_VALUE_CHARACTERS else "x"
    return token, kind, seen, hints


_read_token = _Tokens().__getitem__


def _without_possessive(token: str) -> str:
    return token[:-2] if token.endswith(("'s", "\u2019s")) else token


def _neighbour(tokens: list[str], i: int) -> str:
    """The word at `i` in lower case, a shape, or `^` and `$` at the ends of sentences."""
    if i < 0:
        return "^"
    if i >= len(tokens):
        return "$"
    return _read_token(tokens[i])[2]


def _end_phrase(run: list[int], tokens: list[str], found: list[Span]) -> None:
    """Note a run of capitalised words as a phrase, with its parts, and begin anew."""
    while run and tokens[run[-1]] in _CONNECTING:
        run.pop()
    if len(run) > 1:
        parts = [("phrase", run[:])]
        if run[0] == 0 or tokens[run[0] - 1][-1] in _SENTENCE_END:
            # A sentence's first word is capitalised anyway: it may be no part of it.
            parts = [("opening", run[:]), ("phrase", run[1:])]
        pieces = _without_connecting(run, tokens)
        if len(pieces) > 1:
            parts += [("part", piece) for piece in pieces]
        for kind, part in parts:
            if len(part) > 1 and tokens[part[0]] not in _CONNECTING:
                text = " ".join([tokens[i] for i in part]).strip(_AROUND)
                left = _neighbour(tokens, part[0] - 1)
                right = _neighbour(tokens, part[-1] + 1)
                text = _without_possessive(text[:MAX_VALUE_CHARACTERS])
                found.append((text, kind, part[0], left, right))
    run.clear()


def _note_place(run: list[int], tokens: list[str], found: list[Span]) -> None:
    """Note a name that goes on behind a comma, such as a town and its country."""
    i = run[-1] + 1
    if tokens[run[-1]][-1] != "," or i == len(tokens) or not tokens[i][0].isupper():
        return
    end = i + 1
    while end < min(len(tokens), i + 3) and tokens[end - 1][-1] not in _ENDING:
        if not tokens[end][0].isupper():
            break
        end += 1
    text = " ".join(tokens[run[0] : end]).strip(_AROUND)[:MAX_VALUE_CHARACTERS]
    left, right = _neighbour(tokens, run[0] - 1), _neighbour(tokens, end)
    found.append((_without_possessive(text), "place", run[0], left, right))


def _without_connecting(run: list[int], tokens: list[str]) -> list[list[int]]:
    pieces: list[list[int]] = [[]]
    for i in run:
        if tokens[i] in _CONNECTING:
            pieces.append([])
        else:
            pieces[-1].append(i)
    return [piece for piece in pieces if piece]
