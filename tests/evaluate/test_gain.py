"""The gain in virtual time, to the digit, beside the oracle's."""

import json

import anyio
import pytest

from headstart import ToolResult, UsageError
from headstart.evaluate import evaluate_files
from headstart.predictors import ResultPrediction

from .scene import Scripted, answered, ask_for, expect, say, write_runs, write_tools

ONE_READ = [
    say("user", "It is about 1."),
    *answered(ask_for(("get", 1)), "It is 5."),
    say("assistant", "Five."),
]
RIGHT = {"It is about 1.": [expect("get", 1, 0.95)]}
WRONG = {"It is about 1.": [expect("get", 9, 0.95)]}


@pytest.fixture
def gain(tmp_path):
    tools = write_tools(tmp_path / "tools.json")

    def evaluate(script, conversation=ONE_READ, *, predictor=None, **options):
        runs = write_runs(tmp_path / "runs.jsonl", conversation, conversation)
        options = {"tool_latencies": [1], "folds": 2, "tools": tools} | options
        factory = predictor or (lambda: Scripted(script))
        report = evaluate_files([runs], factory, **options)
        return report.to_dict()["gain"]

    return evaluate


def test_right_predictions_save_what_the_oracle_saves(gain):
    [at_1, at_5] = gain(RIGHT, tool_latencies=[1, 5])
    # The model takes 2 s an answer. The read ends at 1, and the request after it is
    # sent beside the running one and answered at 3; with a read of 5 s at 7.
    assert (at_1["off_s"], at_1["predicted_s"], at_1["oracle_s"]) == (10, 6, 6)
    assert (at_5["off_s"], at_5["predicted_s"], at_5["oracle_s"]) == (18, 14, 14)
    assert at_1["oracle_saved_share"] == at_1["saved_share"] == 0.4
    assert at_1["share_of_oracle"] == at_5["share_of_oracle"] == 1
    assert (at_1["reads"], at_1["launches"], at_1["launches_a_read"]) == (2, 2, 1)
    assert (at_1["hit_rate"], at_1["precision"], at_1["wasted_s"]) == (1, 1, 0)
    assert (at_1["extra_tokens"], at_1["extra_requests"]) == (0, 0)
    assert at_1["identical"] is True


def test_nothing_is_sent_beside_if_it_is_switched_off(gain):
    [figures] = gain(RIGHT, beside=1.1)
    # Only the read's second is hidden.
    assert (figures["off_s"], figures["predicted_s"]) == (10, 8)
    assert figures["share_of_oracle"] == 0.5


def test_wrong_predictions_cost_launches_and_tokens_and_no_time(gain):
    [figures] = gain(WRONG)
    assert figures["predicted_s"] == figures["off_s"]
    assert (figures["share_of_oracle"], figures["hit_rate"]) == (0, 0)
    assert (figures["launches_a_read"], figures["identical"]) == (1, True)
    assert figures["wasted_s"] > 0
    assert (figures["requests"], figures["extra_requests"]) == (4, 2)
    # The request beside holds the question, the predicted call and its result.
    question, call, result = "It is about 1.", 'get{"id":9}', "(not in the recording)"
    answer = "Five."  # what the recording has in that place, were it asked for
    characters = sum(map(len, (question, call, result, answer)))
    assert figures["extra_tokens"] == round(2 * characters / 4)
    assert figures["tokens_estimated"] is True


def test_tokens_are_taken_from_the_recording_where_it_has_them(gain):
    conversation = [dict(message) for message in ONE_READ]
    conversation[1]["usage"] = {"prompt_tokens": 100, "completion_tokens": 10}
    conversation[3]["usage"] = {"input_tokens": 200, "output_tokens": 20}
    [figures] = gain(RIGHT, conversation)
    assert (figures["tokens"], figures["extra_tokens"]) == (2 * 330, 0)
    assert figures["tokens_estimated"] is False
    [figures] = gain(WRONG, conversation)
    assert figures["extra_tokens"] == 2 * 220
    assert figures["extra_tokens_share"] == pytest.approx(440 / 660, abs=1e-6)


@pytest.mark.parametrize("usage", [7, {}, {"input_tokens": "7"}, {"input_tokens": 1}])
def test_tokens_that_are_none_are_estimated(gain, usage):
    conversation = [dict(message, usage=usage) for message in ONE_READ]
    assert gain(RIGHT, conversation)[0]["tokens_estimated"] is True


def test_the_users_own_time_is_left_out(gain):
    conversation = [
        say("user", "It is about 1.", t=0.0),
        say("assistant", "Shall I look?", t=2.0),
        say("user", "Yes, 1.", t=12.0),
        ask_for(("get", 1), t=14.0),
        say("tool", "It is 5.", tool_call_id="get-1-0", t=15.0),
    ]
    early = {"It is about 1.": [expect("get", 1, 0.0, eventually=0.9)]}
    [figures] = gain(early, conversation)
    # The read runs beside the first answer, and is kept while the user thinks.
    assert (figures["off_s"], figures["user_s"]) == (10, 20)
    assert (figures["predicted_s"], figures["hit_rate"]) == (8, 1)


def test_stated_results_run_the_next_turn_ahead(gain):
    class Stating(Scripted):
        def predict_results(self, call, conversation):
            return [ResultPrediction(result=ToolResult("done"), probability=0.9)]

    conversation = [
        say("user", "Please."),
        *answered(ask_for(("put", 1)), "done"),
        say("assistant", "It is done."),
    ]
    [figures] = gain({}, conversation, predictor=lambda: Stating({}))
    # The answer after the write is written during the write: 1 of 5 s.
    assert (figures["off_s"], figures["predicted_s"]) == (10, 8)
    assert figures["run_ahead"] == 2


def test_a_predictor_that_has_to_be_awaited_is_awaited(gain):
    class Awaited:
        async def predict(self, conversation):
            await anyio.sleep(0.5)
            return RIGHT.get(conversation.messages[-1].content, [])

        def learn(self, conversation, response):
            pass

    [figures] = gain({}, predictor=Awaited)
    # Launched half a second late, and so the request beside is sent at 1.5 s.
    assert (figures["off_s"], figures["predicted_s"]) == (10, 7)


@pytest.mark.parametrize("predictor", [object, lambda: None])
def test_what_does_not_predict_or_learn_is_refused(gain, predictor):
    with pytest.raises(UsageError):
        gain({}, predictor=predictor)


def test_what_a_run_teaches_is_of_no_use_in_another(gain):
    class Learning(Scripted):
        def __init__(self):
            super().__init__({})
            self.known = []

        def learn(self, conversation, response):
            self.known += [
                expect(call.name, json.loads(call.arguments)["id"], 0.9)
                for call in response.tool_calls
            ]

        def propose(self, conversation):
            return self.known

        def __deepcopy__(self, memo):
            new = Learning()
            new.known = list(self.known)
            return new

    class Untaught(Learning):
        def learn(self, conversation, response):
            if self.taught:
                super().learn(conversation, response)

        taught = False

        def __deepcopy__(self, memo):
            new = Untaught()
            new.taught = True
            return new

    [taught] = gain({}, predictor=Learning)
    [untaught] = gain({}, predictor=Untaught)
    assert taught["hit_rate"] == 1
    assert untaught["hit_rate"] == 0


def test_no_latency_means_no_replay(gain):
    assert gain(RIGHT, tool_latencies=()) == []


def test_drawn_latencies_are_the_same_for_the_same_seed(gain):
    options = {"tool_latencies": ["lognormal:2,1"], "model_latency": "uniform:1,3"}
    first, second = (gain(RIGHT, seed=4, **options) for _ in range(2))
    assert first == second != gain(RIGHT, seed=5, **options)


@pytest.mark.parametrize(
    "options",
    [{"tool_latencies": ["fast"]}, {"model_latency": "slow"}, {"beside": -1}],
)
def test_a_wrong_option_is_an_error(gain, options):
    with pytest.raises(UsageError):
        gain(RIGHT, **options)


def test_progress_is_told_of_each_run_of_each_part(tmp_path):
    runs = write_runs(tmp_path / "runs.jsonl", ONE_READ, ONE_READ)
    told = []
    evaluate_files(
        [runs],
        lambda: Scripted({}),
        folds=2,
        tool_latencies=[1],
        on_progress=lambda *each: told.append(each),
    )
    assert [each for each in told if each[0] == "learning"] == [
        ("learning", done, 2) for done in (1, 2)
    ]
    assert [each for each in told if each[0] == "predicting"] == [
        ("predicting", done, 2) for done in (1, 2)
    ]
    assert [each for each in told if each[0] == "replaying"] == [
        ("replaying", done, 6) for done in range(1, 7)
    ]
