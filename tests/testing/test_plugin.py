"""The plugin gives its fixtures to pytest, and loads nothing before they are used."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import _headstart_pytest

ROOT = Path(__file__).parents[2]
SOURCE = Path(_headstart_pytest.__file__).parent

CONFTEST = """
import pytest

outbox = []

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.fixture
def headstart_observers():
    return lambda: outbox

@pytest.fixture
def headstart_reset():
    return outbox.clear
"""

TOOLS = """
import pytest
from conftest import outbox
from headstart import ToolContext, tool

@tool(effect="gated")
async def careful(ctx: ToolContext, text: str) -> str:
    await ctx.barrier.wait()
    outbox.append(text)
    return "posted"

@tool(effect="gated")
async def careless(ctx: ToolContext, text: str) -> str:
    outbox.append(text)
    await ctx.barrier.wait()
    return "posted"
"""


def run_pytest(folder, tests, *arguments):
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(TOOLS + tests)
    # By its name, as it may not be installed here; and once, if it is.
    plugins = ["-p", "no:headstart", "-p", "_headstart_pytest", "-p", "anyio"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *plugins]
    return subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(SOURCE), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.timeout(60)
def test_a_users_test_needs_nothing_but_the_fixture(tmp_path):
    tests = """
@pytest.mark.anyio
async def test_careful(assert_speculation_safe):
    await assert_speculation_safe(careful, {"text": "hi"})

@pytest.mark.anyio
async def test_careless(assert_speculation_safe):
    await assert_speculation_safe(careless, {"text": "hi"})

def test_lab(speculation_lab):
    script = [[("careful", {"text": "hi"})], "Done."]
    assert speculation_lab(tools=[careful], script=script).run(5).seeds == 5

@pytest.mark.anyio
async def test_sink(headstart_http_sink):
    assert headstart_http_sink.url.startswith("http://127.0.0.1:")
    assert await headstart_http_sink.snapshot() == []
"""
    ended = run_pytest(tmp_path, tests)
    assert "1 failed, 3 passed" in ended.stdout, ended.stdout + ended.stderr
    assert "The tool 'careless' is not shown to be safe" in ended.stdout
    assert "phase:  held" in ended.stdout
    # The report is what is read, and not the kit's own frames.
    assert "_trials.py" not in ended.stdout
    assert "_safety.py" not in ended.stdout


@pytest.mark.timeout(60)
def test_without_observers_the_fixture_says_what_to_do(tmp_path):
    tests = """
@pytest.fixture
def headstart_observers():
    return []

@pytest.mark.anyio
async def test_careful(assert_speculation_safe):
    await assert_speculation_safe(careful, {"text": "hi"})
"""
    ended = run_pytest(tmp_path, tests)
    assert "1 failed" in ended.stdout
    assert "With nothing observed, nothing is seen" in ended.stdout


@pytest.mark.timeout(60)
def test_the_plugin_loads_nothing_of_headstart_by_itself(tmp_path):
    program = (
        "import sys; import _headstart_pytest; "
        "print([name for name in sys.modules if name.startswith('headstart')])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == "[]\n"


def test_the_package_announces_the_plugin():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["pytest11"] == {
        "headstart": "_headstart_pytest"
    }
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "src/_headstart_pytest.py" in wheel["only-include"]
