"""Tools that a result names: a search for tools, or a list of what can be done next."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from headstart._messages import Message

MAX_NAMED = 3
"""Tools that are told apart by their place in a result."""
_MAX_TOOLS = 500
_MAX_CHARACTERS = 20_000
_MAX_MESSAGES = 4
_NEAR = 200
"""Characters before a tool's name, in which the name of its server may stand."""
_PREFIX = re.compile(r"__|[/.:]")
_CODE = re.compile(r"\w[_-]\w|[a-z][A-Z]|\d")

Names = dict[str, list[tuple[str, str]]]
"""By what results call a tool: what stands before that in its name, and its name."""


def index_names(tools: Iterable[str]) -> Names:
    """What results may call each tool: its name, or the last part of it.

    A name that is a plain word does not count, as texts use it as a word.
    """
    names: Names = {}
    for number, tool in enumerate(tools):
        if number >= _MAX_TOOLS:
            break
        parts = _PREFIX.split(tool)
        short = parts[-1]
        if _CODE.search(short) and len(short) > 3:
            names.setdefault(short, []).append((parts[0] if parts[1:] else "", tool))
    return names


def find_named(messages: Sequence[Message], names: Names) -> list[str]:
    """The tools that the newest results name, in their order."""
    found: list[str] = []
    if not names:
        return found
    newest: list[Message] = []
    for message in reversed(messages[-_MAX_MESSAGES:]):
        if message.role != "tool":
            break
        newest.append(message)
    for message in reversed(newest):
        text = message.content[:_MAX_CHARACTERS]
        places: list[tuple[int, str]] = []
        for short in names:
            at = _find_word(text, short)
            if at >= 0:
                places.append((at, short))
        for at, short in sorted(places):
            tool = _choose(names[short], text[max(0, at - _NEAR) : at])
            if tool not in found:
                found.append(tool)
    return found


def _find_word(text: str, word: str) -> int:
    """Where a word stands first that is no part of another; -1 if nowhere."""
    at = text.find(word)
    while at >= 0:
        end = at + len(word)
        if not (_is_in_word(text[at - 1 : at]) or _is_in_word(text[end : end + 1])):
            return at
        at = text.find(word, end)
    return -1


def _is_in_word(character: str) -> bool:
    return character.isalnum() or (character != "" and character in "_-")


def _choose(tools: Sequence[tuple[str, str]], before: str) -> str:
    """Of tools that are called the same, that whose prefix stood last before."""
    return max(tools, key=lambda each: before.rfind(each[0]) if each[0] else -1)[1]
