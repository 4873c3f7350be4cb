"""Which runs belong together, and on which side of a split they stand."""

import pytest

from headstart import TraceFormatError, UsageError
from headstart.evaluate import evaluate_files

from .scene import Scripted, answered, ask_for, say, write_runs


def talk(text, name="get", value=1):
    return [say("user", text), *answered(ask_for((name, value)), "ok")]


class Memory(Scripted):
    """Remembers the first words of every run it was told."""

    seen = ()

    def learn(self, conversation, response):
        self.seen = (*self.seen, conversation.messages[0].content)

    def __deepcopy__(self, memo):
        new = type(self)(self.script)
        new.seen = self.seen
        return new


@pytest.fixture
def sides(tmp_path):
    """Evaluate, and say of each run which others it was predicted by."""

    def evaluate(*texts, folds, fields=None, **options):
        runs = write_runs(tmp_path / "runs.jsonl", *map(talk, texts), **(fields or {}))
        learned = {}

        class Spy(Memory):
            def propose(self, conversation):
                learned[conversation.messages[0].content] = set(self.seen)
                return []

        report = evaluate_files(
            [runs], lambda: Spy({}), folds=folds, tool_latencies=(), **options
        )
        return report, learned

    return evaluate


def test_runs_of_a_task_stand_on_one_side(sides):
    report, learned = sides(
        *("a", "b", "c", "d"), folds=2, fields={"task": ["x", "y", "x", "y"]}
    )
    assert (report.runs, report.groups) == (4, 2)
    assert learned == {
        "a": {"b", "d"},
        "c": {"b", "d"},
        "b": {"a", "c"},
        "d": {"a", "c"},
    }


def test_any_field_of_a_run_can_group_them(sides):
    fields = {"model": ["m", "m", "n"]}
    report, learned = sides("a", "b", "c", folds=2, fields=fields, group_by="model")
    assert report.groups == 2
    assert learned == {"a": {"c"}, "b": {"c"}, "c": {"a", "b"}}


@pytest.mark.parametrize("field", ["id", "none"])
def test_runs_can_stand_alone(sides, field):
    report, learned = sides(
        "a", "b", "c", folds=3, fields={"task": ["x"] * 3}, group_by=field
    )
    assert (report.groups, report.without_group) == (3, 0)
    assert learned["a"] == {"b", "c"}


def test_a_run_without_the_field_stands_alone_and_is_counted(sides):
    fields = {"task": ["x", None, None]}
    report, _ = sides("a", "b", "c", folds=3, fields=fields)
    assert (report.groups, report.without_group) == (3, 2)


def test_runs_that_share_a_key_stand_on_one_side_and_so_do_their_tasks(sides):
    # a and b by their task, b and c by the customer, d alone.
    report, learned = sides(
        *("a", "b: I am C-17.", "c: C-17 here.", "d: I am C-18."),
        folds=2,
        fields={"task": ["x", "x", "y", "z"]},
        group_key=r"C-\d+",
    )
    assert report.groups == 2
    assert learned["d: I am C-18."] == {"a", "b: I am C-17.", "c: C-17 here."}
    assert learned["a"] == {"d: I am C-18."}


def test_a_key_may_be_a_part_of_what_is_found(sides):
    texts = "I am C-17.", "It is C-17 here.", "I am C-18."
    whole, _ = sides(*texts, folds=2, group_key=r"\w+ C-(?:\d+)")
    part, _ = sides(*texts, folds=2, group_key=r"\w+ (C-\d+)")
    assert (whole.groups, part.groups) == (3, 2)


def test_a_key_is_looked_for_in_calls_too(tmp_path):
    runs = write_runs(
        tmp_path / "runs.jsonl",
        talk("a", value="C-1"),
        talk("b", value="C-1"),
        talk("c"),
    )
    report = evaluate_files(
        [runs], lambda: Scripted({}), folds=2, group_key=r"C-\d", tool_latencies=()
    )
    assert report.groups == 2


def test_folds_are_about_the_same_size_and_the_same_for_the_same_seed(sides):
    texts = [f"{number}" for number in range(20)]
    first, second, third = (sides(*texts, folds=5, seed=seed)[1] for seed in (1, 1, 2))
    assert {len(seen) for seen in first.values()} == {16}
    assert first == second != third


@pytest.mark.parametrize("folds", [1, 0, 3, 100])
def test_a_number_of_folds_that_there_are_no_groups_for_is_an_error(sides, folds):
    with pytest.raises(UsageError):
        sides("a", "b", folds=folds)


def test_a_key_that_is_no_regular_expression_is_an_error(sides):
    with pytest.raises(UsageError):
        sides("a", "b", folds=2, group_key="(")


def test_no_file_is_an_error():
    with pytest.raises(UsageError):
        evaluate_files([], lambda: Scripted({}))


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(TraceFormatError):
        evaluate_files([tmp_path / "none.jsonl"], lambda: Scripted({}))


def test_several_files_are_one_corpus_and_bad_lines_are_named_with_theirs(tmp_path):
    first = write_runs(tmp_path / "1.jsonl", talk("a"), talk("b"))
    second = tmp_path / "2.jsonl"
    second.write_text("\nnothing\n" + first.read_text())
    report = evaluate_files(
        [first, second], lambda: Scripted({}), folds=2, tool_latencies=()
    )
    assert (report.runs, report.groups) == (4, 2)  # the tasks have the same names
    [bad] = report.to_dict()["bad_lines"]
    assert (bad["file"], bad["line"]) == (str(second), 2)


def test_only_so_many_runs_are_read(tmp_path):
    runs = write_runs(tmp_path / "runs.jsonl", *map(talk, "abcd"))
    report = evaluate_files(
        [runs, runs], lambda: Scripted({}), folds=3, limit=3, tool_latencies=()
    )
    assert report.runs == 3


def test_files_without_a_run_give_a_report_of_none(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    figures = evaluate_files([empty], lambda: Scripted({})).to_dict()
    assert (figures["runs"], figures["folds"], figures["decisions"]) == (0, 0, 0)
