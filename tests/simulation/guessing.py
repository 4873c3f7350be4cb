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
    """States results: what the call would see and do in the world as it is now.

    Alone, or as one of several alternatives, or none of them is true.
    """

    def __init__(self, program: Program) -> None:
        self.program = program

    async def predict(self, conversation: Conversation):
        return []

    def predict_results(self, call: ToolCall, conversation: Conversation):
        kind = self.program.states
        if kind == "mixed":
            rng = pick(self.program.seed, "result", call.id)
            kind = rng.choice(("no", "raises", *ALTERNATIVES))
        if kind == "no":
            return
        if kind == "raises":
            raise ValueError(call.id)
        text = self._expected(call, conversation.deps.state)
        for which, probability in ALTERNATIVES[kind]:
            yield _state(text, which, probability)

    def _expected(self, call: ToolCall, state: dict[int, str]) -> str:
        plan = self.program.plans[call.name]
        arguments = json.loads(call.arguments)
        k = arguments["k"]
        seen = state.get(arguments.get("r", 0) if plan.copies else k, "-")
        if plan.effect.value == "read":
            return f"{k} is {seen}"
        return f"{k}:={changed(seen, arguments.get('v', 0))}"


RIGHT, MARKED, GARBAGE = 0, 1, -1
ALTERNATIVES = {
    "right": [(RIGHT, 0.9)],
    "wrong": [(2, 0.9)],
    "first": [(RIGHT, 0.6), (2, 0.3)],
    "second": [(RIGHT, 0.3), (2, 0.6)],
    "marked": [(MARKED, 0.5), (RIGHT, 0.5)],
    "neither": [(2, 0.4), (3, 0.4)],
    "twice": [(RIGHT, 0.4), (RIGHT, 0.4), (2, 0.2)],
    "sure": [(2, 1.0), (RIGHT, 1.0), (3, 0.0)],
    "many": [(which, 0.08) for which in range(12)],
    "last": [(which, 0.08) for which in range(11, -1, -1)],
    "garbage": [(RIGHT, 0.9), (GARBAGE, 0.1)],
    "lies": [(RIGHT, 1.5)],
}
"""What is stated, with which probability: what is true, what else may be, and rubbish."""


def _state(text: str, which: int, probability: float):
    """An alternative; the one with the mark is as wrong as the others with a number."""
    if which == GARBAGE:
        return text
    if which > MARKED:
        text += "'" * which
    result = ToolResult(text, is_error=which == MARKED)
    return ResultPrediction(result=result, probability=probability)
