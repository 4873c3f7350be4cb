"""Tools that were never called, or hardly ever."""

from __future__ import annotations

from typing import Any

from headstart import Effect, Tool
from headstart.predictors import PatternPredictor

from .scene import Run, expected, teach

KINDS = ["crate", "pallet", "barrel", "carton", "drum", "sack", "trunk", "cask"]


def answer(arguments: dict[str, Any]) -> str:
    return str(arguments)


def declared(name: str, *arguments: str) -> Tool:
    properties: dict[str, Any] = {each: {"type": "string"} for each in arguments}
    schema = {"type": "object", "properties": properties, "required": [*arguments]}
    return Tool(answer, name=name, parameters=schema, effect=Effect.READ)


TOOLS = {
    each.name: each
    for each in (
        declared("find_tools", "query"),
        *(declared(f"depot/track_{kind}", f"{kind}_id") for kind in KINDS),
        *(declared(f"depot/weigh_{kind}", f"{kind}_id") for kind in KINDS),
    )
}


def routed(kind: str, number: int, *, asks: bool = True) -> Run:
    """A run in which a search names tools, and the first of them is called."""
    run = Run().user(f"Where is the {kind} {kind[0].upper()}-{number} now, please?")
    run.asks(("find_tools", {"query": f"track a {kind}"}))
    run.gets(f"tools:\n- track_{kind}: where it is\n- weigh_{kind}: what it weighs")
    if asks:
        value = f"{kind[0].upper()}-{number}"
        run.asks((f"depot/track_{kind}", {f"{kind}_id": value})).gets("On its way.")
        run.says("It is on its way.")
    return run


def router() -> PatternPredictor:
    patterns = PatternPredictor()
    for number in range(21):
        run = routed(KINDS[number % 7], number * 7919 % 90_000 + 10_000)
        teach(patterns, run, tools=TOOLS)
    return patterns


def test_a_tool_that_was_never_called_is_expected_where_a_result_names_it():
    first = expected(router(), routed("cask", 31_337, asks=False), tools=TOOLS)[0]
    assert first == ("depot/track_cask", {"cask_id": "C-31337"})


def test_a_tool_that_no_result_names_is_not_proposed_before_it_was_called():
    asked = Run().user("Where is the cask C-31337 now, please?")
    proposed = expected(router(), asked, tools=TOOLS)
    assert not [name for name, _ in proposed if "cask" in name]


def test_a_tool_whose_arguments_cannot_be_told_is_not_proposed():
    names = [f"option_{number}" for number in range(9)]
    wide = declared("depot/track_cask", *names)
    del wide.parameters["required"]
    tools = {**TOOLS, wide.name: wide}
    proposed = expected(router(), routed("cask", 31_337, asks=False), tools=tools)
    assert "depot/track_cask" not in [name for name, _ in proposed]


def test_a_tool_that_was_called_once_takes_its_values_where_others_take_theirs():
    patterns = router()
    teach(patterns, routed("cask", 12_345), tools=TOOLS)
    first = expected(patterns, routed("cask", 31_337, asks=False), tools=TOOLS)[0]
    assert first == ("depot/track_cask", {"cask_id": "C-31337"})


def test_tools_of_one_name_are_told_apart_by_what_stands_before_it():
    other = declared("yard/track_cask", "cask_id")
    tools = {**TOOLS, other.name: other}
    run = Run().user("Where is the cask C-31337 now, please?")
    run.asks(("find_tools", {"query": "track a cask"}))
    run.gets("tools:\n- yard: track_cask, where it is\n- depot: weigh_cask")
    assert expected(router(), run, tools=tools)[0][0] == "yard/track_cask"
