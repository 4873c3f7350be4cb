"""Both event loops in virtual time, and nothing left behind by any test."""

from __future__ import annotations

import gc
import logging
import threading

import pytest
import trio.testing
from hypothesis import HealthCheck, settings

from headstart._threads import disowned_threads
from headstart.testing import VirtualLoop

settings.register_profile(
    "headstart", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("headstart")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each async test its event loops, unless it chooses its own."""
    if "anyio_backend" not in metafunc.fixturenames:
        return
    chosen = metafunc.definition.iter_markers("parametrize")
    if any("anyio_backend" in str(marker.args[0]) for marker in chosen):
        return
    real = metafunc.definition.get_closest_marker("real_time")
    backends = ["asyncio-real"] if real else ["asyncio", "trio"]
    metafunc.parametrize("anyio_backend", backends, indirect=True)


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    """The event loop of the test: by default each of both, in virtual time."""
    match request.param:
        case "asyncio":
            return "asyncio", {"loop_factory": VirtualLoop}
        case "trio":
            return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}
        case "asyncio-real":
            return "asyncio", {}
        case other:
            raise ValueError(other)


def _log_settings() -> list[object]:
    """What decides whether our warnings reach anybody."""
    root, ours = logging.getLogger(), logging.getLogger("headstart")
    settings = [(each.level, each.disabled, each.propagate) for each in (root, ours)]
    return [*settings, root.manager.disable]


@pytest.fixture(autouse=True)
def leaves_nothing_behind():
    """Fail a test that leaves a thread running, or drops something unfinished."""
    before = set(threading.enumerate())
    disowned = disowned_threads()
    logs = _log_settings()
    yield
    assert _log_settings() == logs, "the settings of logging were changed"
    gc.collect(1)  # what was dropped in a cycle warns now, in the test that dropped it
    left = [
        thread
        for thread in set(threading.enumerate()) - before
        if not thread.name.startswith("Trio thread")  # its cache keeps idle ones
    ]
    for thread in left:
        thread._started.wait(5)  # a thread that is being started is listed already
        thread.join(5)
    assert not [thread.name for thread in left if thread.is_alive()]
    assert disowned_threads() == disowned
