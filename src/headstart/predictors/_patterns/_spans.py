"""Pieces of a text that could be arguments: tokens by shape, phrases, quotations."""

from __future__ import annotations

import functools
import re
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, TypeAlias

from ._dates import DIGIT, NAME, SLASH, find_dates, hint_at_date
from ._phrases import CONNECTING, is_function_word, read_phrase

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
_ENDING = _SENTENCE_END | frozenset(',;)]}"\u201d`\uff0c\u3001')
_OPENING = frozenset("([{\"'\u201c\u2018`")
# Quotation marks, brackets, and what ends sentences and their parts in any script.
_AROUND = (
    "([{<\"'\u201c\u201d\u2018\u2019\u00ab\u00bb*`~|)]}>"
    ".,;:!?\u2026\u3002\uff0c\u3001\uff01\uff1f\u060c\u061f\u0964"
)
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.\w+$")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://\S+$", re.IGNORECASE)
_TOKEN = re.compile(r"\S+")
_PART = re.compile(r"[^\W_]+|[\W_]+")


Span: TypeAlias = "tuple[str, str, int, str, str]"
"""A piece of a text: the piece; its kind, which is its shape, `quoted`, `place`, `date`,
`day` for a date without its year, `numbered` for a phrase and a number behind it,
`inner` for a phrase within a quotation, or a way to read a phrase (see `_phrases`); the number of its first token, -1 where it has none; the word before it in lower case, or the shape of what is no word; and
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
    quoted = _quoted(text)
    phrases = _Phrases(tokens, found, quoted)
    for i, (token, kind, _, _) in enumerate(read):
        if not kind:
            phrases.pass_word(i, token)
            continue
        if len(token) > MAX_VALUE_CHARACTERS:
            continue
        left = read[i - 1][2] if i else "^"
        right = read[i + 1][2] if i < last else "$"
        found.append((token, kind, i, left, right))
        if kind in _READ_TWICE:
            found += [(*each, i, left, right) for each in _read_again(token, kind)]
        phrases.take(i, token, kind)
    phrases.end()
    hints = [each[3] for each in read]
    slashed = max(hints, default=0) >= SLASH
    named = _names_month(hints)
    if named or slashed or not text.isascii():
        found += _dated(text, tokens, named=named, slashed=slashed)
    found += [(each, "quoted", -1, "", "") for each in quoted]
    return found, Sentences(tokens)


def _quoted(text: str) -> list[str]:
    """What is quoted, without the sentence's own punctuation."""
    if not _QUOTE.search(text):
        return []
    found: list[str] = []
    for match in _QUOTED.finditer(text):
        quotation = match[match.lastindex or 0]
        bare = quotation.rstrip(".,;:")
        found.append(bare or quotation)
        if bare[-1:] in ("?", "!"):  # that may belong to either
            found.append(bare[:-1])
    return found


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


class _Phrases:
    """Notes phrases: runs of capitalised words, with connecting words between them.

    Args:
        tokens: The text's tokens.
        found: Where to note them.
        quoted: What the text quotes.
    """

    def __init__(self, tokens: list[str], found: list[Span], quoted: list[str]) -> None:
        self._tokens = tokens
        self._found = found
        self._run: list[int] = []
        self._quoted = "\n".join(quoted)
        self._quotations = frozenset(quoted)

    def pass_word(self, i: int, word: str) -> None:
        """Go on behind a plain word."""
        if self._run:
            if word in CONNECTING:
                self._run.append(i)
            else:
                self.end()

    def take(self, i: int, token: str, kind: str) -> None:
        """Go on behind a token that stands out."""
        run, raw = self._run, self._tokens[i]
        if run and raw[0] in _OPENING:
            self.end()
        if kind in ("Aa", "A") or (run and token[0].isupper()):
            run.append(i)
            if raw[-1] in _ENDING and not (raw[-1] == "." and len(token) == 1):
                self._note_place()
                self.end()
        elif run:
            if kind[0] == "9" and run[-1] == i - 1:
                self._note_numbered(i)
            self.end()

    def end(self) -> None:
        """Note the run in each way that it may be read, and begin anew."""
        run, tokens = self._run, self._tokens
        while run and tokens[run[-1]] in CONNECTING:
            run.pop()
        if not run:
            return
        begins = run[0] == 0 or tokens[run[0] - 1][-1] in _SENTENCE_END
        for kind, part in read_phrase(run, tokens, begins=begins):
            if len(part) > 1 or not is_function_word(tokens[part[0]]):
                self._note(kind, part[0], part[-1], [tokens[i] for i in part])
        run.clear()

    def _note_numbered(self, i: int) -> None:
        """Note a name that ends with a number, that at `i`."""
        first = self._run[0]
        if len(self._run) > 1 and is_function_word(self._tokens[first]):
            first = self._run[1]
        self._note("numbered", first, i, self._tokens[first : i + 1])

    def _note_place(self) -> None:
        """Note a name that goes on behind a comma, such as a town and its country."""
        run, tokens = self._run, self._tokens
        i = run[-1] + 1
        if tokens[run[-1]][-1] != "," or i == len(tokens) or not tokens[i][0].isupper():
            return
        end = i + 1
        while end < min(len(tokens), i + 3) and tokens[end - 1][-1] not in _ENDING:
            if not tokens[end][0].isupper():
                break
            end += 1
        self._note("place", run[0], end - 1, tokens[run[0] : end])

    def _note(self, kind: str, first: int, last: int, words: list[str]) -> None:
        text = " ".join(words).strip(_AROUND)[:MAX_VALUE_CHARACTERS]
        text = _without_possessive(text)
        if text in self._quoted and text not in self._quotations:
            kind = "inner"
        left = _neighbour(self._tokens, first - 1)
        right = _neighbour(self._tokens, last + 1)
        self._found.append((text, kind, first, left, right))
