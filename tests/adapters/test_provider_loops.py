"""What loops over all three APIs have in common, on both event loops."""

import json
import logging
import sys
from contextlib import asynccontextmanager

import anyio
import pytest

pytest.importorskip("openai", reason="needs headstart[openai]")
pytest.importorskip("anthropic", reason="needs headstart[anthropic]")

import anthropic
import httpx2
import openai

from headstart import (
    Agent,
    CallDelta,
    Effect,
    EventLog,
    Message,
    ModelError,
    ModelRequest,
    NativeDelta,
    Session,
    TextDelta,
    ToolContext,
    ToolResult,
    UsageError,
    tool,
)
from headstart.adapters.anthropic import Messages
from headstart.adapters.openai import ChatCompletions, Responses
from headstart.predictors import RulePredictor, rule
from headstart.testing import Fault, ScriptedModel

from . import endpoints


class Provider:
    def __init__(self, make, dialect, kind, thinking):
        self.make = make
        self.dialect = dialect
        self.kind = kind
        self.thinking = thinking  # where what the model thought stands in a request


def open_chat(http, **options):
    return ChatCompletions(connect_openai(http), model="m", **options)


def open_responses(http, **options):
    return Responses(connect_openai(http), model="m", **options)


def open_messages(http, **options):
    client = anthropic.AsyncAnthropic(
        base_url="http://model", api_key="k", http_client=http, max_retries=0
    )
    client._platform = "Linux"
    return Messages(client, model="m", max_tokens=99, **options)


def connect_openai(http):
    client = openai.AsyncOpenAI(
        base_url="http://model/v1", api_key="k", http_client=http, max_retries=0
    )
    client._platform = "Linux"  # it asks in a thread, during which virtual time jumps
    return client


CHAT = Provider(
    open_chat,
    endpoints.Chat,
    openai,
    lambda body: body["messages"][1]["reasoning_content"],
)
RESPONSES = Provider(
    open_responses,
    endpoints.Items,
    openai,
    lambda body: body["input"][1]["encrypted_content"],
)
MESSAGES = Provider(
    open_messages,
    endpoints.Blocks,
    anthropic,
    lambda body: body["messages"][1]["content"][0]["thinking"],
)
pytestmark = pytest.mark.parametrize(
    "provider", [CHAT, RESPONSES, MESSAGES], ids=["chat", "responses", "messages"]
)

LOOK = ("look", {"row": 7})
CHANGE = ("change", {"row": 7})
DONE = "It is done."
USER = {"role": "user", "content": "Look at row 7."}
rules = RulePredictor([rule(r"row (?P<row>\d+)", "look")])


class World:
    """Two tools, and what they did."""

    def __init__(self):
        self.looked = []
        self.changed = []
        self.fails = False

        @tool(effect=Effect.READ, reads=["row:{row}"])
        async def look(row: int) -> str:
            """Look."""
            self.looked.append(row)
            await anyio.sleep(1)
            if self.fails:
                raise LookupError(row)
            return f"{row} is new"

        @tool(effect=Effect.GATED, writes=["row:{row}"])
        async def change(ctx: ToolContext, row: int, says: str = "changed") -> str:
            """Change."""
            ctx.early_result(says)
            await ctx.barrier.wait()
            await anyio.sleep(1)
            self.changed.append(row)
            return "changed"

        @tool
        async def post(text: str) -> str:
            """Post."""
            self.changed.append(text)
            return "posted"

        self.tools = [look, change, post]


@asynccontextmanager
async def opened(provider, responses, *, stream=True, **pace):
    model = ScriptedModel(responses, **{"delay": 1, "seconds_per_delta": 0.25, **pace})
    endpoint = endpoints.Endpoint(model, provider.dialect)
    async with endpoint.open() as http:
        yield endpoint, provider.make(http, stream=stream)
    assert endpoint.streaming == 0


async def converse(api, session, messages, **settings):
    while True:
        request = api.request(messages, session.tools, **settings)
        response = await session.ask(request, api.respond)
        messages += api.reply(response)
        if not response.tool_calls:
            return response.text
        results = await session.call_all(response.tool_calls)
        messages += api.results(response.tool_calls, results)


def reasons(log, name):
    return [event.reason for event in log.events if type(event).__name__ == name]


def names(log):
    return [type(event).__name__ for event in log.events]


async def test_a_call_starts_when_its_json_is_complete_in_the_stream(provider):
    log, world = EventLog(), World()
    async with opened(provider, [[LOOK, ("none", {"text": "x" * 40})], DONE]) as (
        _,
        api,
    ):
        async with Session(world.tools, sink=log) as session:
            assert await converse(api, session, [USER]) == DONE
    launched = next(e for e in log.events if type(e).__name__ == "CallLaunched")
    answered = next(e for e in log.events if type(e).__name__ == "ModelAnswered")
    assert launched.cause == "sealed"
    assert answered.at_s - launched.at_s >= 1
    assert world.looked == [7]


async def test_a_call_that_is_expected_is_there_when_the_model_asks_for_it(provider):
    world = World()
    async with opened(provider, [[LOOK], DONE], seconds_per_delta=0) as (_, api):
        began = anyio.current_time()
        async with Session(world.tools, predictors=[rules]) as session:
            await converse(api, session, [USER])
        assert anyio.current_time() - began == 2
    assert world.looked == [7]


async def test_the_next_request_is_sent_on_an_early_result(provider):
    log, world = EventLog(), World()
    async with opened(provider, [[CHANGE], DONE], seconds_per_delta=0) as (end, api):
        began = anyio.current_time()
        messages = [USER]
        async with Session(world.tools, sink=log) as session:
            await converse(api, session, messages)
        assert anyio.current_time() - began == 2
    assert "TurnConfirmed" in names(log)
    assert len(end.bodies) == 2
    assert world.changed == [7]


async def test_what_was_run_ahead_is_sent_as_the_host_would_have_sent_it(provider):
    bodies = []
    for speculate in (False, True):
        world = World()
        async with opened(provider, [["I do.", CHANGE], DONE]) as (end, api):
            end.thinks = "Hm, hm."
            async with Session(world.tools, speculate=speculate) as session:
                await converse(api, session, [USER], extra_body={"seed": 5})
        bodies.append(end.bodies)
    assert bodies[0] == bodies[1]
    assert bodies[0][1]["seed"] == 5


async def test_a_false_early_result_is_asked_about_again(provider):
    log, world = EventLog(), World()
    lie = ("change", {"row": 7, "says": "nothing"})
    async with opened(provider, [[lie], DONE]) as (end, api):
        messages = [USER]
        async with Session(world.tools, sink=log) as session:
            await converse(api, session, messages)
    assert reasons(log, "TurnDiscarded") == ["a result differs from the early one"]
    assert "nothing" in json.dumps(end.bodies[1])
    assert "changed" in json.dumps(end.bodies[2])
    assert "changed" in json.dumps(messages)


async def test_what_the_model_thought_is_kept_in_the_conversation(provider):
    async with opened(provider, [[LOOK], DONE]) as (end, api):
        end.thinks = "Hm, hm."
        async with Session(World().tools) as session:
            await converse(api, session, [USER])
    assert provider.thinking(end.bodies[1]) == "Hm, hm."


async def test_a_stream_that_is_cut_off_proves_nothing(provider):
    world = World()
    call = ("change", {"row": 7})
    async with opened(provider, [[call, ("post", {"text": "x"})]]) as (end, api):
        end.cut = True
        async with Session(world.tools) as session:
            with pytest.raises(ModelError):
                await converse(api, session, [USER])
    await anyio.sleep(10)
    assert world.changed == []


@pytest.mark.parametrize("after", range(1, 9))
async def test_a_stream_may_break_off_anywhere(provider, after):
    world = World()
    fault = Fault(response=["I do.", CHANGE, ("post", {"text": "x"})], after=after)
    async with opened(provider, [fault]) as (_, api):
        async with Session(world.tools) as session:
            with pytest.raises(ModelError):
                await converse(api, session, [USER])
    assert world.changed == []


CUT = {"chat": "length", "responses": "incomplete", "messages": "max_tokens"}


@pytest.mark.parametrize("stream", [True, False])
async def test_no_call_of_an_answer_that_is_too_long_is_run(provider, stream, request):
    world = World()
    reason = next(CUT[name] for name in CUT if name in request.node.name)
    async with opened(provider, [[CHANGE]], stream=stream) as (end, api):
        end.reason = reason
        async with Session(world.tools) as session:
            with pytest.raises(ModelError):
                await converse(api, session, [USER])
    assert world.changed == []


@pytest.mark.parametrize("stream", [True, False])
async def test_a_text_that_was_cut_for_length_is_an_answer(provider, stream, request):
    reason = next(CUT[name] for name in CUT if name in request.node.name)
    async with opened(provider, [DONE], stream=stream) as (end, api):
        end.reason = reason
        async with Session() as session:
            assert await converse(api, session, [USER]) == DONE


async def test_a_conversation_that_the_host_edits_is_asked_about_again(provider):
    log, world = EventLog(), World()
    async with opened(provider, [[CHANGE], DONE]) as (end, api):
        async with Session(world.tools, sink=log) as session:
            messages = [{**USER}]
            request = api.request(messages, session.tools)
            response = await session.ask(request, api.respond)
            messages += api.reply(response)
            results = await session.call_all(response.tool_calls)
            messages += api.results(response.tool_calls, results)
            messages[0]["content"] += " Now."
            await session.ask(api.request(messages, session.tools), api.respond)
    assert reasons(log, "TurnDiscarded") == ["the host asked for something else"]
    assert "Now." in json.dumps(end.bodies[-1])


async def test_another_setting_is_another_request(provider):
    log, world = EventLog(), World()
    async with opened(provider, [[CHANGE], DONE]) as (_, api):
        async with Session(world.tools, sink=log) as session:
            messages = [USER]
            for seed in (1, 2):
                request = api.request(
                    messages, session.tools, extra_body={"seed": seed}
                )
                response = await session.ask(request, api.respond)
                messages += api.reply(response)
                results = await session.call_all(response.tool_calls)
                messages += api.results(response.tool_calls, results)
    assert reasons(log, "TurnDiscarded") == ["the host asked for something else"]


async def test_an_answer_without_what_the_model_thought_is_another_one(provider):
    log, world = EventLog(), World()
    async with opened(provider, [[CHANGE], DONE]) as (end, api):
        end.thinks = "Hm, hm."
        async with Session(world.tools, sink=log) as session:
            messages = [USER]
            request = api.request(messages, session.tools)
            response = await session.ask(request, api.respond)
            messages += api.request(api.reply(response)).history  # as they were read
            assert messages[1].native != response.native
            end.thinks = None
            bare = [Message(role="assistant", tool_calls=response.tool_calls)]
            results = await session.call_all(response.tool_calls)
            body = api.body(ModelRequest(bare))
            key = "input" if "input" in body else "messages"
            messages = [USER, *body[key], *api.results(response.tool_calls, results)]
            await session.ask(api.request(messages, session.tools), api.respond)
    assert reasons(log, "TurnDiscarded") == ["the host asked for something else"]


async def test_objects_of_the_sdk_are_taken_as_messages(provider):
    log, world = EventLog(), World()
    async with opened(provider, [[CHANGE], DONE]) as (end, api):
        async with Session(world.tools, sink=log) as session:
            request = api.request([USER], session.tools)
            response = await session.ask(request, api.respond)
            native = response.native
            if provider is CHAT:
                said = [native.choices[0].message]
            elif provider is RESPONSES:
                said = native.output
            else:
                said = [{"role": "assistant", "content": native.content}]
            results = await session.call_all(response.tool_calls)
            messages = [USER, *said, *api.results(response.tool_calls, results)]
            await session.ask(api.request(messages, session.tools), api.respond)
    assert "TurnConfirmed" in names(log)
    assert len(end.bodies) == 2


async def test_a_failure_is_told_and_runs_nothing_twice_in_the_conversation(provider):
    world = World()
    world.fails = True
    async with opened(provider, [[LOOK], DONE]) as (end, api):
        messages = [USER]
        async with Session(world.tools, predictors=[rules]) as session:
            await converse(api, session, messages)
    assert "LookupError: 7" in json.dumps(end.bodies[-1])


async def test_each_event_of_the_sdk_comes_after_what_it_says(provider):
    async with opened(provider, [["Hi.", LOOK], DONE]) as (_, api):
        async with Session() as session:
            async with session.stream(api.request([USER]), api.respond) as answer:
                deltas = [delta async for delta in answer]
    kinds = [type(delta) for delta in deltas]
    assert kinds.index(TextDelta) + 1 == kinds.index(
        NativeDelta, kinds.index(TextDelta)
    )
    assert kinds[-1] is NativeDelta
    assert "".join(d.text for d in deltas if isinstance(d, TextDelta)) == "Hi."
    calls = [delta for delta in deltas if isinstance(delta, CallDelta)]
    assert (calls[0].index, calls[0].name) == (0, "look")
    assert json.loads("".join(call.arguments for call in calls)) == {"row": 7}


async def test_usage_is_what_the_provider_says(provider):
    async with opened(provider, [DONE]) as (end, api):
        async with Session() as session:
            response = await session.ask(api.request([USER]), api.respond)
    expected = await end.model.respond(ModelRequest([USER]), lambda _: None)
    assert response.usage == expected.usage


async def test_cancelling_closes_the_stream(provider):
    async with opened(provider, ["word " * 100]) as (end, api):
        async with Session() as session:
            with anyio.move_on_after(3):
                await session.ask(api.request([USER]), api.respond)
        assert end.streaming == 0
    assert end.model.records[0].outcome == "cancelled"


async def test_a_stream_that_is_left_half_read_is_closed(provider):
    async with opened(provider, ["word " * 100]) as (end, api):
        async with Session() as session:
            async with session.stream(api.request([USER]), api.respond) as answer:
                async for delta in answer:
                    if isinstance(delta, TextDelta):
                        break
            assert end.streaming == 0


async def test_cancelling_a_run_leaves_no_effect_and_nothing_running(provider):
    world = World()
    async with opened(provider, [[CHANGE, LOOK], DONE]) as (end, api):
        with anyio.move_on_after(2.5):
            async with Session(world.tools) as session:
                await converse(api, session, [USER])
        assert end.streaming == 0
        await anyio.sleep(10)
    assert world.changed == []


@pytest.mark.parametrize("status", [400, 429, 500])
async def test_what_the_sdk_raises_reaches_the_host(provider, status):
    async def refuse(request):
        return httpx2.Response(status, json={"error": {"message": "no"}})

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(refuse)) as http:
        api = provider.make(http)
        async with Session() as session:
            with pytest.raises(provider.kind.APIStatusError) as caught:
                await session.ask(api.request([USER]), api.respond)
    assert caught.value.status_code == status


async def test_an_answer_in_one_piece_is_run_ahead_as_well(provider):
    log, world = EventLog(), World()
    script = [["I do.", CHANGE], DONE]
    async with opened(provider, script, stream=False) as (end, api):
        messages = [USER]
        async with Session(world.tools, sink=log) as session:
            assert await converse(api, session, messages) == DONE
    assert "TurnConfirmed" in names(log)
    assert not any(body.get("stream") for body in end.bodies)
    assert "I do." in json.dumps(end.bodies[1])


async def test_tools_are_described_and_the_providers_own_are_sent_as_they_are(
    provider,
):
    async with opened(provider, [DONE]) as (end, api):
        async with Session(World().tools) as session:
            own = {"type": "web_search"}
            request = api.request([USER], [*session.tools, own])
            await session.ask(request, api.respond)
    *described, sent = end.bodies[0]["tools"]
    assert sent == own
    assert [each.get("function", each)["name"] for each in described] == [
        "look",
        "change",
        "post",
    ]
    assert '"row"' in json.dumps(described[0])


async def test_an_agent_may_have_it_as_its_model(provider):
    world = World()
    async with opened(provider, [["I look.", LOOK], DONE]) as (end, api):
        agent = Agent(api, world.tools, instructions="Be brief.", predictors=[rules])
        result = await agent.run("Look at row 7.")
    assert result.text == DONE
    assert "Be brief." in json.dumps(end.bodies[0])
    assert "7 is new" in json.dumps(end.bodies[1])


async def test_a_request_is_not_changed_by_what_happens_to_its_messages(provider):
    async with opened(provider, [DONE]) as (_, api):
        messages = [{**USER}]
        request, again = api.request(messages), api.request(messages)
        assert request == again
        messages[0]["content"] = "Something else."
        assert request == again
        assert request != api.request(messages)
        assert hash(request.history[0]) == hash(again.history[0])
        assert request.history[0] != 7


async def test_a_text_alone_is_a_conversation(provider):
    async with opened(provider, [DONE]) as (_, api):
        request = api.request("Look at row 7.")
        assert request == api.request([USER])
        assert request.history[0].content == "Look at row 7."


async def test_what_makes_no_sense_is_refused(provider):
    async with opened(provider, [DONE]) as (_, api):
        for messages in ([7], [{"role": "nobody"}], [{"type": "function_call"}]):
            with pytest.raises(UsageError):
                api.request(messages)
        with pytest.raises(UsageError):
            api.request([USER], stream=True)
        with pytest.raises(UsageError):
            api.body(ModelRequest([USER], settings={"tools": []}))
        with pytest.raises(UsageError):
            type(api)(api.client, tools=[])


def test_a_synchronous_client_is_refused(provider):
    kind = openai.OpenAI if provider.kind is openai else anthropic.Anthropic
    with kind(api_key="k") as client, pytest.raises(UsageError):
        {CHAT: ChatCompletions, RESPONSES: Responses, MESSAGES: Messages}[provider](
            client
        )


def test_a_missing_sdk_says_what_to_install(provider, monkeypatch):
    name = provider.kind.__name__
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"headstart.adapters.{name}")
    with pytest.raises(ImportError) as caught:
        __import__(f"headstart.adapters.{name}")
    assert f'pip install "headstart[{name}]"' in str(caught.value)


async def test_a_tool_that_nobody_declared_is_never_started_early(provider):
    log, world = EventLog(), World()
    script = [[("post", {"text": "x"}), LOOK], DONE]
    async with opened(provider, script) as (_, api):
        async with Session(world.tools, sink=log) as session:
            await converse(api, session, [USER])
    launched = [e.tool for e in log.events if type(e).__name__ == "CallLaunched"]
    assert launched == ["look"]
    assert world.changed == ["x"]


async def test_nothing_of_a_conversation_is_logged(provider, caplog):
    caplog.set_level(logging.INFO, logger="headstart")
    async with opened(provider, [[LOOK], DONE]) as (_, api):
        async with Session(World().tools) as session:
            await converse(api, session, [USER])
    assert [r for r in caplog.records if r.name == "headstart"] == []


async def test_results_are_put_into_the_providers_words(provider):
    async with opened(provider, [[LOOK]]) as (_, api):
        response = await api.respond(api.request([USER]), lambda _: None)
        [written] = api.results(response.tool_calls, [ToolResult("no", is_error=True)])
    call_id = response.tool_calls[0].id
    assert (
        written
        == {
            CHAT: {"role": "tool", "content": "no", "tool_call_id": call_id},
            RESPONSES: {
                "type": "function_call_output",
                "call_id": call_id,
                "output": "no",
            },
            MESSAGES: {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": call_id,
                        "content": "no",
                        "is_error": True,
                    }
                ],
            },
        }[provider]
    )


@pytest.mark.requirement("barrier:no-effect-before-flush")
@pytest.mark.parametrize(
    ("kind", "acts"),
    [
        ("function", False),
        ("web_search_20250305", False),
        ("file_search", False),
        (None, False),
        ("mcp", True),
        ("code_interpreter", True),
        ("code_execution_20250825", True),
    ],
)
def test_nothing_is_run_ahead_where_the_provider_may_change_something(
    provider, kind, acts
):
    model = provider.make(httpx2.AsyncClient())
    request = model.request("Go.", [{"type": kind, "name": "it"}])
    assert request.stateful is acts
