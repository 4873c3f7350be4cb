"""The life of one speculated call, as a table.

Rules of this file:

1. No input or output, no clock, no tasks: states and inputs only.
2. The table is the whole truth. Nothing else decides whether a step is legal; a step
   that is not in it is a bug in headstart.
3. The diagram in docs/design is drawn from the table by `diagram()`; a test compares.
"""

from __future__ import annotations

import enum
from typing import Final

from ._errors import InternalError


class SpeculationState(enum.Enum):
    """Where a speculated call stands."""

    PREDICTED = "predicted"
    ADMITTED = "admitted"
    RUNNING = "running"
    READY = "ready"
    FAILED = "failed"
    CONFIRMED = "confirmed"
    ADOPTED = "adopted"
    DISCARDED = "discarded"
    REFUSED = "refused"
    CANCELLED = "cancelled"

    __hash__ = object.__hash__  # of Enum's own, which hashes the name, each time


class SpeculationInput(enum.Enum):
    """What can happen to a speculated call."""

    ADMIT = "admit"
    """The policy lets it start; it may still have to wait for a write ahead of it."""
    REFUSE = "refuse"
    """The policy does not let it start."""
    LAUNCH = "launch"
    """Its task starts."""
    FINISH = "finish"
    """The tool returned."""
    FAIL = "fail"
    """The tool raised."""
    FLUSH = "flush"
    """The model asked for it, and the engine adopts it: its barrier is flushed."""
    DISCARD = "discard"
    """It is not wanted, or may not be used."""
    CANCEL = "cancel"
    """The host cancelled the call after it was confirmed."""

    __hash__ = object.__hash__


_S = SpeculationState
_I = SpeculationInput

TRANSITIONS: Final = {
    (_S.PREDICTED, _I.ADMIT): _S.ADMITTED,
    (_S.PREDICTED, _I.REFUSE): _S.REFUSED,
    (_S.ADMITTED, _I.LAUNCH): _S.RUNNING,
    (_S.ADMITTED, _I.DISCARD): _S.DISCARDED,
    (_S.RUNNING, _I.FINISH): _S.READY,
    (_S.RUNNING, _I.FAIL): _S.FAILED,
    (_S.RUNNING, _I.FLUSH): _S.CONFIRMED,
    (_S.RUNNING, _I.DISCARD): _S.DISCARDED,
    (_S.READY, _I.FLUSH): _S.ADOPTED,
    (_S.READY, _I.DISCARD): _S.DISCARDED,
    (_S.FAILED, _I.FLUSH): _S.ADOPTED,
    (_S.FAILED, _I.DISCARD): _S.DISCARDED,
    (_S.CONFIRMED, _I.FINISH): _S.ADOPTED,
    (_S.CONFIRMED, _I.FAIL): _S.ADOPTED,
    (_S.CONFIRMED, _I.CANCEL): _S.CANCELLED,
}

TERMINAL: Final = frozenset(_S) - {state for state, _ in TRANSITIONS}


class Lifecycle:
    """The state of one speculated call."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state = _S.PREDICTED

    def accepts(self, step: SpeculationInput) -> bool:
        """Whether `step` is legal now."""
        return (self.state, step) in TRANSITIONS

    def advance(self, step: SpeculationInput) -> None:
        """Take `step`.

        Raises:
            InternalError: The table has no such step from this state.
        """
        try:
            self.state = TRANSITIONS[self.state, step]
        except KeyError:
            msg = (
                f"A speculation cannot {step.value} while it is {self.state.value}. "
                "This is a bug in headstart: please report it with the traceback."
            )
            raise InternalError(msg) from None


def diagram() -> str:
    """The table as a Mermaid state diagram, as docs/design shows it."""
    lines = ["stateDiagram-v2", f"    [*] --> {_S.PREDICTED.value}"]
    lines += [
        f"    {state.value} --> {target.value}: {step.value}"
        for (state, step), target in TRANSITIONS.items()
    ]
    lines += [f"    {state.value} --> [*]" for state in _S if state in TERMINAL]
    return "\n".join(lines)
