"""Loops of one's own over the `openai` SDK."""

import anyio
import pytest

pytest.importorskip("openai", reason="needs headstart[openai]")

import httpx2
import openai
from openai.lib.streaming.chat import ChatCompletionStreamState

from headstart import (
    CallDelta,
    Effect,
    EventLog,
    LimitPolicy,
    ModelError,
    Session,
    ToolCall,
    ToolContext,
    Usage,
    tool,
)
from headstart.adapters.openai import ChatCompletions, Responses

from .endpoints import Chat, Items, answering
from .loops import Loop


def connect(http):
    client = openai.AsyncOpenAI(
        base_url="http://model/v1", api_key="k", http_client=http, max_retries=0
    )
    client._platform = "Linux"  # it asks in a thread, during which virtual time jumps
    return client


class TestChatCompletions(Loop):
    dialect = Chat

    def connect(self, http, *, stream):
        return ChatCompletions(connect(http), model="m", stream=stream)

    async def ask_bare(self, client, messages, tools, say, *, stream):
        ask = client.chat.completions.create
        if stream:
            state = ChatCompletionStreamState()
            options = {"include_usage": True}
            async with await ask(
                model="m",
                messages=messages,
                tools=tools,
                stream=True,
                stream_options=options,
            ) as chunks:
                async for chunk in chunks:
                    state.handle_chunk(chunk)
                    if chunk.choices and chunk.choices[0].delta.content:
                        say(chunk.choices[0].delta.content)
            completion = state.get_final_completion()
        else:
            completion = await ask(model="m", messages=messages, tools=tools)
        said = completion.choices[0].message
        calls = [
            ToolCall(call.id, call.function.name, call.function.arguments)
            for call in said.tool_calls or ()
        ]
        message = {"role": "assistant", "content": said.content}
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in calls
        ]
        usage = completion.usage
        return (
            [message],
            calls,
            Usage(
                input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens
            ),
        )


class TestResponses(Loop):
    dialect = Items

    def connect(self, http, *, stream):
        return Responses(connect(http), model="m", stream=stream)

    def tidy(self, messages):
        return messages

    async def ask_bare(self, client, messages, tools, say, *, stream):
        if stream:
            async with client.responses.stream(
                model="m", input=messages, tools=tools
            ) as events:
                async for event in events:
                    if event.type == "response.output_text.delta":
                        say(event.delta)
                response = await events.get_final_response()
        else:
            response = await client.responses.create(
                model="m", input=messages, tools=tools
            )
        calls = [
            ToolCall(item.call_id, item.name, item.arguments)
            for item in response.output
            if item.type == "function_call"
        ]
        items = []
        for item in response.output:
            dumped = item.to_dict()
            dumped.pop("parsed_arguments", None)
            for part in dumped.get("content") or ():
                part.pop("parsed", None)
            items.append(dumped)
        usage = response.usage
        return (
            items,
            calls,
            Usage(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens),
        )


def ignore(_):
    pass


def chunk(delta, reason=None):
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {"id": "c", "object": "chat.completion.chunk", "choices": [choice]}


def piece(index, **fields):
    call_id = fields.pop("id", None)
    more = fields.pop("more", {})
    delta = {"index": index, "function": fields, **more}
    return chunk({"tool_calls": [delta | ({"id": call_id} if call_id else {})]})


GET = piece(0, id="a", name="get", arguments="{}")
END = chunk({}, "tool_calls")


async def read_chat(*events):
    async with answering(*events) as http:
        chat = ChatCompletions(connect(http), model="m")
        response = await chat.respond(chat.request("Go."), ignore)
        return response, chat.reply(response)


async def test_fields_that_are_not_known_are_kept_in_the_conversation():
    signature = {"extra_content": {"google": {"thought_signature": "s"}}}
    response, [message] = await read_chat(
        chunk({"role": "assistant", "content": "", "reasoning_content": "Hm"}),
        chunk({"reasoning_content": "m."}),
        chunk({"reasoning_details": [{"index": 0, "type": "text", "text": "a"}]}),
        chunk({"reasoning_details": [{"index": 0, "type": "text", "text": "b"}, 7]}),
        chunk({"annotations": [{"url": "u"}], "audio": {"id": "x", "data": "1"}}),
        chunk({"annotations": [{"url": "v"}], "audio": {"id": "", "data": "2"}}),
        chunk({"count": 1}),
        chunk({"count": 2}),
        piece(0, id="a", name="get", arguments="{", more=signature),
        piece(0, id="a", name="get", arguments="}"),
        END,
    )
    assert response.tool_calls == (ToolCall("a", "get", "{}"),)
    assert message == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "Hmm.",
        "reasoning_details": [{"index": 0, "type": "text", "text": "ab"}, 7],
        "annotations": [{"url": "u"}, {"url": "v"}],
        "audio": {"id": "x", "data": "12"},
        "count": 2,
        "tool_calls": [
            {
                "id": "a",
                "function": {"name": "get", "arguments": "{}"},
                **signature,
            }
        ],
    }
    assert response.native.choices[0].finish_reason == "tool_calls"
    assert response.native.id == "c"


async def test_a_refusal_is_said_and_kept():
    response, [message] = await read_chat(chunk({"refusal": "No."}), chunk({}, "stop"))
    assert response.text == "No."
    assert message == {"role": "assistant", "content": None, "refusal": "No."}
    async with answering() as http:
        chat = ChatCompletions(connect(http), model="m")
        assert chat.request([message]).history[0].content == "No."


async def test_a_stream_that_the_sdk_reads_itself_can_be_read():
    events = (chunk({"content": "Hi."}), GET, END)
    async with answering(*events) as http:
        client = connect(http)
        chat = ChatCompletions(client, model="m")
        body = chat.body(chat.request("Go."))
        async with client.chat.completions.stream(**body) as stream:
            response = await chat.read(stream, ignore)
    assert response.text == "Hi."
    assert response.tool_calls == (ToolCall("a", "get", "{}"),)


NONSENSE = {
    "no end": [GET],
    "cut for length": [GET, chunk({}, "length")],
    "filtered": [GET, chunk({}, "content_filter")],
    "nothing": [],
    "an index left out": [piece(1, id="a", name="get"), END],
    "another id": [GET, piece(0, id="b", name="get"), END],
    "no name": [piece(0, id="a"), END],
    "calls of another type": [chunk({"tool_calls": 7}), END],
    "no object": [[1, 2], END],
}


@pytest.mark.parametrize("events", NONSENSE.values(), ids=NONSENSE)
async def test_a_completion_that_is_incomplete_or_nonsense_is_an_error(events):
    with pytest.raises(ModelError):
        await read_chat(*events)


async def test_parts_and_names_of_messages_are_kept_and_their_text_is_read():
    parts = [
        {"type": "text", "text": "What is "},
        {"type": "image_url", "image_url": {"url": "data:"}},
        {"type": "text", "text": "this?"},
    ]
    said = {"role": "user", "content": parts, "name": "Ann"}
    async with answering() as http:
        chat = ChatCompletions(connect(http), model="m", stream_options=None)
        request = chat.request([said])
        assert request.history[0].content == "What is this?"
        assert chat.body(request) == {"model": "m", "messages": [said]}
        other = [*parts[:1], {**parts[1], "image_url": {"url": "data:2"}}, *parts[2:]]
        assert request != chat.request([{**said, "content": other}])


async def test_a_custom_call_is_not_read_but_kept():
    custom = {"id": "c", "type": "custom", "custom": {"name": "x", "input": "y"}}
    said = {"role": "assistant", "tool_calls": [custom]}
    async with answering() as http:
        chat = ChatCompletions(connect(http), model="m")
        request = chat.request([said])
    assert request.history[0].tool_calls == ()
    assert chat.body(request)["messages"] == [said]


def item(index, **fields):
    return {"output_index": index, "item": fields}


def of(kind, **fields):
    return {"type": f"response.{kind}", "sequence_number": 1, **fields}


def ended(output, status="completed", **more):
    response = {"id": "r", "status": status, "output": output, "usage": None, **more}
    return of(status, response=response)


CALL = {"type": "function_call", "id": "i", "call_id": "a", "name": "get"}
ADDED = of("output_item.added", **item(0, **CALL, arguments=""))
DELTA = of("function_call_arguments.delta", output_index=0, item_id="i", delta="{}")
WHOLE = {**CALL, "arguments": "{}"}
DONE = of("output_item.done", **item(0, **WHOLE))


async def read_response(*events, deltas=None):
    async with answering(*events) as http:
        api = Responses(connect(http), model="m")
        put = ignore if deltas is None else deltas.append
        response = await api.respond(api.request("Go."), put)
        return response, api.reply(response)


async def test_an_output_that_is_told_piece_by_piece_only_is_put_together():
    thought = {"type": "reasoning", "id": "t", "summary": []}
    response, items = await read_response(
        of("output_item.done", **item(0, **thought)),
        of("output_item.added", **item(1, **CALL, arguments="")),
        of("output_item.done", **item(1, **WHOLE)),
        ended([]),
    )
    assert response.tool_calls == (ToolCall("a", "get", "{}"),)
    assert items == [thought, WHOLE]


async def test_arguments_that_come_in_one_piece_seal_the_call_as_well():
    deltas = []
    await read_response(ADDED, DONE, ended([WHOLE]), deltas=deltas)
    assert [each for each in deltas if isinstance(each, CallDelta)] == [
        CallDelta(index=0, id="a", name="get"),
        CallDelta(index=0, arguments="{}"),
    ]


async def test_hosted_and_custom_calls_are_kept_and_nobody_is_asked_for_them():
    search = {"type": "web_search_call", "id": "s", "status": "completed"}
    custom = {"type": "custom_tool_call", "call_id": "c", "name": "x", "input": "y"}
    response, items = await read_response(
        of("output_item.added", **item(0, **search)), ended([search, custom, WHOLE])
    )
    assert [call.name for call in response.tool_calls] == ["get"]
    assert items == [search, custom, WHOLE]


ODD_RESPONSES = {
    "no end": [ADDED, DELTA, DONE],
    "incomplete": [ADDED, DELTA, DONE, ended([WHOLE], "incomplete")],
    "a half call": [ended([{**WHOLE, "status": "incomplete"}])],
    "failed": [ADDED, ended([], "failed", error={"code": "x", "message": "Sorry."})],
    "failed, without a word": [ADDED, ended([], "failed", error=None)],
    "a call without an id": [
        of("output_item.added", **item(0, **{**CALL, "call_id": ""}, arguments=""))
    ],
    "a delta of no call": [DELTA],
    "two calls of one id": [ended([WHOLE, WHOLE])],
    "an event without a type": [{"data": 1}],
}


@pytest.mark.parametrize("events", ODD_RESPONSES.values(), ids=ODD_RESPONSES)
async def test_a_response_that_is_incomplete_or_nonsense_is_an_error(events):
    with pytest.raises(ModelError):
        await read_response(*events)


@pytest.mark.parametrize("status", ["queued", "failed", "cancelled"])
async def test_a_response_in_one_piece_that_is_none_is_an_error(status):
    async def answer(request):
        body = ended([], status="completed")["response"] | {"status": status}
        return httpx2.Response(200, json={**body, "object": "response"})

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as http:
        api = Responses(connect(http), model="m", stream=False)
        with pytest.raises(ModelError):
            await api.respond(api.request("Go."), ignore)


async def test_an_error_in_the_stream_is_an_error():
    error = {"type": "error", "code": "x", "message": "Sorry.", "sequence_number": 1}
    with pytest.raises((ModelError, openai.APIError)):
        await read_response(ADDED, error)


async def test_a_response_stream_that_the_sdk_reads_itself_can_be_read():
    start = {"id": "r", "status": "in_progress", "output": []}
    events = (of("created", response=start), ADDED, DELTA, DONE, ended([WHOLE]))
    async with answering(*events) as http:
        client = connect(http)
        api = Responses(client, model="m")
        body = api.body(api.request("Go."))
        async with client.responses.stream(**body) as stream:
            response = await api.read(stream, ignore)
    assert response.tool_calls == (ToolCall("a", "get", "{}"),)


async def test_the_items_of_one_answer_are_one_message():
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Go."}]},
        {"type": "reasoning", "id": "t", "summary": []},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "I go."}],
        },
        WHOLE,
        {"type": "function_call_output", "call_id": "a", "output": "gone"},
        {"role": "assistant", "content": "Done."},
    ]
    async with answering() as http:
        api = Responses(connect(http), model="m")
        request = api.request(items)
    assert [
        (each.role, each.content, each.name, len(each.tool_calls))
        for each in request.history
    ] == [
        ("user", "Go.", None, 0),
        ("assistant", "I go.", None, 1),
        ("tool", "gone", "get", 0),
        ("assistant", "Done.", None, 0),
    ]
    assert api.body(request)["input"] == items


@pytest.mark.parametrize(
    "settings", [{"previous_response_id": "r"}, {"conversation": {"id": "c"}}]
)
async def test_nothing_is_run_ahead_where_openai_keeps_the_conversation(settings):
    @tool(effect=Effect.GATED)
    async def change(ctx: ToolContext) -> str:
        """Change."""
        ctx.early_result("changed")
        await ctx.barrier.wait()
        await anyio.sleep(1)
        return "changed"

    call = {**WHOLE, "name": "change"}
    log = EventLog()
    async with answering(ended([call])) as http:
        api = Responses(connect(http), model="m", **settings)
        policy = LimitPolicy(min_beside_probability=0.1)
        async with Session([change], sink=log, policy=policy) as session:
            request = api.request("Go.", session.tools)
            response = await session.ask(request, api.respond)
            await session.call_all(response.tool_calls)
    assert [e for e in log.events if type(e).__name__ == "TurnStarted"][1:] == []
    assert "EarlyResultGiven" in [type(event).__name__ for event in log.events]
