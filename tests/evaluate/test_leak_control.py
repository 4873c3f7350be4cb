"""The leak control: what a predictor carries from run to run is seen."""

import json

import pytest

from headstart.evaluate import evaluate_files

from .scene import Scripted, answered, ask_for, expect, say, write_runs, write_tools

RUNS = 12


@pytest.fixture
def control(tmp_path):
    tools = write_tools(tmp_path / "tools.json")

    def evaluate(predictor, *, values=range(RUNS), tasks=None):
        conversations = [
            [
                say("user", f"It is about {value}."),
                *answered(ask_for(("get", value)), "ok"),
                *answered(ask_for(("list", 0)), "ok"),
            ]
            for value in values
        ]
        tasks = {} if tasks is None else {"task": tasks}
        runs = write_runs(tmp_path / "runs.jsonl", *conversations, **tasks)
        figures = evaluate_files(
            [runs], predictor, tools=tools, folds=3, tool_latencies=()
        ).to_dict()
        return figures["leak_control"], figures

    return evaluate


class Honest(Scripted):
    """Reads the value off the conversation."""

    def __init__(self):
        super().__init__({})

    def propose(self, conversation):
        [value] = conversation.messages[0].content[:-1].split()[-1:]
        return [expect("get", int(value), 0.9), expect("list", 0, 0.8)]


def test_an_honest_predictor_hits_nothing_but_constants(control):
    leak, figures = control(Honest)
    assert figures["all"]["hit_at_3"] == 1.0
    # All but the first run of each of the three folds have one before them.
    assert leak["pairs"] == RUNS - 3
    assert (leak["hit_at_1"], leak["hit_at_3"]) == (0.0, 0.5)
    assert leak["read_only"]["hit_at_1"] == 0.0
    assert (leak["anywhere_at_5"], leak["beyond_constants"]) == (0.5, 0.0)


def test_what_leaks_from_a_tested_run_into_the_next_is_seen(control):
    class Leaking(Honest):
        told = ()  # of the class: no copy of a predictor can keep it from another

        def propose(self, conversation):
            for message in conversation.messages:
                for call in message.tool_calls:
                    type(self).told = (call, *self.told)
            return [
                expect(call.name, json.loads(call.arguments)["id"], 0.5)
                for call in dict.fromkeys(self.told)
            ]

    leak, _ = control(Leaking)
    assert leak["beyond_constants"] >= 0.25


class Memorising(Honest):
    """Proposes every call that it was told of, whatever the conversation."""

    def __init__(self):
        super().__init__()
        self.told = []

    def learn(self, conversation, response):
        self.told += [
            expect(call.name, json.loads(call.arguments)["id"], 0.5)
            for call in response.tool_calls
        ]

    def propose(self, conversation):
        return self.told[::-1]

    def __deepcopy__(self, memo):
        new = type(self)()
        new.told = list(self.told)
        return new


def test_calls_that_stand_on_both_sides_of_a_split_are_counted(control):
    leak, _ = control(Memorising, values=[number % 4 for number in range(RUNS)])
    assert leak["repeated_reads"] == 1.0
    leak, _ = control(Memorising)
    assert leak["repeated_reads"] == 0.5  # the calls of `list` are all the same


def test_runs_of_one_group_are_no_pair(control):
    leak, _ = control(Honest, tasks=[str(number % 3) for number in range(RUNS)])
    assert (leak["pairs"], leak["calls"], leak["hit_at_5"]) == (0, 0, 0)


def test_the_same_seed_pairs_the_same_runs(control):
    assert control(Memorising)[0] == control(Memorising)[0]
