"""Nonsense from callers is a clear error at once; nonsense from models is no surprise.

What a model sends is compared with the same run without speculation, everywhere.
"""

import json

import anyio
import pytest

from headstart import (
    Agent,
    CallDelta,
    EventLog,
    Message,
    ModelError,
    ModelRequest,
    ModelResponse,
    Session,
    TextDelta,
    ToolCall,
    ToolContext,
    ToolDefinitionError,
    UsageError,
    tool,
)
from headstart.predictors import Prediction
from headstart.testing import Fault, ScriptedModel


class World:
    """What the tools of one run did."""

    def __init__(self):
        self.began = anyio.current_time()
        self.started, self.effects = [], []
        self.running = 0


@tool(effect="read", reads=["row:{row}"])
async def look(ctx: ToolContext[World], row: int) -> str:
    ctx.deps.started.append(f"look {row}")
    await anyio.sleep(1.0)
    return f"row {row} is fine"


@tool(effect="gated", writes=["row:{row}"])
async def change(ctx: ToolContext[World], row: int, to: str = "new") -> str:
    ctx.deps.started.append(f"change {row}")
    ctx.deps.running += 1
    try:
        ctx.early_result("changed")
        await ctx.barrier.wait()
        await anyio.sleep(1.0)
        ctx.deps.effects.append(f"{row}={to}")
    finally:
        ctx.deps.running -= 1
    return "changed"


class Guesses:
    """A predictor that expects the same two calls whatever happens."""

    async def predict(self, _):
        return [
            Prediction(tool="look", arguments={"row": 7}),
            Prediction(tool="change", arguments={"row": 7}),
        ]


async def outcome(model, *, speculate, tools=(look, change)):
    """What a run came to: its messages or its error, its effects, and its time."""
    agent = Agent(model, tools, predictors=[Guesses()], max_turns=4)
    world = World()
    async with agent.open_session(deps=world, speculate=speculate) as session:
        try:
            result = await agent.run("Go.", session=session)
        except Exception as error:
            result = (type(error), str(error))
        seconds = anyio.current_time() - world.began
    assert world.running == 0
    return result, world.effects, seconds


async def same_both_ways(model):
    """Run a model without and with speculation; both must come to the same."""
    off, effects_off, seconds_off = await outcome(model, speculate=False)
    on, effects_on, seconds_on = await outcome(model, speculate=True)
    assert on == off
    assert effects_on == effects_off
    assert seconds_on <= seconds_off
    return on, effects_on


def answering(*responses, **options):
    return ScriptedModel(responses, delay=1.0, seconds_per_delta=0.25, **options)


def told(result):
    return [m.content for m in result.messages if m.role == "tool"]


# Callers


def test_two_tools_of_one_name_are_refused_at_once():
    again = tool(name="look")(lambda: None)
    for refuse in (Agent, lambda _, tools: Session(tools)):
        with pytest.raises(UsageError, match="look"):
            refuse(ScriptedModel([]), [look, again])


def test_what_is_no_tool_is_refused_at_once():
    def plain(row: int) -> str:
        return str(row)

    with pytest.raises(UsageError, match="@tool"):
        Agent(ScriptedModel([]), [plain])


@pytest.mark.parametrize("effect", ["harmless", "", None, 7])
def test_an_unknown_effect_is_refused_at_once(effect):
    with pytest.raises(ToolDefinitionError) as caught:
        tool(name="zap", effect=effect)(lambda: None)
    assert caught.value.tool == "zap"


def bad_signatures():
    def untyped(row):
        return row

    def listing(*rows: int):
        return rows

    def anything(**rows: int):
        return rows

    def unknown(row: "Unheard"):  # noqa: F821
        return row

    def no_schema(row: World):
        return row

    def late(row: int, ctx: ToolContext):
        return row

    return [untyped, listing, anything, unknown, no_schema, late]


@pytest.mark.parametrize("function", bad_signatures())
def test_a_signature_that_has_no_schema_is_refused_at_once(function):
    with pytest.raises(ToolDefinitionError) as caught:
        tool(function)
    assert caught.value.tool == function.__name__


@pytest.mark.parametrize(
    "messages",
    [
        [],
        None,
        7,
        ["Go."],
        [None],
        [{}],
        [{"role": "user", "content": 7}],
        [{"role": "boss", "content": "Go."}],
        [{"role": ["user"], "content": "Go."}],
        {"role": "user", "content": "Go."},
        [{"role": "assistant", "tool_calls": [{"id": "a"}]}],
        [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": 7}}]}],
        [{"role": "assistant", "tool_calls": 7}],
    ],
    ids=str,
)
async def test_what_is_no_conversation_is_refused(messages):
    with pytest.raises(UsageError):
        await Agent(ScriptedModel(["Done."])).run(messages)


async def test_a_call_before_any_response_is_refused():
    async with Session([look]) as session:
        with pytest.raises(UsageError):
            await session.call(ToolCall("a", "look", '{"row": 7}'))


async def test_a_session_is_entered_once():
    session = Session([look])
    async with session:
        with pytest.raises(UsageError):
            await session.__aenter__()


# Models


MALFORMED = {
    "not json": "row 7",
    "not complete": '{"row": 7',
    "a list": "[7]",
    "a number": "7",
    "null": "null",
    "missing": "{}",
    "empty": "",
    "wrong type": '{"row": "seven"}',
    "not finite": '{"row": NaN}',
    "twice": '{"row": 7}{"row": 8}',
    "trailing": '{"row": 7} and so on',
    "huge": '{"row": ' + "9" * 5000 + "}",
    "deep": '{"row": ' + "[" * 3000 + "]" * 3000 + "}",
    "surrogate": '{"row": "\\ud800"}',
}


@pytest.mark.requirement("engine:same-transcript")
@pytest.mark.parametrize("kind", MALFORMED)
@pytest.mark.parametrize("name", ["look", "change"])
async def test_malformed_arguments_are_answered_and_not_run(name, kind):
    model = answering([(name, MALFORMED[kind])], "Sorry.", characters_per_delta=6000)
    result, effects = await same_both_ways(model)
    assert name in told(result)[0]
    assert "invalid" in told(result)[0]
    assert result.text == "Sorry."
    assert effects == []


@pytest.mark.requirement("engine:same-transcript")
async def test_lax_json_that_fits_is_run_the_same():
    for arguments in (' {"row" : 7.0 }\n', '{"row": "7"}', '{"row": 7, "debug_x": 1}'):
        model = answering([("look", arguments)], "Done.")
        result, _ = await same_both_ways(model)
        assert told(result) == ["row 7 is fine"]


@pytest.mark.requirement("engine:same-transcript")
async def test_a_key_that_is_there_twice_means_the_same_with_and_without_speculation():
    model = answering([("look", '{"row": 8, "row": 7}')], "Done.")
    result, _ = await same_both_ways(model)
    assert told(result) == ["row 7 is fine"]


@pytest.mark.requirement("engine:same-transcript")
async def test_an_unknown_tool_is_answered_with_those_that_there_are():
    model = answering([("loook", {"row": 7}), ("look", {"row": 7})], "Sorry.")
    result, _ = await same_both_ways(model)
    unknown, known = told(result)
    assert "'loook'" in unknown
    assert "look, change" in unknown
    assert known == "row 7 is fine"


async def test_an_unknown_tool_where_there_is_none_is_answered():
    model = answering([("look", {"row": 7})], "Sorry.")
    result, _, _ = await outcome(model, speculate=True, tools=())
    assert "no tool 'look'" in told(result)[0]


@pytest.mark.requirement("engine:same-transcript")
async def test_calls_that_share_an_identifier_are_all_answered():
    call = ToolCall("same", "look", '{"row": 7}')
    other = ToolCall("same", "look", '{"row": 8}')
    model = answering(ModelResponse(tool_calls=(call, other, call)), "Done.")
    result, _ = await same_both_ways(model)
    assert told(result) == ["row 7 is fine", "row 8 is fine", "row 7 is fine"]


@pytest.mark.requirement("engine:same-transcript")
async def test_an_empty_answer_is_an_answer():
    result, _ = await same_both_ways(answering(""))
    assert result.text == ""


@pytest.mark.requirement("engine:same-transcript")
@pytest.mark.parametrize("status", [None, 400, 429, 500])
@pytest.mark.parametrize("turn", [0, 1])
async def test_a_model_that_fails_is_one_clear_error_and_runs_nothing_more(
    turn, status
):
    error = ModelError("The endpoint gave no choices.", status=status)
    responses = [[("change", {"row": 7})]][:turn]
    model = answering(*responses, Fault(error=error))
    raised, effects = await same_both_ways(model)
    assert raised == (ModelError, str(error))
    assert effects == ["7=new"] * turn


@pytest.mark.requirement("engine:same-transcript")
@pytest.mark.requirement("engine:invisible")
@pytest.mark.parametrize("after", range(1, 10))
async def test_no_call_of_a_stream_that_broke_off_has_an_effect(after):
    complete = [("change", {"row": 7}), ("look", {"row": 7})]
    model = answering(Fault(response=complete, after=after))
    raised, effects = await same_both_ways(model)
    assert raised[0] is ModelError
    assert effects == []


async def test_a_write_that_started_in_a_stream_that_broke_off_is_denied():
    call = CallDelta(index=0, id="a", name="change", arguments='{"row": 7}')
    barriers = []

    class Breaks:
        async def respond(self, request, on_delta):
            on_delta(TextDelta("Well, "))
            on_delta(call)
            await anyio.sleep(5.0)
            raise ModelError("The connection was reset.")

    @tool(name="change", effect="gated")
    async def watched(ctx: ToolContext[World], row: int) -> str:
        barriers.append(ctx.barrier)
        await ctx.barrier.wait()
        ctx.deps.effects.append(row)
        return "changed"

    log, world = EventLog(), World()
    agent = Agent(Breaks(), [watched])
    async with agent.open_session(deps=world, sink=log) as session:
        with pytest.raises(ModelError):
            await agent.run("Go.", session=session)
        (barrier,) = barriers
        assert barrier.reason == "the response broke off"
    assert world.effects == []


@pytest.mark.requirement("engine:same-transcript")
async def test_a_session_can_ask_again_after_a_stream_that_broke_off():
    faults = iter([Fault(response=[("change", {"row": 7})], after=9)] * 2)
    model = ScriptedModel(
        lambda r: (
            next(faults, [("look", {"row": 7})])
            if r.history[-1].role == "user"
            else "Done."
        ),
        delay=1.0,
    )
    world = World()
    agent = Agent(model, [look, change], predictors=[Guesses()])
    async with agent.open_session(deps=world) as session:
        for _ in range(2):
            with pytest.raises(ModelError):
                await agent.run("Go.", session=session)
        result = await agent.run("Go.", session=session)
    assert told(result) == ["row 7 is fine"]
    assert world.effects == []


@pytest.mark.requirement("engine:contained")
@pytest.mark.parametrize(
    "delta",
    [
        CallDelta(index=-1, id="a", name="look", arguments='{"row": 7}'),
        CallDelta(index=99, id="a", name="look", arguments='{"row": 7}'),
        CallDelta(index=0, id="a", name="unheard_of", arguments='{"row": 7}'),
        CallDelta(index=0, id="a", name="look", arguments="}}{{"),
        CallDelta(index=0, id="a", name="look", arguments='{"row": "\ud800"}'),
    ],
    ids=repr,
)
async def test_deltas_that_make_no_sense_change_nothing(delta):
    class Rambles:
        async def respond(self, request, on_delta):
            on_delta(delta)
            await anyio.sleep(1.0)
            return ModelResponse(text="Done.")

    result, effects = await same_both_ways(Rambles())
    assert result.text == "Done."
    assert effects == []


@pytest.mark.requirement("engine:same-transcript")
async def test_a_result_that_a_model_client_refuses_is_the_same_error():
    def respond(request):
        last = request.history[-1]
        if last.role == "user":
            return [("change", {"row": 7})]
        return Fault(error=ModelError(f"I cannot read {json.dumps(last.content)}."))

    raised, effects = await same_both_ways(ScriptedModel(respond, delay=1.0))
    assert raised == (ModelError, 'I cannot read "changed".')
    assert effects == ["7=new"]


def test_a_request_takes_messages_and_nothing_else():
    with pytest.raises(UsageError):
        ModelRequest([Message(role="user", content="Go."), "and go on"])
