"""When two argument texts mean the same, and what the model sees of a result."""

import json
import logging
import math
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction

import pytest
from hypothesis import example, given, strategies as st
from pydantic import BaseModel

from headstart import Tool, ToolCall, ToolFailed, ToolResult
from headstart._calls import (
    IGNORED_PREFIXES,
    canonical_arguments,
    decode_arguments,
    same_value,
)

HUGE = "1" + "0" * 5000


def same(left, right, ignored_prefixes=IGNORED_PREFIXES):
    """Whether two texts match: as canonical texts, and as a tool compares them."""
    written = canonical_arguments(left, ignored_prefixes=ignored_prefixes)
    other = canonical_arguments(right, ignored_prefixes=ignored_prefixes)
    options = {"parameters": {}, "ignore_arguments": list(ignored_prefixes)}
    tool = Tool(lambda arguments: arguments, name="any", **options)
    fingerprint = tool.fingerprint(left)
    matches = fingerprint is not None and fingerprint == tool.fingerprint(right)
    assert matches == (written is not None and written == other)
    return matches


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ('{"a": 1, "b": 2}', '{"b":2,"a":1}'),
        ('{"a": {"x": 1, "y": 2}}', '{"a": {"y": 2, "x": 1}}'),
        (' \t\r\n{ "a" :\n1 } \n', '{"a":1}'),
        ('{"a": 1}', '{"a": 1.0}'),
        ('{"a": 100}', '{"a": 1e2}'),
        ('{"a": 100}', '{"a": 1.0E+2}'),
        ('{"a": [0]}', '{"a": [0.0]}'),
        ('{"a": 0}', '{"a": -0}'),
        ('{"a": 0.5}', '{"a": 5e-1}'),
        (f'{{"a": {2**70}}}', f'{{"a": {2**70}.0}}'),
        (f'{{"a": {10**22}}}', '{"a": 1e22}'),
        (f'{{"a": {10**308}}}', '{"a": 1e308}'),
        (f'{{"a": {HUGE}}}', f'{{ "a" : {HUGE} }}'),
        (f'{{"a": -{HUGE}, "b": 1}}', f'{{"b": 1, "a": -{HUGE}}}'),
        ('{"a": "\\u00e9"}', '{"a": "é"}'),
        ('{"a": "\\/"}', '{"a": "/"}'),
        ('{"a": "\\ud83d\\ude00"}', '{"a": "😀"}'),
        ('{"a": "\\ud800"}', '{"a": "\\uD800"}'),
        ('{"a": 1, "a": 2}', '{"a": 2}'),
        ("", "{}"),
        (" \n", "{}"),
        ('{"debug_trace": 1}', "{}"),
        ('{"id": 7, "debug_trace": true}', '{"debug_level": [1], "id": 7}'),
        ('{"a": 9007199254740993}', '{"a": 9007199254740993.0}'),
    ],
)
def test_texts_that_mean_the_same_match(left, right):
    assert same(left, right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ('{"a": 1}', '{"a": 2}'),
        ('{"a": 1}', '{"b": 1}'),
        ('{"a": 1}', '{"a": 1, "b": null}'),
        ('{"a": true}', '{"a": 1}'),
        ('{"a": false}', '{"a": 0}'),
        ('{"a": null}', "{}"),
        ('{"a": "1"}', '{"a": 1}'),
        ('{"a": [1, 2]}', '{"a": [2, 1]}'),
        ('{"a": 0.0}', '{"a": -0.0}'),
        ('{"a": 0}', '{"a": 1e-400}'),
        (f'{{"a": {2**70}}}', f'{{"a": {2**70 + 1}}}'),
        ('{"a": 9007199254740992}', '{"a": 9007199254740993}'),
        ('{"a": 9007199254740994}', '{"a": 9007199254740993.5}'),
        (f'{{"a": {HUGE}}}', f'{{"a": -{HUGE}}}'),
        (f'{{"a": {HUGE}}}', f'{{"a": {HUGE[:-1]}1}}'),
        (f'{{"a": {HUGE}}}', f'{{"a": "{HUGE}"}}'),
        (
            f'{{"a": {HUGE}, "b": "\\u0000{HUGE}"}}',
            f'{{"a": "\\u0000{HUGE}", "b": {HUGE}}}',
        ),
        (f'{{"a": {HUGE}}}', f'{{"a": ["NaN", "{HUGE}"]}}'),
        ('{"a": "é"}', '{"a": "e\u0301"}'),
        ('{"é": 1}', '{"e\u0301": 1}'),
        ('{"a": "x"}', '{"a": "x "}'),
        ('{"a": "X"}', '{"a": "x"}'),
        ('{"debug_": 1}', "{}"),
        ('{"debug_": 1}', '{"debug_": 2}'),
        ('{"debug": 1}', "{}"),
        ('{"Debug_x": 1}', "{}"),
        ('{"a": {"debug_x": 1}}', '{"a": {}}'),
        ('{"a": [{"debug_x": 1}]}', '{"a": [{}]}'),
        ('{"a": 1, "a": 2}', '{"a": 1}'),
    ],
)
def test_texts_that_mean_something_else_do_not_match(left, right):
    assert canonical_arguments(left) is not None
    assert canonical_arguments(right) is not None
    assert not same(left, right)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "[1]",
        "null",
        "7",
        '"text"',
        "true",
        "{",
        "{'a': 1}",
        '{"a": 1,}',
        '{"a": 01}',
        '{"a": +1}',
        '{"a": .5}',
        '{"a": 1} {"b": 2}',
        '{"a": NaN}',
        '{"a": [Infinity]}',
        '{"a": {"b": -Infinity}}',
        '{"a": 1e400}',
        '{"a": -1e400}',
        '{"a": "\n"}',
        "\ufeff{}",
        "// no\n{}",
        "not json at all",
    ],
)
def test_a_text_that_is_no_json_object_of_finite_numbers_matches_nothing(text, caplog):
    with caplog.at_level(logging.WARNING, logger="headstart"):
        assert canonical_arguments(text) is None
    assert not same(text, text)
    assert decode_arguments(text) is None
    assert [record.levelname for record in caplog.records[:1]] == ["WARNING"]


def test_arguments_do_not_stand_in_the_log(caplog):
    canonical_arguments('{"password": "hunter2"')
    assert caplog.records
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize("bracket", ['{"a":', "["])
def test_arguments_nested_beyond_the_stack_match_nothing(bracket):
    close = "}" if bracket.startswith("{") else "]"
    text = '{"a":' + bracket * 200_000 + "1" + close * 200_000 + "}"
    assert canonical_arguments(text) is None
    assert decode_arguments(text) is None


def test_arguments_nested_a_hundred_deep_match():
    text = '{"a":' * 100 + "1" + "}" * 100
    assert same(text, text.replace("1", " 1.0 "))


@pytest.mark.parametrize("number", ["0e" + "9" * 20, "1e-" + "9" * 20, "0.0e999999999"])
def test_an_exponent_of_any_length_is_read_at_once(number):
    text = f'{{"a": {number}}}'
    assert same(text, text)
    assert decode_arguments(text) == {"a": 0}


def test_ignored_prefixes_can_be_chosen():
    prefixes = ("trace_", "x_", "x_y_")
    texts = ['{"a": 1, "trace_id": 7}', '{"a": 1, "x_y_": 2, "x_z": 3}', '{"a": 1}']
    assert len({canonical_arguments(t, ignored_prefixes=prefixes) for t in texts}) == 1
    assert not same('{"x_": 1}', "{}", ignored_prefixes=prefixes)
    assert not same('{"debug_x": 1}', "{}", ignored_prefixes=())


def test_decoding_keeps_every_digit_and_refuses_what_cannot_be_a_value():
    assert decode_arguments(f'{{"a": {2**70}, "b": 1.0}}') == {"a": 2**70, "b": 1}
    assert isinstance(decode_arguments('{"b": 1.0}')["b"], int)
    assert decode_arguments(f'{{"a": {HUGE}}}') is None


# --- equal if and only if the meaning is equal -------------------------------------

keys = st.text(max_size=4) | st.sampled_from(["a", "b", "debug_", "debug_x", "é", "\0"])
numbers = (
    st.integers()
    | st.integers(min_value=2**53 - 4, max_value=2**53 + 4)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0, -0.0, 1, 1.0, 10**22, 1e22, True, False])
)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=8,
)
objects = st.dictionaries(keys, values, max_size=4)


def meaning(value):
    """The meaning of a JSON value, by a way of its own: what is written, exactly."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return (type(value).__name__, value)
    if isinstance(value, (int, float)):
        return ("number", Fraction(repr(value)), math.copysign(1, value) < 0 == value)
    if isinstance(value, list):
        return ("list", tuple(meaning(item) for item in value))
    return ("object", frozenset((key, meaning(item)) for key, item in value.items()))


def kept(value):
    return {
        key: item
        for key, item in value.items()
        if not (key.startswith("debug_") and key != "debug_")
    }


def written(value, draw):
    """JSON text of `value`, in one of many ways."""
    items = draw(st.permutations(list(value.items())))
    shuffled = dict(items)
    return json.dumps(
        shuffled,
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, 0, 3])),
        separators=draw(st.sampled_from([None, (",", ":"), (" , ", " : ")])),
    )


@given(objects, st.data())
def test_every_way_to_write_an_object_matches(value, data):
    assert same(written(value, data.draw), written(value, data.draw))


@given(objects, objects, st.data())
@example({"a": 1}, {"a": 1.0}, None)
@example({"a": 1}, {"a": True}, None)
@example({"a": 0}, {"a": -0.0}, None)
@example({"a": 1, "debug_x": 2}, {"a": 1.0}, None)
def test_texts_match_if_and_only_if_their_meanings_are_equal(left, right, data):
    texts = [
        written(value, data.draw) if data else json.dumps(value)
        for value in (left, right)
    ]
    assert same(*texts) == (meaning(kept(left)) == meaning(kept(right)))


@given(objects, st.data())
def test_a_change_of_one_value_is_a_change_of_meaning(value, data):
    key = data.draw(st.sampled_from(["a", "b", "debug_"]))
    other = value | {key: data.draw(values)}
    expected = meaning(kept(value)) == meaning(kept(other))
    assert same(json.dumps(value), json.dumps(other)) == expected


@given(st.text())
def test_no_text_raises(text):
    decoded = decode_arguments(text)
    assert (canonical_arguments(text) is None) == (decoded is None)


@given(st.text(max_size=8))
def test_unicode_normal_forms_are_told_apart(text):
    composed = unicodedata.normalize("NFC", text)
    decomposed = unicodedata.normalize("NFD", text)
    assert same(json.dumps({"a": composed}), json.dumps({"a": decomposed})) == (
        composed == decomposed
    )


@given(objects)
def test_decoding_gives_what_was_written(value):
    assert meaning(decode_arguments(json.dumps(value))) == meaning(value)


# --- validated values --------------------------------------------------------------


class Point(BaseModel):
    x: int


class Spot(BaseModel):
    x: int


@dataclass
class Pair:
    left: int


class Unequal:
    def __eq__(self, other):
        msg = "no"
        raise RuntimeError(msg)

    __hash__ = None


class Colour(Enum):
    RED = "red"


NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (1, 1),
        ("a", "a"),
        (None, None),
        ([1, [2]], [1, [2]]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({1, 2}, {2, 1}),
        ((1, "a"), (1, "a")),
        (Point(x=1), Point(x=1)),
        (Pair(1), Pair(1)),
        (Colour.RED, Colour.RED),
        (Decimal("1.0"), Decimal("1.0")),
        (NOON, datetime(2030, 1, 1, 12, tzinfo=UTC)),
        (0.0, 0.0),
        (-0.0, -0.0),
    ],
)
def test_values_alike_are_the_same(left, right):
    assert same_value(left, right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (1, 1.0),
        (1, True),
        (0, False),
        (0.0, -0.0),
        (math.nan, math.nan),
        ([math.nan], [math.nan]),
        ([1], [True]),
        ([1], (1,)),
        ([1], [1, 1]),
        ({"a": 1}, {"a": 1.0}),
        ({"a": 1}, {"a": 1, "b": 1}),
        ({1: "x"}, {True: "x"}),
        ({1}, {True}),
        ({1}, frozenset({1})),
        (Point(x=1), Point(x=2)),
        (Point(x=1), Spot(x=1)),
        (Pair(1), Pair(2)),
        ("red", Colour.RED),
        (Decimal("1.0"), Decimal("1.00")),
        (Decimal(0), Decimal("-0")),
        (NOON, NOON.astimezone(timezone(timedelta(hours=1)))),
        (time(12, tzinfo=UTC), time(13, tzinfo=timezone(timedelta(hours=1)))),
        (Unequal(), Unequal()),
    ],
)
def test_values_that_a_tool_could_tell_apart_are_not_the_same(left, right):
    assert not same_value(left, right)


@given(values)
def test_a_value_is_the_same_as_its_copy(value):
    assert same_value(value, json.loads(json.dumps(value)))


# --- calls and results -------------------------------------------------------------


def test_a_call_hides_its_arguments_from_logs():
    call = ToolCall("call_1", "login", '{"password": "hunter2"}')
    assert "hunter2" not in repr(call)
    assert ToolCall("call_1", "login").arguments == "{}"


def test_a_result_hides_its_content_from_logs():
    assert "hunter2" not in repr(ToolResult("hunter2"))


def test_results_are_equal_when_the_model_would_see_the_same():
    assert ToolResult("a") == ToolResult("a")
    assert ToolResult("a") != ToolResult("b")
    assert ToolResult("a") != ToolResult("a", is_error=True)


@pytest.mark.parametrize(
    ("value", "content"),
    [
        ("text as it is", "text as it is"),
        ("", ""),
        ('{"a": 1}', '{"a": 1}'),
        (None, "null"),
        (True, "true"),
        (7, "7"),
        (1.5, "1.5"),
        ([1, "é"], '[1,"é"]'),
        ({"a": {"b": None}}, '{"a":{"b":null}}'),
        ((1, 2), "[1,2]"),
        (Point(x=1), '{"x":1}'),
        (Pair(1), '{"left":1}'),
        (NOON, '"2030-01-01T12:00:00Z"'),
        (b"bytes", '"bytes"'),
        (math.nan, "NaN"),
        (Colour.RED, '"red"'),
    ],
)
def test_a_value_is_rendered_as_text_or_json(value, content):
    assert ToolResult.from_value(value) == ToolResult(content)


def test_a_result_is_its_own_rendering():
    result = ToolResult("denied", is_error=True)
    assert ToolResult.from_value(result) is result


def test_values_that_cannot_be_rendered_are_a_value_error():
    circle = []
    circle.append(circle)
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for value in (circle, object(), b"\xff", {"a": object()}, deep, ["\ud800"]):
        with pytest.raises(ValueError):  # noqa: PT011 - of several kinds
            ToolResult.from_value(value)


def test_an_error_that_says_what_the_model_is_told_is_rendered_as_it_says():
    assert ToolResult.from_error(ToolFailed("No.")) == ToolResult("No.", is_error=True)


def test_an_error_is_rendered_with_its_type():
    assert ToolResult.from_error(KeyError("id")) == ToolResult(
        "KeyError: 'id'", is_error=True
    )
