"""The servers of the tests start, answer, and are gone after them."""

import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests import servers

KINDS = {
    "postgres": servers.open_postgres,
    "mariadb": servers.open_mariadb,
    "redis": servers.open_redis,
}
NAMES = [f"HEADSTART_TEST_{kind.upper()}_URL" for kind in KINDS]


def answers(url):
    try:
        socket.create_connection(
            (urlsplit(url).hostname, urlsplit(url).port), 1
        ).close()
    except OSError:
        return False
    return True


@pytest.fixture(params=KINDS)
def open_server(request, monkeypatch):
    request.getfixturevalue(f"{request.param}_url")  # or skip
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return KINDS[request.param]


def test_a_server_of_the_tests_answers_until_it_is_left(open_server):
    with open_server() as url:
        assert answers(url)
    assert not answers(url)


def test_a_server_of_the_tests_ends_with_a_process_that_is_killed(open_server):
    code = (
        "import os; from tests import servers\n"
        f"with servers.{open_server.__name__}() as url:\n"
        "    print(url, flush=True); os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    url = ended.stdout.strip()
    give_up_at = time.monotonic() + servers.PATIENCE
    while answers(url) and time.monotonic() < give_up_at:
        time.sleep(0.05)
    assert not answers(url)


def test_a_server_that_is_named_is_used_as_it_is(monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, "named://server")
    for open_named in KINDS.values():
        with open_named() as url:
            assert url == "named://server"


def test_a_machine_without_a_server_says_so(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(servers.NoServerError, match="redis-server is not installed"):
        with servers.open_redis():
            pass
