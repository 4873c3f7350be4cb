"""Servers for tests and benchmarks: one that is named, or one of our own.

`HEADSTART_TEST_POSTGRES_URL`, `HEADSTART_TEST_MARIADB_URL` and `HEADSTART_TEST_REDIS_URL`
name PostgreSQL, MariaDB and redis to use; tests only touch what they made there. Without them a server is started from the binaries of
this machine, without root's rights, on a free port of the loopback interface and in a
directory of its own. It ends with this process, however that ends: it hangs on a pipe.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 15.0  # seconds for a server to start
ATTEMPTS = 3  # a free port may be taken by another before the server has it

# Runs "$2"... and sends it the signal $1 once standard input ends.
WHILE_WE_LIVE = 'signal=$1; shift; "$@" & read -r _; kill -s "$signal" $!; wait $!'


class NoServerError(Exception):
    """There is no such server here, and why."""


def rights() -> dict[str, Any]:
    """How to start a process that is not root's: PostgreSQL refuses to be."""
    if os.geteuid() != 0:
        return {}
    import pwd

    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """A new directory that belongs to whom the server runs as."""
    with tempfile.TemporaryDirectory(
        prefix="headstart-", ignore_cleanup_errors=True
    ) as name:
        who = rights()
        if who:
            os.chown(name, who["user"], who["group"])
        yield Path(name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(
    command: Callable[[int], list[str]],
    is_ready: Callable[[int], bool],
    *,
    end_by: str,
    log: Path,
) -> Iterator[int]:
    """Run a server and give its port; ended by a signal, or with this process."""
    for _ in range(ATTEMPTS):
        port = free_port()
        with log.open("wb") as output:
            server = subprocess.Popen(
                ["/bin/sh", "-c", WHILE_WE_LIVE, "sh", end_by, *command(port)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                start_new_session=True,  # Ctrl-C is for us
                **rights(),
            )
        try:
            give_up_at = time.monotonic() + PATIENCE
            while time.monotonic() < give_up_at and server.poll() is None:
                if is_ready(port) and server.poll() is None:
                    yield port
                    return
                time.sleep(0.05)
        finally:
            server.stdin.close()
            try:
                server.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, 9)
                server.wait()
    said = log.read_text(errors="replace").strip().splitlines()[-5:]
    raise NoServerError(f"{Path(command(0)[0]).name} did not start: {' '.join(said)}")


def postgres_binaries() -> Path:
    """The newest directory that holds `initdb` and `postgres`."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"),
        key=lambda path: float(path.parts[-3]),
        reverse=True,
    )
    on_path = shutil.which("postgres")
    for binary in [*found, *([Path(on_path)] if on_path else [])]:
        if binary.with_name("initdb").exists():
            return binary.parent
    raise NoServerError("PostgreSQL is not installed")


@contextlib.contextmanager
def open_postgres() -> Iterator[str]:
    """The URL of a PostgreSQL, `postgresql://...`, with a role that may do everything.

    Raises:
        NoServerError: There is none, or it does not start.
    """
    named = os.environ.get("HEADSTART_TEST_POSTGRES_URL")
    if named:
        yield named
        return
    binaries = postgres_binaries()
    with directory() as home:
        data = home / "data"
        made = subprocess.run(
            [
                *(binaries / "initdb", "-D", data, "-U", "headstart", "-A", "trust"),
                *("--locale=C", "--encoding=UTF8", "--no-sync"),
            ],
            check=False,
            cwd=home,
            capture_output=True,
            text=True,
            **rights(),
        )
        if made.returncode:
            raise NoServerError(f"initdb failed: {made.stderr.strip()}")
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "shared_buffers": "16MB",
            "max_prepared_transactions": "10",
        }

        def command(port: int) -> list[str]:
            settings = [f"--{name}={value}" for name, value in options.items()]
            return [str(binaries / "postgres"), "-D", str(data), f"-p{port}", *settings]

        def is_ready(port: int) -> bool:
            asked = [binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
            return subprocess.run(asked, check=False).returncode == 0

        with running(command, is_ready, end_by="INT", log=home / "log") as port:
            yield f"postgresql://headstart@127.0.0.1:{port}/postgres"


@contextlib.contextmanager
def open_mariadb() -> Iterator[str]:
    """The URL of a MariaDB, `mysql://...`, with a user who may do everything.

    Raises:
        NoServerError: There is none, or it does not start.
    """
    named = os.environ.get("HEADSTART_TEST_MARIADB_URL")
    if named:
        yield named
        return
    # Servers are not always on the path of who may not use them.
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin"))
    server, install = (
        shutil.which(name, path=path) for name in ("mariadbd", "mariadb-install-db")
    )
    if server is None or install is None:
        raise NoServerError("MariaDB is not installed")
    with directory() as home:
        data = home / "data"
        made = subprocess.run(
            [
                *(install, "--no-defaults", f"--datadir={data}", "--skip-test-db"),
                "--auth-root-authentication-method=normal",
            ],
            check=False,
            cwd=home,
            capture_output=True,
            text=True,
            **rights(),
        )
        if made.returncode:
            raise NoServerError(f"mariadb-install-db failed: {made.stderr.strip()}")
        options = {
            "datadir": data,
            "bind-address": "127.0.0.1",
            "socket": home / "socket",
            "pid-file": home / "pid",
            "tmpdir": home,
            "innodb-flush-log-at-trx-commit": 0,
            "innodb-buffer-pool-size": "16M",
        }

        def command(port: int) -> list[str]:
            settings = [f"--{name}={value}" for name, value in options.items()]
            return [server, "--no-defaults", f"--port={port}", *settings]

        def is_ready(port: int) -> bool:
            try:
                with socket.create_connection(("127.0.0.1", port), 1.0) as probe:
                    return len(probe.recv(8)) > 0  # it greets first
            except OSError:
                return False

        with running(command, is_ready, end_by="TERM", log=home / "log") as port:
            yield f"mysql://root@127.0.0.1:{port}/mysql"


@contextlib.contextmanager
def open_redis() -> Iterator[str]:
    """The URL of a redis, `redis://...`, that keeps nothing on disk.

    Raises:
        NoServerError: There is none, or it does not start.
    """
    named = os.environ.get("HEADSTART_TEST_REDIS_URL")
    if named:
        yield named
        return
    binary = shutil.which("redis-server")
    if binary is None:
        raise NoServerError("redis-server is not installed")

    def command(port: int) -> list[str]:
        flags = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        return [binary, "--port", str(port), *flags]

    def is_ready(port: int) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), 1.0) as probe:
                probe.sendall(b"PING\r\n")
                return probe.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    with (
        directory() as home,
        running(command, is_ready, end_by="TERM", log=home / "log") as port,
    ):
        yield f"redis://127.0.0.1:{port}/0"
