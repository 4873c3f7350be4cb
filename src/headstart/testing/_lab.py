"""An agent with the user's own tools, run off and on under drawn interleavings.

Rules of this file:

1. Everything drawn follows from the seed: what is drawn for a call depends on what it is,
   and never on when its turn comes.
2. Off and on differ in speculation alone. Latencies are drawn for the tool, its arguments
   and its place in the script, so that both have the same.
3. What two runs without speculation differ in is not speculation's doing.
"""

from __future__ import annotations

import copy
import inspect
import json
import random
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import anyio
import anyio.lowlevel

from headstart._agent import Agent, RunResult
from headstart._calls import ToolCall, ToolResult
from headstart._errors import Pickling, UsageError
from headstart._events import EventLog, Summary, summarize
from headstart._messages import ModelRequest
from headstart._policy import LimitPolicy
from headstart._threads import run_in_thread
from headstart._tools import Tool, current_context
from headstart.predictors import Prediction, ResultPrediction

from ._changes import Change, Reference, changes_between, report
from ._clock import run_virtual
from ._model import ScriptedModel, ScriptedResponse
from ._observers import Observed, as_observers, take_snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from headstart._messages import DeltaReceiver, ModelResponse
    from headstart.predictors import Conversation

_NEVER_ENDED = (
    "The run did not end. Virtual time does not wait for what is real, such as a "
    "database, a socket or a process: there, await check_all(seeds) in an async test, and "
    "give a small slowest=. Otherwise a tool waits for what never comes."
)

FOREVER = 1e6
"""Virtual seconds after which a run is taken to wait for what never comes."""


class SpeculationDiffersError(Pickling, AssertionError):
    """A run with speculation showed what the same run without it does not.

    Attributes:
        seed: What repeats it: `SpeculationLab(...).run(seeds=[seed])`.
        what: `transcript` or `effects`.
        differences: How they differ, the first difference first.
    """

    def __init__(self, what: str, differences: Sequence[str], *, seed: int) -> None:
        self.what = what
        self.differences = tuple(differences)
        self.seed = seed
        lines = "\n  ".join(self.differences[:6])
        super().__init__(
            f"With speculation, other {what} than without, at seed {seed}:\n  {lines}\n"
            f"to repeat it:  run(seeds=[{seed}])\n"
            "to do:  Give each tool to assert_speculation_safe, and look at what its "
            "reads= and writes= leave out."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LabReport:
    """What a lab has run.

    Attributes:
        seeds: How many seeds.
        launches: Calls that were launched ahead.
        adopted: How many of them were used.
        discarded: How many were thrown away.
        turns_ahead: Turns that were run ahead.
        effect: What a run without speculation changes.
    """

    seeds: int
    launches: int
    adopted: int
    discarded: int
    turns_ahead: int
    effect: tuple[Change, ...]

    def __str__(self) -> str:
        said = (
            f"{self.seeds} seeds: same transcript and same effects. Launched "
            f"{self.launches} calls, {self.adopted} were used and {self.discarded} "
            f"thrown away; {self.turns_ahead} turns were run ahead."
        )
        return f"{said}\n{report(self.effect)}" if self.effect else said


@dataclass(frozen=True, slots=True)
class _Arm:
    """One run, and what was seen of it."""

    messages: tuple[dict[str, Any], ...]
    changes: tuple[Change, ...]
    summary: Summary


class SpeculationLab:
    """Runs an agent without and with speculation, many times, and compares.

    ```python
    def test_speculation_does_not_show():
        SpeculationLab(
            tools=[get_incident, pause_incident],
            script=[
                [("get_incident", {"incident_id": 7})],
                [("pause_incident", {"incident_id": 7})],
                "It is paused.",
            ],
            observe=lambda: world.rows,
            reset=world.reset,
        ).run(seeds=50)
    ```

    The model follows the script. Each seed draws the latencies of model and tools, what
    is predicted when (right calls, wrong ones, both, none; early, late, never), what
    results are stated, and how deep turns are run ahead.

    Args:
        tools: The agent's tools.
        script: What the model answers, in order, or a function from a request to its
            answer; as in `ScriptedModel`. It depends on the conversation alone.
        observe: As in `assert_speculation_safe`.
        reset: Brings the world back to where it was, before each run; may be async. What
            it returns, unless `None`, is the tools' `deps` for that run.
        deps: What the tools receive otherwise.
        user: What the user says.
        wrong: Calls that the model might ask for and does not, as in `script`. Without
            them, wrong guesses are calls of the script with other arguments.
        approve: As in `Agent`; without it everything is approved.
        slowest: Seconds of each latency, at most. A tool's `timeout` is not applied.

    Raises:
        UsageError: Two tools have one name, or there is nothing to observe.
    """

    def __init__(
        self,
        *,
        tools: Iterable[Tool],
        script: Sequence[ScriptedResponse] | Callable[[ModelRequest], ScriptedResponse],
        observe: Observed | Iterable[Observed],
        reset: Callable[[], Any] | None = None,
        deps: Any = None,
        user: str = "Go on.",
        wrong: Sequence[tuple[str, Mapping[str, Any]]] = (),
        approve: Callable[[ToolCall, Any], Any] | None = None,
        slowest: float = 4.0,
    ) -> None:
        self._tools = tuple(tools)
        self._script = script
        self._observers = as_observers(observe)
        self._reset = reset
        self._deps = deps
        self._user = user
        self._wrong = [(name, dict(arguments)) for name, arguments in wrong]
        self._approve = approve or _approve
        self._slowest = slowest
        self._usual: _Arm | None = None
        self._reference: Reference | None = None
        Agent(ScriptedModel([]), self._tools, approve=self._approve)  # checks them

    def run(self, seeds: int | Iterable[int] = 50) -> LabReport:
        """Run so many seeds, from 0, or these, on asyncio in virtual time.

        Not to be called in an async test: `await check_all(seeds)` there.

        Raises:
            SpeculationDiffersError: An `AssertionError` with the seed that repeats it.
            UsageError: The run without speculation does not repeat itself, or changes
                the world and there is no `reset`.
        """
        __tracebackhide__ = True
        try:
            anyio.lowlevel.current_token()
        except RuntimeError:
            chosen = range(seeds) if isinstance(seeds, int) else tuple(seeds)
            try:
                return run_virtual(self.check_all, chosen)
            except SpeculationDiffersError as error:
                raise error.with_traceback(None) from None
        msg = "run() starts an event loop: in an async test, await check_all(seeds)."
        raise UsageError(msg)

    async def check_all(self, seeds: Iterable[int]) -> LabReport:
        """Check each of `seeds`, in the event loop that runs here.

        Raises:
            SpeculationDiffersError: As `run` does.
            UsageError: As `run` does.
        """
        totals, count = [0, 0, 0, 0], 0
        for seed in seeds:
            summary = await self._check(seed)
            discarded = sum(summary.discard_reasons.values())
            adopted = summary.hits + summary.early_starts
            for position, number in enumerate(
                (summary.launches, adopted, discarded, _turns_ahead(summary))
            ):
                totals[position] += number
            count += 1
        launches, adopted, discarded, turns = totals
        return LabReport(
            seeds=count,
            launches=launches,
            adopted=adopted,
            discarded=discarded,
            turns_ahead=turns,
            effect=self._usual.changes if self._usual else (),
        )

    async def _check(self, seed: int) -> Summary:
        off = await self._run(seed, speculate=False)
        if self._usual is None or self._reference is None:
            self._usual, self._reference = off, await self._learn(seed, off)
        self._check_repeats(self._usual, off, self._reference)
        on = await self._run(seed, speculate=True)
        if told := _first_difference(off.messages, on.messages):
            raise SpeculationDiffersError("transcript", told, seed=seed)
        if told := self._reference.differences(on.changes):
            raise SpeculationDiffersError("effects", told, seed=seed)
        return on.summary

    async def _learn(self, seed: int, off: _Arm) -> Reference:
        """What of a run without speculation repeats itself."""
        if off.changes and self._reset is None:
            msg = (
                "The run changes what is observed: pass reset=, a function that brings "
                f"it back.\n{report(off.changes)}"
            )
            raise UsageError(msg)
        again = await self._run(seed + 1, speculate=False)
        reference = Reference(off.changes, again.changes, exact=True)
        self._check_repeats(off, again, reference)
        return reference

    @staticmethod
    def _check_repeats(one: _Arm, other: _Arm, reference: Reference) -> None:
        told = _first_difference(one.messages, other.messages)
        told = told or reference.differences(other.changes)
        if told:
            lines = "\n  ".join(told[:6])
            msg = (
                "Without speculation, two runs differ, so that nothing can be "
                f"compared:\n  {lines}\nLet reset= bring everything back, let the tools "
                "give the same each time, and let no call of the script depend on which "
                "of its own turn ends first."
            )
            raise UsageError(msg)

    async def _run(self, seed: int, *, speculate: bool) -> _Arm:
        deps = self._deps
        if self._reset is not None:
            given = self._reset()
            if inspect.isawaitable(given):
                given = await given
            deps = deps if given is None else given
        drawn = _Drawn(seed, self._slowest)
        model = _PacedModel(self._script, drawn)
        tools = [_slowed(tool, drawn) for tool in self._tools]
        guesser = _Guesser(model, drawn, self._wrong, self._usual)
        agent = Agent(
            model,
            tools,
            predictors=[guesser] if speculate else [],
            policy=drawn.policy(),
            approve=self._approve,
            max_turns=1000,
        )
        log = EventLog()
        before = await take_snapshot(self._observers)
        result: RunResult | None = None
        with anyio.move_on_after(FOREVER):
            async with agent.open_session(
                deps=deps, sink=log, speculate=speculate
            ) as session:
                result = await agent.run(self._user, session=session)
            await anyio.sleep(2 * self._slowest)  # for what would come late
        if result is None:
            raise UsageError(_NEVER_ENDED)
        after = await take_snapshot(self._observers)
        return _Arm(
            tuple(message.to_dict() for message in result.messages),
            changes_between(before, after),
            summarize(log.events),
        )


async def _approve(call: ToolCall, deps: Any) -> bool:
    del call, deps
    return True


def _first_difference(
    one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]
) -> list[str]:
    """The first message that differs, of both transcripts."""
    for number in range(max(len(one), len(other))):
        left = one[number] if number < len(one) else "nothing"
        right = other[number] if number < len(other) else "nothing"
        if left != right:
            return [f"message {number}", f"without: {left}", f"with:    {right}"]
    return []


def _turns_ahead(summary: Summary) -> int:
    return summary.run_ahead + summary.run_ahead_discarded


Kind = Literal["right", "wrong", "both", "twice", "none", "late", "raises"]
_KINDS: tuple[Kind, ...] = (
    "right",
    "right",
    "right",
    "wrong",
    "both",
    "both",
    "twice",
    "none",
    "late",
    "raises",
)


class _Drawn:
    """What a seed draws, each by what it is for."""

    def __init__(self, seed: int, slowest: float) -> None:
        self._seed = seed
        self.slowest = slowest

    def pick(self, *what: object) -> random.Random:
        """A generator of its own for each purpose."""
        return random.Random(repr((self._seed, *what)))  # noqa: S311 - no secret

    def seconds(self, *what: object) -> float:
        """A latency; exact on a virtual clock, and often a very short one."""
        rng = self.pick("seconds", *what)
        longest = self.slowest * rng.choice((0.05, 0.25, 1.0))
        return round(rng.random() * longest * 1024) / 1024

    def policy(self) -> LimitPolicy:
        """How much is launched and run ahead."""
        rng = self.pick("policy")
        return LimitPolicy(
            max_in_flight=rng.choice((1, 2, 8)),
            max_depth=rng.choice((0, 1, 2, 3)),
            max_branches=rng.choice((1, 2)),
            min_ahead_probability=0.0,
            allow_egress=rng.random() < 0.5,
        )


class _PacedModel(ScriptedModel):
    """Follows the script, each answer after a drawn time."""

    def __init__(self, script: Any, drawn: _Drawn) -> None:
        super().__init__(script, seconds_per_delta=drawn.seconds("pace") / 64)
        self._drawn = drawn

    async def respond(
        self, request: ModelRequest, on_delta: DeltaReceiver
    ) -> ModelResponse:
        await anyio.sleep(self._drawn.seconds("model", len(request.history)))
        return await super().respond(request, on_delta)

    def expected(self, request: ModelRequest) -> ModelResponse:
        """What it answers, at once."""
        return self._complete(request, self._scripted(request))


def _slowed(tool: Tool, drawn: _Drawn) -> Tool:
    """The tool with drawn seconds before and after what it does."""

    async def function(*args: Any, **kwargs: Any) -> Any:
        context = current_context()
        given = args[1:] if args and args[0] is context else args
        what = tool.name, repr(given), repr(sorted(kwargs.items()))
        await anyio.sleep(drawn.seconds("before", *what))
        if tool.is_async:
            result = await tool.function(*args, **kwargs)
        else:
            result = await run_in_thread(
                partial(tool.function, *args, **kwargs),
                speculative=context is not None and context.speculative,
            )
        await anyio.sleep(drawn.seconds("after", *what))
        return result

    slowed = copy.copy(tool)
    slowed.function, slowed.is_async = function, True
    slowed.timeout = None  # it is meant for the tool's own seconds
    return slowed


class _Guesser:
    """Predicts calls and states results, truly or not."""

    def __init__(
        self,
        model: _PacedModel,
        drawn: _Drawn,
        wrong: list[tuple[str, dict[str, Any]]],
        usual: _Arm | None,
    ) -> None:
        self._model = model
        self._drawn = drawn
        self._wrong = wrong
        self._results = _results_of(usual)

    async def predict(self, conversation: Conversation) -> Iterable[Prediction]:
        """Propose what is drawn for this moment."""
        rng = self._drawn.pick(
            "guess", len(conversation.messages), len(conversation.partial)
        )
        kind = rng.choice(_KINDS)
        waits = rng.choice((0.0, 0.0, 1 / 32, 1 / 4)) + 2 * (kind == "late")
        await anyio.sleep(waits * self._drawn.slowest)
        if kind == "raises":
            msg = "a predictor that fails"
            raise RuntimeError(msg)
        right = self._right(conversation)
        calls = list(right) if kind in ("right", "both", "twice", "late") else []
        if kind == "twice":
            calls += right
        if kind in ("wrong", "both"):
            calls += self._other_than(right, rng)
        rng.shuffle(calls)
        return [
            Prediction(tool=name, arguments=arguments, probability=0.9)
            for name, arguments in calls
        ]

    def _right(self, conversation: Conversation) -> list[tuple[str, str]]:
        messages = conversation.messages
        last = max(
            (
                number
                for number, message in enumerate(messages)
                if message.role == "assistant" and message.tool_calls
            ),
            default=-1,
        )
        asked = len(messages[last].tool_calls) if last >= 0 else 0
        if len(messages) - last - 1 < asked:
            return []  # in the middle of a turn the next answer is not known
        try:
            response = self._model.expected(ModelRequest(messages))
        except UsageError:  # the script has ended
            return []
        return [(call.name, call.arguments) for call in response.tool_calls]

    def _other_than(
        self, right: list[tuple[str, str]], rng: random.Random
    ) -> list[tuple[str, str]]:
        others = [(name, json.dumps(arguments)) for name, arguments in self._wrong]
        others += [(name, _altered(text, rng)) for name, text in right]
        others = [call for call in others if call not in right]
        return rng.sample(others, min(2, len(others)))

    def predict_results(
        self, call: ToolCall, conversation: Conversation
    ) -> Iterable[ResultPrediction]:
        """State what the call will give, truly or not."""
        del conversation
        rng = self._drawn.pick("result", call.id)
        known = self._results.get(call.id)
        truly = [known] if known is not None else []
        stated: Sequence[ToolResult] = rng.choice(
            ([], truly, [ToolResult("something else")], truly)
        )
        return [ResultPrediction(result=result) for result in stated]


def _results_of(arm: _Arm | None) -> dict[str, ToolResult]:
    """What calls gave without speculation, by their identifiers."""
    found: dict[str, ToolResult] = {}
    for message in arm.messages if arm else ():
        if message.get("role") == "tool":
            found[message["tool_call_id"]] = ToolResult(message["content"])
    return found


def _altered(text: str, rng: random.Random) -> str:
    """The same arguments with one value changed."""
    try:
        arguments = json.loads(text)
    except ValueError:
        return text
    if not isinstance(arguments, dict) or not arguments:
        return text
    changed = dict(cast("dict[str, Any]", arguments))
    name = rng.choice(sorted(changed))
    value = changed[name]
    if isinstance(value, bool):
        changed[name] = not value
    elif isinstance(value, (int, float)):
        changed[name] = value + rng.choice((1, -1))
    elif isinstance(value, str):
        changed[name] = value + rng.choice(("?", " and more"))
    return json.dumps(changed)
