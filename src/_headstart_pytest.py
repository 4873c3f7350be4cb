"""The pytest plugin of headstart: fixtures for tests of tools and agents.

It stands beside the package, and imports it in fixtures only: pytest loads it in every
environment that headstart is installed in, and need not be slower for that.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from headstart.testing import HTTPSink, SpeculationLab


@pytest.fixture
def headstart_observers() -> Any:
    """What the fixtures below look at. Override it in your `conftest.py`.

    As `observe=` of `headstart.testing.assert_speculation_safe`: one thing or a list.
    """
    return ()


@pytest.fixture
def headstart_reset() -> Callable[[], Any] | None:
    """What brings the world back. Override it in your `conftest.py`.

    As `reset=` of `headstart.testing.assert_speculation_safe`.
    """
    return None


@pytest.fixture
def assert_speculation_safe(
    headstart_observers: Any, headstart_reset: Any
) -> Callable[..., Any]:
    """`headstart.testing.assert_speculation_safe`, with your observers and reset."""
    from headstart import testing

    return partial(
        testing.assert_speculation_safe,
        observe=headstart_observers,
        reset=headstart_reset,
    )


@pytest.fixture
def speculation_lab(
    headstart_observers: Any, headstart_reset: Any
) -> Callable[..., SpeculationLab]:
    """`headstart.testing.SpeculationLab`, with your observers and reset."""
    from headstart import testing

    return partial(
        testing.SpeculationLab, observe=headstart_observers, reset=headstart_reset
    )


@pytest.fixture
def headstart_http_sink() -> Generator[HTTPSink]:
    """An open `headstart.testing.HTTPSink`."""
    from headstart import testing

    with testing.HTTPSink() as sink:
        yield sink
