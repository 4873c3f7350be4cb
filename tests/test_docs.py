"""The examples of the README and of docs/ run, and docs/ says what the code says."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from pytest_examples import CodeExample, EvalExample, find_examples

from headstart._lifecycle import diagram

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WRITTEN = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
DESIGN = ROOT / "docs" / "design.md"
LINK = re.compile(r"\]\(([^)#\s]+?)(?:#[^)]*)?\)")


def examples_of(page: Path) -> list[CodeExample]:
    return [
        example
        for example in find_examples(page)
        if example.prefix_settings().get("test") != "skip"
    ]


def constants(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tests" / name))


@pytest.mark.timeout(60)  # importing an SDK alone takes seconds
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if examples_of(page)],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_examples_of_a_page_run_from_top_to_bottom_and_print_what_it_says(
    page: Path, eval_example: EvalExample, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # restore it
    names: dict[str, Any] = {}
    for example in examples_of(page):
        names |= eval_example.run_print_check(example, module_globals=names)


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_to_files(page: Path):
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_has_the_two_commands_that_ci_runs_on_a_line_each():
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"<!-- command: (\w+) -->\n```sh\n(.+)\n```\n", text)
    assert [name for name, _ in commands] == ["demo", "tests"]
    assert all("pip install" in command for _, command in commands)


def test_the_design_page_shows_the_lifecycle_as_its_table_says():
    assert f"```mermaid\n{diagram()}\n```" in DESIGN.read_text()


def test_the_design_page_states_every_promise_by_its_id():
    rows = re.findall(
        r"^\| `(\w+:[\w-]+)` \| (.+) \|$", DESIGN.read_text(), re.MULTILINE
    )
    assert dict(rows) == constants("requirements.py")["REQUIREMENTS"]


def test_the_table_of_layers_is_the_one_that_the_imports_are_held_to():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| L(\d) \| (.+) \|$", text, re.MULTILINE)
    stated = {
        name: int(layer)
        for layer, names in rows
        for name in re.findall(r"`(\w+)/?`", names)
    }
    assert stated == constants("test_layers.py")["LAYERS"]
