"""Imports point down the layers; importing headstart loads next to nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import headstart

# The sources, and not an installed copy of them.
SOURCE = Path(__file__).parents[1] / "src" / "headstart"

LAYERS = {
    "_errors": 0,
    "_calls": 1,
    "_messages": 1,
    "_events": 1,
    "_barrier": 1,
    "_resources": 1,
    "_threads": 1,
    "_clock": 1,
    "_chat_answer": 3,
    "_tools": 2,
    "_policy": 2,
    "_lifecycle": 2,
    "predictors": 3,
    "_thread_guard": 3,
    "_seams": 3,
    "_mcp_trust": 3,
    "_tripwire": 4,
    "_call_speculation": 4,
    "_result_speculation": 4,
    "_session": 5,
    "_turn": 5,
    "_turns": 5,
    "_launches": 5,
    "_branches": 5,
    "_answer_stream": 5,
    "_slots": 5,
    "_predicting": 5,
    "_agent": 5,
    "models": 6,
    "adapters": 6,
    "effects": 6,
    "store": 6,
    "telemetry": 6,
    "report": 6,
    "testing": 6,
    "demo": 7,
    "replay": 7,
    "evaluate": 7,
    "cli": 8,
    "cli_demo": 8,
    "cli_evaluate": 8,
    "cli_learn": 8,
    "cli_replay": 8,
    "__main__": 8,
}
PACKAGE = 5.5  # `headstart` itself: it shows what stands below, to whoever is above
LONERS = 6  # in this layer nobody imports a neighbour

FILES = sorted(SOURCE.rglob("*.py"))
MAY_LOAD = {
    "headstart",
    "anyio",
    "pydantic",
    # and what those two are made of
    "annotated_types",
    "exceptiongroup",
    "idna",
    "pydantic_core",
    "sniffio",
    "typing_extensions",
    "typing_inspection",
}


def module_of(path):
    """The first name under `headstart` that a file belongs to."""
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def layer_of(module):
    if module == "__init__":
        return PACKAGE
    assert module in LAYERS, f"{module!r} has no layer: add it to the table."
    return LAYERS[module]


def imports_of(path):
    """Every module of headstart that a file imports, wherever in it that stands."""
    package = ("headstart", *path.relative_to(SOURCE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            start += tuple(node.module.split(".")) if node.module else ()
            # `from headstart import x` may name a module or what the package shows.
            names = [(*start, alias.name) for alias in node.names]
        else:
            continue
        for name in names:
            if name[0] == "headstart":
                known = len(name) > 1 and name[1] in LAYERS
                yield (name[1] if known else "__init__"), node.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path):
    module = module_of(path)
    layer = layer_of(module)
    for imported, line in imports_of(path):
        if imported == module:
            continue
        below = layer_of(imported)
        sideways = below == layer and layer != LONERS
        assert below < layer or sideways, (
            f"{path.name}:{line}: {module} (layer {layer}) imports "
            f"{imported} (layer {below})"
        )


def test_no_module_has_a_name_that_says_nothing():
    empty = {"utils", "helpers", "base", "core", "manager"}
    assert [path for path in FILES if path.stem.strip("_") in empty] == []


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if "__all__" in path.read_text()],
    ids=lambda path: str(path.relative_to(SOURCE)),
)
def test_the_names_of_a_module_are_a_sorted_tuple(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
            assert isinstance(names, tuple)
            assert list(names) == sorted(names, key=lambda n: (not n.isupper(), n))


@pytest.mark.parametrize("module", ["headstart", "headstart.testing"])
def test_importing_loads_the_standard_library_anyio_and_pydantic_only(module):
    program = (
        "import sys; before = set(sys.modules); "
        f"sys.path.insert(0, {str(Path(headstart.__file__).parents[1])!r}); "
        f"import {module}; print(*(set(sys.modules) - before))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in ended.stdout.split()}
    # The standard library's own, and named for the platform.
    loaded = {name for name in loaded if not name.startswith("_sysconfigdata")}
    assert loaded - sys.stdlib_module_names <= MAY_LOAD
    assert "headstart" in loaded
