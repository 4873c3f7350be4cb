"""What a seam costs where it holds nothing.

    python benchmarks/seams.py [--rounds 30] [--json] [NAME ...]

No figure here is a test. Each module `seam_NAME.py` beside this one opens real servers and
gives pairs of the same work without and with the seam, outside of any tool call. The two
take turns in one process, a different one first in each round; a figure is the median
of `--rounds` rounds, in microseconds a piece of work, and the ratio the median of the
rounds' own ratios. Aim: at most 1.05.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import anyio

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

Work: TypeAlias = Callable[[], Awaitable[Any]]
NAMES = sorted(path.stem.removeprefix("seam_") for path in HERE.glob("seam_*.py"))


async def time_of(work: Work, times: int) -> float:
    gc.collect()
    began = time.perf_counter()
    for _ in range(times):
        await work()
    return (time.perf_counter() - began) / times * 1e6


async def compare(bare: Work, seamed: Work, rounds: int) -> dict[str, float]:
    """Microseconds of both, and their ratio."""
    once = max(await time_of(bare, 20), await time_of(seamed, 20))
    times = max(10, int(50_000 / once))  # about 50 ms a round
    figures: list[tuple[float, float]] = []
    for number in range(rounds):
        if number % 2:
            first = await time_of(seamed, times)
            figures.append((await time_of(bare, times), first))
        else:
            first = await time_of(bare, times)
            figures.append((first, await time_of(seamed, times)))
    return {
        "bare_us": statistics.median(bare for bare, _ in figures),
        "seam_us": statistics.median(seamed for _, seamed in figures),
        "ratio": statistics.median(seamed / bare for bare, seamed in figures),
    }


async def measure(names: list[str], rounds: int) -> dict[str, dict[str, float]]:
    figures: dict[str, dict[str, float]] = {}
    for name in names:
        async with contextlib.AsyncExitStack() as stack:
            pairs = await importlib.import_module(f"seam_{name}").open_pairs(stack)
            for work, (bare, seamed) in pairs.items():
                figures[f"{name}: {work}"] = await compare(bare, seamed, rounds)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description="What seams cost.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"no such seam: {', '.join(sorted(unknown))}")
    figures = anyio.run(measure, options.names or NAMES, options.rounds)
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    for name, row in figures.items():
        print(
            f"{name:40} {row['bare_us']:9.2f} us bare {row['seam_us']:9.2f} us"
            f" with the seam  x{row['ratio']:.3f}"
        )


if __name__ == "__main__":
    main()
