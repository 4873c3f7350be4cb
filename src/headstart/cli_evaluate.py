"""`headstart evaluate`: how well the calls of recorded runs are predicted."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ._errors import HeadstartError
from .cli_learn import name_skipped
from .cli_replay import FILE, LatencyType, quiet_logs, show_progress
from .evaluate import (
    LATENCIES,
    LAUNCHED_FROM,
    draw_pictures,
    evaluate_files,
    prepare_pictures,
)
from .predictors import LearnedResults, PatternPredictor

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import TaskID

    from .replay import Latency


@click.command()
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("--tools", type=FILE, help="JSON: the effect of each tool by its name.")
@click.option(
    "--folds",
    type=click.IntRange(min=2),
    default=5,
    show_default=True,
    help="Each part of the runs is predicted by what the others teach.",
)
@click.option(
    "--group-by",
    default="task",
    show_default=True,
    metavar="FIELD",
    help="Runs with the same value in this field are never parted: task, id, or what "
    "else a run has; none parts them all.",
)
@click.option(
    "--group-key",
    metavar="REGEX",
    help="Runs in whose texts this finds the same, such as a customer's number, are "
    "never parted either.",
)
@click.option(
    "--tool-latency",
    "tool_latencies",
    type=LatencyType(),
    multiple=True,
    default=[f"{each:g}" for each in LATENCIES],
    show_default=True,
    help="Seconds of every tool call, for the gain; may be given several times.",
)
@click.option(
    "--model-latency",
    type=LatencyType(),
    default="2",
    show_default=True,
    help="Seconds of answers whose time is not in the files.",
)
@click.option(
    "--beside",
    type=click.FloatRange(min=0),
    default=0.15,
    show_default=True,
    help="For the gain: from which probability of the next answer on the request after "
    "it is sent beside it. Above 1 never.",
)
@click.option(
    "--results/--no-results",
    default=True,
    help="For the gain: whether results are learned as well, to run turns ahead.",
)
@click.option("--gain/--no-gain", default=True, help="Replay the runs, or do not.")
@click.option(
    "--frozen",
    is_flag=True,
    help="Tell the predictor nothing of the tested run. Without, it is told each answer "
    "once it has predicted it, and forgets them with the run.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="Only so many runs.")
@click.option(
    "--pictures",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Draw the calibration, and precision and recall, as SVG files in this folder.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(
    *,
    files: tuple[Path, ...],
    tools: Path | None,
    folds: int,
    group_by: str,
    group_key: str | None,
    tool_latencies: tuple[Latency, ...],
    model_latency: Latency,
    beside: float,
    results: bool,
    gain: bool,
    frozen: bool,
    seed: int,
    limit: int | None,
    pictures: Path | None,
    as_json: bool,
) -> None:
    """Learn from some recorded runs, predict the others, and say how well.

    FILES hold one JSON object a line, each with chat "messages". Every run is predicted
    once, by patterns learned from runs of other groups. The exit status is 1 when no
    line could be used.
    """
    quiet_logs()
    try:
        if pictures is not None:
            prepare_pictures(pictures)
        with show_progress(Console(stderr=True)) as progress:
            tasks: dict[str, TaskID] = {}

            def note(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = progress.add_task(what, total=total)
                progress.update(tasks[what], completed=done)

            report = evaluate_files(
                files,
                partial(_make_predictor, results=results and gain),
                tools=tools,
                folds=folds,
                group_by=group_by,
                group_key=group_key,
                tool_latencies=tool_latencies if gain else (),
                model_latency=model_latency,
                beside=beside,
                learn_within_runs=not frozen,
                seed=seed,
                limit=limit,
                on_progress=note,
            )
    except HeadstartError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        raise click.Abort from None
    name_skipped(report.skipped)
    if not report.runs:
        raise click.ClickException("No line of the files holds a recorded run.")
    figures = report.to_dict()
    if pictures is not None:
        for path in draw_pictures(figures, pictures):
            click.echo(f"{str(path)!r} is drawn.", err=True)
    if as_json:
        click.echo(json.dumps(figures, indent=2))
    else:
        print_figures(figures, Console())


def _make_predictor(*, results: bool) -> PatternPredictor:
    return PatternPredictor(results=LearnedResults() if results else None)


_SHARES = {
    "hit_at_1": "hit at 1",
    "hit_at_3": "at 3",
    "hit_at_5": "at 5",
    "name_at_1": "name at 1",
    "name_at_3": "at 3",
}
_TOOLS_SHOWN = 20
_NAME_WIDTH = 34
_REPEATED_MANY = 0.2


def print_figures(figures: dict[str, Any], console: Console) -> None:
    """Show an evaluation as tables."""
    console.print(
        f"{figures['runs']:,} runs in {figures['groups']:,} groups, {figures['folds']} "
        f"folds; {figures['decisions']:,} decisions, "
        f"{_percent(figures['no_call_share'])} % of them without a call."
    )
    _print_hits(figures, console)
    _print_thresholds(figures, console)
    _print_tools(figures["by_tool"], console)
    if figures["gain"]:
        _print_gain(figures["gain"], console)
    _print_notes(figures, console)


def _print_hits(figures: dict[str, Any], console: Console) -> None:
    errors = "calibration_error", "calibration_error_eventually"
    heads = "", "calls", *_SHARES.values(), "ECE", "ECE, later"
    table = _table("Calls predicted, in %", *heads)
    for label, of in (("all", figures["all"]), ("reads", figures["read_only"])):
        shares = (_percent(of[name]) for name in (*_SHARES, *errors))
        table.add_row(label, f"{of['calls']:,}", *shares)
    console.print(table)


def _print_thresholds(figures: dict[str, Any], console: Console) -> None:
    heads = "precision", "recall", "number"
    table = _table("Predictions, in %", "p ≥", *heads, "reads: precision", *heads[1:])
    rows = zip(
        figures["all"]["thresholds"], figures["read_only"]["thresholds"], strict=True
    )
    for both in rows:
        cells: list[str] = []
        for row in both:
            count = row["predictions"]
            precision = _percent(row["precision"]) if count else "-"
            cells += (precision, _percent(row["recall"]), f"{count:,}")
        table.add_row(f"{both[0]['threshold']:.1f}", *cells)
    console.print(table)


def _print_tools(by_tool: dict[str, Any], console: Console) -> None:
    names = list(_SHARES)[:4]
    heads = "calls", "at 1", "at 3", "at 5", "name", f"p ≥ {LAUNCHED_FROM:g}"
    table = _table("Hits by tool, in %", "", *heads, "right")
    for name, of in list(by_tool.items())[:_TOOLS_SHOWN]:
        called = f"{of['calls']:,}", *(_percent(of[key]) for key in names)
        count = of["predictions"]
        right = _percent(of["precision"]) if count else "-"
        read = of["effect"] == "READ"
        table.add_row(
            Text(name, style="" if read else "dim"), *called, f"{count:,}", right
        )
    if len(by_tool) > _TOOLS_SHOWN:
        table.caption = f"and {len(by_tool) - _TOOLS_SHOWN} tools more"
    console.print(table)


def _print_gain(gain: list[dict[str, Any]], console: Console) -> None:
    table = _table("Gain in virtual time, every tool at", "")
    for of in gain:
        table.add_column(f"{of['tool_latency']} s", justify="right")
    estimated = ", estimated" * any(of["tokens_estimated"] for of in gain)
    tokens = f"extra model tokens{estimated}"
    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        "without speculation": lambda of: f"{of['off_s']:,.1f} s",
        "the oracle saves": lambda of: _percent(of["oracle_saved_share"]) + " %",
        "the predictions save": lambda of: _percent(of["saved_share"]) + " %",
        "share of the oracle's": lambda of: _percent(of["share_of_oracle"]) + " %",
        "launches a real read": lambda of: f"{of['launches_a_read']:.2f}",
        "wasted": lambda of: f"{of['wasted_s']:,.1f} s",
        tokens: lambda of: _percent(of["extra_tokens_share"]) + " %",
        "identical": lambda of: "yes" if of["identical"] else "NO",
    }
    for label, write in rows.items():
        table.add_row(label, *(write(of) for of in gain))
    console.print(table)


def _print_notes(figures: dict[str, Any], console: Console) -> None:
    ms, learning = figures["ms_per_decision"], figures["learning"]
    leak, failures = figures["leak_control"], figures["predictor_failures"]
    console.print(
        f"A decision takes {ms['median']:.3f} ms (median), {ms['p99']:.3f} ms (99th "
        f"percentile); {learning['runs_per_second']:,.0f} runs are learned a second."
    )
    console.print(
        "Leak control: scored against the calls of another run, the predictions hit "
        f"{_percent(leak['hit_at_1'])} % at 1 and {_percent(leak['hit_at_5'])} % at 5; "
        f"{_percent(leak['beyond_constants'])} % of the other runs' calls were predicted "
        "anywhere and are no constants."
    )
    if leak["repeated_reads"] >= _REPEATED_MANY:
        console.print(
            f"{_percent(leak['repeated_reads'])} % of the reads stand, word for word, in "
            "the runs that were learned from. If that is because the same customers or "
            "things stand on both sides, merge their groups with --group-key.",
            style="yellow",
        )
    if failures["count"]:
        text = f"The predictor failed {failures['count']:,} times, first with "
        console.print(Text(text + str(failures["first"]), style="red"))


def _table(title: str, *heads: str) -> Table:
    table = Table(
        title=title,
        title_style="bold",
        title_justify="left",
        box=SIMPLE_HEAD,
        collapse_padding=True,
    )
    for number, head in enumerate(heads):
        if number:
            table.add_column(head, justify="right", min_width=4)
        else:
            table.add_column(head, no_wrap=True, max_width=_NAME_WIDTH)
    return table


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
