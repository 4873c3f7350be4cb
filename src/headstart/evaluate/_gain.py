"""What predictions gain: the same runs in virtual time, beside the oracle's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headstart._policy import ValuePolicy
from headstart._tools import Effect
from headstart.replay import ArmReport, Latency
from headstart.replay._arms import Arm, oracle_arm, replay_runs
from headstart.replay._recorded import RecordedTool, Timing, mean_tool_seconds

from ._scores import rounded, share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from headstart._messages import (
        AskModel,
        DeltaReceiver,
        Message,
        ModelRequest,
        ModelResponse,
        Usage,
    )
    from headstart.replay import RecordedRun

    from ._predictors import Seat
    from ._runs import GroupedRun

CHARACTERS_PER_TOKEN = 4
"""What a token is taken to be where the recording does not say."""


@dataclass(slots=True)
class TokenCount:
    """Tokens of the requests that a model was sent, cancelled ones counted in full.

    Attributes:
        tokens: Those that went in and came out.
        requests: How many were sent.
        estimated: Whether some of them are a count of characters.
    """

    tokens: float = 0.0
    requests: int = 0
    estimated: bool = False


class TokenMeter:
    """Counts what the recorded model of each run is asked, and what it answers.

    Args:
        runs: The runs, with the tokens that the recording states.
        count: Where it is counted.
    """

    def __init__(self, runs: Iterable[GroupedRun], count: TokenCount) -> None:
        self._usages: Mapping[int, tuple[Usage | None, ...]] = {
            id(each.run): each.usage for each in runs
        }
        self._count = count
        # With the message itself, so that no other one can have its identity.
        self._sizes: dict[int, tuple[Message, int]] = {}

    def wrap(self, run: RecordedRun, ask_model: AskModel) -> AskModel:
        """The recorded model of one run, counted."""
        stated = dict(zip(run.turns, self._usages[id(run)], strict=True))
        self._sizes.clear()

        async def ask(request: ModelRequest, on_delta: DeltaReceiver) -> ModelResponse:
            self._add(run, request, stated.get(len(request.history)))
            return await ask_model(request, on_delta)

        return ask

    def _add(
        self, run: RecordedRun, request: ModelRequest, stated: Usage | None
    ) -> None:
        self._count.requests += 1
        if stated is not None:
            self._count.tokens += stated.input_tokens + stated.output_tokens
            return
        self._count.estimated = True
        characters = sum(map(self._size, request.history))
        turn = run.turns.get(len(request.history))
        if turn is not None:
            characters += self._size(run.messages[turn.position])
        self._count.tokens += characters / CHARACTERS_PER_TOKEN

    def _size(self, message: Message) -> int:
        known = self._sizes.get(id(message))
        if known is not None:
            return known[1]
        size = len(message.content) + sum(
            len(call.name) + len(call.arguments) for call in message.tool_calls
        )
        self._sizes[id(message)] = message, size
        return size


@dataclass(slots=True)
class Gain:
    """What is counted at one latency.

    Attributes:
        latency: What every tool takes.
        off: Without speculation.
        oracle: With every prediction right.
        predicted: With the evaluated predictor.
        reads: Calls of `READ` tools.
        off_tokens: Of the requests without speculation.
        tokens: Of the requests with the evaluated predictor.
    """

    latency: Latency
    off: ArmReport = field(default_factory=ArmReport)
    oracle: ArmReport = field(default_factory=ArmReport)
    predicted: ArmReport = field(default_factory=ArmReport)
    reads: int = 0
    off_tokens: TokenCount = field(default_factory=TokenCount)
    tokens: TokenCount = field(default_factory=TokenCount)

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values."""
        off_s, ours = self.off.seconds, self.predicted
        oracle_share = share(off_s - self.oracle.seconds, off_s)
        saved_share = share(off_s - ours.seconds, off_s)
        extra = self.tokens.tokens - self.off_tokens.tokens
        differences = ours.differences + self.oracle.differences + self.off.differences
        return {
            "tool_latency": str(self.latency),
            "off_s": rounded(off_s),
            "oracle_s": rounded(self.oracle.seconds),
            "predicted_s": rounded(ours.seconds),
            "oracle_saved_share": rounded(oracle_share),
            "saved_share": rounded(saved_share),
            "share_of_oracle": rounded(share(saved_share, oracle_share)),
            "reads": self.reads,
            "launches": ours.predicted_launches,
            "launches_a_read": rounded(share(ours.predicted_launches, self.reads)),
            "hits": ours.hits,
            "hit_rate": rounded(ours.hit_rate),
            "precision": rounded(ours.precision),
            "ready_before_demand": rounded(ours.ready_before_demand),
            "run_ahead": ours.run_ahead,
            "run_ahead_discarded": ours.run_ahead_discarded,
            "wasted_s": rounded(ours.wasted_s),
            "requests": self.off_tokens.requests,
            "extra_requests": self.tokens.requests - self.off_tokens.requests,
            "tokens": round(self.off_tokens.tokens),
            "extra_tokens": round(extra),
            "extra_tokens_share": rounded(share(extra, self.off_tokens.tokens)),
            "tokens_estimated": self.tokens.estimated or self.off_tokens.estimated,
            "user_s": rounded(self.off.user_s),
            "identical": differences == 0,
            "differences": differences,
            "predictor_failures": ours.predictor_failures,
        }


class GainMeter:
    """Replays runs at several latencies, without speculation and with predictions.

    Args:
        runs: All runs: what they say of times is taken for calls that are not in them.
        tools: All tools that they call.
        model_latency: Seconds of answers whose time is not recorded.
        tool_latencies: Seconds of every call, for each replay.
        beside: From which probability of the next answer on the request after it is
            sent beside the running one.
        seed: Of the latencies.
    """

    def __init__(
        self,
        runs: Sequence[GroupedRun],
        tools: Sequence[RecordedTool],
        *,
        model_latency: Latency,
        tool_latencies: Sequence[Latency],
        beside: float,
        seed: int,
    ) -> None:
        self._runs = runs
        self._tools = tools
        self._policy = ValuePolicy(
            min_beside_probability=beside,
            wasted_second_cost=0.9,
            max_depth=3,
            max_branches=2,
        )
        means = mean_tool_seconds(each.run for each in runs)
        reads = {tool.name for tool in tools if tool.effect is Effect.READ}
        count = sum(
            recorded.call.name in reads
            for each in runs
            for recorded in each.run.calls()
        )
        self.gains = [Gain(latency, reads=count) for latency in tool_latencies]
        self._timings = [
            Timing(model=model_latency, tool=latency, seed=seed, tool_means=means)
            for latency in tool_latencies
        ]

    @property
    def replays(self) -> int:
        """How many runs are replayed in all."""
        return 3 * len(self._runs) * len(self.gains)

    def replay_controls(self, on_run: Callable[[], None]) -> None:
        """Replay all runs without speculation, and with every prediction right."""
        runs = [each.run for each in self._runs]
        for gain, timing in zip(self.gains, self._timings, strict=True):
            meter = TokenMeter(self._runs, gain.off_tokens)
            off = Arm(name="off", wrap_model=meter.wrap)
            replay_runs(runs, off, self._tools, timing, report=gain.off, on_run=on_run)
            oracle = oracle_arm(self._tools)
            replay_runs(
                runs, oracle, self._tools, timing, report=gain.oracle, on_run=on_run
            )

    def replay_predicted(
        self, each: GroupedRun, seat: Seat, on_run: Callable[[], None]
    ) -> None:
        """Replay a test run with its predictor, at each latency."""
        for gain, timing in zip(self.gains, self._timings, strict=True):
            seat.restart()
            arm = Arm(
                name="predicted",
                policy=self._policy,
                predictors=lambda _: (seat,),
                wrap_model=TokenMeter([each], gain.tokens).wrap,
            )
            replay_runs(
                [each.run],
                arm,
                self._tools,
                timing,
                report=gain.predicted,
                on_run=on_run,
            )
