"""Run random programs: `python -m tests.simulation --programs 1000 --first 0`."""

from __future__ import annotations

import argparse
import logging
import time
import traceback
from pathlib import Path

from headstart.testing import run_virtual

from .check import check_all


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, help="repeat this one, with its traceback")
    options = parser.parse_args()
    if options.seed is not None:
        run_virtual(check_all, options.seed)
        return 0
    logging.disable(logging.CRITICAL)
    began, failures, seed = time.perf_counter(), [], options.first
    while seed < options.first + options.programs:
        if time.perf_counter() - began > options.seconds:
            break
        try:
            run_virtual(check_all, seed)
        except Exception as error:
            failures.append(seed)
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            print(f"seed {seed}: {type(error).__name__}: {str(error)[:150]} ({where})")
        seed += 1
    spent = time.perf_counter() - began
    print(f"{seed - options.first} programs in {spent:.1f} s, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
