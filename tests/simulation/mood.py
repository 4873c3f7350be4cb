"""Kinds of programs: what is drawn how often, so that each part of the engine is met."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Mood:
    """What a program draws from; what is listed twice is drawn twice as often."""

    weight: int
    key_counts: tuple[int, ...] = (3, 6)
    tool_counts: tuple[int, ...] = (2, 3, 4, 5)
    turn_counts: tuple[int, ...]
    call_counts: tuple[int, ...] = (1, 1, 1, 2, 2, 3)
    keys: tuple[str, ...] = ("exact",)
    unsafe: float = 0.0  # tools that are UNSAFE
    slow: float = 0.25  # seconds of each part of a tool, at most
    after: tuple[float, ...] = (2.0,)  # seconds from the barrier to the effect, at most
    early: tuple[str, ...] = ("true",) * 9 + ("changing",)
    failing: tuple[str, ...] = ("never",)
    approval: float = 0.0  # tools that need one
    limits: bool = True  # tools with an age, a time limit, a cost and so on
    conditions: float = 0.25
    slowest: float = 0.5  # seconds before the model writes, at most
    talks: tuple[float, ...] = (0.0, 0.0, 0.6)  # how often calls come with text
    revises: float = 0.15  # models that change what they have written
    model_fails: float = 0.1
    broken_calls: float = 0.01
    guessers: tuple[str, ...] = ("right", "twice")
    guesser_counts: tuple[int, ...] = (1,)
    states: tuple[str, ...] = ("no", "right", "second")
    depths: tuple[int, ...] = (2, 3, 5)
    in_flight: tuple[int, ...] = (8, 30)
    branches: tuple[int, ...] = (2, 2, 4)
    least_ahead: tuple[float, ...] = (0.2, 0.0)
    wasted_s: tuple[float, ...] = (math.inf,)
    wasted_tokens: tuple[int, ...] = (200_000,)


MOODS = {
    # Everything that may go wrong does.
    "rough": Mood(
        weight=4,
        key_counts=(1, 2, 3),
        turn_counts=(1, 1, 1, 2, 3),
        keys=("exact", "exact", "wide", "none"),
        unsafe=0.2,
        slow=1.0,
        after=(0.5, 8.0),
        early=("none", "true", "true", "false", "changing"),
        failing=("never",) * 11 + ("always", "after", "first", "later", "impatient"),
        approval=0.15,
        slowest=2.0,
        broken_calls=0.06,
        guessers=("right",) * 2
        + ("twice", "wrong", "late", "hangs", "raises", "mixed"),
        guesser_counts=(0, 1, 2, 3),
        states=("no", "no", "right", "first", "mixed", "mixed"),
        depths=(0, 1, 1, 2),
        in_flight=(1, 3, 8),
        branches=(0, 1, 2, 3),
        wasted_s=(600.0,) * 5 + (0.5, 2.0),
        wasted_tokens=(200_000,) * 5 + (10, 40),
    ),
    # Predictions come true, so what goes ahead goes far.
    "well": Mood(weight=2, turn_counts=(1, 2, 2, 3)),
    # ... and farther.
    "deep": Mood(
        weight=2,
        turn_counts=(2, 3, 3, 4),
        limits=False,
        conditions=0.0,
        slowest=0.25,
        talks=(0.0,),
        revises=0.0,
        model_fails=0.0,
    ),
    # The calls of a turn touch the same, and are about as fast as one another.
    "racing": Mood(
        weight=2,
        key_counts=(1, 2),
        tool_counts=(2, 3),
        turn_counts=(1, 1, 2),
        call_counts=(2, 2, 3),
        keys=("exact", "wide"),
        slow=0.5,
        after=(0.5,),
        early=("true",) * 4 + ("none",),
        approval=0.3,
        limits=False,
        conditions=0.0,
        slowest=0.25,
        talks=(0.0,),
        states=("no", "right", "right", "second"),
    ),
}
