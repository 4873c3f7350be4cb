"""The list of mutants is in step with the source, and with the promises."""

import runpy
from pathlib import Path

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src" / "headstart"
MUTANTS = runpy.run_path(str(TESTS / "mutants.py"))["MUTANTS"]
REQUIREMENTS = runpy.run_path(str(TESTS / "requirements.py"))["REQUIREMENTS"]


def test_every_guard_stands_once_in_the_source():
    rotten = [
        mutant.guard
        for mutant in MUTANTS
        if (SOURCE / mutant.file).read_text().count(mutant.old) != 1
    ]
    assert rotten == []


def test_every_mutant_is_listed_once_and_is_one():
    guards = [mutant.guard for mutant in MUTANTS]
    assert len(set(guards)) == len(guards)
    assert [mutant.guard for mutant in MUTANTS if mutant.new == mutant.old] == []


def test_every_mutant_names_a_promise():
    assert {mutant.requirement for mutant in MUTANTS} <= REQUIREMENTS.keys()


def test_every_killer_is_there():
    killers = {mutant.killer for mutant in MUTANTS} - {"simulation"}
    assert [k for k in killers if not (TESTS.parent / k).is_file()] == []
