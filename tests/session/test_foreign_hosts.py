"""What an adapter needs: values beside texts, its own messages, events and streams."""

import json
from dataclasses import replace

import anyio
import pytest

from headstart import (
    Effect,
    EventLog,
    Message,
    ModelRequest,
    ModelResponse,
    NativeDelta,
    Session,
    TextDelta,
    Tool,
    ToolCall,
    ToolContext,
    ToolDefinitionError,
    ToolResult,
    UsageError,
    WriteBarrier,
)
from headstart.testing import Fault, ScriptedModel

from .scene import Arm, Expects, World, read, write

ASKED = Message(role="user", content="Go.", native="the host's own")


def read_row(text):
    """A framework's own validation."""
    row = json.loads(text).get("row", 7)
    if row == 9:
        msg = "There is no row 9."
        raise ValueError(msg)
    return {"row": row}


LOOK_7 = ToolCall("a", "look", '{"row": 7}')


async def test_a_result_keeps_what_the_tool_returned_or_raised():
    found = {"row": 7}

    def look(arguments: dict) -> object:
        if arguments:
            raise LookupError(arguments)
        return found

    tool = Tool(look, parameters={}, effect=Effect.READ)
    async with Session([tool]) as session:
        model = ScriptedModel([[("look", {}), ("look", {"row": 7})]])
        response = await session.ask(ModelRequest([ASKED]), model.respond)
        good, bad = await session.call_all(response.tool_calls)
    assert good.value is found
    assert good == ToolResult('{"row":7}')
    assert isinstance(bad.error, LookupError)


async def test_a_request_that_is_run_ahead_has_the_hosts_own_messages():
    asked = []

    async def ask_model(request, on_delta):
        asked.append([message.native for message in request.history])
        if len(asked) == 1:
            return ModelResponse(tool_calls=(LOOK_7,), native="its own answer")
        await anyio.sleep(1)
        return ModelResponse(text="Done.")

    seven = write("look", prepare=0, takes=1, early="7 is changed")
    async with Session([seven], deps=World()) as session:
        response = await session.ask(ModelRequest([ASKED]), ask_model)
        assert response.message.native == "its own answer"
        await session.call(LOOK_7)
    given, answer, result = asked[1]
    assert (given, answer) == ("the host's own", "its own answer")
    assert result == ToolResult("7 is changed")
    assert result.value == "7 is changed"


async def test_events_of_the_host_are_held_and_handed_on_in_their_place():
    async def ask_model(request, on_delta):
        if len(request.messages) == 1:
            return ModelResponse(tool_calls=(LOOK_7,))
        on_delta(NativeDelta("start"))
        on_delta(TextDelta("Done."))
        on_delta(NativeDelta("end"))
        return ModelResponse(text="Done.")

    seen = []
    seven = write("look", prepare=0, takes=1, early="7 is changed")
    async with Session([seven], deps=World()) as session:
        request = ModelRequest([ASKED])
        response = await session.ask(request, ask_model)
        result = await session.call(LOOK_7)
        assert seen == []
        request = request.extended([response.message])
        await session.ask(
            request.answered(response.tool_calls, [result]), ask_model, seen.append
        )
    assert [getattr(delta, "event", delta) for delta in seen] == [
        "start",
        TextDelta("Done."),
        "end",
    ]


async def test_a_launch_of_a_tool_that_was_replaced_is_not_used():
    log, old, new = EventLog(), read(seconds=0.5), read(seconds=0.5)
    world = World()
    model = ScriptedModel([[("look", {"row": 7})]], delay=1.0)
    async with Session(
        [old], deps=world, predictors=[Expects(("look", {"row": 7}))], sink=log
    ) as session:

        async def ask_model(request, on_delta):
            response = await model.respond(request, on_delta)
            session.use_tools([new])
            return response

        response = await session.ask(ModelRequest([ASKED]), ask_model)
        assert session.tools == (new,)
        await session.call_all(response.tool_calls)
    assert [what for _, what in world.starts] == ["look 7", "look 7"]
    reasons = [event.reason for event in log.events if hasattr(event, "reason")]
    assert reasons == ["its tool is gone"]


async def test_the_same_tools_again_change_nothing():
    tool, world = read(seconds=0.5), World()
    model = ScriptedModel([[("look", {"row": 7})]], delay=1.0)
    predictors = [Expects(("look", {"row": 7}))]
    async with Session([tool], deps=world, predictors=predictors) as session:

        async def ask_model(request, on_delta):
            response = await model.respond(request, on_delta)
            session.use_tools([tool])
            return response

        response = await session.ask(ModelRequest([ASKED]), ask_model)
        await session.call_all(response.tool_calls)
    assert len(world.starts) == 1


async def test_tools_that_cannot_be_used_leave_those_before():
    tool = read()
    session = Session([tool])
    with pytest.raises(UsageError, match="Two tools are named 'look'"):
        session.use_tools([read(), read()])
    with pytest.raises(UsageError, match="needs approval"):
        session.use_tools([write(approval=True)])
    assert session.tools == (tool,)


async def test_arguments_are_compared_as_the_tool_reads_them():
    world = World()

    async def look(ctx: ToolContext[World], arguments: dict) -> str:
        ctx.deps.note_start(ctx, "look", arguments["row"])
        return "new"

    tool = Tool(look, parameters={}, validate=read_row, effect=Effect.READ)
    model = ScriptedModel([[("look", "{}")]], delay=1.0)
    predictors = [Expects(("look", {"row": 7}))]
    async with Session([tool], deps=world, predictors=predictors) as session:
        response = await session.ask(ModelRequest([ASKED]), model.respond)
        await session.call_all(response.tool_calls)
    assert len(world.starts) == 1


async def test_what_the_tools_own_validation_says_is_told_to_the_model():
    tool = Tool(
        lambda arguments: "new",
        name="look",
        parameters={},
        validate=read_row,
    )
    model = ScriptedModel([[("look", {"row": 9})]])
    async with Session([tool]) as session:
        response = await session.ask(ModelRequest([ASKED]), model.respond)
        (result,) = await session.call_all(response.tool_calls)
    assert result == ToolResult(
        "The arguments of 'look' are invalid: There is no row 9.", is_error=True
    )


def test_validation_without_a_schema_is_refused():
    with pytest.raises(ToolDefinitionError, match="no 'parameters'"):
        Tool(lambda arguments: "new", name="look", validate=read_row)


async def test_an_answer_can_be_read_while_it_comes():
    model = ScriptedModel(["Done."], seconds_per_delta=1.0, characters_per_delta=3)
    async with Session() as session:
        began = anyio.current_time()
        async with session.stream(ModelRequest([ASKED]), model.respond) as answer:
            assert answer.response is None
            seen = [
                (anyio.current_time() - began, delta.text) async for delta in answer
            ]
        assert answer.response.text == "Done."
    assert seen == [(0.0, "Don"), (1.0, "e.")]


async def test_a_turn_that_was_run_ahead_can_be_streamed():
    arm = Arm(World())
    seven = write("look", prepare=0, takes=3, early="7 is changed")
    model = ScriptedModel([[("look", {"row": 7})], "Done."], delay=1.0)
    async with Session([seven], deps=arm.world, sink=arm.log) as session:
        request = ModelRequest([ASKED])
        response = await session.ask(request, model.respond)
        results = await session.call_all(response.tool_calls)
        request = request.extended([response.message])
        request = request.answered(response.tool_calls, results)
        async with session.stream(request, model.respond) as answer:
            text = "".join([delta.text async for delta in answer])
    assert text == answer.response.text == "Done."
    assert arm.world.now == 1.0 + 3.0
    assert len(model.records) == 2


async def test_a_stream_that_is_left_half_read_ends_its_request():
    model = ScriptedModel(["Done."], seconds_per_delta=1.0, characters_per_delta=3)
    async with Session() as session:
        async with session.stream(ModelRequest([ASKED]), model.respond) as answer:
            async for _ in answer:
                break
        assert model.records[0].outcome == "cancelled"
        assert answer.response is None


async def test_a_stream_that_breaks_off_raises_after_what_came():
    fault = Fault(response="Done.", after=1, error=ConnectionError("gone"))
    model = ScriptedModel([fault], characters_per_delta=3)
    seen = []
    async with Session() as session:
        with pytest.raises(ConnectionError, match="gone"):
            async with session.stream(ModelRequest([ASKED]), model.respond) as answer:
                seen.extend([delta.text async for delta in answer])
    assert answer.response is None


async def test_a_stream_outlived_by_its_session_says_so():
    model = ScriptedModel([Fault(hang=True)])
    async with Session(name="short") as session:
        answer = session.stream(ModelRequest([ASKED]), model.respond)
        await answer.__aenter__()
        await anyio.sleep(1)
    with pytest.raises(UsageError, match="'short' ended before the answer"):
        await anext(answer)
    await answer.__aexit__(None, None, None)


async def test_cancelling_the_reader_ends_the_request():
    model = ScriptedModel([Fault(hang=True)])
    async with Session() as session:
        with anyio.move_on_after(1):
            async with session.stream(ModelRequest([ASKED]), model.respond) as answer:
                async for _ in answer:
                    pass
        assert model.records[0].outcome == "cancelled"


async def test_a_stream_is_used_once_and_while_it_is_open():
    model = ScriptedModel(["Done."])
    async with Session() as session:
        answer = session.stream(ModelRequest([ASKED]), model.respond)
        with pytest.raises(UsageError, match="while it is open"):
            await anext(answer)
        async with answer:
            with pytest.raises(UsageError, match="streamed once"):
                await answer.__aenter__()


async def test_a_call_that_the_host_runs_again_may_state_its_result_early_again():
    attempts = []

    async def change(context: ToolContext, arguments: dict) -> str:
        attempts.append(1)
        context.early_result("changed")
        await anyio.sleep(1)
        if len(attempts) == 1:
            raise LookupError(arguments)
        return "changed"

    tool = Tool(change, parameters={}, effect=Effect.GATED)
    async with Session([tool]) as session:
        model = ScriptedModel([[("change", {})], "Done."])
        response = await session.ask(ModelRequest([ASKED]), model.respond)
        first, second = [await session.call(response.tool_calls[0]) for _ in range(2)]
    assert (first.is_error, second) == (True, ToolResult("changed"))


@pytest.mark.parametrize(("rest", "requests"), [("a thought", 2), ("another", 3)])
async def test_what_else_the_model_sees_of_a_message_is_compared(rest, requests):
    call = ToolCall("a", "change", '{"row": 7, "to": "old"}')
    answer = ModelResponse(tool_calls=(call,), rest="a thought")
    model = ScriptedModel([answer, "Done."], delay=1)
    async with Session([write(early="{row} is {to}")], deps=World()) as session:
        asked = ModelRequest([ASKED], session.tools)
        response = await session.ask(asked, model.respond)
        assert response.message.rest == "a thought"
        result = await session.call(call)
        message = replace(response.message, rest=rest)
        following = asked.extended([message, Message.for_result(call, result)])
        assert (await session.ask(following, model.respond)).text == "Done."
    assert len(model.records) == requests


async def test_nothing_is_run_ahead_where_the_host_runs_a_call_of_its_own():
    model = ScriptedModel([[], "Done."])
    async with Session([write(early="{row} is {to}")], deps=World()) as session:
        await session.ask(ModelRequest([ASKED], session.tools), model.respond)
        own = ToolCall("b", "change", '{"row": 7, "to": "old"}')
        assert not (await session.call(own)).is_error
    assert len(model.records) == 1


@pytest.mark.parametrize("judged", ["flushed", "denied"])
async def test_effects_wait_for_the_conditions_of_the_last_message(judged):
    world, before, now = World(), WriteBarrier(), WriteBarrier()
    before.flush()
    model = ScriptedModel([[("change", {"row": 7, "to": "old"})]], delay=1.0)
    async with Session([write()], deps=world, conditions=[before]) as session:
        session.use_conditions([now])
        response = await session.ask(ModelRequest([ASKED]), model.respond)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.call_all, response.tool_calls)
            await anyio.sleep(5)
            assert world.effects == []
            now.flush() if judged == "flushed" else now.deny("It is not allowed.")
    assert len(world.effects) == (judged == "flushed")


async def test_a_launch_that_waits_for_other_conditions_is_not_used():
    world, log, before = World(), EventLog(), WriteBarrier()
    change = ("change", {"row": 7, "to": "old"})
    model = ScriptedModel([[change]], delay=1.0)
    async with Session(
        [write()],
        deps=world,
        predictors=[Expects(change)],
        conditions=[before],
        sink=log,
    ) as session:

        async def ask_model(request, on_delta):
            response = await model.respond(request, on_delta)
            session.use_conditions([])
            return response

        response = await session.ask(ModelRequest([ASKED]), ask_model)
        await session.call_all(response.tool_calls)
    assert [what for _, what in world.effects] == ["change 7"]
    reasons = [event.reason for event in log.events if hasattr(event, "reason")]
    assert reasons == ["its conditions have changed"]
