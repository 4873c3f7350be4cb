"""Random programs do with headstart what they do without, sooner or as soon.

`HEADSTART_PROGRAMS` says how many; `scripts/simulate` and `scripts/soak` run more, and
`python -m tests.simulation --seed` repeats one.
"""

import os
from collections import defaultdict
from dataclasses import asdict

import pytest

from .running import describe, run_seeds

PROGRAMS = int(os.environ.get("HEADSTART_PROGRAMS", "1000"))
CHUNK = 50
SAMPLE = 100


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


@pytest.mark.timeout(120)
def test_a_program_does_alone_what_it_does_among_others():
    among = _record(range(SAMPLE), at_once=SAMPLE)
    assert _record(range(SAMPLE), at_once=1) == among


def _record(seeds, *, at_once):
    """What happens in the runs of each program, with so many in one event loop."""
    happened = defaultdict(list)
    current = None

    def watch(seed):
        nonlocal current
        current = seed

    def keep(outcome):
        events = [asdict(event) for event in outcome.log.events]
        for event in events:  # these are numbered through the whole process
            event.pop("session"), event.pop("span", None)
        happened[current].append((outcome.world.effects, outcome.seconds, events))

    for first in range(0, len(seeds), at_once):
        chosen = seeds[first : first + at_once]
        assert not run_seeds(chosen, watch=watch, keep=keep)
    return happened
