"""How the values of an argument stand to those of the arguments before it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._moment import Moment
    from ._options import Chosen, Option, Places
    from ._rows import Place

Worth: TypeAlias = "Callable[[tuple[str, ...]], float]"


class Together(NamedTuple):
    """The arguments chosen so far, as the one after them sees them.

    Attributes:
        texts: Their values.
        places: Where they stand together; where the last does, if nowhere.
        whole: Whether all of them stand there.
        made: What earlier calls that had the same values had for the next argument.
    """

    texts: set[str]
    places: Places
    whole: bool
    made: set[str]


def join(
    chosen: Chosen, names: Sequence[str], tool: str, name: str, moment: Moment
) -> Together:
    """What an argument sees of those before it.

    Args:
        chosen: The values of the arguments before it.
        names: Their names.
        tool: The tool.
        name: The argument.
        moment: When the tool may be called.
    """
    places = chosen[-1].places
    whole = True
    for option in chosen[-2::-1]:
        both = places.keys() & option.places.keys()
        if not both:
            places, whole = chosen[-1].places, False
            break
        places = {place: places[place] for place in both}
    made: set[str] = set()
    for call in moment.calls_of(tool):
        arguments = call.arguments
        if name in arguments:
            for each, option in zip(names, chosen, strict=True):
                if arguments.get(each) != option.value:
                    break
            else:
                made.add(str(arguments[name]))
    return Together({option.text for option in chosen}, places, whole, made)


class Relations:
    """Ranks options by how they stand to the arguments before them: most do not.

    Args:
        options: The values that one argument may have.
        none: The score of the outcome that the real value is none of them.
    """

    def __init__(self, options: Sequence[Option], none: float) -> None:
        self._options = options
        scores = [option.score for option in options]
        self._scores = scores
        self._highest = highest = max([none, *scores])
        self._exps = [math.exp(score - highest) for score in scores]
        self._mass = sum(self._exps)
        self._none = math.exp(none - highest)
        order = range(len(scores))
        self._order = sorted(order, key=scores.__getitem__, reverse=True)
        self._by_text: dict[str, int] = {}
        self._by_place: dict[Place, list[int]] = {}

    def best(self, width: int) -> list[tuple[Option, float]]:
        """The best options, with log probabilities."""
        shift = self._highest + math.log(self._none + self._mass)
        options, scores = self._options, self._scores
        return [(options[i], scores[i] - shift) for i in self._order[:width]]

    def best_beside(
        self, together: Together, worth: Worth, width: int
    ) -> list[tuple[Option, float]]:
        """The best options given the arguments before, with log probabilities.

        Args:
            together: Those.
            worth: What a relation to them is worth.
            width: How many.
        """
        apart = worth(_APART[False])
        near = self._near(together, worth)
        exps, highest = self._exps, self._highest
        far = max(0.0, self._mass - sum([exps[i] for i in near]))
        mass = self._none + far * math.exp(apart)
        for score in near.values():
            mass += math.exp(score - highest)
        shift = highest + math.log(mass)
        ranked = [(-score, i) for i, score in near.items()]
        scores, wanted = self._scores, width
        for i in self._order:
            if i not in near:
                ranked.append((-scores[i] - apart, i))
                wanted -= 1
                if not wanted:
                    break
        ranked.sort()
        options = self._options
        return [(options[i], -score - shift) for score, i in ranked[:width]]

    def scores(self, together: Together, worth: Worth) -> list[float]:
        """The scores of all options, given the arguments before."""
        apart = worth(_APART[False])
        near = self._near(together, worth)
        return [
            near[i] if i in near else score + apart
            for i, score in enumerate(self._scores)
        ]

    def _near(self, together: Together, worth: Worth) -> dict[int, float]:
        """The options that are related to the arguments before, and their scores."""
        if not self._by_text:
            for i, option in enumerate(self._options):
                self._by_text[option.text] = i
                for place in option.places:
                    self._by_place.setdefault(place, []).append(i)
        related: dict[int, None] = {}
        for place in together.places:
            found = self._by_place.get(place)
            if found:
                related.update(dict.fromkeys(found))
        for texts in (together.texts, together.made):
            for text in sorted(texts):
                i = self._by_text.get(text)
                if i is not None:
                    related[i] = None
        options, scores = self._options, self._scores
        return {i: scores[i] + worth(relate(options[i], together)) for i in related}


def relate(option: Option, together: Together) -> tuple[str, ...]:
    """How a value stands to those of the arguments before it."""
    if option.text in together.texts:
        return _SAME[option.text in together.made]
    here, there = option.places, together.places
    if here.keys().isdisjoint(there):  # most do
        return _APART[option.text in together.made]
    features: list[str] = []
    near, row = 99, None
    for place, right in here.items():
        left = there.get(place)
        if left is None:
            continue
        if left.token < 0 or right.token < 0:
            row = place if row is None else max(row, place)
        elif abs(right.token - left.token) < abs(near):
            near = right.token - left.token
    if row is not None:
        features.append("x:object!" if together.whole else "x:object")
        features.append(f"s&{there[row].source}&{here[row].source}")
    if near != 99:
        features.append(f"x:{max(-4, min(8, near))}")
    if option.text in together.made:
        features.append("x:made")
    return tuple(features)


_APART = {False: ("x:apart",), True: ("x:apart", "x:made")}
_SAME = {False: ("x:same",), True: ("x:same", "x:made")}
"""The features of a value that stands nowhere with those before it, and of one that is
the same as one of them, by whether an earlier call had it."""


class Choice:
    """The values that one argument may have at a moment.

    Attributes:
        own: Where the weights of this argument are.
        shared: Where those of all arguments are.
        options: The values.
        none: The score of the outcome that the real value is none of them.
        worth: What relations to the arguments before it are worth, while candidates are
            looked for.
    """

    __slots__ = ("_relations", "none", "options", "own", "shared", "worth")

    def __init__(
        self, own: str, shared: str, options: list[Option], none: float
    ) -> None:
        self.own = own
        self.shared = shared
        self.options = options
        self.none = none
        self.worth: dict[tuple[str, ...], float] = {}
        self._relations: Relations | None = None

    @property
    def relations(self) -> Relations:
        """How the values stand to those of the arguments before."""
        if self._relations is None:
            self._relations = Relations(self.options, self.none)
        return self._relations
