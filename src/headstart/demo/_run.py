"""Run the copilot's conversation without and with speculation, and compare."""

from __future__ import annotations

import json
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import anyio
import httpx2
import openai

from headstart._agent import Agent
from headstart._calls import ToolCall, decode_arguments
from headstart._events import CallEnded, Event, ModelAnswered, summarize
from headstart._messages import Message, Model, ModelRequest
from headstart.models import OpenAIModel

from ._bound import BoundCall, BoundTurn, Source, bound_seconds
from ._copilot import INSTRUCTIONS, POLICY, USER_MESSAGES, make_predictor
from ._latencies import Latencies
from ._model_server import MODEL_NAME, open_model_server
from ._outcome import Arm, ArmMessage, DemoOutcome, compare
from ._services import Deps, open_services
from ._tools import TOOLS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from headstart._session import Session

ArmName: TypeAlias = Literal["off", "on"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run of the demo is.

    Attributes:
        arm: Without (`"off"`) or with (`"on"`) speculation.
        message: Number of the user message, from 0.
        event: What happened; `None` at the start and the end of the message.
        seconds: What the message took, at its end.
    """

    arm: ArmName
    message: int
    event: Event | None = None
    seconds: float | None = None


async def run_demo(
    *,
    latencies: Latencies | None = None,
    base_url: str | None = None,
    model: str | None = None,
    user_messages: Sequence[str] = USER_MESSAGES,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> DemoOutcome:
    """Hold the same conversation twice, with fresh services, and compare.

    On asyncio only, as the SQLite driver is. Cancelling it ends the servers and removes
    the database.

    Args:
        latencies: What the built-in model and the tools take.
        base_url: A real endpoint, to be used instead of the built-in model.
        model: The real model's name. Its key comes from the environment. A real model
            may answer otherwise each time, so the arms need not be identical.
        user_messages: What the user says.
        on_progress: Called as the run goes on; returns at once.

    Raises:
        ModelError: The endpoint failed.
        UsageError: The endpoint cannot be used as it is stated.
    """
    latencies = latencies or Latencies()
    own_model = model is None and base_url is None

    async def hold(arm: ArmName) -> Arm:
        async with AsyncExitStack() as stack:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            client = (
                await stack.enter_async_context(_open_own_model(latencies))
                if own_model
                else await stack.enter_async_context(
                    OpenAIModel(model or MODEL_NAME, base_url=base_url)
                )
            )
            return await _hold_conversation(
                client, Path(directory), latencies, user_messages, arm, on_progress
            )

    await _load_code()
    off, on = await hold("off"), await hold("on")
    bounds = [bound_seconds(turns_of(each, latencies)) for each in off.messages]
    name = MODEL_NAME if own_model else str(model)
    return compare(off, on, model=name, bounds=bounds, call_ids=own_model)


@asynccontextmanager
async def _open_own_model(latencies: Latencies) -> AsyncGenerator[OpenAIModel]:
    async with (
        open_model_server(latencies) as url,
        # Without the environment, whose proxies would not know the loopback interface.
        httpx2.AsyncClient(trust_env=False, timeout=60.0) as http,
    ):
        client = openai.AsyncOpenAI(
            base_url=url, api_key="none", max_retries=0, http_client=http
        )
        yield OpenAIModel(MODEL_NAME, client=client)


async def _load_code() -> None:
    """Ask once outside of the measurement: the SDK loads code at its first request."""
    async with _open_own_model(Latencies().faster(1000.0)) as model:
        request = ModelRequest([Message(role="user", content="Hello!")], TOOLS)
        await model.respond(request, lambda _: None)


class _Watch:
    """A sink that keeps the events, and shows each of them."""

    def __init__(self, arm: ArmName, on_progress: Callable[[Progress], None]) -> None:
        self.events: list[Event] = []
        self.message = 0
        self._arm: ArmName = arm
        self._on_progress = on_progress

    def emit(self, event: Event, /) -> None:
        """Keep and show `event`."""
        self.events.append(event)
        self.show(event=event)

    def show(self, *, event: Event | None = None, seconds: float | None = None) -> None:
        """Tell where the run is."""
        self._on_progress(
            Progress(arm=self._arm, message=self.message, event=event, seconds=seconds)
        )

    def take(self) -> tuple[Event, ...]:
        """The events since the last time."""
        taken, self.events = tuple(self.events), []
        return taken


async def _hold_conversation(
    model: Model,
    directory: Path,
    latencies: Latencies,
    user_messages: Sequence[str],
    arm: ArmName,
    on_progress: Callable[[Progress], None],
) -> Arm:
    agent = Agent[Deps](
        model,
        TOOLS,
        predictors=[make_predictor()],
        policy=POLICY,
        instructions=INSTRUCTIONS,
    )
    watch = _Watch(arm, on_progress)
    async with open_services(directory, latencies=latencies) as services:
        async with agent.open_session(
            deps=services.deps, sink=watch, speculate=arm == "on", name=f"demo-{arm}"
        ) as session:
            messages = await _say_all(agent, session, watch, user_messages)
        late = summarize(watch.take())
        return Arm(
            messages=messages,
            rows=await services.rows(),
            posted=services.chat.posted,
            late_s=late.wasted_s,
            late_misses=late.misses,
        )


async def _say_all(
    agent: Agent[Deps],
    session: Session[Deps],
    watch: _Watch,
    user_messages: Sequence[str],
) -> list[ArmMessage]:
    said: list[ArmMessage] = []
    history: tuple[Message, ...] = (Message(role="system", content=INSTRUCTIONS),)
    for number, text in enumerate(user_messages):
        watch.message = number
        watch.show()
        asked = (*history, Message(role="user", content=text))
        start = anyio.current_time()
        result = await agent.run(asked, session=session)
        seconds = anyio.current_time() - start
        said.append(
            ArmMessage(
                seconds=seconds,
                said=result.messages[len(history) :],
                events=watch.take(),
            )
        )
        history = result.messages
        watch.show(seconds=seconds)
    return said


def turns_of(message: ArmMessage, latencies: Latencies) -> list[BoundTurn]:
    """The measured turns of one message, in the form that the bound is computed from."""
    user_text = message.said[0].content
    model_s = [
        event.duration_s for event in message.events if isinstance(event, ModelAnswered)
    ]
    call_s = {
        event.call_id: event.duration_s
        for event in message.events
        if isinstance(event, CallEnded)
    }
    results = {
        each.tool_call_id: each.content for each in message.said if each.role == "tool"
    }
    earlier: dict[Source, str] = {}
    turns: list[BoundTurn] = []
    answers = [each for each in message.said if each.role == "assistant"]
    for number, answer in enumerate(answers):
        calls: list[BoundCall] = []
        for call in answer.tool_calls:
            effect_s = call_s[call.id] * latencies.effect_share(call.name)
            calls.append(
                BoundCall(
                    preparation_s=call_s[call.id] - effect_s,
                    effect_s=effect_s,
                    known_from=_find_source(call, user_text, earlier),
                    early_result=effect_s > 0,
                )
            )
        turns.append(BoundTurn(model_s=model_s[number], calls=tuple(calls)))
        for index, call in enumerate(answer.tool_calls):
            earlier[number, index] = results[call.id]
    return turns


def _find_source(
    call: ToolCall, user_text: str, earlier: dict[Source, str]
) -> Literal["message", "model"] | Source:
    """Where the arguments of a call can first be read from."""
    values = [
        value if isinstance(value, str) else json.dumps(value)
        for value in (decode_arguments(call.arguments) or {}).values()
    ]

    def hold_all(text: str) -> bool:
        return all(value.lower() in text.lower() for value in values)

    if hold_all(user_text):
        return "message"
    for source, text in earlier.items():
        if hold_all(text):
            return source
    return "model"
