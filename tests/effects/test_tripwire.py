"""What the tripwire sees of a call that is not confirmed, and what it does not."""

# ruff: noqa: ASYNC220, ASYNC221, ASYNC230, ASYNC240, SIM115
# What such calls do in an event loop is what is tested here.

import asyncio
import concurrent.futures
import contextlib
import gc
import http.client
import http.server
import importlib
import logging
import logging.handlers
import mmap
import multiprocessing
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import urllib.request
import weakref
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from headstart import (
    Agent,
    Effect,
    Tool,
    ToolCallSpeculator,
    UsageError,
    WriteBarrier,
    WriteDenied,
)
from headstart._thread_guard import passing
from headstart.effects import hold
from headstart.predictors import RulePredictor, rule
from headstart.testing import Finding, ScriptedModel, tripwire

pytestmark = pytest.mark.real_time

ROOT = Path(__file__).parents[2]
HERE = __file__


def tool_of(function, name="post"):
    return Tool(function, name=name, effect=Effect.GATED)


async def events_of(work):
    """What is found while a call does this and is not confirmed."""

    async def post() -> str:
        outcome = work()
        if asyncio.iscoroutine(outcome):
            await outcome
        return "posted"

    with tripwire() as findings:
        async with ToolCallSpeculator(tool_of(post), "{}") as guess:
            assert await guess.wait() == "posted"
    assert {finding.tool for finding in findings} <= {"post"}
    return {finding.event for finding in findings}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("old").write_text("old")
    return tmp_path


@pytest.fixture
def address():
    """A server that answers GET and POST."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address
        server.shutdown()
        thread.join()


def write(name="new", mode="w"):
    with open(name, mode):
        pass


def write_by_descriptor():
    os.close(os.open("new", os.O_WRONLY | os.O_CREAT))


def write_a_temporary_file():
    with tempfile.NamedTemporaryFile():
        pass


def make_a_temporary_folder():
    os.rmdir(tempfile.mkdtemp())


def unpack():
    shutil.make_archive("packed", "tar", ".", "old")


async def write_with_anyio():
    await anyio.Path("new").write_text("new")


def fork():
    process = os.fork()
    if not process:
        os._exit(0)
    os.waitpid(process, 0)


def fork_with_multiprocessing():
    process = multiprocessing.get_context("fork").Process(target=int)
    process.start()
    process.join()


async def start_a_process_on_the_loop():
    process = await asyncio.create_subprocess_exec("true")
    await process.wait()


def open_a_database():
    sqlite3.connect("data.db").close()


async def open_a_database_in_a_thread_of_its_own():
    aiosqlite = pytest.importorskip("aiosqlite")
    async with aiosqlite.connect("data.db"):
        pass


def listen():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))


SEEN = {
    "open w": (write, "open"),
    "open a": (lambda: write(mode="a"), "open"),
    "open x": (lambda: write(mode="x"), "open"),
    "open r+": (lambda: write("old", "r+"), "open"),
    "os.open": (write_by_descriptor, "open"),
    "Path.write_text": (lambda: Path("new").write_text("new"), "open"),
    "anyio.Path": (write_with_anyio, "open"),
    "touch": (lambda: Path("new").touch(), "open"),
    "remove": (lambda: os.remove("old"), "os.remove"),
    "Path.unlink": (lambda: Path("old").unlink(), "os.remove"),
    "rename": (lambda: os.rename("old", "new"), "os.rename"),
    "replace": (lambda: os.replace("old", "new"), "os.rename"),
    "mkdir": (lambda: os.mkdir("new"), "os.mkdir"),
    "makedirs": (lambda: os.makedirs("new/newer"), "os.mkdir"),
    "rmdir": (make_a_temporary_folder, "os.rmdir"),
    "mkdtemp": (make_a_temporary_folder, "tempfile.mkdtemp"),
    "link": (lambda: os.link("old", "new"), "os.link"),
    "symlink": (lambda: os.symlink("old", "new"), "os.symlink"),
    "truncate": (lambda: os.truncate("old", 0), "os.truncate"),
    "chmod": (lambda: os.chmod("old", 0o600), "os.chmod"),
    "chown": (lambda: os.chown("old", -1, -1), "os.chown"),
    "utime": (lambda: os.utime("old"), "os.utime"),
    "copy": (lambda: shutil.copy("old", "new"), "shutil.copyfile"),
    "move": (lambda: shutil.move("old", "new"), "shutil.move"),
    "archive": (unpack, "shutil.make_archive"),
    "temporary file": (write_a_temporary_file, "tempfile.mkstemp"),
    "Popen": (lambda: subprocess.run(["true"], check=True), "subprocess.Popen"),
    "subprocess of asyncio": (start_a_process_on_the_loop, "subprocess.Popen"),
    "system": (lambda: os.system("true"), "os.system"),
    "fork": (fork, "os.fork"),
    "multiprocessing": (fork_with_multiprocessing, "os.fork"),
    "spawn": (lambda: os.spawnv(os.P_WAIT, "/bin/true", ["true"]), "os.fork"),
    "sqlite3": (open_a_database, "sqlite3.connect"),
    "aiosqlite": (open_a_database_in_a_thread_of_its_own, "sqlite3.connect"),
    "bind": (listen, "socket.bind"),
    "kill": (lambda: os.kill(os.getpid(), 28), "os.kill"),  # SIGWINCH: ignored
}


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork, from 3.12
@pytest.mark.parametrize("kind", SEEN)
async def test_it_sees(folder, kind):
    work, event = SEEN[kind]
    assert event in await events_of(work)


async def test_it_sees_connections_and_datagrams(address):
    def datagram():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", address)

    async def on_the_loop():
        _, writer = await asyncio.open_connection(*address)
        writer.close()
        await writer.wait_closed()

    async def with_anyio():
        async with await anyio.connect_tcp(*address):
            pass

    connect = {"socket.connect"}
    assert await events_of(datagram) == {"socket.sendto"}
    assert await events_of(lambda: socket.create_connection(address).close()) == connect
    assert await events_of(on_the_loop) == connect
    assert await events_of(with_anyio) == connect


async def test_it_sees_requests_of_http_client_on_a_connection_that_is_open(address):
    def get():
        host, port = address
        with urllib.request.urlopen(f"http://{host}:{port}/") as response:
            response.read()

    assert await events_of(get) == {"socket.connect", "http.client.send"}
    connection = http.client.HTTPConnection(*address)
    connection.connect()

    def get_again():
        connection.request("GET", "/")
        connection.getresponse().read()

    assert await events_of(get_again) == {"http.client.send"}
    connection.close()


def lookup():
    socket.getaddrinfo("localhost", 80)


def write_nowhere():
    write(os.devnull)


def read():
    assert Path("old").read_text() == "old"
    os.listdir()
    os.stat("old")


def memory():
    for name in ("", ":memory:"):
        sqlite3.connect(name).close()
    sqlite3.connect("file:x?mode=memory", uri=True).close()


def an_event_loop_of_its_own():
    async def nothing():
        await asyncio.to_thread(int)

    thread = threading.Thread(target=lambda: asyncio.run(nothing()))
    thread.start()
    thread.join()


async def threads():
    await asyncio.to_thread(int)
    await anyio.to_thread.run_sync(int)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()


def pair():
    for end in socket.socketpair():
        end.close()


HARMLESS = [
    lookup,
    write_nowhere,
    read,
    memory,
    an_event_loop_of_its_own,
    threads,
    pair,
]


@pytest.mark.parametrize("work", HARMLESS)
async def test_it_says_nothing_of_what_changes_nothing(folder, work):
    assert await events_of(work) == set()


async def test_it_does_not_see_what_goes_through_what_is_open_already(folder, address):
    """The limits that the documentation states."""
    file = open("old", "r+b", buffering=0)
    database = sqlite3.connect("data.db", check_same_thread=False)
    connection = socket.create_connection(address)

    def through_them():
        os.write(file.fileno(), b"changed")
        file.write(b"more")
        mmap.mmap(file.fileno(), 0).close()
        database.execute("CREATE TABLE changed (x)")
        database.commit()
        connection.send(b"GET / HTTP/1.1\r\n\r\n")

    assert await events_of(through_them) == set()
    assert Path("old").read_text() == "changedmore"
    for each in (file, database, connection):
        each.close()


async def test_it_does_not_see_what_python_reports_no_event_of(folder):
    def unreported():
        os.mkfifo("pipe")
        os.environ["HEADSTART_TEST"] = "1"
        del os.environ["HEADSTART_TEST"]

    assert await events_of(unreported) == set()
    assert Path("pipe").exists()


async def test_it_does_not_see_what_a_process_does_that_was_there_before(folder):
    shell = subprocess.Popen(["sh"], stdin=subprocess.PIPE, bufsize=0)

    def tell_it():
        shell.stdin.write(b"echo new > new; exit\n")

    assert await events_of(tell_it) == set()
    shell.communicate()
    assert Path("new").exists()


async def test_a_finding_names_the_tool_the_call_and_the_line():
    async def post() -> str:
        write(os.path.join(tempfile.gettempdir(), f"headstart-{os.getpid()}"))
        return "posted"

    with tripwire() as findings:
        async with ToolCallSpeculator(tool_of(post, "send_mail"), "{}") as guess:
            await guess.wait()
    os.remove(os.path.join(tempfile.gettempdir(), f"headstart-{os.getpid()}"))
    line = write.__code__.co_firstlineno + 1
    assert findings == [
        Finding(
            tool="send_mail",
            call_id=guess.span_id,
            event="open",
            what="writing to a file",
            file=HERE,
            line=line,
        )
    ]
    assert str(findings[0]).startswith(f"{HERE}:{line}: the call '{guess.span_id}' of ")


async def test_a_tool_that_is_a_packages_is_named_by_the_packages_line(folder):
    file = str(Path(anyio.__file__).parent / "tool.py")
    package = {}
    exec(compile("\ndef post():\n    open('new', 'w').close()", file, "exec"), package)
    with tripwire() as findings:
        async with ToolCallSpeculator(tool_of(package["post"]), "{}") as guess:
            await guess.wait()
    assert [(finding.file, finding.line) for finding in findings] == [(file, 3)]


async def test_a_line_of_the_tool_comes_before_those_of_packages_and_libraries(folder):
    file = str(Path(anyio.__file__).parent / "package.py")
    package = {"Path": Path}
    exec(compile("def save(): Path('new').write_text('')", file, "exec"), package)

    async def post() -> str:
        package["save"]()
        return "posted"

    with tripwire() as findings:
        async with ToolCallSpeculator(tool_of(post), "{}") as guess:
            await guess.wait()
    line = post.__code__.co_firstlineno + 1
    assert [(finding.file, finding.line) for finding in findings] == [(HERE, line)]


async def test_each_line_is_found_once(folder):
    def ten_times():
        for number in range(10):
            write(f"new-{number}")

    async def post() -> str:
        ten_times()
        return "posted"

    with tripwire() as findings:
        async with ToolCallSpeculator(tool_of(post), "{}") as guess:
            await guess.wait()
    assert len(findings) == 1


def in_a_plain_thread():
    thread = threading.Thread(target=write)
    thread.start()
    thread.join()


def in_a_pool():
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(write).result()


async def in_an_executor():
    await asyncio.get_running_loop().run_in_executor(None, write)


async def in_a_thread_with_its_context():
    await anyio.to_thread.run_sync(write)


async def in_a_task():
    await asyncio.create_task(asyncio.to_thread(write))


async def in_a_callback():
    asyncio.get_running_loop().call_soon(write)
    await asyncio.sleep(0)


async def test_outside_of_calls_and_in_real_ones_it_says_nothing(folder):
    confirmed = anyio.Event()

    async def post() -> str:
        await confirmed.wait()
        write()
        subprocess.run(["true"], check=True)
        return "posted"

    model = ScriptedModel([[("post", {})], "Done."])
    with tripwire(deny=True) as findings:
        write("by nobody")
        confirmed.set()
        assert (await Agent(model, [tool_of(post)]).run("Go.")).text == "Done."
        async with ToolCallSpeculator(tool_of(post), "{}") as guess:
            confirmed = anyio.Event()
            guess.confirm()
            confirmed.set()
            assert await guess.wait() == "posted"
    assert findings == []


@pytest.mark.parametrize("escape", [in_a_plain_thread, in_a_pool, in_an_executor])
async def test_a_confirmed_calls_thread_is_not_found_though_it_lost_its_call(
    folder, escape
):
    confirmed = anyio.Event()

    async def post() -> str:
        await confirmed.wait()
        outcome = escape()
        if asyncio.iscoroutine(outcome):
            await outcome
        return "posted"

    with tripwire(deny=True) as findings:
        async with ToolCallSpeculator(tool_of(post), "{}") as guess:
            await anyio.lowlevel.checkpoint()
            guess.confirm()
            confirmed.set()
            assert await guess.wait() == "posted"
    assert findings == []


async def test_a_thread_that_outlives_the_hold_of_its_call_is_not_found(folder):
    confirmed = threading.Event()

    def late():
        confirmed.wait()
        write()

    async def post() -> str:
        await asyncio.get_running_loop().run_in_executor(None, late)
        return "posted"

    with tripwire(deny=True) as findings:
        async with ToolCallSpeculator(tool_of(post), "{}") as guess:
            await anyio.sleep(0.01)
            guess.confirm()
            confirmed.set()
            assert await guess.wait() == "posted"
    assert findings == []


async def test_what_comes_after_a_hold_is_not_found(folder):
    async def post() -> str:
        async with hold("a file"):
            write()
        return "posted"

    with tripwire(deny=True) as findings:
        async with ToolCallSpeculator(tool_of(post), "{}") as guess:
            await anyio.sleep(0.01)
            assert await guess.adopt() == "posted"
    assert findings == []
    assert Path("new").exists()


async def test_off_it_sees_nothing_and_an_inner_one_leaves_the_outer_one_armed(folder):
    async def post(name: str) -> str:
        write(name)
        return "posted"

    async def speculate(name):
        async with ToolCallSpeculator(tool_of(post), f'{{"name": "{name}"}}') as guess:
            await guess.wait()

    with tripwire() as outer:
        with tripwire() as inner:
            await speculate("a")
        await speculate("b")
    await speculate("c")
    assert (len(outer), len(inner)) == (2, 1)
    assert Path("c").exists()


async def test_what_a_seam_lets_pass_is_not_found(folder):
    async def in_tasks():
        with passing():
            write("a")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.Path("b").write_text, "b")
            await asyncio.to_thread(write, "c")
            thread = threading.Thread(target=write, args=["d"])
            thread.start()
            thread.join()
            await asyncio.get_running_loop().run_in_executor(None, write, "e")
        # A thread that lost its call, where the seam itself says so.
        thread = threading.Thread(target=let_pass)
        thread.start()
        thread.join()

    def let_pass():
        with passing():
            write("f")
            thread = threading.Thread(target=write, args=["g"])
            thread.start()
            thread.join()

    assert await events_of(in_tasks) == set()
    assert {path.name for path in folder.iterdir()} == {"old", *"abcdefg"}
    assert await events_of(write) == {"open"}


@pytest.mark.parametrize(
    "escape",
    [
        in_a_plain_thread,
        in_a_pool,
        in_an_executor,
        in_a_thread_with_its_context,
        in_a_task,
        in_a_callback,
    ],
)
async def test_it_finds_the_call_of_a_thread_a_task_and_a_callback(folder, escape):
    assert await events_of(escape) == {"open"}


async def test_denying_gives_the_call_up_and_nothing_happens(folder):
    async def post() -> str:
        write()
        return "posted"

    with tripwire(deny=True) as findings:
        async with ToolCallSpeculator(tool_of(post), "{}") as guess:
            await guess.wait_until_ended()
            assert isinstance(guess.error, WriteDenied)
            assert guess.barrier.state.value == "denied"
            line = write.__code__.co_firstlineno + 1
            assert f"{HERE}:{line}" in guess.barrier.reason
    assert len(findings) == 1
    assert not Path("new").exists()


@pytest.mark.parametrize("escape", [in_a_plain_thread, in_a_pool, in_a_callback])
async def test_denying_stops_the_effect_where_it_is_and_not_the_tool_alone(
    folder, escape
):
    """Even if nobody hears of what was raised: the call is given up before."""

    async def post() -> str:
        with contextlib.suppress(WriteDenied):
            outcome = escape()
            if asyncio.iscoroutine(outcome):
                await outcome
        return "posted"

    heard = []
    threading.excepthook, before = (
        lambda args: heard.append(args.exc_type),
        (threading.excepthook),
    )
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: heard.append(type(context["exception"]))
    )
    try:
        with tripwire(deny=True):
            async with ToolCallSpeculator(tool_of(post), "{}") as guess:
                await guess.wait_until_ended()
                assert guess.barrier.state.value == "denied"
    finally:
        threading.excepthook = before
        asyncio.get_running_loop().set_exception_handler(None)
    assert not Path("new").exists()
    assert set(heard) <= {WriteDenied}


@pytest.mark.parametrize("deny", [False, True])
async def test_a_careless_tool_that_swallows_its_denial_still_has_its_effect_once(
    folder, deny
):
    async def append() -> str:
        with contextlib.suppress(WriteDenied), open("log", "a") as log:
            log.write("line\n")
        return "appended"

    expects = RulePredictor([rule("Go", "append")])
    model = ScriptedModel([[("append", {})], "Done."], delay=0.05)
    agent = Agent(model, [tool_of(append, "append")], predictors=[expects])
    with tripwire(deny=deny) as findings:
        assert (await agent.run("Go.")).text == "Done."
    assert [finding.tool for finding in findings] == ["append"]
    assert Path("log").read_text() == "line\n"


async def test_denying_says_so_where_only_a_condition_is_open(folder):
    approval = WriteBarrier(name="approval")
    confirmed = anyio.Event()

    async def post() -> str:
        await confirmed.wait()
        write()
        return "posted"

    made = tool_of(post)
    with tripwire(deny=True):
        async with ToolCallSpeculator(made, "{}", conditions=[approval]) as guess:
            guess.confirm()
            confirmed.set()
            with pytest.raises(UsageError, match="a condition of the call"):
                await guess.wait()
            approval.flush()
    assert not Path("new").exists()


async def test_a_call_that_was_discarded_is_still_kept_from_its_effects(folder):
    refused = []

    async def post() -> str:
        with anyio.CancelScope(shield=True):
            await discarded.wait()
        try:
            write()
        except WriteDenied as denial:
            refused.append(denial)
            raise
        return "posted"

    discarded = anyio.Event()
    with tripwire(deny=True) as findings:
        async with ToolCallSpeculator(tool_of(post), "{}") as guess:
            await anyio.sleep(0.01)
            guess.cancel()
            discarded.set()
            await guess.wait_until_ended()
    assert len(findings) == len(refused) == 1
    assert not Path("new").exists()


# Where the code of the tool is not at fault


async def test_an_import_may_write_its_cache(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "pycache_prefix", None)
    (folder / "headstart_imported.py").write_text("x = 1")
    importlib.invalidate_caches()

    def load():
        assert importlib.import_module("headstart_imported").x == 1

    assert await events_of(load) == set()
    assert (folder / "__pycache__").is_dir()
    del sys.modules["headstart_imported"]


async def test_code_of_the_users_that_an_import_runs_is_seen(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    file = folder / "headstart_writing.py"
    file.write_text("open('new', 'w').close()")
    importlib.invalidate_caches()

    async def post() -> str:
        importlib.import_module("headstart_writing")
        return "posted"

    with tripwire() as findings:
        async with ToolCallSpeculator(tool_of(post), "{}") as guess:
            await guess.wait()
    assert [(finding.file, finding.line) for finding in findings] == [(str(file), 1)]
    del sys.modules["headstart_writing"]


async def test_a_log_may_be_written_and_begun_anew(folder):
    logger = logging.getLogger("tests.tripwire")
    handler = logging.handlers.RotatingFileHandler("log", maxBytes=1, backupCount=1)
    logger.addHandler(handler)
    logger.propagate = False

    def log():
        logger.warning("one")
        logger.warning("two")

    assert await events_of(log) == set()
    assert Path("log.1").exists()
    logger.removeHandler(handler)
    handler.close()


@pytest.mark.parametrize("deny", [False, True])
async def test_a_finalizer_that_runs_by_chance_is_let_pass(folder, deny):
    class Cleans:
        def __init__(self, name):
            self.name = name
            self.cycle = self

        def __del__(self):
            os.remove(self.name)

    class Temporary:
        def __init__(self, name):
            self.cycle = self
            weakref.finalize(self, os.remove, name)

    for name in ("a", "b"):
        write(name)
    Cleans("a")
    Temporary("b")

    async def post() -> str:
        gc.collect()
        return "posted"

    with tripwire(deny=deny) as findings:
        async with ToolCallSpeculator(tool_of(post), "{}") as guess:
            assert await guess.wait() == "posted"
    assert findings == []
    assert not Path("a").exists()
    assert not Path("b").exists()


# The switch


PROGRAM = """
import anyio, sys
from headstart import Effect, Tool, ToolCallSpeculator

async def post() -> str:
    open("new", "w").close()
    return "posted"

async def main():
    async with ToolCallSpeculator(Tool(post, effect=Effect.GATED), "{}") as guess:
        await guess.wait_until_ended()
        print(guess.barrier.state.value, type(guess.error).__name__)

anyio.run(main)
"""


def run_with(value, folder):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env={
            **os.environ,
            "HEADSTART_TRIPWIRE": value,
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
    )


@pytest.mark.parametrize("value", ["", "0", "off"])
def test_the_switch_leaves_it_off(folder, value):
    ended = run_with(value, folder)
    assert ended.stdout.split() == ["held", "NoneType"]
    assert (ended.stderr, Path("new").exists()) == ("", True)


@pytest.mark.parametrize("value", ["1", "on", "deny"])
def test_the_switch_has_calls_given_up(folder, value):
    ended = run_with(value, folder)
    assert ended.stdout.split() == ["denied", "WriteDenied"]
    assert "<string>:6: the call" in ended.stderr
    assert not Path("new").exists()


def test_the_switch_can_have_findings_logged_only(folder):
    ended = run_with("report", folder)
    assert ended.stdout.split() == ["held", "NoneType"]
    assert "writing to a file (open) before it was confirmed" in ended.stderr
    assert Path("new").exists()


def test_the_switch_says_what_it_does_not_know(folder):
    ended = run_with("maybe", folder)
    assert "UsageError" in ended.stderr
    assert "Set it to 1" in ended.stderr
