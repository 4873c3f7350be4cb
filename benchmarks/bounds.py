"""How near the engine comes to the bounds of its idea, exactly, in virtual time.

    python benchmarks/bounds.py [--mode calls|results|both|beside] [--steps 8]
                                [--predictor-s 0] [--seed 1] [--json]

A session is `N` steps and an answer. In each step the model thinks for `G` seconds and
asks for one call, whose tool takes `T`; at the end it thinks for `G` once more and
answers. `p * N` of the steps are predicted right and the others wrong; a seed says which.
What is predicted wrong is launched or run ahead all the same, at no limits. The run is
compared with one without speculation, which takes `N * (G + T) + G`: message by message,
and to the millisecond with the formula of its mode. `m = (1 - p) * N` are the misses.

`calls`: a read is predicted when the model starts, and launched. The model and the tool
of a step overlap; nothing hides the answer. Both ends are in the formula:

    a step    p * max(G, T) + (1 - p) * (G + T)
    session   (N - m) * max(G, T) + m * (G + T) + G

`results`: a write states its result when it starts, truly or not, and waits at its
barrier until it is confirmed. The next request is run ahead on that, so the tool of a
step and the model of the next one overlap; nothing hides the first request:

    a step    p * max(G, T) + (1 - p) * (G + T)
    session   G + (N - m) * max(G, T) + m * (G + T)

`both`: a read is predicted when the model starts, and its result when the model asks for
it. No request waits for a tool, and no tool for a model: a hit costs the model's time.

    a step    p * G + (1 - p) * (G + T)
    session   max(N * G + m * T + G, end(i) of each hit i)
              end(i) = T + the a step of those before i: G, and T more for a miss

The answer stands on predicted results, and is accepted when the real ones are there.
That makes the difference for the last hits, if T > 2 * G.

`beside`: a read is predicted when the model starts, and states its result when it
starts. The next request is sent at once, beside the running one, so that hits in a row
cost no time: their models run side by side, and so do their tools. A miss ends the row:
its model has run beside theirs, its tool starts when that has answered, and the next row
when that tool has ended.

    a step    (1 - p) * (G + T)
    session   m * (G + T) + (max(G, T) if the last step is a hit, else G)

A predictor that thinks for `g` seconds launches so much later, or not at all if the model
is faster: with `h = min(g, G)`, a hit of `calls` costs `max(G, h + T)`, one of `beside`
costs `h`, and `end(i)` is later by `h`. `session_s` computes all of this in one way.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import anyio

from headstart import (
    Agent,
    LimitPolicy,
    ModelResponse,
    Tool,
    ToolCall,
    ToolContext,
    ToolResult,
)
from headstart.predictors import Prediction, ResultPrediction
from headstart.testing import run_virtual

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Mode: TypeAlias = Literal["calls", "results", "both", "beside"]
MODES: tuple[Mode, ...] = get_args(Mode)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
SECONDS = (0.1, 0.3, 1.0, 3.0, 10.0)
TOLERANCE_S = 0.001
STEP_FORMULAS: dict[Mode, str] = {
    "calls": "p * max(G, T) + (1 - p) * (G + T)",
    "results": "p * max(G, T) + (1 - p) * (G + T)",
    "both": "p * G + (1 - p) * (G + T)",
    "beside": "(1 - p) * (G + T)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One session: `model_s` is G, `tool_s` is T, and `hits` has a member a step."""

    mode: Mode
    model_s: float
    tool_s: float
    hits: tuple[bool, ...]
    predictor_s: float = 0.0

    @property
    def share(self) -> float:
        """The share of right predictions, p."""
        return sum(self.hits) / len(self.hits)

    @property
    def serial_s(self) -> float:
        """What the session takes without speculation."""
        return len(self.hits) * (self.model_s + self.tool_s) + self.model_s

    @property
    def hit_s(self) -> float:
        """What a step costs that was predicted right."""
        return {
            "calls": max(self.model_s, self._late_s + self.tool_s),
            "results": max(self.model_s, self.tool_s),
            "both": self.model_s,
            "beside": self._late_s,
        }[self.mode]

    @property
    def session_s(self) -> float:
        """What the session takes at best; see the head of this file."""
        start = end = 0.0
        for hit in self.hits:
            if hit:
                end = start + self._late_s + self.tool_s
            start += self.hit_s if hit else self.model_s + self.tool_s
        if self.mode in ("calls", "results"):  # no answer stands on predicted results
            end = 0.0
        return max(end, start + self.model_s)

    @property
    def _late_s(self) -> float:
        return min(self.predictor_s, self.model_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one session took, without and with speculation."""

    off_s: float
    on_s: float


def spread_hits(share: float, steps: int, *, seed: int = 1) -> tuple[bool, ...]:
    """Exactly `share` of `steps` hits, in an order that depends on the seed alone."""
    count = round(share * steps)
    if steps < 1 or not math.isclose(count, share * steps):
        msg = f"{share} of {steps} steps is not a number of steps: choose others."
        raise ValueError(msg)
    hits = [True] * count + [False] * (steps - count)
    random.Random(seed).shuffle(hits)
    return tuple(hits)


def list_cases(
    modes: Sequence[Mode] = MODES,
    *,
    steps: int = 8,
    shares: Sequence[float] = SHARES,
    seconds: Sequence[float] = SECONDS,
    predictor_s: float = 0.0,
    seed: int = 1,
) -> Iterator[Case]:
    """The grid, in the order of the tables."""
    for mode in modes:
        for model_s in seconds:
            for tool_s in seconds:
                for share in shares:
                    yield Case(
                        mode=mode,
                        model_s=model_s,
                        tool_s=tool_s,
                        hits=spread_hits(share, steps, seed=seed),
                        predictor_s=predictor_s,
                    )


class _Scene:
    """The model and the tool of one case, which know nothing of speculation.

    The model asks for step after step, and each call repeats what the one before it
    gave: a wrong result, or another call, would lead to another conversation.
    """

    def __init__(self, case: Case) -> None:
        self.case = case

    async def respond(self, request: Any, on_delta: Any) -> ModelResponse:
        del on_delta
        await anyio.sleep(self.case.model_s)
        told = [m.content for m in request.history if m.role == "tool"]
        step, after = len(told), told[-1] if told else "nothing"
        if step == len(self.case.hits):
            return ModelResponse(text=f"The last one was {after}.")
        call = ToolCall(f"call_{step}", "work", _write(step, after))
        return ModelResponse(tool_calls=(call,))

    async def work(self, ctx: ToolContext, step: int, after: str) -> str:
        result = _result(step, after)
        mode = self.case.mode
        if mode in ("results", "beside"):
            ctx.early_result(result if self.case.hits[step] else "a guess")
        if mode == "results":
            await ctx.barrier.wait()
        await anyio.sleep(self.case.tool_s)
        return result


class _CallPredictor:
    """Expects the next step's call when a request is sent, rightly or not."""

    def __init__(self, case: Case) -> None:
        self.case = case

    async def predict(self, conversation: Any) -> list[Prediction]:
        told = [m.content for m in conversation.messages if m.role == "tool"]
        step, after = len(told), told[-1] if told else "nothing"
        asks = conversation.messages[-1].role != "assistant"
        if not asks or step == len(self.case.hits):
            return []
        await anyio.sleep(self.case.predictor_s)
        expected = after if self.case.hits[step] else "a guess"
        return [
            # Eight of them in a row are still more probable than not.
            Prediction(tool="work", arguments=_write(step, expected), probability=0.95)
        ]


class _ResultPredictor:
    """States what a step's call will give, rightly or not."""

    def __init__(self, case: Case) -> None:
        self.case = case

    async def predict(self, conversation: Any) -> list[Prediction]:
        del conversation
        return []

    def predict_results(
        self, call: ToolCall, conversation: Any
    ) -> list[ResultPrediction]:
        del conversation
        arguments = json.loads(call.arguments)
        right = self.case.hits[arguments["step"]]
        result = ToolResult(_result(**arguments) if right else "a guess")
        return [ResultPrediction(result=result)]


def _write(step: int, after: str) -> str:
    # A request beside a running one counts only if the answer is this to the letter.
    return json.dumps({"step": step, "after": after}, separators=(",", ":"))


def _result(step: int, after: str) -> str:
    return f"{step} after {after}"[:24]


def make_agent(case: Case) -> Agent:
    """The agent of a case, with as much speculation as its mode has."""
    scene, mode = _Scene(case), case.mode
    effect = "gated" if mode == "results" else "read"
    predictors: list[Any] = []
    if mode != "results":
        predictors.append(_CallPredictor(case))
    if mode == "both":
        predictors.append(_ResultPredictor(case))
    policy = LimitPolicy(
        max_in_flight=10_000,
        max_in_flight_of_tool=10_000,
        max_depth=10_000,
        min_beside_probability=0.5 if mode == "beside" else 1.1,
        max_wasted_s=math.inf,
    )
    return Agent(
        scene,
        [Tool(scene.work, name="work", effect=effect, max_age=None)],
        predictors=predictors,
        policy=policy,
        max_turns=len(case.hits) + 1,
    )


async def measure(case: Case) -> Measured:
    """Run a case without and with speculation, on an event loop in virtual time.

    Raises:
        RuntimeError: The two conversations differ.
    """
    seconds, conversations = [], []
    for speculate in (False, True):
        async with make_agent(case).open_session(speculate=speculate) as session:
            began = anyio.current_time()
            result = await make_agent(case).run("Go.", session=session)
            seconds.append(anyio.current_time() - began)
        conversations.append(result.messages)
    if conversations[0] != conversations[1]:
        msg = f"The conversations without and with speculation differ: {case}"
        raise RuntimeError(msg)
    return Measured(off_s=seconds[0], on_s=seconds[1])


def deviation_s(case: Case, measured: Measured) -> float:
    """How far either run is from its formula."""
    return max(abs(measured.off_s - case.serial_s), abs(measured.on_s - case.session_s))


def _print_mode(mode: Mode, rows: list[tuple[Case, Measured]]) -> None:
    print(f"\n{mode}: a step {STEP_FORMULAS[mode]}; measured / bound of the session, s")
    shares = sorted({case.share for case, _ in rows})
    print(f"{'G':>5}{'T':>6}" + "".join(f"{f'p = {share:g}':>20}" for share in shares))
    for start in range(0, len(rows), len(shares)):
        row = rows[start : start + len(shares)]
        cells = (f"{took.on_s:.3f} / {case.session_s:.3f}" for case, took in row)
        case = row[0][0]
        print(
            f"{case.model_s:>5g}{case.tool_s:>6g}" + "".join(f"{c:>20}" for c in cells)
        )
    worst = max(deviation_s(*row) for row in rows)
    fastest = max(took.off_s / took.on_s for _, took in rows)
    print(f"worst deviation {worst * 1000:.6f} ms; largest speed-up {fastest:.3f}")
    wrong = [took.on_s / took.off_s for case, took in rows if not any(case.hits)]
    if wrong:
        print(
            f"every prediction wrong: {min(wrong):.3f} to {max(wrong):.3f} of the time"
        )


def _as_json(rows: list[tuple[Case, Measured]]) -> str:
    wrong = [took.on_s / took.off_s for case, took in rows if not any(case.hits)]
    return json.dumps(
        {
            "cases": [
                asdict(case)
                | {"hits": sum(case.hits), "steps": len(case.hits), "share": case.share}
                | {"off_s": took.off_s, "on_s": took.on_s, "bound_s": case.session_s}
                for case, took in rows
            ],
            "worst_deviation_s": max(deviation_s(*row) for row in rows),
            "worst_ratio_all_wrong": max(wrong, default=None),
        }
    )


def main() -> int:
    """Print the tables. Exit status 1 if a session is not what its formula says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mode", choices=MODES, action="append")
    parser.add_argument("--steps", type=int, default=8, help="a multiple of 4")
    parser.add_argument("--predictor-s", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows: list[tuple[Case, Measured]] = []
    for mode in options.mode or MODES:
        cases = list_cases(
            [mode],
            steps=options.steps,
            predictor_s=options.predictor_s,
            seed=options.seed,
        )
        of_mode = [(case, run_virtual(measure, case)) for case in cases]
        rows += of_mode
        if not options.json:
            _print_mode(mode, of_mode)
    if options.json:
        print(_as_json(rows))
    return int(max(deviation_s(*row) for row in rows) > TOLERANCE_S)


if __name__ == "__main__":
    sys.exit(main())
