"""`headstart replay`: what speculation would have saved on recorded runs."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from ._errors import HeadstartError
from .replay import ARMS, Latency, ReplayReport, replay_file

if TYPE_CHECKING:
    from collections.abc import Iterable

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
"""An option or argument that names a file there is."""


class LatencyType(click.ParamType[Latency]):
    """An option that is a `Latency`."""

    name = "seconds"

    def convert(
        self,
        value: Latency | str,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Latency:
        """Read it, or say how it is written."""
        try:
            return Latency.parse(value)
        except HeadstartError as error:
            self.fail(str(error), param, ctx)


@click.command()
@click.argument("file", type=FILE)
@click.option("--tools", type=FILE, help="JSON: the effect of each tool by its name.")
@click.option("--rules", type=FILE, help="TOML: rules for the arm 'predicted'.")
@click.option(
    "--patterns",
    type=FILE,
    help="JSON: patterns for it, as `headstart learn` writes them from *other* runs.",
)
@click.option(
    "--model-latency",
    type=LatencyType(),
    default="2",
    show_default=True,
    help="Seconds of answers whose time is not in the file: a number, "
    "lognormal:MEDIAN,SIGMA, uniform:FROM,TO or exponential:MEAN.",
)
@click.option(
    "--tool-latency",
    type=LatencyType(),
    help="Seconds of every tool call, in the same forms. "
    "[default: as in the file, and 1 where it does not say]",
)
@click.option(
    "--arm",
    "arms",
    type=click.Choice(ARMS),
    multiple=True,
    help="Only these arms; may be given several times.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="Only so many runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def replay(
    *,
    file: Path,
    tools: Path | None,
    rules: Path | None,
    patterns: Path | None,
    model_latency: Latency,
    tool_latency: Latency | None,
    arms: tuple[str, ...],
    seed: int,
    limit: int | None,
    as_json: bool,
) -> None:
    """Replay recorded runs through the engine, in virtual time.

    FILE holds one JSON object a line, each with chat "messages". The arms are: off (no
    speculation), oracle (every prediction right), random (random ones), and predicted
    (by --rules, by --patterns, or by both). The exit status is 1 when no line of FILE
    could be used.
    """
    quiet_logs()
    errors = Console(stderr=True)
    try:
        with show_progress(errors) as progress:
            task = progress.add_task("replaying", total=None)
            report = replay_file(
                file,
                tools=tools,
                rules=rules,
                patterns=patterns,
                model_latency=model_latency,
                tool_latency=tool_latency,
                arms=arms or None,
                seed=seed,
                limit=limit,
                on_progress=lambda done, total: progress.update(
                    task, completed=done, total=total
                ),
            )
    except HeadstartError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        raise click.Abort from None
    for bad in report.bad_lines:
        click.echo(f"{file}: line {bad.line} is skipped. {bad.reason}", err=True)
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        _print_report(report, Console())
    if not report.runs:
        raise click.ClickException(f"No line of {str(file)!r} holds a recorded run.")


def quiet_logs() -> None:
    """Keep the engine's warnings to itself until the command ends.

    What is odd in a recording is counted in the report, and is no news of the engine.
    """
    logger = logging.getLogger("headstart")
    click.get_current_context().call_on_close(partial(logger.setLevel, logger.level))
    logger.setLevel(logging.ERROR)


def show_progress(console: Console) -> Progress:
    """A display of how far something is, on a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _print_report(report: ReplayReport, console: Console) -> None:
    table = Table(title=report.file, title_style="bold", caption=_caption(report))
    table.add_column("")
    arms = report.to_dict()["arms"]
    for name in arms:
        table.add_column(name, justify="right")
    for label, key, unit in _ROWS:
        values = (_show(figures.get(key), unit) for figures in arms.values())
        table.add_row(label, *values)
    console.print(table)


_ROWS = (
    ("runs", "runs", ""),
    ("calls", "calls", ""),
    ("model and tool time", "seconds", "s"),
    ("saved", "saved_share", "%"),
    ("hit rate", "hit_rate", "%"),
    ("precision", "precision", "%"),
    ("ready before demand", "ready_before_demand", "%"),
    ("hidden", "hidden_s", "s"),
    ("wasted", "wasted_s", "s"),
    ("launches a call", "launches_per_call", "x"),
    ("turns run ahead", "run_ahead", ""),
    ("user's own time", "user_s", "s"),
)


def _show(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    match unit:
        case "s":
            return f"{value:,.1f} s"
        case "%":
            return f"{100 * value:.1f} %"
        case "x":
            return f"{value:.2f}"
        case _:
            return f"{value:,}"


def _caption(report: ReplayReport) -> str:
    notes: Iterable[tuple[int, str]] = (
        (len(report.bad_lines), "bad lines skipped"),
        (report.calls_without_result, "calls without a result"),
        (report.results_without_call, "results without a call"),
    )
    return ", ".join(f"{count} {what}" for count, what in notes if count)
