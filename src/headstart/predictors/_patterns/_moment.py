"""One moment of a conversation: what was known when a prediction is made."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Literal, cast

from headstart._tools import Effect

from ._alike import find_alike, is_general
from ._contexts import collapse
from ._history import USER, History
from ._once import once
from ._rows import next_row
from ._spans import stems

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headstart._calls import ToolCall
    from headstart._tools import Tool

    from ._arguments import Choice
    from ._history import CallKey, PastCall
    from ._options import Piece
    from ._ranking import Candidate
    from ._rows import Place
    from ._values import Item, Kin

Stage = Literal["asked", "calling", "idle", "writing"]
"""The model has been asked; its calls run; the user is to speak; the answer's text is
being written."""

_READ = Effect.READ
_NO_WORDS: frozenset[str] = frozenset()
_NO_TEXTS: set[str] = set()
WRITING = "writing"
"""What stands in the text that the model is writing has sources of this name."""
MAX_SEGMENTS = 6
"""Messages that are looked at for one source, the newest ones."""
_CALLS = 100
_RECENT_CALLS = 32
_NESTED = 4
"""Lists and objects within each other in which values of arguments are found."""
_SYMBOLS = 24
"""Symbols that are looked at, before repeats are collapsed."""


class Moment:
    """What stands in a history before `length`, and the text of the answer so far.

    Args:
        history: The conversation, or more than it.
        length: How many of its messages are known.
        partial: The text of the answer that the model is writing.
        tools: The agent's tools by name.

    Attributes:
        mode: What the names of weights end with that hold at such moments only.
        now: What a mention by the user is coded as.
        pieces: What is known of things that stand in the conversation.
        beside: By object: its values' words, and how what was said last mentions them.
        shortlists: By kind of place and message: which of many values are looked at.
    """

    def __init__(
        self,
        history: History,
        length: int,
        *,
        partial: str = "",
        tools: Mapping[str, Tool],
    ) -> None:
        self.history = history
        self.length = length
        self.tools = tools
        self.partial = partial
        self.last_user = _newest(history.users, length)
        self.last_said = _newest(history.said, length)
        self.stage = self._find_stage()
        # What holds while the model writes says little about the time before.
        self.mode = "!" if partial else ""
        self.idle = self.stage == "idle"
        self.partial_words = history.readings.words(partial) if partial else _NO_WORDS
        self.choices: dict[str, Choice] = {}
        self.candidates: list[Candidate] | None = None
        self.probabilities: dict[str, float] | None = None
        self.stated: dict[str, float] = {}
        self.named: Sequence[str] | None = None
        self.features: list[str] | None = None
        self.now = "U" if self.asked_now else "O"
        self.pieces: dict[int, Piece] = {}
        self.beside: dict[int, tuple[Kin, str]] = {}
        self.shortlists: dict[tuple[str, int], Sequence[Item]] = {}
        self._segments: dict[str, Sequence[tuple[int, Sequence[Item]]]] = {}
        self._rows: dict[str, Place] = {}
        self._calls_of: dict[str, list[PastCall]] = {}

    def matches(
        self,
        history: History,
        length: int,
        tools: Mapping[str, Tool],
        partial: str,
    ) -> bool:
        """Whether this is the moment that these describe."""
        return (
            self.history is history
            and self.length == length
            and self.tools is tools
            and self.partial == partial
        )

    def before(self) -> Moment:
        """The moment before the newest message."""
        return Moment(self.history, self.length - 1, tools=self.tools)

    def while_writing(self, partial: str) -> Moment:
        """This moment, when the model has written a part of its answer."""
        return Moment(self.history, self.length, partial=partial, tools=self.tools)

    def _find_stage(self) -> Stage:
        if self.partial:
            return "writing"
        if not self.length:
            return "asked"
        newest = self.history.messages[self.length - 1]
        if newest.role == "assistant":
            return "calling" if newest.tool_calls else "idle"
        if newest.role == "tool" and self.calls:
            at = self.calls[-1].at
            for call in reversed(self.calls):
                if call.at < at:
                    break
                if not 0 <= call.answered_at < self.length:
                    return "calling"
        return "asked"

    @once
    def user_words(self) -> frozenset[str]:
        """The words of the user's newest message, if it still counts."""
        if self.idle:
            return _NO_WORDS
        return self.history.read().words.get(self.last_user, _NO_WORDS)

    @once
    def said_words(self) -> frozenset[str]:
        """The words of what the model said last."""
        return self.history.read().words.get(self.last_said, _NO_WORDS)

    @once
    def user_texts(self) -> set[str]:
        """The values in the user's newest message, if it still counts."""
        if self.idle:
            return _NO_TEXTS
        return self.history.read().texts.get(self.last_user, _NO_TEXTS)

    @once
    def said_texts(self) -> set[str]:
        """The values in what the model said last."""
        return self.history.read().texts.get(self.last_said, _NO_TEXTS)

    @once
    def symbols(self) -> list[str]:
        """The newest symbols, repeats collapsed; the user's next message is one."""
        all_symbols = self.history.symbols
        end = len(all_symbols)
        while end and all_symbols[end - 1][0] >= self.length:
            end -= 1
        newest = [symbol for _, symbol in all_symbols[max(0, end - _SYMBOLS) : end]]
        if self.idle:
            newest.append(USER)
        return collapse(newest)

    @once
    def calls(self) -> list[PastCall]:
        """The calls so far, the newest ones."""
        calls = self.history.calls
        end = len(calls)
        while end and calls[end - 1].at >= self.length:
            end -= 1
        return calls[max(0, end - _CALLS) : end]

    def calls_of(self, tool: str) -> list[PastCall]:
        """The newest calls of one tool."""
        calls = self._calls_of.get(tool)
        if calls is None:
            calls = [call for call in self.calls if call.tool == tool]
            self._calls_of[tool] = calls
        return calls

    def used_as(self, tool: str, name: str) -> dict[str, int]:
        """Where each value was used last as one argument of a tool."""
        used: dict[str, int] = {}
        for call in self.calls_of(tool):
            if name in call.arguments:
                for each in scalars(call.arguments[name]):
                    used[each] = call.at
        return used

    @once
    def recent_calls(self) -> list[ToolCall]:
        """The newest calls as the model wrote them, the newest first."""
        recent: list[ToolCall] = []
        at = -1
        for call in reversed(self.calls):
            if len(recent) >= _RECENT_CALLS:
                break
            if call.at != at:
                at = call.at
                recent += reversed(self.history.messages[at].tool_calls)
        return recent

    @once
    def user_turns(self) -> int:
        """How often the user has spoken."""
        return bisect_left(self.history.users, self.length) + self.idle

    @once
    def asked_now(self) -> bool:
        """Whether the user's message is the newest."""
        return 0 <= self.last_user == self.length - 1

    @once
    def calls_since_user(self) -> int:
        """How many calls there were since the user spoke; 4 for more."""
        count = 0
        for call in reversed(self.calls):
            if call.at < self.last_user or count == 4 or self.idle:
                break
            count += 1
        return count

    @once
    def user_kinds(self) -> set[str]:
        """The shapes of what stands out in the user's newest message."""
        return self.history.read().user_kinds.get(self.last_user, set())

    @once
    def style(self) -> list[str]:
        """How the model writes in this conversation, by its newest message."""
        if self.last_said < 0:
            return ["z:silent"]
        text = self.history.messages[self.last_said].content
        head = text[:2_000]
        kind = "json" if head[:1] in ("{", "[") else "text"
        lines = min(head.count("\n"), 3)
        size = min(len(text) // 200, 4)
        marked = "*" if "**" in head else ""
        return [f"z:{kind}{marked}", f"z:{kind}{lines}", f"z:{kind}/{size}"]

    @once
    def widths(self) -> tuple[int, int]:
        """How many calls the newest turn with calls had, and the widest: 2 for more."""
        newest = widest = 0
        counts: dict[int, int] = {}
        for call in self.calls:
            newest = counts[call.at] = counts.get(call.at, 0) + 1
            widest = max(widest, newest)
        return min(newest, 2), min(widest, 2)

    @once
    def made(self) -> dict[CallKey, PastCall]:
        """The newest of equal calls, by what they have in common."""
        return {call.key: call for call in self.calls}

    @once
    def last_write(self) -> int:
        """The position of the newest call that may have changed something; -1 if none."""
        for call in reversed(self.calls):
            if not self.is_read(call.tool):
                return call.at
        return -1

    @once
    def all_words(self) -> list[str]:
        """The words that were said last, by whom, and whether something came since."""
        if self.partial:
            return [f"p:{word}" for word in sorted(self.partial_words)]
        user, said = ("w", "v") if self.asked_now or self.idle else ("x", "y")
        words = self.history.said_by(said, self.last_said)
        if self.idle:
            return words
        return [*self.history.said_by(user, self.last_user), *words]

    @once
    def asked_words(self) -> frozenset[str]:
        """The words in the arguments of the newest call."""
        if not self.calls:
            return _NO_WORDS
        values = self.calls[-1].arguments.values()
        return stems(" ".join([each for each in values if isinstance(each, str)][:8]))

    @once
    def year(self) -> str:
        """The latest year of a date in full; empty if there is none."""
        return max(
            (y for y, at in self.history.read().years.items() if at < self.length),
            default="",
        )

    @once
    def announced(self) -> Sequence[Item]:
        """What stands in the text that the model is writing."""
        return self.history.readings.text(WRITING, self.partial)

    @once
    def partial_texts(self) -> set[str]:
        """The values in the text that the model is writing."""
        return {item.folded for item in self.announced}

    def next_row(self, tool: str) -> Place:
        """The object that a loop of a tool over objects comes to next."""
        row = self._rows.get(tool)
        if row is None:
            row = self._rows[tool] = next_row(tool, self)
        return row

    def is_read(self, tool: str) -> bool:
        """Whether a tool is known to change nothing."""
        known = self.tools.get(tool)
        return known is not None and known.effect is _READ

    def newest(self, source: str) -> Sequence[tuple[int, Sequence[Item]]]:
        """The newest groups of values of one source that are looked at at all."""
        found = self._segments.get(source)
        if found is None:
            found = self._segments[source] = self.segments(source, MAX_SEGMENTS)
        return found

    def segments(self, source: str, limit: int) -> list[tuple[int, Sequence[Item]]]:
        """The newest groups of values of one source, the newest first."""
        found: list[tuple[int, Sequence[Item]]] = []
        if self.partial and source.startswith(f"{WRITING}~"):
            items = [item for item in self.announced if item.source == source]
            return [(self.length, items)] if items else []
        if is_general(source):
            return find_alike(source, self)[:limit]
        for place in reversed(self.history.read().by_source.get(source, ())):
            if place[0] < self.length:
                found.append(place)
                if len(found) == limit:
                    break
        return found

    def places(self, text: str) -> list[tuple[int, Item]]:
        """Where a value stands, in order; the case of letters does not matter."""
        places = self.history.read().by_text.get(text.casefold(), [])
        end = len(places)
        while end and places[end - 1][0] >= self.length:
            end -= 1
        known = places[:end]
        if self.partial:
            wanted = text.casefold()
            known += [
                (self.length, item) for item in self.announced if item.folded == wanted
            ]
        return known


def scalars(value: object, depth: int = 0) -> list[str]:
    """A text or number, or those in a list or an object, as text."""
    if isinstance(value, str | int | float):
        return [str(value)]
    inner: list[object] = []
    if isinstance(value, dict):
        inner = list(cast("dict[str, object]", value).values())
    elif isinstance(value, list):
        inner = cast("list[object]", value)
    found: list[str] = []
    if depth < _NESTED:
        for each in inner[:64]:
            found += scalars(each, depth + 1)
    return found[:64]


def _newest(positions: Sequence[int], length: int) -> int:
    before = bisect_left(positions, length)
    return positions[before - 1] if before else -1
