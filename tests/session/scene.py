"""The stage of the engine's tests: tools over one world, and a run timed on and off."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio

from headstart import (
    Agent,
    Effect,
    EventLog,
    Message,
    RunResult,
    Tool,
    ToolContext,
    summarize,
)
from headstart.predictors import Prediction

if TYPE_CHECKING:
    from collections.abc import Sequence


class World:
    """What the tools of one run read and change, and when, in seconds of that run."""

    def __init__(self):
        self.began = anyio.current_time()
        self.rows = {}
        self.starts = []  # each start of a tool
        self.effects = []  # each change of the world
        self.barriers = []  # of every call that ran, adopted or not
        self.calls = []  # the identifier of the model's call, at each effect
        self.running = 0

    @property
    def now(self):
        return anyio.current_time() - self.began

    async def run(self, work):
        self.running += 1
        try:
            return await work
        finally:
            self.running -= 1

    def note_start(self, ctx, name, row):
        self.barriers.append(ctx.barrier)
        self.starts.append((self.now, f"{name} {row}"))

    def change(self, ctx, name, row, to):
        self.rows[row] = to
        self.calls.append(ctx.call.id)
        self.effects.append((self.now, f"{name} {row}"))


def read(name="look", *, seconds=2.0, reads=("row:{row}",), **options):
    """A tool that tells what it saw of a row when it started."""

    async def function(ctx: ToolContext[World], row: int) -> str:
        async def work():
            ctx.deps.note_start(ctx, name, row)
            seen = ctx.deps.rows.get(row, "new")
            await anyio.sleep(seconds)
            return f"{row} is {seen}"

        return await ctx.deps.run(work())

    return Tool(function, name=name, effect=Effect.READ, reads=reads, **options)


def write(
    name="change",
    *,
    prepare=1.0,
    takes=1.0,
    early=None,
    effect=Effect.GATED,
    writes=("row:{row}",),
    **options,
):
    """A tool that changes a row: preparation, its barrier, and then the effect."""

    async def function(ctx: ToolContext[World], row: int, to: str = "changed") -> str:
        async def work():
            ctx.deps.note_start(ctx, name, row)
            await anyio.sleep(prepare)
            if early is not None:
                ctx.early_result(early.format(row=row, to=to))
            await ctx.barrier.wait()
            await anyio.sleep(takes)
            ctx.deps.change(ctx, name, row, to)
            return f"{row} is {to}"

        return await ctx.deps.run(work())

    return Tool(
        function, name=name, effect=effect, reads=writes, writes=writes, **options
    )


class Expects:
    """A predictor that expects stated calls after each message of one role.

    It thinks for `delay` seconds first. With `at`, it does so only when the conversation
    has exactly so many messages.
    """

    def __init__(self, *calls, after="user", at=None, delay=0.0, probability=0.9):
        self.after = after
        self.at = at
        self.delay = delay
        self.predictions = [
            Prediction(tool=name, arguments=arguments, probability=probability)
            for name, arguments in calls
        ]

    async def predict(self, conversation):
        messages = conversation.messages
        if messages[-1].role != self.after or self.at not in (None, len(messages)):
            return []
        await anyio.sleep(self.delay)
        return self.predictions


@dataclass
class Arm:
    """One run of an agent, and all that was seen of it from outside."""

    world: World
    log: EventLog = field(default_factory=EventLog)
    result: RunResult | None = None
    seconds: float = 0.0

    @property
    def summary(self):
        return summarize(self.log.events)

    @property
    def answers(self):
        """What the model was told by tools."""
        return [m.content for m in self.result.messages if m.role == "tool"]

    def of(self, kind):
        """The events of one kind."""
        return [event for event in self.log.events if isinstance(event, kind)]

    def when(self, kind):
        return [event.at_s for event in self.of(kind)]


async def play(agent: Agent[Any], text="Go.", **options) -> Arm:
    """Run an agent in a session of its own, on a new world."""
    arm = Arm(World())
    async with agent.open_session(deps=arm.world, sink=arm.log, **options) as session:
        arm.result = await agent.run(text, session=session)
        arm.seconds = arm.world.now
    assert arm.world.running == 0
    return arm


async def play_both(agent: Agent[Any], text="Go.", **options) -> tuple[Arm, Arm]:
    """Run an agent without and with speculation, and hold that both do the same."""
    off = await play(agent, text, speculate=False, **options)
    on = await play(agent, text, **options)
    assert on.result == off.result
    assert [what for _, what in on.world.effects] == [
        what for _, what in off.world.effects
    ]
    assert on.world.rows == off.world.rows
    assert off.summary.hidden_s == off.summary.launches == 0
    return off, on


async def talk(agent: Agent[Any], texts: Sequence[str], *, pause=0.0, **options) -> Arm:
    """Say one thing after the other in one session, `pause` seconds apart."""
    arm = Arm(World())
    messages: list[Message] = []
    async with agent.open_session(deps=arm.world, sink=arm.log, **options) as session:
        for number, text in enumerate(texts):
            await anyio.sleep(pause if number else 0)
            messages.append(Message(role="user", content=text))
            asked_at = arm.world.now
            arm.result = await agent.run(messages, session=session)
            arm.seconds += arm.world.now - asked_at
            messages = list(arm.result.messages)
    assert arm.world.running == 0
    return arm
