"""Predictors of every kind: right, wrong, late, hanging, raising, and talking nonsense."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import anyio

from headstart import ModelRequest, ToolCall, ToolResult
from headstart.predictors import Conversation, Prediction, ResultPrediction

from .world import changed, eighths, pick

if TYPE_CHECKING:
    from .program import Program


class Guesser:
    """Predicts calls, by asking the model itself or by chance."""

    def __init__(self, program: Program, kind: str, number: int) -> None:
        self.program = program
        self.kind = kind
        self.number = number

    async def predict(self, conversation: Conversation):
        program, kind = self.program, self.kind
        rng = pick(program.seed, self.number, len(conversation.messages))
        if kind == "mixed":
            kind = rng.choice(
                ("right", "twice", "wrong", "late", "raises", "garbage", "many")
            )
        match kind:
            case "hangs":
                await anyio.sleep_forever()
            case "raises":
                raise rng.choice((ValueError, KeyError, RecursionError))("predictor")
            case "garbage":
                return [3, None]
            case "late":
                await anyio.sleep(eighths(rng, 3))
            case _:
                pass
        if kind in ("wrong", "many"):
            count = 12 if kind == "many" else 2
            calls = [program.draw_call(rng, "x") for _ in range(count)]
        elif conversation.messages[-1].role == "assistant":
            return []
        else:
            request = ModelRequest(conversation.messages)
            calls = list(program.decide(request).tool_calls)
        if kind == "twice":
            calls += calls
        return [
            Prediction(
                tool=call.name,
                arguments=_respelled(rng, call),
                probability=0.1 if rng.random() < 0.05 else 0.9,
            )
            for call in calls
        ]


def _respelled(rng: random.Random, call: ToolCall) -> str:
    """The same arguments as somebody else would write them."""
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        return call.arguments
    if not isinstance(arguments, dict) or rng.random() < 0.8:
        return call.arguments
    return json.dumps({"v": 0, **arguments}, separators=(",", ":"), sort_keys=True)


class Stater:
    """States results: what the call would see and do in the world as it is now."""

    def __init__(self, program: Program) -> None:
        self.program = program

    async def predict(self, conversation: Conversation):
        return []

    def predict_results(self, call: ToolCall, conversation: Conversation):
        result = self._state(call, conversation)
        return [] if result is None else [ResultPrediction(result=result)]

    def _state(self, call: ToolCall, conversation: Conversation) -> ToolResult | None:
        kind = self.program.states
        if kind == "mixed":
            rng = pick(self.program.seed, "result", call.id)
            kind = rng.choice(("no", "right", "wrong", "raises"))
        match kind:
            case "raises":
                raise ValueError(call.id)
            case "wrong":
                return ToolResult("nonsense")
            case "right":
                return self._expected(call, conversation.deps.state)
            case _:
                return None

    def _expected(self, call: ToolCall, state: dict[int, str]) -> ToolResult | None:
        plan = self.program.plans[call.name]
        arguments = json.loads(call.arguments)
        k = arguments["k"]
        seen = state.get(arguments.get("r", 0) if plan.copies else k, "-")
        if plan.effect.value == "read":
            return ToolResult(f"{k} is {seen}")
        return ToolResult(f"{k}:={changed(seen, arguments.get('v', 0))}")
