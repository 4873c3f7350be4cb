"""The demo: its model, its tools, and the conversation in both arms."""

import itertools
import json
import tempfile
from dataclasses import replace

import anyio
import httpx2
import pytest

from headstart import Effect, ToolCall, ToolContext, ToolResult, WriteBarrier
from headstart._errors import ModelError
from headstart._events import CallEnded, ModelAnswered
from headstart._messages import Message
from headstart.demo import (
    TOOL_LATENCIES,
    USER_MESSAGES,
    Latencies,
    bound_seconds,
    run_demo,
)
from headstart.demo._assistant import answer
from headstart.demo._copilot import INSTRUCTIONS, make_predictor
from headstart.demo._http import HTTPResponse, open_http_server
from headstart.demo._model_server import open_model_server, split_tokens
from headstart.demo._outcome import ArmMessage
from headstart.demo._run import _find_source as find_source, turns_of
from headstart.demo._services import open_services
from headstart.demo._tools import TOOLS

real_time = pytest.mark.real_time
FAST = Latencies().faster(20)
NAMES = [tool.name for tool in TOOLS]
INCIDENT = {
    "id": 7,
    "title": "Slow",
    "service": "api",
    "severity": "sev2",
    "status": "open",
    "alert": "SlowApi",
    "merged_into": None,
}
HEALTH = {"service": "api", "status": "degraded", "error_percent": 1, "p95_ms": 900}


def said(text, *exchanges):
    """A conversation: what the user says, and then turns of (name, arguments, result)."""
    messages = [
        {"role": "system", "content": INSTRUCTIONS},
        {"role": "user", "content": text},
    ]
    for turn, calls in enumerate(exchanges):
        asked = [
            {
                "id": f"{turn}-{index}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for index, (name, arguments, _) in enumerate(calls)
        ]
        messages.append({"role": "assistant", "content": "", "tool_calls": asked})
        messages.extend(
            {
                "role": "tool",
                "tool_call_id": f"{turn}-{index}",
                "content": result if isinstance(result, str) else json.dumps(result),
            }
            for index, (_, _, result) in enumerate(calls)
        )
    return messages


def decide(*conversation):
    return answer(said(*conversation), tools=NAMES)


def looked_up(**changes):
    return [("get_incident", {"incident_id": 7}, INCIDENT | changes)]


def test_the_model_looks_up_what_it_is_asked_about():
    decided = decide("What about incident 7?")
    assert decided.calls == (("get_incident", {"incident_id": 7}),)


def test_another_result_leads_to_other_calls():
    asked = "What about incident 7?"
    assert decide(asked, looked_up()).calls == (
        ("get_service_health", {"service": "api"}),
    )
    unwell = [("get_service_health", {"service": "api"}, HEALTH)]
    assert decide(asked, looked_up(), unwell).calls == (
        ("search_runbooks", {"query": "SlowApi"}),
    )
    merged = decide(asked, looked_up(merged_into=9))
    assert merged.calls == (("get_incident", {"incident_id": 9}),)


def test_another_result_leads_to_another_reply():
    asked = "Should we pause incident 7 until 20:00?"
    health = [("get_service_health", {"service": "api"}, HEALTH)]
    well = [("get_service_health", {"service": "api"}, HEALTH | {"status": "healthy"})]
    assert decide(asked, looked_up(), health).text.startswith("I would not.")
    assert decide(asked, looked_up(), well).text.startswith("Yes")
    assert "nothing to pause" in decide(asked, looked_up(status="paused")).text


def test_a_failed_call_is_reported_and_not_repeated():
    failed = [("get_incident", {"incident_id": 7}, "LookupError: no such incident")]
    decided = decide("What about incident 7?", failed)
    assert decided.calls == ()
    assert "no such incident" in decided.text


def test_what_was_found_for_an_earlier_message_is_looked_up_again():
    messages = said("What about incident 7?", looked_up())
    messages.append({"role": "assistant", "content": "It is open."})
    messages.append({"role": "user", "content": "And now, incident 7?"})
    decided = answer(messages, tools=NAMES)
    assert decided.calls == (("get_incident", {"incident_id": 7}),)


def test_the_model_calls_no_tool_that_it_was_not_given():
    assert answer(said("What about incident 7?"), tools=[]).calls == ()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Who is on call for api?", "get_on_call"),
        ("Is api healthy?", "get_service_health"),
        ("Which open incidents are there?", "list_open_incidents"),
        ("What is the worst open incident?", "list_open_incidents"),
        ("Pause incident 7 until 18:00.", "pause_incident"),
        ("Raise incident 7 to SEV1.", "set_severity"),
    ],
)
def test_the_model_knows_every_tool(text, name):
    [(called, arguments)] = decide(text).calls
    assert called == name
    [tool] = [tool for tool in TOOLS if tool.name == name]
    tool.validate(json.dumps(arguments))


@pytest.mark.parametrize(
    ("text", "name", "result", "reply"),
    [
        ("Who is on call for api?", "get_on_call", {"service": "api", "name": "Mei", "until": "20:00"}, "Mei"),
        ("Is api healthy?", "get_service_health", HEALTH, "degraded"),
        ("Any open incidents?", "list_open_incidents", [], "none"),
        ("The worst open incident?", "list_open_incidents", [], "Nothing is open"),
        ("Set incident 7 to sev1", "set_severity", {"severity_before": "sev1", "severity": "sev1"}, "before"),
    ],
)  # fmt: skip
def test_the_reply_comes_from_the_result(text, name, result, reply):
    [(_, arguments)] = decide(text).calls
    assert reply in decide(text, [(name, arguments, result)]).text


def test_severities_are_explained_from_the_instructions():
    assert "nobody is woken up" in decide("What does sev3 mean?").text
    untold = [{"role": "user", "content": "What does sev3 mean?"}]
    assert "not told" in answer(untold, tools=NAMES).text


def test_other_questions_are_answered_with_what_can_be_asked():
    assert "incidents" in decide("Hello!").text


def test_tokens_put_together_are_the_text():
    text = 'Größe: {"until":"18:00"}, a_b  c\n—\u00a0“x” supercalifragilistic 12345'
    assert "".join(split_tokens(text)) == text


@real_time
async def test_an_equal_conversation_is_answered_equally_in_both_forms():
    messages = said('Lower incident 7 to sev3, update: "Better."')
    tools = [{"type": "function", "function": {"name": name}} for name in NAMES]
    body = {"model": "m", "messages": messages, "tools": tools}
    async with open_model_server(FAST) as url, httpx2.AsyncClient() as http:
        whole = (await http.post(f"{url}/chat/completions", json=body)).json()
        streamed = await http.post(
            f"{url}/chat/completions",
            json=body | {"stream": True, "stream_options": {"include_usage": True}},
        )
    lines = streamed.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    calls = {}
    for chunk in chunks[:-1]:
        for piece in chunk["choices"][0]["delta"].get("tool_calls", ()):
            call = calls.setdefault(piece["index"], {"arguments": ""})
            call.setdefault("id", piece.get("id"))
            call.setdefault("name", piece["function"].get("name"))
            call["arguments"] += piece["function"]["arguments"]
    message = whole["choices"][0]["message"]
    assert list(calls.values()) == [
        {"id": call["id"], **call["function"]} for call in message["tool_calls"]
    ]
    assert chunks[-1]["usage"] == whole["usage"]
    assert chunks[0]["id"] == whole["id"]


@real_time
@pytest.mark.parametrize("body", [b"{", b"[]", b'{"messages": 7}', b"{}"])
async def test_a_request_that_makes_no_sense_is_refused(body):
    async with open_model_server(FAST) as url, httpx2.AsyncClient() as http:
        assert (
            await http.post(f"{url}/chat/completions", content=body)
        ).status_code == 400
        assert (await http.get(f"{url}/models")).status_code == 404


@real_time
async def test_the_server_survives_a_handler_that_fails_and_a_head_that_is_too_long():
    async def fail(request):
        raise RuntimeError

    async with open_http_server(fail) as url, httpx2.AsyncClient() as http:
        assert (await http.get(url)).status_code == 500
        with pytest.raises(httpx2.TransportError):
            await http.get(url, headers={"x": "y" * 100_000})
        port = int(url.rpartition(":")[2])
        async with await anyio.connect_tcp("127.0.0.1", port) as raw:
            await raw.send(b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n")
            with pytest.raises(anyio.EndOfStream):
                await raw.receive()


@real_time
async def test_an_error_inside_a_server_s_scope_is_raised_as_it_is():
    async def answer(_):
        return HTTPResponse()

    with pytest.raises(ModelError):
        async with open_http_server(answer):
            raise ModelError("as it is")


@real_time
async def test_the_services_know_no_other_address(tmp_path):
    async with open_services(tmp_path, latencies=FAST) as services:
        assert (await services.deps.http.get("/")).status_code == 404


@real_time
async def test_a_text_is_answered_equally_in_both_forms():
    body = {"messages": said("Hello!")}
    async with open_model_server(FAST) as url, httpx2.AsyncClient() as http:
        whole = (await http.post(f"{url}/chat/completions", json=body)).json()
        streamed = await http.post(
            f"{url}/chat/completions", json=body | {"stream": True}
        )
    chunks = [
        json.loads(line.removeprefix("data: "))
        for line in streamed.text.split("\n\n")[:-2]
    ]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": text}
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_every_tool_has_a_latency_a_production_copilot_could_have():
    assert {tool.name for tool in TOOLS} == set(TOOL_LATENCIES)
    for tool in TOOLS:
        latency = TOOL_LATENCIES[tool.name]
        assert 0.3 <= latency.preparation_s + latency.effect_s <= 2
        assert (latency.effect_s > 0) == (tool.effect is Effect.GATED)


def test_the_rules_fit_the_tools():
    make_predictor().check(TOOLS)


async def run_tool(services, name, arguments, **deps):
    """Run a tool as a confirmed call; gives its result and the early one."""
    [tool] = [tool for tool in TOOLS if tool.name == name]
    early = []
    with WriteBarrier() as barrier:
        barrier.flush()
        context = ToolContext(
            deps=replace(services.deps, **deps),
            call=ToolCall("a", name),
            barrier=barrier,
            on_early_result=early.append,
        )
        result = await tool(context, **tool.validate(json.dumps(arguments)))
    return ToolResult.from_value(result), early


@real_time
@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("get_incident", {"incident_id": 1}, "no incident 1"),
        ("get_on_call", {"service": "none"}, "Nobody"),
        ("get_service_health", {"service": "none"}, "404"),
        ("pause_incident", {"incident_id": 204, "until": "13:00"}, "has passed"),
        ("pause_incident", {"incident_id": 198, "until": "18:00"}, "merged"),
    ],
)
async def test_a_tool_says_what_is_wrong(name, arguments, error, tmp_path):
    async with open_services(tmp_path, latencies=FAST) as services:
        with pytest.raises(Exception, match=error):
            await run_tool(services, name, arguments)


@real_time
async def test_whoever_may_not_pause_cannot(tmp_path):
    pause = {"incident_id": 204, "until": "18:00"}
    async with open_services(tmp_path, latencies=FAST) as services:
        before = await services.rows()
        with pytest.raises(PermissionError):
            await run_tool(services, "pause_incident", pause, user="mei")
        assert await services.rows() == before


@real_time
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("pause_incident", {"incident_id": 204, "until": "18:00"}),
        ("set_severity", {"incident_id": 204, "severity": "sev1"}),
        ("post_update", {"incident_id": 204, "text": "Better."}),
    ],
)
async def test_an_early_result_is_the_result(name, arguments, tmp_path):
    async with open_services(tmp_path, latencies=FAST) as services:
        result, early = await run_tool(services, name, arguments)
    assert early == [result]


@real_time
async def test_reads_find_what_is_there(tmp_path):
    async with open_services(tmp_path, latencies=FAST) as services:
        listed, _ = await run_tool(services, "list_open_incidents", {})
        on_call, _ = await run_tool(services, "get_on_call", {"service": "checkout"})
        found, _ = await run_tool(
            services, "search_runbooks", {"query": "DbConnectionsSaturated"}
        )
    assert [incident["id"] for incident in json.loads(listed.content)] == [204, 207]
    assert json.loads(on_call.content)["name"] == "Dana Okafor"
    assert len(json.loads(found.content)) == 1


@real_time
async def test_both_arms_of_the_demo_leave_the_same_behind():
    progress = []
    outcome = await run_demo(latencies=FAST, on_progress=progress.append)
    assert outcome.identical
    assert outcome.identical_messages
    assert outcome.identical_rows
    assert outcome.identical_posts
    plain, write, parallel, wrong, none = outcome.messages
    assert (plain.calls, plain.hits, plain.misses) == (4, 4, 0)
    assert (write.calls, write.hits, write.run_ahead) == (1, 1, 1)
    assert (parallel.calls, parallel.hits, parallel.run_ahead) == (2, 2, 1)
    assert (wrong.calls, wrong.hits) == (2, 2)
    assert wrong.misses >= 1
    assert wrong.wasted_s > 0
    assert none.calls == 0
    assert [message.text for message in outcome.messages] == list(USER_MESSAGES)
    ended = [(each.arm, each.message) for each in progress if each.seconds]
    assert ended == [(arm, number) for arm in ("off", "on") for number in range(5)]


@real_time
async def test_the_outcome_is_json_with_what_the_issue_names():
    outcome = await run_demo(latencies=FAST, user_messages=USER_MESSAGES[-1:])
    data = json.loads(json.dumps(outcome.to_dict()))
    assert data["identical"] is True
    assert {
        "off_s", "on_s", "speedup", "bound_s", "hits", "misses", "hidden_s", "wasted_s",
    } <= data.keys() & data["messages"][0].keys()  # fmt: skip


@real_time
async def test_a_wrong_guess_of_a_write_changes_nothing():
    question = "Should we pause incident 207 until 20:00 as well?"
    outcome = await run_demo(latencies=FAST, user_messages=[question])
    assert outcome.identical_rows
    assert outcome.misses >= 1


@real_time
async def test_a_real_endpoint_is_compared_without_its_call_ids(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    numbers = itertools.count()

    async def answer_request(request):
        decided = answer(json.loads(request.body)["messages"], tools=NAMES)
        calls = [
            {
                "index": index,
                "id": f"call_{next(numbers)}",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for index, (name, arguments) in enumerate(decided.calls)
        ]
        delta = {"content": decided.text, "tool_calls": calls or None}
        choice = {"index": 0, "delta": delta, "finish_reason": "stop"}
        event = f"data: {json.dumps({'choices': [choice]})}\n\n".encode()
        return HTTPResponse(content_type="text/event-stream", body=event)

    async with open_http_server(answer_request) as url:
        outcome = await run_demo(
            latencies=FAST, base_url=url, model="m", user_messages=USER_MESSAGES[1:2]
        )
    assert outcome.model == "m"
    assert outcome.identical


@real_time
async def test_a_difference_between_the_arms_is_seen(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    numbers = itertools.count()

    async def answer_request(request):
        delta = {"content": f"Number {next(numbers)}."}
        choice = {"index": 0, "delta": delta, "finish_reason": "stop"}
        event = f"data: {json.dumps({'choices': [choice]})}\n\n".encode()
        return HTTPResponse(content_type="text/event-stream", body=event)

    async with open_http_server(answer_request) as url:
        outcome = await run_demo(
            latencies=FAST, base_url=url, model="m", user_messages=["Hello!"]
        )
    assert not outcome.identical
    assert not outcome.identical_messages
    assert outcome.identical_rows
    assert outcome.identical_posts


@real_time
async def test_an_endpoint_s_failure_is_raised_as_it_is(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")

    async def refuse(_):
        return HTTPResponse(status=429, body=b"{}")

    async with open_http_server(refuse) as url:
        with pytest.raises(ModelError) as raised:
            await run_demo(latencies=FAST, base_url=url, model="m")
    assert raised.value.status == 429


@real_time
async def test_cancelling_the_demo_leaves_no_database_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen = []
    with anyio.CancelScope() as scope:

        def stop(_):
            if not seen:
                seen.extend(tmp_path.rglob("incidents.db"))
            scope.cancel()

        await run_demo(latencies=FAST, on_progress=stop)
    assert scope.cancelled_caught
    assert len(seen) == 1
    assert list(tmp_path.iterdir()) == []


def spoken(*, message_s, call_s):
    """One message with a gated call, as an arm without speculation records it."""
    call = ToolCall("a", "pause_incident", '{"incident_id":204,"until":"18:00"}')
    return ArmMessage(
        seconds=0.0,
        said=(
            Message(role="user", content="Pause incident 204 until 18:00."),
            Message(role="assistant", tool_calls=(call,)),
            Message.for_result(call, ToolResult('{"by": "dana"}')),
            Message(role="assistant", content="Done."),
        ),
        events=(
            ModelAnswered(
                session="s", at_s=0, turn=1, duration_s=message_s, tool_calls=1
            ),
            CallEnded(
                session="s",
                at_s=0,
                turn=1,
                call_id="a",
                tool="pause_incident",
                duration_s=call_s,
                wait_s=call_s,
                adopted=False,
                is_error=False,
            ),
            ModelAnswered(
                session="s", at_s=0, turn=2, duration_s=message_s, tool_calls=0
            ),
        ),
    )


def test_the_bound_is_computed_from_what_was_measured():
    # 0.9 of 1.9 seconds are preparation, as the table of latencies states.
    first, second = turns_of(spoken(message_s=1.0, call_s=3.8), Latencies())
    assert first.model_s == second.model_s == 1.0
    [call] = first.calls
    assert call.preparation_s == pytest.approx(1.8)
    assert call.effect_s == pytest.approx(2.0)
    assert call.known_from == "message"
    assert call.early_result
    assert bound_seconds([first, second]) == pytest.approx(3.8)


@pytest.mark.parametrize(
    ("arguments", "source"),
    [
        ({"service": "api"}, (0, 0)),
        ({"service": "web"}, (0, 1)),
        ({"service": "Seven"}, "message"),
        ({"service": "mail"}, "model"),
        ({}, "message"),
    ],
)
def test_arguments_are_looked_for_in_the_message_and_in_earlier_results(
    arguments, source
):
    call = ToolCall("a", "get_on_call", json.dumps(arguments))
    earlier = {(0, 0): '{"service": "api"}', (0, 1): '["web", "api"]'}
    assert find_source(call, "What about seven?", earlier) == source
