"""Random programs do with headstart what they do without, sooner or as soon.

`HEADSTART_PROGRAMS` says how many; `python -m tests.simulation` and `scripts/soak` run
others, and more.
"""

import os

import pytest

from .running import describe, run_seeds

PROGRAMS = int(os.environ.get("HEADSTART_PROGRAMS", "1000"))
CHUNK = 50


@pytest.mark.requirement("engine:same-transcript")
@pytest.mark.requirement("engine:same-effects")
@pytest.mark.requirement("engine:never-slower")
@pytest.mark.requirement("engine:once")
@pytest.mark.requirement("engine:no-stale-read")
@pytest.mark.requirement("engine:contained")
@pytest.mark.requirement("engine:invisible")
@pytest.mark.requirement("cancel:outside-wins")
@pytest.mark.requirement("cancel:no-orphans")
@pytest.mark.requirement("barrier:no-effect-before-flush")
@pytest.mark.requirement("barrier:fail-closed")
@pytest.mark.requirement("policy:never-over-budget")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("first", range(0, PROGRAMS, CHUNK))
def test_random_programs_do_the_same_as_without_headstart(first):
    failures = run_seeds(range(first, min(first + CHUNK, PROGRAMS)))
    assert [describe(seed, error) for seed, error in failures.items()] == []
