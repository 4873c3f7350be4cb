"""Learned results: what a call gives, where that follows from what is known before."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from headstart._calls import ToolResult, decode_arguments
from headstart._errors import UsageError
from headstart._tools import Effect
from headstart.predictors._predictor import Conversation, Prediction, ResultPrediction
from headstart.predictors._tally import Tally, clip, ended_calls

from ._derivations import Scope
from ._documents import Document, DocumentReader
from ._record import Record

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from headstart._calls import ToolCall
    from headstart._messages import Message, ModelResponse

FORMAT, VERSION = "headstart learned results", 1
MAX_TOOLS = 512
MAX_SEARCHED = 400
"""Messages that are searched for earlier results, from the end."""
MAX_DOCUMENTS = 100
MAX_SIBLINGS = 4
MAX_ARGUMENTS = 20_000
"""Characters of the arguments of a call that is looked at."""
_FAILED = "\x00failed: "
"""How a failure is told from other results, as text."""
_PRIORS: Final = (0.1, 0.3, 0.5, 0.7)
_BOUNDS: Final = (0.3, 0.6, 0.85)


class LearnedResults:
    """States results that follow from the arguments and from earlier results.

    Learned by example, for each tool: a text with arguments in it; or an object that an
    earlier result has shown, with fields replaced by constants, by arguments, by fields
    of other objects that were read, or by sums of such. A cancelled order, say, is the
    order that was read before, with another status and the reason given. Which of
    several outcomes it is, such as a refusal, is decided by a single fact about the
    call and its object, where one tells them apart.

    What is stated is what the tool would answer to the letter, in its own way to write
    JSON, with how often such statements were right before. It is never more than a
    guess: the engine compares it with the real result before anything counts.

    A constant is used, and saved, only once it has been seen in two conversations with
    different arguments. Nothing else of what tools have returned is kept.

    It proposes no calls: `predict` gives nothing.

    Args:
        effects: The effects of the tools whose results are learned; all by default.
        min_probability: Less probable results are not stated.
    """

    def __init__(
        self,
        *,
        effects: Iterable[Effect | str] = tuple(Effect),
        min_probability: float = 0.3,
    ) -> None:
        if not 0 <= min_probability <= 1:
            msg = f"min_probability is from 0 to 1, not {min_probability!r}."
            raise UsageError(msg)
        self.effects = frozenset(
            Effect.parse(each, tool="of LearnedResults") for each in effects
        )
        self.min_probability = min_probability
        self._records: dict[str, Record] = {}
        self._general = [Tally() for _ in _PRIORS]
        self._reader = DocumentReader()

    def __repr__(self) -> str:
        return f"<LearnedResults of {len(self._records)} tools>"

    async def predict(self, conversation: Conversation, /) -> list[Prediction]:
        """No calls: this knows results only."""
        del conversation
        return []

    def predict_results(
        self, call: ToolCall, conversation: Conversation, /
    ) -> list[ResultPrediction]:
        """What the call is expected to give, the most probable first. Never waits."""
        record = self._records.get(call.name)
        tool = conversation.tools.get(call.name)
        if record is None or tool is None or tool.effect not in self.effects:
            return []
        arguments = _read_arguments(call.arguments)
        if arguments is None:
            return []
        siblings, chance = self._siblings(call, conversation)
        documents = [*siblings, *self._documents(conversation.messages)]
        stated = [
            ResultPrediction(
                result=_as_result(content),
                probability=chance * self._chance(record, raw),
            )
            for content, raw in record.state(Scope(arguments, documents))
        ]
        return sorted(
            (each for each in stated if each.probability >= self.min_probability),
            key=lambda each: -each.probability,
        )

    def _siblings(
        self, call: ToolCall, conversation: Conversation
    ) -> tuple[list[Document], float]:
        """What the calls before it in its message are expected to show, and how surely.

        Only calls that change something count, and that have no result yet.
        """
        calls = _calls_before(call, conversation.messages)
        shown: list[Document] = []
        sure = 1.0
        for each in calls[:MAX_SIBLINGS]:
            tool, record = (
                conversation.tools.get(each.name),
                self._records.get(each.name),
            )
            arguments = _read_arguments(each.arguments)
            if (
                tool is None
                or tool.effect is Effect.READ
                or record is None
                or arguments is None
            ):
                continue
            documents = [*shown, *self._documents(conversation.messages)]
            possible = record.state(Scope(arguments, documents))
            if not possible:
                continue
            content, raw = max(possible, key=lambda made: made[1])
            document = self._reader.read(content)
            sure *= self._chance(record, raw)
            if document is not None:
                shown.insert(0, document)
        return shown, sure

    def learn(self, conversation: Conversation, response: ModelResponse, /) -> None:
        """Learn from the results that were just confirmed."""
        del response
        messages = conversation.messages
        documents: list[Document] | None = None
        for position, name, text, result in ended_calls(messages):
            if documents is None:
                documents = self._documents(messages[:position])
            content = _as_text(result)
            before, document = documents, self._reader.read(content)
            if document is not None:
                documents = [document, *documents]
            tool = conversation.tools.get(name)
            arguments = _read_arguments(text)
            if tool is None or arguments is None or tool.effect not in self.effects:
                continue
            record = self._records.get(name)
            if record is None:
                if len(self._records) >= MAX_TOOLS:
                    continue
                record = self._records[name] = Record()
            scope = Scope(arguments, before)
            self._learn_one(record, scope, content, _beginning(messages))

    def _learn_one(
        self, record: Record, scope: Scope, content: str, conversation: int
    ) -> None:
        if record.passes_over():
            return
        right = False
        for stated, raw in record.state(scope):
            hit = stated == content
            right = right or hit
            bucket = _bucket(raw)
            self._general[bucket].note(hit=hit)
            record.tallies[bucket].note(hit=hit)
        record.learn(
            scope, content, self._reader.read(content), conversation, right=right
        )

    def _chance(self, record: Record, raw: float) -> float:
        bucket = _bucket(raw)
        general = self._general[bucket].chance(_PRIORS[bucket])
        return clip(record.tallies[bucket].chance(general))

    def _documents(self, messages: tuple[Message, ...]) -> list[Document]:
        """The earlier results that are JSON, the newest first."""
        read = (
            self._reader.read(message.content)
            for message in reversed(messages[-MAX_SEARCHED:])
            if message.role == "tool"
        )
        found = dict.fromkeys(each for each in read if each is not None)
        return list(itertools.islice(found, MAX_DOCUMENTS))

    def to_dict(self) -> dict[str, Any]:
        """What was learned, as JSON values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "tools": {
                name: record.to_dict() for name, record in sorted(self._records.items())
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], **options: Any) -> LearnedResults:
        """Read what `to_dict` has written.

        Args:
            data: It.
            options: As for the class.

        Raises:
            UsageError: It is something else, or of a newer version.
        """
        learned = cls(**options)
        learned._add(data)
        return learned

    def merge(self, other: LearnedResults) -> None:
        """Add what another has learned, as far as that could be saved."""
        self._add(other.to_dict())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was learned to a JSON file.

        Raises:
            UsageError: The file cannot be written.
        """
        try:
            text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
            Path(path).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            msg = f"The learned results cannot be written to {str(path)!r}: {error.strerror}."
            raise UsageError(msg) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str], **options: Any) -> LearnedResults:
        """Read a file that `save` has written.

        Raises:
            UsageError: The file cannot be read, or is something else.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            msg = f"The learned results {str(path)!r} cannot be read: {error.strerror}."
            raise UsageError(msg) from error
        except (ValueError, RecursionError) as error:
            msg = f"The learned results {str(path)!r} are not JSON: {error}."
            raise UsageError(msg) from error
        return cls.from_dict(data, **options)

    def _add(self, data: Any) -> None:
        fields = cast("dict[str, Any]", data if isinstance(data, dict) else {})
        if fields.get("format") != FORMAT:
            msg = f"That is no file of learned results: its 'format' is not {FORMAT!r}."
            raise UsageError(msg)
        version = fields.get("version")
        if version != VERSION:
            msg = f"The learned results are of version {version!r}; this reads version {VERSION}."
            raise UsageError(msg)
        try:
            read = {
                str(name): Record.from_dict(record)
                for name, record in fields["tools"].items()
            }
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            msg = "The learned results are damaged: save them again."
            raise UsageError(msg) from error
        for name, record in read.items():
            if name not in self._records and len(self._records) >= MAX_TOOLS:
                continue
            self._records.setdefault(name, Record()).add(record)
            for mine, theirs in zip(self._general, record.tallies, strict=True):
                mine.add(theirs)


def _read_arguments(text: str) -> dict[str, Any] | None:
    return decode_arguments(text) if len(text) <= MAX_ARGUMENTS else None


def _calls_before(call: ToolCall, messages: tuple[Message, ...]) -> list[ToolCall]:
    """The calls before one in the message that asks for it, which have no result yet."""
    ended: set[str | None] = set()
    for message in reversed(messages):
        if message.role == "tool":
            ended.add(message.tool_call_id)
            continue
        asked = list(message.tool_calls)
        names = [each.id for each in asked]
        before = asked[: names.index(call.id)] if call.id in names else []
        return [each for each in before if each.id not in ended]
    return []


def _as_text(result: ToolResult) -> str:
    return _FAILED + result.content if result.is_error else result.content


def _as_result(text: str) -> ToolResult:
    content = text.removeprefix(_FAILED)
    return ToolResult(content, is_error=content != text)


def _bucket(raw: float) -> int:
    return sum(raw >= bound for bound in _BOUNDS)


def _beginning(messages: tuple[Message, ...]) -> int:
    """Which conversation it is: its beginning, up to the first calls."""
    beginning = hash(())
    for message in messages:
        calls = tuple(call.arguments for call in message.tool_calls)
        beginning = hash((beginning, message.role, message.content, calls))
        if calls:
            break
    return beginning
