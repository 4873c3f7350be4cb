"""`headstart demo`: an incident copilot without and with speculation, side by side."""

from __future__ import annotations

import json
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import anyio
import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ._errors import HeadstartError
from ._events import (
    CallEnded,
    CallLaunched,
    EarlyResultGiven,
    EffectHeld,
    Event,
    SpeculationAdopted,
    SpeculationDiscarded,
    TurnConfirmed,
    TurnStarted,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .demo import DemoOutcome, MessageOutcome, Progress

_SHOWN_EVENTS = 6
_FRAMES_A_SECOND = 8


@click.command()
@click.option("--base-url", help="A real endpoint that speaks OpenAI's protocol.")
@click.option(
    "--model",
    help="A real model, its key in OPENAI_API_KEY. What it answers may differ from run "
    "to run, whatever headstart does.",
)
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Everything that is simulated, so many times as fast.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def demo(
    ctx: click.Context,
    *,
    base_url: str | None,
    model: str | None,
    speed: float,
    as_json: bool,
) -> None:
    """Run an incident copilot without and with speculation, and compare.

    Without options it needs no key and no network: database, chat service and model
    server are started on this machine. The exit status is 0 only if both runs leave
    identical messages, database rows and posted chat messages.
    """
    if base_url is not None and model is None:
        message = "Name the endpoint's model, too: --model NAME."
        raise click.UsageError(message)
    try:
        from .demo import USER_MESSAGES, Latencies, run_demo
    except ImportError as error:
        raise click.ClickException(str(error)) from error

    live = _LiveView(USER_MESSAGES)
    run = partial(
        run_demo,
        latencies=Latencies().faster(speed),
        base_url=base_url,
        model=model,
        on_progress=live.receive,
    )
    console = Console(stderr=True)
    try:
        if console.is_terminal:
            with Live(
                get_renderable=live.render,
                console=console,
                transient=True,
                refresh_per_second=_FRAMES_A_SECOND,
            ):
                outcome = anyio.run(run)
        else:
            outcome = anyio.run(run)
    except HeadstartError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(outcome.to_dict()))
    else:
        _show(outcome, Console(highlight=False), real_model=model is not None)
    ctx.exit(0 if outcome.identical else 1)


class _LiveView:
    """What is shown while the demo runs."""

    def __init__(self, user_messages: Sequence[str]) -> None:
        self._texts = user_messages
        self._seconds: dict[tuple[str, int], float] = {}
        self._running: tuple[str, int] | None = None
        self._started = 0.0
        self._happened: deque[Text] = deque(maxlen=_SHOWN_EVENTS)

    def receive(self, progress: Progress) -> None:
        """Take in where the run is."""
        place = (progress.arm, progress.message)
        if progress.seconds is not None:
            self._seconds[place] = progress.seconds
            self._running = None
        elif progress.event is None:
            self._running = place
            self._started = time.perf_counter()
            self._happened.clear()
        else:
            line = _describe(progress.event)
            if line is not None:
                elapsed = time.perf_counter() - self._started
                self._happened.append(Text(f"{elapsed:6.2f} s  {line}", style="dim"))

    def render(self) -> Group:
        """Draw it; called by the display's own thread."""
        table = Table()
        table.add_column("message", ratio=1)
        table.add_column("without", justify="right")
        table.add_column("with headstart", justify="right")
        for number, text in enumerate(self._texts):
            table.add_row(text, self._cell("off", number), self._cell("on", number))
        return Group(table, *self._happened)

    def _cell(self, arm: str, number: int) -> Text:
        if (arm, number) == self._running:
            elapsed = time.perf_counter() - self._started
            return Text(f"{elapsed:.1f} s", style="yellow")
        seconds = self._seconds.get((arm, number))
        return Text("" if seconds is None else f"{seconds:.2f} s")


def _describe(event: Event) -> str | None:
    match event:
        case TurnStarted(speculative=True):
            return "the model is asked ahead, on an early result"
        case TurnStarted():
            return "the model is asked"
        case TurnConfirmed(hidden_s=hidden):
            return f"what the model was asked ahead is confirmed, {hidden:.2f} s early"
        case CallLaunched(tool=tool):
            return f"{tool} is launched"
        case EffectHeld(tool=tool):
            return f"{tool} is held before its effect"
        case EarlyResultGiven(tool=tool):
            return f"{tool} states its result early"
        case SpeculationAdopted(tool=tool, hidden_s=hidden):
            return f"{tool} is asked for: a hit, {hidden:.2f} s ahead"
        case SpeculationDiscarded(tool=tool, reason=reason):
            return f"{tool} is discarded: {reason}"
        case CallEnded(tool=tool):
            return f"{tool} has ended"
        case _:
            return None


_FIGURES = (
    ("off", "off_s"),
    ("on", "on_s"),
    ("best", "bound_s"),
    ("hits", "hits"),
    ("misses", "misses"),
    ("hidden", "hidden_s"),
    ("wasted", "wasted_s"),
)


def _show(outcome: DemoOutcome, console: Console, *, real_model: bool) -> None:
    table = Table(
        title=f"Incident copilot, {outcome.model}",
        caption="off, on: seconds to the reply without and with speculation; best: what "
        "perfect prediction would reach",
    )
    table.add_column("message", ratio=1)
    for label, _ in _FIGURES:
        table.add_column(label, justify="right", no_wrap=True)
    for message in outcome.messages:
        table.add_row(message.text, *_cells(message))
    table.add_section()
    table.add_row("all", *_cells(outcome), style="bold")
    console.print(table)
    console.print(
        f"{outcome.speedup:.2f} times as fast: {outcome.on_s:.1f} s instead of "
        f"{outcome.off_s:.1f} s. The best possible is {outcome.bound_speedup:.2f} times."
    )
    sames = (
        ("messages", outcome.identical_messages),
        ("database rows", outcome.identical_rows),
        ("posted chat messages", outcome.identical_posts),
    )
    if outcome.identical:
        console.print("Identical: messages, database rows, posted chat messages.")
        return
    differing = ", ".join(name for name, same in sames if not same)
    console.print(f"Not identical: {differing}.", style="red")
    if real_model:
        console.print(
            "A real model may answer otherwise each time, so this need not be headstart."
        )


def _cells(figures: MessageOutcome | DemoOutcome) -> list[str]:
    values = (getattr(figures, name) for _, name in _FIGURES)
    return [f"{v:.2f}" if isinstance(v, float) else str(v) for v in values]
