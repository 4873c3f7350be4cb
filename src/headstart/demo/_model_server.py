"""A chat model behind a real HTTP server that speaks OpenAI's protocol.

What it says is decided by `_assistant`, from the conversation that it is sent. How fast
it says so is stated by `Latencies`: a time to the first token, and a pace.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio

from ._assistant import Answer, answer
from ._http import HTTPRequest, HTTPResponse, open_http_server

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from ._latencies import Latencies

MODEL_NAME = "headstart-demo"
_CREATED = 1_772_000_000  # a constant: equal conversations have equal answers
_TOKEN = re.compile(r" ?[^\W\d_]{1,10}|\d{1,3}| ?[^\w\s]+|_|\s+")


def split_tokens(text: str) -> list[str]:
    """Cut a text into pieces of about the size that real tokens have."""
    return _TOKEN.findall(text)


@asynccontextmanager
async def open_model_server(latencies: Latencies) -> AsyncGenerator[str]:
    """Serve the model on the loopback interface; gives its `base_url`."""
    async with open_http_server(_ModelServer(latencies).answer) as url:
        yield f"{url}/v1"


class _ModelServer:
    def __init__(self, latencies: Latencies) -> None:
        self._latencies = latencies

    async def answer(self, request: HTTPRequest) -> HTTPResponse:
        start = anyio.current_time()
        if (request.method, request.path) != ("POST", "/v1/chat/completions"):
            return _refuse(404, f"there is no {request.method} {request.path}")
        try:
            completion = _Completion(json.loads(request.body))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return _refuse(400, f"this is no request that can be answered: {error!r}")
        if completion.stream:
            return HTTPResponse(
                content_type="text/event-stream",
                pieces=self._stream(completion, start),
            )
        await anyio.sleep_until(self._due(start, completion.output_tokens - 1))
        return HTTPResponse.from_json(completion.whole())

    def _due(self, start: float, token: int) -> float:
        """When a token is said, the first one being 0."""
        pace = self._latencies.tokens_per_s
        return start + self._latencies.first_token_s + max(token, 0) / pace

    async def _stream(
        self, completion: _Completion, start: float
    ) -> AsyncGenerator[bytes]:
        for number, delta in completion.deltas():
            # Until a point in time: a late token does not make the next one later.
            await anyio.sleep_until(self._due(start, number))
            yield _event(completion.chunk(delta))
        yield _event(completion.chunk({}, finish_reason=completion.finish_reason))
        if completion.include_usage:
            yield _event({**completion.chunk(None), "usage": completion.usage})
        yield b"data: [DONE]\n\n"


class _Completion:
    """One answer, and the forms that it is sent in."""

    def __init__(self, body: dict[str, Any]) -> None:
        messages: list[dict[str, Any]] = body["messages"]
        tools = [tool["function"]["name"] for tool in body.get("tools") or ()]
        self.model = str(body.get("model", MODEL_NAME))
        self.stream = bool(body.get("stream"))
        options: dict[str, Any] = body.get("stream_options") or {}
        self.include_usage = bool(options.get("include_usage"))
        self.answer: Answer = answer(messages, tools=tools)
        # Calls are named after the conversation, so that running it again names them the
        # same. The names in it do not count, as no model goes by them.
        messages = _without_names(messages)
        written = json.dumps([messages, tools], sort_keys=True).encode()
        self.digest = hashlib.sha256(written).hexdigest()
        self.calls = [
            (self._call_id(index), name, json.dumps(arguments, separators=(",", ":")))
            for index, (name, arguments) in enumerate(self.answer.calls)
        ]
        self.finish_reason = "tool_calls" if self.calls else "stop"
        self.output_tokens = len(split_tokens(self.answer.text)) + sum(
            len(split_tokens(name + arguments)) for _, name, arguments in self.calls
        )
        prompt_tokens = sum(
            len(split_tokens(json.dumps(part)))
            for part in (messages, body.get("tools"))
        )
        self.usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": prompt_tokens + self.output_tokens,
        }

    def _call_id(self, index: int) -> str:
        return (
            "call_" + hashlib.sha256(f"{self.digest} {index}".encode()).hexdigest()[:24]
        )

    def deltas(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The answer piece by piece, each with the number of its last token."""
        said = 0
        for piece in split_tokens(self.answer.text):
            yield said, {"content": piece}
            said += 1
        for index, (call_id, name, arguments) in enumerate(self.calls):
            said += len(split_tokens(name))
            function = {"name": name, "arguments": ""}
            opening = {
                "index": index,
                "id": call_id,
                "type": "function",
                "function": function,
            }
            yield said - 1, {"tool_calls": [opening]}
            for piece in split_tokens(arguments):
                more = {"index": index, "function": {"arguments": piece}}
                yield said, {"tool_calls": [more]}
                said += 1

    def chunk(
        self, delta: dict[str, Any] | None, *, finish_reason: str | None = None
    ) -> dict[str, Any]:
        """One event of the stream; without a delta, one without a choice."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return {
            **self._head("chat.completion.chunk"),
            "choices": [] if delta is None else [choice],
        }

    def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        message: dict[str, Any] = {"role": "assistant", "content": self.answer.text}
        if self.calls:
            message["tool_calls"] = [
                {
                    "id": call_id,
                    "type": "function",
                    "function": {"name": name, "arguments": arguments},
                }
                for call_id, name, arguments in self.calls
            ]
        choice = {"index": 0, "message": message, "finish_reason": self.finish_reason}
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": self.usage,
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self.digest[:24]}",
            "object": kind,
            "created": _CREATED,
            "model": self.model,
        }


def _event(data: dict[str, Any]) -> bytes:
    return b"data: %s\n\n" % json.dumps(data, separators=(",", ":")).encode()


def _refuse(status: int, message: str) -> HTTPResponse:
    error = {"message": message, "type": "invalid_request_error"}
    return HTTPResponse.from_json({"error": error}, status=status)


def _without_names(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages without the identifiers that calls happen to have."""
    return [
        {
            key: [{**call, "id": ""} for call in value]
            if key == "tool_calls"
            else value
            for key, value in message.items()
            if key != "tool_call_id"
        }
        for message in messages
    ]
