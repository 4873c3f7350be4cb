"""The tree of errors: as drawn, and able to cross a process boundary."""

import copy
import inspect
import pickle
import re

import pytest

from headstart import _errors

ERRORS = {
    name: kind
    for name, kind in vars(_errors).items()
    if inspect.isclass(kind)
    and issubclass(kind, BaseException)
    and kind.__module__ == _errors.__name__
}
EXAMPLES = {
    "ToolDefinitionError": {"tool": "get_incident"},
    "WriteDenied": {"barrier": "write", "denied_by": "turn", "reason": "no"},
    "SpeculationError": {"reason": "late"},
    "PredictorError": {"reason": "arguments"},
    "BudgetExceeded": {"reason": "in flight"},
    "ModelError": {"status": 429},
    "TraceFormatError": {"line": 7},
}


def drawn():
    """The tree in the docstring, as pairs of an error's name and its parent's."""
    tree = _errors.__doc__.split("```")[1]
    above: list[str] = []
    for line in tree.strip().splitlines():
        indent, name, parent = re.match(r"( *)(\w+)(?:\((\w+)\))?", line).groups()
        depth = len(indent) // 2
        above[depth:] = [name]
        yield name, above[depth - 1] if depth else parent


def make(name):
    return ERRORS[name]("A sentence.", **EXAMPLES.get(name, {}))


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes():
    bases = {
        name: [base.__name__ for base in kind.__bases__ if base is not _errors.Pickling]
        for name, kind in ERRORS.items()
    }
    assert dict(drawn()) == {name: parent for name, (parent,) in bases.items()}


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("name", ERRORS)
def test_every_error_can_be_copied(name, duplicate):
    check_equal(duplicate(make(name)), make(name))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ERRORS)
def test_every_error_pickles_with_what_it_carries(name, protocol):
    check_equal(pickle.loads(pickle.dumps(make(name), protocol)), make(name))


def check_equal(error, expected):
    assert type(error) is type(expected)
    assert str(error) == str(expected) == "A sentence."
    assert error.args == expected.args
    assert vars(error) == vars(expected) == EXAMPLES.get(type(error).__name__, {})


def test_notes_survive_pickling():
    error = make("ModelError")
    error.add_note("While asking.")
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["While asking."]


def test_every_error_says_what_it_is():
    assert [name for name, kind in ERRORS.items() if not kind.__doc__] == []


def test_a_discarded_call_is_not_caught_by_except_exception():
    assert not issubclass(_errors.DiscardedError, Exception)


def test_details_that_are_not_known_have_defaults():
    assert _errors.ModelError("It failed.").status is None
    assert _errors.TraceFormatError("It is empty.").line is None
    assert _errors.SpeculationError("It is late.").reason == ""
