"""Weights of named features, learned one example at a time."""

from __future__ import annotations

import math
from itertools import repeat
from math import sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

LIMIT = 6.0
"""No weight is further from zero, whatever it was taught."""
LEAST_WEIGHT = 0.01
"""Less than this changes no prediction, and is not written."""
MAX_FEATURES = 1_500
"""Features of one scope; beyond, those about which least was learned are forgotten."""
LEAST_GRADIENT = 0.03
"""Examples that were foreseen better than this teach nothing."""
_WORDS_SHARE = 5.0
FADING = 0.999
STEADY = 0.02
_ZEROS = repeat(0.0)


class Scope:
    """The weights of the features of one thing, such as one tool.

    Attributes:
        weights: By feature.
        seen: How much was learned about each: the sum of squared gradients, fading.
    """

    __slots__ = ("seen", "weights")

    def __init__(self) -> None:
        self.weights: dict[str, float] = {}
        self.seen: dict[str, float] = {}

    def total(self, features: Iterable[str]) -> float:
        """The sum of the weights of features that are there."""
        weights = self.weights
        return sum(map(weights.get, features, _ZEROS)) if weights else 0.0

    def step(self, features: Iterable[str], gradient: float, rate: float) -> None:
        """Move the weights of features that are there against a gradient."""
        weights, all_seen = self.weights, self.seen
        weight_of, seen_of = weights.get, all_seen.get
        square, move = gradient * gradient, rate * gradient
        for feature in features:
            seen = seen_of(feature, 0.0) * FADING + square
            all_seen[feature] = seen
            weight = weight_of(feature, 0.0) - move / sqrt(seen + STEADY)
            if not -LIMIT < weight < LIMIT:
                weight = math.copysign(LIMIT, weight)
            weights[feature] = weight
        if len(weights) > MAX_FEATURES:
            self.forget()

    def merge(self, other: Scope) -> None:
        """Take in what others learned: whoever learned more about it counts more."""
        for feature, weight in other.weights.items():
            theirs = other.seen.get(feature, 0.0)
            ours = self.seen.get(feature, 0.0)
            mine = self.weights.get(feature, 0.0)
            both = ours + theirs
            share = ours / both if both else 0.5
            self.weights[feature] = share * mine + (1 - share) * weight
            self.seen[feature] = both
        if len(self.weights) > MAX_FEATURES:
            self.forget()

    def forget(self) -> None:
        """Forget the features about which least was learned."""
        known = sorted(self.seen, key=lambda feature: self.seen[feature])
        for feature in known[: len(known) - MAX_FEATURES * 4 // 5]:
            del self.seen[feature]
            self.weights.pop(feature, None)


class Weights:
    """Weights by scope and feature.

    Steps get smaller with what was learned about a feature (AdaGrad, Duchi et al.
    2011), which fades, so that a change is followed at any age.

    Args:
        rate: The size of the first step.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.scopes: dict[str, Scope] = {}

    def scope(self, name: str) -> Scope:
        """The weights of one scope, to read."""
        return self.scopes.get(name, _NOTHING)

    def step(
        self,
        name: str,
        features: Iterable[str],
        gradient: float,
        *,
        share: float = 1.0,
    ) -> None:
        """Move the weights of one scope, by a share of the usual step."""
        scope = self.scopes.get(name)
        if scope is None:
            scope = self.scopes[name] = Scope()
        scope.step(features, gradient, self.rate * share)

    def merge(self, other: Weights) -> None:
        """Take in what others learned."""
        for name, theirs in other.scopes.items():
            self.scopes.setdefault(name, Scope()).merge(theirs)


_NOTHING = Scope()


def share_of_words(count: int) -> float:
    """The share of the usual step of each of so many words.

    Many words say little each: together they move as far as a few features.
    """
    return _WORDS_SHARE / max(_WORDS_SHARE, count)


def logistic(x: float) -> float:
    """From log-odds to a probability."""
    if x >= 0:
        return 1 / (1 + math.exp(max(-500, -x)))
    e = math.exp(max(-500, x))
    return e / (1 + e)


def logit(p: float) -> float:
    """From a probability to log-odds, kept finite."""
    if p < 1e-4:
        p = 1e-4
    elif p > 1 - 1e-4:
        p = 1 - 1e-4
    return math.log(p / (1 - p))
