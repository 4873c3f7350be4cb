"""`headstart learn`, `headstart evaluate` and `headstart replay --patterns`."""

import json
import os
import signal
import sys

import pytest
from click.testing import CliRunner
from rich.console import Console

import headstart.cli_evaluate
import headstart.cli_learn
from headstart import Message, UsageError
from headstart.cli import main
from headstart.cli_evaluate import print_figures
from headstart.evaluate import draw_pictures, evaluate_files, learn_files
from headstart.predictors import Conversation, PatternPredictor
from headstart.replay import replay_file

from .scene import Scripted, answered, ask_for, say, write_runs, write_tools

SVG = b"<?xml"


def talk(number):
    """Read what the user names, and then what that read names."""
    return [
        say("user", f"Please look at order A-{number}."),
        *answered(
            ask_for(("get", f"A-{number}")), json.dumps({"part": f"P-{number * 7}"})
        ),
        *answered(ask_for(("get", f"P-{number * 7}")), json.dumps({"state": "ok"})),
        say("assistant", "All is well."),
    ]


@pytest.fixture
def files(tmp_path):
    """A file of runs to learn from, one of others, and the tools."""
    return (
        write_runs(tmp_path / "runs.jsonl", *map(talk, range(101, 117))),
        write_runs(tmp_path / "others.jsonl", *map(talk, range(201, 205))),
        write_tools(tmp_path / "tools.json"),
    )


def invoke(*arguments):
    ended = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert ended.exception is None or isinstance(ended.exception, SystemExit)
    return ended


def predicted(patterns, tools):
    """What patterns say of a run that they have not seen."""
    declared = replay_tools(tools)
    conversation = Conversation(
        messages=(Message(role="user", content="Please look at order A-999."),),
        tools=declared,
    )
    return [
        (each.tool, each.arguments_text, each.probability)
        for each in patterns.propose(conversation)
    ]


def replay_tools(tools):
    from headstart.replay import read_declarations
    from headstart.replay._recorded import make_tools

    return {tool.name: tool for tool in make_tools([], read_declarations(tools))}


# Learning.


def test_learned_patterns_are_written_and_read_back(files, tmp_path):
    runs, _, tools = files
    output = tmp_path / "patterns.json"
    ended = invoke("learn", runs, "-o", output, "--tools", tools)
    assert ended.exit_code == 0
    assert "Learned from 16 runs with 48 answers and 32 calls" in ended.stdout
    patterns = PatternPredictor()
    report = learn_files([runs], patterns, tools=tools)
    assert (report.runs, report.answers, report.calls) == (16, 48, 32)
    assert predicted(PatternPredictor.load(output), tools) == predicted(patterns, tools)
    assert predicted(patterns, tools)[0][:2] == ("get", '{"id":"A-999"}')
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())


def test_patterns_go_on_learning_where_an_earlier_file_exists(files, tmp_path):
    runs, others, tools = files
    output = tmp_path / "patterns.json"
    first, second = (
        json.loads(
            invoke(
                *("learn", each, "-o", output, "--merge", output),
                *("--tools", tools, "--json"),
            ).stdout
        )
        for each in (runs, others)
    )
    assert (first["merged"], second["merged"]) == (False, True)
    assert (first["runs"], second["runs"]) == (16, 4)
    assert second["bytes"] == output.stat().st_size
    merged = PatternPredictor.load(output)
    only_new = PatternPredictor()
    learn_files([others], only_new, tools=tools)
    assert predicted(merged, tools)[0][2] > predicted(only_new, tools)[0][2]


def test_an_earlier_file_that_is_none_is_an_error_and_nothing_is_written(
    files, tmp_path
):
    runs, _, tools = files
    output = tmp_path / "patterns.json"
    ended = invoke("learn", runs, "-o", output, "--merge", tools)
    assert ended.exit_code == 1
    assert ended.stderr.startswith("Error: ")
    assert not output.exists()


def test_a_folder_that_does_not_exist_is_an_error_before_the_work(files, tmp_path):
    ended = invoke("learn", files[0], "-o", tmp_path / "none" / "patterns.json")
    assert ended.exit_code == 1
    assert "There is no folder" in ended.stderr


@pytest.mark.parametrize("command", [("learn", "-o", "{}/p.json"), ("evaluate",)])
def test_files_without_a_run_are_an_error_that_names_the_lines(command, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("nothing\n")
    ended = invoke(command[0], empty, *(each.format(tmp_path) for each in command[1:]))
    assert ended.exit_code == 1
    assert f"{empty}: line 1 is skipped." in ended.stderr
    assert not (tmp_path / "p.json").exists()


def test_bad_lines_are_named_and_the_rest_is_learned(files, tmp_path):
    runs, _, tools = files
    runs.write_text(runs.read_text() + "nothing\n")
    output = tmp_path / "patterns.json"
    ended = invoke("learn", runs, "-o", output, "--tools", tools, "--json")
    assert ended.exit_code == 0
    assert "line 17 is skipped" in ended.stderr
    report = json.loads(ended.stdout)
    assert (report["runs"], len(report["bad_lines"])) == (16, 1)


# Evaluating.


def test_the_command_prints_one_json_object(files):
    runs, others, tools = files
    ended = invoke(
        *("evaluate", runs, others, "--tools", tools, "--folds", 4, "--json"),
        *("--tool-latency", 1, "--tool-latency", 3),
    )
    assert ended.exit_code == 0
    assert ended.stderr == ""
    figures = json.loads(ended.stdout)
    assert (figures["runs"], figures["groups"], figures["folds"]) == (20, 16, 4)
    assert figures["read_only"]["hit_at_1"] > 0.9
    assert [each["tool_latency"] for each in figures["gain"]] == ["1", "3"]
    assert all(each["identical"] for each in figures["gain"])
    assert figures["leak_control"]["beyond_constants"] == 0


def test_the_command_gives_what_the_function_gives(files):
    runs, _, tools = files
    ended = invoke("evaluate", runs, "--tools", tools, "--json", "--no-gain")
    report = evaluate_files([runs], PatternPredictor, tools=tools, tool_latencies=())
    printed, expected = json.loads(ended.stdout), report.to_dict()
    for figures in (printed, expected):
        del figures["ms_per_decision"], figures["learning"]  # on the real clock
    assert printed == json.loads(json.dumps(expected))


def test_the_command_prints_tables(files):
    runs, _, tools = files
    ended = invoke("evaluate", runs, "--tools", tools, "--tool-latency", 1)
    assert ended.exit_code == 0
    for text in (
        *("16 runs in 16 groups, 5 folds", "Calls predicted", "Hits by tool"),
        *("share of the oracle's", "Leak control", "identical"),
    ):
        assert text in ended.stdout


def test_many_repeated_calls_are_pointed_out(files):
    runs, _, tools = files
    twice = ("evaluate", runs, runs, "--tools", tools, "--no-gain", "--group-by")
    assert "--group-key" in invoke(*twice, "none").stdout
    assert "--group-key" not in invoke(*twice, "task").stdout


def test_failures_are_shown_and_many_tools_are_cut_short(tmp_path):
    class Broken(Scripted):
        def propose(self, conversation):
            raise KeyError("[bold]no")

    conversations = [
        [say("user", "u"), *answered(ask_for((f"tool-{number}", 1)), "")]
        for number in range(25)
    ]
    runs = write_runs(tmp_path / "runs.jsonl", *conversations)
    report = evaluate_files([runs], lambda: Broken({}), tool_latencies=())
    console = Console(width=80)
    with console.capture() as capture:
        print_figures(report.to_dict(), console)
    shown = capture.get()
    assert "and 5 tools more" in shown
    assert "failed 25 times, first with KeyError: '[bold]no'" in shown


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (("--folds", "17"), 1),
        (("--group-key", "("), 1),
        (("--folds", "1"), 2),
        (("--tool-latency", "fast"), 2),
        (("--tools", "no-such.json"), 2),
        (("--beside", "-1"), 2),
    ],
)
def test_a_wrong_option_is_one_line_and_no_traceback(files, options, status):
    ended = invoke("evaluate", files[0], *options)
    assert ended.exit_code == status
    assert ended.stderr.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("command", ["learn", "evaluate"])
def test_an_interrupt_ends_the_command_cleanly(command, files, tmp_path, monkeypatch):
    module = getattr(headstart, f"cli_{command}")
    function = getattr(module, f"{command}_files")

    def run_interrupted(*arguments, **options):
        told = options["on_progress"]

        def interrupt(*progress):
            told(*progress)
            os.kill(os.getpid(), signal.SIGINT)

        return function(*arguments, **options | {"on_progress": interrupt})

    monkeypatch.setattr(module, f"{command}_files", run_interrupted)
    output = tmp_path / "patterns.json"
    written = ("-o", output) if command == "learn" else ()
    ended = invoke(command, files[0], *written)
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert ended.stderr.strip() == "Aborted!"
    assert not output.exists()


# Pictures.


@pytest.mark.timeout(120)  # the first drawing on a machine looks for its fonts
def test_pictures_are_drawn_the_same_for_the_same_figures(files, tmp_path):
    runs, _, tools = files
    folder = tmp_path / "new" / "pictures"
    ended = invoke(
        *("evaluate", runs, "--tools", tools, "--no-gain", "--json"),
        *("--pictures", folder),
    )
    assert ended.exit_code == 0
    drawn = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert drawn.keys() == {"calibration.svg", "precision-recall.svg"}
    assert all(picture.startswith(SVG) for picture in drawn.values())
    again = draw_pictures(json.loads(ended.stdout), tmp_path / "again")
    assert {path.name: path.read_bytes() for path in again} == drawn


def test_without_matplotlib_pictures_say_what_to_install(files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    ended = invoke("evaluate", files[0], "--no-gain", "--pictures", tmp_path / "p")
    assert ended.exit_code == 1
    assert ended.stderr == (
        'Error: Please install `matplotlib`: pip install "headstart[matplotlib]"\n'
    )


def test_a_folder_for_pictures_that_cannot_be_is_an_error(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError):
        draw_pictures({}, file / "pictures")


# Replaying.


def test_patterns_add_the_predicted_arm(files, tmp_path):
    runs, others, tools = files
    patterns = tmp_path / "patterns.json"
    invoke("learn", runs, "-o", patterns, "--tools", tools)
    ended = invoke(
        *("replay", others, "--tools", tools, "--tool-latency", 1),
        *("--patterns", patterns, "--json"),
    )
    assert ended.exit_code == 0
    arms = json.loads(ended.stdout)["arms"]
    assert list(arms) == ["off", "oracle", "random", "predicted"]
    assert arms["predicted"]["hit_rate"] > 0.9
    assert arms["predicted"]["saved_share"] > 0
    assert arms["predicted"]["differences"] == 0


def test_patterns_and_rules_predict_together(files, tmp_path):
    runs, others, tools = files
    patterns, rules = tmp_path / "patterns.json", tmp_path / "rules.toml"
    rules.write_text("rules = [{ when = '(?P<id>A-[0-9]+)', call = 'get' }]")
    options = {"tools": tools, "tool_latency": 1, "arms": ["predicted"]}
    PatternPredictor().save(patterns)  # which has learned nothing
    alone = replay_file(others, rules=rules, **options).arms["predicted"]
    both = replay_file(others, rules=rules, patterns=patterns, **options)
    assert alone.hits == 4  # the first of each run's two reads
    assert both.arms["predicted"].hits == 4
    invoke("learn", runs, "-o", patterns, "--tools", tools)
    both = replay_file(others, rules=rules, patterns=patterns, **options)
    assert both.arms["predicted"].hits == 8
    assert both.arms["predicted"].differences == 0


def test_each_run_of_a_replay_begins_with_the_patterns_of_the_file(files, tmp_path):
    _, others, tools = files
    patterns = tmp_path / "patterns.json"
    PatternPredictor().save(patterns)  # which has learned nothing
    report = replay_file(
        others, tools=tools, patterns=patterns, tool_latency=1, arms=["predicted"]
    )
    assert report.arms["predicted"].hits == 0


def test_patterns_that_are_none_end_the_replay(files):
    runs, _, tools = files
    ended = invoke("replay", runs, "--patterns", tools)
    assert ended.exit_code == 1
    assert ended.stderr.splitlines()[-1].startswith("Error: ")


def close(number):
    """Read an order, and close it: what that gives follows from what was read."""
    order = {"id": f"A-{number}", "owner": f"u{number * 3}", "state": "open"}
    return [
        say("user", f"Please close order A-{number}."),
        *answered(ask_for(("get", f"A-{number}")), json.dumps(order)),
        *answered(
            ask_for(("put", f"A-{number}")), json.dumps(order | {"state": "closed"})
        ),
        say("assistant", "It is closed."),
    ]


@pytest.fixture
def closed(tmp_path):
    return (
        write_runs(tmp_path / "closed.jsonl", *map(close, range(101, 131))),
        write_tools(tmp_path / "tools.json"),
    )


def test_results_are_learned_if_they_are_asked_for_and_kept_in_the_same_file(
    closed, tmp_path
):
    runs, tools = closed
    plain, both = tmp_path / "plain.json", tmp_path / "both.json"
    assert invoke("learn", runs, "--tools", tools, "-o", plain).exit_code == 0
    assert (
        invoke("learn", runs, "--tools", tools, "-o", both, "--results").exit_code == 0
    )
    assert PatternPredictor.load(plain).results is None
    learned = PatternPredictor.load(both)
    conversation = Conversation(
        messages=tuple(Message.from_dict(message) for message in close(999)[:4]),
        tools=replay_tools(tools),
    )
    (call,) = (
        conversation.messages[-1].tool_calls or conversation.messages[-2].tool_calls
    )
    stated = learned.predict_results(call, conversation)
    assert PatternPredictor.load(plain).predict_results(call, conversation) == []
    assert [json.loads(each.result.content)["state"] for each in stated][:1] == [
        "closed"
    ]
    merged = PatternPredictor.load(plain)
    merged.merge(learned)
    assert merged.predict_results(call, conversation) != []


def test_learned_results_run_turns_ahead_in_the_gain_unless_they_are_left_out(closed):
    runs, tools = closed
    shares = {}
    for results in ("--results", "--no-results"):
        ended = invoke(
            *(
                "evaluate",
                runs,
                "--tools",
                tools,
                "--tool-latency",
                2,
                "--json",
                results,
            )
        )
        [figures] = json.loads(ended.stdout)["gain"]
        assert figures["identical"]
        shares[results] = figures["share_of_oracle"]
    assert shares["--results"] > shares["--no-results"] + 0.1
