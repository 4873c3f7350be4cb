"""Runs programs by their seeds, on both event loops, in virtual time."""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import anyio
import trio

from .check import Outcome, check_all
from .loops import BareClock, BareLoop, seeded_scopes
from .statistics import Statistics
from .watching import stop_watching, watch

FOREVER = 1e6
"""Virtual seconds after which a program is taken to wait for what never comes."""


def uses_trio(seed: int) -> bool:
    """A quarter of the programs: there, tasks take turns at random, by the seed."""
    return seed % 4 == 3


@dataclass
class Ran:
    """How a chunk of programs went."""

    programs: int
    failures: list[str]  # described
    counts: Counter[str]


def run_chunks(
    chunks: Iterable[Iterable[int]], *, jobs: int = 1, counting: bool = False
) -> Iterator[Ran]:
    """Run chunks of programs in so many processes, and say how each went as it ends.

    Whoever stops iterating waits for what has been started, and no more is.
    """
    run = partial(run_chunk, counting=counting)
    if jobs == 1:
        yield from map(run, chunks)
        return
    chunks = iter(chunks)
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawning) as pool:
        running = {pool.submit(run, chunk) for chunk in islice(chunks, 2 * jobs)}
        while running:
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                running |= {pool.submit(run, chunk) for chunk in islice(chunks, 1)}
                yield future.result()


def run_chunk(seeds: Iterable[int], *, counting: bool = False) -> Ran:
    """Run programs, and give up the whole process if one does not end."""
    seeds = list(seeds)
    statistics = Statistics()
    if counting:
        with statistics:
            failures = run_seeds(seeds, watch=watch, keep=statistics.add)
    else:
        failures = run_seeds(seeds, watch=watch)
    stop_watching()
    described = [describe(seed, error) for seed, error in failures.items()]
    return Ran(len(seeds), described, statistics.counts)


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
    clock = BareClock()

    async def run(chosen: list[int]) -> None:
        for seed in chosen:
            watch(seed)
            if uses_trio(seed):
                trio._core._run._r.seed(seed)
                clock.start_clock()
            else:
                asyncio.get_running_loop().seed(seed)
            try:
                for outcome in await _run_one(seed):
                    keep(outcome)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                failures[seed] = error

    seeds = list(seeds)
    with _quiet(), _rarely_collecting(), seeded_scopes():
        if chosen := [seed for seed in seeds if not uses_trio(seed)]:
            anyio.run(run, chosen, backend_options={"loop_factory": BareLoop})
        if chosen := [seed for seed in seeds if uses_trio(seed)]:
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


@contextmanager
def _rarely_collecting():
    """Collect garbage about once a program: as often as usual takes a tenth longer."""
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(30_000, 5, 5)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
