"""`headstart learn`: patterns out of recorded runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from ._errors import HeadstartError
from .cli_replay import FILE, quiet_logs, show_progress
from .evaluate import learn_files
from .predictors import LearnedResults, PatternPredictor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .evaluate import SkippedLine


@click.command()
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="Where the patterns are written: JSON.",
)
@click.option("--tools", type=FILE, help="JSON: the effect of each tool by its name.")
@click.option(
    "--merge",
    "earlier",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Patterns of before, which go on learning, if the file exists. It may be the "
    "output's own.",
)
@click.option(
    "--results",
    is_flag=True,
    help="Learn what calls give as well, so that turns are run ahead of them.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only so many runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def learn(
    *,
    files: tuple[Path, ...],
    output: Path,
    tools: Path | None,
    earlier: Path | None,
    results: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """Learn patterns of calls from recorded runs.

    FILES hold one JSON object a line, each with chat "messages". The output is replaced
    when all is learned, and not before. The exit status is 1 when no line could be used.
    """
    quiet_logs()
    if not output.parent.is_dir():
        msg = f"There is no folder {str(output.parent)!r} to write the patterns to."
        raise click.ClickException(msg)
    merged = earlier if earlier is not None and earlier.exists() else None
    try:
        patterns = PatternPredictor.load(merged) if merged else PatternPredictor()
        if results and patterns.results is None:
            patterns.results = LearnedResults()
        with show_progress(Console(stderr=True)) as progress:
            task = progress.add_task("learning", total=None)
            report = learn_files(
                files,
                patterns,
                tools=tools,
                limit=limit,
                on_progress=lambda done, total: progress.update(
                    task, completed=done, total=total
                ),
            )
        name_skipped(report.skipped)
        if not report.runs:
            msg = "No line of the files holds a recorded run: nothing is written."
            raise click.ClickException(msg)
        # Never half a file, and never none where there was one.
        unfinished = output.with_name(f".{output.name}.{os.getpid()}")
        try:
            patterns.save(unfinished)
            unfinished.replace(output)
        finally:
            unfinished.unlink(missing_ok=True)
    except HeadstartError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        raise click.Abort from None
    size = output.stat().st_size
    if as_json:
        figures = {"output": str(output), "bytes": size, "merged": merged is not None}
        click.echo(json.dumps(figures | report.to_dict(), indent=2))
        return
    added = f", beside what {str(merged)!r} knew" if merged else ""
    click.echo(
        f"Learned from {report.runs:,} runs with {report.answers:,} answers and "
        f"{report.calls:,} calls{added}: {report.runs_per_second:,.0f} runs a second. "
        f"{str(output)!r} has {size:,} bytes."
    )


def name_skipped(lines: Iterable[SkippedLine]) -> None:
    """Name the lines that hold no run, on standard error."""
    for bad in lines:
        click.echo(f"{bad.file}: line {bad.line} is skipped. {bad.reason}", err=True)
