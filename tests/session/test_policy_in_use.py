"""What is worth launching: limits, learned hit rates, and who has too much to do."""

import anyio
import pytest

from headstart import (
    Agent,
    Experience,
    LimitPolicy,
    ModelError,
    ModelRequest,
    ValuePolicy,
    tool,
)
from headstart._events import (
    CallLaunched,
    CallRefused,
    SpeculationDiscarded,
    TurnStarted,
)
from headstart.testing import Fault, ScriptedModel

from .scene import Expects, play, play_both, read, talk, write

LOOK_7 = ("look", {"row": 7})
CHANGE_7 = ("change", {"row": 7})


def chat(agent, times):
    return talk(agent, ["Go."] * times)


@pytest.mark.requirement("engine:authority")
async def test_a_gated_call_prepares_itself_while_it_is_decided_about():
    async def approve(call, deps):
        await anyio.sleep(3.0)
        return True

    agent = Agent(
        ScriptedModel([[CHANGE_7], "Done."], delay=1.0, stream=False),
        [write(approval=True)],
        approve=approve,
    )
    off, on = await play_both(agent)
    # Off: decided from 1 to 4, prepared to 5, done at 6. On: prepared meanwhile.
    assert off.seconds == 7.0
    assert on.seconds == 6.0
    assert [at for at, _ in on.world.effects] == [5.0]


@pytest.mark.requirement("engine:authority")
async def test_a_gated_call_that_prepared_itself_and_is_refused_does_nothing():
    async def approve(call, deps):
        return False

    agent = Agent(
        ScriptedModel([[CHANGE_7], "Done."], delay=1.0, stream=False),
        [write(approval=True)],
        approve=approve,
    )
    _, on = await play_both(agent)
    assert on.world.effects == []


async def test_predictions_that_are_never_right_are_shut_off_and_tried_now_and_then():
    agent = Agent(
        ScriptedModel(lambda _: "No need.", delay=1.0),
        [read(max_age=0.5)],
        predictors=[Expects(LOOK_7, probability=0.5)],
        policy=ValuePolicy(probe_every=10),
    )
    arm = await chat(agent, 60)
    launches = [event for event in arm.log.events if isinstance(event, CallLaunched)]
    refused = [event for event in arm.log.events if isinstance(event, CallRefused)]
    assert 5 < len(launches) < 20
    assert {event.reason for event in refused} <= {
        "improbable",
        "seldom right",
        "not worth it",
    }
    assert launches[-1].at_s > refused[0].at_s  # a probe


async def test_predictions_that_are_improbable_as_stated_are_never_launched():
    agent = Agent(
        ScriptedModel(lambda _: "No need.", delay=1.0),
        [read(max_age=0.5)],
        predictors=[
            Expects(LOOK_7, probability=0.5),
            Expects(("look", {"row": 8}), probability=0.1),
        ],
        policy=ValuePolicy(probe_every=10),
    )
    arm = await chat(agent, 60)
    assert {started for _, started in arm.world.starts} == {"look 7"}
    assert 5 < len(arm.of(CallLaunched)) < 20  # and bring no probe nearer


async def test_what_an_agent_learns_in_one_session_counts_in_the_next():
    model = ScriptedModel(lambda _: "No need.", delay=1.0)
    agent = Agent(model, [read()], predictors=[Expects(LOOK_7, probability=0.5)])
    launched = [len((await play(agent)).of(CallLaunched)) for _ in range(8)]
    assert launched[0] == 1
    assert launched[-1] == 0


def test_what_was_learned_fades():
    experience = Experience(half_life=1.0)
    for _ in range(20):
        experience.note_outcome("look", "rule", hit=False, stated=0.5)
    assert experience.record("look", "rule").misses == pytest.approx(2.0, abs=1e-4)
    experience.note_outcome("look", "rule", hit=True, stated=0.5)
    record = experience.record("look", "rule")
    assert (record.hits, record.misses) == (1.0, pytest.approx(1.0, abs=1e-4))
    assert record.calibrated(0.5, weight=0) == pytest.approx(0.5, abs=1e-4)


async def test_a_long_tool_is_not_launched_on_a_small_chance_to_hide_a_short_model():
    agent = Agent(
        ScriptedModel(lambda _: "No need.", delay=0.5),
        [read(seconds=8.0)],
        predictors=[Expects(LOOK_7, probability=0.4)],
    )
    agent._experience.note_seconds("look", 8.0)
    agent._experience.note_seconds("", 0.5)
    arm = await play(agent)
    assert arm.of(CallLaunched) == []
    assert [event.reason for event in arm.of(CallRefused)] == ["not worth it"]


class BusyError(Exception):
    status_code = 503


async def test_a_tool_whose_provider_has_too_much_to_do_is_not_launched_for_a_while():
    @tool(effect="read", name="look")
    async def look(row: int) -> str:
        raise BusyError

    agent = Agent(
        ScriptedModel(lambda _: "No need.", delay=1.0),
        [look],
        predictors=[Expects(LOOK_7)],
        policy=LimitPolicy(),
    )
    arm = await talk(agent, ["Go."] * 4, pause=12.0)
    # Launched at 0 and refused at 13 and 26; 39 is more than 30 s later.
    assert [round(event.at_s) for event in arm.of(CallLaunched)] == [0, 39]


async def test_no_request_is_sent_ahead_after_the_model_was_overloaded():
    overloaded = Fault(error=ModelError("busy", status=429))
    failed = []

    def answer(request):
        last = request.history[-1]
        if last.role == "tool" and not failed:
            failed.append(request)
            return overloaded
        return "Done." if last.role == "tool" else [CHANGE_7]

    agent = Agent(
        ScriptedModel(answer, delay=1.0),
        [write(early="{row} is {to}", takes=3.0)],
    )
    arm = await talk(agent, ["Go.", "Go."])
    ahead = [event for event in arm.of(TurnStarted) if event.speculative]
    assert len(ahead) == 1  # the one that met the 429; it was sent again for real
    assert arm.result.text == "Done."


async def test_predictors_are_asked_again_when_the_model_has_ended_a_sentence():
    class Listens:
        async def predict(self, conversation):
            heard.append(conversation.partial)
            return []

    heard = []
    agent = Agent(
        ScriptedModel(
            ["One. Two. Three."],
            delay=1.0,
            seconds_per_delta=0.5,
            characters_per_delta=4,
        ),
        [read()],
        predictors=[Listens()],
    )
    await play(agent)
    assert heard[:3] == ["", "One.", "One. Two. Th"]


async def test_idle_asks_the_predictors_again():
    class Counts:
        asked = 0

        async def predict(self, conversation):
            self.asked += 1
            return []

    counts, model = Counts(), ScriptedModel(["Done."])
    agent = Agent(model, [read()], predictors=[counts])
    async with agent.open_session() as session:
        request = ModelRequest([{"role": "user", "content": "Go."}], session.tools)
        await session.ask(request, model.respond)
        await anyio.wait_all_tasks_blocked()
        before = counts.asked
        session.idle()
        await anyio.wait_all_tasks_blocked()
    assert counts.asked == before + 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_tool_that_is_cancelled_by_its_own_doing_fails(anyio_backend):
    import asyncio

    @tool(effect="read", name="look")
    async def look(row: int) -> str:
        answer = asyncio.get_running_loop().create_future()
        answer.cancel()
        return await answer

    agent = Agent(
        ScriptedModel([[LOOK_7], "Done."], delay=1.0, stream=False),
        [look],
        predictors=[Expects(LOOK_7)],
    )
    _, on = await play_both(agent)
    assert "cancellation of its own" in on.answers[0]


async def test_a_read_that_has_become_too_old_is_launched_again():
    agent = Agent(
        ScriptedModel(lambda _: "No need.", delay=1.0),
        [read(max_age=10.0)],
        predictors=[Expects(LOOK_7)],
    )
    arm = await talk(agent, ["Go."] * 4, pause=5.0)
    assert [event.at_s for event in arm.of(CallLaunched)] == [0.0, 12.0]


@pytest.mark.requirement("policy:never-over-budget")
@pytest.mark.parametrize("guesses", [1, 2, 7, 20])
async def test_guesses_end_when_they_have_wasted_what_they_may(guesses):
    rows = [("look", {"row": row}) for row in range(1, guesses + 1)]
    agent = Agent(
        ScriptedModel(["Done."], delay=100.0),
        [read(seconds=90.0)],
        predictors=[Expects(*rows[:2]), Expects(*rows[2:], delay=1.0)],
        policy=LimitPolicy(
            max_wasted_s=20.0, max_in_flight=99, max_in_flight_of_tool=99
        ),
    )
    arm = await play(agent)
    ended = arm.of(SpeculationDiscarded)
    assert len(ended) == guesses
    assert {event.reason for event in ended} == {"seconds wasted"}
    assert 20.0 - 0.01 <= sum(event.wasted_s for event in ended) <= 20.0


@pytest.mark.requirement("policy:never-over-budget")
async def test_what_was_asked_for_is_no_waste_and_runs_on():
    agent = Agent(
        ScriptedModel([[LOOK_7], "Done."], delay=5.0),
        [read(seconds=60.0)],
        predictors=[Expects(LOOK_7)],
        policy=LimitPolicy(max_wasted_s=10.0),
    )
    off, on = await play_both(agent)
    assert on.seconds == off.seconds - 5.0


@pytest.mark.requirement("policy:never-over-budget")
async def test_no_guess_is_started_that_would_be_ended_at_once():
    class Insists(Expects):
        async def predict(self, conversation):
            return self.predictions

    agent = Agent(
        ScriptedModel(lambda request: "No need.", delay=30.0),
        [read(seconds=25.0, max_age=0.5)],
        predictors=[Insists(LOOK_7)],
        policy=LimitPolicy(max_wasted_s=10.0),
    )
    arm = await chat(agent, 5)
    assert len(arm.of(CallLaunched)) == 1
    assert {event.reason for event in arm.of(CallRefused)} == {"seconds wasted"}
