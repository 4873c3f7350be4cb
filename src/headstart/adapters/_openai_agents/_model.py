"""The framework's model, with a run of ours between it and the runner.

Rules of this file:

1. The real model is asked below the framework's seam: once for a request of the runner,
   and once for each that is run ahead.
2. What is run ahead is traced nowhere. A turn that comes true leaves one span.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from agents.exceptions import ModelBehaviorError
from agents.items import ModelResponse as Answer
from agents.models.interface import Model, ModelProvider, ModelTracing
from agents.tracing import generation_span
from agents.tracing.scope import Scope
from agents.tracing.traces import NoOpTrace
from agents.usage import Usage

from headstart._messages import NativeDelta

from ._items import DeltaReader, answer_items, as_items

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from agents.agent_output import AgentOutputSchemaBase
    from agents.handoffs import Handoff
    from agents.model_settings import ModelSettings
    from agents.tool import Tool

    from headstart._messages import DeltaReceiver

    from ._run import SpeculativeRun


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One request, as the runner sends it."""

    system_instructions: str | None
    input: str | list[Any]
    model_settings: ModelSettings
    tools: list[Tool]
    output_schema: AgentOutputSchemaBase | None
    handoffs: list[Handoff[Any, Any]]
    tracing: ModelTracing
    previous_response_id: str | None
    conversation_id: str | None
    prompt: Any

    def ahead(self, items: list[Any]) -> Sent:
        """The same with another input, for a request that may be in vain."""
        return replace(self, input=items, tracing=ModelTracing.DISABLED)

    async def answer(self, model: Model) -> Answer:
        """Have it answered at once."""
        return await model.get_response(
            system_instructions=self.system_instructions,
            input=self.input,
            model_settings=self.model_settings,
            tools=self.tools,
            output_schema=self.output_schema,
            handoffs=self.handoffs,
            tracing=self.tracing,
            previous_response_id=self.previous_response_id,
            conversation_id=self.conversation_id,
            prompt=self.prompt,
        )

    def stream(self, model: Model) -> AsyncIterator[Any]:
        """Have it answered piece by piece."""
        return model.stream_response(
            self.system_instructions,
            self.input,
            self.model_settings,
            self.tools,
            self.output_schema,
            self.handoffs,
            self.tracing,
            previous_response_id=self.previous_response_id,
            conversation_id=self.conversation_id,
            prompt=self.prompt,
        )

    async def read(self, model: Model, on_delta: DeltaReceiver) -> Answer:
        """Have it answered piece by piece, to the end."""
        reader, answer = DeltaReader(), None
        async with closing(self.stream(model)) as events:
            async for event in events:
                for delta in reader.read(event):
                    on_delta(delta)
                on_delta(NativeDelta(event))
                if event.type == "response.completed":
                    answer = _read_completed(event.response, reader.items)
        if answer is None:
            raise BrokenOffError
        return answer


@asynccontextmanager
async def closing(events: AsyncIterator[Any]) -> AsyncGenerator[AsyncIterator[Any]]:
    """Close a stream when the block is left, if it can be closed."""
    try:
        yield events
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


class BrokenOffError(ModelBehaviorError):
    """A stream ended without a complete answer: the runner says so in its own words."""

    def __init__(self) -> None:
        super().__init__("The model's stream ended before its answer was complete.")


def _read_completed(response: Any, items: list[Any]) -> Answer:
    billed, usage = response.usage, Usage()
    if billed is not None:
        usage = Usage(
            requests=1,
            input_tokens=billed.input_tokens,
            output_tokens=billed.output_tokens,
            total_tokens=billed.total_tokens,
        )
    output = response.output or items
    return Answer(output=output, usage=usage, response_id=response.id)


def trace_nothing() -> None:
    """Make what the rest of this task does leave no span."""
    Scope.set_current_trace(NoOpTrace())
    Scope.set_current_span(None)


def trace_adopted(sent: Sent, model: Model, answer: Answer) -> None:
    """Leave the span of a request that was run ahead and came true."""
    data = sent.tracing.include_data()
    with generation_span(
        model=str(getattr(model, "model", type(model).__name__)),
        input=as_items(sent.input) if data else None,
        output=answer_items(answer) if data else None,
        usage={
            "input_tokens": answer.usage.input_tokens,
            "output_tokens": answer.usage.output_tokens,
        },
        disabled=sent.tracing.is_disabled(),
    ):
        pass


class WatchedModel(Model):
    """The framework's seam: a model that asks a run first.

    Args:
        real: The model.
        find: Gives the run whose request this is, or `None` for one of somebody else,
            such as an agent that is a tool.
    """

    def __init__(self, real: Model, find: Callable[[], SpeculativeRun | None]) -> None:
        self._real = real
        self._find = find

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def get_response(
        self,
        system_instructions: str | None,
        input: str | list[Any],  # noqa: A002 - the framework's name
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff[Any, Any]],
        tracing: ModelTracing,
        *,
        previous_response_id: str | None,
        conversation_id: str | None,
        prompt: Any,
    ) -> Answer:
        """See `agents.Model`."""
        sent = Sent(
            system_instructions=system_instructions,
            input=input,
            model_settings=model_settings,
            tools=tools,
            output_schema=output_schema,
            handoffs=handoffs,
            tracing=tracing,
            previous_response_id=previous_response_id,
            conversation_id=conversation_id,
            prompt=prompt,
        )
        run = self._find()
        if run is None:
            return await sent.answer(self._real)
        return await run.answer(self._real, sent)

    async def stream_response(
        self,
        system_instructions: str | None,
        input: str | list[Any],  # noqa: A002 - the framework's name
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff[Any, Any]],
        tracing: ModelTracing,
        *,
        previous_response_id: str | None,
        conversation_id: str | None,
        prompt: Any,
    ) -> AsyncIterator[Any]:
        """See `agents.Model`."""
        sent = Sent(
            system_instructions=system_instructions,
            input=input,
            model_settings=model_settings,
            tools=tools,
            output_schema=output_schema,
            handoffs=handoffs,
            tracing=tracing,
            previous_response_id=previous_response_id,
            conversation_id=conversation_id,
            prompt=prompt,
        )
        run = self._find()
        events = (
            sent.stream(self._real) if run is None else run.stream(self._real, sent)
        )
        async with closing(events):
            async for event in events:
                yield event

    def get_retry_advice(self, request: Any) -> Any:
        """See `agents.Model`."""
        return self._real.get_retry_advice(request)

    async def close(self) -> None:
        """See `agents.Model`."""
        await self._real.close()

    async def _cleanup_on_run_end(self, owner: object) -> None:
        cleanup = getattr(self._real, "_cleanup_on_run_end", None)
        if cleanup is not None:
            await cleanup(owner)


class WatchedProvider(ModelProvider):
    """Gives the models of another provider, each behind the seam."""

    def __init__(
        self, real: ModelProvider, watch: Callable[[Model], WatchedModel]
    ) -> None:
        self._real = real
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def get_model(self, model_name: str | None) -> Model:
        """See `agents.ModelProvider`."""
        return self._watch(self._real.get_model(model_name))

    async def aclose(self) -> None:
        """See `agents.ModelProvider`."""
        await self._real.aclose()
