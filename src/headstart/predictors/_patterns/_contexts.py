"""What comes next, by what came before: counts by context, of every length."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NO_CALL = ""
"""The outcome of an answer without calls."""
MAX_ORDER = 5
MAX_CONTEXTS = 6_000
_MEMORY = 300.0
"""Answers that a context remembers: more, and the older count half."""
_TRUST = 3.0
"""How many answers the shorter context counts as, for each kind of outcome that a context
has seen: where much was seen once, more is still to come."""

Counts = dict[str, float]
ALL = "*"
"""Where a context keeps how many answers it has seen."""


class ContextCounts:
    """Counts which tools an answer asks for, in each context.

    The probabilities of longer contexts are blended into those of shorter ones, each
    weighing as much as it has seen, and the less the more kinds of outcomes there were
    (prediction by partial matching, Cleary and Witten 1984, with the weights of Witten and
    Bell 1991). An answer may ask for several tools, so they need not add up to 1.
    """

    def __init__(self) -> None:
        self.contexts: dict[str, Counts] = {}

    def probabilities(self, symbols: Sequence[str]) -> dict[str, float]:
        """The probability of each known outcome, `NO_CALL` among them."""
        found: list[Counts] = []
        for context in contexts_of(symbols):
            counts = self.contexts.get(context)
            if counts is None:
                break
            found.append(counts)
        result: dict[str, float] = {}
        trust = 1.0  # of the context at hand, by what the longer ones have seen
        for counts in reversed(found):
            novel = _TRUST * max(1, len(counts) - 1)
            divisor = counts[ALL] + novel
            share = trust / divisor
            for outcome, count in counts.items():
                result[outcome] = result.get(outcome, 0.0) + count * share
            trust = share * novel
        result.pop(ALL, None)
        return result

    def learn(self, symbols: Sequence[str], outcomes: Iterable[str]) -> None:
        """Count an answer."""
        for context in contexts_of(symbols):
            counts = self.contexts.get(context)
            if counts is None:
                if len(self.contexts) >= MAX_CONTEXTS:
                    self._forget()
                counts = self.contexts[context] = {ALL: 0.0}
            counts[ALL] += 1
            for outcome in outcomes:
                counts[outcome] = counts.get(outcome, 0.0) + 1
            if counts[ALL] > _MEMORY:
                for outcome, count in list(counts.items()):
                    if count < 1 and outcome != ALL:
                        del counts[outcome]
                    else:
                        counts[outcome] = count / 2

    def merge(self, other: ContextCounts) -> None:
        """Add what others counted."""
        for context, theirs in other.contexts.items():
            ours = self.contexts.setdefault(context, {ALL: 0.0})
            for outcome, count in theirs.items():
                ours[outcome] = ours.get(outcome, 0.0) + count
        while len(self.contexts) > MAX_CONTEXTS:
            self._forget()

    def read(self, contexts: dict[str, Counts]) -> None:
        """Fill in contexts that were written down."""
        for counts in contexts.values():
            counts[ALL] = max(counts.get(ALL, 0.0), *counts.values(), 1e-3)
        self.contexts = contexts
        while len(self.contexts) > MAX_CONTEXTS:
            self._forget()

    def _forget(self) -> None:
        """Forget a fifth of the contexts, those seen least."""
        known = sorted(self.contexts, key=lambda each: self.contexts[each][ALL])
        for context in known[: len(known) // 5 + 1]:
            del self.contexts[context]


def contexts_of(symbols: Sequence[str]) -> list[str]:
    """The contexts of a moment, the shortest first: the empty one, the last symbol ..."""
    contexts = [""]
    context = ""
    for symbol in reversed(symbols[-MAX_ORDER:]):
        context = f"{symbol} {context}" if context else symbol
        contexts.append(context)
    return contexts


def collapse(symbols: Sequence[str]) -> list[str]:
    """The newest symbols, in which repeats count as one repeated symbol."""
    result: list[str] = []
    for symbol in reversed(symbols):
        if result and result[-1] in (symbol, f"{symbol}+"):
            result[-1] = f"{symbol}+"
        elif len(result) == MAX_ORDER:
            break
        else:
            result.append(symbol)
    result.reverse()
    return result
