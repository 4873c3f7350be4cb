"""One model request and its calls, as the engine sees them.

Rules of this file: data and pure decisions. Nothing here starts a task or waits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ._calls import ToolCall, ToolResult, decode_arguments
from ._messages import CallDelta, Message, ModelDelta
from ._resources import EVERYTHING, NOTHING, ResourceKeys, overlaps
from .predictors import ResultPrediction

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._barrier import WriteBarrier
    from ._call_speculation import ToolCallSpeculator
    from ._messages import DeltaReceiver, ModelRequest, ModelResponse
    from ._policy import Cause
    from ._result_speculation import ResultSpeculator
    from ._tools import ArgumentsFingerprint, Tool


class Launch:
    """A call that was started early, and what the engine knows of it."""

    __slots__ = (
        "cause",
        "home",
        "origin",
        "outlives",
        "probability",
        "slot",
        "speculator",
        "strayed",
        "touches",
    )

    def __init__(
        self,
        speculator: ToolCallSpeculator,
        *,
        cause: Cause,
        origin: str,
        probability: float,
        home: Turn,
        touches: ResourceKeys,
        outlives: bool = False,
    ) -> None:
        self.speculator = speculator
        self.cause: Cause = cause
        self.origin = origin
        self.probability = probability
        self.home = home  # the turn that it was launched for
        self.outlives = outlives  # whether it is kept when that turn is discarded ...
        self.strayed = False  # ... and was
        self.touches = touches
        self.slot: Slot | None = None  # the call of a turn that claims it

    @property
    def tool(self) -> Tool:
        """The tool."""
        return self.speculator.tool


@dataclass(slots=True, eq=False)
class Slot:
    """One call that a model's response asks for.

    Attributes:
        index: Its position in the response.
        turn: Whose response.
        call: The call.
        tool: Its tool, or `None` where there is no such tool.
        arguments: The validated arguments, or `None` where they are invalid.
        problem: Why the call cannot run: told to the model as its result.
        writes: What it changes.
        launch: The launch that it claims.
        early: What is known of the result before it is final: alternatives, the most
            probable first.
        source: Who stated them: `tool`, `launch`, `memory`, or a predictor's type.
        result: The final result.
        demanded_at: When the host asked for it; negative before.
    """

    index: int
    turn: Turn
    call: ToolCall
    tool: Tool | None
    arguments: dict[str, object] | None = None
    problem: ToolResult | None = None
    writes: ResourceKeys = NOTHING
    launch: Launch | None = None
    early: tuple[ResultPrediction, ...] = ()
    source: str = ""
    result: ToolResult | None = None
    demanded_at: float = -1.0
    ended_at: float = -1.0
    duration: float = 0.0
    approval_s: float = 0.0
    started: bool = False  # for real, and not as a launch
    _fingerprint: ArgumentsFingerprint | None = None
    _touches: ResourceKeys | None = None

    @property
    def fingerprint(self) -> ArgumentsFingerprint | None:
        """What it is matched by; `None` when it matches nothing."""
        if self._fingerprint is None and self.tool is not None and not self.problem:
            self._fingerprint = self.tool.fingerprint(self.call.arguments)
        return self._fingerprint

    def take_fingerprint(self, fingerprint: ArgumentsFingerprint) -> bool:
        """Take that of an equal text, unless there is a problem with the call."""
        if self.problem is None and self._fingerprint is None:
            self._fingerprint = fingerprint
        return self.problem is None

    @property
    def touches(self) -> ResourceKeys:
        """What it reads or changes."""
        if self._touches is None:
            if self.tool is None or self.arguments is None:
                self._touches = NOTHING
            else:
                self._touches = touched(self.tool, self.arguments)
        return self._touches

    @property
    def wants_launch(self) -> bool:
        """Whether it is still a call of its turn that could be launched early."""
        turn = self.turn
        current = self in turn.slots or turn.sealed.get(self.index) is self
        return current and self.launch is None and not self.started

    @property
    def outcomes(self) -> tuple[ResultPrediction, ...]:
        """The final result, or else the early ones; nothing while none is known."""
        if self.result is None:
            return self.early
        return (ResultPrediction(result=self.result, probability=1.0),)


class Turn:
    """One model request, its response and its calls.

    `parent` is the turn whose early results it was built on, while it is speculative.
    """

    __slots__ = (
        "answering",
        "assumed",
        "attempts",
        "barrier",
        "chance",
        "children",
        "confirmed",
        "depth",
        "ended_at",
        "forecast",
        "id",
        "parent",
        "partial",
        "refused",
        "relay",
        "request",
        "response",
        "results",
        "run",
        "sealed",
        "slots",
        "speaks",
        "started_at",
        "stated",
        "tools_ended",
    )

    def __init__(
        self,
        id: int,  # noqa: A002 - its name everywhere
        request: ModelRequest,
        barrier: WriteBarrier,
        *,
        parent: Turn | None,
        started_at: float,
    ) -> None:
        self.id = id
        self.request = request
        self.barrier = barrier
        self.parent = parent
        self.confirmed = parent is None
        self.depth = 0 if parent is None else parent.depth + 1
        self.started_at = started_at
        self.ended_at = -1.0
        self.relay = DeltaRelay()
        self.sealed: dict[int, Slot] = {}
        self.response: ModelResponse | None = None
        self.slots: list[Slot] = []
        self.children: list[Turn] = []  # the turns that are run ahead of it
        # How it is run ahead itself, and on what: the parent's answer, and the results
        # of its calls.
        self.run: ResultSpeculator[ModelResponse] | None = None
        self.answering: Message | None = None
        self.stated = 1.0  # how probable that answer was, where it was predicted
        self.chance = 1.0  # that all it was run ahead on comes true, as stated
        self.results: tuple[ToolResult, ...] = ()
        self.tools_ended = False
        self.attempts = 0  # how often the next turn was run ahead of it
        self.refused: set[tuple[object, ...]] = set()  # what the policy would not run
        self.partial = ""  # what its model has said so far
        self.speaks: bool | None = (
            None  # whether it may say more than calls, once known
        )
        self.forecast: list[Forecast] = []  # the calls that it is expected to have
        self.assumed: list[
            Slot
        ] = []  # those that its children are built on, unanswered

    def let_go(self) -> None:
        """Drop its calls, which refer to it, if they have ended: it is not current now."""
        if self.tools_ended:
            self.slots = []

    @property
    def conversation(self) -> tuple[Message, ...]:
        """Every message known now: the request, the response, the final results."""
        messages = self.request.history
        if self.response is None:
            return messages
        answers = (
            Message.for_result(slot.call, slot.result)
            for slot in self.slots
            if slot.result is not None
        )
        return (*messages, self.response.message, *answers)

    @property
    def answering_calls(self) -> tuple[ToolCall, ...]:
        """The calls of the parent's answer that it was run ahead on."""
        return () if self.answering is None else self.answering.tool_calls

    @property
    def ground(self) -> Turn:
        """The confirmed turn that it stands on, or is."""
        turn = self
        while turn.parent is not None and not turn.confirmed:
            turn = turn.parent
        return turn

    @property
    def probability(self) -> float:
        """That it is confirmed, as stated for it and all that it stands on."""
        probability, turn = 1.0, self
        while turn is not None and not turn.confirmed:
            probability *= turn.chance
            turn = turn.parent
        return probability

    def family(self) -> Iterator[Turn]:
        """This turn and all that is run ahead of it, from the root outward."""
        turns: list[Turn] = [self]
        for turn in turns:
            yield turn
            turns.extend(turn.children)

    def stands_on(self, turn: Turn) -> bool:
        """Whether this is `turn`, or was run ahead on it."""
        ancestor: Turn | None = self
        while ancestor is not None:
            if ancestor is turn:
                return True
            ancestor = ancestor.parent
        return False

    def has_unfinished_write(self, touches: ResourceKeys) -> bool:
        """Whether a call of this turn that has not ended changes any of `touches`.

        Before the response is there, its calls are those that it is expected to have.
        """
        return any(
            slot.result is None and overlaps(slot.writes, touches)
            for slot in (self.slots or self.assumed)
        )

    def conflicts(self, slot: Slot, *, ordered: bool = False) -> bool:
        """Whether `slot` and another call of this turn touch what one of them changes.

        The calls of a turn run at once, so which of the two sees the other's work is a
        matter of timing: only two fresh starts have the timing of the run without
        speculation. Where the host runs them in order, only what stands before
        `slot` counts.
        """
        if ordered:
            return any(
                other.index < slot.index and overlaps(other.writes, slot.touches)
                for other in self.slots
            )
        return any(
            other is not slot
            and (
                overlaps(other.writes, slot.touches)
                or overlaps(slot.writes, other.touches)
            )
            for other in self.slots
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A call that a turn's response is expected to ask for."""

    tool: Tool
    arguments: str = field(compare=False)
    fingerprint: ArgumentsFingerprint
    probability: float = field(compare=False)
    styled: bool = field(default=False, compare=False)  # to be written like the model


class DeltaRelay:
    """Holds a turn's deltas until it is confirmed, and passes them on afterwards.

    `delivered` tells whether anybody has seen one.
    """

    __slots__ = ("_held", "_receiver", "delivered")

    def __init__(self) -> None:
        self._held: list[ModelDelta] = []
        self._receiver: DeltaReceiver | None = None
        self.delivered = False

    def open(self, receiver: DeltaReceiver | None) -> None:
        """Deliver what was held, and everything from now on."""
        held, self._held = self._held, []
        self._receiver = receiver or _drop
        for delta in held:
            self.put(delta)

    def put(self, delta: ModelDelta) -> None:
        """Deliver or hold one delta."""
        if self._receiver is None:
            self._held.append(delta)
        else:
            self.delivered = self._receiver is not _drop
            self._receiver(delta)


def _drop(delta: ModelDelta) -> None:
    del delta


class CallAssembler:
    """Puts streamed calls together, and tells when one is provably complete.

    A call is *sealed* when its identifier and name are known and the text of its
    arguments has closed its outermost JSON object: whatever could still follow would
    not be JSON. That a stream ends, or goes on to something else, proves nothing.
    """

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls: dict[int, _PartialCall] = {}

    def put(self, delta: ModelDelta) -> tuple[int, ToolCall] | None:
        """Take a delta. Returns the index and the call that it seals, if it does."""
        if not isinstance(delta, CallDelta):
            return None
        partial = self._calls.get(delta.index)
        if partial is None:
            partial = self._calls[delta.index] = _PartialCall()
        return partial.put(delta)


class _PartialCall:
    __slots__ = ("depth", "done", "escaped", "id", "in_text", "name", "pieces")

    def __init__(self) -> None:
        self.id = self.name = ""
        self.pieces: list[str] = []
        self.depth = 0
        self.in_text = self.escaped = self.done = False

    def put(self, delta: CallDelta) -> tuple[int, ToolCall] | None:
        self.id = delta.id or self.id
        self.name = delta.name or self.name
        if delta.arguments:
            self.pieces.append(delta.arguments)
            if not self.done:
                self._scan(delta.arguments)
                if self.done:
                    return self._seal(delta.index)
        return None

    def _scan(self, text: str) -> None:
        for character in text:
            if self.in_text:
                if self.escaped:
                    self.escaped = False
                elif character == "\\":
                    self.escaped = True
                elif character == '"':
                    self.in_text = False
            elif character == '"':
                self.in_text = True
            elif character in "{[":
                self.depth += 1
            elif character in "}]":
                self.depth -= 1
                self.done = self.done or self.depth <= 0

    def _seal(self, index: int) -> tuple[int, ToolCall] | None:
        arguments = "".join(self.pieces)
        if not (self.id and self.name) or decode_arguments(arguments) is None:
            return None
        return index, ToolCall(self.id, self.name, arguments)


def touched(tool: Tool, arguments: dict[str, object]) -> ResourceKeys:
    """What a call of `tool` reads or changes."""
    reads, writes = tool.read_keys(arguments), tool.write_keys(arguments)
    return EVERYTHING if EVERYTHING in (reads, writes) else reads | writes
