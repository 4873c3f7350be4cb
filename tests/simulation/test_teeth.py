"""The same programs, run by an engine that isolates nothing, are seen to differ.

So that the comparison with the oracle is known to have teeth.
"""

import pytest

from headstart import WriteBarrier, _call_speculation
from headstart._launches import LaunchPool

from .running import run_seeds

PROGRAMS = 200
ENOUGH = 3


def hold_nothing(monkeypatch):
    """Launched writes go ahead at once."""

    def open_gate(*_):
        gate = WriteBarrier()
        gate.flush()
        return gate

    monkeypatch.setattr(_call_speculation, "gated_by", open_gate)


def adopt_what_is_stale(monkeypatch):
    """What was read before a write is used after it."""

    def begin_write(pool, slot):
        pool._open_writes.append(slot)
        return []

    monkeypatch.setattr(LaunchPool, "begin_write", begin_write)
    monkeypatch.setattr(LaunchPool, "_is_blocked", lambda *_: False)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("break_engine", "symptoms"),
    [
        (hold_nothing, ["a guess has had an effect"]),
        (adopt_what_is_stale, ["other effects", "another transcript"]),
    ],
)
def test_an_engine_that_isolates_nothing_is_seen_to_diverge(
    break_engine, symptoms, monkeypatch
):
    break_engine(monkeypatch)
    found = 0
    for first in range(0, PROGRAMS, 10):
        errors = run_seeds(range(first, first + 10)).values()
        found += sum(str(error) in symptoms for error in errors)
        if found >= ENOUGH:
            return
    pytest.fail(f"Only {found} of {PROGRAMS} programs show {symptoms}.")
