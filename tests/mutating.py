"""Runs the mutants of `tests/mutants.py`: `scripts/mutants [WORD ...]`.

Each is a copy of `src` without one guard, and its killer has to fail on it. With words,
only the mutants whose guard, file or killer has one of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .mutants import MUTANTS, SIMULATION, Mutant

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
PATIENCE = 5
"""A mutant hangs, and so is killed, if its killer takes so many times as long with it ..."""
LEAST_S = 60.0
"""... and at least so many seconds."""


def judge(mutant: Mutant, timeout: float) -> str:
    """Run the killer on a copy of the source without the guard."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(SOURCE, source, ignore=ignored)
        file = source / "headstart" / mutant.file
        text = file.read_text()
        if text.count(mutant.old) != 1:
            return "ROTTEN"
        file.write_text(text.replace(mutant.old, mutant.new))
        return "SURVIVED" if passes(mutant.killer, source, timeout) else "killed"


def passes(killer: str, source: Path, timeout: float | None = None) -> bool:
    """Run the killer on the source in `source`, for `timeout` seconds at most."""
    if killer == SIMULATION:
        arguments = ["tests.simulation", "--programs", "3000", "--fail-fast"]
    else:
        arguments = ["pytest", "-qx", "-p", "no:cacheprovider", killer]
    settings = {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env={**os.environ, **settings},
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def time_killer(killer: str) -> float | None:
    """How long to wait for a killer at most; `None` if it fails without any mutant."""
    began = time.perf_counter()
    if not passes(killer, SOURCE):
        return None
    return max(LEAST_S, PATIENCE * (time.perf_counter() - began))


def main(words: list[str]) -> int:
    chosen = [
        mutant
        for mutant in MUTANTS
        if not words
        or any(w in f"{mutant.guard} {mutant.file} {mutant.killer}" for w in words)
    ]
    killers = sorted({mutant.killer for mutant in chosen})
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # of processes that they wait for
        timeouts = dict(zip(killers, pool.map(time_killer, killers), strict=True))
        useless = [killer for killer, timeout in timeouts.items() if timeout is None]
        for killer in useless:
            print(f"{killer} fails on the source as it is, so it can kill nothing.")
        if useless:
            return 1
        verdicts = pool.map(lambda m: judge(m, timeouts[m.killer] or LEAST_S), chosen)
        left = 0
        for mutant, verdict in zip(chosen, verdicts, strict=True):
            left += verdict != "killed"
            line = f"{verdict:9}{mutant.requirement:31}{mutant.guard} ({mutant.killer})"
            print(line, flush=True)
    print(f"{len(chosen)} mutants, {len(chosen) - left} killed")
    return 1 if left else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
