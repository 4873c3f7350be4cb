"""What every adapter must do: one script of conversations, off and on, against our own host.

Rules of this file:

1. Three arms a scene: the framework alone, with the adapter but no speculation, and with
   speculation. What a user of the framework can see is the same in all of them.
2. Our events are those of `Agent` on the same scene, to the virtual second: an adapter
   translates, it decides nothing.
"""

from __future__ import annotations

import gc
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import anyio

from headstart._agent import Agent
from headstart._events import EventLog, dump_event
from headstart._messages import TextDelta, Usage
from headstart._tools import Effect, Tool, current_context
from headstart.predictors import Conversation, Prediction

from ._clock import run_virtual
from ._model import ScriptedModel, ScriptedResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headstart._calls import ToolCall

Arm: TypeAlias = Literal["bare", "off", "on"]

_PRIVATE = ("session", "span", "call_id", "schema_version")
"""Fields of events that hosts fill in differently by nature."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One conversation of the suite.

    Attributes:
        name: What it is called.
        responses: What the model answers, in order; see `ScriptedModel`.
        expects: The calls that a predictor expects after the user's message, as names
            and arguments.
        stream: Whether the user reads the answer while it comes.
        read: After how many pieces of it the user leaves; `None` reads all.
        cancel_after: After how many virtual seconds the run is cancelled, if it is.
        approve: What the user says of calls that need an approval.
        delay: Seconds before each answer begins: such that nothing ends at the moment at
            which something else does, as hosts differ in what comes first then.
        pace: Seconds from one piece of an answer to the next.
    """

    name: str
    responses: Sequence[ScriptedResponse]
    expects: Sequence[tuple[str, dict[str, Any]]] = ()
    stream: bool = False
    read: int | None = None
    cancel_after: float | None = None
    approve: bool = True
    delay: float = 1.125
    pace: float = 0.0

    user: ClassVar[str] = "Go on."

    def model(self) -> ScriptedModel:
        """A model that follows the script at the scene's pace."""
        return ScriptedModel(
            self.responses,
            delay=self.delay,
            seconds_per_delta=self.pace,
            stream=self.stream,
        )


@dataclass(frozen=True, kw_only=True)
class StageTool:
    """A tool of the stage: a plain async function with types and a docstring.

    Attributes:
        function: What runs. It raises `LookupError` where the model is to be told of
            a failure: an adapter's suite makes of it what its framework wants raised.
        declared: What is declared of it.
        approval: Whether each call has to be approved by the user.
    """

    function: Callable[..., Any]
    declared: dict[str, Any]
    approval: bool = False

    @property
    def name(self) -> str:
        """What the model calls it."""
        return self.function.__name__


class Stage:
    """The world of one run: tools over a few rows, and what was seen of it.

    Attributes:
        rows: What the world holds.
        effects: Every change, in order.
        running: How many tools run.
        tools: The tools.
    """

    def __init__(self) -> None:
        self.rows: dict[int, str] = {}
        self.effects: list[tuple[Any, ...]] = []
        self.running = 0
        self.tools = self._make_tools()

    def _make_tools(self) -> tuple[StageTool, ...]:
        stage = self

        async def look(row: int) -> str:
            """What a row holds."""
            with stage._run():
                seen = stage.rows.get(row, "new")
                await anyio.sleep(1)
                if row == 404:
                    msg = f"There is no row {row}."
                    raise LookupError(msg)
                return f"{row} is {seen}"

        async def change(row: int, to: str, says: str = "") -> str:
            """Change a row. It says early what it will tell, or what it is told to say."""
            with stage._run():
                await anyio.sleep(0.5)
                if context := current_context():
                    context.early_result(says or f"{row} is {to}")
                    await context.barrier.wait()
                await anyio.sleep(1)
                stage.rows[row] = to
                stage.effects.append(("change", row, to))
                return f"{row} is {to}"

        async def post(text: str) -> str:
            """Post a text. Nothing is declared of it."""
            with stage._run():
                stage.effects.append(("post", text))
                await anyio.sleep(1)
                return "posted"

        async def erase(row: int) -> str:
            """Erase a row, which somebody has to approve."""
            with stage._run():
                stage.effects.append(("erase", row))
                await anyio.sleep(1)
                stage.rows.pop(row, None)
                return "erased"

        reads: dict[str, Any] = {"effect": Effect.READ, "reads": ["row:{row}"]}
        writes = {**reads, "effect": Effect.GATED, "writes": ["row:{row}"]}
        return (
            StageTool(function=look, declared=reads),
            StageTool(function=change, declared=writes),
            StageTool(function=post, declared={}),
            StageTool(function=erase, declared={}, approval=True),
        )

    def _run(self) -> _Running:
        return _Running(self)

    @property
    def declared(self) -> dict[str, dict[str, Any]]:
        """What is declared of the tools, for a `Speculation`."""
        return {tool.name: tool.declared for tool in self.tools if tool.declared}


class _Running:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def __enter__(self) -> None:
        self.stage.running += 1

    def __exit__(self, *_: object) -> None:
        self.stage.running -= 1


@dataclass(kw_only=True)
class Outcome:
    """What was seen of one run.

    Attributes:
        messages: The conversation after it, in any form that can be compared, without
            identifiers and times. Empty where the run was cancelled.
        usage: What the framework says was billed for it.
        seen: What a user who streams has seen, in order, in any form.
        seconds: How long it took: filled in by the suite.
        effects: What the tools did: filled in by the suite.
        events: Our events: filled in by the suite.
    """

    messages: list[Any] = field(default_factory=list[Any])
    usage: Usage = field(default_factory=Usage)
    seen: list[Any] = field(default_factory=list[Any])
    seconds: float = 0.0
    effects: list[Any] = field(default_factory=list[Any])
    events: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


LOOK_7, LOOK_8 = ("look", {"row": 7}), ("look", {"row": 8})
CHANGE_7 = ("change", {"row": 7, "to": "old"})
LIE_7 = ("change", {"row": 7, "to": "old", "says": "nothing"})
DONE = "It is done."

SCENES = (
    Scene(name="no tool", responses=[DONE]),
    Scene(name="a hit", responses=[[LOOK_7], DONE], expects=[LOOK_7]),
    Scene(name="a miss", responses=[[LOOK_7], DONE], expects=[LOOK_8]),
    Scene(name="nothing expected", responses=[[LOOK_7], [LOOK_8], DONE]),
    Scene(
        name="parallel and equal calls",
        responses=[[LOOK_7, LOOK_8, LOOK_7], DONE],
        expects=[LOOK_7, LOOK_7, LOOK_8],
    ),
    Scene(name="an early result", responses=[[CHANGE_7], DONE]),
    Scene(
        name="an early result, expected",
        responses=[[CHANGE_7], [LOOK_7], DONE],
        expects=[CHANGE_7],
        delay=1.25,  # so that no two things happen in the same moment
    ),
    Scene(name="a false early result", responses=[[LIE_7], DONE]),
    Scene(
        name="early and real results in one turn",
        responses=[[CHANGE_7, LOOK_8], DONE],
        expects=[LOOK_8],
    ),
    Scene(
        name="a write and a read of the same",
        responses=[[CHANGE_7, LOOK_7], [LOOK_7], DONE],
        expects=[LOOK_7],
    ),
    Scene(
        name="a tool that fails",
        responses=[[("look", {"row": 404})], DONE],
        expects=[("look", {"row": 404})],
    ),
    Scene(
        name="a tool of which nothing is declared",
        responses=[[("post", {"text": "Hello."})], DONE],
        expects=[("post", {"text": "Hello."})],
    ),
    Scene(
        name="a write that is expected and not asked for",
        responses=[[LOOK_8], DONE],
        expects=[CHANGE_7],
    ),
    Scene(
        name="text beside calls",
        responses=[["I look.", LOOK_7], DONE],
        expects=[LOOK_7],
    ),
    Scene(
        name="a stream",
        responses=[[LOOK_7], "It is done, and all is well."],
        stream=True,
        pace=0.25,
    ),
    Scene(
        name="a stream of a turn that was run ahead",
        responses=[[CHANGE_7], "It is done, and all is well."],
        stream=True,
        pace=0.25,
    ),
    Scene(
        name="a stream after a false early result",
        responses=[[LIE_7], "It is done, and all is well."],
        stream=True,
        pace=0.25,
    ),
)
"""Those of which everything is compared."""

APPROVED = Scene(
    name="a call that is approved",
    responses=[[("erase", {"row": 7})], DONE],
    expects=[("erase", {"row": 7})],
)
REFUSED = Scene(
    name="a call that is refused",
    responses=[[("erase", {"row": 7})], DONE],
    expects=[("erase", {"row": 7})],
    approve=False,
)
CANCELLED = tuple(
    Scene(
        name=f"cancelled after {seconds} s",
        responses=[[CHANGE_7, LOOK_8], DONE],
        expects=[CHANGE_7, LOOK_8],
        cancel_after=seconds,
    )
    for seconds in (0.25, 0.75, 1.25, 1.75, 2.25)
)
LEFT = tuple(
    Scene(
        name=f"a stream left after {pieces} pieces",
        responses=[[CHANGE_7], "It is done, and all is well."],
        expects=[CHANGE_7],
        stream=True,
        pace=0.25,
        read=pieces,
    )
    for pieces in (1, 3)
)


class Expects:
    """The predictor of a scene: it expects its calls when the user has spoken."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    async def predict(self, conversation: Conversation, /) -> list[Prediction]:
        """The calls, in their order."""
        if conversation.messages[-1].role != "user":
            return []
        return [
            Prediction(tool=name, arguments=arguments, probability=0.9)
            for name, arguments in self._scene.expects
        ]


class AdapterConformance(ABC):
    """The suite that each adapter passes; a class of pytest tests once it is subclassed.

    ```python
    class TestMyAdapter(AdapterConformance):
        async def run(self, scene, stage, model, options): ...
    ```

    Everything runs on asyncio in virtual time.
    """

    streams = True
    """Whether the framework can stream. If not, those scenes are left out."""
    approvals = True
    """The same for approvals."""

    @abstractmethod
    async def run(
        self,
        scene: Scene,
        stage: Stage,
        model: ScriptedModel,
        options: dict[str, Any] | None,
    ) -> Outcome:
        """Run a scene with the framework's own agent, tools and test model.

        Args:
            scene: What is said. With `read`, the stream is left after so many pieces
                of text that the user has seen; a cancellation comes from outside.
            stage: The tools.
            model: Answers requests: the framework's test model asks it.
            options: Arguments of `Speculation`; with `None`, nothing of ours is used.
        """

    def test_scenes(self) -> None:
        """What a user sees is the same in all arms, and our events are those of `Agent`."""
        for scene in SCENES:
            if self.streams or not scene.stream:
                self._compare(scene)

    def test_approvals(self) -> None:
        """A call that needs an approval is never launched, and the user decides."""
        if not self.approvals:
            return
        for scene in (APPROVED, REFUSED):
            off, on = self._arm(scene, "bare"), self._arm(scene, "on")
            self._same(scene, off, on)
            assert on.effects == ([("erase", 7)] if scene.approve else []), scene.name
            launched = [each for each in on.events if each["event"] == "call_launched"]
            assert launched == [], scene.name

    def test_cancellation(self) -> None:
        """A run that is cancelled leaves nothing running, and no effect but confirmed ones."""
        for scene in CANCELLED:
            on, whole = self._arm(scene, "on"), replace(scene, cancel_after=None)
            complete = self._arm(whole, "bare").effects
            assert on.effects == complete[: len(on.effects)], scene.name

    def test_streams_that_are_left(self) -> None:
        """A stream that is left half read ends what it started."""
        if not self.streams:
            return
        for scene in LEFT:
            off, on = self._arm(scene, "bare"), self._arm(scene, "on")
            assert on.seen == off.seen, scene.name
            assert on.effects == off.effects, scene.name

    def _compare(self, scene: Scene) -> None:
        off = self._arm(scene, "bare")
        self._same(scene, off, self._arm(scene, "off"))
        on = self._arm(scene, "on")
        self._same(scene, off, on)
        assert on.seconds <= off.seconds, f"{scene.name}: slower"
        reference = _Reference()._arm(scene, "on")
        assert on.effects == reference.effects, scene.name
        for ours, theirs in zip(on.events, reference.events, strict=False):
            assert ours == theirs, f"{scene.name}: the first event that differs"
        assert on.events == reference.events, scene.name
        assert on.seconds == reference.seconds, scene.name

    @staticmethod
    def _same(scene: Scene, left: Outcome, right: Outcome) -> None:
        assert right.messages == left.messages, scene.name
        assert right.effects == left.effects, scene.name
        assert right.usage == left.usage, scene.name
        assert right.seen == left.seen, scene.name

    def _arm(self, scene: Scene, arm: Arm) -> Outcome:
        return run_virtual(self._run_arm, scene, arm)

    async def _run_arm(self, scene: Scene, arm: Arm) -> Outcome:
        stage, log = Stage(), EventLog()
        options: dict[str, Any] | None = None
        if arm != "bare":
            options = {
                "effects": stage.declared,
                "predictors": [Expects(scene)],
                "sink": log,
                "speculate": arm == "on",
            }
        began = anyio.current_time()
        outcome = Outcome()
        with anyio.move_on_after(scene.cancel_after):
            outcome = await self.run(scene, stage, scene.model(), options)
        outcome.seconds = anyio.current_time() - began
        outcome.effects = list(stage.effects)
        outcome.events = [_comparable(event) for event in log.events]
        await anyio.sleep(10)
        assert stage.running == 0, f"{scene.name}: a tool still runs"
        assert outcome.effects == stage.effects, f"{scene.name}: an effect came later"
        gc.collect(1)
        return outcome


def _comparable(event: Any) -> dict[str, Any]:
    return {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in json.loads(dump_event(event)).items()
        if name not in _PRIVATE
    }


class _Reference(AdapterConformance):
    """Our own host, by which adapters are measured."""

    async def run(
        self,
        scene: Scene,
        stage: Stage,
        model: ScriptedModel,
        options: dict[str, Any] | None,
    ) -> Outcome:
        async def approve(call: ToolCall, deps: object) -> bool:
            return scene.approve

        options = {**(options or {"speculate": False})}
        declared = options.pop("effects", {})
        sink, speculate = options.pop("sink", None), options.pop("speculate")
        agent = Agent(
            model,
            tools=[_as_tool(tool, declared.get(tool.name, {})) for tool in stage.tools],
            approve=approve,
            **options,
        )
        outcome = Outcome()
        async with agent.open_session(sink=sink, speculate=speculate) as session:
            if scene.stream:
                async with agent.stream(scene.user, session=session) as stream:
                    async for item in stream:
                        if isinstance(item, TextDelta):
                            outcome.seen.append(item.text)
                            if len(outcome.seen) == scene.read:
                                return outcome
                result = stream.result
                assert result is not None
            else:
                result = await agent.run(scene.user, session=session)
        outcome.messages = [message.to_dict() for message in result.messages]
        outcome.usage = result.usage
        return outcome


def _as_tool(tool: StageTool, declared: dict[str, Any]) -> Tool:
    plain = Tool(tool.function)

    async def function(arguments: dict[str, Any]) -> Any:
        return await tool.function(**arguments)

    return Tool(
        function,
        name=tool.name,
        parameters=plain.parameters,
        description=plain.description,
        approval=tool.approval,
        **declared,
    )
