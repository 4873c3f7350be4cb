"""Runs the mutants of `tests/mutants.py`: `scripts/mutants [WORD ...]`.

Each is a copy of `src` without one guard, and its killer has to fail on it. With words,
only the mutants whose guard or file has one of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .mutants import MUTANTS, SIMULATION, Mutant

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
TIMEOUT = 300
"""Real seconds after which a mutant counts as killed: it hangs."""


def survives(mutant: Mutant) -> bool:
    """Whether the killer passes on a copy of the source without the guard."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__"))
        file = source / "headstart" / mutant.file
        text = file.read_text()
        assert text.count(mutant.old) == 1, mutant.guard
        file.write_text(text.replace(mutant.old, mutant.new))
        return passes(mutant.killer, source)


def passes(killer: str, source: Path) -> bool:
    """Run the killer on the source in `source`."""
    if killer == SIMULATION:
        arguments = ["tests.simulation", "--programs", "300", "--fail-fast"]
    else:
        arguments = ["pytest", "-qx", "-p", "no:cacheprovider", killer]
    environment = {
        **os.environ,
        "PYTHONPATH": str(source),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def main(words: list[str]) -> int:
    chosen = [
        mutant
        for mutant in MUTANTS
        if not words or any(w in mutant.guard or w in mutant.file for w in words)
    ]
    survivors = 0
    for mutant in chosen:
        alive = survives(mutant)
        survivors += alive
        verdict = "SURVIVED" if alive else "killed"
        print(f"{verdict:9} {mutant.requirement:30} {mutant.guard} ({mutant.killer})")
        sys.stdout.flush()
    print(f"{len(chosen)} mutants, {survivors} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
