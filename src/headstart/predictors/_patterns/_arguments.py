"""Where the arguments of calls come from, learned from calls.

Rules of this file:

1. Options of one argument compete: exactly one of them, or none, is the real value
   (a conditional logit, McFadden 1974). Each argument is chosen given those before it.
2. Constants are remembered when several runs had them, and only where nothing in the
   conversation explains them.
"""

from __future__ import annotations

import functools
import json
import math
from itertools import repeat
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from headstart._errors import UsageError

from ._alike import (
    FEW,
    add_alike,
    expect_signature,
    generalise_all,
    shared_slots,
    weigh_sources,
)
from ._enumerated import enumerated
from ._explaining import explain, same
from ._options import describe, gather
from ._relations import Choice, join, relate
from ._sources import is_dated, read_source
from ._templates import find_templates
from ._weights import LEAST_GRADIENT, Weights, share_of_words

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._familiar import Familiar
    from ._moment import Moment
    from ._options import Chosen, Option, Standing
    from ._relations import Together, Worth
    from ._sources import Source
    from ._weights import Scope

MAX_SOURCES = 20
"""Sources of one argument that are looked at."""
MAX_SOURCES_KEPT = 64
MAX_OPTIONS, FEW_OPTIONS = 40, 10
"""Values of one argument that compete: of reads, and of other tools."""
MAX_GATHERED = 64
"""Values of which those are the best, by where they come from alone."""
MAX_ARGUMENTS = 10
MAX_SIGNATURES = 12
WIDE = 12
"""Values of a single argument that are looked at."""
NARROW = 3
"""The same for tools that may change something, which are never launched early."""
BEAM = 5
"""The same where there are several arguments, for each and for all of them."""
_RARE = 0.03
"""Sources and signatures seen less often than the commonest are not looked at."""
_MAX_CONSTANT = 200
_HALVED_AT = 800.0


class ArgumentModel:
    """Learns the sources of arguments, and proposes values from them.

    Args:
        familiar: Which words and constants may be remembered.
    """

    def __init__(self, familiar: Familiar) -> None:
        self.signatures: dict[str, dict[str, float]] = {}
        self.sources: dict[str, dict[str, float]] = {}
        self.weights = Weights(rate=0.1)
        self.words = Weights(rate=0.08)
        self._familiar = familiar
        self._looked_at: dict[str, tuple[Source, ...]] = {}  # by slot, until it learns
        self._counted: dict[
            str, dict[str, float]
        ] = {}  # the same, of hardly known tools

    def assignments(
        self, tool: str, moment: Moment, least: float
    ) -> list[tuple[Chosen, tuple[str, ...], float]]:
        """Sets of arguments for a tool, with their names and log probabilities.

        Args:
            tool: The tool.
            moment: When it may be called.
            least: The log probability below which arguments are not looked at.
        """
        signatures = self.signatures.get(tool) or expect_signature(tool, moment)
        if not signatures:
            return []
        seen = sum(signatures.values())
        found: list[tuple[Chosen, tuple[str, ...], float]] = []
        for signature, count in sorted(signatures.items(), key=_by_count):
            start = math.log(count / seen)
            if count < _RARE * seen or len(found) >= 4 * BEAM or start <= least:
                break
            names = _names(signature)
            found += [
                (chosen, names, score)
                for chosen, score in self._search(tool, names, moment, start, least)
            ]
        return found

    def _search(
        self,
        tool: str,
        names: tuple[str, ...],
        moment: Moment,
        start: float,
        least: float,
    ) -> list[tuple[Chosen, float]]:
        for name in names:
            if not self._is_found(tool, name, moment):
                return []
        beam: list[tuple[Chosen, float]] = [((), start)]
        width = BEAM if len(names) > 1 else WIDE
        if not moment.is_read(tool):
            width = min(width, NARROW)
        for i, name in enumerate(names):
            choice = self.choice(tool, name, moment)
            if not choice.options:
                return []
            longer: list[tuple[Chosen, float]] = []
            for chosen, score in beam:
                together = join(chosen, names[:i], tool, name, moment) if i else None
                for option, log_p in self._ranked(choice, together, width):
                    if score + log_p <= least:
                        break
                    longer.append(((*chosen, option), score + log_p))
            if len(beam) > 1:
                longer.sort(key=_by_score)
            beam = longer[:width]
            if not beam:
                break
        return beam

    def _ranked(
        self, choice: Choice, together: Together | None, width: int
    ) -> list[tuple[Option, float]]:
        """The best options given the arguments before, with log probabilities."""
        if together is None:
            return choice.relations.best(width)
        worth = self._worth(choice, choice.worth)
        return choice.relations.best_beside(together, worth, width)

    def _worth(self, choice: Choice, known: dict[tuple[str, ...], float]) -> Worth:
        """What relations to the arguments before are worth.

        Args:
            choice: The argument.
            known: What was looked up already.
        """
        own = self.weights.scope(choice.own)
        shared = self.weights.scope(choice.shared)

        def worth(relation: tuple[str, ...]) -> float:
            found = known.get(relation)
            if found is None:
                found = own.total(relation) + shared.total(relation)
                found += sum(map(_PRIOR.get, relation, _ZEROS))
                known[relation] = found
            return found

        return worth

    def choice(self, tool: str, name: str, moment: Moment) -> Choice:
        """The values that an argument may have now, scored."""
        slot = slot_of(tool, name)
        known = moment.choices.get(slot)
        if known is None:
            own, shared = f"{slot}{moment.mode}", f"*{moment.mode}"
            own_weights = self.weights.scope(own)
            shared_weights = self.weights.scope(shared)
            none = own_weights.total(_NONE) + shared_weights.total(_NONE)
            options = self._find_options(slot, tool, name, moment)
            _score(options, own_weights, shared_weights)
            self._add_words(own, options, moment)
            if not self._is_known(tool):
                weigh_sources(options, self._alike(tool, name))
            known = moment.choices[slot] = Choice(own, shared, options, none)
        return known

    def _add_words(self, own: str, options: Iterable[Option], moment: Moment) -> None:
        """Add to the scores of constants what the words say that were said last."""
        scopes = self.words.scopes
        if scopes:
            for option in options:
                if option.item is None:
                    scope = scopes.get(f"{own}{option.sources[0]}")
                    if scope is not None:
                        option.score += scope.total(moment.all_words)

    def _sources_of(self, tool: str, name: str, moment: Moment) -> tuple[Source, ...]:
        """The sources of an argument that are looked at."""
        slot = slot_of(tool, name)
        sources = self._looked_at.get(slot)
        if sources is None:
            if self._is_known(tool):
                sources = _most_usual(self.sources.get(slot))
                self._looked_at[slot] = sources
            else:
                sources = _most_usual(self._alike(tool, name))
        # Not kept with them: the schema may be another in the next session.
        return _with_constants(sources, enumerated(moment.tools.get(tool), name))

    def _is_known(self, tool: str) -> bool:
        """Whether a tool was called often enough to rely on its own calls alone."""
        signatures = self.signatures.get(tool)
        return signatures is not None and sum(signatures.values()) >= FEW

    def _alike(self, tool: str, name: str) -> dict[str, float]:
        """The sources of an argument, and those of arguments of its kind."""
        slot = slot_of(tool, name)
        known = self._counted.get(slot)
        if known is None:
            own = self.sources.get(slot, {})
            known = self._counted[slot] = add_alike(own, name, self.sources)
        return known

    def _is_found(self, tool: str, name: str, moment: Moment) -> bool:
        """Whether there is any value at the sources of an argument."""
        for source in self._sources_of(tool, name, moment):
            if source.is_constant or moment.newest(source.path):
                return True
        return False

    def _find_options(
        self, slot: str, tool: str, name: str, moment: Moment
    ) -> list[Option]:
        sources = self._sources_of(tool, name, moment)
        if not sources:
            return []
        limit = MAX_OPTIONS if moment.is_read(tool) else FEW_OPTIONS
        used = moment.used_as(tool, name)
        options = gather(sources, moment, used, MAX_GATHERED)
        allowed = enumerated(moment.tools.get(tool), name)
        if allowed:
            options = [option for option in options if option.written in allowed]
        if len(options) > limit:
            _keep_best(options, limit, self.weights.scope(f"{slot}{moment.mode}"))
        describe(options, moment, used, moment.next_row(tool))
        return options

    def learn(
        self, tool: str, arguments: dict[str, Any], moment: Moment, run: int
    ) -> None:
        """Learn from a call that the model asked for at this moment."""
        names = list(arguments)[:MAX_ARGUMENTS]
        signatures = self.signatures.setdefault(tool, {})
        _count(signatures, [_signature(names, signatures)], MAX_SIGNATURES)
        chosen: Chosen = ()
        for i, name in enumerate(names):
            value = arguments[name]
            slot = slot_of(tool, name)
            choice = self.choice(tool, name, moment)
            before = names[i - len(chosen) : i]
            together = join(chosen, before, tool, name, moment) if chosen else None
            right = self._learn_choice(choice, value, together, moment, run)
            sources = [
                source
                for source in explain(value, moment)
                if not is_dated(source) or self._familiar.note(source, run)
            ]
            allowed = enumerated(moment.tools.get(tool), name)
            explained = bool(sources)
            if allowed or not explained:
                sources += self._constant(slot, value, run, allowed)
            if isinstance(value, str) and not (allowed or explained):
                sources += self._templates(slot, value, moment, run)
            if sources:
                counts = self.sources.setdefault(slot, {})
                _count(counts, sources, MAX_SOURCES_KEPT)
                self._looked_at.pop(slot, None)
                self._counted.clear()
                shared = generalise_all(sources)
                for each in shared_slots(name) if shared else ():
                    _count(self.sources.setdefault(each, {}), shared, MAX_SOURCES_KEPT)
            chosen = (*chosen, right) if right is not None else ()

    def _learn_choice(
        self,
        choice: Choice,
        value: Any,
        together: Together | None,
        moment: Moment,
        run: int,
    ) -> Option | None:
        """Learn which of the options it was; `None` if none of them."""
        options = choice.options
        scores = [option.score for option in options]
        if together is not None:
            # What relations are worth may have changed since candidates were found.
            scores = choice.relations.scores(together, self._worth(choice, {}))
        highest = max(choice.none, *scores, choice.none)
        exps = [math.exp(score - highest) for score in scores]
        none_exp = math.exp(choice.none - highest)
        divisor = none_exp + sum(exps)
        right = next((o for o in options if same(o.value, value)), None)
        words: list[str] | None = None  # that constants may be told by
        if sum([option.item is None for option in options]) > 1:
            words = self._familiar.choose(moment.all_words, run)
        for option, exp in zip(options, exps, strict=True):
            gradient = exp / divisor - (option is right)
            if abs(gradient) < LEAST_GRADIENT:
                continue
            features = [
                feature
                for feature in option.features
                if feature[0] not in "lr" or self._familiar.note(feature, run)
            ]
            if together is not None:
                features += relate(option, together)
            self.weights.step(choice.own, features, gradient)
            general = [feature for feature in features if feature[0] != "s"]
            self.weights.step(choice.shared, general, gradient)
            if words and option.item is None:
                constant = f"{choice.own}{option.sources[0]}"
                share = share_of_words(len(words))
                self.words.step(constant, words, gradient, share=share)
        gradient = none_exp / divisor - (right is None)
        self.weights.step(choice.own, _NONE, gradient)
        self.weights.step(choice.shared, _NONE, gradient)
        return right

    def _templates(self, slot: str, value: str, moment: Moment, run: int) -> list[str]:
        """How a text that nothing explains is put together, once several runs had it."""
        found = find_templates(value, moment)
        noted = self._familiar.choose([f"{slot}<{each}" for each in found], run)
        return [each[len(slot) + 1 :] for each in noted]

    def _constant(
        self, slot: str, value: Any, run: int, allowed: tuple[str, ...]
    ) -> list[str]:
        """A value that nothing explains: once several runs had it, or if it is allowed.

        What a schema names belongs to no run.
        """
        try:
            text = json.dumps(value)
        except RecursionError:
            return []
        if allowed:
            return [f"={text}"] if text in allowed else []
        if len(text) <= _MAX_CONSTANT and self._familiar.note(f"{slot}={text}", run):
            return [f"={text}"]
        return []

    def merge(self, other: ArgumentModel) -> None:
        """Take in what others learned."""
        for mine, theirs, limit in (
            (self.signatures, other.signatures, MAX_SIGNATURES),
            (self.sources, other.sources, MAX_SOURCES_KEPT),
        ):
            for key, counts in theirs.items():
                ours = mine.setdefault(key, {})
                for each, count in counts.items():
                    ours[each] = ours.get(each, 0.0) + count
                _trim(ours, limit)
        self.weights.merge(other.weights)
        self.words.merge(other.words)
        self._looked_at.clear()
        self._counted.clear()

    def read(
        self,
        *,
        signatures: dict[str, dict[str, float]],
        sources: dict[str, dict[str, float]],
    ) -> None:
        """Fill in signatures and sources that were written down.

        Raises:
            UsageError: They can never be used.
        """
        for counts in signatures.values():
            if not all(map(_is_signature, counts)):
                msg = "These are no patterns: their 'signatures' are lists of names."
                raise UsageError(msg)
            _trim(counts, MAX_SIGNATURES)
        for counts in sources.values():
            if not all(map(_is_source, counts)):
                msg = "These are no patterns: their 'sources' are names of sources."
                raise UsageError(msg)
            _trim(counts, MAX_SOURCES_KEPT)
        self.signatures, self.sources = signatures, sources
        self._looked_at.clear()
        self._counted.clear()


_ZEROS = repeat(0.0)
_BY_SCORE = attrgetter("score")
_PRIOR = {"n:row": 2.0, "x:object!": 1.5, "x:same": -1.0, "x:apart": -0.5}
"""What is expected of relations before anything is learned about them."""
_NONE = ("none",)
"""The feature of the outcome that no known value is the right one."""


def _keep_best(options: list[Option], limit: int, own: Scope) -> None:
    """Keep the best options by where they come from, the best first."""
    worths: dict[Standing, float] = {}
    for option in options:
        standing = option.standing
        worth = worths.get(standing)
        if worth is None:
            worth = worths[standing] = own.total(standing.named)
        option.score = worth + own.total(option.more) if option.more else worth
    options.sort(key=_BY_SCORE, reverse=True)
    del options[limit:]


def _score(options: Iterable[Option], own: Scope, shared: Scope) -> None:
    """Set how well options fit."""
    own_get, shared_get = own.weights.get, shared.weights.get
    worths: dict[Standing, float] = {}
    for option in options:
        standing = option.standing
        score = worths.get(standing)
        if score is None:
            score = own.total(standing.named) + shared.total(standing.general)
            worths[standing] = score
        more, piece = option.more, option.piece
        score += sum(map(own_get, more, _ZEROS)) + sum(map(shared_get, more, _ZEROS))
        if piece is not None:
            if piece.worth is None:
                piece.worth = sum(map(shared_get, piece.features, _ZEROS))
            score += sum(map(own_get, piece.features, _ZEROS)) + piece.worth
        option.score = score + _PRIOR["n:row"] if option.in_row else score


def _by_score(pair: tuple[Chosen, float]) -> float:
    return -pair[1]


def _by_count(pair: tuple[str, float]) -> float:
    return -pair[1]


def _most_usual(counts: dict[str, float] | None) -> tuple[Source, ...]:
    """The sources of an argument that are looked at, the most usual first."""
    if not counts:
        return ()
    least = _RARE * max(counts.values())
    best = sorted(counts.items(), key=_by_count)[:MAX_SOURCES]
    return tuple([read_source(name) for name, count in best if count >= least])


def _with_constants(
    sources: tuple[Source, ...], allowed: tuple[str, ...]
) -> tuple[Source, ...]:
    """Sources, and the values that a schema allows."""
    known = {source.name for source in sources}
    more = [f"={text}" for text in allowed if f"={text}" not in known]
    return (*sources, *map(read_source, more)) if more else sources


@functools.lru_cache(maxsize=1_024)
def _names(signature: str) -> tuple[str, ...]:
    return tuple(json.loads(signature))


def slot_of(tool: str, name: str) -> str:
    """What an argument's sources and weights are kept under."""
    return f"{tool}<{name}"


def _count(counts: dict[str, float], keys: Iterable[str], limit: int) -> None:
    for key in keys:
        counts[key] = counts.get(key, 0.0) + 1
    if len(counts) > limit:
        _trim(counts, limit)
    if sum(counts.values()) > _HALVED_AT:
        for key in list(counts):
            counts[key] /= 2
            if counts[key] < 0.2:
                del counts[key]


def _signature(names: list[str], known: Iterable[str]) -> str:
    """The names as text, in the order in which they were seen first."""
    text = json.dumps(names)
    if text in known:
        return text
    wanted = sorted(names)
    return next((each for each in known if sorted(json.loads(each)) == wanted), text)


def _is_signature(text: str) -> bool:
    try:
        names: object = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(names, list) and all(isinstance(name, str) for name in names)  # pyright: ignore[reportUnknownVariableType]


def _is_source(text: str) -> bool:
    if text[:1] == "=":
        try:
            json.loads(text[1:])
        except (ValueError, RecursionError):
            return False
        return True
    return bool(text)


def _trim(counts: dict[str, float], limit: int) -> None:
    if len(counts) > limit:
        rarest = sorted(counts, key=lambda each: counts[each])
        for key in rarest[: len(counts) - limit]:
            del counts[key]
