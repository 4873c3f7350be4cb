"""The launched calls of a session: what may start, who claims it, when it is stale.

Rules of this file:

1. Nothing here waits.
2. Default deny: a call starts early only if its effect allows it, its arguments are
   valid, no write ahead of it is open, and the policy admits it.
3. A live launch is fresh by construction: one that overlaps a write is discarded when
   that write begins, and none starts while such a write is open. So no launch has to
   be compared with a history of writes when it is adopted.
4. A launch leaves the pool once: adopted or discarded.

Over 600 lines: what starts a launch and what ends it are read together, by rule 3.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from ._call_speculation import ToolCallSpeculator
from ._events import (
    CallLaunched,
    CallRefused,
    EffectHeld,
    Recorder,
    SpeculationAdopted,
    SpeculationDiscarded,
)
from ._lifecycle import SpeculationState
from ._policy import (
    AS_STATED,
    REST_S,
    Candidate,
    Cause,
    Experience,
    Policy,
    is_overload,
)
from ._resources import overlaps
from ._tools import Effect, InvalidArgumentsError, Tool
from ._turn import Launch, Slot, Turn, touched

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anyio import Event
    from anyio.abc import TaskGroup

    from ._barrier import WriteBarrier
    from ._calls import ToolResult
    from ._resources import ResourceKeys
    from ._tools import ArgumentsFingerprint

logger = logging.getLogger("headstart")

_USABLE = frozenset({SpeculationState.RUNNING, SpeculationState.READY})
MAX_KEPT = 64
"""Ended, unclaimed launches that a session keeps; the oldest go first."""
MIN_WASTE_S = 0.001
"""Guesses end so many seconds before they have wasted what they may."""
WATCHED_LAUNCHES = 8
"""How many guesses may be running before their waste is looked at anew."""


@dataclass(slots=True, kw_only=True)
class Proposal:
    """A call that somebody wants launched."""

    home: Turn
    tool: Tool
    arguments: str
    cause: Cause
    probability: float = 1.0
    origin: str = ""
    span: str = ""
    slot: Slot | None = None  # the call of a turn that will claim it
    fingerprint: ArgumentsFingerprint | None = None  # of the arguments, if known

    @property
    def outlives(self) -> bool:
        """Whether its launch is kept when the turn that it is for is discarded."""
        return self.cause == "predicted" and self.tool.effect is Effect.READ


class LaunchPool:
    """Every live launch of one session.

    Args:
        deps: What tools receive.
        conditions: What effects wait for, besides their own call.
        policy: Who admits.
        experience: What the policy goes by.
        recorder: Who is told.
        clock: The event loop's.
        on_early_result: Called with a launch that stated its result early.
        on_end: Called with a launch that has ended and was not adopted before.
    """

    def __init__(
        self,
        *,
        deps: Any,
        conditions: Sequence[WriteBarrier],
        policy: Policy,
        experience: Experience,
        recorder: Recorder,
        clock: Callable[[], float],
        on_early_result: Callable[[Launch, ToolResult], None],
        on_end: Callable[[Launch], None],
    ) -> None:
        self._deps = deps
        self._conditions = conditions
        self._policy = policy
        self._max_wasted_s = getattr(policy, "max_wasted_s", math.inf)
        self._experience = experience
        self._resting: dict[str, float] = {}
        self._recorder = recorder
        self._now = clock
        self._on_early_result = on_early_result
        self._on_end = on_end
        self._live: list[Launch] = []
        self._waiting: list[Proposal] = []
        self._open_writes: list[Slot] = []
        self._unreliable: set[str] = set()
        self._running: dict[str, int] = {}
        self._watch: Event | None = None
        self._watched_for = 0
        self.wasted_s = 0.0
        self.spent_usd = 0.0
        self.task_group: TaskGroup | None = None

    def start(self, proposal: Proposal) -> Launch | None:
        """Launch a call, or note why not. `None` when it is not running now.

        A call that overlaps a write still open ahead of it is kept, and started when
        the write has ended.
        """
        try:
            return self._start(proposal)
        except Exception as error:
            logger.exception("A call of %r was not launched.", proposal.tool.name)
            self.refuse(proposal, f"{type(error).__name__} was raised")
            return None

    def _start(self, proposal: Proposal) -> Launch | None:
        tool, slot = proposal.tool, proposal.slot
        if slot is not None and not slot.wants_launch:
            return None
        if not tool.launchable:
            return self.refuse(proposal, "effect")
        if tool.approval and tool.effect is Effect.READ:
            return self.refuse(proposal, "approval")
        if proposal.cause == "sealed" and tool.name in self._unreliable:
            return self.refuse(proposal, "its stream changed a sealed call before")
        if self._now() < self._resting.get(tool.name, 0.0):
            return self.refuse(proposal, "its provider has too much to do")
        try:
            touches = touched(tool, tool.validate(proposal.arguments))
        except InvalidArgumentsError:
            return self.refuse(proposal, "arguments")
        if self._is_blocked(proposal, touches):
            self._waiting.append(proposal)
            return None
        reason = self._policy.refuse_launch(self._candidate(proposal))
        if reason is not None:
            if reason not in AS_STATED:
                self._experience.note_refusal(tool.name, proposal.origin)
            return self.refuse(proposal, reason)
        self._experience.note_launch(tool.name, proposal.origin)
        return self._launch(proposal, touches)

    def _at_stake_s(self) -> float:
        """Seconds wasted, with those of predicted calls that nobody has asked for yet."""
        now = self._now()
        return self.wasted_s + sum(
            launch.speculator.running_seconds(now)
            for launch in self._live
            if launch.slot is None and launch.cause == "predicted"
        )

    def _guesses(self) -> list[Launch]:
        """Predicted calls that run and that nobody has asked for yet."""
        return [
            launch
            for launch in self._live
            if launch.slot is None
            and launch.cause == "predicted"
            and not (launch.speculator.ended or launch.speculator.held)
        ]

    def _watch_waste(self, group: TaskGroup) -> None:
        """See to it that guesses end when they have wasted what they may."""
        if self._max_wasted_s == math.inf:
            return
        if self._watch is None:
            self._watch = anyio.Event()
            group.start_soon(self._end_waste, name="headstart waste")
        elif len(self._guesses()) > self._watched_for:
            self._watch.set()

    async def _end_waste(self) -> None:
        while True:
            self._watch = anyio.Event()
            left_s, running = self._max_wasted_s - self._at_stake_s(), self._guesses()
            if running and left_s <= MIN_WASTE_S:
                for launch in running:
                    self.discard(launch, "seconds wasted")
            elif running:
                # Launches up to this count need not wake it: it looks again in time.
                self._watched_for = max(len(running), WATCHED_LAUNCHES)
                with anyio.move_on_after(left_s / self._watched_for):
                    await self._watch.wait()
            else:
                self._watched_for = 0
                await self._watch.wait()

    def _candidate(self, proposal: Proposal) -> Candidate:
        return Candidate(
            tool=proposal.tool,
            probability=proposal.probability,
            cause=proposal.cause,
            depth=proposal.home.depth,
            in_flight=sum(not launch.speculator.ended for launch in self._live),
            in_flight_of_tool=self._running.get(proposal.tool.name, 0),
            wasted_s=self._at_stake_s() + MIN_WASTE_S,  # where guesses are ended
            spent_usd=self.spent_usd,
            record=self._experience.record(proposal.tool.name, proposal.origin),
            tool_s=self._experience.seconds(proposal.tool.name),
            model_s=self._experience.seconds(""),
            turn_probability=1.0 if proposal.outlives else proposal.home.probability,
        )

    def _launch(self, proposal: Proposal, touches: ResourceKeys) -> Launch | None:
        if self.task_group is None:
            return None
        tool, home = proposal.tool, proposal.home
        speculator = ToolCallSpeculator(
            tool,
            proposal.arguments,
            # A read has no effect that its turn would have to hold, and what it reads
            # is fresh or not whatever becomes of that: it may be kept for another.
            parent=home.ground.barrier if proposal.outlives else home.barrier,
            deps=self._deps,
            conditions=self._conditions,
            fingerprint=proposal.fingerprint,
        )
        launch = Launch(
            speculator,
            cause=proposal.cause,
            origin=proposal.origin,
            probability=proposal.probability,
            home=home,
            touches=touches,
            outlives=proposal.outlives,
        )
        self._live.append(launch)
        self._running[tool.name] = self._running.get(tool.name, 0) + 1
        self.spent_usd += tool.cost_usd
        self._recorder.emit(
            CallLaunched,
            turn=home.id,
            span=speculator.span_id,
            tool=tool.name,
            cause=proposal.cause,
        )
        if proposal.slot is not None:
            launch.slot = proposal.slot
            proposal.slot.launch = launch
        watch = _Watch(self, launch)
        speculator.launch(
            self.task_group,
            on_hold=watch.held,
            on_end=watch.ended,
            on_early_result=watch.stated,
            clock=self._now,
        )
        if proposal.cause == "predicted":
            self._watch_waste(self.task_group)
        self._forget_oldest()
        return launch

    def refuse(self, proposal: Proposal, reason: str) -> None:
        """Note why a call is not launched."""
        self._recorder.emit(
            CallRefused,
            turn=proposal.home.id,
            span=proposal.span,
            tool=proposal.tool.name,
            reason=reason,
        )

    def _is_blocked(self, proposal: Proposal, touches: ResourceKeys) -> bool:
        if any(overlaps(slot.writes, touches) for slot in self._open_writes):
            return True
        # What is predicted comes after its turn; what is sealed is of its turn.
        predicted = proposal.cause == "predicted"
        turn = proposal.home if predicted else proposal.home.parent
        while turn is not None:
            if turn.has_unfinished_write(touches):
                return True
            turn = turn.parent
        return False

    def held(self, launch: Launch) -> None:
        """A launch has come to its first effect."""
        span = launch.speculator.span_id
        self._recorder.emit(EffectHeld, span=span, tool=launch.tool.name)

    def stated(self, launch: Launch, result: ToolResult) -> None:
        """A launch has stated its result early."""
        self._on_early_result(launch, result)

    def ended(self, launch: Launch) -> None:
        """A launch has ended, adopted or not."""
        self._running[launch.tool.name] -= 1
        if launch not in self._live:
            return
        if is_overload(launch.speculator.error):
            self._resting[launch.tool.name] = self._now() + REST_S
        if launch.speculator.state is SpeculationState.FAILED:
            self.discard(launch, "it failed before it was confirmed")
        elif launch.speculator.state is SpeculationState.DISCARDED:
            self.discard(launch, launch.speculator.barrier.reason or "it was denied")
        else:
            self._on_end(launch)

    def _forget_oldest(self) -> None:
        kept = [
            launch
            for launch in self._live
            if launch.slot is None and launch.speculator.ended
        ]
        for launch in kept[: max(0, len(kept) - MAX_KEPT)]:
            self.discard(launch, "too many are kept")

    def discard_too_old(self) -> None:
        """Let go of what nobody may claim any more, so that it can be launched again."""
        now = self._now()
        self.discard_where(
            "it is older than max_age",
            lambda launch: launch.slot is None and _too_old(launch, now),
        )

    def count_equal(self, turn: Turn, tool: Tool, fingerprint: object) -> int:
        """How many equal calls are launched and unclaimed, waiting, or of this turn."""
        return sum(
            launch.tool is tool
            and launch.slot is None
            and (_visible(launch, turn) or launch.home.stands_on(turn))
            and launch.speculator.fingerprint == fingerprint
            for launch in self._live
        ) + sum(
            proposal.slot is None
            and proposal.tool is tool
            and self._fingerprint_of(proposal) == fingerprint
            for proposal in self._waiting
        )

    def claim(self, turn: Turn, slot: Slot) -> Launch | None:
        """Give `slot` the oldest unclaimed launch of an equal call, if there is one."""
        if not (self._live or self._waiting):
            return None
        now = self._now()
        for launch in list(self._live):
            if (
                launch.slot is None
                and launch.tool is slot.tool
                and launch.speculator.state in _USABLE
                and _visible(launch, turn)
                and _is_call(launch.speculator, slot)
            ):
                if _too_old(launch, now):
                    self.discard(launch, "it is older than max_age")
                    continue
                launch.slot = slot
                return launch
        for proposal in self._waiting:
            if (
                proposal.slot is None
                and proposal.tool is slot.tool
                and (proposal.home.confirmed or turn.stands_on(proposal.home))
                and _equal(self._fingerprint_of(proposal), slot.fingerprint)
            ):
                # The call itself takes the place of the guess that it would come.
                self._waiting.remove(proposal)
                break
        return None

    @staticmethod
    def _fingerprint_of(proposal: Proposal) -> ArgumentsFingerprint | None:
        if proposal.fingerprint is None:
            proposal.fingerprint = proposal.tool.fingerprint(proposal.arguments)
        return proposal.fingerprint

    @property
    def running(self) -> bool:
        """Whether anything that was launched has not ended."""
        return any(not launch.speculator.ended for launch in self._live)

    def unclaimed(self) -> list[Launch]:
        """Live launches that no call has claimed."""
        return [launch for launch in self._live if launch.slot is None]

    def find(
        self,
        turn: Turn,
        tool: Tool,
        fingerprint: ArgumentsFingerprint,
        taken: list[Launch],
    ) -> Launch | None:
        """The launch that `turn` would claim for a call, were it not for `taken`."""
        now = self._now()
        for launch in self._live:
            if (
                launch.slot is None
                and launch.tool is tool
                and launch not in taken
                and launch.speculator.state in _USABLE
                and _visible(launch, turn)
                and not _too_old(launch, now)
                and _equal(launch.speculator.fingerprint, fingerprint)
            ):
                return launch
        return None

    def release(self, launch: Launch) -> None:
        """Let others claim a launch again."""
        launch.slot = None

    def refuse_adoption(self, launch: Launch) -> str | None:
        """Why a claimed launch may not be adopted now; `None` when it may."""
        if launch.speculator.state not in _USABLE:
            return launch.speculator.barrier.reason or "it was denied"
        if _too_old(launch, self._now()):
            return "it is older than max_age"
        return None

    def adopt(self, launch: Launch, slot: Slot) -> None:
        """Confirm a launch: the model has asked for it, and it may be used."""
        ready = launch.speculator.ended
        now = self._now()
        hidden_s = launch.speculator.running_seconds(now)
        launch.speculator.confirm(slot.call)
        self._live.remove(launch)
        self.spent_usd -= launch.tool.cost_usd
        if launch.cause == "predicted" and not launch.strayed:
            self._experience.note_outcome(
                launch.tool.name, launch.origin, hit=True, stated=launch.probability
            )
        self._recorder.emit(
            SpeculationAdopted,
            turn=slot.turn.id,
            span=launch.speculator.span_id,
            call_id=slot.call.id,
            tool=launch.tool.name,
            cause=launch.cause,
            hidden_s=hidden_s,
            ready=ready,
        )

    def discard(self, launch: Launch, reason: str) -> None:
        """End a launch, whoever has claimed it; its claimant runs it for real."""
        if launch not in self._live:
            return
        self._live.remove(launch)
        wasted_s = launch.speculator.running_seconds(self._now())
        self.wasted_s += wasted_s
        if (
            launch.cause == "predicted"
            and launch.home.confirmed
            and not launch.strayed  # it was stated for a turn that did not come
        ):
            self._experience.note_outcome(
                launch.tool.name, launch.origin, hit=False, stated=launch.probability
            )
        launch.speculator.cancel(reason)
        if launch.slot is not None:
            launch.slot.launch = None
        self._recorder.emit(
            SpeculationDiscarded,
            turn=launch.home.id,
            span=launch.speculator.span_id,
            tool=launch.tool.name,
            cause=launch.cause,
            reason=reason,
            wasted_s=wasted_s,
        )

    def discard_where(
        self, reason: str, condition: Callable[[Launch], bool]
    ) -> list[Slot]:
        """Discard every live launch that `condition` holds for.

        Returns:
            The slots that lost their launch.
        """
        found = [launch for launch in self._live if condition(launch)]
        bereft = [launch.slot for launch in found if launch.slot is not None]
        for launch in found:
            self.discard(launch, reason)
        return bereft

    def keep_to(self, tools: Mapping[str, Tool]) -> list[Slot]:
        """Discard what was launched, or waits to be, of tools that are not these.

        Returns:
            The slots that lost their launch.
        """
        self._waiting = [
            kept for kept in self._waiting if tools.get(kept.tool.name) is kept.tool
        ]
        return self.discard_where(
            "its tool is gone",
            lambda launch: tools.get(launch.tool.name) is not launch.tool,
        )

    def use_conditions(self, conditions: Sequence[WriteBarrier]) -> list[Slot]:
        """Let effects wait for these from now on, and discard what waits for others.

        Returns:
            The slots that lost their launch.
        """
        self._conditions = conditions
        return self.discard_where(
            "its conditions have changed",
            lambda launch: launch.tool.effect is Effect.GATED,
        )

    def distrust_stream(self, tool: str) -> None:
        """Start no more calls of `tool` from the stream: it changed a sealed one."""
        self._unreliable.add(tool)

    def withdraw(self, slot: Slot, reason: str) -> None:
        """Take back what was launched for a call, or waits to be."""
        self._waiting = [kept for kept in self._waiting if kept.slot is not slot]
        if slot.launch is not None:
            self.discard(slot.launch, reason)

    def leave(self, turn: Turn, survivor: Turn | None, reason: str) -> None:
        """Discard what was launched for a turn that is; reads are kept for `survivor`."""
        self.forget_waiting(turn)
        for launch in [launch for launch in self._live if launch.home is turn]:
            if launch.outlives and survivor is not None:
                launch.home, launch.strayed = survivor, True
            else:
                self.discard(launch, reason)

    def forget_waiting(self, turn: Turn) -> None:
        """Drop the proposals that wait for a write ahead of a discarded turn."""
        self._waiting = [kept for kept in self._waiting if kept.home is not turn]

    def begin_write(self, slot: Slot) -> list[Slot]:
        """A confirmed call that changes something starts.

        Returns:
            The slots that lost their launch, as it had seen the state before.
        """
        self._open_writes.append(slot)
        return self.discard_where(
            "a write ahead of it changed what it touches",
            lambda launch: (
                launch is not slot.launch and overlaps(slot.writes, launch.touches)
            ),
        )

    def end_write(self, slot: Slot) -> None:
        """A confirmed call that changes something has ended; start what waited."""
        self._open_writes.remove(slot)
        self.retry_waiting()

    def retry_waiting(self) -> None:
        """Start what waited for a write, if nothing is in its way any more."""
        waiting, self._waiting = self._waiting, []
        for proposal in waiting:
            self.start(proposal)

    def note_real_call(self, tool: Tool, change: int) -> None:
        """Count a call that was not launched early, for the limits of its tool."""
        self._running[tool.name] = self._running.get(tool.name, 0) + change

    def close(self) -> None:
        """Discard everything. Nothing is launched afterwards."""
        self.task_group = None
        self._waiting.clear()
        self.discard_where("the session ended", lambda _: True)


class _Watch:
    """Tells a pool of one of its launches; smaller than three closures."""

    __slots__ = ("launch", "pool")

    def __init__(self, pool: LaunchPool, launch: Launch) -> None:
        self.pool = pool
        self.launch = launch

    def held(self) -> None:
        self.pool.held(self.launch)

    def ended(self) -> None:
        self.pool.ended(self.launch)

    def stated(self, result: ToolResult) -> None:
        self.pool.stated(self.launch, result)


def _visible(launch: Launch, turn: Turn) -> bool:
    return launch.home.confirmed or turn.stands_on(launch.home)


def _equal(
    left: ArgumentsFingerprint | None, right: ArgumentsFingerprint | None
) -> bool:
    return left is not None and right is not None and left == right


def _is_call(speculator: ToolCallSpeculator, slot: Slot) -> bool:
    if speculator.fingerprint is None:
        return False
    if speculator.arguments == slot.call.arguments:
        return slot.take_fingerprint(speculator.fingerprint)
    return _equal(speculator.fingerprint, slot.fingerprint)


def _too_old(launch: Launch, now: float) -> bool:
    age = launch.tool.max_age
    return age is not None and now - launch.speculator.started_at > age
