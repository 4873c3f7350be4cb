"""Tools over a world that they share: what they see of it, and what they change.

Everything follows from the seed. Whatever a part decides, it decides by a hash of what
it sees, never by counting how often it was asked: so a run with speculation, which asks
more often, meets the same world. Times are multiples of 1/1024 s, so they add up exactly.
"""

from __future__ import annotations

import copy
import functools
import math
import random
import zlib
from dataclasses import dataclass, field

import anyio

from headstart import BarrierState, Effect, Tool, ToolContext


def pick(seed: int, *what: object) -> random.Random:
    return random.Random(zlib.crc32(repr((seed, *what)).encode()) * 7919 + seed)


def eighths(rng: random.Random, most: float) -> float:
    return rng.randint(0, int(most * 8)) / 8


@dataclass(frozen=True, kw_only=True)
class ToolPlan:
    """How one tool behaves: drawn once, the same in every world of the program."""

    name: str
    effect: Effect
    keys: str  # how its resources are declared: "exact", "wide", "none" or "nothing"
    copies: bool  # it reads another key than it writes
    options: dict[str, object]
    before: float  # seconds before it reads the state
    between: float  # seconds from there to its barrier
    after: float  # seconds from its barrier to its effect
    rest: float
    early: str  # "none", "true", "false" or "changing": what it states before that
    fails: str
    """"never", "always", "after", as a guess at its "first" or "later" step, or
    "impatient": when it is held for a quarter of a second."""

    def make_tool(self) -> Tool:
        tool = copy.copy(_make_tool(self.effect, self.keys, self.copies))
        vars(tool).update(self.options, name=self.name)
        return tool


@functools.cache
def _make_tool(effect: Effect, keys: str, copies: bool) -> Tool:
    """A tool of this kind. Programs share its schema, which takes long to make."""

    async def function(
        context: ToolContext[World], k: int, v: int = 0, r: int = 0
    ) -> str:
        return await context.deps.run_tool(context, k, v, r)

    writes = {"exact": ["k:{k}"], "wide": ["k"], "none": None, "nothing": []}[keys]
    reads = ["k:{r}"] if copies and keys == "exact" else writes
    if effect is Effect.READ:
        writes = None
    return Tool(function, name="any", effect=effect, reads=reads, writes=writes)


def changed(seen: str, v: int) -> str:
    """What a write makes of the state that it has seen."""
    return f"{zlib.crc32(seen.encode()) % 97}.{v}"


@dataclass
class World:
    """The state that tools share, and the effects that happened, in order."""

    plans: dict[str, ToolPlan]
    state: dict[int, str] = field(default_factory=dict)
    effects: list[tuple[str, int, str]] = field(default_factory=list)
    runs: list[tuple[ToolContext, float]] = field(default_factory=list)
    running: list[ToolContext] = field(default_factory=list)
    peak: int = 0  # of held calls that ran at once

    async def run_tool(self, context: ToolContext, k: int, v: int, r: int) -> str:
        plan = self.plans[context.call.name]
        self.runs.append((context, anyio.current_time()))
        self.running.append(context)
        self._count()
        try:
            if plan.fails == "first" and is_guess(context):
                raise ConnectionError("only a guess fails so")
            await anyio.sleep(plan.before + _tie_break(context))
            seen = self.state.get(r if plan.copies else k, "-")
            if plan.keys == "nothing":
                seen = f"always {v}"
            if plan.fails == "always" or (plan.fails == "later" and is_guess(context)):
                raise ValueError(f"no {k}")
            await anyio.sleep(plan.between)
            if plan.effect is Effect.READ:
                self._state_early(plan, context, f"{k} is {seen}")
                await anyio.sleep(plan.after)
                return f"{k} is {seen}"
            new = changed(seen, v)
            self._state_early(plan, context, f"{k}:={new}")
            if plan.effect is Effect.GATED:
                patience = 0.25 if plan.fails == "impatient" else math.inf
                with anyio.move_on_after(patience) as limit:
                    await context.barrier.wait()
                if limit.cancelled_caught:
                    return f"{k} takes too long"
            await anyio.sleep(plan.after + _tie_break(context) / 4)
            self.state[k] = new
            self.effects.append((context.call.id, k, new))
            await anyio.sleep(plan.rest)
            if plan.fails == "after":
                raise ValueError(f"{k} is changed, and yet")
            return f"{k}:={new}"
        finally:
            self.running.remove(context)

    @staticmethod
    def _state_early(plan: ToolPlan, context: ToolContext, result: str) -> None:
        if plan.early in ("false", "changing"):
            context.early_result("?")
        if plan.early in ("true", "changing"):
            context.early_result(result)

    def _count(self) -> None:
        held = BarrierState.HELD
        self.peak = max(
            self.peak, sum(c.barrier.effective_state is held for c in self.running)
        )


def is_guess(context: ToolContext) -> bool:
    """Whether the call is not the model's (yet): only its calls are called so."""
    return not context.call.id.startswith("c.")


def turn_of(call_id: str) -> int:
    """The turn whose call it is: its identifier is "c.TURN.INDEX"."""
    _, turn, _ = call_id.split(".")
    return int(turn)


def _tie_break(context: ToolContext) -> float:
    """Keep real calls of a turn from reading or writing at one moment: a matter of chance."""
    return 0.0 if is_guess(context) else int(context.call.id.split(".")[2]) / 64
