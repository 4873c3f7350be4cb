"""What the engine costs: medians on asyncio, in one process, beside a bare task.

    python benchmarks/overhead.py [--quick]

No figure here is a test. Each is the median over rounds in which the two things that
are compared take turns, so that a machine that slows down slows both.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import sys
import time
import tracemalloc

import anyio

from headstart import (
    Effect,
    ModelRequest,
    ModelResponse,
    Session,
    ToolCall,
    ToolCallSpeculator,
    WriteBarrier,
    tool,
)
from headstart.predictors import Prediction

QUICK = "--quick" in sys.argv
ROUNDS = 5 if QUICK else 15
CALLS = 200 if QUICK else 1000


@tool(effect=Effect.READ)
async def lookup(key: int) -> str:
    await asyncio.sleep(0)
    return "found"


CALL = ToolCall("call_1", "lookup", '{"key": 7}')
REQUEST = ModelRequest([{"role": "user", "content": "look up 7"}], [lookup])


async def one_call(request, on_delta):
    await asyncio.sleep(0)
    return ModelResponse(tool_calls=(CALL,))


class Expects:
    async def predict(self, conversation):
        return (Prediction(tool="lookup", arguments=CALL.arguments, probability=0.9),)


async def bare() -> float:
    """The same work as bare asyncio: a model coroutine, and a task for the tool."""
    began = time.perf_counter()
    for _ in range(CALLS):
        await one_call(REQUEST, None)
        await asyncio.create_task(lookup.function(7))
    return (time.perf_counter() - began) / CALLS


async def through(predictors) -> float:
    async with Session([lookup], predictors=predictors) as session:
        began = time.perf_counter()
        for _ in range(CALLS):
            await session.ask(REQUEST, one_call)
            await session.call(CALL)
        return (time.perf_counter() - began) / CALLS


async def calling() -> float:
    """The tool's seam alone: the time of `session.call`."""
    async with Session([lookup]) as session:
        spent = 0.0
        for _ in range(CALLS):
            await session.ask(REQUEST, one_call)
            began = time.perf_counter()
            await session.call(CALL)
            spent += time.perf_counter() - began
        return spent / CALLS


async def bare_calling() -> float:
    began = time.perf_counter()
    for _ in range(CALLS):
        await asyncio.create_task(lookup.function(7))
    return (time.perf_counter() - began) / CALLS


async def launching() -> float:
    """Launch a call in a task group, let it run, adopt it."""
    async with anyio.create_task_group() as group:
        began = time.perf_counter()
        for _ in range(CALLS):
            guess = ToolCallSpeculator(lookup, CALL.arguments)
            guess.launch(group)
            await guess.adopt()
        return (time.perf_counter() - began) / CALLS


async def asking() -> float:
    """The model's seam alone, so that the tool's can be told apart."""
    async with Session([lookup]) as session:
        began = time.perf_counter()
        for _ in range(CALLS):
            await session.ask(REQUEST, one_call)
        return (time.perf_counter() - began) / CALLS


async def bare_asking() -> float:
    began = time.perf_counter()
    for _ in range(CALLS):
        await one_call(REQUEST, None)
    return (time.perf_counter() - began) / CALLS


async def barrier() -> float:
    """A task waits at a barrier that another flushes."""
    began = time.perf_counter()
    for _ in range(CALLS):
        held = WriteBarrier()
        task = asyncio.create_task(held.wait())
        await asyncio.sleep(0)
        held.flush()
        await task
    return (time.perf_counter() - began) / CALLS


async def bare_event() -> float:
    began = time.perf_counter()
    for _ in range(CALLS):
        event = asyncio.Event()
        task = asyncio.create_task(event.wait())
        await asyncio.sleep(0)
        event.set()
        await task
    return (time.perf_counter() - began) / CALLS


async def compare(name, ours, theirs, aim) -> None:
    added = []
    await ours(), await theirs()
    for _ in range(ROUNDS):
        added.append(await ours() - await theirs())
    aimed = f"{aim:>8} us aimed at" if aim else ""
    print(f"{name:<44}{statistics.median(added) * 1e6:>9.1f} us{aimed}")


async def matching() -> None:
    arguments = {f"field_{n}": f"value {n} of some length here" for n in range(22)}
    text = json.dumps(arguments)
    other = json.dumps(dict(reversed(arguments.items())))

    @tool(effect=Effect.READ)
    async def typed(field_0: str, field_1: str = "") -> str:
        return ""

    from headstart import Tool

    plain = Tool(
        lookup.function, name="plain", parameters={"type": "object"}, effect="read"
    )
    for kind, subject in (("schema unknown", plain), ("schema known", typed)):
        guess = ToolCallSpeculator(subject, text)
        for case, written in (("same text", text), ("other order", other)):
            call = ToolCall("1", subject.name, written)
            times = []
            for _ in range(ROUNDS):
                began = time.perf_counter()
                for _ in range(CALLS):
                    assert guess.matches(call)
                times.append((time.perf_counter() - began) / CALLS)
            name = f"matches on {len(text)} B ({kind}, {case})"
            print(
                f"{name:<44}{statistics.median(times) * 1e6:>9.1f} us{15:>8} us aimed at"
            )


async def memory() -> None:
    count = 200 if QUICK else 1000
    stop = anyio.Event()

    @tool(effect=Effect.READ)
    async def held(key: int) -> str:
        await stop.wait()
        return ""

    async def live(session, entered):
        async with session:
            entered()
            await stop.wait()

    entered = 0

    def enter():
        nonlocal entered
        entered += 1

    def bare_task():
        return asyncio.create_task(stop.wait())

    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    bare_tasks = [bare_task() for _ in range(count)]
    await asyncio.sleep(0)
    between = tracemalloc.get_traced_memory()[0]
    tasks = [asyncio.create_task(live(Session([held]), enter)) for _ in range(count)]
    while entered < count:
        await asyncio.sleep(0)
    after = tracemalloc.get_traced_memory()[0]
    own = (between - before) / count
    size = (after - between) / count - own
    print(f"{'memory of an open session':<44}{size / 1024:>9.1f} kB{10:>8} kB aimed at")
    async with anyio.create_task_group() as group:
        before = tracemalloc.get_traced_memory()[0]
        guesses = [ToolCallSpeculator(held, '{"key": 1}') for _ in range(count)]
        for guess in guesses:
            guess.launch(group)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        after = tracemalloc.get_traced_memory()[0]
        size = (after - before) / count
        name = "memory of an open speculation"
        print(f"{name:<44}{size / 1024:>9.1f} kB{6:>8} kB aimed at")
        tracemalloc.stop()
        stop.set()
    for task in (*tasks, *bare_tasks):
        await task


async def many_sessions() -> None:
    for count in (100, 1000) if QUICK else (100, 1000, 10_000):

        async def live():
            async with Session([lookup], predictors=[Expects()]) as session:
                for _ in range(3):
                    await session.ask(REQUEST, one_call)
                    await session.call(CALL)

        gc.collect()
        began = time.perf_counter()
        async with anyio.create_task_group() as group:
            for _ in range(count):
                group.start_soon(live)
        each = (time.perf_counter() - began) / count
        print(
            f"{f'{count} sessions of 3 turns at once':<44}{each * 1e6:>9.0f} us a session"
        )


async def main() -> None:
    print(f"Python {sys.version.split()[0]}, median of {ROUNDS} rounds of {CALLS}")
    await compare("a call, no predictors", calling, bare_calling, 40)
    await compare("a call, launched and adopted alone", launching, bare_calling, 120)
    await compare("a turn and its call, no predictors", lambda: through([]), bare, "")
    await compare("  of which the model's seam", asking, bare_asking, "")
    await compare(
        "a turn and its call, launched and adopted",
        lambda: through([Expects()]),
        bare,
        "",
    )
    await compare("a barrier's wait and flush", barrier, bare_event, 10)
    await matching()
    await memory()
    await many_sessions()


if __name__ == "__main__":
    asyncio.run(main())
