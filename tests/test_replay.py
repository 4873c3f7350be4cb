"""Recorded runs through the real engine, in virtual time."""

import json
import os
from pathlib import Path

import anyio
import pytest
from click.testing import CliRunner

from headstart import Effect, ToolCall
from headstart._errors import TraceFormatError, UsageError
from headstart.cli_replay import replay
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
        {
            "id": call_id,
            "type": "function",
            "function": {"name": name, "arguments": text},
        }
        for call_id, name, text in calls
    ]
    return say("assistant", tool_calls=listed, **fields)


def answer(call_id, content, **fields):
    return say("tool", content, tool_call_id=call_id, **fields)


def run_of(*messages):
    return read_run(json.dumps({"id": "run", "messages": messages}))


# Reading.


def test_a_run_is_read_with_its_latencies(runs):
    run = runs["refund"]
    assert [message.role for message in run.messages] == [
        *("user", "assistant", "tool", "assistant", "user"),
        *("assistant", "tool", "assistant", "tool", "assistant"),
    ]
    assert {at: turn.model_s for at, turn in run.turns.items()} == dict(
        zip(range(1, 10, 2), [1.5, 1.25, 1.5, 1.25, 1.5], strict=True)
    )
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
    [
        *("", "fast", "-1", "nan", "inf", "1,2", "gauss:1,2", "exponential:"),
        *("lognormal:2", "lognormal:0,1", "uniform:3,1", "constant:1,2", -1.0),
    ],
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
    assert proposals_of("refund", *range(5)) == [("refund_order", "A-1001", 42.5)]
    assert proposals_of("refund", *range(6)) == []
    assert proposals_of("refund", *range(7)) == [("get_order", "A-1001")]


def test_the_oracle_knows_which_read_is_in_the_next_answer():
    run = run_of(
        say("user", "Is it 7 or 8?"),
        ask_for(("a", "look", '{"row": 7}')),
        answer("a", "No."),
        ask_for(("b", "look", '{"row": 8}')),
        answer("b", "Yes."),
        say("assistant", "It is 8."),
    )
    declared = declare_tools({"look": {"effect": "READ"}}, source="x")
    (look,) = make_tools([run], declared)
    oracle = OraclePredictor(run, {"look": look})
    found = anyio.run(oracle.predict, Conversation(messages=run.messages[:1]))
    assert [(each.probability, each.eventually) for each in found] == [(1, 1), (0, 1)]


def test_the_oracle_proposes_no_read_beside_a_write(proposals_of):
    assert proposals_of("move", 0) == []


def test_the_oracle_says_nothing_outside_the_recording(proposals_of):
    assert proposals_of("refund", 4) == []


def test_the_oracle_states_the_results_of_writes_alone(runs):
    tools = make_tools(list(runs.values()), read_declarations(SUPPORT_TOOLS))
    oracle = OraclePredictor(runs["refund"], {tool.name: tool for tool in tools})
    read, write, _ = runs["refund"].calls()
    conversation = Conversation(messages=())
    assert [
        stated.result for stated in oracle.predict_results(write.call, conversation)
    ] == [write.result]
    assert oracle.predict_results(read.call, conversation) == []
    assert oracle.predict_results(ToolCall("x", "y", "{}"), conversation) == []


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


def by_hand(path, *, tool_latency=None, model_latency=0.0):
    """Model, tool and user seconds without speculation, straight from the file."""
    model = tools = user = 0.0
    calls = 0
    for line in path.read_text().splitlines():
        newest = 0.0
        asked, took = {}, {}
        for message in [
            *json.loads(line)["messages"],
            {"role": "assistant", "end": True},
        ]:
            time = message.get("t", newest)
            passed = max(0.0, time - newest)
            newest = max(newest, time)
            if message["role"] == "assistant":
                tools += max(took.values(), default=0.0)
                if "end" in message:
                    break
                model += passed if "t" in message else model_latency
                listed = message.get("tool_calls") or ()
                asked = {call["id"]: time for call in listed}
                took = dict.fromkeys(asked, tool_latency or 0.0)
                calls += len(asked)
            elif message["role"] == "tool" and message["tool_call_id"] in asked:
                if tool_latency is None:
                    answered = message["tool_call_id"]
                    took[answered] = max(0.0, time - asked[answered])
            else:
                user += passed
    return model, tools, user, calls


def replay_support(**options):
    return replay_file(SUPPORT, tools=SUPPORT_TOOLS, **options).to_dict()


def replay_messages(tmp_path, messages, **options):
    path = tmp_path / "run.jsonl"
    path.write_text(json.dumps({"id": "run", "messages": messages}))
    return replay_file(path, tools=SUPPORT_TOOLS, **options).to_dict()["arms"]


@pytest.mark.parametrize("tool_latency", [0, 0.3, 2])
def test_the_off_arm_is_the_plain_sum_of_latencies(tool_latency):
    report = replay_support(arms=["off"], tool_latency=tool_latency, model_latency=1.5)
    model, tools, user, calls = by_hand(
        SUPPORT, tool_latency=tool_latency, model_latency=1.5
    )
    off = report["arms"]["off"]
    assert off["seconds"] == pytest.approx(model + tools, abs=1e-6)
    assert off["model_s"] == pytest.approx(model, abs=1e-6)
    assert off["tool_s"] == pytest.approx(tools, abs=1e-6)
    assert off["user_s"] == pytest.approx(user, abs=1e-6)
    assert (off["runs"], off["calls"]) == (6, calls)
    assert (off["hidden_s"], off["saved_share"], off["hit_rate"]) == (0, 0, 0)


def test_recorded_times_of_tools_are_taken_where_none_are_given(tmp_path):
    messages = json.loads(SUPPORT.read_text().splitlines()[2])["messages"]
    arms = replay_messages(tmp_path, messages, arms=["off"])
    assert arms["off"]["seconds"] == 8.0
    assert arms["off"]["tool_s"] == 0.5 + 1.0 + 2.0


def test_the_oracle_hides_what_can_be_hidden_to_the_digit(tmp_path):
    messages = json.loads(SUPPORT.read_text().splitlines()[0])["messages"]
    arms = replay_messages(tmp_path, messages, arms=["off", "oracle"])
    # The first read ends at 0.5, and the answer after it is written from there to 1.75,
    # beside the one that asks for the read: 1.5 s off. The answer after the refund is
    # written during the refund: 1.25 s. The read that it asks for waits for the refund.
    assert arms["off"]["seconds"] == 10.0
    assert arms["oracle"]["seconds"] == 10.0 - 1.5 - 1.25
    assert arms["oracle"]["user_s"] == arms["off"]["user_s"] == 5.0
    assert arms["oracle"]["saved_share"] == 0.275
    assert arms["oracle"]["hidden_s"] == 2.75
    assert arms["oracle"]["run_ahead"] == 2


def test_launched_reads_run_in_the_users_own_time(tmp_path):
    read = ("call_1", "get_order", '{"order_id": "A-1"}')
    arms = replay_messages(
        tmp_path,
        [
            say("user", "Hello", t=0.0),
            say("assistant", "Is it about A-1?", t=1.0),
            say("user", "Yes.", t=7.0),
            ask_for(read, t=8.0),
            answer("call_1", "shipped", t=13.0),
        ],
    )
    assert arms["off"]["seconds"] == 7.0
    assert arms["oracle"]["seconds"] == 2.0
    assert arms["oracle"]["ready_before_demand"] == 1.0


@pytest.mark.parametrize("arm", ["off", "oracle", "random"])
@pytest.mark.parametrize("tool_latency", [None, "lognormal:2,1"])
def test_every_arm_gives_the_host_what_was_recorded(arm, tool_latency):
    report = replay_support(arms=["off", arm], tool_latency=tool_latency)
    assert report["arms"][arm]["differences"] == 0
    assert report["arms"][arm]["predictor_failures"] == 0
    assert report["arms"][arm]["user_s"] == report["arms"]["off"]["user_s"]


def test_every_prediction_of_the_oracle_is_right():
    oracle = replay_support(tool_latency=3, model_latency=2)["arms"]["oracle"]
    assert (oracle["precision"], oracle["wasted_s"]) == (1.0, 0.0)
    assert oracle["discard_reasons"] == {}


@pytest.mark.parametrize("arm", ["oracle", "random"])
def test_what_an_arm_saves_is_what_the_engine_says_it_hid(arm):
    arms = replay_support(arms=["off", arm], tool_latency="uniform:0,4", seed=3)["arms"]
    saved = arms["off"]["seconds"] - arms[arm]["seconds"]
    assert arms[arm]["hidden_s"] == pytest.approx(saved, abs=1e-5)


@pytest.mark.requirement("replay:deterministic")
def test_the_same_options_and_seed_give_the_same_bytes():
    options = {"model_latency": "exponential:2", "tool_latency": "lognormal:2,0.5"}
    first, second = (json.dumps(replay_support(seed=7, **options)) for _ in range(2))
    assert first == second
    assert first != json.dumps(replay_support(seed=8, **options))


def test_all_arms_see_the_same_latencies():
    report = replay_support(model_latency="exponential:2", tool_latency="lognormal:2,1")
    for figures in report["arms"].values():
        for name in ("model_s", "tool_s", "user_s"):
            assert figures[name] == pytest.approx(report["arms"]["off"][name], abs=1e-5)


def test_a_rules_file_adds_the_predicted_arm(tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text(
        "rules = [{ when = '(?P<order_id>A-[0-9]+)', call = 'get_order' }]"
    )
    report = replay_support(rules=rules, tool_latency=1)
    assert list(report["arms"]) == ["off", "oracle", "random", "predicted"]
    predicted = report["arms"]["predicted"]
    # A-1001, both parallel ones, one of two equal ones, A-1008; A-1006 is read beside
    # a write.
    assert predicted["hits"] == 5
    assert predicted["hit_rate"] == round(5 / predicted["launchable_calls"], 6)
    assert predicted["hit_rate_all"] == round(5 / predicted["calls"], 6)
    assert predicted["precision"] == round(5 / predicted["predicted_launches"], 6)
    assert 0 < predicted["saved_share"] < report["arms"]["oracle"]["saved_share"]


def test_a_rule_about_an_unknown_tool_is_an_error(tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text("rules = [{ when = 'x', call = 'get_oder' }]")
    with pytest.raises(UsageError, match="get_oder"):
        replay_support(rules=rules)


@pytest.mark.parametrize("arms", [["on"], ["predicted"]])
def test_an_arm_that_cannot_be_run_is_an_error(arms):
    with pytest.raises(UsageError):
        replay_support(arms=arms)


def test_without_declarations_nothing_is_launched():
    arms = replay_file(SUPPORT, arms=["random"]).to_dict()["arms"]
    assert arms["random"]["predicted_launches"] == 0
    assert "saved_share" not in arms["random"]


def test_progress_is_told_after_each_run_of_each_arm():
    told = []
    replay_support(arms=["off", "random"], on_progress=lambda *each: told.append(each))
    assert told == [(done, 12) for done in range(1, 13)]


# The command.


def invoke(*arguments):
    result = CliRunner().invoke(replay, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def test_the_command_prints_one_json_object():
    ended = invoke(SUPPORT, "--tools", SUPPORT_TOOLS, "--tool-latency", 2, "--json")
    report = json.loads(ended.stdout)
    assert ended.exit_code == 0
    assert list(report["arms"]) == ["off", "oracle", "random"]
    assert report["arms"]["off"].keys() >= {
        *("runs", "calls", "seconds", "saved_share", "hit_rate", "precision"),
        *("ready_before_demand", "hidden_s", "wasted_s", "launches_per_call", "user_s"),
    }


def test_the_command_prints_a_table():
    ended = invoke(SUPPORT, "--tools", SUPPORT_TOOLS, "--arm", "off", "--arm", "oracle")
    assert ended.exit_code == 0
    assert "hit rate" in ended.stdout
    assert "random" not in ended.stdout


def test_the_command_names_bad_lines_and_goes_on():
    ended = invoke(SUPPORT_BAD, "--json")
    assert ended.exit_code == 0
    assert "line 2 is skipped" in ended.stderr
    report = json.loads(ended.stdout)
    assert (report["runs"], len(report["bad_lines"])) == (2, 11)


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_the_exit_status_is_1_when_no_line_is_good(tmp_path, as_json):
    path = tmp_path / "bad.jsonl"
    path.write_text("nothing\n")
    ended = invoke(path, *as_json)
    assert ended.exit_code == 1
    assert "line 1 is skipped" in ended.stderr


@pytest.mark.parametrize(
    "options",
    [("--tool-latency", "fast"), ("--arm", "on"), ("--rules", "no-such.toml")],
)
def test_a_wrong_option_is_a_usage_error(options):
    assert invoke(SUPPORT, *options).exit_code == 2


def test_a_tools_file_that_is_no_json_ends_the_command(tmp_path):
    path = tmp_path / "tools.json"
    path.write_text("{")
    ended = invoke(SUPPORT, "--tools", path)
    assert ended.exit_code == 1
    assert "Traceback" not in ended.stderr


# The shared corpora.

CORPORA = ["tau2_retail", "tau_airline", "hotpot_react", "livemcp", "claude_code"]


@pytest.fixture
def corpus():
    folder = os.environ.get("HEADSTART_TRACES")
    if not folder:
        pytest.skip("HEADSTART_TRACES does not name the folder of recorded runs")

    def replay_corpus(name, **options):
        path = Path(folder) / name
        tools = path / "tools.json"
        return replay_file(path / "runs.jsonl", tools=tools, **options).to_dict()[
            "arms"
        ]

    return replay_corpus


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_is_replayed_without_a_difference(corpus, name):
    limit = 1 if name == "claude_code" else 15
    arms = corpus(name, tool_latency=2, limit=limit)
    for figures in arms.values():
        saved = arms["off"]["seconds"] - figures["seconds"]
        assert figures["differences"] == 0
        assert figures["hidden_s"] == pytest.approx(saved, abs=1e-4)
    assert arms["oracle"]["saved_share"] > 0


def test_the_off_arm_of_a_corpus_is_the_plain_sum_of_latencies(corpus):
    off = corpus("tau2_retail", tool_latency=2, arms=["off"])["off"]
    path = Path(os.environ["HEADSTART_TRACES"]) / "tau2_retail" / "runs.jsonl"
    model, tools, user, calls = by_hand(path, tool_latency=2)
    assert off["seconds"] == pytest.approx(model + tools, abs=1e-4)
    assert off["user_s"] == pytest.approx(user, abs=1e-4)
    assert (off["runs"], off["calls"]) == (264, calls)
