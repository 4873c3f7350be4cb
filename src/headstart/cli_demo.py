"""`headstart demo`: an incident copilot without and with speculation, side by side."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
import click
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ._errors import HeadstartError
from ._events import (
    CallEnded,
    CallLaunched,
    EffectHeld,
    Event,
    SpeculationAdopted,
    SpeculationDiscarded,
    TurnConfirmed,
    TurnStarted,
)

if TYPE_CHECKING:
    from .demo import DemoOutcome, MessageOutcome, Progress

_ARMS = {"off": "without speculation", "on": "with speculation"}
_REFRESH_S = 0.1


@click.command()
@click.option("--base-url", help="A real endpoint that speaks OpenAI's protocol.")
@click.option(
    "--model",
    help="A real model. Its key is read from OPENAI_API_KEY, and what it answers may "
    "differ from run to run, whatever headstart does.",
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
        from .demo import Latencies, run_demo
    except ImportError as error:
        raise click.ClickException(str(error)) from error

    view = _View()

    async def run() -> DemoOutcome:
        with view.open() as refresh:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(refresh)
                outcome = await run_demo(
                    latencies=Latencies().faster(speed),
                    base_url=base_url,
                    model=model,
                    on_progress=view.receive,
                )
                tasks.cancel_scope.cancel()
        return outcome

    try:
        outcome = anyio.run(run)
    except* HeadstartError as errors:
        raise click.ClickException(str(_first(errors))) from errors
    if as_json:
        click.echo(json.dumps(outcome.to_dict()))
    else:
        _show(outcome, Console())
    ctx.exit(0 if outcome.identical else 1)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
