"""A call is started as soon as its text is complete in the stream, and no sooner."""

import anyio
import pytest

from headstart import (
    Agent,
    CallDelta,
    Effect,
    Message,
    ModelRequest,
    ModelResponse,
    Session,
    Tool,
    ToolCall,
)
from headstart._events import CallLaunched, SpeculationAdopted, SpeculationDiscarded
from headstart.testing import ScriptedModel

from .scene import World, play, play_both, read, write

LOOK_7 = '{"row": 7}'  # ten characters: deltas of five seal it with the second


def streaming(*responses, pace=0.5, size=5):
    return ScriptedModel(
        responses, delay=1.0, seconds_per_delta=pace, characters_per_delta=size
    )


class Stream:
    """A model that gives out stated deltas at stated times, and then its answer."""

    def __init__(self, *timed, calls, lasts):
        self.timed, self.calls, self.lasts = timed, calls, lasts

    async def respond(self, request, on_delta):
        if request.history[-1].role == "tool":
            return ModelResponse(text="Done.")
        began = anyio.current_time()
        for at, delta in self.timed:
            await anyio.sleep(began + at - anyio.current_time())
            on_delta(delta)
        await anyio.sleep(began + self.lasts - anyio.current_time())
        return ModelResponse(tool_calls=self.calls)


def named(index=0, name="look"):
    return CallDelta(index=index, id=f"call_{index}", name=name)


def piece(text, index=0):
    return CallDelta(index=index, arguments=text)


async def test_a_read_starts_when_its_text_is_complete_and_the_stream_goes_on():
    model = streaming([("look", LOOK_7), ("look", '{"row": 8}')], "Done.")
    off, on = await play_both(Agent(model, [read(seconds=2.0)]))
    # Six deltas, one a half second: the first call is complete at 2.0, the last at 3.5.
    assert on.when(CallLaunched) == [2.0, 3.5]
    assert [call.cause for call in on.of(CallLaunched)] == ["sealed", "sealed"]
    assert off.seconds == 1.0 + 2.5 + 2.0 + 1.0
    assert on.seconds == off.seconds  # the last call decides, and it starts no earlier


async def test_the_time_between_the_end_of_a_call_and_of_the_stream_is_saved():
    model = streaming([("look", LOOK_7), ("glance", '{"row": 8}')], "Done.")
    agent = Agent(model, [read(seconds=2.0), read("glance", seconds=0.5)])
    off, on = await play_both(agent)
    assert off.seconds == 3.5 + 2.0 + 1.0
    assert on.seconds == 3.5 + 0.5 + 1.0  # `look` ran from 2.0 to 4.0
    assert on.summary.hidden_s == off.seconds - on.seconds
    assert on.summary.early_starts == 2


async def test_nothing_starts_before_the_outermost_object_is_closed():
    arguments = '{"row": {"a": "}", "b": ["{"]}}'
    model = ScriptedModel(
        [[("dig", arguments)], "Done."], seconds_per_delta=1.0, characters_per_delta=1
    )

    async def dig(row: dict) -> str:
        return str(sorted(row))

    agent = Agent(model, [Tool(dig, effect=Effect.READ, reads=["all"])])
    off, on = await play_both(agent)
    assert on.when(CallLaunched) == [float(len(arguments))]
    assert on.answers == off.answers == ["['a', 'b']"]


@pytest.mark.requirement("engine:default-deny")
@pytest.mark.parametrize(
    "text", ["", "{", '{"row": 7', '{"row": "}', '{"row": 7,}', "7"]
)
async def test_a_call_whose_text_is_not_complete_is_not_started(text):
    model = Stream(
        (0.5, named()), (1.0, piece(text)), calls=(), lasts=2.0
    )  # the response has no call: whatever had started would be a guess
    arm = await play(Agent(model, [read()]))
    assert arm.world.starts == []
    assert arm.of(CallLaunched) == []


@pytest.mark.requirement("engine:default-deny")
async def test_a_call_without_identifier_or_name_is_not_started():
    model = Stream(
        (0.5, piece(LOOK_7)),
        (1.0, CallDelta(index=1, name="look", arguments=LOOK_7)),
        (1.5, CallDelta(index=2, id="call_2", arguments=LOOK_7)),
        calls=(),
        lasts=2.0,
    )
    arm = await play(Agent(model, [read()]))
    assert arm.world.starts == []


@pytest.mark.requirement("engine:default-deny")
@pytest.mark.parametrize("effect", [Effect.UNSAFE, None])
async def test_a_tool_that_is_unsafe_or_undeclared_never_starts_early(effect):
    options = {} if effect is None else {"effect": effect}

    async def zap(row: int) -> str:
        return f"{row} is gone"

    model = streaming([("zap", LOOK_7), ("look", '{"row": 8}')], "Done.")
    agent = Agent(model, [Tool(zap, writes=["zapped"], **options), read()])
    _, on = await play_both(agent)
    assert [call.tool for call in on.of(CallLaunched)] == ["look"]


@pytest.mark.requirement("engine:invisible")
async def test_a_gated_call_is_prepared_in_the_stream_and_its_effect_waits_for_the_end():
    model = streaming([("change", LOOK_7), ("glance", '{"row": 8}')], "Done.")
    tools = [write(prepare=1.5, takes=1.0), read("glance", seconds=0.25)]
    off, on = await play_both(Agent(model, tools))
    assert on.world.starts[0] == (2.0, "change 7")
    assert on.world.effects == [(3.5 + 1.0, "change 7")]
    assert off.world.effects == [(3.5 + 2.5, "change 7")]
    assert on.seconds == off.seconds - 1.5 == off.seconds - on.summary.hidden_s


@pytest.mark.requirement("engine:invisible")
async def test_a_gated_call_that_the_model_withdraws_has_no_effect():
    model = Stream(
        (0.5, named(index=1, name="change")),
        (1.0, piece(LOOK_7, index=1)),
        calls=(ToolCall("call_0", "look", '{"row": 8}'),),
        lasts=4.0,
    )
    arm = await play(Agent(model, [write(), read()]))
    assert arm.world.starts == [(1.0, "change 7"), (4.0, "look 8")]
    assert arm.world.effects == []
    assert arm.when(SpeculationDiscarded) == [4.0]
    assert arm.seconds == 6.0


@pytest.mark.parametrize("tail", ['{"row": 9}', " and", "}"])
async def test_a_call_that_goes_on_after_it_was_complete_runs_as_the_model_means_it(
    tail,
):
    call = ToolCall("call_0", "look", LOOK_7 + tail)
    model = Stream(
        (0.5, named()),
        (1.0, piece(LOOK_7)),
        (1.5, piece(tail)),
        calls=(call,),
        lasts=2.0,
    )
    off, on = await play_both(Agent(model, [read()]))
    assert on.of(SpeculationAdopted) == []
    assert on.seconds == off.seconds == 2.0
    assert "invalid" in on.answers[0]


async def test_a_tool_whose_sealed_call_changed_is_not_started_early_again():
    session = Session([read()], deps=World())
    first = ToolCall("call_0", "look", '{"row": 9}')
    changing = Stream((0.5, named()), (1.0, piece(LOOK_7)), calls=(first,), lasts=2.0)
    steady = Stream(
        (0.5, named()),
        (1.0, piece(LOOK_7)),
        calls=(ToolCall("call_0", "look", LOOK_7),),
        lasts=2.0,
    )
    async with session:
        request = ModelRequest([Message(role="user", content="Go.")], session.tools)
        assert (await session.ask(request, changing.respond)).tool_calls == (first,)
        assert (await session.call(first)).content == "9 is new"
        began = session.deps.now
        response = await session.ask(request, steady.respond)
        assert (await session.call(response.tool_calls[0])).content == "7 is new"
        assert session.deps.now - began == 2.0 + 2.0


@pytest.mark.requirement("engine:same-effects")
@pytest.mark.parametrize("tools", [[read()], [write()]])
async def test_a_sealed_call_that_was_changed_runs_as_it_was_meant(tools):
    meant = ToolCall("call_0", tools[0].name, '{"row": 9}')
    model = Stream(
        (0.5, named(name=tools[0].name)),
        (1.0, piece(LOOK_7)),
        calls=(meant,),
        lasts=2.0,
    )
    _, on = await play_both(Agent(model, tools))
    assert [what for _, what in on.world.effects] == (
        [] if tools[0].name == "look" else ["change 9"]
    )


async def test_a_model_that_does_not_stream_starts_nothing_early():
    model = ScriptedModel([[("look", LOOK_7)], "Done."], delay=1.0, stream=False)
    off, on = await play_both(Agent(model, [read()]))
    assert on.seconds == off.seconds
    assert on.of(CallLaunched) == []


async def test_the_running_call_is_joined_and_not_started_again():
    model = streaming([("look", LOOK_7), ("glance", '{"row": 8}')], "Done.")
    agent = Agent(model, [read(seconds=2.0), read("glance", seconds=0.5)])
    on = await play(agent)
    assert on.world.starts == [(2.0, "look 7"), (3.5, "glance 8")]
    assert [adopted.ready for adopted in on.of(SpeculationAdopted)] == [False, False]


@pytest.mark.requirement("engine:invisible")
async def test_an_effect_sees_the_identifier_of_the_models_call():
    model = streaming([("change", LOOK_7), ("glance", '{"row": 8}')], "Done.")
    off, on = await play_both(Agent(model, [write(), read("glance")]))
    assert on.world.calls == off.world.calls == ["call_1_0"]
