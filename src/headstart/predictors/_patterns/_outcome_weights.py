"""Weights of the features of moments, for all outcomes at once."""

from __future__ import annotations

import math
from array import array
from math import sqrt
from operator import itemgetter
from typing import TYPE_CHECKING

from ._weights import FADING, LEAST_WEIGHT, LIMIT, MAX_FEATURES, STEADY, Scope, Weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MAX_ROWS = 4 * MAX_FEATURES
"""Features of all outcomes; beyond, those about which least was learned are forgotten."""
_FIRST_WIDTH = 16
_UNEVEN = 6
"""So that the length of rows is no power of two: what stands at one place in all of them
would take turns in the same few places of the processor's cache."""


class OutcomeWeights:
    """Weights by feature and outcome, learned as those of `Weights` are.

    A moment has some eighty features, and all of them matter for each of some ten
    outcomes. So what was learned of one feature stands side by side, and is found once
    for all outcomes: to find it for each, in a table of its own, takes three times as
    long, as most of that is far from what the processor looked at last.

    Args:
        rate: The size of the first step.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        # Of each outcome the place of its weight in a row; how much was learned about
        # that stands behind it. What stands at the first place is no outcome, and 0.
        self._places: dict[str, int] = {}
        self._rows: dict[str, array[float]] = {}
        self._width = _FIRST_WIDTH

    def totals(self, features: Iterable[str], outcomes: Sequence[str]) -> list[float]:
        """The sum of the weights of features that are there, for each outcome."""
        rows = [row for row in map(self._rows.get, features) if row is not None]
        if not rows:
            return [0.0] * len(outcomes)
        places = self._places
        # With two places more, as what it gives for one is no tuple.
        pick = itemgetter(*[places.get(each, 0) for each in outcomes], 0, 0)
        totals: list[float] = [*map(sum, zip(*map(pick, rows), strict=True))]
        return totals[:-2]

    def step(
        self, features: Iterable[str], gradients: Mapping[str, float], share: float
    ) -> None:
        """Move the weights of features that are there against each outcome's gradient.

        Args:
            features: The features.
            gradients: By outcome.
            share: By which share of the usual step.
        """
        rate = self.rate * share
        moves = [
            (self._place(outcome), gradient * gradient, rate * gradient)
            for outcome, gradient in gradients.items()
        ]
        rows = self._rows
        for feature in features:
            row = rows.get(feature)
            if row is None:
                row = rows[feature] = array("d", bytes(8 * self._width))
            for place, square, move in moves:
                row[place + 1] = seen = row[place + 1] * FADING + square
                weight = row[place] - move / sqrt(seen + STEADY)
                if not -LIMIT < weight < LIMIT:
                    weight = math.copysign(LIMIT, weight)
                row[place] = weight
        if len(rows) > MAX_ROWS:
            self._forget()

    def read(self, weights: Weights) -> None:
        """Fill in weights by outcome."""
        for outcome, scope in weights.scopes.items():
            place = self._place(outcome)
            for feature, weight in scope.weights.items():
                row = self._rows.get(feature)
                if row is None:
                    row = self._rows[feature] = array("d", bytes(8 * self._width))
                row[place], row[place + 1] = weight, scope.seen[feature]
        if len(self._rows) > MAX_ROWS:
            self._forget()

    def by_outcome(self) -> Weights:
        """The weights by outcome, those that matter."""
        weights = Weights(self.rate)
        for outcome, place in self._places.items():
            scope = weights.scopes[outcome] = Scope()
            for feature, row in self._rows.items():
                if abs(row[place]) >= LEAST_WEIGHT:
                    scope.weights[feature] = row[place]
                    scope.seen[feature] = row[place + 1]
            if len(scope.weights) > MAX_FEATURES:
                scope.forget()
        return weights

    def merge(self, other: OutcomeWeights) -> None:
        """Take in what others learned."""
        weights = self.by_outcome()
        weights.merge(other.by_outcome())
        self.read(weights)

    def _place(self, outcome: str) -> int:
        place = self._places.get(outcome)
        if place is None:
            place = self._places[outcome] = 2 * len(self._places) + 2
            if place + 2 > self._width:
                more = bytes(self._width + _UNEVEN)
                for row in self._rows.values():
                    row.extend(more)
                self._width += len(more)
        return place

    def _forget(self) -> None:
        """Forget the features about which least was learned, of all outcomes."""
        seen = {feature: sum(row[3::2]) for feature, row in self._rows.items()}
        known = sorted(seen, key=seen.__getitem__)
        for feature in known[: len(known) - MAX_ROWS * 4 // 5]:
            del self._rows[feature]
