"""The servers that effects go to."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from tests.servers import NoServerError, open_mariadb, open_postgres, open_redis

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL, `postgresql://...`; skips where there is none."""
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(open_postgres())
        except NoServerError as error:
            pytest.skip(f"{error}, and HEADSTART_TEST_POSTGRES_URL is not set")
        yield url


@pytest.fixture(scope="session")
def mariadb_url() -> Iterator[str]:
    """A MariaDB, `mysql://...`; skips where there is none."""
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(open_mariadb())
        except NoServerError as error:
            pytest.skip(f"{error}, and HEADSTART_TEST_MARIADB_URL is not set")
        yield url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A redis, `redis://...`; skips where there is none."""
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(open_redis())
        except NoServerError as error:
            pytest.skip(f"{error}, and HEADSTART_TEST_REDIS_URL is not set")
        yield url
