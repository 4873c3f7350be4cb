"""Runs programs by their seeds, on both event loops, in virtual time."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path

import anyio
import trio
import trio.testing

from headstart.testing import VirtualLoop

from .check import Outcome, check_all

FOREVER = 1e6
"""Virtual seconds after which a program is taken to wait for what never comes."""


def uses_trio(seed: int) -> bool:
    """A quarter of the programs: there, tasks take turns at random, by the seed."""
    return seed % 4 == 3


def run_seeds(
    seeds: Iterable[int],
    *,
    watch: Callable[[int], None] = lambda _: None,
    keep: Callable[[Outcome], None] = lambda _: None,
) -> dict[int, BaseException]:
    """Check programs, those of one event loop after another in the same one.

    Args:
        seeds: Which programs.
        watch: Called with each seed before its program runs.
        keep: Called with how each run with speculation went.

    Returns:
        What is wrong, by seed.
    """
    failures: dict[int, BaseException] = {}

    async def run(chosen: list[int]) -> None:
        for seed in chosen:
            watch(seed)
            trio._core._run._r.seed(seed)
            try:
                for outcome in await _run_one(seed):
                    keep(outcome)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                failures[seed] = error

    seeds = list(seeds)
    with _quiet():
        if chosen := [seed for seed in seeds if not uses_trio(seed)]:
            anyio.run(run, chosen, backend_options={"loop_factory": VirtualLoop})
        if chosen := [seed for seed in seeds if uses_trio(seed)]:
            clock = trio.testing.MockClock(autojump_threshold=0)
            anyio.run(run, chosen, backend="trio", backend_options={"clock": clock})
    return failures


async def _run_one(seed: int) -> list[Outcome]:
    before = len(anyio.get_running_tasks())
    with anyio.fail_after(FOREVER):
        outcomes = await check_all(seed)
    assert len(anyio.get_running_tasks()) == before, "a task is left"
    return outcomes


def describe(seed: int, error: BaseException) -> str:
    """One line on a failure, with the command that repeats it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(last.filename).name}:{last.lineno}"
    what = f"{type(error).__name__}: {str(error)[:150]}"
    return f"{what} ({where}): python -m tests.simulation --seed {seed}"


@contextmanager
def _quiet():
    """Log nothing, and let trio's order of tasks follow from the seed."""
    disabled, sorts = logging.root.manager.disable, trio._core._run
    allowed = sorts._ALLOW_DETERMINISTIC_SCHEDULING
    logging.disable(logging.CRITICAL)
    sorts._ALLOW_DETERMINISTIC_SCHEDULING = True
    try:
        yield
    finally:
        logging.disable(disabled)
        sorts._ALLOW_DETERMINISTIC_SCHEDULING = allowed
