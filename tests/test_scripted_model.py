"""The scripted model: same answers whatever the order, exact pace, stated faults."""

import anyio
import pytest

from headstart import ToolCall
from headstart._errors import ModelError, UsageError
from headstart._messages import (
    CallDelta,
    Message,
    ModelRequest,
    ModelResponse,
    TextDelta,
    Usage,
)
from headstart.testing import Fault, ScriptedModel

USER = Message(role="user", content="What is wrong?")
FIRST = ModelRequest([USER])
SECOND = ModelRequest([USER, Message(role="assistant", content="Well.")])


def ignore(_):
    pass


async def ask(model, request=FIRST):
    deltas = []
    response = await model.respond(request, deltas.append)
    return response, deltas


async def test_a_text_is_streamed_in_deltas_of_stated_size():
    response, deltas = await ask(ScriptedModel(["Hello you!"]))
    assert response.text == "Hello you!"
    assert deltas == [TextDelta("Hell"), TextDelta("o yo"), TextDelta("u!")]
    assert response.usage == Usage(input_tokens=4, output_tokens=3)


async def test_calls_are_streamed_name_first_and_then_their_arguments():
    model = ScriptedModel(
        [["Look. ", ("get", {"id": 7}), ("put", "{not json")]], characters_per_delta=6
    )
    response, deltas = await ask(model)
    assert response.text == "Look. "
    assert response.tool_calls == (
        ToolCall("call_1_0", "get", '{"id": 7}'),
        ToolCall("call_1_1", "put", "{not json"),
    )
    assert deltas == [
        TextDelta("Look. "),
        CallDelta(index=0, id="call_1_0", name="get"),
        CallDelta(index=0, arguments='{"id":'),
        CallDelta(index=0, arguments=" 7}"),
        CallDelta(index=1, id="call_1_1", name="put"),
        CallDelta(index=1, arguments="{not j"),
        CallDelta(index=1, arguments="son"),
    ]


async def test_the_pace_is_exact():
    times = []
    model = ScriptedModel(["four deltas here"], delay=0.5, seconds_per_delta=0.25)
    started = anyio.current_time()
    await model.respond(FIRST, lambda _: times.append(anyio.current_time() - started))
    assert times == [0.5, 0.75, 1.0, 1.25]
    assert anyio.current_time() - started == 1.25


async def test_without_streaming_the_answer_takes_as_long():
    model = ScriptedModel(
        ["four deltas here"], delay=0.5, seconds_per_delta=0.25, stream=False
    )
    started = anyio.current_time()
    response, deltas = await ask(model)
    assert (response.text, deltas) == ("four deltas here", [])
    assert anyio.current_time() - started == 1.25


async def test_the_answer_depends_on_the_conversation_and_not_on_the_order():
    model = ScriptedModel(["one", "two"])
    texts = [
        (await ask(model, request))[0].text
        for request in (SECOND, FIRST, FIRST, SECOND)
    ]
    assert texts == ["two", "one", "one", "two"]
    assert model.requests == [SECOND, FIRST, FIRST, SECOND]


async def test_repeated_requests_get_the_same_call_identifiers():
    model = ScriptedModel([[("get", {})]])
    assert (await ask(model))[0] == (await ask(model))[0]


async def test_a_function_may_decide_from_the_conversation():
    model = ScriptedModel(lambda request: request.history[-1].content.upper())
    assert (await ask(model))[0].text == "WHAT IS WRONG?"


async def test_a_complete_response_is_given_as_it_is():
    response = ModelResponse(text="x", usage=Usage(output_tokens=99))
    assert (await ask(ScriptedModel([response])))[0] is response


async def test_a_conversation_longer_than_the_script_is_a_usage_error():
    with pytest.raises(UsageError):
        await ask(ScriptedModel(["one"]), SECOND)


async def test_a_dropped_stream_raises_a_model_error_after_its_deltas():
    model = ScriptedModel([Fault(response="Hello you!", after=2)])
    deltas = []
    with pytest.raises(ModelError):
        await model.respond(FIRST, deltas.append)
    assert deltas == [TextDelta("Hell"), TextDelta("o yo")]
    assert [(record.outcome, record.deltas) for record in model.records] == [
        ("failed", 2)
    ]


async def test_a_stated_error_is_raised_after_the_delay():
    model = ScriptedModel([Fault(error=ModelError("Busy.", status=429))], delay=2.0)
    started = anyio.current_time()
    with pytest.raises(ModelError) as caught:
        await ask(model)
    assert caught.value.status == 429
    assert anyio.current_time() - started == 2.0


async def test_a_hanging_request_ends_when_it_is_cancelled_and_is_recorded():
    model = ScriptedModel([Fault(response="abcdefgh", after=1, hang=True)])
    with anyio.move_on_after(3) as scope:
        await ask(model)
    assert scope.cancelled_caught
    (record,) = model.records
    assert (record.outcome, record.deltas) == ("cancelled", 1)
    assert record.ended_s - record.started_s == 3


async def test_an_error_of_the_receiver_is_a_failed_request():
    def refuse(_):
        raise ValueError

    model = ScriptedModel(["text"])
    with pytest.raises(ValueError):  # noqa: PT011 - its own
        await model.respond(FIRST, refuse)
    assert model.records[0].outcome == "failed"


async def test_a_running_request_is_recorded_as_running():
    model = ScriptedModel(["text"], delay=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(model.respond, FIRST, ignore)
        await anyio.sleep(0.5)
        assert [record.outcome for record in model.records] == ["running"]
    assert [record.outcome for record in model.records] == ["answered"]


@pytest.mark.parametrize(
    ("responses", "options"),
    [("one text", {}), (["one"], {"characters_per_delta": 0})],
)
def test_a_script_that_cannot_work_is_a_usage_error(responses, options):
    with pytest.raises(UsageError):
        ScriptedModel(responses, **options)


async def test_a_fault_of_a_fault_is_a_usage_error():
    with pytest.raises(UsageError):
        await ask(ScriptedModel([Fault(response=Fault())]))
