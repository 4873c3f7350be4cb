"""Run random programs: `python -m tests.simulation --programs 1000 --first 0`."""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time

from .running import describe, run_seeds
from .statistics import Statistics

CHUNK = 20
SHOWN = 20
PATIENCE = 60
"""Real seconds that a program may take: it may be in an endless loop."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--every", type=int, default=1, help="only each n-th seed")
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--seed", type=int, help="repeat this one, with its traceback")
    parser.add_argument("--fail-fast", action="store_true")
    parser.add_argument("--statistics", action="store_true")
    options = parser.parse_args()
    if options.seed is not None:
        for error in run_seeds([options.seed], watch=watch).values():
            raise error
        return 0
    if options.programs is None:
        options.programs = 1000 if options.seconds == math.inf else sys.maxsize
    return run_many(options)


def run_many(options: argparse.Namespace) -> int:
    began, failed, ran = time.perf_counter(), 0, 0
    with Statistics() as statistics:
        while ran < options.programs and time.perf_counter() - began < options.seconds:
            count = min(CHUNK, options.programs - ran)
            first = options.first + ran * options.every
            seeds = range(first, first + count * options.every, options.every)
            failures = run_seeds(seeds, watch=watch, keep=statistics.add)
            for seed, error in failures.items():
                failed += 1
                if failed <= SHOWN:
                    print(describe(seed, error), flush=True)
            ran += count
            if failed and options.fail_fast:
                break
    signal.alarm(0)
    spent = time.perf_counter() - began
    print(f"{ran} programs in {spent:.1f} s, {failed} failures")
    if options.statistics:
        print(statistics)
    return 1 if failed else 0


def watch(seed: int) -> None:
    """Give up, and say where, if a program takes too long."""

    def give_up(*_: object) -> None:
        msg = f"The program of seed {seed} goes on for {PATIENCE} s."
        raise SystemExit(msg)

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE)


if __name__ == "__main__":
    raise SystemExit(main())
