"""What an adapter adds to a framework's own cost of a tool call, and what it gains.

    python benchmarks/adapters.py [--calls 20] [--rounds 15] [--wall] [--json] [NAME ...]

No figure here is a test. Each framework's agent is that of the conformance suite: its
own loop, its own tools, its own test model. Model and tools answer at once, so what
passes is work. A run is `--calls` turns of one call each and an answer; its time divided
by the calls is a figure, and the median of `--rounds` runs is shown, in microseconds. Arms
take turns in one process:

    bare    the framework alone
    off     with the adapter, `speculate=False`
    miss    with a predictor that expects another call in every turn
    hit     with a predictor that expects the very call in every turn

Only `off` above `bare` is what the adapter itself costs; `miss` and `hit` have the work of
the engine in them, and a launch that is thrown away or adopted.

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
from typing import Any, Literal, TypeAlias, get_args

import anyio

sys.path.insert(0, str(Path(__file__).parents[1]))

from headstart.predictors import Conversation, Prediction
from headstart.testing import Scene, Stage, StageTool

Arm: TypeAlias = Literal["bare", "off", "miss", "hit"]

SUITES = {
    "pydantic-ai": ("tests.adapters.test_pydantic_ai", "TestPydanticAI"),
    "openai-agents": ("tests.adapters.test_openai_agents", "TestOpenAIAgents"),
    "langchain": ("tests.adapters.test_langchain", "TestLangchain"),
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


def script(calls: int, delay: float) -> Scene:
    responses: list[Any] = [[("look", {"row": row})] for row in range(calls)]
    return Scene(name="bench", responses=[*responses, "Done."], delay=delay)


async def run_once(
    suite: Any, arm: Arm, calls: int, *, hits: int, seconds: float = 0.0
) -> float:
    """The seconds of one run."""
    stage, scene = Quick(seconds), script(calls, seconds)
    options: dict[str, Any] | None = None
    if arm != "bare":
        expects = Expects(hits=hits, of=calls, aside=arm == "miss")
        options = {
            "effects": stage.declared,
            "predictors": [] if arm == "off" else [expects],
            "speculate": arm != "off",
        }
    began = time.perf_counter()
    await suite.run(scene, stage, scene.model(), options)
    return time.perf_counter() - began


async def measure(suite: Any, calls: int, rounds: int) -> dict[str, float]:
    """Microseconds a call, by arm."""
    seconds: dict[Arm, list[float]] = {arm: [] for arm in get_args(Arm)}
    for number in range(rounds + 1):
        for arm, taken in seconds.items():
            gc.collect()
            passed = await run_once(suite, arm, calls, hits=calls)
            if number:  # the first round warms up
                taken.append(passed)
    return {
        arm: statistics.median(taken) / calls * 1e6 for arm, taken in seconds.items()
    }


async def measure_gain(suite: Any) -> dict[str, float]:
    """Seconds of ten turns on the wall clock, six of them hits, and the bound."""
    off = await run_once(suite, "bare", 10, hits=6, seconds=1.0)
    on = await run_once(suite, "hit", 10, hits=6, seconds=1.0)
    return {"off_s": off, "on_s": on, "bound_s": 15.0}


def main() -> None:
    parser = argparse.ArgumentParser(description="What adapters cost and gain.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SUITES))
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--wall", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    unknown = set(options.names) - set(SUITES)
    if unknown:
        parser.error(f"no such framework: {', '.join(sorted(unknown))}")
    figures: dict[str, dict[str, float]] = {}
    for name in options.names or SUITES:
        module, suite = SUITES[name]
        runner = getattr(importlib.import_module(module), suite)()
        figures[name] = anyio.run(measure, runner, options.calls, options.rounds)
        if options.wall:
            figures[name] |= anyio.run(measure_gain, runner)
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    for name, row in figures.items():
        bare = row["bare"]
        arms = (f"{arm} {row[arm]:.0f} ({row[arm] / bare - 1:+.0%})" for arm in row)
        print(f"{name:14}", "  ".join(list(arms)[: len(get_args(Arm))]), "us a call")
        if options.wall:
            share = row["bound_s"] / row["on_s"]
            seconds = f"{row['off_s']:.2f} s without, {row['on_s']:.2f} s with"
            print(f"{'':14} {seconds}: {share:.1%} of the bound")


if __name__ == "__main__":
    main()
