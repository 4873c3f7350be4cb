"""The two controls: a predictor that knows the recording, and one that only guesses."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from headstart._calls import ToolCall, decode_arguments
from headstart._tools import Effect, Tool
from headstart.predictors import Conversation, Prediction, ResultPrediction

from ._recorded import same_but_for_ids

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from headstart._messages import Message

    from ._traces import RecordedCall, RecordedRun

_NOWHERE = "\0"

LOOKAHEAD = 32
"""So many calls are proposed at a time: a session keeps twice as many that have ended."""


@dataclass(frozen=True, slots=True, eq=False)
class _Expected:
    """A call of the recording, and the messages that its arguments stand in."""

    recorded: RecordedCall
    position: int
    answer: int
    is_read: bool
    beside_write: bool
    among_many: bool
    sources: tuple[frozenset[int], ...]

    def prediction(self, *, is_next: bool) -> Prediction:
        """The call as a prediction: certain to come, in the next answer or later."""
        call = self.recorded.call
        return Prediction(
            tool=call.name,
            arguments=call.arguments,
            probability=1.0 if is_next else 0.0,
            eventually=1.0,
            origin="oracle",
        )

    def is_known(self, messages: Iterable[int]) -> bool:
        """Whether every argument stands in one of these messages."""
        return not any(source.isdisjoint(messages) for source in self.sources)


class OraclePredictor:
    """Expects what the recording says, and nothing else: the bound on prediction.

    It proposes every read that comes before the next write, at the first moment at
    which each argument stands word for word in the conversation, and states the result
    of every write that the model asks for, or is about to ask for. It never proposes what a write would make
    stale: every write is taken to change everything, and to be concurrent with the
    other calls of its turn.

    Args:
        run: The recorded run.
        tools: The tools by name: their effects say what reads and what writes.
    """

    def __init__(self, run: RecordedRun, tools: Mapping[str, Tool]) -> None:
        self._run = run
        self._expected = tuple(_expect(run, tools))
        self._by_id = {item.recorded.call.id: item for item in self._expected}

    async def predict(self, conversation: Conversation, /) -> list[Prediction]:
        """The reads that are known by now and may run by now, the next ones first."""
        known = self._place(conversation.messages)
        if known is None:
            return []
        following = self._following(conversation.messages)
        turn = self._run.turns.get(following)
        if turn is None or turn.response.text:
            following = -1  # the model will say something first
        predictions: list[Prediction] = []
        for item in self._expected:
            if item.position in known:
                if not item.is_read and item.answer not in known:
                    return []  # a write that has not ended
                continue
            if len(predictions) == LOOKAHEAD:
                break
            if item.beside_write:
                if item.position == following and not item.among_many:
                    predictions.append(item.prediction(is_next=True))
                break
            if item.is_known(known):
                is_next = item.position == following
                predictions.append(item.prediction(is_next=is_next))
        return predictions

    @staticmethod
    def _following(messages: Sequence[Message]) -> int:
        """Where in the conversation the model's next answer stands."""
        for position in range(len(messages) - 1, -1, -1):
            if messages[position].role == "assistant":
                calls = len(messages[position].tool_calls)
                return max(len(messages), position + 1 + calls)
            if messages[position].role != "tool":
                break
        return len(messages)

    def predict_results(
        self, call: ToolCall, conversation: Conversation, /
    ) -> list[ResultPrediction]:
        """The recorded result of a write, if the model goes on after its turn."""
        item = self._by_id.get(call.id) or self._find(call, conversation)
        if item is None or item.is_read:
            return []
        calls = len(self._run.turns[item.position].calls)
        if item.position + 1 + calls not in self._run.turns:
            return []
        return [ResultPrediction(result=item.recorded.result, probability=1.0)]

    def _find(self, call: ToolCall, conversation: Conversation) -> _Expected | None:
        """The write of the next answer, where it has no identifier yet."""
        following = self._following(conversation.messages)
        for item in self._expected:
            recorded = item.recorded.call
            if item.position == following and (recorded.name, recorded.arguments) == (
                call.name,
                call.arguments,
            ):
                return item
        return None

    def _place(self, messages: Sequence[Message]) -> set[int] | None:
        """Which messages of the recording are known; `None` outside the recording."""
        count = len(messages)
        while count and messages[count - 1].role == "tool":
            count -= 1
        recorded = self._run.messages
        if not same_but_for_ids(messages[:count], recorded):
            return None
        known = set(range(count))
        for offset, message in enumerate(messages[count:], count):
            item = self._by_id.get(message.tool_call_id or "")
            known.add(offset if item is None else item.answer)
        return known


def _expect(run: RecordedRun, tools: Mapping[str, Tool]) -> Iterator[_Expected]:
    texts = [_text(message) for message in run.messages]
    for turn in run.turns.values():
        before = texts[: turn.position]
        beside_write = any(
            tools[recorded.call.name].effect is not Effect.READ
            for recorded in turn.calls
        )
        for answer, recorded in enumerate(turn.calls, turn.position + 1):
            is_read = tools[recorded.call.name].effect is Effect.READ
            sources: tuple[frozenset[int], ...] = ()
            if is_read:
                leaves = _leaves(recorded.call.arguments)
                sources = tuple(_sources(leaf, before) for leaf in leaves)
            yield _Expected(
                recorded=recorded,
                position=turn.position,
                answer=answer,
                is_read=is_read,
                beside_write=beside_write,
                among_many=len(turn.calls) > 1,
                sources=sources,
            )


def _text(message: Message) -> str:
    return "\n".join((message.content, *(c.arguments for c in message.tool_calls)))


def _leaves(arguments: str) -> list[str]:
    """What has to be found for the arguments to be known: each value, as written.

    True, false, null and empty text need not be found. Arguments that match nothing
    have a value that stands nowhere.
    """
    if decode_arguments(arguments) is None:
        return [_NOWHERE]
    if not arguments or arguments.isspace():
        return []
    written = json.loads(arguments, parse_int=str, parse_float=str, parse_constant=str)
    return sorted(set(_strings(written)))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        if value:
            yield value
    elif isinstance(value, dict):
        for item in cast("dict[str, object]", value).values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in cast("list[object]", value):
            yield from _strings(item)


def _sources(leaf: str, texts: Sequence[str]) -> frozenset[int]:
    """The messages in which `leaf` stands word for word, not inside a longer word."""
    pattern: re.Pattern[str] | None = None
    found: list[int] = []
    for index, text in enumerate(texts):
        if leaf not in text:
            continue
        if pattern is None:
            before = r"(?<!\w)" if leaf[0].isalnum() else ""
            after = r"(?!\w)" if leaf[-1].isalnum() else ""
            pattern = re.compile(before + re.escape(leaf) + after)
        if pattern.search(text):
            found.append(index)
    return frozenset(found)


class RandomPredictor:
    """Expects some call of the same file, whatever the conversation: the other bound.

    It proposes one call a model request, the same one whenever it is asked about the
    same request.

    Args:
        pool: The calls to choose from.
        seed: Of the choice, together with the run.
        run: The recorded run.
    """

    def __init__(
        self, pool: Sequence[ToolCall], *, seed: int, run: RecordedRun
    ) -> None:
        self._pool = pool
        self._key = (seed, run.id, "random")

    async def predict(self, conversation: Conversation, /) -> list[Prediction]:
        """The call that belongs to this length of the conversation."""
        messages = conversation.messages
        if not self._pool or (messages and messages[-1].role == "assistant"):
            return []
        source = random.Random(repr((*self._key, len(messages))))  # noqa: S311
        call = source.choice(self._pool)
        return [Prediction(tool=call.name, arguments=call.arguments, origin="random")]
