"""Recorded runs: chat messages, one conversation a line, read and put in order."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from headstart._calls import ToolCall, ToolResult
from headstart._errors import TraceFormatError
from headstart._messages import Message, ModelResponse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

_ROLES = ("system", "developer", "user", "assistant", "tool")

NO_RESULT = ToolResult("(no result was recorded)")
"""The result of a recorded call that has none in the file."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordedCall:
    """A call that the recorded model asked for.

    Attributes:
        call: The call; its id is unique in the run.
        index: Its number in the run's program order, from 0.
        result: What it returned; `NO_RESULT` where the file does not say.
        tool_s: Recorded seconds from the moment the assistant message was complete to
            the result, or `None` where the file does not say.
    """

    call: ToolCall
    index: int
    result: ToolResult
    tool_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordedTurn:
    """One assistant message, and the calls in it.

    Attributes:
        position: How many messages stand before it.
        response: The message, as a model's answer.
        calls: Its calls, in the model's order.
        model_s: Recorded seconds from the newest message before it to its end, or
            `None` where the file does not say.
    """

    position: int
    response: ModelResponse
    calls: tuple[RecordedCall, ...]
    model_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordedRun:
    """One recorded conversation, in the order in which a host would make it again.

    The tool messages of a turn stand right behind it, in call order, one a call.

    Attributes:
        id: What the file calls it, or `line-7`.
        messages: The whole conversation.
        turns: The assistant messages by their position in `messages`.
        user_s: Recorded seconds before each message that neither model nor tools make.
        calls_without_result: Calls whose result is not in the file.
        results_without_call: Tool messages that answer no call of the file; they stand
            in `messages` like something that the user said.
    """

    id: str
    messages: tuple[Message, ...] = field(repr=False)
    turns: Mapping[int, RecordedTurn] = field(repr=False)
    user_s: Mapping[int, float] = field(repr=False)
    calls_without_result: int = 0
    results_without_call: int = 0

    def calls(self) -> Iterator[RecordedCall]:
        """Every call, in program order."""
        for turn in self.turns.values():
            yield from turn.calls


@dataclass(frozen=True, slots=True, kw_only=True)
class BadLine:
    """A line that holds no run.

    Attributes:
        line: Its number, from 1.
        reason: What is wrong with it.
    """

    line: int
    reason: str


def read_runs(
    path: Path, *, limit: int | None = None
) -> tuple[list[RecordedRun], list[BadLine]]:
    """Read a file of recorded runs, one JSON object a line, with `messages` in it.

    Empty lines are passed over. A line that holds no run is reported, and the others
    are read all the same.

    Args:
        path: The file.
        limit: How many runs to read at most.

    Raises:
        TraceFormatError: The file cannot be read at all.
    """
    runs: list[RecordedRun] = []
    bad: list[BadLine] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if limit is not None and len(runs) >= limit:
                    break
                if not line.strip():
                    continue
                try:
                    runs.append(read_run(line, line=number))
                except TraceFormatError as error:
                    bad.append(BadLine(line=number, reason=str(error)))
    except OSError as error:
        msg = f"The trace {str(path)!r} cannot be read: {error.strerror or error}."
        raise TraceFormatError(msg) from error
    return runs, bad


def read_run(text: str | bytes, *, line: int = 1) -> RecordedRun:
    """Read one recorded run.

    Args:
        text: The JSON object.
        line: Its number, for errors, and for the id of a run that has none.

    Raises:
        TraceFormatError: It is no such object.
    """
    reader = _RunReader(line)
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        data = json.loads(text)
    except UnicodeDecodeError as error:
        raise reader.error("The line is not UTF-8 text") from error
    except (ValueError, RecursionError) as error:
        raise reader.error("The line is not JSON") from error
    if not isinstance(data, dict):
        raise reader.error("The line is not a JSON object with 'messages'")
    fields = cast("dict[str, Any]", data)
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise reader.error("The run has no list of 'messages'")
    try:
        for message in cast("list[Any]", messages):
            reader.read(message)
    except RecursionError as error:
        raise reader.error("The line is nested too deeply") from error
    run_id = fields.get("id")
    return reader.finish(f"line-{line}" if run_id is None else str(run_id))


@dataclass(slots=True)
class _OpenCall:
    call: ToolCall
    recorded_id: str | None
    result: ToolResult | None = None
    ended_at: float | None = None


@dataclass(slots=True)
class _OpenTurn:
    response: ModelResponse
    calls: list[_OpenCall]
    ended_at: float | None
    model_s: float | None


class _RunReader:
    """Puts the messages of one run together, in the order of the file."""

    def __init__(self, line: int) -> None:
        self.line = line
        self.steps: list[_OpenTurn | tuple[Message, float]] = []
        self.open: list[_OpenCall] = []
        self.ids: set[str] = set()
        self.count = 0
        self.orphans = 0
        # The newest time in the file so far, and the time of the message before.
        self.newest = 0.0
        self.before: float | None = 0.0

    def error(self, problem: str) -> TraceFormatError:
        return TraceFormatError(f"{problem}.", line=self.line)

    def read(self, data: object) -> None:
        self.count += 1
        if not isinstance(data, dict):
            raise self.error(f"Message {self.count} is not a JSON object")
        fields = cast("dict[str, Any]", data)
        role = fields.get("role")
        if role not in _ROLES:
            msg = f"Message {self.count} has the role {role!r}; it is one of "
            raise self.error(msg + ", ".join(_ROLES))
        time = self._time(fields, "t")
        content = _flatten(fields.get("content"))
        if role == "assistant":
            self._read_turn(fields, content, time)
        elif role != "tool":
            name = fields.get("name")
            self._read_other(
                Message(
                    role=role,
                    content=content,
                    name=name if isinstance(name, str) else None,
                ),
                time,
            )
        else:
            self._read_result(fields, content, time)
        self.before = time
        if time is not None:
            self.newest = max(self.newest, time)

    def _time(self, fields: dict[str, Any], key: str) -> float | None:
        value = fields.get(key)
        if value is None:
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
            or value < 0
        ):
            raise self.error(
                f"Message {self.count} has no number of seconds as {key!r}"
            )
        return float(value)

    def _read_turn(
        self, fields: dict[str, Any], content: str, time: float | None
    ) -> None:
        model_s = None
        if time is not None and self.before is not None:
            model_s = max(0.0, time - self.newest)
        elif time is not None:
            started = self._time(fields, "t_start")
            model_s = None if started is None else max(0.0, time - started)
        listed: object = fields.get("tool_calls") or []
        if not isinstance(listed, list):
            raise self.error(f"Message {self.count} has no list as 'tool_calls'")
        calls = [self._read_call(call) for call in cast("list[Any]", listed)]
        response = ModelResponse(
            text=content, tool_calls=tuple(item.call for item in calls)
        )
        self.steps.append(_OpenTurn(response, calls, time, model_s))
        self.open.extend(calls)

    def _read_call(self, data: Any) -> _OpenCall:
        try:
            function = data["function"]
            name, arguments = function["name"], function.get("arguments")
            recorded_id = data.get("id")
        except (KeyError, TypeError, AttributeError) as error:
            msg = f"A call of message {self.count} has no 'function' with a 'name'"
            raise self.error(msg) from error
        if not isinstance(name, str) or not name:
            raise self.error(f"A call of message {self.count} has no name")
        if arguments is None:
            arguments = "{}"
        elif not isinstance(arguments, str):
            arguments = json.dumps(arguments)
        if not isinstance(recorded_id, str):
            recorded_id = None
        unique = stem = recorded_id or f"recorded-{self.count}"
        repeat = 1
        while unique in self.ids:
            repeat += 1
            unique = f"{stem}~{repeat}"
        self.ids.add(unique)
        return _OpenCall(ToolCall(unique, name, arguments), recorded_id)

    def _read_result(
        self, fields: dict[str, Any], content: str, time: float | None
    ) -> None:
        answered = fields.get("tool_call_id")
        for call in self.open:
            if answered is None or call.recorded_id == answered:
                break
        else:
            self.orphans += 1
            name = fields.get("name")
            message = Message(
                role="tool",
                content=content,
                tool_call_id=answered if isinstance(answered, str) else None,
                name=name if isinstance(name, str) else None,
            )
            self._read_other(message, time)
            return
        self.open.remove(call)
        call.result = ToolResult(content)
        call.ended_at = time

    def _read_other(self, message: Message, time: float | None) -> None:
        waited = 0.0 if time is None else max(0.0, time - self.newest)
        self.steps.append((message, waited))

    def finish(self, run_id: str) -> RecordedRun:
        messages: list[Message] = []
        turns: dict[int, RecordedTurn] = {}
        user_s: dict[int, float] = {}
        calls = 0
        for step in self.steps:
            if isinstance(step, tuple):
                message, waited = step
                user_s[len(messages)] = waited
                messages.append(message)
                continue
            recorded = tuple(
                _close(call, index, step.ended_at)
                for index, call in enumerate(step.calls, calls)
            )
            calls += len(recorded)
            turns[len(messages)] = RecordedTurn(
                position=len(messages),
                response=step.response,
                calls=recorded,
                model_s=step.model_s,
            )
            messages.append(step.response.message)
            messages.extend(Message.for_result(c.call, c.result) for c in recorded)
        return RecordedRun(
            id=run_id,
            messages=tuple(messages),
            turns=turns,
            user_s=user_s,
            calls_without_result=len(self.open),
            results_without_call=self.orphans,
        )


def _close(call: _OpenCall, index: int, asked_at: float | None) -> RecordedCall:
    known = call.ended_at is not None and asked_at is not None
    return RecordedCall(
        call=call.call,
        index=index,
        result=NO_RESULT if call.result is None else call.result,
        tool_s=max(0.0, call.ended_at - asked_at) if known else None,  # type: ignore[operator] # both known
    )


def _flatten(content: object) -> str:
    """The text of a message: parts that are no text are left out."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return json.dumps(content)
    parts: Iterable[object] = cast("list[object]", content)
    return "".join(_part_text(part) for part in parts)


def _part_text(part: object) -> str:
    if isinstance(part, str):
        return part
    text = cast("dict[str, object]", part).get("text") if isinstance(part, dict) else ""
    return text if isinstance(text, str) else ""
