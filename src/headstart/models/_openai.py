"""A client of chat completions, at OpenAI and every endpoint compatible with it.

Rules of this file:

1. An answer is complete or it is an error: what breaks off, or cannot be understood to
   the end, raises `ModelError`, so that no call out of half an answer ever runs.
2. Nothing is retried here, and nothing is repaired: a piece of a call that does not fit
   what came before it is an error, not a guess.
"""

from __future__ import annotations

from json import JSONDecodeError
from typing import TYPE_CHECKING, Any

from headstart._chat_answer import (
    ChatAnswer,
    describe_tool,
    not_a_completion,
    read_completion,
    understand,
)
from headstart._errors import ModelError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

    import openai

    from headstart._messages import DeltaReceiver, ModelRequest, ModelResponse

_OWN_SETTINGS = ("messages", "tools", "stream")


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
            return understand(read_completion, await self._create(**body))
        except self._errors.APIStatusError as error:
            msg = f"The model's endpoint answered {error.status_code}: {error.message}"
            raise ModelError(msg, status=error.status_code) from error
        except self._errors.OpenAIError as error:
            msg = f"The request to the model's endpoint failed: {error}"
            raise ModelError(msg) from error
        except (JSONDecodeError, UnicodeDecodeError) as error:
            raise not_a_completion() from error

    def _body(self, request: ModelRequest) -> dict[str, Any]:
        _check_settings(request.settings)
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [message.to_dict() for message in request.history],
            **self.settings,
            **request.settings,
        }
        if request.tools:
            body["tools"] = [describe_tool(tool) for tool in request.tools]
        if self.stream:
            body["stream"] = True
            body.setdefault("stream_options", {"include_usage": True})
        if body.get("stream_options") is None:
            body.pop("stream_options", None)
        return body

    async def _respond_streaming(
        self, body: dict[str, Any], on_delta: DeltaReceiver
    ) -> ModelResponse:
        answer = ChatAnswer()
        async with await self._create(**body) as stream:
            async for chunk in stream:
                for delta in understand(answer.add, chunk):
                    on_delta(delta)
        return answer.finish()


def _check_settings(settings: Mapping[str, Any]) -> None:
    for name in _OWN_SETTINGS:
        if name in settings:
            msg = f"{name!r} is no setting: it comes with the request or the model."
            raise UsageError(msg)
