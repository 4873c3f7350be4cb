"""What an adapter adds to a framework's own cost of a tool call, and what it gains.

    python benchmarks/adapters.py [--calls 20] [--rounds 24] [--wall] [--json] [NAME ...]

No figure here is a test. Each framework's agent is that of the conformance suite: its
own loop, its own tools, its own test model. Model and tools answer at once, so what
passes is work. A run is `--calls` turns of one call each and an answer, and what it costs
is the CPU time of the process, all its threads together, divided by the calls. Arms take
turns in one process, each round begins with another one, and the median of `--rounds`
runs is shown, in microseconds:

    bare    the framework alone
    idle    with an extension of the framework's that does nothing, at the same seams,
            where it has them: what any middleware or capability costs
    off     with the adapter, `speculate=False`
    miss    with a predictor that expects another call in every turn
    hit     with a predictor that expects the very call in every turn

Behind each stands how much more than `bare` that is: the median of the rounds' own
ratios, which other work on the machine distorts least, and the quartiles.

Only `off` above `bare` (or `idle`) is what the adapter itself costs; `miss` and `hit` have
the work of the engine in them, and a launch that is thrown away or adopted. In loops of
one's own, `bare` is a loop over the SDK, and what is added is a whole session. For MCP,
`bare` is our own `Agent` without speculation, over a server in this process.

`--wall` measures a gain on the wall clock, once: ten turns of a read, model and tool take
a second each, and six of the ten calls are predicted. The bound is `(N - m) * max(G, T) +
m * (G + T) + G`, see benchmarks/bounds.py.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, TypeAlias

import anyio

sys.path.insert(0, str(Path(__file__).parents[1]))

from headstart.predictors import Conversation, Prediction
from headstart.testing import Scene, Stage, StageTool

Figures: TypeAlias = dict[str, Any]

ARMS = ("bare", "idle", "off", "miss", "hit")
SUITES = {
    "pydantic-ai": ("tests.adapters.test_pydantic_ai", "TestPydanticAI"),
    "openai-agents": ("tests.adapters.test_openai_agents", "TestOpenAIAgents"),
    "langchain": ("tests.adapters.test_langchain", "TestLangchain"),
    "openai-chat": ("tests.adapters.test_openai", "TestChatCompletions"),
    "openai-responses": ("tests.adapters.test_openai", "TestResponses"),
    "anthropic": ("tests.adapters.test_anthropic", "TestMessages"),
    "mcp": ("tests.adapters.test_mcp", "TestMCP"),
}


class Quick(Stage):
    """A stage with one read, which takes `seconds`."""

    def __init__(self, seconds: float) -> None:
        async def look(row: int) -> str:
            """What a row holds."""
            await anyio.sleep(seconds)
            return f"{row} is new"

        super().__init__()
        declared = {"effect": "READ", "reads": ["row:{row}"]}
        self.tools = (StageTool(function=look, declared=declared),)


class Expects:
    """Expects the next row when the model is asked; `aside` expects another one."""

    def __init__(self, *, hits: int, of: int, aside: bool = False) -> None:
        self._hits, self._of, self._aside = hits, of, aside

    async def predict(self, conversation: Conversation, /) -> list[Prediction]:
        messages = conversation.messages
        if messages[-1].role == "assistant" or conversation.partial:
            return []
        row = sum(message.role == "assistant" for message in messages)
        if row >= self._of:
            return []
        # Hits and misses are spread evenly.
        right = (row + 1) * self._hits // self._of > row * self._hits // self._of
        row = row if right and not self._aside else row + 1_000
        return [Prediction(tool="look", arguments={"row": row}, probability=0.9)]


class Bench:
    """One framework's suite, and the arms that it has."""

    def __init__(self, name: str) -> None:
        module, suite = SUITES[name]
        found = importlib.import_module(module)
        self._suite: Any = getattr(found, suite)()
        self._idle: Any = getattr(found, "Idle", None)
        self.arms = [arm for arm in ARMS if arm != "idle" or self._idle]

    async def run(
        self, arm: str, calls: int, *, hits: int, seconds: float = 0.0
    ) -> tuple[float, float]:
        """The seconds of one run, on the clock and of the processors."""
        responses: list[Any] = [[("look", {"row": row})] for row in range(calls)]
        scene = Scene(name="bench", responses=[*responses, "Done."], delay=seconds)
        stage, options = Quick(seconds), None
        if arm not in ("bare", "idle"):
            expects = Expects(hits=hits, of=calls, aside=arm == "miss")
            options = {
                "effects": stage.declared,
                "predictors": [] if arm == "off" else [expects],
                "speculate": arm != "off",
            }
        if self._idle:
            self._suite.extra = [self._idle()] if arm == "idle" else []
        began, worked = time.perf_counter(), time.process_time()
        await self._suite.run(scene, stage, scene.model(), options)
        return time.perf_counter() - began, time.process_time() - worked


async def measure(bench: Bench, calls: int, rounds: int) -> Figures:
    """Microseconds a call by arm, and how many times those of `bare` they are."""
    runs: list[dict[str, float]] = []
    for number in range(rounds + 2):
        first = number % len(bench.arms)
        worked: dict[str, float] = {}
        for arm in bench.arms[first:] + bench.arms[:first]:
            gc.collect()
            _, worked[arm] = await bench.run(arm, calls, hits=calls)
        runs.append(worked)
    del runs[:2]  # they warm up
    figures: Figures = {}
    for arm in bench.arms:
        microseconds = statistics.median(run[arm] for run in runs) / calls * 1e6
        ratios = [run[arm] / run["bare"] for run in runs]
        quartiles = statistics.quantiles(ratios, n=4)
        figures[arm] = {"us": microseconds, "times_bare": quartiles}
    return figures


async def measure_gain(bench: Bench) -> Figures:
    """Seconds of ten turns on the wall clock, six of them hits, and the bound."""
    off, _ = await bench.run("bare", 10, hits=6, seconds=1.0)
    on, _ = await bench.run("hit", 10, hits=6, seconds=1.0)
    return {"off_s": off, "on_s": on, "bound_s": 15.0}


def show(name: str, figures: Figures) -> None:
    wall = figures.pop("wall", None)
    arms: list[str] = []
    for arm, found in figures.items():
        if arm == "bare":
            arms.append(f"bare {found['us']:.0f} us a call")
        else:
            low, middle, high = (f"{each - 1:+.0%}" for each in found["times_bare"])
            arms.append(f"{arm} {middle} ({low} to {high})")
    print(f"{name:16}", "  ".join(arms), flush=True)
    if wall:
        share = wall["bound_s"] / wall["on_s"]
        seconds = f"{wall['off_s']:.2f} s without, {wall['on_s']:.2f} s with"
        print(f"{'':16} {seconds}: {share:.1%} of the bound", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="What adapters cost and gain.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SUITES))
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--wall", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    unknown = set(options.names) - set(SUITES)
    if unknown:
        parser.error(f"no such framework: {', '.join(sorted(unknown))}")
    everything: dict[str, Figures] = {}
    for name in options.names or SUITES:
        bench = Bench(name)
        figures = anyio.run(measure, bench, options.calls, options.rounds)
        if options.wall:
            figures["wall"] = anyio.run(measure_gain, bench)
        everything[name] = figures
        if not options.json:
            show(name, figures)
    if options.json:
        print(json.dumps(everything, indent=2))


if __name__ == "__main__":
    main()
