"""Answers of pydantic-ai that are read while they come.

Rules of this file:

1. The events are those of the model's own stream, in its order; none is made up here.
2. What a reader can ask a stream (its parts, its usage) is what it has read of it so far,
   and not what has come from the model meanwhile.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

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
from pydantic_ai.usage import RequestUsage

from headstart._messages import CallDelta, NativeDelta, TextDelta

from ._messages import text_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from datetime import datetime

    from pydantic_ai.messages import ModelResponsePart, ModelResponseStreamEvent

    from headstart._answer_stream import AnswerStream
    from headstart._messages import ModelResponse


@dataclass(frozen=True, slots=True)
class Opened:
    """The model's own stream is open: the first piece of every answer."""

    stream: StreamedResponse


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
    _parts: dict[int, ModelResponsePart] = field(
        default_factory=dict[int, Any], init=False
    )
    _seen: RequestUsage = field(default_factory=RequestUsage, init=False)
    _source: StreamedResponse | None = field(default=None, init=False)
    _whole: NativeResponse | None = field(default=None, init=False)

    async def open(self) -> None:
        """Wait until the model's own stream is open, or raise what it raised."""
        async for delta in self.answer:
            if isinstance(delta, NativeDelta) and isinstance(delta.event, Opened):
                self._source = delta.event.stream
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
            event, self._seen = delta.event
            self._take(event)
            if self._first_chunk_monotonic is None:
                self._first_chunk_monotonic = time.perf_counter()
            yield event
        response = self.answer.response
        if response is not None and not self._cancelled:
            self.on_answer(response)
            self._whole = response.native
            self._finished = True

    def _take(self, event: ModelResponseStreamEvent) -> None:
        if isinstance(event, PartStartEvent):
            self._parts[event.index] = event.part
        elif isinstance(event, PartDeltaEvent) and event.index in self._parts:
            part: Any = self._parts[event.index]
            self._parts[event.index] = cast(
                "ModelResponsePart", event.delta.apply(part)
            )
        elif isinstance(event, FinalResultEvent):
            self.final_result_event = event

    def get(self) -> NativeResponse:
        """The answer, as far as it has been read."""
        if self._whole is not None:
            return copy.copy(self._whole)
        source = self._source
        return NativeResponse(
            parts=[self._parts[index] for index in sorted(self._parts)],
            model_name=self.model_name,
            timestamp=self.timestamp,
            usage=self._seen,
            provider_name=self.provider_name,
            provider_url=self.provider_url,
            canonical_system=None if source is None else source.canonical_system,
            provider_response_id=(
                None if source is None else source.provider_response_id
            ),
            state="interrupted" if self._cancelled else "incomplete",
        )

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
        return self._seen if self._whole is None else self._whole.usage

    @property
    def model_name(self) -> str:
        """Of the model's own stream."""
        return "" if self._source is None else self._source.model_name

    @property
    def provider_name(self) -> str | None:
        """Of the model's own stream."""
        return None if self._source is None else self._source.provider_name

    @property
    def provider_url(self) -> str | None:
        """Of the model's own stream."""
        return None if self._source is None else self._source.provider_url

    @property
    def timestamp(self) -> datetime:
        """Of the model's own stream."""
        if self._source is None:
            return NativeResponse(parts=[]).timestamp
        return self._source.timestamp
