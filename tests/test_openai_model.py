"""The client of chat completions, against a real HTTP server on the loopback."""

import json
import sys
from contextlib import asynccontextmanager

import anyio
import openai
import pytest

from headstart import Agent, Effect, ToolCall, tool
from headstart._errors import ModelError, UsageError
from headstart._messages import (
    CallDelta,
    Message,
    ModelRequest,
    TextDelta,
    Usage,
)
from headstart.demo._http import HTTPResponse, open_http_server
from headstart.models import OpenAIModel

pytestmark = pytest.mark.real_time

USER = Message(role="user", content="Hello!")
REQUEST = ModelRequest([USER])


def ignore(_):
    pass


def event(data):
    return f"data: {json.dumps(data)}\n\n".encode()


def chunk(delta=None, finish_reason=None, **more):
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish_reason}
    return {"id": "c", "object": "chat.completion.chunk", "choices": [choice], **more}


def text(content):
    return chunk({"content": content})


def piece(index, **fields):
    call_id = fields.pop("id", None)
    delta = {"index": index, "function": fields}
    return chunk({"tool_calls": [delta | ({"id": call_id} if call_id else {})]})


def completion(message, finish_reason="stop", **more):
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return {"id": "c", "object": "chat.completion", "choices": [choice], **more}


@asynccontextmanager
async def served(*chunks, broken=False, done=True, seen=None):
    """A model whose endpoint streams these chunks, and breaks off after them or not."""

    async def pieces():
        for each in chunks:
            yield event(each)
        if broken:
            raise ConnectionError
        if done:
            yield b"data: [DONE]\n\n"

    async def answer(request):
        if seen is not None:
            seen.append(json.loads(request.body))
        return HTTPResponse(content_type="text/event-stream", pieces=pieces())

    async with open_http_server(answer) as url, open_model(url) as model:
        yield model


@asynccontextmanager
async def open_model(url, **options):
    async with OpenAIModel("m", base_url=url, api_key="k", **options) as model:
        yield model


@asynccontextmanager
async def answering(body, *, status=200, seen=None, **options):
    """A model whose endpoint answers every request with `body`."""

    async def answer(request):
        if seen is not None:
            seen.append(json.loads(request.body))
        return HTTPResponse(status=status, body=body.encode())

    async with open_http_server(answer) as url, open_model(url, **options) as model:
        yield model


async def test_text_is_forwarded_as_it_comes_and_usage_is_read():
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    last = {**chunk(), "choices": [], "usage": usage}
    deltas = []
    async with served(text("Hel"), text("lo"), chunk(None, "stop"), last) as model:
        response = await model.respond(REQUEST, deltas.append)
    assert deltas == [TextDelta("Hel"), TextDelta("lo")]
    assert response.text == "Hello"
    assert response.usage == Usage(input_tokens=7, output_tokens=2)


async def test_an_endpoint_that_tells_no_usage_is_tolerated():
    async with served(text("Hi"), chunk(None, "stop"), done=False) as model:
        response = await model.respond(REQUEST, ignore)
    assert response.text == "Hi"
    assert response.usage == Usage()


async def test_calls_are_forwarded_piece_by_piece():
    deltas = []
    async with served(
        text("Look."),
        piece(0, id="a", name="get", arguments=""),
        piece(0, arguments='{"id":'),
        piece(0, arguments="7}"),
        piece(1, id="b", name="list", arguments="{}"),
        chunk(None, "tool_calls"),
    ) as model:
        response = await model.respond(REQUEST, deltas.append)
    assert response.tool_calls == (
        ToolCall("a", "get", '{"id":7}'),
        ToolCall("b", "list", "{}"),
    )
    assert response.text == "Look."
    assert deltas == [
        TextDelta("Look."),
        CallDelta(index=0, id="a", name="get"),
        CallDelta(index=0, arguments='{"id":'),
        CallDelta(index=0, arguments="7}"),
        CallDelta(index=1, id="b", name="list", arguments="{}"),
    ]


async def test_an_identity_that_is_repeated_in_every_piece_is_tolerated():
    async with served(
        piece(0, id="a", name="get", arguments="{"),
        piece(0, id="a", name="get", arguments="}"),
        chunk(None, "stop"),
    ) as model:
        response = await model.respond(REQUEST, ignore)
    assert response.tool_calls == (ToolCall("a", "get", "{}"),)


async def test_tools_history_and_settings_are_sent():
    @tool(effect=Effect.READ)
    async def get_incident(incident_id: int) -> str:
        """The incident."""
        return ""

    call = ToolCall("a", "get_incident", '{"incident_id":7}')
    history = [
        USER,
        Message(role="assistant", tool_calls=(call,)),
        Message(role="tool", content="open", tool_call_id="a", name="get_incident"),
    ]
    seen = []
    async with served(text("Hi"), chunk(None, "stop"), seen=seen) as model:
        model.settings = {"temperature": 0.5, "seed": 1}
        await model.respond(
            ModelRequest(history, [get_incident], {"temperature": 0.2}), ignore
        )
    [body] = seen
    assert body["model"] == "m"
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert (body["temperature"], body["seed"]) == (0.2, 1)
    assert body["messages"] == [message.to_dict() for message in history]
    [described] = body["tools"]
    assert described["type"] == "function"
    assert described["function"] == {
        "name": "get_incident",
        "description": "The incident.",
        "parameters": get_incident.parameters,
    }


async def test_the_question_for_usage_can_be_left_out():
    seen = []
    async with served(text("Hi"), chunk(None, "stop"), seen=seen) as model:
        request = ModelRequest([USER], settings={"stream_options": None})
        await model.respond(request, ignore)
    assert "stream_options" not in seen[0]


async def test_without_streaming_the_answer_comes_in_one_piece():
    calls = [{"id": "a", "type": "function", "function": {"name": "get"}}]
    calls[0]["function"]["arguments"] = "{}"
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    body = json.dumps(completion(message, "tool_calls", usage=usage))
    seen, deltas = [], []
    async with answering(body, seen=seen, stream=False) as model:
        response = await model.respond(REQUEST, deltas.append)
    assert response.tool_calls == (ToolCall("a", "get", "{}"),)
    assert response.text == ""
    assert response.usage == Usage(input_tokens=3, output_tokens=4)
    assert deltas == []
    assert "stream" not in seen[0]


async def test_a_refusal_is_what_the_model_says():
    async with served(chunk({"refusal": "No."}), chunk(None, "stop")) as model:
        assert (await model.respond(REQUEST, ignore)).text == "No."
    body = json.dumps(completion({"role": "assistant", "refusal": "No."}))
    async with answering(body, stream=False) as model:
        assert (await model.respond(REQUEST, ignore)).text == "No."


async def test_only_the_first_choice_is_read():
    second = {"index": 1, "delta": {"content": "no"}, "finish_reason": None}
    both = text("yes")
    both["choices"].append(second)
    async with served(both, chunk(None, "stop")) as model:
        assert (await model.respond(REQUEST, ignore)).text == "yes"


GET = piece(0, id="a", name="get", arguments="{}")
END = chunk(None, "tool_calls")
NONSENSE = {
    "no finish reason": [GET],
    "too long": [GET, chunk(None, "length")],
    "filtered": [GET, chunk(None, "content_filter")],
    "nothing": [],
    "no choices": [{**chunk(), "choices": []}],
    "null choices": [{**chunk(), "choices": None}],
    "choices of another type": [{**chunk(), "choices": 7}, END],
    "a choice without a delta": [{"choices": [{"index": 0}]}, END],
    "no object": [[1, 2], END],
    "an error": [GET, {"error": {"message": "overloaded"}}, END],
    "no id": [piece(0, name="get", arguments="{}"), END],
    "no name": [piece(0, id="a", arguments="{}"), END],
    "an index left out": [piece(1, id="a", name="get"), END],
    "a negative index": [piece(-1, id="a", name="get"), END],
    "no index": [piece(None, id="a", name="get"), END],
    "another id": [GET, piece(0, id="b", name="get"), END],
    "another name": [GET, piece(0, name="put"), END],
    "an id twice": [GET, piece(1, id="a", name="get"), END],
    "arguments that are no text": [piece(0, id="a", name="get", arguments=7), END],
    "no function": [chunk({"tool_calls": [{"index": 0, "id": "a"}]}), END],
    "calls of another type": [chunk({"tool_calls": 7}), END],
}


@pytest.mark.parametrize("chunks", NONSENSE.values(), ids=NONSENSE)
async def test_a_streamed_answer_that_is_incomplete_or_nonsense_is_an_error(chunks):
    async with served(*chunks) as model:
        with pytest.raises(ModelError) as raised:
            await model.respond(REQUEST, ignore)
    assert raised.value.status is None


async def test_a_connection_that_breaks_in_the_stream_is_an_error():
    async with served(text("Hi"), GET, broken=True) as model:
        with pytest.raises(ModelError):
            await model.respond(REQUEST, ignore)


async def test_no_call_of_a_stream_that_breaks_off_is_run():
    ran = []

    @tool
    async def get() -> str:
        """Get."""
        ran.append("get")
        return ""

    async with served(GET, broken=True) as model:
        with pytest.raises(ModelError):
            await Agent(model, [get]).run("Hello!")
    assert ran == []


async def test_a_text_that_was_cut_for_length_is_an_answer():
    async with served(text("Hi"), chunk(None, "length")) as model:
        assert (await model.respond(REQUEST, ignore)).text == "Hi"


@pytest.mark.parametrize(
    "message",
    [
        {"tool_calls": [{"id": "a", "type": "custom", "custom": {"name": "x"}}]},
        {"tool_calls": [{"id": "", "function": {"name": "x", "arguments": "{}"}}]},
        {"tool_calls": [{"id": "a", "function": {"arguments": "{}"}}]},
        {"tool_calls": [{"id": "a", "function": {"name": "x", "arguments": 7}}]},
        {"tool_calls": [{"id": "a", "function": {"name": "x", "arguments": ""}}] * 2},
    ],
)
async def test_a_whole_answer_with_a_malformed_call_is_an_error(message):
    body = json.dumps(completion({"role": "assistant", **message}, "tool_calls"))
    async with answering(body, stream=False) as model:
        with pytest.raises(ModelError):
            await model.respond(REQUEST, ignore)


@pytest.mark.parametrize("body", ["{}", '{"choices": []}', "[]", "no JSON", '"text"'])
@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_is_no_completion_is_an_error(body, stream):
    async with answering(body, stream=stream) as model:
        with pytest.raises(ModelError):
            await model.respond(REQUEST, ignore)


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_status_is_one_error_and_no_retry(status, stream):
    body = json.dumps({"error": {"message": "not now"}})
    seen = []
    async with answering(body, status=status, seen=seen, stream=stream) as model:
        with pytest.raises(ModelError) as raised:
            await model.respond(REQUEST, ignore)
    assert raised.value.status == status
    assert len(seen) == 1


async def test_an_endpoint_that_is_not_there_is_an_error():
    async with open_http_server(ignore) as url:
        pass
    async with open_model(url) as model:
        with pytest.raises(ModelError) as raised:
            await model.respond(REQUEST, ignore)
    assert raised.value.status is None


async def test_a_client_of_ones_own_keeps_its_retries_and_stays_open():
    asked = []

    async def answer(request):
        asked.append(request.path)
        if len(asked) == 1:
            return HTTPResponse(status=503, body=b"{}")
        message = {"role": "assistant", "content": "Hi"}
        return HTTPResponse.from_json(completion(message))

    async with (
        open_http_server(answer) as url,
        openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=1) as client,
    ):
        async with OpenAIModel("m", client=client, stream=False) as model:
            response = await model.respond(REQUEST, ignore)
        assert not client.is_closed()
    assert response.text == "Hi"
    assert asked == ["/chat/completions"] * 2


async def test_cancelling_closes_the_stream():
    first, closed = anyio.Event(), anyio.Event()

    async def pieces():
        try:
            while True:
                yield event(text("more "))
                await anyio.sleep(0.001)
        finally:
            closed.set()  # the server could not send any more

    async def answer(_):
        return HTTPResponse(content_type="text/event-stream", pieces=pieces())

    async with open_http_server(answer) as url, open_model(url) as model:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(model.respond, REQUEST, lambda _: first.set())
            await first.wait()
            tasks.cancel_scope.cancel()
        await closed.wait()


@pytest.mark.parametrize("name", ["messages", "tools", "stream"])
async def test_a_setting_that_is_none_is_refused(name):
    with pytest.raises(UsageError):
        OpenAIModel("m", api_key="k", settings={name: True})
    async with open_model("http://127.0.0.1:9") as model:
        with pytest.raises(UsageError):
            await model.respond(ModelRequest([USER], settings={name: 1}), ignore)


async def test_a_tool_that_is_not_one_of_headstart_is_refused():
    async with open_model("http://127.0.0.1:9") as model:
        with pytest.raises(UsageError):
            await model.respond(ModelRequest([USER], [{"name": "get"}]), ignore)


async def test_a_client_and_a_base_url_together_are_refused():
    async with openai.AsyncOpenAI(api_key="k") as client:
        with pytest.raises(UsageError):
            OpenAIModel("m", client=client, base_url="http://127.0.0.1:9")


async def test_a_model_shows_its_name():
    async with open_model("http://127.0.0.1:9") as model:
        assert repr(model) == "<OpenAIModel 'm'>"


def test_a_missing_key_is_a_usage_error(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UsageError):
        OpenAIModel("m")


def test_a_missing_sdk_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError) as raised:
        OpenAIModel("m")
    assert str(raised.value) == (
        'Please install `openai`: pip install "headstart[openai]"'
    )
