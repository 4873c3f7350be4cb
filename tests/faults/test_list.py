"""Every fault of the list has a test, or a reason for having none."""

import ast
import functools
import re
import runpy
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
LIST = runpy.run_path(str(HERE / "__init__.py"))


@functools.cache
def names_of_tests(path):
    """The names of the test functions of a file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, kinds)]


def numbers_here(kind):
    """The numbers that the names of the tests beside this one carry."""
    names = [name for path in HERE.glob("test_*.py") for name in names_of_tests(path)]
    found = (re.match(rf"test_{kind}_(\d+)_", name) for name in names)
    return {int(match[1]) for match in found if match}


def test_every_fault_stands_in_exactly_one_place():
    places = sorted(
        [*numbers_here("fault"), *LIST["COVERED"], *LIST["NOT_YET"]],
    )
    assert places == sorted(LIST["FAULTS"])


def test_every_way_out_of_asyncio_stands_in_exactly_one_place():
    places = sorted([*numbers_here("escape"), *LIST["COVERED_ESCAPES"]])
    assert places == sorted(LIST["ESCAPES"])


@pytest.mark.parametrize("place", ["COVERED", "COVERED_ESCAPES"])
def test_every_test_that_is_named_exists(place):
    nodes = [node for nodes in LIST[place].values() for node in nodes]
    assert nodes
    for node in nodes:
        path, _, name = node.partition("::")
        assert name in names_of_tests(ROOT / path), node


def test_every_fault_without_a_test_says_why():
    assert all(reason.endswith(".") for reason in LIST["NOT_YET"].values())
