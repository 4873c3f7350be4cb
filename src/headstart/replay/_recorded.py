"""The recorded model and the recorded tools, which answer after their latency.

Rules of this file:

1. A request is answered with the recorded message at its place in the conversation, if
   the conversation before it is the recorded one; anything else gets `FILLER`.
2. A call that the host makes gets its own recorded result, found by its id. A launched
   call gets the result of the next equal call that the host has not made and that no
   other live launch stands for, so the k-th launch has the k-th result; when each has
   its launch, the next one's again. There must be no write between the two: a launch
   that came before a write gets `FILLER_RESULT`, so that using it would be seen.
3. The latency belongs to the place in the recording, never to the order in which an arm
   comes to it: all arms see the same seconds.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import anyio

from headstart._barrier import BarrierState, WriteBarrier
from headstart._calls import canonical_arguments, decode_arguments
from headstart._errors import TraceFormatError
from headstart._messages import DeltaReceiver, Message, ModelRequest, ModelResponse
from headstart._tools import Effect, Tool, ToolContext

from ._latency import Latency

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from ._traces import RecordedCall, RecordedRun

FILLER = ModelResponse(text="(not in the recording)")
FILLER_RESULT = "(not in the recording)"
UNRECORDED_TOOL = Latency("constant", (1.0,))
"""What a tool takes where recorded times are wanted and the file has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long the recorded model and tools take.

    Attributes:
        model: For the messages whose time the file does not say.
        tool: For every call; `None` takes the recorded time, where there is one.
        seed: Of the distributions.
        tool_means: Mean recorded seconds by tool: for calls that are not in the file.
    """

    model: Latency
    tool: Latency | None
    seed: int
    tool_means: Mapping[str, float] = field(default_factory=dict[str, float])

    def model_seconds(self, run: RecordedRun, position: int) -> float:
        """What the answer at `position` of the conversation takes."""
        turn = run.turns.get(position)
        if turn is not None and turn.model_s is not None:
            return turn.model_s
        return self.model.draw(self.seed, run.id, "model", position)

    def call_seconds(self, run: RecordedRun, call: RecordedCall) -> float:
        """What a recorded call takes."""
        if self.tool is None and call.tool_s is not None:
            return call.tool_s
        latency = self.tool or UNRECORDED_TOOL
        return latency.draw(self.seed, run.id, "call", call.index)

    def filler_seconds(self, run: RecordedRun, name: str, arguments: str) -> float:
        """What a launched call that is not in the recording takes."""
        if self.tool is None and name in self.tool_means:
            return self.tool_means[name]
        latency = self.tool or UNRECORDED_TOOL
        return latency.draw(self.seed, run.id, "filler", name, arguments)


def mean_tool_seconds(runs: Iterable[RecordedRun]) -> dict[str, float]:
    """Mean recorded seconds of each tool that has any."""
    times: defaultdict[str, list[float]] = defaultdict(list)
    for run in runs:
        for call in run.calls():
            if call.tool_s is not None:
                times[call.call.name].append(call.tool_s)
    return {name: sum(values) / len(values) for name, values in times.items()}


def same_but_for_ids(messages: Sequence[Message], recorded: Sequence[Message]) -> bool:
    """Whether a conversation begins as the recorded one does.

    Identifiers of calls do not count: no model goes by them, and a request beside the
    one that makes them up cannot have them.
    """
    return len(messages) <= len(recorded) and all(
        left == right or _without_ids(left) == _without_ids(right)
        for left, right in zip(messages, recorded, strict=False)
    )


def _without_ids(message: Message) -> tuple[object, ...]:
    calls = [(call.name, call.arguments) for call in message.tool_calls]
    return message.role, message.content, message.name, calls


CallKey = tuple[str, str]


def call_key(name: str, arguments: str) -> CallKey:
    """What equal calls have in common: the tool, and what the arguments mean."""
    return name, canonical_arguments(arguments) or f"\0{arguments}"


class RecordedWorld:
    """What one arm meets in one run: the tools' `deps`, and the model.

    Args:
        run: The recorded run.
        timing: How long everything takes.
        reads: Names of the tools that change nothing.
    """

    def __init__(
        self, run: RecordedRun, timing: Timing, *, reads: frozenset[str]
    ) -> None:
        self.run = run
        self.timing = timing
        self._reads = reads
        self._by_id = {recorded.call.id: recorded for recorded in run.calls()}
        self._by_key: defaultdict[CallKey, list[RecordedCall]] = defaultdict(list)
        self._writes_before: list[int] = []
        writes = 0
        for recorded in run.calls():
            key = call_key(recorded.call.name, recorded.call.arguments)
            self._by_key[key].append(recorded)
            self._writes_before.append(writes)
            writes += recorded.call.name not in reads
        self._writes_made = 0
        self._asked: set[int] = set()
        self._launches: dict[int, WriteBarrier] = {}

    async def ask_model(
        self, request: ModelRequest, on_delta: DeltaReceiver
    ) -> ModelResponse:
        """Answer as the recorded model did, after as long as it took."""
        del on_delta
        history = request.history
        turn = self.run.turns.get(len(history))
        right = turn is not None and same_but_for_ids(history, self.run.messages)
        await anyio.sleep(self.timing.model_seconds(self.run, len(history)))
        return turn.response if turn is not None and right else FILLER

    def note_asked(self, recorded: RecordedCall) -> None:
        """Remember that the host makes this call now."""
        self._asked.add(recorded.index)
        self._writes_made += recorded.call.name not in self._reads

    async def perform(
        self, context: ToolContext[RecordedWorld], arguments: dict[str, Any]
    ) -> str:
        """Answer a call as the recorded tool did, after as long as it took."""
        del arguments
        call = context.call
        if not context.speculative:
            recorded = self._by_id.get(call.id)
            found = recorded
        else:
            recorded, found = self._find(context)
        if recorded is None:
            seconds = self.timing.filler_seconds(self.run, call.name, call.arguments)
        else:
            seconds = self.timing.call_seconds(self.run, recorded)
        await anyio.sleep(seconds)
        return FILLER_RESULT if found is None else found.result.content

    def _find(
        self, context: ToolContext[RecordedWorld]
    ) -> tuple[RecordedCall | None, RecordedCall | None]:
        """Whose time, and whose result, a launched call has."""
        key = call_key(context.call.name, context.call.arguments)
        ahead = [
            recorded
            for recorded in self._by_key.get(key, ())
            if recorded.index not in self._asked
        ]
        fresh = [
            recorded
            for recorded in ahead
            if self._writes_before[recorded.index] == self._writes_made
        ]
        for recorded in fresh:
            launch = self._launches.get(recorded.index)
            if launch is None or launch.effective_state is not BarrierState.HELD:
                self._launches[recorded.index] = context.barrier
                return recorded, recorded
        return (ahead[0] if ahead else None), (fresh[0] if fresh else None)


class RecordedTool(Tool):
    """A tool of a recording: it takes whatever the recorded model wrote."""

    def validate(self, arguments: str) -> dict[str, Any]:
        """The arguments as an object; an empty one where they are none."""
        return decode_arguments(arguments) or {}


async def _perform(
    context: ToolContext[RecordedWorld], arguments: dict[str, Any]
) -> str:
    return await context.deps.perform(context, arguments)


async def _perform_gated(
    context: ToolContext[RecordedWorld], arguments: dict[str, Any]
) -> str:
    # A recording does not say which part of a call comes before its effect: none does.
    await context.barrier.wait()
    return await context.deps.perform(context, arguments)


_EFFECTS = {effect.value: effect for effect in (Effect.READ, Effect.GATED)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolDeclaration:
    """What is known of a tool beside the recording.

    Attributes:
        effect: What it does to the world.
        parameters: The JSON schema of its arguments, as far as it is known.
    """

    effect: Effect = Effect.UNSAFE
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])


def declare_tools(data: object, *, source: str) -> dict[str, ToolDeclaration]:
    """Read tool declarations: `{"get_order": {"effect": "READ", "parameters": [...]}}`.

    An effect other than READ and GATED, such as MIXED, counts as UNSAFE. `parameters`
    is a list of names or a JSON schema.

    Args:
        data: The decoded JSON.
        source: What it is called in errors.

    Raises:
        TraceFormatError: It is no such object.
    """
    if not isinstance(data, dict):
        msg = f"{source} is no JSON object of tools by name, each with an 'effect'."
        raise TraceFormatError(msg)
    declared: dict[str, ToolDeclaration] = {}
    for name, value in cast("dict[str, object]", data).items():
        if not (name and isinstance(value, dict)):
            msg = f"{source} says nothing usable of the tool {name!r}: it needs an object."
            raise TraceFormatError(msg)
        fields = cast("dict[str, object]", value)
        effect = str(fields.get("effect")).lower()
        declared[name] = ToolDeclaration(
            effect=_EFFECTS.get(effect, Effect.UNSAFE),
            parameters=_schema(fields.get("parameters")),
        )
    return declared


def _schema(parameters: object) -> dict[str, Any]:
    if isinstance(parameters, dict):
        return cast("dict[str, Any]", parameters)
    names = cast("list[object]", parameters) if isinstance(parameters, list) else []
    return {"type": "object", "properties": {str(name): {} for name in names}}


def read_declarations(path: Path) -> dict[str, ToolDeclaration]:
    """Read a `tools.json`.

    Raises:
        TraceFormatError: It cannot be read, or is no such file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"The tools {str(path)!r} cannot be read: {error.strerror or error}."
        raise TraceFormatError(msg) from error
    except (ValueError, RecursionError) as error:
        msg = f"The tools {str(path)!r} are not JSON: {error}."
        raise TraceFormatError(msg) from error
    return declare_tools(data, source=f"The file {str(path)!r}")


def make_tools(
    runs: Sequence[RecordedRun], declared: Mapping[str, ToolDeclaration]
) -> tuple[RecordedTool, ...]:
    """The declared tools, and those that the runs call beside them, as `UNSAFE`.

    What the declarations leave open of the parameters is read off the recorded calls.
    """
    seen = _seen_parameters(runs)
    names = dict.fromkeys((*declared, *seen))
    undeclared = ToolDeclaration()
    return tuple(
        _make_tool(name, declared.get(name, undeclared), seen.get(name, {}))
        for name in names
    )


def _make_tool(
    name: str, declaration: ToolDeclaration, seen: Mapping[str, set[str]]
) -> RecordedTool:
    properties: dict[str, Any] = {
        parameter: {"type": sorted(types)} for parameter, types in seen.items()
    }
    for parameter, schema in declaration.parameters.get("properties", {}).items():
        if schema or parameter not in properties:
            properties[parameter] = schema
    gated = declaration.effect is Effect.GATED
    return RecordedTool(
        _perform_gated if gated else _perform,
        name=name,
        description="A recorded tool.",
        parameters={
            "type": "object",
            **declaration.parameters,
            "properties": properties,
        },
        effect=declaration.effect,
        max_age=None,
    )


def _seen_parameters(runs: Sequence[RecordedRun]) -> dict[str, dict[str, set[str]]]:
    """The JSON types of every parameter of every tool, as seen."""
    seen: dict[str, dict[str, set[str]]] = {}
    for run in runs:
        for recorded in run.calls():
            parameters = seen.setdefault(recorded.call.name, {})
            decoded = decode_arguments(recorded.call.arguments) or {}
            for parameter, value in decoded.items():
                parameters.setdefault(parameter, set()).add(_json_type(value))
    return seen


def _json_type(value: object) -> str:
    for kind, name in _JSON_TYPES.items():
        if isinstance(value, kind):
            return name
    return "integer"


_JSON_TYPES: dict[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    dict: "object",
    list: "array",
    type(None): "null",
}
