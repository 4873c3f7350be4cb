"""Every promise has a test, and every mark names a promise."""

import ast
import functools
import runpy
from pathlib import Path

TESTS = Path(__file__).parent
MANIFEST = runpy.run_path(str(TESTS / "requirements.py"))
REQUIREMENTS: dict[str, str] = MANIFEST["REQUIREMENTS"]
DEFERRED: dict[str, str] = MANIFEST["DEFERRED"]


@functools.cache
def marks():
    """Each requirement mark in the tests: its ID with the place where it stands."""
    found = []
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and ast.unparse(node.func) == "pytest.mark.requirement"
            ):
                (argument,) = node.args
                assert isinstance(argument, ast.Constant), f"{path.name}:{node.lineno}"
                found.append((argument.value, f"{path.name}:{node.lineno}"))
    return found


def test_every_promise_has_a_test_or_a_reason_for_having_none():
    covered = {identifier for identifier, _ in marks()}
    assert sorted(REQUIREMENTS.keys() - covered - DEFERRED.keys()) == []


def test_every_mark_names_a_promise():
    unknown = [mark for mark in marks() if mark[0] not in REQUIREMENTS]
    assert unknown == []


def test_no_promise_is_both_tested_and_deferred():
    covered = {identifier for identifier, _ in marks()}
    assert sorted(covered & DEFERRED.keys()) == []


def test_every_deferred_promise_exists_and_says_why():
    assert DEFERRED.keys() <= REQUIREMENTS.keys()
    assert all(reason.endswith(".") for reason in DEFERRED.values())
