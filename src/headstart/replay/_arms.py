"""The host of a replay: walks a recorded run through the real engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from headstart._calls import decode_arguments
from headstart._errors import UsageError
from headstart._events import EventLog
from headstart._messages import ModelRequest
from headstart._policy import LimitPolicy
from headstart._session import Session
from headstart._tools import Effect, Tool
from headstart.predictors import RulePredictor
from headstart.testing import run_virtual

from ._latency import Latency
from ._oracle import OraclePredictor, RandomPredictor
from ._recorded import (
    RecordedWorld,
    Timing,
    make_tools,
    mean_tool_seconds,
    read_declarations,
)
from ._report import ArmReport, ReplayReport
from ._traces import read_runs

if TYPE_CHECKING:
    from headstart._calls import ToolCall
    from headstart._policy import Policy
    from headstart.predictors import Predictor

    from ._recorded import RecordedTool, ToolDeclaration
    from ._traces import RecordedCall, RecordedRun, RecordedTurn

ARMS = ("off", "oracle", "random", "predicted")
"""Without speculation, with perfect predictions, with random ones, with the rules."""

_UNLIMITED = LimitPolicy(
    min_probability=0.0,
    max_in_flight=1_000_000,
    max_in_flight_of_tool=1_000_000,
    max_depth=1_000,
    min_beside_probability=0.5,
    max_wasted_s=float("inf"),
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arm:
    """How one arm runs: what it adds to the plain engine."""

    name: str
    policy: Policy | None = None
    predictors: Callable[[RecordedRun], Sequence[Predictor]] | None = None


def replay_file(
    path: str | Path,
    *,
    tools: str | Path | Mapping[str, ToolDeclaration] | None = None,
    rules: str | Path | None = None,
    model_latency: Latency | str | float = 2.0,
    tool_latency: Latency | str | float | None = None,
    arms: Sequence[str] | None = None,
    seed: int = 0,
    limit: int | None = None,
    on_progress: Progress | None = None,
) -> ReplayReport:
    """Run recorded conversations through the real engine, in virtual time.

    Blocks until all is done, without network or model; interrupting it leaves nothing
    behind. Not to be called in a running event loop. A file without any good line gives
    a report of 0 runs.

    Args:
        path: A file of recorded runs: a JSON object with chat `messages` a line.
        tools: A `tools.json`, or what was read from it. Tools that it does not name are
            `UNSAFE`.
        rules: A rules file for the arm `predicted`.
        model_latency: Seconds of the answers whose time the file does not say.
        tool_latency: Seconds of each call; `None` takes the recorded ones, and 1 second
            where the file does not say.
        arms: Some of `ARMS`; `None` for all that the given options allow.
        seed: Of latencies and random predictions.
        limit: How many runs to read at most.
        on_progress: Called after each run of each arm with how many are done, and of
            how many.

    Raises:
        TraceFormatError: A file cannot be read.
        UsageError: An option is wrong.
    """
    path = Path(path)
    names = _choose_arms(arms, rules=rules is not None)
    model = Latency.parse(model_latency)
    tool = None if tool_latency is None else Latency.parse(tool_latency)
    if tools is None or isinstance(tools, Mapping):
        declared = tools or {}
    else:
        declared = read_declarations(Path(tools))
    runs, bad_lines = read_runs(path, limit=limit)
    made = make_tools(runs, declared)
    timing = Timing(
        model=model, tool=tool, seed=seed, tool_means=mean_tool_seconds(runs)
    )
    # Without declarations the rules cannot be checked: what a recording does not call
    # may exist all the same.
    predictor = (
        None
        if rules is None
        else RulePredictor.from_file(rules, tools=made if declared else None)
    )
    described = [_describe(name, runs, made, predictor, seed) for name in names]
    reports: dict[str, ArmReport] = {}
    done = 0
    for arm in described:
        report = reports[arm.name] = ArmReport()
        for run in runs:
            run_virtual(partial(_replay_run, run, arm, made, timing, report))
            done += 1
            if on_progress is not None:
                on_progress(done, len(runs) * len(described))
    return ReplayReport(
        file=str(path),
        options={
            "seed": seed,
            "model_latency": str(model),
            "tool_latency": "recorded" if tool is None else str(tool),
        },
        runs=len(runs),
        bad_lines=tuple(bad_lines),
        calls_without_result=sum(run.calls_without_result for run in runs),
        results_without_call=sum(run.results_without_call for run in runs),
        arms=reports,
    )


def _choose_arms(arms: Sequence[str] | None, *, rules: bool) -> tuple[str, ...]:
    if arms is None:
        return tuple(name for name in ARMS if rules or name != "predicted")
    for name in arms:
        if name not in ARMS:
            msg = f"There is no arm {name!r}: it is one of {', '.join(ARMS)}."
            raise UsageError(msg)
    if "predicted" in arms and not rules:
        raise UsageError("The arm 'predicted' needs a rules file: pass rules=...")
    return tuple(dict.fromkeys(arms))


def _describe(
    name: str,
    runs: Sequence[RecordedRun],
    tools: Sequence[RecordedTool],
    predictor: Predictor | None,
    seed: int,
) -> _Arm:
    by_name: dict[str, Tool] = {tool.name: tool for tool in tools}
    if name == "oracle":
        return _Arm(
            name=name,
            policy=_UNLIMITED,
            predictors=lambda run: (OraclePredictor(run, by_name),),
        )
    if name == "random":
        pool: list[ToolCall] = [
            recorded.call
            for run in runs
            for recorded in run.calls()
            if by_name[recorded.call.name].effect is Effect.READ
            and decode_arguments(recorded.call.arguments) is not None
        ]
        return _Arm(
            name=name,
            predictors=lambda run: (RandomPredictor(pool, seed=seed, run=run),),
        )
    if name == "predicted" and predictor is not None:
        return _Arm(name=name, predictors=lambda _: (predictor,))
    return _Arm(name=name)


async def _replay_run(
    run: RecordedRun,
    arm: _Arm,
    tools: Sequence[RecordedTool],
    timing: Timing,
    report: ArmReport,
) -> None:
    reads = frozenset(tool.name for tool in tools if tool.effect is Effect.READ)
    world = RecordedWorld(run, timing, reads=reads)
    log = EventLog()
    options: dict[str, Any] = {} if arm.policy is None else {"policy": arm.policy}
    async with Session(
        tools=tools,
        predictors=() if arm.predictors is None else arm.predictors(run),
        deps=world,
        sink=log,
        speculate=arm.predictors is not None,
        **options,
    ) as session:
        started = anyio.current_time()
        user_s = 0.0
        for position in range(len(run.messages)):
            if position in run.turns:
                turn = run.turns[position]
                report.differences += await _replay_turn(
                    session, run, turn, tools, world
                )
            elif waited := run.user_s.get(position):
                user_s += waited
                await anyio.sleep(waited)
        seconds = anyio.current_time() - started - user_s
    report.runs += 1
    report.seconds += seconds
    report.user_s += user_s
    launchable = frozenset(tool.name for tool in tools if tool.launchable)
    report.add(log.events, launchable=launchable)


async def _replay_turn(
    session: Session,
    run: RecordedRun,
    turn: RecordedTurn,
    tools: Sequence[RecordedTool],
    world: RecordedWorld,
) -> int:
    """Make one turn. Returns how many of its parts are not the recorded ones."""
    request = ModelRequest(run.messages[: turn.position], tools)
    response = await session.ask(request, world.ask_model)
    differences = int(response != turn.response)

    async def make_call(recorded: RecordedCall) -> None:
        nonlocal differences
        world.note_asked(recorded)
        result = await session.call(recorded.call)
        differences += result != recorded.result

    if len(turn.calls) == 1:
        await make_call(turn.calls[0])
    elif turn.calls:
        async with anyio.create_task_group() as group:
            for recorded in turn.calls:
                group.start_soon(make_call, recorded)
    return differences
