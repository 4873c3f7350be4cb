"""How long recorded models and tools take: a number, or a seeded distribution."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from headstart._errors import UsageError

_KINDS = {"constant": 1, "lognormal": 2, "uniform": 2, "exponential": 1}
_FORMS = "2, lognormal:MEDIAN,SIGMA, uniform:FROM,TO or exponential:MEAN"


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds that something takes: the same for the same seed and key, in every arm.

    Attributes:
        kind: `constant`, `lognormal` (median, sigma), `uniform` (from, to) or
            `exponential` (mean).
        parameters: Its parameters, in that order, in seconds (sigma is a plain number).
    """

    kind: str
    parameters: tuple[float, ...]

    def __post_init__(self) -> None:
        wanted = _KINDS.get(self.kind)
        if wanted != len(self.parameters) or not all(
            math.isfinite(value) and value >= 0 for value in self.parameters
        ):
            raise UsageError(f"A latency is written {_FORMS}, not {str(self)!r}.")
        if self.kind == "lognormal" and not self.parameters[0]:
            raise UsageError("The median of a lognormal latency is above 0.")
        if self.kind == "uniform" and self.parameters[0] > self.parameters[1]:
            raise UsageError("A uniform latency goes from the smaller number up.")

    def __str__(self) -> str:
        values = ",".join(f"{value:g}" for value in self.parameters)
        return values if self.kind == "constant" else f"{self.kind}:{values}"

    @classmethod
    def parse(cls, value: Latency | str | float) -> Latency:
        """Read `2`, `lognormal:2.0,0.5`, `uniform:1,3` or `exponential:2`.

        Raises:
            UsageError: It is none of these.
        """
        if isinstance(value, Latency):
            return value
        if isinstance(value, int | float):
            return cls("constant", (float(value),))
        kind, found, rest = value.partition(":")
        try:
            numbers = tuple(
                float(part) for part in (rest if found else kind).split(",")
            )
        except ValueError:
            msg = f"A latency is written {_FORMS}, not {value!r}."
            raise UsageError(msg) from None
        return cls(kind.strip().lower() if found else "constant", numbers)

    def draw(self, seed: int, *key: object) -> float:
        """The seconds that belong to `seed` and `key`, whenever they are asked for."""
        if self.kind == "constant":
            return self.parameters[0]
        source = random.Random(repr((seed, *key)))  # noqa: S311 - not for secrets
        first = self.parameters[0]
        if self.kind == "lognormal":
            return source.lognormvariate(math.log(first), self.parameters[1])
        if self.kind == "uniform":
            return source.uniform(first, self.parameters[1])
        return -first * math.log(1.0 - source.random())
