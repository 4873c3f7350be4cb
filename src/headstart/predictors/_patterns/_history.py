"""A conversation as patterns see it: values by source and by text, calls, symbols.

Rules of this file:

1. A history only grows, and everything in it carries the position of its message: what
   was known at an earlier moment is what stands before that position.
2. Histories are found again by their messages, so nothing is read twice, and a
   conversation that branches off becomes a history of its own.
3. Everything is bounded: items a history, histories, readings.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from operator import attrgetter
from typing import TYPE_CHECKING, Any
from zlib import crc32

from headstart._calls import canonical_arguments, decode_arguments

from ._alike import generalise
from ._spans import READ_CHARACTERS, stems
from ._values import NO_KIN, Item, Reading, is_failure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headstart._calls import ToolCall
    from headstart._messages import Message

MAX_ITEMS = 20_000
"""Items of one history; beyond, the older half is forgotten."""
MAX_HISTORIES = 32
MAX_CHARACTERS = 40_000_000
"""Of all conversations together; beyond, the oldest are let go."""
MAX_READINGS = 512
MAX_KEPT_CHARACTERS = 20_000
"""Of a longer text the reading is not kept for other conversations."""
MAX_ARGUMENT_CHARACTERS = 100_000
_MAX_NAMED = 8_192
"""Words of which what they are behind a prefix is kept."""
_SHORT_CHARACTERS = 2_000
"""Longer arguments are decoded each time."""

USER, PLAIN, FAILED = "user", "plain", "failed"
"""Symbols beside the tools' names. A tool's name in a context never equals one of
these, as it is written with a `:` before it."""

CallKey = tuple[str, str]
_position = attrgetter("at")


class PastCall:
    """A call that the model asked for.

    Attributes:
        at: The position of its message.
        tool: The tool's name.
        key: The tool and the canonical arguments.
        arguments: The decoded arguments; empty where they are no object.
        failed: Whether its result, if there is one, looks like an error.
        answered_at: The position of its result; -1 while there is none.
    """

    __slots__ = ("answered_at", "arguments", "at", "failed", "key", "tool")

    def __init__(self, at: int, call: ToolCall) -> None:
        self.at = at
        self.tool = call.name
        self.key = call_key(call)
        self.arguments = read_arguments(call)
        self.failed = False
        self.answered_at = -1


def call_key(call: ToolCall) -> CallKey:
    """What equal calls have in common."""
    return call.name, _read_call(call.arguments)[0]


def read_arguments(call: ToolCall) -> dict[str, Any]:
    """A call's arguments; empty where they are no object, or too long to look at."""
    return _read_call(call.arguments)[1]


def _read_call(text: str) -> tuple[str, dict[str, Any]]:
    """A call's arguments: what equal ones have in common, and decoded."""
    if len(text) > MAX_ARGUMENT_CHARACTERS:
        return f"\0{hash(text)}", {}
    return _read_short(text) if len(text) <= _SHORT_CHARACTERS else _read_anew(text)


def _read_anew(text: str) -> tuple[str, dict[str, Any]]:
    return canonical_arguments(text) or f"\0{text}", decode_arguments(text) or {}


# The same call is looked at when it is asked for, at each moment that is learned from,
# and when its conversation goes on.
_read_short = functools.lru_cache(maxsize=256)(_read_anew)


class _Named(dict[str, str]):
    """Words behind a prefix: the same texts each time, which are found faster."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def __missing__(self, word: str) -> str:
        if len(self) >= _MAX_NAMED:
            self.clear()
        named = self[word] = f"{self._prefix}:{word}"
        return named


_named = functools.lru_cache(maxsize=16)(_Named)


class History:
    """One conversation, message by message.

    The calls in it are noted at once. Texts and results are read when something in them
    is looked for first, as that is a great part of the cost.
    """

    def __init__(self, readings: Readings) -> None:
        self.messages: list[Message] = []
        self.by_source: dict[str, list[tuple[int, Sequence[Item]]]] = {}
        self.alike: dict[
            str, dict[str, None]
        ] = {}  # sources by what they have in common
        self.by_text: dict[str, list[tuple[int, Item]]] = {}
        self.calls: list[PastCall] = []
        self.symbols: list[tuple[int, str]] = []
        self.users: list[int] = []
        self.said: list[int] = []
        self.words: dict[int, frozenset[str]] = {}
        self.user_kinds: dict[int, set[str]] = {}
        self.texts: dict[int, set[str]] = {}
        self.years: dict[str, int] = {}  # where each stands first, in a full date
        self.learned = -1  # the position of the newest answer that was learned
        self._said_by: dict[tuple[str, int], list[str]] = {}
        self._open: dict[str | None, PastCall] = {}
        self._askers: dict[int, str] = {}
        self._values_read = 0  # messages whose values were read
        self.readings = readings
        self._items = 0
        self.characters = 0

    @property
    def topic(self) -> int:
        """What runs about the same thing have in common: how the user began."""
        if not self.users:
            return 0
        first = self.messages[self.users[0]].content
        return crc32(first[:2_000].encode("utf-8", "replace"))

    def extend(self, messages: Sequence[Message]) -> None:
        """Note the messages that come next, and the calls in them."""
        for message in messages:
            at = len(self.messages)
            self.messages.append(message)
            self.characters += len(message.content)
            if message.role == "user":
                self.users.append(at)
                self.symbols.append((at, USER))
            elif message.role == "assistant":
                self._note_answer(at, message)
            elif message.role == "tool":
                self._note_result(at, message)

    def read(self) -> History:
        """Read the values of messages that were only noted so far; returns itself."""
        if self._values_read < len(self.messages):
            self._read_values()
        return self

    def _read_values(self) -> None:
        for at in range(self._values_read, len(self.messages)):
            message = self.messages[at]
            if message.role == "user":
                self._add_user(at, message)
            elif message.role == "assistant":
                self._add_answer(at, message)
            elif message.role == "tool":
                name = self._askers.pop(at)
                self._index(at, self.readings.result(name, message.content))
            else:
                self._index(at, self.readings.text("system", message.content))
        self._values_read = len(self.messages)

    def said_by(self, prefix: str, at: int) -> list[str]:
        """The words of the message at `at`, each behind a prefix; none for -1."""
        known = self._said_by.get((prefix, at))
        if known is None:
            # What is learned must not depend on the order of a set: every process has
            # another.
            words = sorted(self.read().words.get(at, ()))
            known = [*map(_named(prefix).__getitem__, words)]
            self._said_by[prefix, at] = known
        return known

    def _add_user(self, at: int, message: Message) -> None:
        self.words[at] = self.readings.words(message.content)
        items = self.readings.text("user", message.content)
        self.user_kinds[at] = {item.source for item in items}
        self.texts[at] = {item.folded for item in items}
        self._index(at, items)

    def _note_answer(self, at: int, message: Message) -> None:
        if message.content:
            self.said.append(at)
        names: dict[str, None] = {}
        for call in message.tool_calls:
            past = PastCall(at, call)
            self.calls.append(past)
            self._open[call.id] = past
            names[f":{call.name}"] = None
        self.symbols.append((at, "+".join(names) or PLAIN))

    def _add_answer(self, at: int, message: Message) -> None:
        if message.content:
            self.words[at] = self.readings.words(message.content)
            items = self.readings.text("said", message.content)
            self.texts[at] = {item.folded for item in items}
            self._index(at, items)
        reading = Reading()
        first = bisect_left(self.calls, at, key=_position)
        for past in self.calls[first : first + len(message.tool_calls)]:
            group = reading.new_group()
            for name, value in past.arguments.items():
                source = f"{past.tool}<{name}"
                reading.add_json(source, value, kin=NO_KIN, group=group)
        self._index(at, reading.items)

    def _note_result(self, at: int, message: Message) -> None:
        past = self._open.pop(message.tool_call_id, None)
        name = past.tool if past is not None else message.name or ""
        failed = is_failure(message.content)
        if past is not None:
            past.failed = failed
            past.answered_at = at
        if failed:
            self.symbols.append((at, FAILED))
        self._askers[at] = name

    def _index(self, at: int, items: Sequence[Item]) -> None:
        segments: dict[str, list[Item]] = {}
        by_text = self.by_text
        for item in items:
            segment = segments.get(item.source)
            if segment is None:
                segment = segments[item.source] = []
            segment.append(item)
            places = by_text.get(item.folded)
            if places is None:
                by_text[item.folded] = [(at, item)]
            else:
                places.append((at, item))
            if len(item.text) == 10 and item.text[4] == "-" == item.text[7]:
                self.years.setdefault(item.text[:4], at)
        for source, segment in segments.items():
            places = self.by_source.get(source)
            if places is None:
                places = self.by_source[source] = []
                alike = self.alike.setdefault(generalise(source), {})
                alike[source] = None
            places.append((at, segment))
        self._items += len(items)
        if self._items > MAX_ITEMS:
            self._forget()

    def _forget(self) -> None:
        """Forget the older half of the items."""
        positions = sorted(at for places in self.by_text.values() for at, _ in places)
        oldest = positions[len(positions) // 2]
        for index in (self.by_source, self.by_text):
            for key, places in list(index.items()):
                kept = [place for place in places if place[0] >= oldest]
                if kept:
                    index[key] = kept  # type: ignore[assignment] # of the same kind
                else:
                    del index[key]
        self._items = sum(map(len, self.by_text.values()))


class Readings:
    """What was read of texts and results, for the conversations that share them."""

    def __init__(self) -> None:
        self._items: dict[tuple[str, str], Sequence[Item]] = {}
        self._words: dict[str, frozenset[str]] = {}

    def text(self, source: str, content: str) -> Sequence[Item]:
        """The items of what somebody said."""
        key = source, content
        items = self._find(key)
        if items is None:
            reading = Reading()
            reading.add_text(source, content)
            items = self._keep(key, reading.items)
        return items

    def result(self, tool: str, content: str) -> Sequence[Item]:
        """The items of a result."""
        key = f"{tool}>", content
        items = self._find(key)
        if items is None:
            reading = Reading()
            reading.add_result(tool, content)
            items = self._keep(key, reading.items)
        return items

    def words(self, content: str) -> frozenset[str]:
        """The words of what somebody said."""
        is_kept = len(content) <= MAX_KEPT_CHARACTERS
        words = self._words.get(content) if is_kept else None
        if words is None:
            words = stems(content[:READ_CHARACTERS])
            if len(self._words) >= MAX_READINGS:
                self._words.clear()
            if is_kept:
                self._words[content] = words
        return words

    def _find(self, key: tuple[str, str]) -> Sequence[Item] | None:
        # To look a text of megabytes up takes milliseconds.
        return self._items.get(key) if len(key[1]) <= MAX_KEPT_CHARACTERS else None

    def _keep(self, key: tuple[str, str], items: Sequence[Item]) -> Sequence[Item]:
        if len(self._items) >= MAX_READINGS:
            self._items.clear()
        if len(key[1]) <= MAX_KEPT_CHARACTERS:
            self._items[key] = items
        return items


class Histories:
    """The conversations seen most recently."""

    def __init__(self) -> None:
        self._histories: list[History] = []
        self._readings = Readings()

    def find(
        self, messages: Sequence[Message], *, learning: bool = False
    ) -> tuple[History, list[History]]:
        """The history that `messages` are the beginning of, or all of.

        Args:
            messages: The conversation.
            learning: Whether an answer to just these messages is to be learned: a
                history whose answer there was learned already is another run's.

        Returns:
            The history, and those that had to make room for it.
        """
        known = self._histories
        for position in range(len(known) - 1, -1, -1):
            history = known[position]
            if learning and history.learned >= len(messages):
                continue
            if _begin_alike(history.messages, messages):
                del known[position]
                break
        else:
            history = History(self._readings)
        known.append(history)
        history.extend(messages[len(history.messages) :])
        gone: list[History] = []
        characters = sum([each.characters for each in known])
        while len(known) > 1 and (
            len(known) > MAX_HISTORIES or characters > MAX_CHARACTERS
        ):
            gone.append(known.pop(0))
            characters -= gone[-1].characters
        return history, gone

    def drain(self) -> list[History]:
        """Forget all of them."""
        drained, self._histories = self._histories, []
        return drained


def _begin_alike(left: list[Message], right: Sequence[Message]) -> bool:
    shared = min(len(left), len(right))
    if not shared:
        return not (left or right)
    # The newest messages differ first. That all others are the same objects is the usual
    # case, which lists compare fast.
    return left[shared - 1] == right[shared - 1] and (
        left[:shared] == list(right[:shared])
    )
