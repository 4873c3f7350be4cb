"""A client of chat completions, at OpenAI and every endpoint compatible with it.

Rules of this file:

1. An answer is complete or it is an error: what breaks off, or cannot be understood to
   the end, raises `ModelError`, so that no call out of half an answer ever runs.
2. Nothing is retried here, and nothing is repaired: a piece of a call that does not fit
   what came before it is an error, not a guess.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from json import JSONDecodeError
from typing import TYPE_CHECKING, Any, TypeVar

from headstart._calls import ToolCall
from headstart._errors import ModelError, UsageError
from headstart._messages import CallDelta, ModelResponse, TextDelta, Usage
from headstart._tools import Tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType
    from typing import Self

    import openai

    from headstart._messages import DeltaReceiver, ModelRequest

T = TypeVar("T")

_OWN_SETTINGS = ("messages", "tools", "stream")
_FINISHED_WITH_CALLS = ("tool_calls", "stop", "function_call")


class OpenAIModel:
    """A model behind an endpoint that speaks OpenAI's chat completions.

    ```python
    async with OpenAIModel("gpt-5-mini") as model:
        agent = Agent(model, tools=[get_incident])
    ```

    Without `client`, one is made that never retries: a request that fails is one
    `ModelError` and nothing else. A client that is passed in keeps its own retries and
    is not closed here. Cancelling `respond` closes the request's stream.

    Args:
        model: The model's name, as the endpoint knows it.
        client: An `openai.AsyncOpenAI` of your own.
        base_url: The endpoint, where it is not OpenAI's own.
        api_key: Its key; without it the `openai` SDK reads its environment variable.
        stream: Whether answers come piece by piece. An endpoint that cannot do that
            still works, without early starts of calls.
        settings: Sent with every request: `temperature`, `extra_body` and so on. A
            request's own settings come on top. `{"stream_options": None}` leaves the
            question for usage out, for endpoints that refuse it.

    Raises:
        ImportError: The `openai` SDK is not installed.
        UsageError: An argument cannot work, or no key is known.
    """

    def __init__(
        self,
        model: str,
        *,
        client: openai.AsyncOpenAI | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        stream: bool = True,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            msg = 'Please install `openai`: pip install "headstart[openai]"'
            raise ImportError(msg, name="openai") from error
        if client is not None and (base_url is not None or api_key is not None):
            msg = "A client of your own has its base_url and api_key: set them there."
            raise UsageError(msg)
        self.model = model
        self.stream = stream
        self.settings = dict(settings or {})
        _check_settings(self.settings)
        self._errors = openai
        self._own_client = client is None
        if client is None:
            try:
                client = openai.AsyncOpenAI(
                    base_url=base_url, api_key=api_key, max_retries=0
                )
            except openai.OpenAIError as error:
                raise UsageError(str(error)) from error
        self._client = client
        # The SDK loads this part, for tenths of a second, when it is first touched.
        self._create: Any = client.chat.completions.create

    def __repr__(self) -> str:
        return f"<OpenAIModel {self.model!r}>"

    async def aclose(self) -> None:
        """Close the connections of a client that was made here."""
        if self._own_client:
            await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def respond(
        self, request: ModelRequest, on_delta: DeltaReceiver
    ) -> ModelResponse:
        """Answer one request; see `Model`.

        Raises:
            ModelError: The endpoint refused, failed, or its answer is incomplete or
                makes no sense. `status` is the HTTP status where there was one.
            UsageError: The request holds a tool or a setting that cannot be sent.
        """
        body = self._body(request)
        try:
            if self.stream:
                return await self._respond_streaming(body, on_delta)
            return _understand(_read_completion, await self._create(**body))
        except self._errors.APIStatusError as error:
            msg = f"The model's endpoint answered {error.status_code}: {error.message}"
            raise ModelError(msg, status=error.status_code) from error
        except self._errors.OpenAIError as error:
            msg = f"The request to the model's endpoint failed: {error}"
            raise ModelError(msg) from error
        except (JSONDecodeError, UnicodeDecodeError) as error:
            raise _not_a_completion() from error

    def _body(self, request: ModelRequest) -> dict[str, Any]:
        _check_settings(request.settings)
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [message.to_dict() for message in request.history],
            **self.settings,
            **request.settings,
        }
        if request.tools:
            body["tools"] = [_describe_tool(tool) for tool in request.tools]
        if self.stream:
            body["stream"] = True
            body.setdefault("stream_options", {"include_usage": True})
        if body.get("stream_options") is None:
            body.pop("stream_options", None)
        return body

    async def _respond_streaming(
        self, body: dict[str, Any], on_delta: DeltaReceiver
    ) -> ModelResponse:
        answer = _Answer()
        async with await self._create(**body) as stream:
            async for chunk in stream:
                for delta in _understand(answer.add, chunk):
                    on_delta(delta)
        return answer.finish()


def _check_settings(settings: Mapping[str, Any]) -> None:
    for name in _OWN_SETTINGS:
        if name in settings:
            msg = f"{name!r} is no setting: it comes with the request or the model."
            raise UsageError(msg)


def _describe_tool(tool: object) -> dict[str, Any]:
    if not isinstance(tool, Tool):
        msg = f"A tool of a request is a headstart Tool, not {type(tool).__name__}."
        raise UsageError(msg)
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
        },
    }


@dataclass(slots=True)
class _PartialCall:
    id: str
    name: str
    arguments: list[str] = field(default_factory=list[str])

    def add(self, call_id: str | None, name: str | None, arguments: str) -> None:
        if call_id not in (None, "", self.id) or name not in (None, "", self.name):
            msg = (
                f"The model's stream continues the call of {self.name!r} "
                "as another one: it cannot be told which arguments are whose."
            )
            raise ModelError(msg)
        self.arguments.append(arguments)


@dataclass(slots=True)
class _Answer:
    """A streamed answer, as far as it has come."""

    text: list[str] = field(default_factory=list[str])
    calls: list[_PartialCall] = field(default_factory=list[_PartialCall])
    finish_reason: str | None = None
    usage: Usage = field(default_factory=Usage)
    has_choice: bool = False

    def add(self, chunk: Any) -> list[TextDelta | CallDelta]:
        """Take one chunk in; returns what is new."""
        new: list[TextDelta | CallDelta] = []
        if chunk.usage is not None:
            self.usage = _read_usage(chunk.usage)
        for choice in chunk.choices or ():
            if choice.index:
                continue
            self.has_choice = True
            self.finish_reason = choice.finish_reason or self.finish_reason
            delta = choice.delta
            for text in (delta.content, delta.refusal):
                if text:
                    self.text.append(text)
                    new.append(TextDelta(text))
            new.extend(self._add_piece(piece) for piece in delta.tool_calls or ())
        return new

    def _add_piece(self, piece: Any) -> CallDelta:
        index, call_id, function = piece.index, piece.id, piece.function
        name = None if function is None else function.name
        arguments = ("" if function is None else function.arguments) or ""
        if type(index) is not int or not isinstance(arguments, str):
            raise _malformed()
        if 0 <= index < len(self.calls):
            self.calls[index].add(call_id, name, arguments)
            return CallDelta(index=index, arguments=arguments)
        call = _PartialCall(*_check_identity(call_id, name), [arguments])
        if index != len(self.calls) or any(call.id == c.id for c in self.calls):
            raise _malformed()
        self.calls.append(call)
        return CallDelta(index=index, id=call.id, name=call.name, arguments=arguments)

    def finish(self) -> ModelResponse:
        """The complete answer, if it is complete."""
        if not self.has_choice:
            raise _no_choices()
        if self.finish_reason is None:
            msg = "The model's stream broke off before the answer was complete."
            raise ModelError(msg)
        calls = tuple(
            ToolCall(call.id, call.name, "".join(call.arguments)) for call in self.calls
        )
        _check_finish(self.finish_reason, calls)
        return ModelResponse(
            text="".join(self.text), tool_calls=calls, usage=self.usage
        )


def _understand(read: Callable[[Any], T], sent: Any) -> T:
    """Read what the SDK built, unchecked, from whatever the endpoint sent."""
    try:
        return read(sent)
    except (AttributeError, TypeError) as error:
        raise _not_a_completion() from error


def _read_completion(completion: Any) -> ModelResponse:
    if not completion.choices:
        raise _no_choices()
    choice = completion.choices[0]
    calls: list[ToolCall] = []
    for call in choice.message.tool_calls or ():
        function = getattr(call, "function", None)
        if function is None:
            raise _malformed()
        call_id, name = _check_identity(call.id, function.name)
        arguments = function.arguments or ""
        if not isinstance(arguments, str) or any(call_id == c.id for c in calls):
            raise _malformed()
        calls.append(ToolCall(call_id, name, arguments))
    _check_finish(choice.finish_reason, calls)
    usage = completion.usage
    return ModelResponse(
        text=choice.message.content or choice.message.refusal or "",
        tool_calls=tuple(calls),
        usage=Usage() if usage is None else _read_usage(usage),
    )


def _read_usage(usage: Any) -> Usage:
    return Usage(
        input_tokens=usage.prompt_tokens or 0,
        output_tokens=usage.completion_tokens or 0,
    )


def _check_identity(call_id: object, name: object) -> tuple[str, str]:
    if not (isinstance(call_id, str) and call_id and isinstance(name, str) and name):
        raise _malformed()
    return call_id, name


def _check_finish(reason: str | None, calls: Iterable[ToolCall]) -> None:
    if calls and reason not in _FINISHED_WITH_CALLS:
        msg = (
            f"The model's answer asks for tool calls and ended with {reason!r}: "
            "the calls may be cut off, so none of them is run."
        )
        raise ModelError(msg)


def _not_a_completion() -> ModelError:
    msg = "The model's endpoint sent what is no chat completion."
    return ModelError(msg)


def _malformed() -> ModelError:
    msg = (
        "The model's answer holds a tool call that cannot be read: each has an index, "
        "an id of its own, a name, and arguments as text."
    )
    return ModelError(msg)


def _no_choices() -> ModelError:
    msg = (
        "The model's endpoint answered without any choice. Is it a chat completions "
        "endpoint, and can it stream? If it cannot, pass stream=False."
    )
    return ModelError(msg)
