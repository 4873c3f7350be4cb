"""Endpoints in this process that answer as a scripted model does, each in its own words."""

import json
from contextlib import asynccontextmanager

import anyio
import httpx2

from headstart import CallDelta, Message, ModelError, ModelRequest, TextDelta, ToolCall


class Endpoint:
    """Answers an SDK as a `ScriptedModel` does.

    Attributes:
        bodies: What was sent, in order.
        streaming: How many streams are open.
        cut: Leave the end of each answer out.
        reason: How each answer ends, if not as it should.
        thinks: What the model thinks aloud before each answer.
    """

    def __init__(self, model, dialect):
        self.model = model
        self.dialect = dialect
        self.bodies = []
        self.streaming = 0
        self.cut = False
        self.reason = None
        self.thinks = None

    @asynccontextmanager
    async def open(self):
        async with anyio.create_task_group() as self._tasks:
            transport = httpx2.MockTransport(self._answer)
            async with httpx2.AsyncClient(transport=transport) as client:
                yield client
            self._tasks.cancel_scope.cancel()

    async def _answer(self, request):
        body = json.loads(request.content)
        self.bodies.append(body)
        dialect = self.dialect(self, body)
        if not body.get("stream"):
            asked = ModelRequest(dialect.messages)
            response = await self.model.respond(asked, lambda _: None)
            return httpx2.Response(200, json=dialect.whole(response))
        put, events = anyio.create_memory_object_stream(float("inf"))
        self._tasks.start_soon(self._stream, dialect, put)
        headers = {"content-type": "text/event-stream"}
        return httpx2.Response(200, headers=headers, stream=_Events(self, events))

    async def _stream(self, dialect, put):
        with put, anyio.CancelScope() as scope:

            def send(events):
                try:
                    for event in events:
                        put.send_nowait(event)
                except anyio.BrokenResourceError:
                    scope.cancel()  # nobody reads any more

            send(dialect.begin())
            try:
                response = await self.model.respond(
                    ModelRequest(dialect.messages),
                    lambda delta: send(dialect.go_on(delta)),
                )
            except ModelError:
                return  # the script lets it break off
            if not self.cut:
                send(dialect.end(response))


class _Events(httpx2.AsyncByteStream):
    def __init__(self, endpoint, events):
        self._endpoint = endpoint
        self._events = events
        endpoint.streaming += 1

    async def __aiter__(self):
        async for event in self._events:
            kind = event.get("type")
            name = f"event: {kind}\n" if kind else ""
            yield f"{name}data: {json.dumps(event)}\n\n".encode()

    async def aclose(self):
        self._events.close()
        self._endpoint.streaming -= 1


class Chat:
    """Chat completions."""

    def __init__(self, endpoint, body):
        self.endpoint = endpoint
        self.messages = [
            Message.from_dict(
                {key: value for key, value in each.items() if key != "refusal"}
            )
            for each in body["messages"]
        ]

    def _chunk(self, delta, reason=None):
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        head = {"id": "c", "object": "chat.completion.chunk", "created": 1}
        return {**head, "model": "m", "choices": [choice]}

    def begin(self):
        yield self._chunk({"role": "assistant", "content": ""})
        if self.endpoint.thinks:
            yield self._chunk({"reasoning_content": self.endpoint.thinks[:2]})
            yield self._chunk({"reasoning_content": self.endpoint.thinks[2:]})

    def go_on(self, delta):
        if not isinstance(delta, CallDelta):
            yield self._chunk({"content": delta.text})
            return
        call = {"index": delta.index, "function": {"arguments": delta.arguments}}
        if delta.id:
            call |= {"id": delta.id, "type": "function"}
            call["function"]["name"] = delta.name
        yield self._chunk({"tool_calls": [call]})

    def end(self, response):
        reason = "tool_calls" if response.tool_calls else "stop"
        yield self._chunk({}, self.endpoint.reason or reason)
        yield {**self._chunk({}), "choices": [], "usage": self._usage(response)}

    def _usage(self, response):
        usage = response.usage
        return {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.input_tokens + usage.output_tokens,
        }

    def whole(self, response):
        message = response.message.to_dict()
        reason = "tool_calls" if response.tool_calls else "stop"
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": self.endpoint.reason or reason,
        }
        head = {"id": "c", "object": "chat.completion", "created": 1, "model": "m"}
        return {**head, "choices": [choice], "usage": self._usage(response)}


class Items:
    """Responses."""

    def __init__(self, endpoint, body):
        self.endpoint = endpoint
        self.messages = []
        self.output = []
        self.number = 0
        calls = []
        for item in body["input"]:
            kind = item.get("type", "message")
            if kind == "function_call":
                calls.append(ToolCall(item["call_id"], item["name"], item["arguments"]))
                continue
            if calls:
                said = self._pop_said()
                self.messages.append(
                    Message(role="assistant", content=said, tool_calls=tuple(calls))
                )
                calls = []
            if kind == "function_call_output":
                self.messages.append(
                    Message(
                        role="tool",
                        content=item["output"],
                        tool_call_id=item["call_id"],
                    )
                )
            elif kind == "message":
                content = item["content"]
                if not isinstance(content, str):
                    content = "".join(part["text"] for part in content)
                self.messages.append(Message(role=item["role"], content=content))

    def _pop_said(self):
        if self.messages and self.messages[-1].role == "assistant":
            return self.messages.pop().content
        return ""

    def _event(self, kind, **fields):
        self.number += 1
        return {"type": f"response.{kind}", "sequence_number": self.number, **fields}

    def _response(self, status, usage=None):
        return {
            "id": "r",
            "object": "response",
            "created_at": 1,
            "model": "m",
            "status": status,
            "output": self.output if status != "in_progress" else [],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": usage,
            "incomplete_details": {"reason": "max_output_tokens"}
            if status == "incomplete"
            else None,
        }

    def begin(self):
        yield self._event("created", response=self._response("in_progress"))
        if self.endpoint.thinks:
            item = {
                "id": "rs",
                "type": "reasoning",
                "summary": [],
                "encrypted_content": self.endpoint.thinks,
            }
            self.output.append(item)
            yield self._event("output_item.added", output_index=0, item=item)
            yield self._event("output_item.done", output_index=0, item=item)

    def _close(self):
        if not self.output or self.output[-1].get("status") != "in_progress":
            return
        item = self.output[-1]
        item["status"] = "completed"
        index = len(self.output) - 1
        if item["type"] == "function_call":
            yield self._event(
                "function_call_arguments.done",
                item_id=item["id"],
                output_index=index,
                name=item["name"],
                arguments=item["arguments"],
            )
        yield self._event("output_item.done", output_index=index, item={**item})

    def _open(self, item):
        yield from self._close()
        self.output.append({**item, "id": f"i{len(self.output)}"})
        self.output[-1]["status"] = "in_progress"
        shown = {**self.output[-1]}
        if "content" in shown:
            shown["content"] = []
        index = len(self.output) - 1
        yield self._event("output_item.added", output_index=index, item=shown)

    def go_on(self, delta):
        if not isinstance(delta, CallDelta):
            if not self.output or self.output[-1]["type"] != "message":
                part = {"type": "output_text", "text": "", "annotations": []}
                yield from self._open(
                    {"type": "message", "role": "assistant", "content": [part]}
                )
                yield self._event(
                    "content_part.added",
                    item_id=self.output[-1]["id"],
                    output_index=len(self.output) - 1,
                    content_index=0,
                    part={**part},
                )
            self.output[-1]["content"][0]["text"] += delta.text
            yield self._event(
                "output_text.delta",
                item_id=self.output[-1]["id"],
                output_index=len(self.output) - 1,
                content_index=0,
                delta=delta.text,
                logprobs=[],
            )
            return
        if delta.id:
            yield from self._open(
                {
                    "type": "function_call",
                    "call_id": delta.id,
                    "name": delta.name,
                    "arguments": "",
                }
            )
        if delta.arguments:
            self.output[-1]["arguments"] += delta.arguments
            yield self._event(
                "function_call_arguments.delta",
                item_id=self.output[-1]["id"],
                output_index=len(self.output) - 1,
                delta=delta.arguments,
            )

    def end(self, response):
        yield from self._close()
        status = self.endpoint.reason or "completed"
        usage = self._usage(response)
        yield self._event(status, response=self._response(status, usage))

    def whole(self, response):
        list(self.begin())
        if response.text:
            list(self.go_on(TextDelta(response.text)))
        for index, call in enumerate(response.tool_calls):
            delta = CallDelta(
                index=index, id=call.id, name=call.name, arguments=call.arguments
            )
            list(self.go_on(delta))
        return list(self.end(response))[-1]["response"]

    def _usage(self, response):
        return {
            "input_tokens": response.usage.input_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": response.usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": response.usage.input_tokens + response.usage.output_tokens,
        }


class Blocks:
    """Messages."""

    def __init__(self, endpoint, body):
        self.endpoint = endpoint
        self.messages = []
        self.block = -1
        self.kind = None
        for each in body["messages"]:
            blocks = each["content"]
            if isinstance(blocks, str):
                blocks = [{"type": "text", "text": blocks}]
            said = "".join(b["text"] for b in blocks if b["type"] == "text")
            calls = tuple(
                ToolCall(b["id"], b["name"], json.dumps(b["input"]))
                for b in blocks
                if b["type"] == "tool_use"
            )
            results = [
                Message(
                    role="tool", content=b["content"], tool_call_id=b["tool_use_id"]
                )
                for b in blocks
                if b["type"] == "tool_result"
            ]
            self.messages += results
            if not results:
                self.messages.append(
                    Message(role=each["role"], content=said, tool_calls=calls)
                )

    def begin(self):
        usage = {"input_tokens": 1, "output_tokens": 1}
        message = {"id": "m", "type": "message", "role": "assistant", "model": "m"}
        ends = {"stop_reason": None, "stop_sequence": None}
        yield {
            "type": "message_start",
            "message": {**message, "content": [], **ends, "usage": usage},
        }
        yield {"type": "ping"}
        if self.endpoint.thinks:
            yield from self._open({"type": "thinking", "thinking": "", "signature": ""})
            for piece in (self.endpoint.thinks[:2], self.endpoint.thinks[2:]):
                yield self._delta({"type": "thinking_delta", "thinking": piece})
            yield self._delta({"type": "signature_delta", "signature": "s"})

    def _delta(self, delta):
        return {"type": "content_block_delta", "index": self.block, "delta": delta}

    def _close(self):
        if self.kind is not None:
            yield {"type": "content_block_stop", "index": self.block}
        self.kind = None

    def _open(self, block):
        yield from self._close()
        self.block += 1
        self.kind = block["type"]
        yield {
            "type": "content_block_start",
            "index": self.block,
            "content_block": block,
        }

    def go_on(self, delta):
        if not isinstance(delta, CallDelta):
            if self.kind != "text":
                yield from self._open({"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": delta.text})
            return
        if delta.id:
            block = {"type": "tool_use", "id": delta.id, "name": delta.name}
            yield from self._open({**block, "input": {}})
        if delta.arguments:
            yield self._delta(
                {"type": "input_json_delta", "partial_json": delta.arguments}
            )

    def end(self, response):
        yield from self._close()
        reason = "tool_use" if response.tool_calls else "end_turn"
        usage = response.usage
        yield {
            "type": "message_delta",
            "delta": {
                "stop_reason": self.endpoint.reason or reason,
                "stop_sequence": None,
            },
            "usage": {
                "input_tokens": usage.input_tokens,
                "output_tokens": usage.output_tokens,
            },
        }
        yield {"type": "message_stop"}

    def whole(self, response):
        blocks = [{"type": "text", "text": response.text}] if response.text else []
        blocks += [
            {
                "type": "tool_use",
                "id": call.id,
                "name": call.name,
                "input": json.loads(call.arguments),
            }
            for call in response.tool_calls
        ]
        reason = "tool_use" if response.tool_calls else "end_turn"
        return {
            "id": "m",
            "type": "message",
            "role": "assistant",
            "model": "m",
            "content": blocks,
            "stop_reason": self.endpoint.reason or reason,
            "stop_sequence": None,
            "usage": {
                "input_tokens": response.usage.input_tokens,
                "output_tokens": response.usage.output_tokens,
            },
        }


@asynccontextmanager
async def answering(*events):
    """An HTTP client whose every answer is these events."""

    async def answer(request):
        headers = {"content-type": "text/event-stream"}
        written = "".join(
            f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
            if isinstance(event, dict) and "type" in event
            else f"data: {json.dumps(event)}\n\n"
            for event in events
        )
        return httpx2.Response(200, headers=headers, content=written.encode())

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as http:
        yield http
