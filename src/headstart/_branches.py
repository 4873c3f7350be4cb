"""What a turn may come to: pure decisions on the results and answers it may have."""

from __future__ import annotations

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

    They are all calls together that are more probable than not, and each call alone.
    """
    together = tuple(each for each in forecast if each.probability >= PROBABLE)
    answers: list[LikelyAnswer] = []
    if len(together) > 1:
        least = min(each.probability for each in together)
        answers.append(LikelyAnswer(calls=together, probability=least))
    for each in forecast:
        others = (1 - other.probability for other in together if other is not each)
        alone = each.probability * math.prod(others)
        answers.append(LikelyAnswer(calls=(each,), probability=alone))
    return sorted(answers, key=lambda answer: -answer.probability)[:limit]


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
