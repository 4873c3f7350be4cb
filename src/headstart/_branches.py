"""What a turn may come to: pure decisions on the results and answers it may have."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ._calls import ToolResult, decode_arguments
from .predictors import ResultPrediction

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ._messages import ModelRequest
    from ._turn import Forecast, Slot, Turn

Branch: TypeAlias = tuple[ResultPrediction, ...]
"""One result for each call of a turn; also the alternatives of one call."""
PROBABLE = 0.5
"""Calls that are at least so probable are expected in one answer."""
TOGETHER = 0.7
"""How often calls of one tool that may come, come in one answer."""


def may_come(turn: Turn, child: Turn) -> bool:
    """Whether what `child` was run ahead on may still be what `turn` comes to."""
    return len(turn.slots) == len(child.results) and all(
        any(outcome.result == result for outcome in slot.outcomes)
        for slot, result in zip(turn.slots, child.results, strict=True)
    )


def likely_branches(slots: Sequence[Slot], limit: int) -> list[Branch]:
    """The most probable combinations of the results that calls may have, in order."""
    branches: list[Branch] = [()]
    for slot in slots:
        longer = [(*branch, each) for branch in branches for each in slot.outcomes]
        branches = sorted(longer, key=_improbability)[:limit]
    return branches


def _improbability(branch: Branch) -> float:
    return -math.prod(each.probability for each in branch)


@dataclass(frozen=True, slots=True, kw_only=True)
class LikelyAnswer:
    """An answer of calls alone that a turn may get."""

    calls: tuple[Forecast, ...]
    probability: float


def likely_answers(forecast: Sequence[Forecast], limit: int) -> list[LikelyAnswer]:
    """The answers that predicted calls may be, the most probable first.

    They are each call alone, all calls together that are more probable than not, and
    the most probable ones of each tool: two of them, three, and so on. Calls of one
    tool are mostly the same question about several things, which is asked about all
    of them or about one after the other. So the less probable of two is there because
    both may come, which `TOGETHER` of its probability is taken for.
    """
    together = tuple(each for each in forecast if each.probability >= PROBABLE)
    answers: list[LikelyAnswer] = []
    if len({each.tool.name for each in together}) > 1:
        least = min(each.probability for each in together)
        answers.append(LikelyAnswer(calls=together, probability=least))
    by_tool: dict[str, list[Forecast]] = {}
    for each in forecast:
        by_tool.setdefault(each.tool.name, []).append(each)
    for calls in by_tool.values():
        calls.sort(key=lambda each: -each.probability)
        others = math.prod(
            1 - other.probability for other in together if other.tool != calls[0].tool
        )
        joint = _joint([each.probability for each in calls])
        for count, each in enumerate(calls, 1):
            if count > 1:
                all_of_them = (joint[count] - joint[count + 1]) * others
                answers.append(
                    LikelyAnswer(calls=tuple(calls[:count]), probability=all_of_them)
                )
            # It is in each of the answers of so many calls, or more, of its tool.
            alone = (each.probability - joint[max(count, 2)]) * others
            answers.append(LikelyAnswer(calls=(each,), probability=alone))
    return sorted(answers, key=lambda answer: -answer.probability)[:limit]


def _joint(probabilities: Sequence[float]) -> list[float]:
    """That the first so many calls of a tool come in one answer, by how many: from 2 on.

    Not less than what must be, whatever they have to do with one another: two calls
    that are certain come together.
    """
    joint, total = [1.0, 1.0], 0.0
    for count, p in enumerate(probabilities, 1):
        total += p
        if count > 1:
            joint.append(max(TOGETHER * p, total - count + 1))
    return [*joint, 0.0, 0.0]


def in_order(request: ModelRequest, calls: Sequence[Forecast]) -> tuple[Forecast, ...]:
    """Calls of one answer as the model will order them.

    That is mostly the order in which what they are about was told: where what only
    one of them has among its arguments stands in the newest message that has it. Calls
    that are as probable as one another are left in the order in which they were predicted.
    """
    if len({each.probability for each in calls}) == 1:
        return tuple(calls)
    values = [_values(each.arguments) for each in calls]
    shared = set[str]().union(
        *(mine & theirs for mine, theirs in itertools.combinations(values, 2))
    )
    places = [_place(request, mine - shared) for mine in values]
    order = sorted(range(len(calls)), key=places.__getitem__)
    return tuple(calls[index] for index in order)


def _values(arguments: str) -> set[str]:
    decoded = decode_arguments(arguments) or {}
    return {str(value) for value in decoded.values() if isinstance(value, str | int)}


def _place(request: ModelRequest, values: set[str]) -> tuple[int, int]:
    for number in range(len(request.history) - 1, -1, -1):
        content = request.history[number].content
        found = [at for at in map(content.find, values) if at >= 0]
        if found:
            return number, min(found)
    return -1, -1


def certain(result: ToolResult | None) -> Branch:
    """A result that is stated by who knows."""
    return () if result is None else (ResultPrediction(result=result, probability=1.0),)


def render(value: object) -> ToolResult:
    """What the model is told of a value that a tool returned."""
    try:
        return ToolResult.from_value(value)
    except Exception as error:  # noqa: BLE001 - what a tool returns may be anything
        return ToolResult.from_error(error)


def speaks_while_calling(request: ModelRequest) -> bool:
    """Whether the model has been writing more than calls in this conversation."""
    return any(
        message.tool_calls and (message.content or message.rest is not None)
        for message in request.history
    )


def in_style(request: ModelRequest, expected: Forecast) -> str:
    """Write arguments as the model writes them: its spacing, the schema's order.

    Only an answer that is equal to the letter is adopted, so this costs nothing but
    the chance.
    """
    decoded = decode_arguments(expected.arguments) or {}
    order: Iterable[str] = expected.tool.parameters.get("properties") or ()
    decoded = {name: decoded[name] for name in order if name in decoded} | decoded
    spaced = any(
        '": ' in call.arguments
        for message in request.history
        for call in message.tool_calls
    )
    separators = (", ", ": ") if spaced else (",", ":")
    return json.dumps(decoded, separators=separators, ensure_ascii=False)
