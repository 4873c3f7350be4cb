"""What the tripwire costs: `python benchmarks/tripwire.py [--rounds 15]`.

Microseconds of opening and closing a file to read, and of an audit event that nobody
watches, in processes of their own: without the hook, with it off, armed outside of a
call, and armed in a call whose effects are held (where a seam lets pass what it does). The median of the
rounds; the four take turns.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

STATES = ("without", "off", "armed", "in a call")
PROGRAM = """
import sys, timeit
sys.path.insert(0, {source!r})
import headstart
from headstart._barrier import WriteBarrier, running_in
from headstart.testing import tripwire
state = {state!r}
if state == "off":
    with tripwire():
        pass
elif state != "without":
    armed = tripwire()
    armed.__enter__()
if state == "in a call":
    barrier = WriteBarrier()
    running = running_in(barrier)
    running.__enter__()
for work, number in (("open('/dev/null').close()", 20000), ("audit('any')", 100000)):
    best = min(timeit.repeat(work, "from sys import audit", repeat=5, number=number))
    print(best / number * 1e6)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="What the tripwire costs.")
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    source = str(Path(__file__).parents[1] / "src")
    figures: dict[str, list[list[float]]] = {state: [] for state in STATES}
    for number in range(rounds):
        for state in STATES[:: -1 if number % 2 else 1]:
            program = PROGRAM.format(source=source, state=state)
            ended = subprocess.run(
                [sys.executable, "-c", program],
                check=True,
                capture_output=True,
                text=True,
            )
            figures[state].append([float(line) for line in ended.stdout.split()])
    for state, rows in figures.items():
        opening, other = (
            statistics.median(column) for column in zip(*rows, strict=True)
        )
        print(f"{state:10} {opening:8.3f} us to open {other:8.3f} us for another event")


if __name__ == "__main__":
    main()
