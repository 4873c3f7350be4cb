"""What every store of events must do.

Rules of this file:

1. A store is opened, written, closed and opened anew on the same place, as a process
   does that is restarted. Nothing is known of it but `TraceStore`.
2. On asyncio and, where it is installed, on trio.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from importlib.util import find_spec
from typing import TYPE_CHECKING

import anyio

from headstart._agent import Agent
from headstart._errors import StoreError
from headstart._events import (
    CallEnded,
    Event,
    ModelAnswered,
    PredictorFailed,
    SessionEnded,
    SessionStarted,
    TurnStarted,
    summarize,
)
from headstart._tools import Effect, tool
from headstart.predictors import RulePredictor, rule

from ._model import ScriptedModel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from headstart._events import TraceStore

THREADS, A_THREAD = 8, 250
MANY = 5_000


def _stream(session: str, count: int = 3) -> list[Event]:
    """Some events of a session, each of which can be told from the others."""
    turns = [
        TurnStarted(session=session, at_s=number / 8, turn=number)
        for number in range(count)
    ]
    return [
        SessionStarted(session=session, at_s=0.0),
        *turns,
        SessionEnded(session=session, at_s=count / 8),
    ]


class StoreConformance(ABC):
    """The suite that each `TraceStore` passes; a class of pytest tests once subclassed.

    ```python
    class TestMyStore(StoreConformance):
        def open_store(self, place):
            return MyStore(place / "traces")
    ```
    """

    @abstractmethod
    def open_store(self, place: Path) -> AbstractAsyncContextManager[TraceStore]:
        """A store that is opened by `async with`, and closed at its end.

        Args:
            place: An empty folder at first; the same one for what is to be the same
                store again, perhaps at the same time. Where a store keeps nothing in
                files, the folder's path is a name that nobody else has.
        """

    def test_what_was_emitted_is_read_back_equal(self, tmp_path: Path) -> None:
        """By the same store, before it is closed, and by one that is opened later."""
        events: list[Event] = [
            *_stream("a")[:-1],
            ModelAnswered(session="a", at_s=1.5, turn=1, duration_s=1e-9, tool_calls=2),
            CallEnded(
                session="a",
                at_s=2.0,
                turn=1,
                call_id="c 1",
                tool="look",
                duration_s=0.1,
                wait_s=0.0,
                adopted=True,
                is_error=False,
            ),
            PredictorFailed(session="a", at_s=3.0, predictor="Ä\n日本", error="E"),
            _stream("a")[-1],
        ]

        async def check(place: Path) -> None:
            async with self.open_store(place) as store:
                for event in events:
                    store.emit(event)
                await store.flush()
                assert await store.read("a") == events
            async with self.open_store(place) as store:
                assert await store.read("a") == events
                assert await store.sessions() == ["a"]

        _run(check, tmp_path)

    def test_an_empty_store_has_no_sessions(self, tmp_path: Path) -> None:
        """Nor has it events of any, and it can be asked."""

        async def check(place: Path) -> None:
            async with self.open_store(place) as store:
                assert await store.sessions() == []
                assert await store.read("nobody") == []

        _run(check, tmp_path)

    def test_sessions_side_by_side_are_told_apart(self, tmp_path: Path) -> None:
        """Each is read in its own order, and all are listed in that of their start."""
        names = ["b", "a", "%", "a%", "A", "'", "session 1", " "]
        streams = {name: _stream(name) for name in names}

        async def check(place: Path) -> None:
            async with self.open_store(place) as store:
                for number in range(len(_stream(""))):
                    for stream in streams.values():
                        store.emit(stream[number])
                assert await store.sessions() == names
                for name, stream in streams.items():
                    assert await store.read(name) == stream

        _run(check, tmp_path)

    def test_what_is_opened_again_goes_on(self, tmp_path: Path) -> None:
        """Nothing that was there is lost, and what is added comes behind it."""
        first, second = _stream("a"), _stream("b")

        async def check(place: Path) -> None:
            for stream in (first, second):
                async with self.open_store(place) as store:
                    for event in stream:
                        store.emit(event)
            async with self.open_store(place) as store:
                assert await store.sessions() == ["a", "b"]
                assert await store.read("a") == first
                assert await store.read("b") == second

        _run(check, tmp_path)

    def test_two_stores_of_one_place_lose_nothing(self, tmp_path: Path) -> None:
        """Two processes, say, that share it."""
        left, right = _stream("left", 200), _stream("right", 200)

        async def check(place: Path) -> None:
            async with self.open_store(place) as one, self.open_store(place) as other:
                for mine, theirs in zip(left, right, strict=True):
                    one.emit(mine)
                    other.emit(theirs)
                await one.flush()
                await other.flush()
                assert await one.read("right") == right
                assert await other.read("left") == left

        _run(check, tmp_path)

    def test_threads_may_emit(self, tmp_path: Path) -> None:
        """Nothing is lost, and each thread's own events keep their order."""

        async def check(place: Path) -> None:
            async with self.open_store(place) as store:

                def emit(number: int) -> None:
                    for event in _stream(f"thread {number}", A_THREAD):
                        store.emit(event)

                threads = [
                    threading.Thread(target=emit, args=(number,))
                    for number in range(THREADS)
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    await anyio.to_thread.run_sync(thread.join)
                for number in range(THREADS):
                    name = f"thread {number}"
                    assert await store.read(name) == _stream(name, A_THREAD)

        _run(check, tmp_path)

    def test_many_events_at_once_are_kept(self, tmp_path: Path) -> None:
        """More than any sensible batch, and no flush in between."""
        events = _stream("a", MANY)

        async def check(place: Path) -> None:
            async with self.open_store(place) as store:
                for event in events:
                    store.emit(event)
            async with self.open_store(place) as store:
                assert await store.read("a") == events

        _run(check, tmp_path)

    def test_a_cancelled_block_has_kept_what_was_emitted(self, tmp_path: Path) -> None:
        """A run that is cancelled is the one that somebody wants to look at."""
        events = _stream("a", 50)

        async def check(place: Path) -> None:
            with anyio.CancelScope() as scope:
                async with self.open_store(place) as store:
                    for event in events:
                        store.emit(event)
                    scope.cancel()
                    await anyio.sleep_forever()
            async with self.open_store(place) as store:
                assert await store.read("a") == events

        _run(check, tmp_path)

    def test_names_that_are_no_unicode_do_no_harm(self, tmp_path: Path) -> None:
        """They are written with replacements, and everything beside them as it is."""
        odd = TurnStarted(session="odd \ud800", at_s=0.0, turn=1)

        async def check(place: Path) -> None:
            async with self.open_store(place) as store:
                store.emit(odd)
                for event in _stream("a"):
                    store.emit(event)
                await store.flush()
                assert await store.read("a") == _stream("a")
                (read,) = await store.read("odd \ud800")
                assert isinstance(read, TurnStarted)
                assert read.turn == 1

        _run(check, tmp_path)

    def test_a_closed_store_refuses_events(self, tmp_path: Path) -> None:
        """So that nobody believes them kept; the engine then goes on without it."""

        async def check(place: Path) -> None:
            async with self.open_store(place) as store:
                pass
            try:
                store.emit(_stream("a")[0])
            except StoreError:
                return
            msg = "A store took an event after it was closed."
            raise AssertionError(msg)

        _run(check, tmp_path)

    def test_it_is_a_sink_for_an_agent(self, tmp_path: Path) -> None:
        """What the agent has gained can be read out of it."""

        @tool(effect=Effect.READ)
        async def look(row: int) -> str:
            """What a row holds."""
            return f"{row} is new"

        async def check(place: Path) -> None:
            model = ScriptedModel([[("look", {"row": 7})], "It is new."], delay=0.01)
            expects = RulePredictor([rule(r"row (?P<row>\d+)", "look")])
            async with self.open_store(place) as store:
                agent = Agent(model, [look], predictors=[expects])
                async with agent.open_session(sink=store) as session:
                    await agent.run("What is in row 7?", session=session)
                (name,) = await store.sessions()
                assert summarize(await store.read(name)).hits == 1

        _run(check, tmp_path)


def _run(check: Callable[[Path], Awaitable[None]], folder: Path) -> None:
    for backend in ("asyncio", "trio"):
        if find_spec(backend) is not None:
            place = folder / backend
            place.mkdir()
            anyio.run(check, place, backend=backend)
