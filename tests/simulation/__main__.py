"""Run random programs: `python -m tests.simulation --programs 1000 --first 0`."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

from .running import run_chunks, run_seeds
from .statistics import table
from .watching import watch

CHUNK = 20
SHOWN = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
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
    began, failed, programs = time.perf_counter(), 0, 0
    counts: Counter[str] = Counter()

    def draw_chunks() -> Iterator[range]:
        last = options.first + options.programs
        for first in range(options.first, last, CHUNK):
            if time.perf_counter() - began >= options.seconds:
                return
            yield range(first, min(first + CHUNK, last))

    drawn, counting = draw_chunks(), options.statistics
    with closing(run_chunks(drawn, jobs=options.jobs, counting=counting)) as chunks:
        for ran in chunks:
            for line in ran.failures[: max(0, SHOWN - failed)]:
                print(line, flush=True)
            failed += len(ran.failures)
            programs += ran.programs
            counts += ran.counts
            if failed and options.fail_fast:
                break
    spent = time.perf_counter() - began
    print(f"{programs} programs in {spent:.1f} s, {failed} failures")
    if options.statistics:
        print(table(counts))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
