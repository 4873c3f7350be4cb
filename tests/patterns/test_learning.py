from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headstart import ModelResponse, UsageError
from headstart.predictors import PatternPredictor

from .scene import (
    Customer,
    Run,
    expected,
    now,
    prediction,
    support_run,
    taught,
    teach,
)

NEW = 1_000


def sure(patterns: PatternPredictor) -> float:
    """How sure it is of an easy call."""
    call = ("get_customer", {"customer": Customer(NEW).id})
    run = support_run(NEW, until="found")
    proposed = call in expected(patterns, run)
    return prediction(patterns, run, call).probability if proposed else 0.0


def test_more_of_the_same_makes_it_surer():
    assert sure(taught(3)) < sure(taught(12)) < sure(taught(60))


def test_what_is_stated_holds_on_runs_that_it_has_not_seen():
    patterns = taught(40)
    stated, right = 0.0, 0
    for number in range(NEW, NEW + 40):
        for until in ("asked", "found", "customer", "first"):
            run = support_run(number, until=until)
            full = support_run(number).messages[len(run.messages)].tool_calls
            wanted = [(call.name, json.loads(call.arguments)) for call in full]
            for each in patterns.propose(now(run)):
                stated += each.probability
                right += (each.tool, json.loads(each.arguments_text)) in wanted
    assert stated == pytest.approx(right, rel=0.1)


def test_no_probability_is_above_what_was_seen_to_hold():
    for runs in (1, 2, 4, 8):
        patterns = taught(runs)
        for until in ("asked", "found", "customer", "first"):
            for each in patterns.propose(now(support_run(NEW, until=until))):
                seen = 4 * runs + 2  # of each tool at most three a run, and more
                assert each.probability <= (seen + 1) / (seen + 2)
    assert sure(taught(80)) < 1


def test_a_coin_is_not_believed_to_be_anything_else():
    patterns = PatternPredictor()
    for number in range(60):
        who = Customer(number)
        run = Run().user(f"Track {who.parcels[0]}")
        if (number * 7919 // 13) % 2:
            teach(patterns, run.asks(("get_parcel", {"parcel": who.parcels[0]})))
        else:
            teach(patterns, run.says("I would rather not."))
    run = Run().user("Track P-141414")
    found = prediction(patterns, run, ("get_parcel", {"parcel": "P-141414"}))
    assert 0.25 < found.probability < 0.75


def test_old_habits_are_forgotten():
    patterns = taught(30)
    changed = PatternPredictor.from_dict(patterns.to_dict())
    for number in range(100, 160):
        run = support_run(number, until="found")
        teach(changed, run.says("I have found you. What can I do?"))
    assert sure(patterns) > 0.5 > sure(changed)


def test_it_learns_within_a_run():
    patterns = taught(6)
    run = Run().user("Which of these have come?")
    parcels = [f"P-{number:06}" for number in range(12)]
    run.asks(("get_customer", {"customer": "me"})).gets({"parcels": parcels})
    for parcel in parcels[:8]:
        run.asks(("get_parcel", {"parcel": parcel})).gets({"state": "sent"})
    before = prediction(patterns, run, ("get_parcel", {"parcel": parcels[8]}))
    teach(patterns, run)
    after = prediction(patterns, run, ("get_parcel", {"parcel": parcels[8]}))
    assert after.probability > before.probability


def test_predicting_changes_nothing():
    patterns = taught()
    before = patterns.to_dict()
    for until in ("asked", "found", "customer", "first", "end"):
        patterns.propose(now(support_run(NEW, until=until)))
        patterns.probability_of_no_call(now(support_run(NEW, until=until)))
    assert patterns.to_dict() == before


def test_equal_runs_teach_equal_patterns():
    assert taught().to_dict() == taught().to_dict()


def test_two_runs_that_begin_alike_are_learned_as_two():
    patterns = PatternPredictor()
    for _ in range(3):
        teach(patterns, support_run(1))
    assert patterns.runs == 3


def test_patterns_are_read_as_they_were_written(tmp_path: Path):
    patterns = taught()
    path = tmp_path / "patterns.json"
    patterns.save(path)
    read = PatternPredictor.load(path)
    assert json.loads(path.read_text())["version"] == 1
    assert read.to_dict() == json.loads(path.read_text())
    for until in ("asked", "found", "customer", "first"):
        run = support_run(NEW, until=until)
        assert expected(read, run) == expected(patterns, run)
    assert sure(read) == pytest.approx(sure(patterns), abs=0.01)


def test_patterns_of_two_agents_are_merged():
    patterns, other = taught(), PatternPredictor()
    for number in range(12):
        run = Run().user(f"Which depots are there near number {number}?")
        teach(other, run.asks(("list_depots", {"country": "se"})))
    patterns.merge(other)
    assert patterns.runs == 24
    assert expected(patterns, Run().user("Which depots are there near me?"))[0] == (
        "list_depots",
        {"country": "se"},
    )
    who = Customer(NEW)
    first = expected(patterns, support_run(NEW, until="found"))[0]
    assert first == ("get_customer", {"customer": who.id})
    PatternPredictor.from_dict(patterns.to_dict())


def test_merging_with_nothing_changes_nothing():
    patterns = taught()
    before = patterns.to_dict()
    patterns.merge(PatternPredictor())
    assert patterns.to_dict() == before
    empty = PatternPredictor()
    empty.merge(patterns)
    assert expected(empty, support_run(NEW, until="found"))


def test_the_file_holds_no_value_of_a_single_run(tmp_path: Path):
    path = tmp_path / "patterns.json"
    patterns = PatternPredictor()
    for number in range(20):
        for _ in range(3):  # the same task again is not another run
            run = support_run(number)
            run.user(f"And Zebulon{number} said secret{'abcdefghijklmnopqrst'[number]}")
            teach(patterns, run.asks(("list_depots", {"country": f"x{number}"})))
    patterns.settle()
    patterns.save(path)
    text = path.read_text()
    for number in range(20):
        who = Customer(number)
        for value in (who.id, *who.parcels, f"Zebulon{number}", f'x{number}\\"'):
            assert value not in text
    assert "get_parcel" in text


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"version": 2},
        {"version": "1"},
        {"version": 1, "contexts": []},
        {"version": 1, "contexts": {"": 3}},
        {"version": 1, "contexts": {"": {"a": -1}}},
        {"version": 1, "contexts": {"": {"a": True}}},
        {"version": 1, "contexts": {"": {"a": float("nan")}}},
        {"version": 1, "contexts": {"": {"a": 10**400}}},
        {"version": 1, "signatures": {"a": {"no list": 1}}},
        {"version": 1, "signatures": {"a": {"[1]": 1}}},
        {"version": 1, "sources": {"a": {"=no json": 1}}},
        {"version": 1, "sources": {"a": {"": 1}}},
        {"version": 1, "next": {"a": {"b": 3}}},
        {"version": 1, "next": {"a": {"b": [7, 1]}}},
        {"version": 1, "next": {"a": {"b": [float("nan"), 1]}}},
        {"version": 1, "next": {"a": {"b": [1, "2"]}}},
        {"version": 1, "later_reliability": {"a": [[1, 1, 1]]}},
        {"version": 1, "later_reliability": {"a": [[1, 1]] * 12}},
        {"version": 1, "familiar": "words"},
        {"version": 1, "familiar": [1]},
        {"version": 1, "runs": "many"},
    ],
)
def test_what_is_no_patterns_is_refused(data: Any):
    with pytest.raises(UsageError):
        PatternPredictor.from_dict(data)


def test_a_file_that_cannot_be_read_is_said_to_be_so(tmp_path: Path):
    path = tmp_path / "patterns.json"
    for content in (b"", b"{", b"\xff\xfe", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(UsageError):
            PatternPredictor.load(path)
    with pytest.raises(UsageError):
        PatternPredictor.load(tmp_path / "missing.json")
    with pytest.raises(UsageError):
        PatternPredictor().save(tmp_path / "no" / "folder.json")


def test_every_entry_of_a_file_may_be_missing():
    data = taught().to_dict()
    for name in data:
        if name != "version":
            left = {key: value for key, value in data.items() if key != name}
            patterns = PatternPredictor.from_dict(left)
            for until in ("asked", "found", "customer"):
                patterns.propose(now(support_run(NEW, until=until)))
            teach(patterns, support_run(NEW))


def test_a_poisoned_file_makes_nothing_certain():
    data = json.loads(json.dumps(taught().to_dict()))
    for name in ("next", "later", "choices", "arguments"):
        for features in data[name].values():
            for pair in features.values():
                pair[0] = 6
    without = {k: v for k, v in data.items() if "reliability" not in k}
    for each in PatternPredictor.from_dict(without).propose(
        now(support_run(NEW, until="customer"))
    ):
        assert each.probability <= 0.5
        assert (each.eventually or 0) <= 0.5
    for bins in (
        *data["next_reliability"].values(),
        *data["later_reliability"].values(),
    ):
        for entry in bins:
            entry[:] = [10**8, 10**8, 10**8]
    patterns = PatternPredictor.from_dict(data)
    for number in range(NEW, NEW + 80):
        run = support_run(number, until="customer")
        teach(patterns, run.says("Not today."))
    for each in patterns.propose(now(support_run(NEW + 100, until="customer"))):
        assert each.probability < 0.9


def learn_when_found(patterns: PatternPredictor, number: int) -> bool:
    """Learn one answer, where a customer was found; whether candidates were weighed."""
    run = support_run(number, until="found")
    call = support_run(number).messages[len(run.messages)]
    before = patterns.to_dict()
    patterns.learn(now(run), ModelResponse(tool_calls=call.tool_calls))
    after = patterns.to_dict()
    assert after["contexts"] != before["contexts"]
    return after["next_reliability"] != before["next_reliability"]


def test_after_many_answers_candidates_are_weighed_for_one_in_four():
    patterns = taught(200)
    weighed = [learn_when_found(patterns, number) for number in range(NEW, NEW + 40)]
    assert sum(weighed) == 10


def test_after_many_answers_what_was_predicted_for_is_weighed_always():
    patterns = taught(200)
    for number in range(NEW, NEW + 10):
        patterns.propose(now(support_run(number, until="found")))
        assert learn_when_found(patterns, number)
