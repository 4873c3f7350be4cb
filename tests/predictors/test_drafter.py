"""A drafter asks a fast model, within its limits, and learns how often that is right."""

from __future__ import annotations

import math

import anyio
import pytest

from headstart import (
    Agent,
    Effect,
    ModelError,
    ModelResponse,
    PredictorError,
    ToolCall,
    Usage,
    UsageError,
)
from headstart._events import CallPredicted, PredictorFailed
from headstart.predictors import Combination, Drafter
from headstart.testing import Fault, ScriptedModel

from .conversations import (
    answered,
    called,
    gave,
    look,
    make_tool,
    play_both,
    said,
    steps,
    talk,
)

GET = make_tool("get")
SET = make_tool("set", Effect.GATED)
TOOLS = (GET, SET)
ASKED = talk([said("Get it.")], TOOLS)


def scripted(*calls, **options):
    """A model that always makes these calls."""
    return ScriptedModel(lambda request: list(calls) or "Nothing to do.", **options)


def billed(input_tokens, output_tokens=0, *calls):
    """A model that always makes these calls, and is billed for so many tokens."""
    response = ModelResponse(
        tool_calls=called(*calls).tool_calls,
        usage=Usage(input_tokens=input_tokens, output_tokens=output_tokens),
    )
    return ScriptedModel(lambda request: response)


def figures(predictions):
    return [(each.tool, each.arguments_text) for each in predictions]


async def drafted(drafter, *messages, tools=TOOLS, deps=None):
    return await drafter.predict(talk(messages, tools, deps=deps))


async def test_the_calls_that_the_fast_model_makes_are_proposed():
    model = scripted(("get", {"a": 1}), ("set", '{"b":2}'))
    (first, second) = await Drafter(model, probability=0.4).predict(ASKED)
    assert figures([first, second]) == [("get", '{"a": 1}'), ("set", '{"b": 2}')]
    assert (first.probability, first.origin) == (0.4, "drafter")
    assert first.styled  # to be written as the agent's own model writes


async def test_the_model_is_sent_the_conversation_and_the_tools():
    model = scripted()
    drafter = Drafter(model, settings={"temperature": 0}, tools=["get"])
    assert await drafter.predict(ASKED) == []
    (request,) = model.requests
    assert request.history == ASKED.messages
    assert request.tools == (GET,)
    assert request.settings == {"temperature": 0}


async def test_a_prompt_is_put_first():
    model = scripted()
    await Drafter(model, prompt="Guess.").predict(ASKED)
    first, second = model.requests[0].history
    assert (first.role, first.content, second) == ("system", "Guess.", said("Get it."))


async def test_what_is_redacted_is_not_sent():
    model = scripted(("get", {}))

    def redact(messages):
        return [m for m in messages if "secret" not in m.content]

    drafter = Drafter(model, redact=redact)
    await drafted(drafter, said("secret"), said("Get it."))
    assert model.requests[0].history == (said("Get it."),)
    assert await drafted(drafter, said("secret")) == []
    assert len(model.requests) == 1


async def test_nothing_is_sent_when_redacting_fails():
    model = scripted(("get", {}))
    with pytest.raises(PredictorError) as raised:
        await Drafter(model, redact=lambda messages: 1 / 0).predict(ASKED)
    assert raised.value.reason == "redact"
    assert model.requests == []


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [answered("Hello.")],
        [said("Get it."), answered("Done.")],
        [said("Get it."), called(("get", {}), ("get", {}))],
        [said("Get it."), called(("get", {}), ("get", {})), gave(1, "x")],
    ],
)
async def test_nothing_is_sent_when_it_is_not_the_models_turn(messages):
    model = scripted(("get", {}))
    assert await drafted(Drafter(model), *messages) == []
    assert model.requests == []


async def test_it_is_the_models_turn_when_every_call_has_its_result():
    model = scripted(("get", {}))
    messages = [said("Get it."), called(("get", {}), ("get", {}))]
    assert (
        len(await drafted(Drafter(model), *messages, gave(1, "x"), gave(0, "y"))) == 1
    )


async def test_nothing_is_sent_without_tools():
    model = scripted()
    await drafted(Drafter(model), said("Get it."), tools=())
    await drafted(Drafter(model, tools=["other"]), said("Get it."))
    assert model.requests == []


async def test_the_same_conversation_is_sent_once():
    model = scripted(("get", {}))
    drafter = Drafter(model)
    first = await drafter.predict(ASKED)
    assert await drafter.predict(ASKED) == first
    assert len(model.requests) == drafter.requests == 1
    await drafted(drafter, *steps(("get", {}, "it")))
    assert len(model.requests) == 2


async def test_calls_that_are_none_are_left_out():
    calls = [("unknown", {}), ("get", "no JSON"), ("get", '{"n": NaN}'), ("set", " ")]
    assert figures(await Drafter(scripted(*calls)).predict(ASKED)) == [("set", "{}")]


async def test_no_more_than_eight_calls_are_looked_at():
    calls = [("get", {"n": n}) for n in range(100)]
    assert len(await Drafter(scripted(*calls)).predict(ASKED)) == 8


async def test_a_failing_model_is_a_predictor_error():
    error = ModelError("It is broken.", status=400)
    drafter = Drafter(ScriptedModel([Fault(error=error)]))
    with pytest.raises(PredictorError) as raised:
        await drafter.predict(ASKED)
    assert raised.value.reason == "model"
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("status", [429, 500, 529])
async def test_a_model_with_too_much_to_do_is_left_alone_for_a_while(status):
    error = ModelError("Too many requests.", status=status)
    model = ScriptedModel([Fault(error=error)])
    drafter = Drafter(model)
    with pytest.raises(PredictorError):
        await drafter.predict(ASKED)
    assert await drafted(drafter, said("Something else.")) == []
    await anyio.sleep(29)
    assert await drafted(drafter, said("Something else.")) == []
    assert (len(model.requests), drafter.tokens) == (1, 0)
    await anyio.sleep(1)
    with pytest.raises(PredictorError):
        await drafted(drafter, said("Something else."))
    assert len(model.requests) == 2


async def test_cancelling_ends_the_request_and_it_is_paid_for():
    model = scripted(("get", {}), delay=10.0)
    drafter = Drafter(model)
    for attempt in (1, 2, 3):  # what was not waited for is sent a second time at most
        with anyio.move_on_after(1.0) as scope:
            await drafter.predict(ASKED)
        assert scope.cancelled_caught == (attempt < 3)
    assert [record.outcome for record in model.records] == ["cancelled"] * 2
    assert drafter.tokens > 0
    assert drafter._reserved == 0


async def test_a_runs_tokens_are_limited():
    model = billed(100, 10)
    drafter = Drafter(model, max_tokens_a_run=1_000, max_output_tokens=50)
    for number in range(50):
        await drafted(drafter, *steps(("get", {"n": number}, "x" * number)))
    assert 500 < drafter.tokens <= 1_000
    sent = len(model.requests)
    await drafted(drafter, said("Another conversation."))
    await drafted(drafter, *steps(("get", {}, "x")), deps=TOOLS)  # and other deps
    assert len(model.requests) == sent + 2


async def test_a_conversation_that_begins_again_has_its_own_tokens():
    model = billed(400)
    drafter = Drafter(model, max_tokens_a_run=500, max_output_tokens=50)
    for number in range(5):
        conversation = talk([said("Hello.")], (*TOOLS, make_tool(f"tool {number}")))
        await drafter.predict(conversation)
        drafter.learn(conversation, ModelResponse(text="Hello."))
        await drafted(drafter, said("Hello."), answered("Hello."), said(f"{number}"))
    assert len(model.requests) == 5


async def test_tokens_in_all_are_limited():
    model = billed(100, 10)
    drafter = Drafter(model, max_tokens=1_000, max_output_tokens=50)
    for number in range(50):
        await drafted(drafter, said(f"Number {number}."))
    assert 500 < drafter.tokens <= 1_000
    assert drafter.tokens == 110 * len(model.requests)


async def test_money_is_limited():
    model = billed(100, 10)
    drafter = Drafter(
        model, max_usd=0.01, usd_per_token=(1e-6, 5e-6), max_output_tokens=50
    )
    for number in range(200):
        await drafted(drafter, said(f"Number {number}."))
    assert 0.009 < drafter.usd <= 0.01
    assert drafter.usd == pytest.approx(len(model.requests) * 150e-6)


async def test_requests_that_run_at_once_keep_the_limit_together():
    model = scripted(("get", {}), delay=1.0)
    drafter = Drafter(model, max_tokens=2_000, max_output_tokens=500)
    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(drafted, drafter, said(f"Number {number}."))
    assert 1 <= len(model.requests) <= 4


async def test_a_model_that_reports_no_usage_is_taken_to_need_what_is_estimated():
    drafter = Drafter(billed(0), max_output_tokens=50)
    await drafter.predict(ASKED)
    assert drafter.tokens > 50


async def test_a_conversation_of_ten_megabytes_is_not_sent():
    model = scripted(("get", {}))
    assert await drafted(Drafter(model), said("x" * 10_000_000)) == []
    assert model.requests == []


async def teach(drafter, outcomes, *, tool="get", begin=0):
    for number, right in enumerate(outcomes, begin):
        conversation = talk([said(f"Number {number}.")], TOOLS)
        assert len(await drafter.predict(conversation)) > 0
        arguments = '{ "a" : 1.0 }' if right else {"a": 2}
        response = ModelResponse(tool_calls=called((tool, arguments)).tool_calls)
        drafter.learn(conversation, response)


async def test_how_probable_its_calls_are_is_learned():
    drafter = Drafter(scripted(("get", {"a": 1})))
    await teach(drafter, [True] * 40)
    (prediction,) = await drafted(drafter, said("Another."))
    assert 0.9 < prediction.probability <= 0.98
    await teach(drafter, [False] * 400, begin=100)
    (prediction,) = await drafted(drafter, said("Still another."))
    assert 0.02 <= prediction.probability < 0.4


async def test_each_tool_has_its_own_chance():
    drafter = Drafter(scripted(("get", {"a": 1}), ("set", {"a": 1})))
    await teach(drafter, [True] * 30)
    get, write = await drafted(drafter, said("Another."))
    assert get.probability > 0.9
    assert write.probability < 0.1


async def test_an_answer_is_learned_from_once_and_only_where_there_was_a_draft():
    drafter = Drafter(scripted(("get", {"a": 1})))
    right = ModelResponse(tool_calls=(ToolCall("c", "get", '{"a": 1}'),))
    for _ in range(50):
        drafter.learn(ASKED, right)
        drafter.learn(talk([answered("Hello.")], TOOLS), right)
    (prediction,) = await drafter.predict(ASKED)
    assert prediction.probability == 0.5
    for _ in range(50):
        drafter.learn(ASKED, right)
    (prediction,) = await drafter.predict(ASKED)
    assert 0.5 < prediction.probability < 0.8


@pytest.mark.parametrize(
    "options",
    [
        {"max_usd": 1.0},
        {"max_tokens": -1},
        {"usd_per_token": -1.0},
        {"max_tokens_a_run": math.nan},
        {"probability": 1.5},
    ],
)
def test_options_that_can_never_work_are_refused(options):
    with pytest.raises(UsageError):
        Drafter(scripted(), **options)


def test_something_that_is_no_model_is_refused():
    with pytest.raises(UsageError):
        Drafter(object())


async def test_drafts_are_kept_within_bounds():
    drafter = Drafter(scripted(("get", {})))
    for number in range(300):
        await drafted(drafter, said(f"Number {number}."))
    assert len(drafter._drafts) <= 64


async def test_an_agent_hides_a_tool_behind_its_model_by_a_faster_ones_draft():
    seen = ("look", {"row": 7})
    drafter = Drafter(ScriptedModel([[seen], "Done."], delay=0.25))
    agent = Agent(
        ScriptedModel([[seen], "Done."], delay=1.0), [look], predictors=[drafter]
    )
    off, on, events = await play_both(agent)
    assert off == 4.0
    assert on == 0.25 + 2.0 + 1.0
    assert {e.origin for e in events if isinstance(e, CallPredicted)} == {"drafter"}


async def test_a_drafter_that_fails_or_hangs_changes_nothing():
    seen = ("look", {"row": 7})
    for fault in (Fault(hang=True), Fault(error=ModelError("No.", status=429))):
        agent = Agent(
            ScriptedModel([[seen], "Done."], delay=1.0),
            [look],
            predictors=[Drafter(ScriptedModel([fault, fault]))],
        )
        off, on, events = await play_both(agent)
        assert off == on
        failures = [e for e in events if isinstance(e, PredictorFailed)]
        assert [e.error for e in failures] == ([] if fault.hang else ["PredictorError"])


def test_it_says_what_it_has_used():
    assert repr(Drafter(scripted())) == "<Drafter 0 requests, 0 tokens>"


async def test_accounts_of_runs_are_kept_within_bounds():
    drafter = Drafter(scripted())
    for number in range(1_100):
        await drafted(drafter, said(f"Number {number}."))
    assert len(drafter._runs) <= 1_024


async def test_calls_of_tools_that_there_are_not_teach_nothing_wrong():
    drafter = Drafter(scripted(("get", {"a": 1})))
    for number in range(30):
        conversation = talk([said(f"Number {number}.")], TOOLS)
        await drafter.predict(conversation)
        calls = called(("unknown", {}), ("get", "no JSON"), ("get", {"a": 1}))
        drafter.learn(conversation, ModelResponse(tool_calls=calls.tool_calls))
    (prediction,) = await drafted(drafter, said("Another."))
    assert prediction.probability > 0.9


SENTENCES = ["I see. ", "Well. ", "Let me look. ", "One moment. "]


@pytest.mark.parametrize("voices", [False, True])
async def test_a_draft_is_not_cancelled_because_the_model_goes_on_talking(voices):
    seen = ("look", {"row": 7})
    fast = ScriptedModel([[seen], "Done."], delay=1.0)
    drafter = Drafter(fast)
    slow = ScriptedModel(
        [[*SENTENCES, seen], "Done."], seconds_per_delta=0.25, characters_per_delta=6
    )
    predictors = Combination([drafter]).voices() if voices else [drafter]
    _, _, events = await play_both(Agent(slow, [look], predictors=predictors))
    assert {e.origin for e in events if isinstance(e, CallPredicted)} == {"drafter"}
    assert fast.records[0].outcome == "answered"
    assert drafter.requests == 2
