"""Which tools the next answer asks for, or that it asks for none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._contexts import NO_CALL, ContextCounts
from ._named import MAX_NAMED, Names, find_named, index_names
from ._outcome_weights import OutcomeWeights
from ._weights import LEAST_GRADIENT, logistic, logit, share_of_words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headstart._tools import Tool

    from ._familiar import Familiar
    from ._moment import Moment

MAX_OUTCOMES = 10
"""Outcomes that are looked at, of one moment."""
_KNOWN_SHARE = 0.3
_IMPROBABLE = 0.005
"""What the context says at least: words may say more."""


class ChoiceModel:
    """Learns which tools are asked for: by context first, then by what was said.

    Args:
        familiar: Which words may be remembered.
    """

    def __init__(self, familiar: Familiar) -> None:
        self.contexts = ContextCounts()
        self.weights = OutcomeWeights(rate=0.08)
        self._familiar = familiar
        self._names: tuple[Mapping[str, Tool] | None, Names] = None, {}

    def probabilities(self, moment: Moment) -> dict[str, float]:
        """The probability that an answer asks for each tool; `NO_CALL` among them."""
        if moment.probabilities is None:
            known = self._familiar.known  # no other word has weights
            words = [word for word in moment.all_words if word in known]
            features = [*_described(moment), *words]
            active = self._active(moment)
            names = [f"{outcome}{moment.mode}" for outcome in active]
            totals = self.weights.totals(features, names)
            stated = moment.stated = {
                outcome: logistic(logit(p) + total)
                for (outcome, p), total in zip(active.items(), totals, strict=True)
            }
            moment.probabilities = self._without_places(stated, moment)
        return moment.probabilities

    def _without_places(
        self, stated: dict[str, float], moment: Moment
    ) -> dict[str, float]:
        """What is stated of tools by name, and by their place in a result."""
        named = self._named(moment)
        if not named:
            return stated
        places = [_place(number) for number in range(MAX_NAMED)]
        tools = {tool: p for tool, p in stated.items() if tool not in places}
        for place, tool in zip(places, named, strict=False):
            tools[tool] = max(tools.get(tool, 0.0), stated.get(place, 0.0))
        return tools

    def _named(self, moment: Moment) -> Sequence[str]:
        """The tools that the newest results name, the first few."""
        if moment.named is None:
            tools, names = self._names
            if tools is not moment.tools:
                names = index_names(moment.tools)
                self._names = moment.tools, names
            messages = moment.history.messages[: moment.length]
            moment.named = find_named(messages, names)[:MAX_NAMED]
        return moment.named

    def _active(self, moment: Moment) -> dict[str, float]:
        known = self.contexts.probabilities(moment.symbols)
        offered: Mapping[str, object] = moment.tools
        places = [_place(number) for number in range(len(self._named(moment)))]
        likely = [
            (p, outcome)
            for outcome, p in known.items()
            if not offered or outcome in offered or not outcome or outcome in places
        ]
        likely.sort(reverse=True)
        active = {outcome: max(p, _IMPROBABLE) for p, outcome in likely[:MAX_OUTCOMES]}
        active.setdefault(NO_CALL, _IMPROBABLE if known else 0.5)
        return active

    def learn(self, moment: Moment, tools: Sequence[str], run: int) -> None:
        """Learn from an answer that asks for these tools."""
        right = self._outcomes(moment, tools)
        self.probabilities(moment)
        stated = dict(moment.stated)
        for tool in right:
            stated.setdefault(tool, _IMPROBABLE)
        known = _described(moment)
        familiar = self._familiar.choose(moment.all_words, run)
        gradients: dict[str, float] = {}
        for outcome, p in stated.items():
            gradient = p - (outcome in right)
            if abs(gradient) > LEAST_GRADIENT:
                gradients[f"{outcome}{moment.mode}"] = gradient
        self.weights.step(known, gradients, _KNOWN_SHARE)
        self.weights.step(familiar, gradients, share_of_words(len(familiar)))
        self.count(moment, tools)

    def count(self, moment: Moment, tools: Sequence[str]) -> None:
        """Count an answer that asks for these tools, and learn no more from it."""
        if not moment.partial:
            self.contexts.learn(moment.symbols, self._outcomes(moment, tools))

    def _outcomes(self, moment: Moment, tools: Sequence[str]) -> dict[str, None]:
        """What an answer with these calls is: tools, and places that named them."""
        outcomes = dict.fromkeys(tools) or {NO_CALL: None}
        for number, tool in enumerate(self._named(moment)):
            if tool in outcomes:
                outcomes[_place(number)] = None
        return outcomes

    def merge(self, other: ChoiceModel) -> None:
        """Take in what others learned."""
        self.contexts.merge(other.contexts)
        self.weights.merge(other.weights)


def _place(number: int) -> str:
    """The outcome that a tool is asked for by its place in a result."""
    return f"@{number}"


def _described(moment: Moment) -> list[str]:
    if moment.features is None:
        moment.features = describe(moment)
    return moment.features


def describe(moment: Moment) -> list[str]:
    """What is known of a moment beside its context."""
    features = [
        "bias",
        f"n:{min(moment.user_turns, 4)}",
        f"k:{moment.calls_since_user}",
    ]
    features.append(f"g:{moment.stage}")
    symbols = moment.symbols
    if symbols:
        features.append(f"c:{symbols[-1]}")
        features.append(f"d:{' '.join(symbols[-2:])}")
    features += moment.style
    if not moment.idle:
        given = "h" if moment.asked_now else "j"
        features += [f"{given}:{kind}" for kind in sorted(moment.user_kinds)]
    return features
