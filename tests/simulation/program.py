"""A random agent: its tools, its model, its user, its host, and who approves."""

from __future__ import annotations

import json
import math
import random
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio

from headstart import (
    CallDelta,
    Effect,
    LimitPolicy,
    Message,
    ModelError,
    ModelRequest,
    ModelResponse,
    TextDelta,
    ToolCall,
    Usage,
    ValuePolicy,
    WriteBarrier,
)

from .guessing import Guesser, Stater
from .mood import MOODS
from .world import ToolPlan, World, eighths, pick, turn_of


def _without_haste(fails: str) -> str:
    return "never" if fails == "impatient" else fails


WHIMS = ("interrupt", "forget", "settings")


class Program:
    """Everything about a program that is not the world it runs in."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._answers: dict[str, ModelResponse] = {}
        rng = random.Random(seed)
        weights = [mood.weight for mood in MOODS.values()]
        (name,) = rng.choices(list(MOODS), weights)
        self.mood = mood = MOODS[name]
        self.key_count = rng.choice(mood.key_counts)
        plans = [self._plan(rng, n) for n in range(rng.choice(mood.tool_counts))]
        self.user_messages = rng.choice((1, 1, 1, 1, 2))
        self.thinks = eighths(rng, 3)
        self.conditions = self._draw_conditions(rng)
        if self.conditions:  # how long they take is not the same for who starts early
            plans = [replace(plan, fails=_without_haste(plan.fails)) for plan in plans]
        self.plans = {plan.name: plan for plan in plans}
        self.tools = [plan.make_tool() for plan in plans]
        self.turns = rng.choice(mood.turn_counts)
        if self.user_messages > 1:  # the conversation is long enough
            self.turns = min(self.turns, 2)
        self.streams = rng.random() < 0.7
        self.talks = rng.choice(mood.talks)
        self.revises = 0.3 if rng.random() < mood.revises else 0.0
        self.fails = 0.1 if rng.random() < mood.model_fails else 0.0
        self._draw_host(rng)
        self.has_permits = rng.random() < 0.2
        count = rng.choice(mood.guesser_counts)
        self.guessers = [rng.choice(mood.guessers) for _ in range(count)]
        self.states = rng.choice(mood.states)
        self.policy = rng.choice((LimitPolicy, ValuePolicy))(
            max_depth=rng.choice(mood.depths),
            max_in_flight=rng.choice(mood.in_flight),
            max_branches=rng.choice(mood.branches),
            min_ahead_probability=rng.choice(mood.least_ahead),
            max_wasted_s=rng.choice(mood.wasted_s),
            max_wasted_tokens=rng.choice(mood.wasted_tokens),
            min_beside_probability=rng.choice((0.5, 1.1)),
        )

    def _plan(self, rng: random.Random, number: int) -> ToolPlan:
        mood = self.mood
        effect = rng.choice((Effect.READ, Effect.GATED))
        if rng.random() < mood.unsafe:
            effect = Effect.UNSAFE
        is_read = effect is Effect.READ
        options: dict[str, object] = {"approval": rng.random() < mood.approval}
        if mood.limits:
            options |= {
                "max_age": rng.choice((None, 30.0, 30.0, 1.0)),
                "timeout": rng.choice((None,) * 7 + (137 / 128,)),
                "max_concurrency": rng.choice((None,) * 7 + (1,)),
                "cost_usd": rng.choice((0.0,) * 7 + (0.25,)),
                "egress": rng.random() < 0.05,
            }
        keys = rng.choice(mood.keys)
        if is_read and rng.random() < 0.15:
            keys, options["deterministic"] = "nothing", rng.random() < 0.7
        return ToolPlan(
            name=f"t{number}",
            effect=effect,
            keys=keys,
            copies=not is_read and rng.random() < 0.3,
            options=options,
            before=eighths(rng, mood.slow),
            between=eighths(rng, mood.slow),
            after=eighths(rng, mood.slow / 2 if is_read else rng.choice(mood.after)),
            rest=rng.choice((0.0, 0.0, 0.5)),
            early=rng.choice(mood.early),
            fails=rng.choice(mood.failing),
        )

    def _draw_host(self, rng: random.Random) -> None:
        hosts = ("agent", "agent", "ordered agent", "at once", "in order", "ordered")
        self.host = rng.choice(hosts)
        # When a late condition lets go of what waits, calls that run side by side race:
        # who is where by then is a matter of speed.
        if any(at > 0 and opens for at, opens in self.conditions):
            self.host = rng.choice(("ordered agent", "in order", "ordered"))
        self.is_agent = self.host in ("agent", "ordered agent")
        self.in_order = self.host in ("ordered agent", "in order", "ordered")
        self.whims = self.cuts = 0.0
        if not self.is_agent:
            self.whims = rng.choice((0.0, 0.1, 0.25))
            self.cuts = rng.choice((0.0, 0.0, 0.25))

    def _draw_conditions(self, rng: random.Random) -> list[tuple[float, bool]]:
        """When each condition is settled, and whether it is opened then."""
        if rng.random() >= self.mood.conditions:
            return []
        return [
            (eighths(rng, rng.choice((0, 4, 16))), rng.random() < 0.8)
            for _ in range(rng.randint(1, 2))
        ]

    @asynccontextmanager
    async def settled_conditions(self):
        """The conditions of one run, which are settled in time."""
        conditions = [WriteBarrier() for _ in self.conditions]

        async def settle(barrier: WriteBarrier, at: float, *, opens: bool) -> None:
            await anyio.sleep(at)
            if opens:
                barrier.flush()
            else:
                barrier.deny("the guardrail said no")

        async with anyio.create_task_group() as group:
            for barrier, (at, opens) in zip(conditions, self.conditions, strict=True):
                if at:
                    group.start_soon(
                        lambda b=barrier, a=at, o=opens: settle(b, a, opens=o)
                    )
                else:
                    await settle(barrier, at, opens=opens)
            yield conditions
            group.cancel_scope.cancel()

    # The model: a function of the request

    def decide(self, request: ModelRequest) -> ModelResponse:
        """What it answers: asked again, by who predicts it or another run, the same."""
        messages = request.history
        said = [(m.role, m.content) for m in messages]
        question = repr((said, sorted(request.settings)))
        if question not in self._answers:
            self._answers[question] = self._decide(messages, question)
        return self._answers[question]

    def _decide(self, messages: tuple[Message, ...], question: str) -> ModelResponse:
        turn = sum(message.role == "assistant" for message in messages)
        since_user = 0
        for message in reversed(messages):
            if message.role == "user":
                break
            since_user += message.role == "assistant"
        rng = pick(self.seed, "model", question)
        calls: tuple[ToolCall, ...] = ()
        if since_user < self.turns and rng.random() < 0.85:
            count = rng.choice(self.mood.call_counts)
            calls = tuple(self.draw_call(rng, f"c.{turn}.{n}") for n in range(count))
            if count > 1 and rng.random() < 0.2:  # an equal one beside
                calls = (
                    *calls[:-1],
                    ToolCall(calls[-1].id, calls[0].name, calls[0].arguments),
                )
        return ModelResponse(
            text=f"s{rng.randint(0, 9)}"
            if not calls or rng.random() < self.talks
            else "",
            tool_calls=calls,
            usage=Usage(input_tokens=len(messages), output_tokens=1 + len(calls)),
        )

    def draw_call(self, rng: random.Random, call_id: str) -> ToolCall:
        name = rng.choice(self.tools).name
        if rng.random() < self.mood.broken_calls:
            broken = rng.choice(("{", "[]", '{"k": "x"}', "{}", '{"k": NaN}'))
            return ToolCall(call_id, rng.choice((name, "no_such_tool")), broken)
        arguments = {"k": rng.randrange(self.key_count), "v": rng.randrange(2)}
        if self.plans[name].copies:
            arguments["r"] = rng.randrange(self.key_count)
        elif rng.random() < 0.2:
            del arguments["v"]
        return ToolCall(call_id, name, json.dumps(arguments))

    async def respond(self, request: ModelRequest, on_delta) -> ModelResponse:
        response = self.decide(request)
        rng = pick(self.seed, "pace", len(request.history), response.text)
        await anyio.sleep(0.125 + eighths(rng, self.mood.slowest))
        breaks = rng.random() < self.fails
        pace = eighths(rng, 0.25)
        parts = list(self._deltas(rng, response))
        if breaks:
            del parts[2:]
        if self.streams:
            for part in parts:
                on_delta(part)
                await anyio.sleep(pace)
        else:
            await anyio.sleep(pace * len(parts))
        if breaks:
            raise ModelError("overloaded", status=529)
        return response

    def _deltas(self, rng: random.Random, response: ModelResponse):
        if response.text:
            yield TextDelta(response.text)
        for index, call in enumerate(response.tool_calls):
            written = call
            if rng.random() < self.revises:  # it means something else in the end
                written = self.draw_call(rng, call.id)
            text = written.arguments
            # In one piece, in two, or in three.
            begun = len(text) if rng.random() < 0.25 else 0
            half = len(text) // 2 if rng.random() < 0.7 else begun
            yield CallDelta(
                index=index, id=call.id, name=written.name, arguments=text[:begun]
            )
            for piece in (text[begun:half], text[max(begun, half) :]):
                if piece:
                    yield CallDelta(index=index, arguments=piece)

    # The people around it

    async def approve(self, call: ToolCall, deps: object) -> bool:
        rng = pick(self.seed, "approve", call.name, call.arguments, call.id)
        await anyio.sleep(eighths(rng, 1))
        return rng.random() < 0.7

    def permit(self, call: ToolCall, deps: object) -> bool:
        """Whether a launch may still be used: mostly."""
        rng = pick(self.seed, "permit", call.id)
        if rng.random() < 0.05:
            raise PermissionError(call.id)
        return rng.random() < 0.9

    def next_message(self, number: int, messages: tuple[Message, ...]) -> Message:
        """What the user says, which depends on what was said to them."""
        rng = pick(self.seed, "user", [m.content for m in messages])
        return Message(role="user", content=f"u{number} {rng.randrange(10)}")

    def whim(self, messages: tuple[Message, ...]) -> str:
        """What the host does beside what the agent's loop asks for, if anything."""
        if not self.whims:
            return ""
        rng = pick(self.seed, "whim", [m.content for m in messages])
        if messages[-1].content == "Never mind." or rng.random() >= self.whims:
            return ""
        return rng.choice(WHIMS)

    def patience(self, call: ToolCall) -> float:
        """After how many seconds the host gives a call up: infinite if it does not.

        A write it gives up at once or not at all, since an effect that happened or not
        would be a matter of speed.
        """
        if not self.cuts:
            return math.inf
        rng = pick(self.seed, "cut", call.id, call.arguments)
        if rng.random() >= self.cuts:
            return math.inf
        plan = self.plans.get(call.name)
        is_read = plan is not None and plan.effect is Effect.READ
        return eighths(rng, 1) + 1 / 16 if is_read else 0.0

    def make_predictors(self) -> list[object]:
        made: list[object] = [
            Guesser(self, kind, number) for number, kind in enumerate(self.guessers)
        ]
        return made + ([Stater(self)] if self.states != "no" else [])

    @staticmethod
    def fingerprint(world: World) -> list[tuple[str, int, str]]:
        """The effects in an order that has to be the same: by turn, and by key."""
        return sorted(world.effects, key=lambda effect: (turn_of(effect[0]), effect[1]))
