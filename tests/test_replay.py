"""Recorded runs through the real engine, in virtual time."""

import json
import os
from pathlib import Path

import anyio
import pytest

from headstart import Effect, ToolCall
from headstart._errors import TraceFormatError, UsageError
from headstart.predictors import Conversation
from headstart.replay import (
    Latency,
    declare_tools,
    read_declarations,
    read_run,
    read_runs,
    replay_file,
)
from headstart.replay._oracle import OraclePredictor
from headstart.replay._recorded import make_tools

DATA = Path(__file__).parent / "data"
SUPPORT = DATA / "support.jsonl"
SUPPORT_BAD = DATA / "support_bad.jsonl"
SUPPORT_TOOLS = DATA / "support_tools.json"


@pytest.fixture(scope="module")
def runs():
    read, bad = read_runs(SUPPORT)
    assert bad == []
    return {run.id.partition("/")[2]: run for run in read}


def say(role, content="", **fields):
    return {"role": role, "content": content, **fields}


def ask_for(*calls, **fields):
    listed = [
        {"id": id, "type": "function", "function": {"name": name, "arguments": text}}
        for id, name, text in calls
    ]
    return say("assistant", tool_calls=listed, **fields)


def answer(id, content, **fields):
    return say("tool", content, tool_call_id=id, **fields)


def run_of(*messages):
    return read_run(json.dumps({"id": "run", "messages": messages}))


# Reading.


def test_a_run_is_read_with_its_latencies(runs):
    run = runs["refund"]
    assert [message.role for message in run.messages] == [
        *("user", "assistant", "tool", "assistant", "user"),
        *("assistant", "tool", "assistant", "tool", "assistant"),
    ]
    assert {at: turn.model_s for at, turn in run.turns.items()} == {
        **{1: 1.5, 3: 1.25, 5: 1.5, 7: 1.25, 9: 1.5}
    }
    assert [call.tool_s for call in run.calls()] == [0.5, 2.0, 0.5]
    assert run.user_s == {0: 0.0, 4: 5.0}


def test_results_stand_in_call_order_behind_their_turn(runs):
    run = runs["move"]
    assert [message.tool_call_id for message in run.messages[2:4]] == [
        "call_1",
        "call_2",
    ]
    assert [call.tool_s for call in run.calls()] == [1.0, 0.5, 3.0]
    assert [turn.model_s for turn in run.turns.values()] == [2.0, 1.0, 1.0]


def test_parts_and_nothing_are_flattened_to_text(runs):
    run = runs["without-times"]
    assert run.messages[0].content == "Tell me about A-1007 and A-1007 again."
    assert run.messages[1].content == ""


def test_unknown_times_are_unknown(runs):
    run = runs["without-times"]
    assert {turn.model_s for turn in run.turns.values()} == {None}
    assert {call.tool_s for call in run.calls()} == {None}
    assert set(run.user_s.values()) == {0.0}


def test_an_id_that_is_used_twice_is_made_unique(runs):
    run = runs["without-times"]
    assert [call.call.id for call in run.calls()] == ["call_1", "call_2", "call_1~2"]
    assert [json.loads(call.result.content)["seen"] for call in run.calls()] == [
        1,
        2,
        1,
    ]


def test_calls_without_results_and_results_without_calls_are_counted(runs):
    run = runs["odd"]
    assert (run.calls_without_result, run.results_without_call) == (2, 1)
    assert [message.role for message in run.messages] == [
        *("assistant", "user", "user", "assistant", "assistant", "tool", "tool"),
        *("tool", "assistant", "assistant", "tool"),
    ]


def test_the_time_of_a_message_after_one_without_is_its_own_length():
    run = run_of(say("user"), say("assistant", t=9.0, t_start=7.5))
    assert run.turns[1].model_s == 1.5


def test_a_message_after_one_without_time_has_none():
    run = run_of(say("user"), say("assistant", t=9.0))
    assert run.turns[1].model_s is None


def test_a_tool_that_ends_while_the_model_writes_takes_no_time():
    run = run_of(
        say("user", t=0.0),
        ask_for(("a", "look", "{}"), ("b", "look", "{}"), t=10.0, t_start=4.0),
        answer("a", "1", t=8.0),
        answer("b", "2", t=12.0),
        say("assistant", t=13.0),
    )
    assert [call.tool_s for call in run.calls()] == [0.0, 2.0]
    assert run.turns[4].model_s == 1.0


@pytest.mark.parametrize(
    ("written", "read"),
    [(None, "{}"), ({"a": 1}, '{"a": 1}'), ("not json", "not json"), ("", "")],
)
def test_arguments_of_any_kind_are_read(written, read):
    run = run_of(ask_for((None, "look", written)))
    assert [call.call.arguments for call in run.calls()] == [read]


def test_a_result_without_an_id_answers_the_next_call():
    run = run_of(
        ask_for((None, "look", "{}"), (None, "look", "{}")),
        {"role": "tool", "content": {"first": True}},
        {"role": "tool", "content": "second"},
    )
    assert [c.result.content for c in run.calls()] == ['{"first": true}', "second"]


def test_bad_lines_are_named_by_number_and_the_others_read():
    read, bad = read_runs(SUPPORT_BAD)
    assert [run.id for run in read] == ["good/1", "line-14"]
    assert [line.line for line in bad] == [2, *range(4, 14)]
    assert all(line.reason.endswith(".") for line in bad)


@pytest.mark.parametrize(
    "line", [b"\xff\xfe", b"[" * 9000, b'{"messages": [' + b"[" * 9000]
)
def test_a_line_that_is_no_json_is_an_error(line):
    with pytest.raises(TraceFormatError) as caught:
        read_run(line, line=7)
    assert caught.value.line == 7


def test_a_file_that_is_not_there_is_one_clear_error(tmp_path):
    with pytest.raises(TraceFormatError, match="cannot be read"):
        read_runs(tmp_path / "nothing.jsonl")


def test_a_limit_reads_no_further():
    read, bad = read_runs(SUPPORT_BAD, limit=1)
    assert (len(read), bad) == (1, [])


# Latencies.


def test_a_latency_is_the_same_for_the_same_seed_and_place():
    latency = Latency.parse("lognormal:2.0,0.5")
    drawn = {latency.draw(seed, "run", n) for seed in range(3) for n in range(3)}
    assert len(drawn) == 9
    assert latency.draw(1, "run", 2) == Latency.parse("lognormal:2,.5").draw(
        1, "run", 2
    )


@pytest.mark.parametrize(
    ("text", "middle"),
    [("2.5", 2.5), ("lognormal:2.0,0.5", 2.0), ("uniform:1,3", 2.0)],
)
def test_a_latency_has_its_median(text, middle):
    latency = Latency.parse(text)
    drawn = sorted(latency.draw(0, n) for n in range(2001))
    assert drawn[1000] == pytest.approx(middle, rel=0.05)
    assert drawn[0] >= 0


def test_an_exponential_latency_has_its_mean():
    latency = Latency.parse("exponential:2")
    assert sum(latency.draw(0, n) for n in range(4000)) / 4000 == pytest.approx(
        2, rel=0.1
    )


@pytest.mark.parametrize(
    "text",
    ["", "fast", "-1", "nan", "inf", "1,2", "lognormal:2", "lognormal:0,1", "gauss:1,2"]
    + ["uniform:3,1", "exponential:", "constant:1,2", -1.0],
)
def test_a_latency_that_is_none_is_an_error(text):
    with pytest.raises(UsageError):
        Latency.parse(text)


@pytest.mark.parametrize("text", ["2", "0.25", "lognormal:2,0.5", "uniform:1,3"])
def test_a_latency_is_written_as_it_is_read(text):
    assert str(Latency.parse(text)) == text


# Tools.


def test_effects_are_read_and_anything_unknown_is_unsafe():
    declared = read_declarations(SUPPORT_TOOLS)
    assert declared["get_order"].effect is Effect.READ
    assert declared["run_report"].effect is Effect.UNSAFE
    more = declare_tools({"a": {"effect": "gated"}, "b": {}}, source="x")
    assert [each.effect for each in more.values()] == [Effect.GATED, Effect.UNSAFE]


def test_tools_that_are_not_declared_are_unsafe(runs):
    made = {tool.name: tool for tool in make_tools([runs["chain"]], {})}
    assert {tool.effect for tool in made.values()} == {Effect.UNSAFE}
    assert made["search_articles"].parameters["properties"] == {
        "query": {"type": ["string"]},
        "limit": {"type": ["integer"]},
    }


@pytest.mark.parametrize("data", [[], {"a": "READ"}, {"": {}}, "text", None])
def test_tool_declarations_that_are_none_are_an_error(data):
    with pytest.raises(TraceFormatError):
        declare_tools(data, source="it")


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_tools_file_that_is_none_is_an_error(tmp_path, text):
    path = tmp_path / "tools.json"
    path.write_text(text)
    with pytest.raises(TraceFormatError):
        read_declarations(path)


# The oracle.


@pytest.fixture
def proposals_of(runs):
    """What the oracle proposes when some of a run's messages are known."""
    tools = make_tools(list(runs.values()), read_declarations(SUPPORT_TOOLS))
    by_name = {tool.name: tool for tool in tools}

    def propose(name, *indices):
        oracle = OraclePredictor(runs[name], by_name)
        messages = tuple(runs[name].messages[index] for index in indices)
        return [
            (found.tool, *json.loads(found.arguments_text).values())
            for found in anyio.run(oracle.predict, Conversation(messages=messages))
        ]

    return propose


def test_the_oracle_proposes_a_read_as_soon_as_its_arguments_are_known(proposals_of):
    both = [("get_order", "A-1002"), ("get_order", "A-1003")]
    assert proposals_of("two-orders", 0) == []
    assert proposals_of("two-orders", 0, 1) == both
    assert proposals_of("chain", 0) == [("find_customer", "kim.lee@example.com")]
    assert proposals_of("chain", 0, 1) == []
    assert proposals_of("chain", 0, 1, 2) == [("list_orders", "C-77")]
    assert proposals_of("chain", *range(5)) == [("get_order", "A-1005")]


def test_the_oracle_proposes_no_read_before_a_write_has_ended(proposals_of):
    assert proposals_of("refund", 0) == [("get_order", "A-1001")]
    assert proposals_of("refund", 0, 1) == []
    assert proposals_of("refund", *range(5)) == []
    assert proposals_of("refund", *range(6)) == []
    assert proposals_of("refund", *range(7)) == [("get_order", "A-1001")]


def test_the_oracle_proposes_no_read_beside_a_write(proposals_of):
    assert proposals_of("move", 0) == []


def test_the_oracle_says_nothing_outside_the_recording(proposals_of):
    assert proposals_of("refund", 4) == []


def test_the_oracle_states_the_results_of_writes_alone(runs):
    tools = make_tools(list(runs.values()), read_declarations(SUPPORT_TOOLS))
    oracle = OraclePredictor(runs["refund"], {tool.name: tool for tool in tools})
    read, write, _ = runs["refund"].calls()
    conversation = Conversation(messages=())
    assert oracle.predict_result(write.call, conversation) == write.result
    assert oracle.predict_result(read.call, conversation) is None
    assert oracle.predict_result(ToolCall("x", "y", "{}"), conversation) is None


def test_a_value_inside_a_longer_word_is_not_known():
    run = run_of(
        say("user", "order 1234, item 5"),
        ask_for(("a", "look", '{"id": 123}'), ("b", "look", '{"id": 1234}')),
        answer("a", "", t=None),
        answer("b", ""),
        ask_for(("c", "look", '{"id": 5.0, "all": true, "not": null, "tags": [""]}')),
        ask_for(("d", "look", "{}")),
        ask_for(("e", "look", "")),
        ask_for(("f", "look", "5")),
    )
    tools = make_tools([run], declare_tools({"look": {"effect": "READ"}}, source="x"))
    oracle = OraclePredictor(run, {"look": tools[0]})
    found = anyio.run(oracle.predict, Conversation(messages=run.messages[:1]))
    assert [each.arguments for each in found] == ['{"id": 1234}', "{}", ""]


# The engine.


def by_hand(path, tool_latency=None, model_latency=None):
    """Seconds of all runs without speculation, straight from the file."""
    model = tools = user = 0.0
    calls = 0
    for line in path.read_text().splitlines():
        newest = 0.0
        waited = {}
        for message in json.loads(line)["messages"]:
            time = message.get("t", newest)
            passed = max(0.0, time - newest)
            if message["role"] == "assistant":
                tools += max(waited.values(), default=0.0)
                model += passed if "t" in message else model_latency
                waited = {
                    call["id"]: (time, 0.0 if tool_latency is None else tool_latency)
                    for call in message.get("tool_calls") or ()
                }
                calls += len(waited)
                asked_at = {id: at for id, (at, _) in waited.items()}
                waited = {id: seconds for id, (_, seconds) in waited.items()}
            elif message["role"] == "tool" and message["tool_call_id"] in waited:
                if tool_latency is None:
                    waited[message["tool_call_id"]] = (
                        time - asked_at[message["tool_call_id"]]
                    )
            else:
                user += passed
            newest = max(newest, time)
        tools += max(waited.values(), default=0.0)
    return model + tools, user, calls


def replay_support(**options):
    return replay_file(SUPPORT, tools=SUPPORT_TOOLS, **options).to_dict()


@pytest.mark.parametrize("tool_latency", [0, 0.3, 2])
def test_the_off_arm_is_the_plain_sum_of_latencies(tool_latency):
    report = replay_support(arms=["off"], tool_latency=tool_latency, model_latency=1.5)
    off = report["arms"]["off"]
    seconds, user_s, calls = by_hand(SUPPORT, tool_latency, 1.5)
    assert off["seconds"] == pytest.approx(seconds, abs=1e-6)
    assert off["user_s"] == pytest.approx(user_s, abs=1e-6)
    assert (off["runs"], off["calls"]) == (6, calls)
    assert (off["differences"], off["hidden_s"], off["saved_share"]) == (0, 0, 0)
