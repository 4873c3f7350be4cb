"""The recipes of docs/effects/recipes.md hold what they say, as they stand there."""

import asyncio
import socketserver
import sys
import threading
from email.message import EmailMessage
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from pytest_examples import find_examples

from headstart import DiscardedError, ToolCallSpeculator, WriteDenied
from headstart.effects import SeamCounts

from .calls import tool_of, until
from .http_server import serve

pytestmark = pytest.mark.real_time

PAGE = Path(__file__).parents[2] / "docs" / "effects" / "recipes.md"


@pytest.fixture(scope="module")
def recipes():
    pytest.importorskip("urllib3", reason="needs headstart[requests]")
    names = {}
    for example in find_examples(PAGE):
        if example.prefix_settings().get("test") != "skip":
            exec(compile(example.source, str(PAGE), "exec"), names)
    return names


@pytest.fixture
def server():
    with serve() as seen:
        yield seen


def launch(function, **options):
    return ToolCallSpeculator(tool_of(function), "{}", **options)


async def test_a_file_is_replaced_once_it_is_certain_and_no_draft_is_left(
    recipes, tmp_path
):
    report = tmp_path / "report.txt"
    report.write_text("old")

    async def post() -> str:
        await recipes["write_report"](report, "new")
        return "written"

    async with launch(post) as guess:
        await until(lambda: guess.held)
        assert report.read_text() == "old"
    assert list(tmp_path.iterdir()) == [report]
    async with launch(post) as guess:
        await until(lambda: guess.held)
        assert report.read_text() == "old"
        await guess.adopt()
    assert report.read_text() == "new"
    assert list(tmp_path.iterdir()) == [report]


async def test_a_process_is_started_once_it_is_certain(recipes, tmp_path, monkeypatch):
    started = []
    run_process = anyio.run_process

    async def run(command, *, cwd):
        started.append(command[0])
        script = "open('mark', 'a').write('run ')"
        return await run_process([sys.executable, "-c", script], cwd=cwd)

    monkeypatch.setattr(anyio, "run_process", run)  # there may be no git here

    async def post() -> str:
        await recipes["commit"](tmp_path, "a text")
        return "done"

    async with launch(post) as guess:
        await until(lambda: guess.held)
    assert started == []
    async with launch(post) as guess:
        await until(lambda: guess.held)
        assert not (tmp_path / "mark").exists()
        await guess.adopt()
    assert (tmp_path / "mark").read_text() == "run "


class _Post(socketserver.StreamRequestHandler):
    """As much of SMTP as one letter needs."""

    timeout = 10

    def handle(self):
        self.server.lines.append("connected")
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline().strip():
            self.server.lines.append(line.decode())
            if line.upper() == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                while self.rfile.readline().strip() != b".":
                    pass
            if line.upper() == b"QUIT":
                self.wfile.write(b"221 bye\r\n")
                return
            self.wfile.write(b"250 fine\r\n")


@pytest.fixture
def post_office():
    with socketserver.TCPServer(("127.0.0.1", 0), _Post) as office:
        office.lines = []
        thread = threading.Thread(target=office.serve_forever, args=(0.01,))
        thread.start()
        yield office
        office.shutdown()
        thread.join()


async def test_a_letter_is_sent_once_it_is_certain(recipes, post_office):
    letter = EmailMessage()
    letter["From"], letter["To"] = "a@example.com", "b@example.com"
    letter.set_content("Hello.")
    ended = []

    def post() -> str:
        try:
            recipes["send_letter"](letter, *post_office.server_address)
        except BaseException as error:
            ended.append(error)
            raise
        return "sent"

    async with launch(post) as guess:
        await until(lambda: guess.held)
    await until(lambda: ended)
    assert isinstance(ended[0], DiscardedError)
    assert post_office.lines == []
    async with launch(post) as guess:
        await until(lambda: guess.held)
        assert post_office.lines == []
        assert await guess.adopt() == "sent"
    assert post_office.lines.count("connected") == 1
    sent = [line.lower() for line in post_office.lines]
    assert [line for line in sent if line.startswith("rcpt")] == [
        "rcpt to:<b@example.com>"
    ]


def by_urllib(recipes, method, url):
    request = recipes["urllib"].request.Request(url, method=method)
    with recipes["opener"].open(request, timeout=10) as answer:
        answer.read()


def by_urllib3(recipes, method, url):
    with recipes["HoldingPool"]() as pool:
        pool.request(method, url)


@pytest.mark.parametrize("send", [by_urllib, by_urllib3])
async def test_requests_wait_once_they_change_something(recipes, server, send):
    ended = []

    def post() -> str:
        send(recipes, "GET", f"{server.url}/to?status=302&location=/orders")
        try:
            send(recipes, "POST", f"{server.url}/orders")
        except BaseException as error:
            ended.append(error)
            raise
        return "sent"

    async with launch(post) as guess:
        await until(lambda: guess.held)
    await until(lambda: ended)
    assert isinstance(ended[0], DiscardedError)
    assert server.paths("POST") == []
    async with launch(post) as guess:
        await until(lambda: guess.held)
        assert server.paths("POST") == []
        assert await guess.adopt() == "sent"
    assert server.paths("POST") == ["/orders"]
    assert server.paths("GET") == ["/to", "/orders"] * 2


async def test_a_message_on_an_open_websocket_waits(recipes):
    pytest.importorskip("websockets", reason="needs websockets")
    from websockets.asyncio.client import connect
    from websockets.asyncio.server import serve as serve_websockets

    said = []

    async def listen(socket):
        said.append(await socket.recv())
        said.append(await socket.recv())

    async with serve_websockets(listen, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}", proxy=None) as socket:

            async def post() -> str:
                await recipes["say"](socket, "hello")
                return "said"

            async with launch(post) as guess:
                await until(lambda: guess.held)
            async with launch(post) as guess:
                await until(lambda: guess.held)
                assert said == []
                assert await guess.adopt() == "said"
            await socket.send("the end")
            await until(lambda: len(said) == 2)
    assert said == ["hello", "the end"]


async def test_a_job_is_handed_over_once_it_is_certain(recipes):
    queue = asyncio.Queue()

    async def post() -> str:
        await recipes["enqueue"](queue, "a job")
        return "queued"

    async with launch(post) as guess:
        await until(lambda: guess.held)
        assert queue.empty()
        await guess.adopt()
    assert queue.get_nowait() == "a job"


async def test_what_is_refused_gives_its_call_up_and_is_done_by_the_real_one(recipes):
    copied = []

    class Connection:
        async def copy(self, rows):
            copied.append(rows)

    async def post() -> str:
        await recipes["copy"](Connection(), [1])
        return "copied"

    async with launch(post) as guess:
        await guess.wait_until_ended()
        assert isinstance(guess.error, WriteDenied)
    assert copied == []
    assert await post() == "copied"
    assert copied == [[1]]
    assert recipes["copies"].counts == SeamCounts(refused=1)
