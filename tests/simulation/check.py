"""Runs one random program without and with headstart, and compares."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import anyio

from headstart import (
    Agent,
    BarrierState,
    EventLog,
    Message,
    ModelError,
    Session,
    TextDelta,
    summarize,
)
from headstart._events import (
    CallLaunched,
    SpeculationAdopted,
    SpeculationDiscarded,
    TurnConfirmed,
    TurnDiscarded,
    TurnStarted,
)

from .host import answer
from .oracle import run_call
from .program import Program
from .world import World, is_guess, turn_of


@dataclass
class Outcome:
    world: World
    messages: tuple[Message, ...] = ()
    shown: list[str] = field(default_factory=list)
    seconds: float = 0.0  # without what the user took
    began: float = 0.0
    failed: bool = False
    ended: bool = False
    log: EventLog = field(default_factory=EventLog)
    asked: list[int] = field(default_factory=list)  # how many events there were then

    def receive(self, delta: object) -> None:
        if isinstance(delta, TextDelta):
            self.shown.append(delta.text)


async def converse(program: Program, outcome: Outcome, reply, idle) -> None:
    """The user says something, waits for the answer, thinks, and says something more."""
    for number in range(program.user_messages):
        said = program.next_message(number, outcome.messages)
        began = anyio.current_time()
        try:
            outcome.messages = await reply((*outcome.messages, said))
        except ModelError:
            outcome.failed = True
        outcome.seconds += anyio.current_time() - began
        if outcome.failed:
            break
        await anyio.sleep(program.thinks / 2)
        idle()
        await anyio.sleep(program.thinks / 2)
    outcome.ended = True


async def run_plain(program: Program) -> Outcome:
    """Run a program by the oracle."""
    outcome = Outcome(World(program.plans))
    async with program.settled_conditions() as conditions:
        call = partial(run_call, program, conditions, outcome.world)

        async def reply(messages):
            return await answer(
                program, messages, program.respond, call, outcome.receive
            )

        await converse(program, outcome, reply, lambda: None)
    return outcome


async def run_ahead(program: Program, *, cancel_at: float = math.inf) -> Outcome:
    """Run a program with headstart, and see that nothing is left of it."""
    outcome = Outcome(World(program.plans))
    agent = Agent(program, program.tools, approve=program.approve, max_turns=100)
    with anyio.CancelScope(deadline=anyio.current_time() + cancel_at) as scope:
        async with (
            program.settled_conditions() as conditions,
            Session(
                program.tools,
                deps=outcome.world,
                predictors=program.make_predictors(),
                policy=program.policy,
                sink=outcome.log,
                approve=program.approve,
                permit=program.permit if program.has_permits else None,
                conditions=conditions,
                ordered=program.host.startswith("ordered"),
            ) as session,
        ):
            outcome.began = anyio.current_time()
            note_asks(session, outcome)

            async def reply(messages):
                if program.is_agent:
                    return await stream(agent, messages, session, outcome)
                return await answer(
                    program,
                    messages,
                    lambda request, receive: session.ask(
                        request, program.respond, receive
                    ),
                    session.call,
                    outcome.receive,
                )

            await converse(program, outcome, reply, session.idle)
    assert outcome.ended or scope.cancelled_caught, "a cancellation was lost"
    check_rest(program, outcome)
    return outcome


def note_asks(session: Session, outcome: Outcome) -> None:
    ask = session.ask

    async def noted(*args):
        outcome.asked.append(len(outcome.log.events))
        return await ask(*args)

    session.ask = noted


async def stream(agent: Agent, messages, session, outcome: Outcome):
    async with agent.stream(messages, session=session) as items:
        async for item in items:
            outcome.receive(item)
    return items.result.messages


async def check_all(seed: int) -> list[Outcome]:
    """Check one program with speculation; every third one cancelled somewhere, too.

    Raises:
        AssertionError: A promise is broken; the message says which.
    """
    program = Program(seed)
    plain = await run_plain(program)
    ahead = await run_ahead(program)
    check_same(program, plain, ahead)
    if seed // 4 % 3:
        return [ahead]
    moment = int((seed % 97) / 97 * (plain.seconds + program.thinks) * 64) / 64
    # Half of them at a moment when something else may happen, too.
    cut = await run_ahead(program, cancel_at=moment + seed // 12 % 2 / 1024)
    check_cancelled(plain, cut)
    return [ahead, cut]


def check_same(program: Program, plain: Outcome, ahead: Outcome) -> None:
    effects = program.fingerprint(ahead.world)
    assert effects == program.fingerprint(plain.world), "other effects"
    assert ahead.failed == plain.failed, "it failed, or should have"
    assert ahead.messages == plain.messages, "another transcript"
    if not program.whims:  # what was interrupted may have been at the host already
        assert ahead.shown == plain.shown, "the user was shown something else"
    if not program.fails:  # a request that failed ahead is sent again
        # A real call takes up to 3/64 s longer than its launch, so that no two of a turn
        # end at once. So much more of its timeout may be left to a launch that is held.
        plans = program.plans.values()
        slack = 1 / 16 if any(plan.options.get("timeout") for plan in plans) else 0.0
        assert ahead.seconds <= plain.seconds + slack, "slower than without"


def check_cancelled(plain: Outcome, cut: Outcome) -> None:
    """What happened before the cancellation is what would have happened."""
    effects = cut.world.effects
    assert set(effects) <= set(plain.world.effects), "an effect nobody asked for"
    assert len(set(effects)) == len(effects), "an effect happened twice"


def check_rest(program: Program, outcome: Outcome) -> None:
    """Check what holds after every run, however it ended."""
    world, log = outcome.world, outcome.log
    guessed = [effect for effect in world.effects if not effect[0].startswith("c.")]
    assert not guessed, "a guess has had an effect"
    assert not world.running, "a tool still runs after the session"
    for context, _ in world.runs:
        state = context.barrier.effective_state
        if is_guess(context):
            assert state is BarrierState.DENIED, "a guess is not denied"
        elif outcome.ended and not program.conditions:
            assert state is not BarrierState.HELD, "a barrier is still held"
    turns = [turn_of(call_id) for call_id, _, _ in world.effects]
    assert turns == sorted(turns), "an effect came before one of an earlier turn"
    total = summarize(log.events)
    settled = total.hits + total.early_starts + sum(total.discard_reasons.values())
    assert total.launches == settled, "a launch was neither adopted nor discarded"
    check_budget(program, outcome)
    check_spending(program, outcome)
    check_ages(program, outcome)


def check_budget(program: Program, outcome: Outcome) -> None:
    if not program.conditions:  # a real call that waits for one is held as well
        assert outcome.world.peak <= program.policy.max_in_flight, "too many in flight"
    if program.whims or program.fails:  # a turn may be adopted and not answered
        return
    depths = {0: 0}
    confirmed = _confirmed_when_asked(outcome)
    # Whether the last turn was one that was run ahead is only known at its end.
    last = None if outcome.ended else max(outcome.asked, default=0)
    for number, event in enumerate(outcome.log.events[:last]):
        if turn := confirmed.get(number):
            gone = depths[turn]
            depths = {turn: depth - gone for turn, depth in depths.items()}
        if isinstance(event, TurnStarted):
            depth = depths[event.parent or 0] + 1 if event.speculative else 0
            depths[event.turn] = depth
            assert depth <= program.policy.max_depth, "too deep"


def check_spending(program: Program, outcome: Outcome) -> None:
    """Nothing is started on what has been wasted, and nothing costs more than it may."""
    costs = {tool.name: tool.cost_usd for tool in program.tools}
    policy = program.policy
    wasted_s, wasted_tokens, spent_usd = 0.0, 0, 0.0
    for event in outcome.log.events:
        match event:
            case TurnStarted(speculative=True):
                assert wasted_tokens < policy.max_wasted_tokens, "too many tokens"
            case CallLaunched():
                if event.cause == "predicted":
                    assert wasted_s < policy.max_wasted_s, "too many seconds wasted"
                spent_usd += costs[event.tool]
                assert spent_usd <= policy.max_spent_usd, "too much money spent"
            case SpeculationAdopted():
                spent_usd -= costs[event.tool]
            case SpeculationDiscarded():
                wasted_s += event.wasted_s
            case TurnDiscarded():
                wasted_tokens += event.wasted_tokens
            case _:
                pass


def _confirmed_when_asked(outcome: Outcome) -> dict[int, int]:
    """Turns that the host asked for, by how many events there were then."""
    confirmed: dict[int, int] = {}
    for number, event in enumerate(outcome.log.events):
        if isinstance(event, TurnConfirmed):
            confirmed[max(at for at in outcome.asked if at <= number)] = event.turn
    return confirmed


def check_ages(program: Program, outcome: Outcome) -> None:
    limits = {tool.name: tool.max_age for tool in program.tools}
    began = {context.call.id: at for context, at in outcome.world.runs}
    for event in outcome.log.events:
        if isinstance(event, SpeculationAdopted):
            limit = limits[event.tool]
            if limit is not None and event.call_id in began:
                age = outcome.began + event.at_s - began[event.call_id]
                assert age <= limit, "an adopted call is older than max_age"
