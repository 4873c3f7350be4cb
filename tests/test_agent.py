"""The agent: runs, streams, usage, instructions, and one session for many messages."""

import anyio
import pytest

from headstart import (
    Agent,
    Message,
    ModelError,
    ModelRequest,
    ModelResponse,
    TextDelta,
    ToolCall,
    ToolContext,
    Usage,
    UsageError,
    tool,
)
from headstart.testing import Fault, ScriptedModel


@tool(effect="read", reads=["row:{row}"])
async def look(row: int) -> str:
    "What a row holds."
    await anyio.sleep(1.0)
    return f"row {row} is fine"


@tool(effect="read", reads=[])
async def whoami(ctx: ToolContext[str]) -> str:
    await anyio.sleep(1.0)
    return ctx.deps


LOOK_7 = ("look", {"row": 7})
CALL_7 = ToolCall("call_1_0", "look", '{"row": 7}')
CONVERSATION = (
    Message(role="user", content="How is row 7?"),
    Message(role="assistant", content="Let me see.", tool_calls=(CALL_7,)),
    Message(role="tool", content="row 7 is fine", tool_call_id="call_1_0", name="look"),
    Message(role="assistant", content="It is fine."),
)


def asking(**options):
    return ScriptedModel([["Let me see.", LOOK_7], "It is fine."], **options)


async def test_a_run_returns_the_whole_conversation_and_its_answer():
    result = await Agent(asking(), [look]).run("How is row 7?")
    assert result.messages == CONVERSATION
    assert result.text == "It is fine."


async def test_a_run_adds_up_the_usage_of_its_turns():
    responses = [
        ModelResponse(
            tool_calls=(CALL_7,), usage=Usage(input_tokens=10, output_tokens=5)
        ),
        ModelResponse(text="Fine.", usage=Usage(input_tokens=20, output_tokens=1)),
    ]
    result = await Agent(ScriptedModel(responses), [look]).run("How is row 7?")
    assert result.usage == Usage(input_tokens=30, output_tokens=6)


async def test_messages_may_be_text_dicts_or_messages():
    for messages in (
        "How is row 7?",
        [{"role": "user", "content": "How is row 7?"}],
        (Message(role="user", content="How is row 7?"),),
    ):
        assert (await Agent(asking(), [look]).run(messages)).messages == CONVERSATION


async def test_a_conversation_goes_on_where_it_was():
    before = [message.to_dict() for message in CONVERSATION]
    asked = {"role": "user", "content": "And now?"}
    model = ScriptedModel(lambda request: f"After {len(request.history)} messages.")
    result = await Agent(model, [look]).run([*before, asked])
    assert result.text == "After 5 messages."
    assert [m.to_dict() for m in result.messages[:4]] == before


async def test_instructions_come_first_in_every_conversation_that_has_none():
    model = ScriptedModel(["Hello."])
    agent = Agent(model, instructions="Be brief.")
    system = Message(role="system", content="Be brief.")
    result = await agent.run("Hi.")
    assert result.messages[0] == system
    assert model.requests[0].history[0] == system
    other = Message(role="system", content="Be long.")
    result = await agent.run([other, Message(role="user", content="Hi.")])
    assert [m for m in result.messages if m.role == "system"] == [other]


async def test_the_model_gets_the_tools_and_the_settings():
    model = asking()
    await Agent(model, [look], settings={"temperature": 0}).run("How is row 7?")
    for request in model.requests:
        assert request.tools == (look,)
        assert request.settings == {"temperature": 0}


async def test_the_calls_of_a_turn_run_side_by_side_and_answer_in_order():
    @tool
    async def wait(seconds: float) -> float:
        await anyio.sleep(seconds)
        return seconds

    calls = [("wait", {"seconds": seconds}) for seconds in (3.0, 1.0, 2.0)]
    result = await Agent(ScriptedModel([calls, "Done."]), [wait]).run("Go.")
    assert [m.content for m in result.messages if m.role == "tool"] == [
        "3.0",
        "1.0",
        "2.0",
    ]
    assert anyio.current_time() == 3.0


async def test_a_model_that_never_stops_calling_tools_is_stopped():
    model = ScriptedModel(lambda _: [LOOK_7])
    with pytest.raises(ModelError):
        await Agent(model, [look], max_turns=3).run("How is row 7?")
    assert len(model.requests) == 3


async def test_an_agent_without_tools_answers():
    assert (await Agent(ScriptedModel(["Hello."])).run("Hi.")).text == "Hello."


async def test_one_session_serves_several_user_messages():
    model = ScriptedModel(["Hello.", ["Let me see.", LOOK_7], "It is fine."])
    agent = Agent(model, [look], instructions="Be brief.")
    async with agent.open_session() as session:
        first = await agent.run("Hi.", session=session)
        asked = Message(role="user", content="How is row 7?")
        second = await agent.run([*first.messages, asked], session=session)
    assert second.messages[: len(first.messages)] == first.messages
    assert [m.role for m in second.messages] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert second.usage != first.usage


async def test_deps_reach_the_tools_of_their_own_run():
    def respond(request):
        told = [m.content for m in request.history if m.role == "tool"]
        return told[0] if told else [("whoami", {})]

    agent = Agent(ScriptedModel(respond), [whoami])
    answers = {}

    async def serve(user):
        answers[user] = (await agent.run("Who am I?", deps=user)).text

    async with anyio.create_task_group() as group:
        for user in ("ann", "bob", "cid"):
            group.start_soon(serve, user)
    assert answers == {user: user for user in ("ann", "bob", "cid")}
    assert anyio.current_time() == 1.0


async def test_a_model_error_reaches_the_host_with_its_status():
    failing = Fault(error=ModelError("Too many requests.", status=429))
    with pytest.raises(ModelError) as caught:
        await Agent(ScriptedModel([failing]), [look]).run("How is row 7?")
    assert caught.value.status == 429


async def test_a_run_needs_an_open_session():
    agent = Agent(asking(), [look])
    session = agent.open_session()
    with pytest.raises(UsageError):
        await agent.run("How is row 7?", session=session)
    async with session:
        await agent.run("How is row 7?", session=session)
    with pytest.raises(UsageError):
        await agent.run("How is row 7?", session=session)


# Streams


async def collected(stream):
    async with stream:
        return [(anyio.current_time(), item) async for item in stream]


async def test_a_stream_shows_text_as_it_comes_and_each_message_when_it_is_complete():
    model = asking(delay=1.0, seconds_per_delta=0.25, characters_per_delta=10)
    stream = Agent(model, [look]).stream("How is row 7?")
    items = await collected(stream)
    user, calls, result, answer = CONVERSATION
    # Four deltas: two of text, the call's name, and its arguments.
    assert items == [
        (1.0, TextDelta("Let me see")),
        (1.25, TextDelta(".")),
        (1.75, calls),
        (2.75, result),
        (3.75, TextDelta("It is fine")),
        (4.0, TextDelta(".")),
        (4.0, answer),
    ]
    assert stream.result is not None
    assert stream.result.messages == CONVERSATION
    assert user == stream.result.messages[0]


async def test_a_model_that_does_not_stream_gives_messages_alone():
    items = await collected(Agent(asking(stream=False), [look]).stream("How is row 7?"))
    assert [item for _, item in items] == list(CONVERSATION[1:])


async def test_a_slow_reader_does_not_hold_the_run_up():
    stream = Agent(asking(delay=1.0), [look]).stream("How is row 7?")
    async with stream:
        await anyio.sleep(10.0)
        assert stream.result is not None
        assert [item async for item in stream][-1] == CONVERSATION[-1]
    assert anyio.current_time() == 10.0


@pytest.mark.requirement("cancel:no-orphans")
async def test_leaving_a_stream_early_cancels_the_request():
    model = asking(delay=1.0, seconds_per_delta=1.0)
    async with Agent(model, [look]).stream("How is row 7?") as stream:
        async for item in stream:
            assert item == TextDelta("Let ")
            break
    assert [record.outcome for record in model.records] == ["cancelled"]
    assert anyio.current_time() == 1.0
    assert stream.result is None


@pytest.mark.requirement("cancel:no-orphans")
async def test_leaving_a_stream_that_was_never_read_cancels_the_request():
    model = asking(delay=1.0)
    async with Agent(model, [look]).stream("How is row 7?"):
        await anyio.sleep(0.5)
    assert [record.outcome for record in model.records] == ["cancelled"]


@pytest.mark.requirement("cancel:outside-wins")
async def test_cancelling_whoever_reads_a_stream_cancels_the_run():
    model = asking(delay=1.0, seconds_per_delta=1.0)
    with anyio.move_on_after(2.5) as scope:
        await collected(Agent(model, [look]).stream("How is row 7?"))
    assert scope.cancelled_caught
    assert [record.outcome for record in model.records] == ["cancelled"]
    assert anyio.current_time() == 2.5


async def test_what_the_reader_raises_passes_the_stream_unwrapped():
    model, error = asking(delay=1.0), KeyError("mine")

    async def read_on():
        async with Agent(model, [look]).stream("How is row 7?") as stream:
            async for _ in stream:
                raise error

    with pytest.raises(KeyError) as caught:
        await read_on()
    assert caught.value is error


async def test_an_error_comes_after_the_last_item_as_a_run_would_raise_it():
    cause = OSError("connection reset")
    error = ModelError("The endpoint failed.", status=502)
    error.__cause__ = cause
    model = ScriptedModel(
        [["Let me see.", LOOK_7], Fault(response="It is", after=1, error=error)]
    )
    stream, items = Agent(model, [look]).stream("How is row 7?"), []
    async with stream:
        while len(items) < 6:
            items.append(await anext(stream))
        with pytest.raises(ModelError) as caught:
            await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    assert caught.value is error
    assert error.__cause__ is cause
    assert items[-2:] == [CONVERSATION[2], TextDelta("It i")]
    assert stream.result is None


class Alarm(BaseException):
    """Not an `Exception`."""


async def test_a_base_exception_of_a_tool_passes_a_stream_unwrapped():
    @tool(name="look")
    async def explode(row: int) -> str:
        await anyio.sleep(1.0)
        raise Alarm

    with pytest.raises(Alarm):
        await collected(Agent(asking(), [explode]).stream("How is row 7?"))


async def test_a_stream_that_is_not_open_says_so():
    stream = Agent(asking(), [look]).stream("How is row 7?")
    with pytest.raises(UsageError):
        await anext(stream)
    await collected(stream)
    with pytest.raises(UsageError):
        await anext(stream)


async def test_a_stream_in_an_open_session_leaves_the_session_open():
    agent = Agent(ScriptedModel(["Hello.", "Hello again."]))
    async with agent.open_session() as session:
        stream = agent.stream("Hi.", session=session)
        await collected(stream)
        asked = [*stream.result.messages, Message(role="user", content="Hi.")]
        assert (await agent.run(asked, session=session)).text == "Hello again."


async def test_a_stream_of_what_cannot_be_read_raises_where_it_is_read():
    with pytest.raises(UsageError):
        await collected(Agent(asking(), [look]).stream([]))


def test_requests_of_a_run_compare_by_what_they_hold():
    assert ModelRequest(CONVERSATION[:1]) == ModelRequest([CONVERSATION[0].to_dict()])
