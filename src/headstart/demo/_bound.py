"""How fast a conversation could be at best: every prediction right, nothing else.

The latencies are taken as they are: the model is not faster, nor is any tool. What is
left is order. For the turns `i` of one answer, from the user's message at second 0, with
`model_s[i]` what the model takes, and per call `preparation_s` and `effect_s`:

```text
request[0]   = 0
complete[i]  = request[i] + model_s[i]
accepted[i]  = max(complete[i], ended[i-1], accepted[i-1])
start(call)  = 0                      arguments known from the user's text
             = known(earlier call)    arguments known from that call's result
             = complete[i]            arguments that only the model knows
ready(call)  = start(call) + preparation_s
end(call)    = ready(call)                               a read
             = max(ready(call), accepted[i]) + effect_s  a write: no effect before that
known(call)  = ready(call) where an early result is given, else end(call)
ended[i]     = max over turn i's calls of end(call), not before accepted[i]
request[i+1] = max over turn i's calls of known(call)
```

The answer is there at `accepted` of the last turn. `request` is where running ahead
comes in: the next request is built on early results while the effects still go on, and
even while the request before it is still being answered, if what it will ask for is
known. But its answer is only accepted when all that it stands on is. Limits of a machine or a policy, and
reads that must wait for an earlier write, are left out, so no run is faster than this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

Source: TypeAlias = tuple[int, int]
"""Which call a value comes from: the number of its turn, and of the call in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundCall:
    """One call, as far as its time goes.

    Attributes:
        preparation_s: Seconds that may pass before the call is certain; of a read, all.
        effect_s: Seconds of the effect, which waits for certainty.
        known_from: `"message"` when the user's text holds the arguments, the earlier
            call whose result does, or `"model"` when only the model knows them.
        early_result: Whether its result is known when the preparation has ended.
    """

    preparation_s: float
    effect_s: float = 0.0
    known_from: Literal["message", "model"] | Source = "message"
    early_result: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundTurn:
    """One model request, and the calls that its answer asks for."""

    model_s: float
    calls: tuple[BoundCall, ...] = ()


def serial_seconds(turns: Sequence[BoundTurn]) -> float:
    """Add up what the turns take one after the other, calls of a turn side by side."""
    return sum(
        turn.model_s
        + max((call.preparation_s + call.effect_s for call in turn.calls), default=0.0)
        for turn in turns
    )


def bound_seconds(turns: Sequence[BoundTurn]) -> float:
    """When the last answer is there at the earliest; see the head of this file."""
    request = ended = accepted = 0.0
    known: dict[Source, float] = {}
    for number, turn in enumerate(turns):
        complete = request + turn.model_s
        accepted = ended = max(complete, ended, accepted)
        for index, call in enumerate(turn.calls):
            if call.known_from == "message":
                start = 0.0
            elif call.known_from == "model":
                start = complete
            else:
                start = known[call.known_from]
            ready = start + call.preparation_s
            end = ready
            if call.effect_s:
                end = max(ready, accepted) + call.effect_s
            known[number, index] = ready if call.early_result else end
            ended = max(ended, end)
            request = max(request, known[number, index])
    return accepted
