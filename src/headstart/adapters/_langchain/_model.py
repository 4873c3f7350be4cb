"""The model's seam: what generates in a copy of a chat model.

Langchain's own callbacks, caches, rate limits and streams are above it, in the methods
that call it, and so they see each answer once, when it is real.
"""

from __future__ import annotations

import copy
import functools
import inspect
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.runnables import RunnableBinding
from langgraph.config import get_config

from headstart._calls import ToolCall
from headstart._messages import (
    CallDelta,
    ModelRequest,
    ModelResponse,
    NativeDelta,
    TextDelta,
)
from headstart.adapters._speculation import may_act

from ._run import Run, running, unseen
from ._tools import as_base_tool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from langchain_core.outputs import ChatGenerationChunk, ChatResult
    from langchain_core.tools import BaseTool

    from headstart._messages import DeltaReceiver

_MARK = "_headstart"


def wrap_model(
    model: BaseChatModel, *, stream: bool, tools: Sequence[BaseTool] = ()
) -> BaseChatModel:
    """A copy of a chat model whose requests are the open run's, where there is one."""
    if _MARK in vars(model):
        return model
    seam = _Seam(model, stream=stream, tools=tools)
    wrapped = copy.copy(model)
    own = vars(wrapped)
    own[_MARK] = True
    own["_agenerate"], own["_astream"] = seam.generate, seam.stream
    own["_generate"], own["_stream"] = seam.inner._generate, seam.inner._stream
    if not tools:
        own["bind_tools"] = seam.bind_tools
    return wrapped


class _Seam:
    """What stands in for a model's own generating methods."""

    def __init__(
        self, model: BaseChatModel, *, stream: bool, tools: Sequence[BaseTool]
    ) -> None:
        self.inner: Any = model
        self.always_stream = stream
        self.tools = tools
        kind, base = cast("Any", type(model)), cast("Any", BaseChatModel)
        self.can_stream = (
            kind._astream is not base._astream or kind._stream is not base._stream
        )
        method = self.inner._agenerate
        self.takes_manager = _takes_manager(getattr(method, "__func__", method))

    async def generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        """Answer at once, when the answer is there."""
        managed = {"run_manager": run_manager} if self.takes_manager else {}
        run = running()
        if run is None or run.asking:
            return await self.inner._agenerate(messages, stop=stop, **managed, **kwargs)
        streamed = self.always_stream and self.can_stream
        question = _Question(self, run, messages, stop, kwargs, streamed=streamed)
        question.managed = managed
        run.asking = True
        try:
            response = await run.host.session.ask(question.request, question.ask)
        finally:
            run.asking = False
        run.confirm(response)
        return response.native.result

    async def stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        """Answer piece by piece."""
        del run_manager  # langchain itself tells it of each piece
        run = running()
        if run is None or run.asking:
            async for chunk in self.inner._astream(messages, stop=stop, **kwargs):
                yield chunk
            return
        question = _Question(self, run, messages, stop, kwargs, streamed=True)
        run.asking = True
        try:
            async with run.host.session.stream(
                question.request, question.ask
            ) as answer:
                async for delta in answer:
                    if isinstance(delta, NativeDelta):
                        yield delta.event
        finally:
            run.asking = False
        if answer.response is not None:
            run.confirm(answer.response)

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        """As the model's own, and the tools are known here."""
        offered = [each for each in map(as_base_tool, tools) if each is not None]

        def wrap(model: BaseChatModel) -> BaseChatModel:
            return wrap_model(model, stream=self.always_stream, tools=offered)

        kind = cast("Any", type(self.inner))
        bound = kind.bind_tools(wrap(self.inner), tools, **kwargs)
        # A model may bind tools to another than itself.
        if isinstance(bound, BaseChatModel):
            return wrap(bound)
        if isinstance(bound, RunnableBinding):
            any_bound = cast("Any", bound)
            if isinstance(any_bound.bound, BaseChatModel):
                return any_bound.model_copy(update={"bound": wrap(any_bound.bound)})
        return cast("Any", bound)


@functools.lru_cache(maxsize=64)
def _takes_manager(generate: Any) -> bool:
    """Asked of a function once, as models are wrapped anew for each request."""
    return "run_manager" in inspect.signature(generate).parameters


class _Question:
    """One request of langchain's, and how it is sent, now or run ahead."""

    def __init__(
        self,
        seam: _Seam,
        run: Run,
        messages: list[BaseMessage],
        stop: list[str] | None,
        kwargs: dict[str, Any],
        *,
        streamed: bool,
    ) -> None:
        self.managed: dict[str, Any] = {}
        self._inner = seam.inner
        self._run = run
        self._messages = messages
        self._options: dict[str, Any] = {"stop": stop, **kwargs}
        self._streamed = streamed
        self._agent = _agent_name()
        self.request = ModelRequest(
            run.translate_all(messages),
            run.offer(seam.tools),
            {
                "options": self._options,
                "model": id(self._inner),
                "streamed": streamed,
                "agent": self._agent,
            },
            stateful=any(map(may_act, kwargs.get("tools") or ())),
        )

    async def ask(
        self, request: ModelRequest, on_delta: DeltaReceiver
    ) -> ModelResponse:
        """Send a request: this one, or one that is run ahead of it."""
        if request is self.request:
            return await self._send(self._messages, on_delta, self.managed)
        messages = self._run.write_messages(request)
        with unseen():
            if self._inner.rate_limiter:  # langchain itself waits for real requests
                await self._inner.rate_limiter.aacquire(blocking=True)
            return await self._send(messages, on_delta, {})

    async def _send(
        self,
        messages: list[BaseMessage],
        on_delta: DeltaReceiver,
        managed: dict[str, Any],
    ) -> ModelResponse:
        if not self._streamed:
            result = await self._inner._agenerate(messages, **managed, **self._options)
            return self._run.answered(result, self._agent)
        words, chunks = _Words(), list["ChatGenerationChunk"]()
        async with aclosing(self._inner._astream(messages, **self._options)) as pieces:
            async for chunk in pieces:
                for delta in words.read(chunk.message):
                    on_delta(delta)
                chunks.append(chunk)
                on_delta(NativeDelta(chunk))
        self._run.note_words(words.calls())
        result = generate_from_stream(iter(chunks))
        return self._run.answered(result, self._agent)


class _Words:
    """Reads the pieces of a streamed answer, and keeps the calls as they are written."""

    def __init__(self) -> None:
        self._calls: list[list[str]] = []
        self._positions: dict[Any, int] = {}

    def read(self, message: BaseMessage) -> Iterator[TextDelta | CallDelta]:
        """What a piece says, in our words."""
        if message.text:
            yield TextDelta(message.text)
        if not isinstance(message, AIMessageChunk):
            return
        for chunk in message.tool_call_chunks:
            call_id, name, text = chunk["id"], chunk["name"], chunk["args"] or ""
            index = chunk["index"]
            at = None if index is None else self._positions.get(index)
            if at is None or (call_id and call_id != self._calls[at][0]):
                at = len(self._calls)
                self._calls.append([call_id or "", name or "", ""])
                self._positions[index] = at
            self._calls[at][2] += text
            yield CallDelta(index=at, id=call_id, name=name, arguments=text)

    def calls(self) -> list[ToolCall]:
        """The calls, as they were written."""
        return [ToolCall(*call) for call in self._calls]


def _agent_name() -> str | None:
    try:
        return cast("Any", get_config()).get("metadata", {}).get("lc_agent_name")
    except RuntimeError:  # not in a graph
        return None
