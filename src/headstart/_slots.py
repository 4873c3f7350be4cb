"""The calls of responses: what becomes of them before anybody asks for their result."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from ._branches import certain
from ._calls import ToolCall, ToolResult
from ._launches import LaunchPool, Proposal
from ._tools import Effect, InvalidArgumentsError, Tool
from ._turn import Slot, Turn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._tools import ArgumentsFingerprint

MAX_SHARED = 256
"""Results of `deterministic` reads that a session keeps; the oldest go first."""


class CallRegister:
    """Makes slots of calls, starts them early, and keeps results that calls share.

    Args:
        tools: The session's tools by name.
        pool: Where calls are launched.
        ordered: Whether the host runs the calls of a turn one after the other.
    """

    def __init__(
        self, tools: Mapping[str, Tool], pool: LaunchPool, *, ordered: bool
    ) -> None:
        self._tools = tools
        self._pool = pool
        self._ordered = ordered
        self._shared: deque[tuple[Tool, ArgumentsFingerprint, ToolResult]]
        self._shared = deque(maxlen=MAX_SHARED)

    def new_slot(self, turn: Turn, index: int, call: ToolCall) -> Slot:
        """A call of a turn, with why it cannot run where it cannot."""
        tool = self._tools.get(call.name)
        slot = Slot(index, turn, call, tool)
        if tool is None:
            known = ", ".join(self._tools) or "none"
            text = f"There is no tool {call.name!r}. The tools are: {known}."
            slot.problem = ToolResult(text, is_error=True)
            return slot
        try:
            slot.arguments = tool.validate(call.arguments)
        except InvalidArgumentsError as error:
            text = f"The arguments of {call.name!r} are invalid: {error}"
            slot.problem = ToolResult(text, is_error=True)
            return slot
        slot.writes = tool.write_keys(slot.arguments)
        return slot

    def start(self, slot: Slot) -> None:
        """Launch a call that the model has written, if it may start early."""
        if slot.tool is None or not slot.tool.launchable or slot.problem is not None:
            return
        self._pool.start(
            Proposal(
                home=slot.turn,
                tool=slot.tool,
                arguments=slot.call.arguments,
                cause="sealed",
                slot=slot,
                fingerprint=slot.fingerprint,
            )
        )

    def start_sealed(self, turn: Turn, index: int, call: ToolCall) -> None:
        """A call of a turn is complete in the stream: launch it, or claim its launch."""
        tool = self._tools.get(call.name)
        if tool is None or not tool.launchable or index in turn.sealed:
            return
        slot = self.new_slot(turn, index, call)
        if slot.fingerprint is None:
            return
        turn.sealed[index] = slot
        slot.launch = self._pool.claim(turn, slot)
        if slot.launch is None:
            self.start(slot)

    def claim(self, slot: Slot) -> None:
        """Give a call of a response the launch that stands for it, if there is one."""
        turn = slot.turn
        if slot.launch is None and slot.problem is None:
            slot.launch = self._pool.claim(turn, slot)
        if turn.conflicts(slot, ordered=self._ordered):
            self._pool.withdraw(slot, "its turn writes what it touches")
        elif slot.launch is not None:
            stated = slot.launch.speculator.early_result
            slot.early, slot.source = certain(stated), "tool"

    def prepare(self, slot: Slot) -> None:
        """Let a gated call go up to its barrier while somebody decides about it."""
        if (
            slot.launch is None
            and slot.tool is not None
            and slot.tool.effect is Effect.GATED
            and not slot.turn.conflicts(slot, ordered=self._ordered)
        ):
            self.start(slot)

    def drop_sealed(self, turn: Turn, reason: str) -> None:
        """Discard calls that were started from a stream and are no calls after all."""
        dropped, turn.sealed = turn.sealed, {}
        for slot in dropped.values():
            if slot.launch is not None:
                self._pool.discard(slot.launch, reason)

    def shared_result(self, slot: Slot) -> ToolResult | None:
        """The result of an earlier equal call, where the tool is `deterministic`."""
        if slot.tool is None or not slot.tool.deterministic:
            return None
        for tool, fingerprint, result in self._shared:
            if tool is slot.tool and fingerprint == slot.fingerprint:
                return result
        return None

    def note_result(self, slot: Slot, result: ToolResult) -> None:
        """Keep the result of a `deterministic` read, for equal calls to come."""
        tool, fingerprint = slot.tool, slot.fingerprint
        if tool and fingerprint and not result.is_error and not slot.problem:
            self._shared.append((tool, fingerprint, result))
