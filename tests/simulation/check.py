"""Runs one random program without and with headstart, and compares."""

from __future__ import annotations

import math
from dataclasses import dataclass

import anyio

from headstart import (
    Agent,
    EventLog,
    LimitPolicy,
    Message,
    ModelError,
    TextDelta,
    summarize,
)

from .oracle import run_plain
from .world import Program, World


@dataclass
class Outcome:
    messages: tuple[Message, ...]
    effects: list[tuple[str, int, str]]
    seconds: float  # without what the user took
    shown: str
    failed: bool
    world: World


async def run_conversation(program: Program, answer) -> tuple[tuple[Message, ...], float, bool]:
    messages: tuple[Message, ...] = ()
    spent = 0.0
    for number in range(program.user_messages):
        messages = (*messages, Message(role="user", content=f"u{number}"))
        began = anyio.current_time()
        try:
            messages = await answer(messages)
        except ModelError:
            return messages, spent + anyio.current_time() - began, True
        spent += anyio.current_time() - began
        await anyio.sleep(program.thinks)
    return messages, spent, False


async def run_oracle(program: Program) -> Outcome:
    world = World(program.seed)

    async def answer(messages):
        return await run_plain(program, messages, world)

    messages, seconds, failed = await run_conversation(program, answer)
    shown = "".join(m.content for m in messages if m.role == "assistant")
    return Outcome(
        messages, program.fingerprint(world), seconds, shown, failed, world
    )


async def run_ahead(program: Program, *, cancel_at: float = math.inf) -> Outcome:
    world = World(program.seed)
    agent = Agent(
        program,
        program.tools,
        predictors=program.make_predictors(),
        policy=LimitPolicy(
            max_depth=program.max_depth,
            max_in_flight=program.max_in_flight,
            min_beside_probability=program.min_beside
        ),
        approve=program.approve,
        max_turns=100,
    )
    log = EventLog()
    shown: list[str] = []
    result = ((), math.nan, False)
    with anyio.CancelScope(deadline=anyio.current_time() + cancel_at):
        async with agent.open_session(deps=world, sink=log) as session:

            async def answer(messages):
                async with agent.stream(messages, session=session) as stream:
                    async for item in stream:
                        if isinstance(item, TextDelta):
                            shown.append(item.text)
                return stream.result.messages

            result = await run_conversation(program, answer)
    assert world.running == 0, "a tool still runs after the session"
    summary = summarize(log.events)
    assert summary.launches == (
        summary.hits + summary.early_starts + sum(summary.discard_reasons.values())
    ), "a launch was neither adopted nor discarded"
    messages, seconds, failed = result
    return Outcome(
        messages, program.fingerprint(world), seconds, "".join(shown), failed, world
    )


async def check_all(seed: int) -> None:
    """Check one program with speculation, and cancelled somewhere."""
    program = Program(seed)
    plain = await run_oracle(program)
    await check(program, plain)
    await check_cancelled(program, plain)


async def check(program: Program, plain: Outcome) -> None:
    """Compare one program with the oracle. Raises `AssertionError` where it differs."""
    ahead = await run_ahead(program)
    assert ahead.failed == plain.failed
    assert ahead.effects == plain.effects, "other effects"
    turns = [int(call.split(".")[0][1:]) for call, _, _ in ahead.world.effects]
    assert turns == sorted(turns), "an effect came before one of an earlier turn"
    if not plain.failed:
        assert ahead.messages == plain.messages, "another transcript"
        if program.streams:
            assert ahead.shown == plain.shown, "the user was shown something else"
    if not program.model_fails:  # a request that failed ahead is sent again
        assert ahead.seconds <= plain.seconds, "slower than without"


async def check_cancelled(program: Program, plain: Outcome) -> None:
    """Cancel a program somewhere: what happened by then is what would have happened."""
    moment = (program.seed % 97) / 97 * (plain.seconds + program.thinks)
    ahead = await run_ahead(program, cancel_at=moment + 1e-9)
    turns = [int(call.split(".")[0][1:]) for call, _, _ in ahead.world.effects]
    assert turns == sorted(turns)
    assert set(ahead.effects) <= set(plain.effects), "an effect nobody asked for"
    assert len(set(ahead.effects)) == len(ahead.effects), "an effect happened twice"
