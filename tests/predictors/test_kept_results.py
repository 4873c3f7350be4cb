"""What is kept of results, saved and read; and whatever tools give is survived."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings, strategies as st

from headstart import UsageError
from headstart.predictors import LearnedResults

from .conversations import (
    call,
    called,
    contents,
    gave,
    make_tool,
    said,
    steps,
    teach,
)
from .tickets import (
    TOOLS,
    closed_as,
    closing,
    exchange,
    foretold,
    last_of,
    refusal,
    sending,
    stated,
    taught,
    ticket,
)


def test_somebodys_data_is_never_saved_and_never_stated_to_another():
    # The same customer again and again: nothing of it is a constant.
    def conversation(run):
        before = ticket(7, iban="DE02")
        after = before | {"state": "closed", "reason": "x", "token": "secret 7"}
        messages = closed_as(before, after, "x")
        return [said(f"Run {run}."), *messages]

    learned = taught(*map(conversation, range(40)))
    saved = json.dumps(learned.to_dict())
    for datum in ("secret", "DE02", "Owner 7", "Note 7", "T7", "closed"):
        assert datum not in saved
    before, wanted, _ = last_of(closing(8))
    assert stated(learned, before, wanted) == []


def test_a_constant_needs_two_conversations_about_different_things():
    one, other = closing(1), closing(2)
    before, wanted, content = last_of(closing(3))
    alone = taught(one, one, one, min_probability=0.0)
    assert content not in contents(stated(alone, before, wanted))
    both = taught(one, other, min_probability=0.0)
    assert contents(stated(both, before, wanted)) == [content]


def test_a_word_that_is_another_for_everybody_decides_nothing_and_is_not_saved():
    names = [f"{first}{last}" for first in "BCDFGHKLM" for last in ("en", "ia", "o")]
    history = [
        closing(n, owner=None, name=names[n % len(names)])
        for n in range(2 * len(names))
    ]
    saved = json.dumps(taught(*history).to_dict())
    assert not [name for name in names if name in saved]


def test_what_was_learned_is_the_same_after_a_round_trip(tmp_path):
    learned = taught(
        *(exchange(n) for n in range(12)),
        *(closing(n) for n in range(12)),
        *(refusal(n, "shut") for n in range(20, 24)),
        *(sending(n) for n in range(20, 30)),
    )
    path = tmp_path / "results.json"
    learned.save(path)
    read = LearnedResults.load(path)
    assert read.to_dict() == learned.to_dict()
    for messages in (closing(98), refusal(99, "shut"), sending(77)):
        got, real = foretold(read, messages)
        assert got == real


def test_a_file_is_readable_json_with_its_version(tmp_path):
    path = tmp_path / "results.json"
    taught(*(closing(n) for n in range(4))).save(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["format"] == "headstart learned results"
    assert data["version"] == 1
    assert set(data["tools"]) == {"close", "get"}


def test_what_several_have_learned_may_be_put_together():
    one = taught(*(closing(n) for n in range(8)))
    other = taught(*(sending(n) for n in range(20, 28)))
    one.merge(other)
    one.merge(taught(*(closing(n) for n in range(10, 18))))
    for messages in (closing(98), sending(77)):
        got, real = foretold(one, messages)
        assert got == real


def test_it_learns_on_after_it_was_read(tmp_path):
    path = tmp_path / "results.json"
    taught(*(closing(n) for n in range(4))).save(path)
    read = LearnedResults.load(path)
    for number in range(10, 20):
        teach(read, closing(number), TOOLS)
    got, real = foretold(read, closing(98))
    assert got == real


def test_what_a_call_without_identifiers_gives_needs_many_conversations():
    def conversations(count):
        return [
            [
                said(f"Run {run}."),
                called(("get", {"n": run})),
                gave(0, "x"),
                called(("send", {}), start=1),
                gave(1, "You are Ada."),
            ]
            for run in range(count)
        ]

    wanted = call("send", {})
    few = taught(*conversations(7), min_probability=0.0)
    many = taught(*conversations(12), min_probability=0.0)
    assert stated(few, [said("Go.")], wanted) == []
    assert contents(stated(many, [said("Go.")], wanted)) == ["You are Ada."]


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[]",
        "{}",
        '{"format": "headstart learned results", "version": 2, "tools": {}}',
        '{"format": "headstart learned results", "version": 1, "tools": {"x": {}}}',
        '{"format": "headstart learned results", "version": 1, "tools": 7}',
        json.dumps({"a": "[" * 100_000}),
        "[" * 100_000,
    ],
)
def test_another_file_is_refused(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError):
        LearnedResults.load(path)


def test_a_file_that_cannot_be_read_or_written_says_so(tmp_path):
    with pytest.raises(UsageError):
        LearnedResults.load(tmp_path / "missing.json")
    with pytest.raises(UsageError):
        LearnedResults().save(tmp_path / "missing" / "results.json")


def test_a_damaged_file_is_refused_wherever_the_damage_is():
    good = json.dumps(taught(*(exchange(n) for n in range(6))).to_dict())
    dice = random.Random(1)
    for _ in range(200):
        start = dice.randrange(len(good))
        damaged = good[:start] + good[start + dice.randrange(1, 40) :]
        try:
            data = json.loads(damaged)
        except ValueError:
            continue
        try:
            read = LearnedResults.from_dict(data, min_probability=0.0)
        except UsageError:
            continue
        before, wanted, _ = last_of(exchange(99))  # read all the same: nothing breaks
        stated(read, before, wanted)


def test_expressions_and_texts_that_mean_nothing_are_refused():
    learned = taught(*(exchange(n) for n in range(6)), *(sending(n) for n in range(9)))
    for tool, where, bad in (
        ("move", "known", [["same", 1], 1, 1]),
        ("move", "known", [[], 1, 1]),
        ("move", "known", ["same", 1, 1]),
        ("move", "known", [["total", ["x"], [], 2], 1, 1]),
        ("move", "known", [["found", "a", ["nothing"], "b"], 1, 1]),
        ("move", "known", [["const", "no JSON"], 1, 1]),
        ("move", "known", [["where", "a", 7], 1, 1]),
        ("move", "totals", [["sorted"], 1]),
        ("send", "templates", '[["a", "b"]]'),
        ("send", "templates", "7"),
    ):
        data = json.loads(json.dumps(learned.to_dict()))
        record = data["tools"][tool]
        if where == "templates":
            record["templates"].append(bad)
        elif where == "totals":
            record["about"]["totals"].append(bad)
        else:
            record["about"]["slots"][0][1]["known"].append(bad)
        with pytest.raises(UsageError):
            LearnedResults.from_dict(data)


@pytest.mark.parametrize("options", [{"min_probability": 2}, {"effects": ["maybe"]}])
def test_options_that_can_never_work_are_refused(options):
    with pytest.raises(UsageError):
        LearnedResults(**options)


# Robustness


def nested(depth):
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "result",
    [
        "",
        "x" * 10_000_000,
        json.dumps({"id": "T1", "text": "x" * 10_000_000}),
        nested(100_000),
        '{"a":' * 900 + "1" + "}" * 900,
        '{"id": NaN}',
        '{"id": 1e999}',
        '{"id": ' + "9" * 5000 + "}",
        json.dumps({str(n): {"id": n} for n in range(20_000)})[:190_000],
        json.dumps({str(n): n for n in range(5_000)}),
        json.dumps([{"id": f"T{n}"} for n in range(5_000)]),
        '{"id": "T1", "id": "T2"}',
        '"text"',
        "null",
        '{"\\ud800": "\\ud800"}',
        "\ud800",
        "{" + "名" * 1000,
    ],
    ids=range(17),
)
def test_odd_results_are_survived(result):
    learned = LearnedResults(min_probability=0.0)
    for number in range(4):
        before = ticket(number)
        messages = steps(
            ("get", {"id": f"T{number}"}, before),
            ("send", {"id": f"T{number}"}, result),
            ("close", {"id": f"T{number}", "reason": "x"}, before | {"state": "shut"}),
            text=f"Run {number}.",
        )
        teach(learned, messages, TOOLS)
    json.dumps(learned.to_dict())
    got, real = foretold(learned, closed_as(ticket(9), ticket(9, state="shut"), "x"))
    assert got == real
    stated(learned, messages, call("send", {"id": "T1"}))


@pytest.mark.parametrize(
    "arguments",
    ["no JSON", "[]", '{"id": NaN}', '{"id": "' + "x" * 1_000_000 + '"}', ""],
)
def test_odd_arguments_are_survived(arguments):
    learned = taught(*(closing(n) for n in range(10)))
    teach(learned, steps(("close", arguments, "Error")), TOOLS)
    before, *_ = last_of(closing(99))
    assert stated(learned, before, call("close", arguments)) == []


def test_thousands_of_results_in_a_conversation_are_survived():
    learned = taught(*(closing(n) for n in range(10)))
    many = steps(*(("get", {"id": f"T{n}"}, ticket(n)) for n in range(1_500)))
    wanted = call("close", {"id": "T1499", "reason": "done"})
    assert contents(stated(learned, many, wanted)) == [last_of(closing(1499))[2]]


def test_what_is_kept_of_a_tool_is_bounded():
    learned = LearnedResults()
    dice = random.Random(3)
    for number in range(600):
        before = ticket(number, **{f"f{dice.randrange(2000)}": number})
        after = before | {
            f"g{dice.randrange(2000)}": dice.random(),
            "state": str(number),
        }
        teach(learned, closed_as(before, after), TOOLS)
        teach(learned, sending(number, text=f"text {dice.random()}"), TOOLS)
    assert len(json.dumps(learned.to_dict())) < 1_000_000
    record = learned._records["close"]
    assert len(record.about.slots) <= 256
    assert len(learned._records["send"].templates) <= 64


def test_tools_without_end_are_not_all_kept():
    halves = [LearnedResults(), LearnedResults()]
    for number in range(1_200):
        tool = make_tool(f"tool {number}")
        teach(halves[number % 2], steps((tool.name, {}, "x")), [tool])
    halves[0].merge(halves[1])
    assert len(halves[0]._records) == len(halves[1]._records) == 512


def test_wide_results_and_many_outcomes_are_bounded():
    learned = LearnedResults(min_probability=0.0)
    for number in range(40):
        fields = {f"field {number} {n}": f"v{number} {n}" for n in range(600)}
        before = ticket(number, **fields)
        after = before | {"state": f"{number}", "by": [number], "sum": number + 0.5}
        teach(learned, closed_as(before, after), TOOLS)
        names = {f"argument {number} {n}": f"w{n}" for n in range(150)}
        teach(learned, steps(("send", names, f"Text {number}")), TOOLS)
    record, guard = learned._records["close"], learned._records["send"].guard
    assert len(record.fields) <= 256
    assert len(guard.labels) <= 25
    assert len(guard.facts) <= 96
    assert len(json.dumps(learned.to_dict())) < 200_000


def test_only_the_last_examples_decide():
    learned = taught(*(refusal(n, "open") for n in range(10, 60)))
    for number in range(100, 500):
        teach(learned, closing(number), TOOLS)
    got, real = foretold(learned, closing(99))
    assert got == real


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.sampled_from(["T1", "open", "x1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "a", "b", "state"]), inner, max_size=4)
    ),
    max_leaves=10,
)
objects = st.dictionaries(
    st.sampled_from(["id", "a", "b", "state"]), values, max_size=4
)


@settings(max_examples=50)
@given(st.lists(st.tuples(objects, objects, values), min_size=1, max_size=8))
def test_whatever_tools_give_it_is_learned_from_saved_and_read(happened):
    learned = LearnedResults(min_probability=0.0)
    for number, (arguments, before, after) in enumerate(happened):
        messages = steps(
            ("get", arguments, before),
            ("close", arguments, after),
            text=f"Run {number}.",
        )
        teach(learned, messages, TOOLS)
        for each in stated(learned, *last_of(messages)[:2]):
            assert 0 <= each.probability <= 1
    data = json.loads(json.dumps(learned.to_dict()))
    read = LearnedResults.from_dict(data, min_probability=0.0)
    assert read.to_dict() == learned.to_dict()
    read.merge(learned)
    for tool in ("get", "close"):
        for each in stated(read, messages, call(tool, happened[0][0])):
            assert 0 <= each.probability <= 1
