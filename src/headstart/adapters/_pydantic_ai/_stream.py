"""Answers of pydantic-ai that are read while they come.

Rules of this file:

1. The events are those of the model's own stream, in its order; none is made up here.
2. What a reader can ask a stream (its parts, its usage) is what it has read of it so far,
   and not what has come from the model meanwhile. So each event comes with the answer as
   it was then; the first such pair has the model's own stream in place of an event.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pydantic_ai.messages import (
    FinalResultEvent,
    ModelResponse as NativeResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ToolCallPart,
    ToolCallPartDelta,
)
from pydantic_ai.models import StreamedResponse

from headstart._messages import CallDelta, NativeDelta, TextDelta

from ._messages import text_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from datetime import datetime

    from pydantic_ai.messages import ModelResponseStreamEvent
    from pydantic_ai.usage import RequestUsage

    from headstart._answer_stream import AnswerStream
    from headstart._messages import ModelResponse


class DeltaReader:
    """Reads events of one stream as our deltas of text and calls."""

    def __init__(self) -> None:
        self._calls: dict[int, int] = {}  # a part's index, and which call it is

    def read(self, event: ModelResponseStreamEvent) -> Iterator[TextDelta | CallDelta]:
        """What is new with one event."""
        if isinstance(event, PartStartEvent):
            part = event.part
            if isinstance(part, TextPart) and part.content:
                yield TextDelta(part.content)
            elif isinstance(part, ToolCallPart):
                index = self._calls[event.index] = len(self._calls)
                yield CallDelta(
                    index=index,
                    id=part.tool_call_id,
                    name=part.tool_name,
                    arguments=text_of(part.args),
                )
        elif isinstance(event, PartDeltaEvent):
            delta = event.delta
            if isinstance(delta, TextPartDelta):
                yield TextDelta(delta.content_delta)
            elif isinstance(delta, ToolCallPartDelta) and event.index in self._calls:
                written = delta.args_delta
                if isinstance(written, str) and written:
                    yield CallDelta(index=self._calls[event.index], arguments=written)


@dataclass
class ReplayedStream(StreamedResponse):
    """An answer of a session, as the stream that the framework reads."""

    answer: AnswerStream
    on_answer: Callable[[ModelResponse], None]
    _source: StreamedResponse | None = field(default=None, init=False)
    _read: NativeResponse = field(
        default_factory=lambda: NativeResponse(parts=[]), init=False
    )

    async def open(self) -> None:
        """Wait until the model's own stream is open, or raise what it raised."""
        async for delta in self.answer:
            if isinstance(delta, NativeDelta):
                self._source, self._read = delta.event
                return

    def __aiter__(self) -> AsyncIterator[ModelResponseStreamEvent]:
        if self._event_iterator is None:
            self._event_iterator = self._get_event_iterator()
        return self._event_iterator

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        async for delta in self.answer:
            if self._cancelled:
                return
            if not isinstance(delta, NativeDelta):
                continue
            event, self._read = delta.event
            if isinstance(event, FinalResultEvent):
                self.final_result_event = event
            if self._first_chunk_monotonic is None:
                self._first_chunk_monotonic = time.perf_counter()
            yield event
        response = self.answer.response
        if response is not None and not self._cancelled:
            self.on_answer(response)
            self._read = response.native
            self._finished = True

    def get(self) -> NativeResponse:
        """The answer, as far as it has been read."""
        if self._cancelled and not self._finished:
            return replace(self._read, state="interrupted")
        return copy.copy(self._read)

    async def close_stream(self) -> None:
        """End the model's own stream as it would be ended by itself."""
        if self._source is not None:
            await self._source.cancel()

    def get_stream_cancel_errors(self) -> tuple[type[BaseException], ...]:
        """Those of the model's own stream."""
        if self._source is None:
            return super().get_stream_cancel_errors()
        return self._source.get_stream_cancel_errors()

    @property
    def usage(self) -> RequestUsage:
        """What has been billed, as far as it has been read."""
        return self._read.usage

    @property
    def model_name(self) -> str:
        """Of the model's own stream."""
        return self._read.model_name or ""

    @property
    def provider_name(self) -> str | None:
        """Of the model's own stream."""
        return self._read.provider_name

    @property
    def provider_url(self) -> str | None:
        """Of the model's own stream."""
        return self._read.provider_url

    @property
    def timestamp(self) -> datetime:
        """Of the model's own stream."""
        return self._read.timestamp
