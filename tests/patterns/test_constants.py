"""Which constant an argument has: by what was said, and by what its tool allows."""

from __future__ import annotations

import enum
import json
from typing import Any, Literal

import pytest

from headstart import Effect, Tool, tool
from headstart.predictors import PatternPredictor

from .scene import Run, expected, prediction, teach


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


@tool(effect=Effect.READ)
def list_orders(state: Literal["open", "closed", "late"]) -> str:
    return state


@tool(effect=Effect.READ)
def list_boxes(size: Size | None) -> str:
    return str(size)


@tool(effect=Effect.READ)
def list_mail(*, unread: bool) -> str:
    return str(unread)


@tool(effect=Effect.READ)
def get_rates(base: str) -> str:
    return base


TOOLS = {each.name: each for each in (list_orders, list_boxes, list_mail, get_rates)}
SAID = {
    "open": [
        "Which orders are still open?",
        "Show what is open.",
        "Open ones, please.",
    ],
    "late": ["Which orders are late?", "Is anything late?", "Late ones, please."],
    "closed": [
        "Which orders are closed?",
        "What is closed by now?",
        "The closed ones.",
    ],
}
PLACES = {
    "EUR": ["Prices in Berlin?", "I moved to Berlin.", "Berlin, please."],
    "GBP": ["Prices in London?", "I moved to London.", "London, please."],
    "USD": ["Prices in Boston?", "I moved to Boston.", "Boston, please."],
}


def asked(name: str, said: str, **arguments: Any) -> Run:
    return Run().user(said).asks((name, arguments)).gets("[]").says("Here they are.")


def taught(name: str, argument: str, texts: dict[str, list[str]]) -> PatternPredictor:
    patterns = PatternPredictor()
    for number in range(3):
        for value, said in texts.items():
            run = asked(name, f"{said[number]} ({number})", **{argument: value})
            teach(patterns, run, tools=TOOLS)
    return patterns


@pytest.mark.parametrize("value", SAID)
def test_an_allowed_value_is_meant_where_the_user_says_it(value: str):
    patterns = taught("list_orders", "state", SAID)
    run = Run().user(f"Please tell me what of mine is {value} now, I am in a hurry.")
    first, *_ = expected(patterns, run, tools=TOOLS)
    assert first == ("list_orders", {"state": value})


def test_a_value_that_the_tool_allows_need_not_have_been_seen():
    seen = {value: SAID[value] for value in ("open", "late")}
    patterns = taught("list_orders", "state", seen)
    run = Run().user("Which orders are closed?")
    calls = expected(patterns, run, tools=TOOLS)
    assert calls[0] == ("list_orders", {"state": "closed"})


def test_a_schema_that_changes_allows_other_values_at_once():
    patterns = taught("list_orders", "state", SAID)
    run = Run().user("Which orders are lost?")
    assert expected(patterns, run, tools=TOOLS)

    @tool(effect=Effect.READ, name="list_orders")
    def newer(state: Literal["open", "closed", "late", "lost"]) -> str:
        return state

    tools = {**TOOLS, "list_orders": newer}
    assert expected(patterns, run, tools=tools)[0] == ("list_orders", {"state": "lost"})


@pytest.mark.parametrize("value", PLACES)
def test_words_tell_constants_that_they_do_not_hold(value: str):
    patterns = PatternPredictor()
    for number in range(24):
        for base, said in PLACES.items():
            run = asked("get_rates", f"{said[number % 3]} ({number})", base=base)
            teach(patterns, run, tools=TOOLS)
    copy = PatternPredictor.from_dict(json.loads(json.dumps(patterns.to_dict())))
    merged = PatternPredictor()
    merged.merge(patterns)
    for each in (patterns, copy, merged):
        run = Run().user(PLACES[value][0])
        assert expected(each, run, tools=TOOLS)[0] == ("get_rates", {"base": value})


def test_what_a_schema_allows_is_remembered_from_the_first_run_on():
    patterns = PatternPredictor()
    teach(patterns, asked("list_orders", "Open?", state="open"), tools=TOOLS)
    teach(patterns, asked("list_mail", "Mail?", unread=True), tools=TOOLS)
    teach(patterns, asked("list_boxes", "Boxes?", size="large"), tools=TOOLS)
    teach(patterns, asked("get_rates", "Rates?", base="XTS"), tools=TOOLS)
    sources = patterns.to_dict()["sources"]
    assert '="open"' in sources["list_orders<state"]
    assert "=true" in sources["list_mail<unread"]
    assert '="large"' in sources["list_boxes<size"]
    assert "get_rates<base" not in sources  # it may belong to this run alone


def test_what_a_schema_does_not_allow_is_no_constant():
    patterns = PatternPredictor()
    for number in range(9):
        run = asked("list_orders", f"Lost? ({number})", state="lost")
        teach(patterns, run, tools=TOOLS)
    assert '="lost"' not in patterns.to_dict()["sources"]["list_orders<state"]
    calls = expected(patterns, Run().user("Lost?"), tools=TOOLS)
    assert ("list_orders", {"state": "lost"}) not in calls


def odd_tool(schema: object, **definitions: object) -> dict[str, Tool]:
    parameters = {
        "type": "object",
        "properties": {"mode": schema},
        "required": ["mode"],
        "$defs": definitions,
    }
    return {
        "odd": Tool(lambda: "", name="odd", effect=Effect.READ, parameters=parameters)
    }


@pytest.mark.parametrize(
    ("schema", "definitions"),
    [
        ({"enum": [f"m{number}" for number in range(1_000)]}, {}),
        ({"enum": "m1"}, {}),
        ({"anyOf": [{"enum": ["m1"]}, {"type": "string"}]}, {}),
        ({"anyOf": "m1"}, {}),
        ({"$ref": "#/$defs/Mode"}, {"Mode": {"$ref": "#/$defs/Mode"}}),
        ({"$ref": "#/elsewhere"}, {}),
        ({"$ref": 7}, {}),
        (True, {}),
    ],
)
def test_a_schema_that_limits_nothing_changes_nothing(schema, definitions):
    tools = odd_tool(schema, **definitions)
    patterns = PatternPredictor()
    for number in range(4):
        teach(patterns, asked("odd", f"Go ({number})", mode="m1"), tools=tools)
    assert expected(patterns, Run().user("Go."), tools=tools)[0] == (
        "odd",
        {"mode": "m1"},
    )


def test_allowed_values_that_were_never_meant_are_improbable():
    patterns = PatternPredictor()
    for number in range(12):
        run = asked("list_orders", f"What now? ({number})", state="open")
        teach(patterns, run, tools=TOOLS)
    run = Run().user("What now?")
    right = prediction(patterns, run, ("list_orders", {"state": "open"}), tools=TOOLS)
    others = [
        p for p in expected(patterns, run, tools=TOOLS) if p[1] != {"state": "open"}
    ]
    assert right.probability > 0.4
    assert all(
        prediction(patterns, run, other, tools=TOOLS).probability < 0.1
        for other in others
    )
