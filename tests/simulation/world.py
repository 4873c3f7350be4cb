"""Random worlds: tools over shared state, models that react to results, predictors.

Everything follows from the seed. Whatever a part decides, it decides by a hash of what
it sees, never by counting how often it was asked: so a run with speculation, which asks
more often, meets the same world. Times are multiples of 1/8 s, so they add up exactly.
"""

from __future__ import annotations

import json
import random
import zlib
from dataclasses import dataclass, field

import anyio

from headstart import (
    CallDelta,
    Effect,
    Message,
    ModelError,
    ModelRequest,
    ModelResponse,
    TextDelta,
    Tool,
    ToolCall,
    ToolContext,
    ToolResult,
    Usage,
)
from headstart.predictors import Conversation, Prediction


def pick(seed: int, *what: object) -> random.Random:
    return random.Random(zlib.crc32(repr((seed, *what)).encode()) * 7919 + seed)


def eighths(rng: random.Random, most: float) -> float:
    return rng.randint(0, int(most * 8)) / 8


@dataclass(frozen=True)
class ToolPlan:
    """How one tool behaves: drawn once, the same in every world of the program."""

    name: str
    effect: Effect
    keys: str  # "exact", "wide" or "none": how its resources are declared
    before: float  # seconds before it reads the state
    between: float  # seconds from there to its barrier
    after: float  # seconds from its barrier to its effect
    rest: float
    early: str  # "none", "true" or "false": what it states before its barrier
    fails: str  # "never", "always" or "speculative": and then at its first step
    approval: bool


@dataclass
class World:
    """The state that tools share, and the effects that happened, in order."""

    seed: int
    state: dict[int, str] = field(default_factory=dict)
    effects: list[tuple[str, int, str]] = field(default_factory=list)
    running: int = 0

    async def run_tool(
        self, plan: ToolPlan, context: ToolContext, k: int, v: int
    ) -> str:
        if plan.fails == "speculative" and context.speculative:
            raise ConnectionError("only a speculation fails so")
        self.running += 1
        try:
            await anyio.sleep(plan.before + _tie_break(context.call.id))
            seen = self.state.get(k, "-")
            if plan.fails == "always":
                raise ValueError(f"no {k}")
            await anyio.sleep(plan.between)
            if plan.effect is Effect.READ:
                await anyio.sleep(plan.after)
                return f"{k} is {seen}"
            new = f"{zlib.crc32(seen.encode()) % 97}.{v}"
            if plan.early != "none":
                context.early_result(f"{k}:={new if plan.early == 'true' else '?'}")
            await context.barrier.wait()
            await anyio.sleep(plan.after)
            self.state[k] = new
            self.effects.append((context.call.id, k, new))
            await anyio.sleep(plan.rest)
            return f"{k}:={new}"
        finally:
            self.running -= 1


def _tie_break(call_id: str) -> float:
    """Make no two real calls of a turn end at the same moment: their order is chance."""
    return int(call_id.split(".")[1]) / 64 if call_id.startswith("c") and "." in call_id else 0.0


class Program:
    """A random agent: its tools, its model, its user, and who predicts."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = random.Random(seed)
        # A third of the programs go well, so that what goes ahead goes far ahead.
        self.goes_well = rng.random() < 0.33
        self.key_count = rng.randint(1, 3)
        self.plans = [self._plan(rng, n) for n in range(rng.randint(2, 5))]
        self.tools = [self._tool(plan) for plan in self.plans]
        self.turns = rng.randint(1, 4)
        self.user_messages = rng.randint(1, 3)
        self.streams = rng.random() < 0.7
        self.thinks = eighths(rng, 3)
        self.talks = rng.choice((0.0, 0.0, 0.6))  # how often calls come with text
        self.predictors = [
            rng.choice(("right", "right", "wrong", "late", "hangs", "raises", "mixed"))
            for _ in range(rng.randint(0, 3))
        ]
        self.states_results = rng.choice(("no", "no", "right", "wrong", "mixed"))
        self.max_depth = rng.choice((0, 1, 1, 2, 3))
        self.max_in_flight = rng.choice((1, 3, 8))
        if self.goes_well:
            self.predictors, self.max_in_flight = ["right"], 8
        self.min_beside = rng.choice((0.5, 1.1))
        self.model_fails = rng.random() < 0.1
        self.cancel_at: float | None = None

    def _plan(self, rng: random.Random, number: int) -> ToolPlan:
        effect = rng.choice(
            (Effect.READ, Effect.READ, Effect.GATED, Effect.GATED, Effect.UNSAFE)
        )
        if self.goes_well and effect is Effect.UNSAFE:
            effect = Effect.READ
        slow = 0.25 if self.goes_well else 1.0
        fails = (1, 0, 0) if self.goes_well else (8, 1, 1)
        return ToolPlan(
            name=f"t{number}",
            effect=effect,
            keys=rng.choice(("exact", "exact", "wide", "none")),
            before=eighths(rng, slow),
            between=eighths(rng, slow),
            after=eighths(rng, 2 * slow),
            rest=rng.choice((0.0, 0.0, 0.5)),
            early=rng.choice(("none", "true", "true", "false")),
            fails=rng.choices(("never", "always", "speculative"), fails)[0],
            approval=not self.goes_well and rng.random() < 0.1,
        )

    def _tool(self, plan: ToolPlan) -> Tool:
        async def function(context: ToolContext[World], k: int, v: int = 0) -> str:
            return await context.deps.run_tool(plan, context, k, v)

        keys = {"exact": ["k:{k}"], "wide": ["k"], "none": None}[plan.keys]
        writes = None if plan.effect is Effect.READ else keys
        return Tool(
            function,
            name=plan.name,
            effect=plan.effect,
            reads=keys,
            writes=writes,
            approval=plan.approval,
            max_age=pick(self.seed, plan.name).choice((None, 30.0, 1.0)),
        )

    # The model: a function of the conversation

    def decide(self, messages: tuple[Message, ...]) -> ModelResponse:
        turn = sum(message.role == "assistant" for message in messages)
        since_user = 0
        for message in reversed(messages):
            if message.role == "user":
                break
            since_user += message.role == "assistant"
        text = [(m.role, m.content) for m in messages]
        rng = pick(self.seed, "model", text)
        calls: tuple[ToolCall, ...] = ()
        if since_user < self.turns and rng.random() < 0.85:
            calls = tuple(
                self._call(rng, f"c{turn}.{index}")
                for index in range(rng.choice((1, 1, 2, 2, 3)))
            )
        return ModelResponse(
            text=f"s{rng.randint(0, 9)}" if not calls or rng.random() < self.talks else "",
            tool_calls=calls,
            usage=Usage(input_tokens=len(messages), output_tokens=1 + len(calls)),
        )

    def _call(self, rng: random.Random, call_id: str) -> ToolCall:
        plan = rng.choice(self.plans)
        if rng.random() < 0.04:
            broken = rng.choice(("{", "[]", '{"k": "x"}', "{}", '{"k": NaN}'))
            return ToolCall(call_id, plan.name, broken)
        if rng.random() < 0.02:
            return ToolCall(call_id, "no_such_tool", "{}")
        k, v = rng.randrange(self.key_count), rng.randrange(2)
        arguments = json.dumps({"k": k, "v": v} if rng.random() < 0.8 else {"k": k})
        return ToolCall(call_id, plan.name, arguments)

    async def respond(self, request: ModelRequest, on_delta) -> ModelResponse:
        messages = request.history
        response = self.decide(messages)
        rng = pick(self.seed, "pace", len(messages), response.text)
        await anyio.sleep(0.125 + eighths(rng, 2))
        if self.model_fails and rng.random() < 0.1:
            raise ModelError("overloaded", status=529)
        pace = eighths(rng, 0.25)
        for part in self._deltas(response):
            if self.streams:
                on_delta(part)
            await anyio.sleep(pace)
        return response

    @staticmethod
    def _deltas(response: ModelResponse):
        if response.text:
            yield TextDelta(response.text)
        for index, call in enumerate(response.tool_calls):
            yield CallDelta(index=index, id=call.id, name=call.name)
            half = len(call.arguments) // 2
            yield CallDelta(index=index, arguments=call.arguments[:half])
            yield CallDelta(index=index, arguments=call.arguments[half:])

    async def approve(self, call: ToolCall, deps: object) -> bool:
        rng = pick(self.seed, "approve", call.name, call.arguments, call.id)
        await anyio.sleep(eighths(rng, 1))
        return rng.random() < 0.7

    # Who predicts

    def make_predictors(self) -> list[object]:
        made: list[object] = [
            _Predictor(self, kind, number)
            for number, kind in enumerate(self.predictors)
        ]
        if self.states_results != "no":
            made.append(_ResultPredictor(self))
        return made

    def fingerprint(self, world: World) -> list[tuple[str, int, str]]:
        """The effects in an order that has to be the same: by turn, and by key."""
        return sorted(world.effects, key=lambda e: (int(e[0][1:].split(".")[0]), e[1]))


class _Predictor:
    def __init__(self, program: Program, kind: str, number: int) -> None:
        self.program = program
        self.kind = kind
        self.number = number

    async def predict(self, conversation: Conversation):
        program, kind = self.program, self.kind
        rng = pick(program.seed, self.number, len(conversation.messages))
        if kind == "mixed":
            kind = rng.choice(("right", "wrong", "late", "raises", "garbage", "many"))
        if kind == "hangs":
            await anyio.sleep_forever()
        if kind == "raises":
            raise rng.choice((ValueError, KeyError, RecursionError))("predictor")
        if kind == "garbage":
            return [3, None]
        if kind == "late":
            await anyio.sleep(eighths(rng, 3))
        if kind in ("wrong", "many"):
            calls = [
                program._call(rng, "x") for _ in range(40 if kind == "many" else 2)
            ]
        else:
            last = conversation.messages[-1]
            if last.role == "assistant":
                return []
            calls = list(program.decide(conversation.messages).tool_calls)
        return [
            Prediction(tool=call.name, arguments=call.arguments, probability=0.9)
            for call in calls
        ]


class _ResultPredictor:
    def __init__(self, program: Program) -> None:
        self.program = program

    async def predict(self, conversation: Conversation):
        return []

    def predict_result(self, call: ToolCall, conversation: Conversation):
        kind = self.program.states_results
        rng = pick(self.program.seed, "result", call.id)
        if kind == "mixed":
            kind = rng.choice(("no", "right", "wrong", "raises"))
        if kind == "raises":
            raise ValueError(call.id)
        if kind == "wrong":
            return ToolResult("nonsense")
        if kind == "right":  # right where the state is still untouched
            return ToolResult(f"{json.loads(call.arguments).get('k')} is -")
        return None


