"""A loop of one's own over the `anthropic` SDK."""

import json

import pytest

pytest.importorskip("anthropic", reason="needs headstart[anthropic]")

import anthropic

from headstart import (
    CallDelta,
    Message,
    ModelError,
    ModelRequest,
    ToolCall,
    ToolResult,
    Usage,
)
from headstart.adapters.anthropic import Messages

from .endpoints import Blocks, answering
from .loops import Loop


def connect(http):
    client = anthropic.AsyncAnthropic(
        base_url="http://model", api_key="k", http_client=http, max_retries=0
    )
    client._platform = "Linux"  # it asks in a thread, during which virtual time jumps
    return client


class TestMessages(Loop):
    dialect = Blocks

    def connect(self, http, *, stream):
        return Messages(connect(http), model="m", max_tokens=99, stream=stream)

    async def ask_bare(self, client, messages, tools, say, *, stream):
        asked = {"model": "m", "max_tokens": 99, "messages": messages, "tools": tools}
        if stream:
            async with client.messages.stream(**asked) as events:
                async for text in events.text_stream:
                    say(text)
                message = await events.get_final_message()
        else:
            message = await client.messages.create(**asked)
        blocks = [block.to_dict() for block in message.content]
        for block in blocks:
            block.pop("parsed_output", None)
        calls = [
            ToolCall(block["id"], block["name"], json.dumps(block["input"]))
            for block in blocks
            if block["type"] == "tool_use"
        ]
        usage = Usage(
            input_tokens=message.usage.input_tokens,
            output_tokens=message.usage.output_tokens,
        )
        return [{"role": "assistant", "content": blocks}], calls, usage


def ignore(_):
    pass


START = {
    "type": "message_start",
    "message": {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
        "usage": {
            "input_tokens": 3,
            "cache_read_input_tokens": 5,
            "cache_creation_input_tokens": 7,
            "output_tokens": 1,
        },
    },
}
TOOL = {"type": "tool_use", "id": "a", "name": "get", "input": {}}


def begin(index, **block):
    return {"type": "content_block_start", "index": index, "content_block": block}


def more(index, kind, **fields):
    delta = {"type": kind, **fields}
    return {"type": "content_block_delta", "index": index, "delta": delta}


def stop(index):
    return {"type": "content_block_stop", "index": index}


def end(reason):
    delta = {"stop_reason": reason, "stop_sequence": None}
    usage = {"output_tokens": 11}
    return (
        {"type": "message_delta", "delta": delta, "usage": usage},
        {"type": "message_stop"},
    )


def write(index, text):
    return more(index, "input_json_delta", partial_json=text)


CALL = (begin(0, **TOOL), write(0, ""), write(0, '{"row"'), write(0, ": 7}"), stop(0))


async def read_message(*events, deltas=None):
    async with answering(START, *events) as http:
        claude = Messages(connect(http), model="m", max_tokens=9)
        put = ignore if deltas is None else deltas.append
        response = await claude.respond(claude.request("Go."), put)
        return response, claude.reply(response)


async def test_all_input_tokens_are_counted_cached_or_not():
    response, _ = await read_message(*end("end_turn"))
    assert response.usage == Usage(input_tokens=15, output_tokens=11)


async def test_arguments_are_kept_as_the_model_wrote_them():
    response, [message] = await read_message(*CALL, *end("tool_use"))
    assert response.tool_calls == (ToolCall("a", "get", '{"row": 7}'),)
    assert message["content"] == [{**TOOL, "input": {"row": 7}}]


async def test_a_call_without_arguments_is_sealed_when_its_block_ends():
    deltas = []
    response, _ = await read_message(
        begin(0, **TOOL), stop(0), *end("tool_use"), deltas=deltas
    )
    assert response.tool_calls == (ToolCall("a", "get", "{}"),)
    assert [each for each in deltas if isinstance(each, CallDelta)] == [
        CallDelta(index=0, id="a", name="get"),
        CallDelta(index=0, arguments="{}"),
    ]


async def test_an_input_that_comes_with_its_block_is_read():
    block = {**TOOL, "input": {"row": 7}}
    response, [message] = await read_message(
        begin(0, **block), stop(0), *end("tool_use")
    )
    assert response.tool_calls == (ToolCall("a", "get", '{"row": 7}'),)
    assert message["content"] == [block]


async def test_all_kinds_of_blocks_are_kept():
    citation = {"type": "char_location", "cited_text": "x", "document_index": 0}
    search = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    found = {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}
    response, [message] = await read_message(
        begin(0, type="thinking", thinking="", signature=""),
        more(0, "thinking_delta", thinking="Hm"),
        more(0, "thinking_delta", thinking="m."),
        more(0, "signature_delta", signature="s"),
        stop(0),
        begin(1, type="redacted_thinking", data="xyz"),
        stop(1),
        begin(2, **search),
        write(2, '{"query": "x"}'),
        stop(2),
        begin(3, **found),
        stop(3),
        begin(4, type="text", text=""),
        more(4, "text_delta", text="It is "),
        more(4, "citations_delta", citation=citation),
        more(4, "citations_delta", citation=citation),
        more(4, "text_delta", text="so."),
        stop(4),
        begin(5, type="compaction", content="a"),
        more(5, "compaction_delta", content="b"),
        stop(5),
        *end("pause_turn"),
    )
    assert response.text == "It is so."
    assert response.tool_calls == ()
    assert response.native.stop_reason == "pause_turn"
    assert message["content"] == [
        {"type": "thinking", "thinking": "Hmm.", "signature": "s"},
        {"type": "redacted_thinking", "data": "xyz"},
        {**search, "input": {"query": "x"}},
        found,
        {"type": "text", "text": "It is so.", "citations": [citation, citation]},
        {"type": "compaction", "content": "ab"},
    ]


ODD = {
    "no end": [*CALL],
    "no stop": [*CALL, end("tool_use")[0]],
    "no reason": [*CALL, end("tool_use")[1]],
    "cut for length": [*CALL, *end("max_tokens")],
    "out of context": [*CALL, *end("model_context_window_exceeded")],
    "refused": [*CALL, *end("refusal")],
    "a stop sequence": [*CALL, *end("stop_sequence")],
    "a block that is closed in the middle": [*CALL[:3], stop(0), *end("tool_use")],
    "no JSON": [CALL[0], write(0, "row 7"), stop(0), *end("tool_use")],
    "no object": [CALL[0], write(0, "[7]"), stop(0), *end("tool_use")],
    "a block that is never closed": [*CALL[:1], *end("tool_use")],
    "blocks out of order": [begin(1, **TOOL)],
    "no name": [begin(0, **{**TOOL, "name": ""})],
    "no id": [begin(0, **{**TOOL, "id": None})],
    "an id twice": [*CALL, begin(1, **TOOL)],
    "a delta of no block": [write(3, "{}")],
}


@pytest.mark.parametrize("events", ODD.values(), ids=ODD)
async def test_a_message_that_is_incomplete_or_nonsense_is_an_error(events):
    with pytest.raises(ModelError):
        await read_message(*events)


# On trio, the SDK drops a generator of its own when it raises this: a ResourceWarning.
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_an_error_in_the_stream_is_the_sdks():
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "x"}}
    with pytest.raises(anthropic.APIStatusError):
        await read_message(error)


async def test_a_stream_that_the_sdk_reads_itself_can_be_read():
    events = (START, *CALL, *end("tool_use"))
    async with answering(*events) as http:
        client = connect(http)
        claude = Messages(client, model="m", max_tokens=9)
        async with client.messages.stream(
            **claude.body(claude.request("Go."))
        ) as stream:
            response = await claude.read(stream, ignore)
    assert response.tool_calls == (ToolCall("a", "get", '{"row": 7}'),)


async def test_the_beta_api_is_spoken_with_the_beta_client():
    async with answering(START, *CALL, *end("tool_use")) as http:
        claude = Messages(connect(http).beta, model="m", max_tokens=9, betas=["x"])
        response = await claude.respond(claude.request("Go."), ignore)
        [message] = claude.reply(response)
    assert type(response.native).__name__ == "BetaMessage"
    assert message["content"] == [{**TOOL, "input": {"row": 7}}]


CONVERSATION = [
    {"role": "user", "content": "Go."},
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "I go."},
            {**TOOL, "input": {"row": 7}},
            {**TOOL, "id": "b"},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "a", "content": "gone"},
            {
                "type": "tool_result",
                "tool_use_id": "b",
                "is_error": True,
                "content": [{"type": "text", "text": "lost"}],
            },
            {"type": "text", "text": "And now?"},
        ],
    },
    {"role": "assistant", "content": "Nothing."},
    {"role": "user", "content": [{"type": "text", "text": "Well."}]},
]


def request_of(messages):
    return Messages(anthropic.AsyncAnthropic(api_key="k"), model="m").request(messages)


def test_a_conversation_is_read_and_sent_as_it_was_written():
    claude = Messages(anthropic.AsyncAnthropic(api_key="k"), model="m")
    request = claude.request(CONVERSATION)
    assert [(m.role, m.content, m.name, m.is_error) for m in request.history] == [
        ("user", "Go.", None, False),
        ("assistant", "I go.", None, False),
        ("tool", "gone", "get", False),
        ("tool", "lost", "get", True),
        ("user", "And now?", None, False),
        ("assistant", "Nothing.", None, False),
        ("user", "Well.", None, False),
    ]
    assert request.history[1].tool_calls[0] == ToolCall("a", "get", '{"row": 7}')
    assert claude.body(request)["messages"] == CONVERSATION


def test_where_the_cache_ends_makes_no_other_request():
    cached = json.loads(json.dumps(CONVERSATION))
    cached[2]["content"][1]["cache_control"] = {"type": "ephemeral"}
    cached[4]["content"] = "Well."
    assert request_of(cached) == request_of(CONVERSATION)


@pytest.mark.parametrize(
    ("message", "block", "change"),
    [
        (1, 0, {"text": "I went."}),
        (1, 1, {"input": {"row": 8}}),
        (2, 0, {"content": "not gone"}),
        (2, 1, {"is_error": False}),
        (2, 2, {"text": "And?"}),
    ],
)
def test_whatever_the_model_sees_makes_another_request(message, block, change):
    other = json.loads(json.dumps(CONVERSATION))
    other[message]["content"][block] |= change
    assert request_of(other) != request_of(CONVERSATION)


def test_messages_of_headstart_are_written_as_the_api_wants_them():
    claude = Messages(anthropic.AsyncAnthropic(api_key="k"), model="m")
    call = ToolCall("a", "get", '{"row": 7}')
    history = [
        Message(role="system", content="Be brief."),
        Message(role="user", content="Go."),
        Message(role="assistant", content="I go.", tool_calls=(call,)),
        Message.for_result(call, ToolResult("gone")),
    ]
    body = claude.body(ModelRequest(history))
    assert body["system"] == "Be brief."
    assert body["messages"] == [
        {"role": "user", "content": "Go."},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "I go."},
                {**TOOL, "input": {"row": 7}},
            ],
        },
        *claude.results([call], [ToolResult("gone")]),
    ]
