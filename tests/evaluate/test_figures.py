"""Every figure of an evaluation, worked out by hand on small runs."""

import pytest

from headstart.evaluate import evaluate_files

from .scene import (
    Scripted,
    answered,
    ask_for,
    expect,
    say,
    write_runs,
    write_tools,
)

THREE_READS = [
    say("user", "u1"),
    *answered(ask_for(("get", 1)), "r1"),
    *answered(ask_for(("get", 2), ("get", 3)), "r2", "r3"),
    say("assistant", "Done."),
]
SCRIPT = {
    "u1": [expect("put", 1, 0.35), expect("get", 9, 0.95), expect("get", 1, 0.65)],
    "r1": [expect("get", 2, 0.85), expect("get", 3, 0.75)],
    "r3": [expect("get", 4, 0.45)],
}


@pytest.fixture
def evaluate(tmp_path):
    tools = write_tools(tmp_path / "tools.json")

    def run(*conversations, script=None, predictor=None, fields=None, **options):
        runs = write_runs(tmp_path / "runs.jsonl", *conversations, **(fields or {}))
        factory = predictor or (lambda: Scripted(script or {}))
        options = {"folds": 2, "tool_latencies": (), "tools": tools} | options
        return evaluate_files([runs], factory, **options).to_dict()

    return run


def at(figures, threshold):
    [row] = [row for row in figures["thresholds"] if row["threshold"] == threshold]
    return row["precision"], row["recall"], row["predictions"]


def test_hits_count_the_calls_among_the_most_probable_predictions(evaluate):
    figures = evaluate(THREE_READS, THREE_READS, script=SCRIPT)
    for scope in (figures["all"], figures["read_only"]):
        assert scope["calls"] == 6
        # get(9) stands before get(1); get(2) and get(3) are first, one after the other.
        assert scope["hit_at_1"] == pytest.approx(2 / 3, abs=1e-6)
        assert scope["hit_at_3"] == scope["hit_at_5"] == 1.0
        assert scope["name_at_1"] == scope["name_at_3"] == 1.0


def test_reads_are_ranked_among_predictions_of_reads_only(evaluate):
    conversation = [say("user", "u"), *answered(ask_for(("get", 1)), "r")]
    script = {"u": [expect("put", 1, 0.9), expect("get", 1, 0.5)]}
    figures = evaluate(conversation, conversation, script=script)
    assert (figures["all"]["hit_at_1"], figures["all"]["hit_at_3"]) == (0, 1)
    assert (figures["all"]["name_at_1"], figures["all"]["name_at_3"]) == (0, 1)
    assert figures["read_only"]["hit_at_1"] == 1
    assert figures["read_only"]["name_at_1"] == 1


def test_calls_of_writes_count_in_all_and_not_in_read_only(evaluate):
    conversation = [
        say("user", "u"),
        *answered(ask_for(("put", 1), ("get", 1)), "", ""),
    ]
    figures = evaluate(
        conversation, conversation, script={"u": [expect("put", 1, 0.9)]}
    )
    assert (figures["all"]["calls"], figures["read_only"]["calls"]) == (4, 2)
    assert (figures["all"]["hit_at_1"], figures["read_only"]["hit_at_1"]) == (0.5, 0)


def test_one_prediction_serves_one_of_two_equal_calls(evaluate):
    conversation = [
        say("user", "u"),
        *answered(ask_for(("get", 1), ("get", 1)), "", ""),
    ]
    once = evaluate(conversation, conversation, script={"u": [expect("get", 1, 0.9)]})
    assert once["all"]["hit_at_5"] == 0.5
    assert at(once["all"], 0.5) == (1, 0.5, 2)
    twice = evaluate(
        conversation, conversation, script={"u": [expect("get", 1, 0.9)] * 2}
    )
    assert twice["all"]["hit_at_1"] == 1


def test_arguments_are_compared_by_what_they_mean(evaluate):
    def predict(arguments):
        written = expect("get", 0, 0.9)
        object.__setattr__(written, "arguments", arguments)
        return {"u": [written]}

    conversation = [say("user", "u"), *answered(ask_for(("get", 1)), "")]
    for arguments, hit in (('{ "id" : 1.0 }', 1), ('{"id": "1"}', 0), ("id: 1", 0)):
        figures = evaluate(conversation, conversation, script=predict(arguments))
        assert figures["all"]["hit_at_1"] == hit
        assert figures["all"]["predictions"] == 2


def test_precision_and_recall_at_each_threshold(evaluate):
    figures = evaluate(THREE_READS, THREE_READS, script=SCRIPT)
    every, reads = figures["all"], figures["read_only"]
    assert [row["threshold"] for row in every["thresholds"]] == [
        number / 10 for number in range(1, 10)
    ]
    assert at(every, 0.3) == (0.5, 1, 12)
    assert at(reads, 0.3) == (0.6, 1, 10)
    assert at(every, 0.5) == (0.75, 1, 8)
    assert at(every, 0.7) == (0.666667, 0.666667, 6)
    assert at(every, 0.9) == (0, 0, 2)
    assert figures["thresholds"] == every["thresholds"]


def test_a_probability_just_at_a_threshold_counts(evaluate):
    conversation = [say("user", "u"), *answered(ask_for(("get", 1)), "")]
    script = {"u": [expect("get", 1, 0.7)]}
    figures = evaluate(conversation, conversation, script=script)
    assert at(figures["all"], 0.7) == (1, 1, 2)
    assert at(figures["all"], 0.8) == (0, 0, 0)


def test_the_calibration_error_is_the_mean_distance_of_stated_and_right(evaluate):
    figures = evaluate(THREE_READS, THREE_READS, script=SCRIPT)
    # Each prediction stands alone in its bin: 0.35, 0.95 and 0.45 wrong, the rest right.
    distances = [0.35, 0.95, 0.35, 0.15, 0.25, 0.45]
    assert figures["calibration_error"] == pytest.approx(sum(distances) / 6, abs=1e-6)
    assert figures["read_only"]["calibration_error"] == pytest.approx(
        sum(distances[1:]) / 5, abs=1e-6
    )
    bins = figures["all"]["calibration"]
    assert [each["predictions"] for each in bins] == [0, 0, 0, 2, 2, 0, 2, 2, 2, 2]
    assert bins[6] == {
        "from": 0.6,
        "to": 0.7,
        "predictions": 2,
        "stated": 0.65,
        "right": 1,
    }


def test_predictions_of_one_bin_are_calibrated_together(evaluate):
    conversation = [say("user", "u"), *answered(ask_for(("get", 1)), "")]
    script = {"u": [expect("get", 1, 0.5), expect("get", 2, 0.5)]}
    assert evaluate(conversation, conversation, script=script)["calibration_error"] == 0


@pytest.mark.parametrize(
    ("between", "right"),
    [
        ([("list", 0)], True),
        ([("put", 0)], False),
        ([("list", 0), ("put", 0)], False),
        ([("undeclared", 0)], False),
    ],
)
def test_what_comes_later_is_right_eventually_if_no_write_is_between(
    evaluate, between, right
):
    conversation = [
        say("user", "u"),
        *answered(ask_for(*between), *("" for _ in between)),
        *answered(ask_for(("get", 1)), "r"),
    ]
    script = {"u": [expect("get", 1, 0.0, eventually=1.0)]}
    figures = evaluate(conversation, conversation, script=script)
    assert figures["calibration_error"] == 0
    assert figures["calibration_error_eventually"] == (0 if right else 1)


@pytest.mark.parametrize(
    ("calls", "right"),
    [
        ([("get", 1), ("put", 0)], True),
        ([("put", 0), ("get", 1)], False),
    ],
)
def test_a_later_read_counts_up_to_the_write_of_its_own_answer(evaluate, calls, right):
    conversation = [
        say("user", "u"),
        say("assistant", "Hm."),
        say("user", "v"),
        *answered(ask_for(*calls), "", ""),
    ]
    script = {"u": [expect("get", 1, 0.0, eventually=1.0)]}
    figures = evaluate(conversation, conversation, script=script)
    assert figures["calibration_error_eventually"] == (0 if right else 1)


def test_the_next_answer_counts_eventually_even_beside_a_write(evaluate):
    conversation = [
        say("user", "u"),
        *answered(ask_for(("put", 0), ("get", 1)), "", ""),
    ]
    script = {"u": [expect("get", 1, 1.0), expect("put", 0, 1.0)]}
    figures = evaluate(conversation, conversation, script=script)
    assert figures["calibration_error_eventually"] == 0


def test_decision_points_are_all_answers(evaluate):
    conversation = [say("assistant", "Hello."), *THREE_READS]
    figures = evaluate(conversation, THREE_READS, script=SCRIPT)
    assert figures["decisions"] == 4 + 3
    assert figures["no_call_share"] == pytest.approx(3 / 7, abs=1e-6)
    milliseconds = figures["ms_per_decision"]
    assert 0 <= milliseconds["median"] <= milliseconds["p99"] <= milliseconds["max"]


def test_the_figures_by_tool_add_up_to_the_others(evaluate):
    conversation = [
        say("user", "u"),
        *answered(ask_for(("put", 1), ("get", 1)), "", ""),
    ]
    script = {
        "u": [expect("put", 1, 0.9), expect("put", 2, 0.8), expect("get", 1, 0.4)]
    }
    figures = evaluate(conversation, conversation, script=script)
    assert list(figures["by_tool"]) == ["get", "put"]
    get, put = figures["by_tool"].values()
    # A read is ranked among reads, a write among all.
    assert (get["effect"], get["calls"], get["hit_at_1"]) == ("READ", 2, 1)
    assert (put["effect"], put["calls"], put["hit_at_1"]) == ("UNSAFE", 2, 1)
    assert (get["predictions"], get["precision"]) == (0, 0)
    assert (put["predictions"], put["precision"]) == (4, 0.5)


def test_a_predictor_that_raises_is_counted_and_predicts_nothing(evaluate):
    class Broken(Scripted):
        def propose(self, conversation):
            raise KeyError("no")

    figures = evaluate(THREE_READS, THREE_READS, predictor=lambda: Broken({}))
    assert figures["predictor_failures"] == {"count": 6, "first": "KeyError: 'no'"}
    assert figures["all"]["hit_at_5"] == 0


def test_runs_without_a_call_have_shares_of_nothing(evaluate):
    talk = [say("user", "u"), say("assistant", "Hello.")]
    figures = evaluate(talk, talk, tool_latencies=[1])
    assert (figures["all"]["calls"], figures["all"]["hit_at_1"]) == (0, 0)
    assert figures["no_call_share"] == 1
    assert figures["gain"][0]["share_of_oracle"] == 0


@pytest.mark.parametrize("within", [False, True])
def test_each_run_is_predicted_by_what_the_other_folds_teach(evaluate, within):
    told = []

    class Curious(Scripted):
        def __init__(self):
            self.known = []

        def learn(self, conversation, response):
            self.known.append(conversation.messages[0].content)

        def propose(self, conversation):
            told.append((conversation.messages[0].content, "".join(self.known)))
            return []

        def __deepcopy__(self, memo):
            new = Curious()
            new.known = list(self.known)
            return new

    runs = [
        [say("user", name), say("assistant", "1"), say("user"), say("assistant", "2")]
        for name in ("a", "b", "c")
    ]
    evaluate(*runs, predictor=Curious, folds=3, learn_within_runs=within)
    assert sorted(told) == [
        *(("a", "bbcc"), ("a", "bbcc" + "a" * within)),
        *(("b", "aacc"), ("b", "aacc" + "b" * within)),
        *(("c", "aabb"), ("c", "aabb" + "c" * within)),
    ]


def test_the_figures_have_all_their_names(evaluate):
    figures = evaluate(THREE_READS, THREE_READS, script=SCRIPT)
    assert figures.keys() >= {
        *("all", "read_only", "thresholds", "calibration_error", "decisions"),
        *("ms_per_decision", "by_tool", "gain", "no_call_share", "leak_control"),
        *("folds", "runs", "groups", "bad_lines", "options"),
    }
    for scope in ("all", "read_only"):
        assert figures[scope].keys() >= {
            *("calls", "hit_at_1", "hit_at_3", "hit_at_5", "name_at_1", "name_at_3"),
        }


@pytest.mark.parametrize("within", [False, True])
def test_a_predictor_that_cannot_learn_is_counted(evaluate, within):
    class Unteachable(Scripted):
        def learn(self, conversation, response):
            raise ValueError("no")

    figures = evaluate(
        THREE_READS,
        THREE_READS,
        predictor=lambda: Unteachable(SCRIPT),
        learn_within_runs=within,
    )
    # Once a run that it is taught, where the rest of the run is passed over.
    assert figures["predictor_failures"]["count"] == 2 + 6 * within
    assert figures["all"]["hit_at_5"] == 1
