"""The command line: what it prints, and the status that it ends with."""

import importlib
import json
import os
import runpy
import signal
import sys
import tempfile

import pytest
from click.testing import CliRunner
from rich.console import Console

import headstart.demo
from headstart._errors import ModelError
from headstart._events import (
    CallEnded,
    CallLaunched,
    EarlyResultGiven,
    EffectHeld,
    SessionEnded,
    SpeculationAdopted,
    SpeculationDiscarded,
    TurnConfirmed,
    TurnStarted,
)
from headstart.cli import main
from headstart.demo import DemoOutcome, MessageOutcome, Progress

FIGURES = {
    "off_s": 2.0,
    "on_s": 1.0,
    "bound_s": 0.5,
    "speedup": 2.0,
    "calls": 1,
    "hits": 1,
    "early_starts": 0,
    "misses": 0,
    "run_ahead": 0,
    "hidden_s": 1.0,
    "wasted_s": 0.0,
}


def invoke(*arguments):
    return CliRunner().invoke(main, arguments)


@pytest.fixture
def demo_ends(monkeypatch):
    """Let the demo end as stated, instead of running it."""

    def set_end(*, differs=(), error=None):
        sames = dict.fromkeys(
            ("identical_messages", "identical_rows", "identical_posts"), True
        ) | dict.fromkeys(differs, False)
        outcome = DemoOutcome(
            model="m",
            bound_speedup=4.0,
            identical=all(sames.values()),
            messages=(MessageOutcome(text="Hi", reply="Hello", **FIGURES),),
            **FIGURES,
            **sames,
        )

        async def run_demo(**_):
            if error is not None:
                raise error
            return outcome

        monkeypatch.setattr(headstart.demo, "run_demo", run_demo)

    return set_end


def test_identical_runs_end_with_status_0_and_say_so(demo_ends):
    demo_ends()
    result = invoke("demo")
    assert result.exit_code == 0
    assert "Identical: messages, database rows, posted chat messages." in result.output
    assert "2.00 times as fast" in result.output


@pytest.mark.parametrize(
    ("differs", "named"),
    [
        (["identical_messages"], "messages"),
        (["identical_rows", "identical_posts"], "database rows, posted chat messages"),
    ],
)
def test_runs_that_differ_end_with_status_1_and_say_in_what(demo_ends, differs, named):
    demo_ends(differs=differs)
    result = invoke("demo")
    assert result.exit_code == 1
    assert f"Not identical: {named}." in result.output
    assert invoke("demo", "--json").exit_code == 1


def test_a_difference_with_a_real_model_is_explained(demo_ends):
    demo_ends(differs=["identical_messages"])
    result = invoke("demo", "--model", "m")
    assert result.exit_code == 1
    assert "may answer otherwise" in result.output


def test_an_error_of_the_endpoint_is_one_line_and_status_1(demo_ends):
    demo_ends(error=ModelError("The model's endpoint answered 401: no.", status=401))
    result = invoke("demo")
    assert result.exit_code == 1
    assert result.stderr == "Error: The model's endpoint answered 401: no.\n"


def test_a_base_url_without_a_model_is_refused():
    result = invoke("demo", "--base-url", "http://127.0.0.1:9")
    assert result.exit_code == 2
    assert "--model" in result.stderr


@pytest.mark.parametrize("speed", ["0", "-1", "fast"])
def test_a_speed_that_is_none_is_refused(speed):
    assert invoke("demo", "--speed", speed).exit_code == 2


@pytest.mark.parametrize("module", ["aiosqlite", "httpx2", "openai", "sqlalchemy"])
def test_a_missing_part_of_the_demo_is_named_with_what_to_install(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "headstart.demo")
    result = invoke("demo")
    assert result.exit_code == 1
    assert result.stderr == (
        f'Error: Please install `{module}`: pip install "headstart[demo]"\n'
    )


@pytest.mark.parametrize("module", ["click", "rich"])
def test_a_missing_part_of_the_command_line_is_named_with_what_to_install(
    module, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "headstart.cli")
    with pytest.raises(SystemExit) as raised:
        importlib.import_module("headstart.cli")
    assert raised.value.code == (
        f'Please install `{module}`: pip install "headstart[cli]"'
    )


def test_the_module_runs_like_the_command(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["headstart", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_module("headstart", run_name="__main__")
    shown = capsys.readouterr().out
    assert shown.startswith("Usage: headstart")
    assert "demo" in shown
    assert "replay" in shown


@pytest.mark.real_time
def test_json_is_one_object_and_nothing_else_on_standard_output():
    result = invoke("demo", "--json", "--speed", "20")
    data = json.loads(result.stdout)
    assert data["identical"] is True
    assert len(data["messages"]) == 5
    assert result.stderr == ""


@pytest.mark.real_time
def test_an_interrupt_ends_the_demo_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run_demo = headstart.demo.run_demo
    databases = []

    def interrupt(_):
        if not databases:
            databases.extend(tmp_path.rglob("incidents.db"))
            os.kill(os.getpid(), signal.SIGINT)

    async def run_interrupted(**options):
        return await run_demo(**options | {"on_progress": interrupt})

    monkeypatch.setattr(headstart.demo, "run_demo", run_interrupted)
    result = invoke("demo", "--json")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.strip() == "Aborted!"
    assert len(databases) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_happens_is_shown_on_a_terminal(demo_ends, monkeypatch):
    demo_ends()
    end = headstart.demo.run_demo
    at = {"session": "s", "at_s": 0.0}
    call = {"span": "1", "tool": "get"}
    guess = {**call, "turn": 1, "cause": "predicted"}
    events = {
        TurnStarted(**at, turn=1): "the model is asked",
        TurnStarted(**at, turn=2, speculative=True): "asked ahead",
        TurnConfirmed(**at, turn=2, hidden_s=1.0): "is confirmed, 1.00 s early",
        CallLaunched(**at, **guess): "get is launched",
        EffectHeld(**at, **call): "get is held",
        EarlyResultGiven(
            **at, turn=1, call_id="a", tool="get", source="tool"
        ): "get states its result early",
        SpeculationAdopted(
            **at, **guess, call_id="a", hidden_s=0.5, ready=True
        ): "a hit, 0.50 s ahead",
        SpeculationDiscarded(
            **at, **guess, reason="too late", wasted_s=0.5
        ): "get is discarded: too late",
        CallEnded(
            **at,
            turn=1,
            call_id="a",
            tool="get",
            duration_s=1.0,
            wait_s=0.0,
            adopted=True,
            is_error=False,
        ): "get has ended",
    }
    shown = []

    async def run_demo(*, on_progress, **_):
        view = on_progress.__self__
        console = Console(width=120)
        for event in (None, *events, SessionEnded(**at)):
            on_progress(Progress(arm="off", message=0, event=event))
            with console.capture() as capture:
                console.print(view.render())
            shown.append(capture.get())
        on_progress(Progress(arm="off", message=0, seconds=12.345))
        with console.capture() as capture:
            console.print(view.render())
        shown.append(capture.get())
        return await end()

    monkeypatch.setattr(headstart.demo, "run_demo", run_demo)
    result = CliRunner().invoke(main, ["demo"], env={"FORCE_COLOR": "1"})
    assert result.exit_code == 0
    for text, screen in zip(events.values(), shown[1:-2], strict=True):
        assert text in screen.splitlines()[-1]
    assert shown[-2].splitlines()[-1] == shown[-3].splitlines()[-1]
    assert "12.35 s" in shown[-1]
    assert "Pause incident 204" in result.stderr
