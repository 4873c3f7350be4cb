"""What a type checker must see. It is checked by pyright and never run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, assert_type

from headstart import (
    Agent,
    BarrierState,
    Candidate,
    Effect,
    EventLog,
    Expectation,
    Experience,
    LimitPolicy,
    Message,
    Model,
    ModelRequest,
    ModelResponse,
    Policy,
    Record,
    ResultSpeculator,
    RunAhead,
    RunResult,
    Session,
    Sink,
    Summary,
    TextDelta,
    Tool,
    ToolCall,
    ToolCallSpeculator,
    ToolContext,
    ToolResult,
    ValuePolicy,
    WriteBarrier,
    current_barrier,
    summarize,
    tool,
)
from headstart.models import OpenAIModel
from headstart.predictors import Prediction, Predictor, Rule, RulePredictor, rule
from headstart.testing import (
    HTTPSink,
    Observer,
    Safety,
    ScriptedModel,
    SpeculationLab,
    assert_speculation_safe,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass
class Deps:
    user_id: str


@tool
def plain(text: str) -> str:
    return text


@tool(effect=Effect.GATED, writes=["note:{note_id}"], approval=True)
async def write_note(ctx: ToolContext[Deps], note_id: int) -> dict[str, int]:
    assert_type(ctx.deps, Deps)
    assert_type(ctx.call, ToolCall)
    assert_type(ctx.barrier, WriteBarrier)
    assert_type(ctx.speculative, bool)
    ctx.early_result({"note_id": note_id})
    await ctx.barrier.wait()
    return {"note_id": note_id}


@tool(effect="read")
def anything(ctx: ToolContext, value: int) -> int:
    assert_type(ctx.deps, Any)
    return value


assert_type(plain, Tool)
assert_type(write_note, Tool)
assert_type(anything, Tool)


async def barriers() -> None:
    with WriteBarrier(name="outer") as outer:
        assert_type(outer, WriteBarrier)
        both = WriteBarrier(outer, outer.child(name="inner"))
        assert_type(both.state, BarrierState)
        assert_type(both.effective_state, BarrierState)
        assert_type(both.reason, str | None)
        assert_type(both.flush(), bool)
        assert_type(both.deny("no"), bool)
        assert_type(await both.wait(), None)
        assert_type(both.wait_blocking(timeout=1.0), None)
    assert_type(current_barrier(), WriteBarrier | None)
    WriteBarrier("outer")  # type: ignore[arg-type]
    both.deny()  # type: ignore[call-arg]


async def speculators(call: ToolCall, request: ModelRequest) -> None:
    async with ToolCallSpeculator(plain, "{}", parent=WriteBarrier()) as guess:
        assert_type(guess, ToolCallSpeculator)
        assert_type(guess.matches(call), bool)
        assert_type(guess.cancel("no"), bool)
        assert_type(guess.early_result, ToolResult | None)

    async def ask_model(request: ModelRequest) -> int:
        return len(request.history)

    async with ResultSpeculator(request, [call], ask_model) as ahead:
        assert_type(ahead, ResultSpeculator[int])
        assert_type(ahead.receive(0, ToolResult("x")), None)
        assert_type(ahead.running, bool)
        assert_type(await ahead.resolve([ToolResult("x")]), int | None)


class Echo:
    async def respond(self, request: ModelRequest, on_delta: object) -> ModelResponse:
        return ModelResponse(text=request.history[-1].content)


class Silent:
    async def predict(self, conversation: object, /) -> Sequence[Prediction]:
        return ()


models: list[Model] = [Echo(), ScriptedModel(["Hello"]), OpenAIModel("any")]
rules = RulePredictor([rule("note", "write_note", note_id=1)], tools=[write_note])
predictors: list[Predictor] = [Silent(), rules]
policies: list[Policy] = [
    LimitPolicy(max_depth=0),
    ValuePolicy(min_beside_probability=0.5, probe_every=10),
]
policy = policies[0]
LimitPolicy(5)  # type: ignore[call-arg]
sink: Sink = EventLog()
assert_type(rule(None, "plain", after="anything"), Rule)
assert_type(RulePredictor.from_file("rules.toml"), RulePredictor)


async def agents(model: Model, deps: Deps) -> None:
    agent: Agent[Deps] = Agent(
        model, tools=[write_note], predictors=predictors, policy=policy
    )
    result = await agent.run("Hello", deps=deps)
    assert_type(result, RunResult)
    assert_type(result.text, str)
    assert_type(result.messages, tuple[Message, ...])
    await agent.run("Hello", deps=7)  # type: ignore[arg-type]
    async with agent.stream([{"role": "user", "content": "Hello"}], deps=deps) as items:
        async for item in items:
            assert_type(item, TextDelta | Message)
    async with agent.open_session(deps=deps, sink=sink) as session:
        assert_type(session, Session[Deps])
        request = ModelRequest([Message(role="user")], session.tools)
        response = await session.ask(request, model.respond)
        assert_type(response, ModelResponse)
        assert_type(await session.call(response.tool_calls[0]), ToolResult)
    assert_type(summarize(EventLog().events), Summary)


class Cautious:
    """A policy of somebody's own."""

    max_wasted_s = 60.0

    def refuse_launch(self, candidate: Candidate, /) -> str | None:
        assert_type(candidate.tool, Tool)
        assert_type(candidate.record, Record)
        assert_type(candidate.record.calibrated(0.5, weight=4.0), float)
        assert_type(candidate.tool_s, float | None)
        candidate.depth = 0  # type: ignore[misc]
        return None if candidate.cause == "sealed" else "only what is certain"

    def refuse_run_ahead(self, candidate: RunAhead, /) -> str | None:
        assert_type(candidate.expectations, tuple[Expectation, ...])
        assert_type(candidate.calibrated(weight=4.0), float)
        return "never beside" if candidate.beside else None


async def approve(call: ToolCall, deps: Deps) -> bool:
    return bool(call.name and deps.user_id)


async def sessions(deps: Deps, guardrail: WriteBarrier, request: ModelRequest) -> None:
    experience = Experience(half_life=20.0)
    assert_type(experience.record("plain", "rule 1"), Record)
    assert_type(experience.seconds("plain"), float | None)
    session = Session(
        [plain, write_note],
        deps=deps,
        predictors=predictors,
        policy=Cautious(),
        experience=experience,
        sink=sink,
        approve=approve,
        conditions=[guardrail],
        ordered=True,
        speculate=True,
        name="mine",
    )
    async with session as opened:
        assert_type(opened, Session[Deps])
        response = await opened.ask(request, models[0].respond, on_delta=None)
        assert_type(await opened.call_all(response.tool_calls), list[ToolResult])
        assert_type(opened.idle(), None)
        assert_type(opened.tools, tuple[Tool, ...])


class Queue:
    name = "queue"

    async def snapshot(self) -> object:
        return [1]


async def prove(deps: Deps, sink: HTTPSink) -> None:
    observer: Observer = Queue()
    safety = await assert_speculation_safe(
        write_note, {"text": "hi"}, deps=deps, observe=[observer, sink, lambda: [1]]
    )
    assert_type(safety, Safety)
    assert_type(safety.held, bool)
    lab = SpeculationLab(tools=[plain], script=["Hello."], observe=sink)
    assert_type(lab.run(seeds=5).adopted, int)
