"""A thousand sessions at once in one process: throughput, and engine time a turn.

    python benchmarks/sessions.py [--sessions 1000] [--turns 20] [--runs 5] [--json]

No figure here is a test. A turn is a model request, and a call of one read unless it is
the last turn of its session. Three arms take turns, `--runs` times, and each figure is
the median over the runs: `bare` is the same host loop without headstart, `off` a session
with `speculate=False`, and `on` a session with a predictor that expects a call in every
turn and is right in 60 % of them.

At once
    All sessions run together on the wall clock. Model and tool sleep for 20 to 50 ms
    each, drawn from a seed, the same in each arm. `turns/s` is throughput. `latency ms`
    is the median length of a turn that has a call; unless the processor is the limit, it
    is about 70 without speculation. `CPU us` is the processor time of the whole process
    a turn, with the event loop and the host: where it limits the throughput, the two say
    the same.

One at a time
    Model and tool only pass a checkpoint, so nothing ever waits, and whatever passes is
    work. All sessions are open, and a lock lets one of them have a turn after the other.
    A turn's time is the thread's processor time (`time.thread_time`, in which other
    processes on the machine do not count) from the end of the turn before it, of another
    session, to its own end. So all work is counted, once: the engine's, that of its tasks,
    which a turn may leave to the time of the next one, and the host's. `p50` and `p99` are
    over all turns of a run but the first of each session and those without a call;
    `engine us` is how much they are above those of `bare`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import statistics
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import anyio
import anyio.lowlevel

from headstart import (
    Effect,
    Message,
    ModelRequest,
    ModelResponse,
    Session,
    ToolCall,
    ToolContext,
    ToolResult,
    tool,
)
from headstart.predictors import Prediction

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

Arm: TypeAlias = Literal["bare", "off", "on"]
ARMS: tuple[Arm, ...] = get_args(Arm)
RIGHT = 0.6
SHORTEST_S, LONGEST_S = 0.02, 0.05


@dataclass(slots=True)
class Script:
    """What one session goes through: per turn the latencies, and who guesses right."""

    model_s: list[float]
    tool_s: list[float]
    right: list[bool]

    @classmethod
    def draw(cls, chance: random.Random, turns: int, *, waits: bool) -> Script:
        def draw() -> float:
            return chance.uniform(SHORTEST_S, LONGEST_S) if waits else 0.0

        return cls(
            model_s=[draw() for _ in range(turns)],
            tool_s=[draw() for _ in range(turns)],
            right=[chance.random() < RIGHT for _ in range(turns)],
        )

    async def respond(self, request: ModelRequest, on_delta: Any) -> ModelResponse:
        """Ask for the turn's call; answer in the last one."""
        del on_delta
        turn = len(request.history) // 2
        await _pass(self.model_s[turn])
        if turn + 1 == len(self.model_s):
            return ModelResponse(text="That is all.")
        call = ToolCall(f"call_{turn}", "look_up", f'{{"turn": {turn}, "row": 7}}')
        return ModelResponse(tool_calls=(call,))

    async def predict(self, conversation: Any) -> tuple[Prediction, ...]:
        """Expect the call of the turn that begins."""
        messages = conversation.messages
        turn = len(messages) // 2
        if messages[-1].role == "assistant" or turn + 1 == len(self.model_s):
            return ()
        row = 7 if self.right[turn] else 8
        return (
            Prediction(
                tool="look_up",
                arguments=f'{{"turn": {turn}, "row": {row}}}',
                probability=RIGHT,
            ),
        )


@tool(effect=Effect.READ, reads=["row:{row}"])
async def look_up(ctx: ToolContext[Script], turn: int, row: int) -> str:
    """Look up a row."""
    await _pass(ctx.deps.tool_s[turn])
    return f"row {row}, as of turn {turn}"


async def _pass(seconds: float) -> None:
    if seconds:
        await anyio.sleep(seconds)
    else:
        await anyio.lowlevel.checkpoint()


class BareSession:
    """The two seams of a session, with nothing behind them."""

    tools = (look_up,)

    def __init__(self, script: Script) -> None:
        self.context: Any = ToolContext(deps=script, call=None, barrier=None)  # type: ignore[arg-type]

    async def ask(self, request: ModelRequest, respond: Any) -> ModelResponse:
        return await respond(request, _ignore)

    async def call(self, call: ToolCall) -> ToolResult:
        arguments = look_up.validate(call.arguments)
        return ToolResult.from_value(await look_up.invoke(self.context, arguments))


def _ignore(delta: object) -> None:
    del delta


def open_session(arm: Arm, script: Script) -> AbstractAsyncContextManager[Any]:
    if arm == "bare":
        return nullcontext(BareSession(script))
    predictors = [script] if arm == "on" else []
    return Session([look_up], deps=script, predictors=predictors, speculate=arm == "on")


async def have_turn(
    session: Any, script: Script, history: tuple[Message, ...]
) -> tuple[Message, ...]:
    """One turn of the host's loop."""
    request = ModelRequest(history, session.tools)
    response = await session.ask(request, script.respond)
    history = (*history, response.message)
    for call in response.tool_calls:
        result = await session.call(call)
        history = (*history, Message.for_result(call, result))
    return history


@dataclass(frozen=True, slots=True, kw_only=True)
class AtOnce:
    turns_per_s: float
    latency_ms: float
    cpu_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OneAtATime:
    p50_us: float
    p99_us: float


def _begin() -> tuple[Message, ...]:
    return (Message(role="user", content="Look up what you need."),)


async def run_at_once(arm: Arm, scripts: list[Script]) -> AtOnce:
    latencies: list[float] = []

    async def live(script: Script) -> None:
        async with open_session(arm, script) as session:
            history = _begin()
            for _ in script.model_s:
                began = time.perf_counter()
                history = await have_turn(session, script, history)
                if history[-1].role == "tool":
                    latencies.append(time.perf_counter() - began)

    gc.collect()
    began, cpu_began = time.perf_counter(), time.process_time()
    async with anyio.create_task_group() as group:
        for script in scripts:
            group.start_soon(live, script)
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    turns = sum(len(script.model_s) for script in scripts)
    return AtOnce(
        turns_per_s=turns / seconds,
        latency_ms=statistics.median(latencies) * 1e3,
        cpu_us=cpu_s / turns * 1e6,
    )


async def run_one_at_a_time(arm: Arm, scripts: list[Script]) -> OneAtATime:
    lock, opened, ended = anyio.Lock(), Gate(len(scripts)), Gate(len(scripts))
    times: list[float] = []
    began = 0.0

    async def live(script: Script) -> None:
        nonlocal began
        async with open_session(arm, script) as session:
            history = _begin()
            await opened.wait()
            for turn in range(len(script.model_s)):
                async with lock:
                    history = await have_turn(session, script, history)
                    now = time.thread_time()
                    if turn and history[-1].role == "tool":
                        times.append(now - began)
                    began = now
            await ended.wait()

    gc.collect()
    async with anyio.create_task_group() as group:
        for script in scripts:
            group.start_soon(live, script)
    percentiles = statistics.quantiles(times, n=100)
    return OneAtATime(p50_us=percentiles[49] * 1e6, p99_us=percentiles[98] * 1e6)


class Gate:
    """Opens when so many tasks wait at it."""

    def __init__(self, count: int) -> None:
        self.missing = count
        self.event = anyio.Event()

    async def wait(self) -> None:
        self.missing -= 1
        if not self.missing:
            self.event.set()
        await self.event.wait()


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


async def measure(sessions: int, turns: int, runs: int) -> dict[Arm, dict[str, float]]:
    """The medians of each arm."""
    figures: dict[Arm, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for run in range(-1, runs):  # the first one warms up
        for arm in ARMS:
            row: dict[str, float] = {}
            for waits, measured in ((True, run_at_once), (False, run_one_at_a_time)):
                chance = random.Random(run)
                count = sessions if run >= 0 else min(sessions, 20)
                scripts = [
                    Script.draw(chance, turns, waits=waits) for _ in range(count)
                ]
                row |= asdict(await measured(arm, scripts))
            if run >= 0:
                figures[arm].append(row)
    medians = {arm: _medians(rows) for arm, rows in figures.items()}
    for row in medians.values():
        row["engine_p50_us"] = row["p50_us"] - medians["bare"]["p50_us"]
        row["engine_p99_us"] = row["p99_us"] - medians["bare"]["p99_us"]
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    medians = asyncio.run(measure(options.sessions, options.turns, options.runs))
    if options.json:
        print(json.dumps({**vars(options), "arms": medians}))
        return
    print(
        f"Python {sys.version.split()[0]}, {options.sessions} sessions of "
        f"{options.turns} turns, medians of {options.runs} runs"
    )
    print(f"{'':6}{'at once':>34}{'one at a time':>32}")
    heads = (
        "turns/s",
        "latency ms",
        "CPU us",
        "p50 us",
        "p99 us",
        "engine us p50",
        "p99",
    )
    widths = (10, 13, 11, 10, 10, 16, 8)
    print(f"{'':6}" + "".join(f"{h:>{w}}" for h, w in zip(heads, widths, strict=True)))
    for arm, row in medians.items():
        cells = zip(row.values(), widths, strict=True)
        print(f"{arm:6}" + "".join(f"{value:>{width}.1f}" for value, width in cells))


if __name__ == "__main__":
    main()
