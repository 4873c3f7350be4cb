from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest

from headstart import Agent, Effect, Tool, ToolCall, tool
from headstart._errors import UsageError
from headstart._messages import Message
from headstart.predictors import Conversation, Rule, RulePredictor, rule
from headstart.testing import ScriptedModel


@tool(effect=Effect.READ)
def get_order(order_id: str) -> str:
    return order_id


@tool(effect=Effect.READ)
def get_incident(incident_id: int, verbose: bool = False) -> str:
    return f"{incident_id}{verbose}"


@tool(effect=Effect.READ)
def get_user(user_id: str, limit: int | None = None) -> str:
    return f"{user_id}{limit}"


@tool(effect=Effect.READ)
def search(query: str, filters: dict[str, Any] | None = None) -> str:
    return f"{query}{filters}"


@tool(effect=Effect.GATED)
def pause(incident_id: int, until: str = "tomorrow") -> str:
    return f"{incident_id}{until}"


TOOLS = (get_order, get_incident, get_user, search, pause)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def asks(*calls: tuple[str, dict[str, Any]], start: int = 0) -> Message:
    return Message(
        role="assistant",
        tool_calls=tuple(
            ToolCall(f"c{number}", name, json.dumps(arguments))
            for number, (name, arguments) in enumerate(calls, start)
        ),
    )


def answers(number: int, value: object, name: str | None = None) -> Message:
    content = value if isinstance(value, str) else json.dumps(value)
    return Message(role="tool", content=content, tool_call_id=f"c{number}", name=name)


def found_user(value: object, text: str = "Hello") -> list[Message]:
    return [user(text), asks(("get_user", {"user_id": "u1"})), answers(0, value)]


def predicted(
    rules: Rule | list[Rule],
    messages: str | list[Message],
    *,
    deps: object = None,
    tools: tuple[Tool, ...] = TOOLS,
) -> list[tuple[str, dict[str, Any]]]:
    predictor = RulePredictor([rules] if isinstance(rules, Rule) else rules)
    conversation = Conversation(
        messages=tuple([user(messages)] if isinstance(messages, str) else messages),
        tools={tool.name: tool for tool in tools},
        deps=deps,
    )
    return [
        (each.tool, json.loads(each.arguments_text))
        for each in predictor.predict_nowait(conversation)
    ]


def arguments(*args: Any, **options: Any) -> list[dict[str, Any]]:
    return [found for _, found in predicted(*args, **options)]


async def test_predict_gives_predictions_with_probability_and_origin():
    predictor = RulePredictor(
        [
            rule("order", "get_order", order_id="W1", probability=0.2),
            rule("order", "get_order", order_id="W2", probability=0.9),
        ]
    )
    conversation = Conversation(
        messages=(user("my order"),), tools={"get_order": get_order}
    )
    predictions = await predictor.predict(conversation)
    assert [
        (each.tool, each.arguments_text, each.probability, each.origin)
        for each in predictions
    ] == [
        ("get_order", '{"order_id": "W2"}', 0.9, "rule 2"),
        ("get_order", '{"order_id": "W1"}', 0.2, "rule 1"),
    ]


@pytest.mark.parametrize(
    ("text", "fires"),
    [
        ("Where is my order?", True),
        ("WHERE IS MY   ORDER", True),
        ("myorder", False),
        ("my orders", False),
        ("", False),
    ],
)
def test_a_keyword_matches_whole_words_in_any_case(text: str, fires: bool):
    found = predicted(rule("my order", "get_user", user_id="u1"), text)
    assert bool(found) is fires


def test_a_keyword_with_groups_named_nowhere_fires_once_however_often_it_is_said():
    found = predicted(rule("order", "get_user", user_id="u1"), "order order order")
    assert found == [("get_user", {"user_id": "u1"})]


def test_every_match_of_a_regex_with_groups_is_a_call_and_equal_ones_are_one():
    found = predicted(
        rule(r"(?P<order_id>#W\d+)", "get_order"), "#W1 and #W2, again #W1, #w3"
    )
    assert found == [
        ("get_order", {"order_id": "#W1"}),
        ("get_order", {"order_id": "#W2"}),
    ]


def test_a_compiled_pattern_is_taken_with_its_flags():
    pattern = re.compile(r"(?P<order_id>#w\d+)", re.IGNORECASE)
    assert arguments(rule(pattern, "get_order"), "#W7") == [{"order_id": "#W7"}]


def test_only_the_last_user_message_is_searched():
    messages = [user("#W1"), Message(role="assistant", content="#W2"), user("#W3")]
    found = arguments(rule(r"(?P<order_id>#W\d)", "get_order"), messages)
    assert found == [{"order_id": "#W3"}]


def test_only_the_last_part_of_a_long_text_is_searched():
    text = "#W1 " + "x" * 30_000 + " #W2"
    found = arguments(rule(r"(?P<order_id>#W\d)", "get_order"), text)
    assert found == [{"order_id": "#W2"}]


def test_a_rule_proposes_eight_calls_and_a_predictor_thirty_two_at_most():
    text = " ".join(f"#W{number}" for number in range(1000))
    one = rule(r"(?P<order_id>#W\d+)", "get_order")
    assert len(predicted(one, text)) == 8
    many = [rule(rf"(?P<order_id>#W{digit}\d+)", "get_order") for digit in range(1, 10)]
    assert len(predicted(many, text)) == 32


def test_a_group_that_is_no_parameter_is_for_templates_only():
    found = arguments(
        rule(r"(?P<kind>order|return) (?P<n>\d+)", "get_order", order_id="#W{n}"),
        "order 7",
    )
    assert found == [{"order_id": "#W7"}]


def test_a_template_is_preferred_to_the_group_of_the_same_name():
    one = rule(r"(?P<order_id>\d+)", "get_order", order_id="#W{order_id}")
    assert arguments(one, "order 7") == [{"order_id": "#W7"}]


def test_numbered_groups_can_be_used():
    one = rule(r"order (\d+)", "search", query="{1} of {0}")
    assert arguments(one, "order 7") == [{"query": "7 of order 7"}]


def test_text_becomes_the_number_or_boolean_that_the_schema_wants():
    one = rule(r"(?P<incident_id>\d+) (?P<verbose>True|False)", "get_incident")
    assert arguments(one, "7 True") == [{"incident_id": 7, "verbose": True}]


def test_text_fits_itself_to_a_json_schema_from_elsewhere():
    def run(values: dict[str, Any]) -> dict[str, Any]:
        return values

    schema = {
        "properties": {
            "rate": {"type": "number"},
            "count": {"type": ["integer", "null"]},
            "name": {"type": "string"},
        },
        "required": ["rate"],
    }
    foreign = Tool(run, parameters=schema, effect="read")
    one = rule(r"(?P<rate>[\d.]+)(?: x (?P<count>\d+))?", "run", name="{deps.id}")
    found = arguments(one, "1.5 x 3, 2", deps={"id": 12}, tools=(foreign,))
    assert found == [
        {"rate": 1.5, "count": 3, "name": "12"},
        {"rate": 2, "name": "12"},
    ]


def test_a_number_is_the_text_that_a_text_parameter_wants():
    one = rule(None, "get_order", after="get_user", order_id="{result.orders[0]}")
    assert arguments(one, found_user({"orders": [17]})) == [{"order_id": "17"}]


def test_an_optional_group_that_took_no_part_is_left_out():
    one = rule(r"pause (?P<incident_id>\d+)(?: until (?P<until>\w+))?", "pause")
    assert arguments(one, "pause 7") == [{"incident_id": 7}]
    assert arguments(one, "pause 7 until noon") == [{"incident_id": 7, "until": "noon"}]


def test_a_group_that_took_no_part_fills_no_template():
    one = rule(r"order(?: (?P<n>\d+))?", "get_order", order_id="#W{n}")
    assert arguments(one, "order") == []


def test_a_missing_required_argument_proposes_nothing():
    assert predicted(rule("order", "get_order"), "my order") == []


def test_arguments_that_the_schema_refuses_are_not_proposed():
    assert predicted(rule("order", "get_incident", incident_id="x"), "order") == []


def test_constants_and_nested_templates_are_filled_in():
    one = rule(
        r"from (?P<who>\w+)",
        "search",
        query="mail",
        filters={"from": ["{who}", 1, None, True], "{{x}}": "{{y}}"},
    )
    assert arguments(one, "from ann") == [
        {
            "query": "mail",
            "filters": {"from": ["ann", 1, None, True], "{{x}}": "{y}"},
        }
    ]


def test_what_the_user_said_can_be_an_argument():
    one = rule("search", "search", query="{user_text}")
    assert arguments(one, "search for cats") == [{"query": "search for cats"}]


def test_a_field_of_an_earlier_result_keeps_its_type():
    one = rule("again", "search", query="x", filters="{results.get_user.filters[0]}")
    messages = [*found_user({"filters": [{"a": 1}]}), user("again")]
    assert arguments(one, messages) == [{"query": "x", "filters": {"a": 1}}]


def test_the_last_result_of_a_tool_counts_and_text_is_taken_as_it_is():
    one = rule("again", "get_order", order_id="{results.get_user}")
    messages = [
        *found_user("first"),
        asks(("get_user", {"user_id": "u2"}), start=1),
        answers(1, "second"),
        user("again"),
    ]
    assert arguments(one, messages) == [{"order_id": "second"}]


@pytest.mark.parametrize(
    "result",
    [
        "no JSON",
        "NaN",
        '{"orders": NaN}',
        "[" * 100_000,
        "9" * 5000,
        "",
        {},
        {"orders": []},
        {"orders": None},
        {"orders": [None]},
        {"orders": {"0": {}}},
        {"orders": [{"id": None}]},
        {"orders": [{"id": {}}]},
        {"orders": "abc"},
    ],
)
def test_a_missing_or_unfit_field_proposes_nothing(result: object):
    after = rule(None, "get_order", after="get_user", order_id="{result.orders[0].id}")
    text = rule("Hello", "get_order", order_id="a {results.get_user.orders[0].id}")
    assert predicted([after, text], found_user(result)) == []


def test_a_result_of_a_million_characters_is_not_parsed():
    one = rule(None, "get_order", after="get_user", order_id="{result.id}")
    assert predicted(one, found_user({"id": "W1", "more": "x" * 1_000_000})) == []


def test_every_element_is_a_call_with_a_star():
    one = rule(None, "get_order", after="get_user", order_id="{result.orders[*].id}")
    result = {"orders": [{"id": "W1"}, {"no": 1}, {"id": "W2"}]}
    assert arguments(one, found_user(result)) == [
        {"order_id": "W1"},
        {"order_id": "W2"},
    ]


def test_a_rule_with_after_fires_on_each_of_the_results_that_came_last():
    one = rule(None, "get_order", after="get_user", order_id="{result.order}")
    both = [
        user("Hello"),
        asks(("get_user", {"user_id": "a"}), ("get_user", {"user_id": "b"})),
        answers(0, {"order": "W1"}, name="get_user"),
        answers(1, {"order": "W2"}),
    ]
    assert arguments(one, both[:3]) == [{"order_id": "W1"}]
    assert arguments(one, both) == [{"order_id": "W1"}, {"order_id": "W2"}]
    assert arguments(one, [*both, asks(("search", {"query": "x"}), start=2)]) == []
    assert arguments(one, [*both, user("Thanks")]) == []


def test_a_rule_with_after_searches_the_result():
    one = rule(r"see (?P<order_id>W\d)", "get_order", after="get_user")
    assert arguments(one, found_user("see W1, see W2", text="see W9")) == [
        {"order_id": "W1"},
        {"order_id": "W2"},
    ]


@dataclass
class Account:
    id: UUID
    tags: list[str] = field(default_factory=list)

    @property
    def secret(self) -> str:
        raise AssertionError


@dataclass
class Deps:
    account: Account
    sessions: dict[str, str]


DEPS = Deps(Account(UUID(int=7), ["vip"]), {"user-id": "u5"})


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{deps.account.id}", str(UUID(int=7))),
        ("{deps.account.tags[0]}", "vip"),
        ("{deps.account.tags[-1]}", "vip"),
        ("{deps.sessions.user-id}", "u5"),
        ("{deps.sessions[user-id]}", "u5"),
    ],
)
def test_context_is_read_through_fields_keys_and_indices(template: str, value: str):
    one = rule("me", "get_user", user_id=template)
    assert arguments(one, "me", deps=DEPS) == [{"user_id": value}]


@pytest.mark.parametrize(
    "template",
    [
        "{deps.account.secret}",
        "{deps.account.tags.append}",
        "{deps.account.tags[1]}",
        "{deps.account.tags[1_0]}",
        "{deps.account.id.hex}",
        "{deps.nothing}",
        "{deps}",
        "me {deps.account}",
    ],
)
def test_properties_methods_and_what_is_no_text_are_not_read(template: str):
    assert predicted(rule("me", "get_user", user_id=template), "me", deps=DEPS) == []


def test_deps_that_are_no_json_value_propose_nothing():
    one = rule("me", "search", query="x", filters={"a": "{deps.it}"})
    for unfit in (object(), float("nan"), float("inf"), {1: {2, object()}}):
        assert predicted(one, "me", deps={"it": unfit}) == []


def test_a_call_that_was_asked_for_is_not_proposed_again_until_the_user_speaks():
    one = rule(r"(?P<order_id>#W\d)", "get_order")
    messages = [user("#W1 #W2"), asks(("get_order", {"order_id": "#W1"}))]
    assert arguments(one, messages) == [{"order_id": "#W2"}]
    messages.append(answers(0, "here"))
    assert arguments(one, messages) == [{"order_id": "#W2"}]
    messages.append(user("#W1"))
    assert arguments(one, messages) == [{"order_id": "#W1"}]


def test_a_read_is_proposed_again_after_a_write_and_the_write_is_not():
    rules = [
        rule(r"incident (?P<incident_id>\d)", "get_incident"),
        rule(r"incident (?P<incident_id>\d)", "pause"),
    ]
    messages = [
        user("pause incident 7"),
        asks(("get_incident", {"incident_id": 7})),
        answers(0, "open"),
    ]
    assert predicted(rules, messages) == [("pause", {"incident_id": 7})]
    messages += [asks(("pause", {"incident_id": 7}), start=1), answers(1, "paused")]
    assert predicted(rules, messages) == [("get_incident", {"incident_id": 7})]
    messages += [asks(("pause", {"incident_id": 8}), start=2), answers(2, "paused")]
    assert predicted(rules, messages) == [("get_incident", {"incident_id": 7})]


def test_a_rule_for_a_tool_that_is_not_there_proposes_nothing():
    assert predicted(rule("order", "nothing"), "order") == []


def test_rules_are_checked_against_the_tools_at_once():
    for bad, name in [
        (rule("x", "nothing"), "nothing"),
        (rule(None, "get_order", after="nothing"), "nothing"),
        (rule("x", "get_order", order="1"), "order"),
    ]:
        with pytest.raises(UsageError, match=repr(name)):
            RulePredictor([rule("x", "search", query="x"), bad], tools=TOOLS)
        with pytest.raises(UsageError, match=repr(name)):
            RulePredictor([bad]).check({tool.name: tool for tool in TOOLS})
    RulePredictor([rule("x", "get_order", order_id="1")], tools=TOOLS)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"when": ""},
        {"when": "  "},
        {"when": "("},
        {"when": "(?P<a>x)(?P<a>y)"},
        {"when": "x{99999999999999999999}"},
        {"when": re.compile(b"x")},
        {"when": 7},
        {"when": "x", "call": ""},
        {"when": "x", "call": None},
        {"when": "x", "after": ""},
        {"when": "x", "after": 1},
        {"when": "x", "probability": 1.1},
        {"when": "x", "probability": float("nan")},
        {"when": "x", "probability": "high"},
        {"when": "x", "arguments": ["a"]},
        {"when": "x", "arguments": {"a": object()}},
        {"when": "x", "arguments": {"a": {1: "b"}}},
        {"when": "x", "arguments": {"a": "{unknown}"}},
        {"when": "x", "arguments": {"a": "{1}"}},
        {"when": "(x)", "arguments": {"a": "{2}"}},
        {"when": None, "after": "t", "arguments": {"a": "{0}"}},
        {"when": "x", "arguments": {"a": "{result.x}"}},
        {"when": "x", "arguments": {"a": "{results}"}},
        {"when": "x", "arguments": {"a": "{}"}},
        {"when": "x", "arguments": {"a": "{"}},
        {"when": "x", "arguments": {"a": "}"}},
        {"when": "x", "arguments": {"a": "{deps.a!r}"}},
        {"when": "x", "arguments": {"a": "{deps.a:>10}"}},
        {"when": "x", "arguments": {"a": "{deps.}"}},
        {"when": "x", "arguments": {"a": "{deps[}"}},
        {"when": "x", "arguments": {"a": "{deps[0]x}"}},
        {"when": "x", "arguments": {"a": "{deps.__class__}"}},
        {"when": "x", "arguments": {"a": ["{deps[__class__]}"]}},
        {"when": "x", "arguments": {"a": "{deps.a[*]}", "b": "{deps.b[*]}"}},
        {"when": "(?P<deps>x)"},
    ],
)
def test_a_rule_that_can_never_work_is_a_usage_error_that_names_it(
    options: dict[str, Any],
):
    options = {"call": "get_thing", **options}
    with pytest.raises(UsageError) as caught:
        Rule(**options)
    assert repr(options["call"]) in str(caught.value)


def test_a_predictor_takes_rules_only():
    with pytest.raises(UsageError):
        RulePredictor(["order"])  # type: ignore[list-item]


GOOD_FILE = r"""
rules = [
  { when = '(?P<order_id>#W\d+)', call = "get_order", probability = 0.8 },
  { when = "me", call = "get_user", arguments = { user_id = "{deps.id}", limit = 3 } },
  { after = "get_user", call = "get_order", arguments = { order_id = "{result[*]}" } },
]
"""


def test_rules_are_read_from_a_file(tmp_path: Any):
    path = tmp_path / "rules.toml"
    path.write_text(GOOD_FILE, encoding="utf-8")
    predictor = RulePredictor.from_file(path, tools=TOOLS)
    assert list(predictor.rules) == [
        rule(r"(?P<order_id>#W\d+)", "get_order", probability=0.8),
        rule("me", "get_user", user_id="{deps.id}", limit=3),
        rule(None, "get_order", after="get_user", order_id="{result[*]}"),
    ]
    assert predicted(list(predictor.rules), "me #W1", deps={"id": "u1"}) == [
        ("get_order", {"order_id": "#W1"}),
        ("get_user", {"user_id": "u1", "limit": 3}),
    ]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (b"rules = [", None),
        (b"\xff", None),
        (b"", None),
        (b"rules = 1", None),
        (b"rules = []\nmore = 1", None),
        (b"rules = [1]", 1),
        (b'rules = [{ when = "x", call = "search" }, { when = "x" }]', 2),
        (b'rules = [{ when = "x", call = "search", user = "x" }]', 1),
        (b'rules = [{ when = "(", call = "search" }]', 1),
        (b'rules = [{ when = "x", call = "search" }, { when = "x", call = "y" }]', 2),
    ],
)
def test_a_bad_file_is_a_usage_error_with_the_number_of_the_rule(
    text: bytes, number: int | None, tmp_path: Any
):
    path = tmp_path / "rules.toml"
    path.write_bytes(text)
    with pytest.raises(UsageError) as caught:
        RulePredictor.from_file(path, tools=TOOLS)
    assert "rules.toml" in str(caught.value)
    assert number is None or f"Rule {number} of" in str(caught.value)


def test_a_file_that_is_not_there_is_a_usage_error(tmp_path: Any):
    with pytest.raises(UsageError):
        RulePredictor.from_file(tmp_path / "none.toml")


def test_without_what_a_template_names_nothing_is_proposed():
    one = rule("again", "get_order", order_id="{results.get_user}")
    assert predicted(one, "again") == []
    either = rule(r"(?P<kind>a)|(?P<other>b)", "get_order", order_id="{other}")
    assert arguments(either, "a b") == [{"order_id": "b"}]


def test_results_are_found_before_any_user_message():
    one = rule(None, "get_order", after="get_user", order_id="{result.id}")
    assert arguments(one, found_user({"id": "W1"})[1:]) == [{"order_id": "W1"}]


def test_of_equal_calls_the_most_probable_one_is_proposed():
    predictor = RulePredictor(
        [
            rule("order", "get_order", order_id="W1", probability=0.4),
            rule("order", "get_order", order_id="W1", probability=0.6),
            rule("order", "get_order", order_id="W1", probability=0.5),
        ]
    )
    conversation = Conversation(
        messages=(user("my order"),), tools={"get_order": get_order}
    )
    [prediction] = predictor.predict_nowait(conversation)
    assert prediction.origin == "rule 2"


def test_a_number_stands_in_a_text_as_json_writes_it():
    one = rule(None, "search", after="get_user", query="{result.n} {result.yes}")
    assert arguments(one, found_user({"n": 7, "yes": True})) == [{"query": "7 true"}]


def test_an_agent_refuses_rules_that_its_tools_can_never_meet():
    rules = RulePredictor([rule("incident", "get_incidents")])
    with pytest.raises(UsageError):
        Agent(ScriptedModel(["Hello."]), [], predictors=[rules])
