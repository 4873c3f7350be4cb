"""When a predicted call and a call of the model mean the same."""

import json
import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import pytest
from hypothesis import given, strategies as st
from pydantic import BaseModel

from headstart import Effect, Tool, ToolCall, ToolCallSpeculator, ToolContext, tool


class Filter(BaseModel):
    """A model whose values equal one another in Python, and not in JSON."""

    value: Any


@dataclass
class Range:
    """A dataclass, in the same way."""

    start: Any


@tool(effect=Effect.READ)
async def typed(
    ctx: ToolContext,
    number: int = 1,
    share: float = 1.0,
    word: str = "",
    flag: bool = False,
    either: int | bool | None = None,
    at: datetime | None = None,
    keys: list[int] = [],  # noqa: B006 - pydantic copies it
    table: dict[str, Any] = {},  # noqa: B006
    kind: Literal["a", "b"] = "a",
    where: Filter | None = None,
    within: Range | None = None,
    debug_trace: str = "",
) -> None:
    """A tool that knows its schema."""


async def take(arguments):
    """A function of a tool whose schema comes from elsewhere."""


def untyped(**options):
    """A tool whose arguments are compared as JSON."""
    return Tool(take, parameters={"type": "object"}, effect=Effect.READ, **options)


def matches(called, predicted, asked):
    """Whether a prediction matches; the same must hold the other way round."""
    guess = ToolCallSpeculator(called, predicted)
    other = ToolCallSpeculator(called, asked)
    forth = guess.matches(ToolCall("call-1", called.name, asked))
    back = other.matches(ToolCall("call-1", called.name, predicted))
    assert forth is back
    return forth


BIG = 2**70

SAME_JSON = [
    ("{}", "{}"),
    ("{}", ""),
    ("{}", " \n"),
    ('{"a": 1, "b": 2}', '{"b":2,"a":1}'),
    ('{"a": {"x": 1, "y": [1, {"z": null}]}}', '{"a":{"y":[1,{"z":null}],"x":1}}'),
    ('{"a": 1}', '\t{ "a" :\r\n1 }'),
    ('{"a": 1}', '{"a": 1.0}'),
    ('{"a": 100}', '{"a": 1e2}'),
    ('{"a": [1.0, 2]}', '{"a": [1, 2.0]}'),
    ('{"a": "\\u00e9"}', '{"a": "é"}'),
    ('{"a": 0.1}', '{"a": 0.10}'),
    (f'{{"a": {BIG}}}', f'{{"a":{BIG}}}'),
    ('{"a": %s}' % ("9" * 5000), '{"a":%s}' % ("9" * 5000)),
    ('{"a": 1, "debug_trace": "x"}', '{"a": 1}'),
    ('{"a": 1, "debug_trace": "x"}', '{"a": 1, "debug_other": [2]}'),
]

DIFFERENT_JSON = [
    ("{}", '{"a": null}'),
    ('{"a": 1}', '{"a": 2}'),
    ('{"a": 1}', '{"a": "1"}'),
    ('{"a": 1}', '{"a": true}'),
    ('{"a": 0}', '{"a": false}'),
    ('{"a": 1.0}', '{"a": true}'),
    ('{"a": [1]}', '{"a": [true]}'),
    ('{"a": {"x": 1}}', '{"a": {"x": true}}'),
    ('{"a": null}', '{"a": false}'),
    ('{"a": ""}', '{"a": null}'),
    ('{"a": [1, 2]}', '{"a": [2, 1]}'),
    ('{"a": []}', '{"a": {}}'),
    ('{"a": 1}', '{"A": 1}'),
    ('{"a": "x"}', '{"a": "x "}'),
    ('{"a": 9007199254740993}', '{"a": 9007199254740992}'),
    ('{"a": 9007199254740993}', '{"a": 9007199254740992.0}'),
    (f'{{"a": {BIG}}}', f'{{"a": {BIG + 1}}}'),
    ('{"a": %s}' % ("9" * 5000), '{"a": %s}' % ("9" * 4999 + "8")),
    ('{"debug_": 1}', '{"debug_": 2}'),
    ('{"debug_": 1}', "{}"),
    ('{"a": {"debug_trace": 1}}', '{"a": {"debug_trace": 2}}'),
    ('{"xdebug_trace": 1}', '{"xdebug_trace": 2}'),
]


@pytest.mark.parametrize(("predicted", "asked"), SAME_JSON)
def test_json_that_means_the_same_matches(predicted, asked):
    assert matches(untyped(), predicted, asked)


@pytest.mark.parametrize(("predicted", "asked"), DIFFERENT_JSON)
def test_json_that_means_something_else_does_not_match(predicted, asked):
    assert not matches(untyped(), predicted, asked)


@pytest.mark.parametrize(
    ("predicted", "asked"),
    [
        ("{}", ""),
        ("{}", '{"number": 1}'),
        ("{}", '{"number": 1.0, "share": 1, "flag": false, "kind": "a"}'),
        ('{"number": 7}', '{"number": 7.0}'),
        ('{"share": 7}', '{"share": 7.0}'),
        ('{"share": 7}', '{"share": 7.00, "number": 1}'),
        ('{"number": 7}', '{"number": "7"}'),
        ('{"at": "2026-01-01T00:00:00Z"}', '{"at": "2026-01-01T00:00:00+00:00"}'),
        ('{"keys": [1, 2]}', '{"keys": [1.0, 2]}'),
        ('{"where": {"value": [1]}}', '{"where": { "value" : [1]}}'),
        ('{"within": {"start": 1}}', '{"within": {"start":1}}'),
        ('{"debug_trace": "x"}', "{}"),
        ('{"debug_trace": "x"}', '{"debug_trace": "y"}'),
        ('{"number": 7, "unknown": 1}', '{"number": 7}'),
    ],
)
def test_validated_arguments_that_are_the_same_match(predicted, asked):
    assert matches(typed, predicted, asked)


@pytest.mark.parametrize(
    ("predicted", "asked"),
    [
        ('{"number": 7}', '{"number": 8}'),
        ('{"number": 7}', "{}"),
        ('{"number": 1}', '{"share": 2}'),
        ('{"either": 1}', '{"either": true}'),
        ('{"either": 0}', '{"either": false}'),
        ('{"either": null}', '{"either": false}'),
        ('{"keys": [1, 2]}', '{"keys": [2, 1]}'),
        ('{"table": {"x": 1}}', '{"table": {"x": true}}'),
        ('{"table": {"x": [1]}}', '{"table": {"x": [true]}}'),
        ('{"share": 0.0}', '{"share": -0.0}'),
        ('{"at": "2026-01-01T00:00:00Z"}', '{"at": "2026-01-01T01:00:00+01:00"}'),
        ('{"where": {"value": 1}}', '{"where": {"value": 2}}'),
        ('{"where": null}', '{"where": {"value": null}}'),
        ('{"number": 9007199254740993}', '{"number": 9007199254740992}'),
        ('{"kind": "a"}', '{"kind": "b"}'),
    ],
)
def test_validated_arguments_that_differ_do_not_match(predicted, asked):
    assert not matches(typed, predicted, asked)


@pytest.mark.parametrize(
    ("one", "other"), [("1", "true"), ("[1]", "[true]"), ('{"x": 0}', '{"x": false}')]
)
@pytest.mark.parametrize(
    "text", ['{"where": {"value": %s}}', '{"within": {"start": %s}}']
)
def test_true_is_not_one_inside_a_model_either(text, one, other):
    assert not matches(typed, text % one, text % other)


@pytest.mark.parametrize("called", [typed, untyped()], ids=["typed", "untyped"])
def test_another_tools_name_never_matches(called):
    guess = ToolCallSpeculator(called, "{}")
    assert not guess.matches(ToolCall("call-1", "another", "{}"))
    assert not guess.matches(ToolCall("call-1", called.name.upper(), "{}"))


def test_the_ignored_prefixes_are_the_tools_own():
    careful = untyped(ignore_arguments=())
    assert not matches(careful, '{"debug_trace": 1}', "{}")
    tracing = untyped(ignore_arguments=["trace_", "x"])
    assert matches(tracing, '{"trace_id": 1, "xy": 1}', "{}")
    assert not matches(tracing, '{"trace_": 1}', "{}")
    assert not matches(tracing, '{"x": 1}', "{}")
    assert not matches(tracing, '{"debug_trace": 1}', "{}")


# --- arguments that mean nothing -------------------------------------------------------

MEANINGLESS = [
    "not json",
    "[1]",
    "null",
    "1",
    '"text"',
    '{"a": 1',
    '{"a": 1}}',
    '{"a": 1} {"a": 1}',
    '{"a": NaN}',
    '{"a": [Infinity]}',
    '{"a": -Infinity}',
    '{"a": 1e999}',
    "{'a': 1}",
    '{"a": 1,}',
    '{"a":' + "[" * 100_000,
    "\N{NO-BREAK SPACE}{}",
]


def checked():
    """A tool whose arguments are read by somebody else, who believes everything."""
    return Tool(
        typed.function,
        name="checked",
        parameters={},
        validate=lambda text: {},
        effect="READ",
    )


@pytest.mark.requirement("engine:default-deny")
@pytest.mark.parametrize(
    "called", [typed, untyped(), checked()], ids=["typed", "untyped", "checked"]
)
@pytest.mark.parametrize("text", MEANINGLESS, ids=lambda text: text[:12])
def test_text_that_is_no_json_object_matches_nothing_and_is_logged(
    called, text, caplog
):
    caplog.set_level(logging.WARNING, logger="headstart")
    guess = ToolCallSpeculator(called, text)
    assert not guess.matches(ToolCall("call-1", called.name, text))
    assert not guess.matches(ToolCall("call-1", called.name, "{}"))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.name == "headstart"
    caplog.clear()
    guess = ToolCallSpeculator(called, "{}")
    assert not caplog.records
    assert not guess.matches(ToolCall("call-1", called.name, text))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING


def test_the_warning_does_not_show_the_arguments(caplog):
    ToolCallSpeculator(untyped(), "the password is swordfish")
    assert "swordfish" not in caplog.text
    assert caplog.records


@pytest.mark.parametrize("text", ['{"number": "x"}', '{"flag": 7}', '{"kind": "c"}'])
def test_arguments_that_do_not_fit_the_schema_match_nothing(text):
    guess = ToolCallSpeculator(typed, text)
    assert not guess.matches(ToolCall("call-1", "typed", text))


# --- any JSON ---------------------------------------------------------------------------

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=4), values, max_size=4)


def reorder(value):
    if isinstance(value, dict):
        return {key: reorder(value[key]) for key in reversed(value)}
    return [reorder(item) for item in value] if isinstance(value, list) else value


@given(objects, st.sampled_from([None, 0, 1, 3]), st.booleans())
def test_order_space_and_escapes_never_matter(arguments, indent, ascii_only):
    written = json.dumps(reorder(arguments), indent=indent, ensure_ascii=ascii_only)
    assert matches(untyped(), json.dumps(arguments), written)


def meaning(value):
    """What JSON means, in a form that Python's own comparison gets right."""
    if isinstance(value, dict):
        return ("object", frozenset((key, meaning(value[key])) for key in value))
    if isinstance(value, list):
        return ("array", tuple(map(meaning, value)))
    if isinstance(value, float):
        return ("number", str(int(value)) if is_whole(value) else repr(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return ("number", str(value))
    return (type(value), value)


def is_whole(value):
    return value.is_integer() and repr(value) != "-0.0"


small = st.dictionaries(
    st.sampled_from("ab"),
    st.sampled_from(
        [0, 1, 0.0, 1.0, -0.0, True, False, None, "", "1", [], [1], [True]]
    ),
    max_size=2,
)


@given(small, small)
def test_two_objects_match_exactly_when_they_mean_the_same(left, right):
    expected = meaning(left) == meaning(right)
    assert matches(untyped(), json.dumps(left), json.dumps(right)) is expected
