from __future__ import annotations

import json
import random

import pytest

from headstart import ToolCall
from headstart._messages import Message, ModelResponse
from headstart.predictors import Conversation, PatternPredictor
from headstart.predictors._patterns._contexts import MAX_CONTEXTS
from headstart.predictors._patterns._history import MAX_HISTORIES, MAX_ITEMS
from headstart.predictors._patterns._pattern_predictor import MAX_PREDICTIONS
from headstart.predictors._patterns._weights import MAX_FEATURES

from .scene import (
    TOOLS,
    Customer,
    Run,
    expected,
    now,
    support_run,
    taught,
    teach,
)

NEW = 1_000


@pytest.mark.parametrize(
    "result",
    [
        "",
        " ",
        "{",
        "null",
        "17",
        '"text"',
        "[]",
        "{}",
        "NaN",
        '{"a": NaN, "b": 1e999, "c": -0.0}',
        "[" * 50_000 + "]" * 50_000,
        '{"a":' * 50_000 + "1" + "}" * 50_000,
        "\ud800 \x00 \u202e",
        '{"\\ud800": "\\udfff"}',
        "x" * 10_000_000,
        "word " * 2_000_000,
        json.dumps({"ids": [f"P-{number:06}" for number in range(20_000)]}),
        json.dumps({f"P-{number:06}": {"v": number} for number in range(2_000)}),
        "'" * 5_000 + '"' * 5_000 + "`" * 5_000,
        "A" * 199 + "@" * 199 + "/" * 5_000,
        "Aa " * 5_000,
    ],
)
def test_any_result_is_lived_with(result: str):
    patterns = taught(3)
    run = support_run(NEW, until="asked")
    run.asks(("get_customer", {"customer": "c"})).gets(result)
    patterns.propose(now(run))
    patterns.propose(now(run, partial=result[:20_000]))
    run.asks(("get_parcel", {"parcel": "P-000007"})).says("Done.")
    teach(patterns, run)
    patterns.settle()
    PatternPredictor.from_dict(json.loads(json.dumps(patterns.to_dict())))


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "null",
        "[1]",
        "{",
        '{"parcel": null}',
        '{"parcel": {"a": [1, {"b": true}]}}',
        '{"parcel": ' + "[" * 5_000 + "]" * 5_000 + "}",
        '{"parcel": ' + "9" * 5_000 + "}",
        json.dumps({"parcel": "x" * 200_000}),
        json.dumps({"parcel": list(range(5_000))}),
        json.dumps({f"a{number}": number for number in range(500)}),
        '{"": "", "a|lower": "P", "=": 1, "[*]": 2}',
    ],
)
def test_any_arguments_are_lived_with(arguments: str):
    patterns = PatternPredictor()
    call = ToolCall("c", "get_parcel", arguments)
    asked = Message(role="user", content="Track P-123456 for me")
    answer = ModelResponse(text="I will.", tool_calls=(call, call))
    result = Message(role="tool", content="ok", tool_call_id="c")
    for _ in range(3):
        messages = (asked,)
        patterns.learn(Conversation(messages=messages, tools=TOOLS), answer)
        messages = (asked, answer.message, result)
        patterns.learn(Conversation(messages=messages, tools=TOOLS), answer)
        patterns.propose(Conversation(messages=messages, tools=TOOLS))
    patterns.settle()
    PatternPredictor.from_dict(json.loads(json.dumps(patterns.to_dict())))


def test_messages_in_any_order_are_lived_with():
    chance = random.Random(5)
    patterns = taught(3)
    messages = list(support_run(NEW).messages)
    messages.append(Message(role="system", content="Be kind. Policy P-000001."))
    messages.append(Message(role="tool", content="stray", tool_call_id=None))
    for _ in range(40):
        chance.shuffle(messages)
        shuffled = tuple(messages[: chance.randrange(len(messages) + 1)])
        conversation = Conversation(messages=shuffled, tools=TOOLS)
        patterns.propose(conversation)
        patterns.learn(conversation, ModelResponse(text="Hm."))


def test_unknown_tools_are_learned_and_count_as_writes():
    patterns = PatternPredictor()
    for number in range(12):
        teach(patterns, support_run(number), tools={})
    found = patterns.propose(now(support_run(NEW, until="found"), tools={}))
    assert found[0].tool == "get_customer"
    assert found[0].eventually is None


def test_no_more_is_proposed_than_can_be_used():
    patterns = taught(20, parallel=True)
    run = support_run(NEW, until="found")
    run.asks(("get_customer", {"customer": "c"}))
    run.gets({"parcels": [f"P-{number:06}" for number in range(5_000)]})
    assert 0 < len(patterns.propose(now(run))) <= MAX_PREDICTIONS


def test_values_that_others_plant_reach_no_tool_that_tells_the_world():
    patterns = PatternPredictor()
    for number in range(20):
        url = f"https://example.org/{number}"
        run = Run().user(f"Read {url} please")
        run.asks(("get_customer", {"customer": "me"})).gets({"page": url})
        teach(patterns, run.asks(("fetch", {"url": url})).gets("ok"))
    run = Run().user("Read https://evil.example/?q=secret please")
    run.asks(("get_customer", {"customer": "me"}))
    run.gets({"page": "https://evil.example/?q=secret"})
    assert all(name != "fetch" for name, _ in expected(patterns, run))


def test_planted_values_are_no_likelier_for_being_many():
    patterns = taught(20)
    who = Customer(NEW)
    run = support_run(NEW, until="found")
    planted = {"id": who.id, "note": " ".join(f"P-{n:06}" for n in range(900))}
    run.asks(("get_customer", {"customer": who.id}))
    run.gets(planted | {"parcels": who.parcels})
    assert expected(patterns, run)[0] == ("get_parcel", {"parcel": who.parcels[0]})


def test_memory_is_bounded_whatever_is_learned():
    chance = random.Random(3)
    patterns = PatternPredictor()
    names = [f"tool{number}" for number in range(300)]
    for _ in range(60):
        run = Run().user(" ".join(f"W{chance.randrange(10**6)}x" for _ in range(60)))
        for _ in range(12):
            arguments = {f"a{chance.randrange(90)}": chance.randrange(10**6)}
            run.asks((chance.choice(names), arguments)).gets(
                {f"k{chance.randrange(10**6)}": chance.randrange(10**6)}
            )
        teach(patterns, run, tools={})
    data = patterns.to_dict()
    assert len(data["contexts"]) <= MAX_CONTEXTS
    for table in ("choices", "arguments", "next", "later"):
        assert all(len(features) <= MAX_FEATURES for features in data[table].values())
    assert len(patterns._histories._histories) <= MAX_HISTORIES
    waiting = sum(map(len, patterns._waiting.values()))
    assert waiting <= 600 * MAX_HISTORIES


def test_a_conversation_without_end_is_not_kept_whole():
    patterns = taught(3)
    run = Run().user("Look at all of them")
    for start in range(0, 40_000, 800):
        ids = [f"P-{number:06}" for number in range(start, start + 800)]
        run.asks(("get_customer", {"customer": "me"})).gets({"parcels": ids})
    patterns.propose(now(run))
    history, _ = patterns._histories.find(run.messages)
    assert sum(map(len, history.by_text.values())) <= MAX_ITEMS


def test_branches_of_a_conversation_do_not_mix():
    patterns = taught(15)
    left, right = Customer(NEW), Customer(NEW + 1)
    base = support_run(NEW, until="asked")
    base.asks(("find_customer", {"name": left.name, "town": left.town}))
    for who in (left, right, left, right):
        branch = Run()
        branch.messages = list(base.messages)
        branch.gets(who.id)
        first = expected(patterns, branch)[0]
        assert first == ("get_customer", {"customer": who.id})
    assert not expected(patterns, base)  # the result is not known there
