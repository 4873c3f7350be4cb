"""Phrases: runs of capitalised words, and the ways to read one.

Rules of this file:

1. Each way to read a run has a kind of its own, so that what is learned of one does not
   count for the others: `phrase` for what most probably is one name; `led` with the
   function word that begins the sentence; `rest` without another first word of a
   sentence, which is capitalised anyway; `joined` for what a preposition or an "and"
   joins; `part` for what stands between two words of one name.
2. Function words are those of English. In other languages more readings are left, and
   which of them is meant is learned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WITHIN = frozenset(
    ("of", "the", "de", "du", "la", "&", "von", "van", "der", "del", "di", "da", "le")
)
"""Words that stand within names."""
JOINING = frozenset(
    ("and", "in", "for", "to", "on", "at", "by", "with", "from", "a", "an")
)
"""Words that stand within titles, but between two names as well."""
CONNECTING = WITHIN | JOINING
_FUNCTION_WORDS = (
    "a an the this that these those what which who whom whose when where why how "
    "is are was were am be been do does did has have had can could will would shall "
    "should may might must and or but nor if as at by for from in into of on to with "
    "about after before during since until while because so than then there here "
    "it its he his she her they their them we our us i i'm i'd i'll i've you your "
    "my me mine not no yes both either neither each every all any some it's that's "
    "please also however although though let let's"
)
_FUNCTION = frozenset(_FUNCTION_WORDS.split())
"""Words that name nothing: where one begins a sentence, it is no part of a name, or the
article of a title."""

Reading: TypeAlias = "tuple[str, Sequence[int]]"
"""A kind, and the tokens."""


def is_function_word(token: str) -> bool:
    """Whether a word names nothing by itself."""
    return token.casefold() in _FUNCTION


def read_phrase(
    run: list[int], tokens: Sequence[str], *, begins: bool
) -> Iterator[Reading]:
    """The ways to read a run of capitalised and connecting words.

    Args:
        run: The numbers of its tokens; the last is not a connecting word.
        tokens: All tokens.
        begins: Whether a sentence begins with it.
    """
    first = run[0]
    if begins:
        if is_function_word(tokens[first]):
            if len(run) > 1:
                yield "led", run
            run = run[1:]
        elif len(run) > 1:
            if tokens[run[1]] not in CONNECTING:
                yield "rest", run[1:]
        else:
            return  # most words may begin a sentence
    pieces = _split(run, tokens, JOINING)
    if len(pieces) > 1:
        yield "joined", run
    for piece in pieces:
        yield "phrase", piece
        parts = _split(piece, tokens, WITHIN)
        if len(parts) > 1:
            for part in parts:
                yield "part", part


def _split(
    run: list[int], tokens: Sequence[str], between: frozenset[str]
) -> list[list[int]]:
    """A run without words between its pieces, nor connecting words at their ends."""
    pieces: list[list[int]] = [[]]
    for i in run:
        if tokens[i] in between:
            pieces.append([])
        elif pieces[-1] or tokens[i] not in CONNECTING:
            pieces[-1].append(i)
    for piece in pieces:
        while piece and tokens[piece[-1]] in CONNECTING:
            piece.pop()
    return [piece for piece in pieces if piece]
