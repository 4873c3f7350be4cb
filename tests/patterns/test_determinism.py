from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from headstart.predictors import LearnedResults, PatternPredictor
from tests.patterns.scene import support_run, teach

patterns = PatternPredictor(results=LearnedResults())
for number in range(12):
    teach(patterns, support_run(number, parallel=number % 3 == 0))
patterns.settle()
patterns.save(sys.argv[1])
"""


def learn_in_a_process(path: Path, seed: str) -> bytes:
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)],
        check=True,
        cwd=root,
        timeout=60,
        env={**os.environ, "PYTHONHASHSEED": seed},
    )
    return path.read_bytes()


def test_the_same_runs_give_the_same_file_in_every_process(tmp_path: Path):
    first = learn_in_a_process(tmp_path / "first.json", "1")
    assert len(first) > 1_000
    assert learn_in_a_process(tmp_path / "second.json", "2") == first
