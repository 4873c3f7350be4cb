"""Tools of many kinds, as users write them: what goes in, what comes out, what fails.

None of them knows of headstart. Each takes a second, so that a launch is running or has
ended when the model asks for its call.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

import anyio
from pydantic import BaseModel


@dataclass(frozen=True)
class Kind:
    """A tool, and the arguments of the calls that a model makes in one answer.

    Attributes:
        function: The tool.
        calls: The arguments of each call.
        adopted: How many of the calls may be launched and used: none where they fail, or
            where the arguments do not fit.
    """

    function: Any
    calls: tuple[dict[str, Any], ...] = ({},)
    adopted: int = 0


KINDS: dict[str, Kind] = {}


def kind(name, *calls, fails=False):
    def add(function):
        function.__doc__ = f"A tool: {name}."
        made = calls or ({},)
        KINDS[name] = Kind(function, made, adopted=0 if fails else len(made))
        return function

    return add


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Place(BaseModel):
    city: str
    zip: str | None = None


class Order(BaseModel):
    number: int
    to: Place


# What comes out


@kind("gives a text")
async def give_text() -> str:
    await anyio.sleep(1)
    return "found"


@kind("gives an empty text")
async def give_empty_text() -> str:
    await anyio.sleep(1)
    return ""


@kind("gives a text of many scripts")
async def give_scripts() -> str:
    await anyio.sleep(1)
    return 'naïve "日本語" \\ \n\t 🙂'


@kind("gives a long text")
async def give_long_text() -> str:
    await anyio.sleep(1)
    return "a line\n" * 20_000


@kind("gives a text that looks like JSON")
async def give_json() -> str:
    await anyio.sleep(1)
    return '{"a": 1.0, "b": [true, null]}'


@kind("gives an integer")
async def give_integer() -> int:
    await anyio.sleep(1)
    return 12_345_678_901_234_567_890


@kind("gives a fraction")
async def give_fraction() -> float:
    await anyio.sleep(1)
    return 0.1 + 0.2


@kind("gives a yes or no")
async def give_boolean() -> bool:
    await anyio.sleep(1)
    return False


@kind("gives nothing")
async def give_nothing() -> None:
    await anyio.sleep(1)


@kind("gives a list")
async def give_list() -> list[int]:
    await anyio.sleep(1)
    return [3, 1, 2]


@kind("gives an empty list")
async def give_empty_list() -> list[str]:
    await anyio.sleep(1)
    return []


@kind("gives an object in an object")
async def give_object() -> dict[str, Any]:
    await anyio.sleep(1)
    return {"b": {"é": [1, None, 2.5]}, "a": True}


@kind("gives a model of pydantic's")
async def give_model() -> Order:
    await anyio.sleep(1)
    return Order(number=7, to=Place(city="Köln"))


@kind("gives models in a list")
async def give_models() -> list[Place]:
    await anyio.sleep(1)
    return [Place(city="Ulm"), Place(city="Bern", zip="3000")]


@kind("gives a day")
async def give_day() -> date:
    await anyio.sleep(1)
    return date(2026, 11, 29)


# What goes in


@kind("takes several arguments", {"a": 1, "b": "two"})
async def take_several(a: int, b: str) -> str:
    await anyio.sleep(1)
    return f"{a!r} {b!r}"


@kind("has defaults", {"a": 1})
async def take_defaults(a: int, b: str = "two", c: float | None = None) -> str:
    await anyio.sleep(1)
    return f"{a!r} {b!r} {c!r}"


@kind("is given its defaults", {"a": 1, "b": "two", "c": None})
async def take_given_defaults(a: int, b: str = "two", c: float | None = None) -> str:
    await anyio.sleep(1)
    return f"{a!r} {b!r} {c!r}"


@kind("takes a number that is whole", {"a": 3})
async def take_fraction(a: float) -> str:
    await anyio.sleep(1)
    return f"{a!r}"


@kind("takes a list", {"a": [3, 1, 2]})
async def take_list(a: list[int]) -> str:
    await anyio.sleep(1)
    return f"{a!r}"


@kind("takes an object", {"a": {"x": 1, "y": 2}})
async def take_object(a: dict[str, int]) -> str:
    await anyio.sleep(1)
    return f"{sorted(a.items())!r}"


@kind("takes a model of pydantic's", {"order": {"number": 7, "to": {"city": "Ulm"}}})
async def take_model(order: Order) -> str:
    await anyio.sleep(1)
    return f"{order!r}"


@kind("takes a choice", {"a": "blue"})
async def take_choice(a: Literal["red", "blue"]) -> str:
    await anyio.sleep(1)
    return f"{a!r}"


@kind("takes an enumeration", {"a": "blue"})
async def take_enumeration(a: Colour) -> str:
    await anyio.sleep(1)
    return f"{a!r}"


@kind("takes one thing or another", {"a": "7"})
async def take_either(a: int | str) -> str:
    await anyio.sleep(1)
    return f"{a!r}"


@kind("takes a text of many scripts", {"a": 'ö "日本語" \\ \n 🙂'})
async def take_scripts(a: str) -> str:
    await anyio.sleep(1)
    return a


@kind("is called twice at once", {"a": 1}, {"a": 2})
async def take_two(a: int) -> str:
    await anyio.sleep(1)
    return f"{a!r}"


@kind("is called twice with the same", {"a": 1}, {"a": 1})
async def take_the_same(a: int) -> str:
    await anyio.sleep(1)
    return f"{a!r}"


# What fails


@kind("fails", fails=True)
async def fail() -> str:
    await anyio.sleep(1)
    raise ValueError("no such thing")


@kind("fails without a word", fails=True)
async def fail_silently() -> str:
    await anyio.sleep(1)
    raise RuntimeError


@kind("fails where it is looked up", {"a": "x"}, fails=True)
async def fail_to_find(a: str) -> str:
    await anyio.sleep(1)
    return {"y": "z"}[a]


@kind("is called without an argument that it needs", {"a": 1}, fails=True)
async def miss_argument(a: int, b: int) -> str:
    return f"{a!r} {b!r}"


@kind("is called with an argument of another type", {"a": "one"}, fails=True)
async def mistake_type(a: int) -> str:
    return f"{a!r}"


@kind("is called with a choice that there is not", {"a": "green"}, fails=True)
async def mistake_choice(a: Literal["red", "blue"]) -> str:
    return f"{a!r}"
