"""The host of a replay: walks a recorded run through the real engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
from headstart.predictors import PatternPredictor, RulePredictor
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
    from headstart._messages import AskModel
    from headstart._policy import Policy
    from headstart.predictors import Predictor

    from ._recorded import RecordedTool, ToolDeclaration
    from ._traces import RecordedCall, RecordedRun, RecordedTurn

ARMS = ("off", "oracle", "random", "predicted")
"""Without speculation, with perfect predictions, with random ones, with one's own."""

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
class Arm:
    """How one arm runs: what it adds to the plain engine.

    Attributes:
        name: One of `ARMS`.
        policy: What is launched; the default one if not given.
        predictors: Who predicts, a run; nobody does if not given.
        wrap_model: Put around the recorded model of a run, to count what it is asked.
    """

    name: str
    policy: Policy | None = None
    predictors: Callable[[RecordedRun], Sequence[Predictor]] | None = None
    wrap_model: Callable[[RecordedRun, AskModel], AskModel] | None = None


def replay_file(
    path: str | Path,
    *,
    tools: str | Path | Mapping[str, ToolDeclaration] | None = None,
    rules: str | Path | None = None,
    patterns: str | Path | None = None,
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
        patterns: A file of learned patterns for it, beside the rules or alone. Each run
            begins with them as they are in the file, so that none gains by another.
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
    names = _choose_arms(arms, predicted=not (rules is None and patterns is None))
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
    seats: list[Callable[[], Predictor]] = []
    if rules is not None:
        ruled = RulePredictor.from_file(rules, tools=made if declared else None)
        seats.append(lambda: ruled)
    if patterns is not None:
        learned = PatternPredictor.load(patterns).to_dict()
        seats.append(lambda: PatternPredictor.from_dict(learned))
    described = [_describe(name, runs, made, seats, seed) for name in names]
    reports: dict[str, ArmReport] = {}
    done = 0

    def count_run() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, len(runs) * len(described))

    for arm in described:
        reports[arm.name] = replay_runs(runs, arm, made, timing, on_run=count_run)
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


def replay_runs(
    runs: Iterable[RecordedRun],
    arm: Arm,
    tools: Sequence[RecordedTool],
    timing: Timing,
    *,
    report: ArmReport | None = None,
    on_run: Callable[[], None] | None = None,
) -> ArmReport:
    """Replay runs in one arm, each in a session and a virtual time of its own.

    Args:
        runs: The recorded runs.
        arm: How they run.
        tools: All tools that the runs call.
        timing: How long everything takes.
        report: Where the figures are added; a new one if not given.
        on_run: Called after each run.
    """
    report = ArmReport() if report is None else report
    for run in runs:
        run_virtual(partial(_replay_run, run, arm, tools, timing, report))
        if on_run is not None:
            on_run()
    return report


def oracle_arm(tools: Sequence[RecordedTool]) -> Arm:
    """The arm that knows each recording."""
    by_name: dict[str, Tool] = {tool.name: tool for tool in tools}
    return Arm(
        name="oracle",
        policy=_UNLIMITED,
        predictors=lambda run: (OraclePredictor(run, by_name),),
    )


def _choose_arms(arms: Sequence[str] | None, *, predicted: bool) -> tuple[str, ...]:
    if arms is None:
        return tuple(name for name in ARMS if predicted or name != "predicted")
    for name in arms:
        if name not in ARMS:
            msg = f"There is no arm {name!r}: it is one of {', '.join(ARMS)}."
            raise UsageError(msg)
    if "predicted" in arms and not predicted:
        msg = "The arm 'predicted' needs a file of rules or of patterns: pass one."
        raise UsageError(msg)
    return tuple(dict.fromkeys(arms))


def _describe(
    name: str,
    runs: Sequence[RecordedRun],
    tools: Sequence[RecordedTool],
    seats: Sequence[Callable[[], Predictor]],
    seed: int,
) -> Arm:
    if name == "oracle":
        return oracle_arm(tools)
    if name == "random":
        by_name = {tool.name: tool for tool in tools}
        pool: list[ToolCall] = [
            recorded.call
            for run in runs
            for recorded in run.calls()
            if by_name[recorded.call.name].effect is Effect.READ
            and decode_arguments(recorded.call.arguments) is not None
        ]
        return Arm(
            name=name,
            predictors=lambda run: (RandomPredictor(pool, seed=seed, run=run),),
        )
    if name == "predicted":
        return Arm(name=name, predictors=lambda _: [make() for make in seats])
    return Arm(name=name)


async def _replay_run(
    run: RecordedRun,
    arm: Arm,
    tools: Sequence[RecordedTool],
    timing: Timing,
    report: ArmReport,
) -> None:
    reads = frozenset(tool.name for tool in tools if tool.effect is Effect.READ)
    world = RecordedWorld(run, timing, reads=reads)
    log = EventLog()
    options: dict[str, Any] = {} if arm.policy is None else {"policy": arm.policy}
    ask_model: AskModel = world.ask_model
    if arm.wrap_model is not None:
        ask_model = arm.wrap_model(run, ask_model)
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
                request = ModelRequest(run.messages[: turn.position], tools)
                response = await session.ask(request, ask_model)
                report.differences += response != turn.response
                report.differences += await _make_calls(session, turn, world)
            elif waited := run.user_s.get(position):
                user_s += waited
                await anyio.sleep(waited)
        seconds = anyio.current_time() - started - user_s
    report.runs += 1
    report.seconds += seconds
    report.user_s += user_s
    launchable = frozenset(tool.name for tool in tools if tool.launchable)
    report.add(log.events, launchable=launchable)


async def _make_calls(
    session: Session, turn: RecordedTurn, world: RecordedWorld
) -> int:
    """Make the calls of one turn. Returns how many results are not the recorded ones."""
    differences = 0

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
