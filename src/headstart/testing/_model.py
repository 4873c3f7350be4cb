"""A model that follows a script, at a stated pace, with stated faults."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import anyio

from headstart._calls import ToolCall
from headstart._errors import ModelError, UsageError
from headstart._messages import CallDelta, ModelResponse, TextDelta, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headstart._messages import DeltaReceiver, ModelDelta, ModelRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """An answer that goes wrong.

    Attributes:
        response: The answer that would have been.
        after: How many deltas of it still come.
        error: What is raised then. Without one, the stream breaks off.
        hang: Nothing is raised: nothing more comes until the request is cancelled.
    """

    response: ScriptedResponse = ""
    after: int = 0
    error: Exception | None = None
    hang: bool = False


ScriptedCall: TypeAlias = tuple[str, "Mapping[str, object] | str"]
ScriptedResponse: TypeAlias = (
    "ModelResponse | str | Sequence[str | ScriptedCall] | Fault"
)
"""An answer: text; or a list of calls, each the tool's name with its arguments as a
mapping or as raw text, and of text before them; or a complete response; or a fault."""

Outcome: TypeAlias = Literal["running", "answered", "failed", "cancelled"]


@dataclass(slots=True, kw_only=True)
class ModelRecord:
    """One request that a scripted model got, and what became of it.

    Attributes:
        request: The request.
        started_s: When it came, on the event loop's clock.
        ended_s: When it ended, or `None` while it runs.
        deltas: How many deltas were given out.
        outcome: How it ended.
    """

    request: ModelRequest = field(repr=False)
    started_s: float
    ended_s: float | None = None
    deltas: int = 0
    outcome: Outcome = "running"


class ScriptedModel:
    """A `Model` whose answers are written down beforehand.

    An answer depends on the conversation alone, never on how often or in which order it
    is asked for: the first of `responses` answers a request that has no assistant
    message yet, the second one that has one, and so on. A function of the request may
    answer otherwise. So a request that is repeated, or run ahead and thrown away, does
    not change the script, and the identifiers of calls are the same as well.

    Deltas come with `anyio.sleep` between them. With `delay` and `seconds_per_delta`
    that are fractions of powers of two, such as 0.25, every time is exact on a virtual
    clock. Cancelling a request ends it, and is recorded.

    Args:
        responses: The answers in order, or a function from a request to its answer.
        delay: Seconds before the first delta.
        seconds_per_delta: Seconds between one delta and the next. A provider's 80
            tokens a second are 1 / 80.
        characters_per_delta: How much of a text or an argument text one delta holds. A
            call begins with a delta of its own, which holds its name.
        stream: Whether deltas are given at all; the time taken is the same.

    Attributes:
        records: Every request, in the order in which they came.
    """

    def __init__(
        self,
        responses: Sequence[ScriptedResponse]
        | Callable[[ModelRequest], ScriptedResponse],
        *,
        delay: float = 0.0,
        seconds_per_delta: float = 0.0,
        characters_per_delta: int = 4,
        stream: bool = True,
    ) -> None:
        if isinstance(responses, str) or characters_per_delta < 1:
            msg = "ScriptedModel takes a list of answers, and a character a delta or more."
            raise UsageError(msg)
        self._responses = responses
        self._delay = delay
        self._pace = seconds_per_delta
        self._size = characters_per_delta
        self._stream = stream
        self.records: list[ModelRecord] = []

    @property
    def requests(self) -> list[ModelRequest]:
        """The requests of all records."""
        return [record.request for record in self.records]

    async def respond(
        self, request: ModelRequest, on_delta: DeltaReceiver
    ) -> ModelResponse:
        """Answer as the script says, one delta after the other.

        Raises:
            ModelError: The script lets the stream break off here.
            UsageError: The conversation is longer than the script.
        """
        record = ModelRecord(request=request, started_s=anyio.current_time())
        self.records.append(record)
        try:
            response = await self._respond(request, on_delta, record)
        except Exception:
            record.outcome = "failed"
            raise
        except BaseException:
            record.outcome = "cancelled"
            raise
        finally:
            record.ended_s = anyio.current_time()
        record.outcome = "answered"
        return response

    async def _respond(
        self, request: ModelRequest, on_delta: DeltaReceiver, record: ModelRecord
    ) -> ModelResponse:
        scripted = self._scripted(request)
        fault = scripted if isinstance(scripted, Fault) else None
        response = self._complete(
            request, scripted.response if isinstance(scripted, Fault) else scripted
        )
        deltas = self._split(response)
        if fault is not None:
            deltas = deltas[: fault.after]
        first = record.started_s + self._delay
        await _sleep_until(first)
        for position, delta in enumerate(deltas):
            if position:
                await _sleep_until(first + position * self._pace)
            record.deltas += 1
            if self._stream:
                on_delta(delta)
        if fault is None:
            return response
        if fault.hang:
            await anyio.sleep_forever()
        msg = "The stream broke off before the answer was complete."
        raise fault.error or ModelError(msg)

    def _scripted(self, request: ModelRequest) -> ScriptedResponse:
        if callable(self._responses):
            return self._responses(request)
        turn = sum(message.role == "assistant" for message in request.history)
        if turn < len(self._responses):
            return self._responses[turn]
        msg = (
            f"The script has {len(self._responses)} answers, and the conversation has "
            f"{turn} assistant messages already: add an answer to the script."
        )
        raise UsageError(msg)

    def _complete(
        self, request: ModelRequest, scripted: ScriptedResponse
    ) -> ModelResponse:
        if isinstance(scripted, ModelResponse):
            return scripted
        if isinstance(scripted, Fault):
            msg = "The response of a Fault is an answer, not another Fault."
            raise UsageError(msg)
        parts = [scripted] if isinstance(scripted, str) else list(scripted)
        text = "".join(part for part in parts if isinstance(part, str))
        asked = [part for part in parts if not isinstance(part, str)]
        calls = tuple(
            ToolCall(
                f"call_{len(request.history)}_{index}",
                name,
                arguments if isinstance(arguments, str) else json.dumps(arguments),
            )
            for index, (name, arguments) in enumerate(asked)
        )
        written = sum(len(message.content) for message in request.history)
        response = ModelResponse(text=text, tool_calls=calls)
        usage = Usage(
            input_tokens=-(-written // self._size),
            output_tokens=len(self._split(response)),
        )
        return ModelResponse(text=text, tool_calls=calls, usage=usage)

    def _split(self, response: ModelResponse) -> list[ModelDelta]:
        deltas: list[ModelDelta] = [
            TextDelta(piece) for piece in self._pieces(response.text)
        ]
        for index, call in enumerate(response.tool_calls):
            deltas.append(CallDelta(index=index, id=call.id, name=call.name))
            deltas += [
                CallDelta(index=index, arguments=piece)
                for piece in self._pieces(call.arguments)
            ]
        return deltas

    def _pieces(self, text: str) -> list[str]:
        return [
            text[start : start + self._size]
            for start in range(0, len(text), self._size)
        ]


async def _sleep_until(moment: float) -> None:
    await anyio.sleep(max(0.0, moment - anyio.current_time()))
