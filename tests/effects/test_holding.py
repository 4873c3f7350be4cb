"""What a seam does with an effect, by what is known of the call it belongs to."""

import anyio
import pytest

from headstart import (
    Agent,
    Effect,
    Tool,
    ToolCallSpeculator,
    ToolContext,
    UsageError,
    WriteBarrier,
    WriteDenied,
    current_context,
    tool,
)
from headstart.effects import Seam, SeamCounts, hold, hold_blocking
from headstart.predictors import RulePredictor, rule
from headstart.testing import ScriptedModel


def tool_of(function, **options):
    return Tool(function, name="post", effect=Effect.GATED, **options)


def posting(seam, effects, before=0.0):
    async def post() -> str:
        await anyio.sleep(before)
        async with seam.hold("a post"):
            effects.append(anyio.current_time())
        return "posted"

    return tool_of(post)


async def test_an_effect_outside_of_any_call_happens_at_once():
    effects = []
    async with hold("a post"):
        effects.append("posted")
    with hold_blocking("a post"):
        effects.append("posted")
    assert effects == ["posted", "posted"]


async def test_an_effect_of_a_call_that_is_not_confirmed_waits_for_the_verdict():
    seam, effects = Seam("posts"), []
    start = anyio.current_time()
    async with ToolCallSpeculator(posting(seam, effects), "{}") as guess:
        await anyio.sleep(2.0)
        assert effects == []
        assert seam.counts == SeamCounts(held=1, holding=1)
        assert await guess.adopt() == "posted"
    assert effects == [start + 2.0]
    assert seam.counts == SeamCounts(held=1, flushed=1)


async def test_an_effect_of_a_call_that_is_discarded_never_happens():
    seam, effects = Seam("posts"), []
    async with ToolCallSpeculator(posting(seam, effects), "{}"):
        await anyio.sleep(2.0)
    assert effects == []
    assert seam.counts == SeamCounts(held=1, denied=1)


async def test_an_effect_of_a_confirmed_call_is_not_held():
    seam, effects = Seam("posts"), []
    start = anyio.current_time()
    async with ToolCallSpeculator(posting(seam, effects, 1.0), "{}") as guess:
        await guess.adopt()
    assert effects == [start + 1.0]
    assert seam.counts == SeamCounts()


async def test_cancelling_a_call_that_is_held_leaves_no_effect_and_nobody_waiting():
    seam, effects = Seam("posts"), []
    with anyio.move_on_after(1.0):
        async with ToolCallSpeculator(posting(seam, effects), "{}") as guess:
            await guess.wait()
    assert effects == []
    assert seam.counts.holding == 0
    assert seam.counts.held == 1


async def test_a_call_that_is_held_too_long_is_given_up_and_not_adopted():
    seam, effects = Seam("posts", max_hold=3.0), []
    async with ToolCallSpeculator(posting(seam, effects), "{}") as guess:
        await anyio.sleep(2.5)
        assert guess.barrier.state.value == "held"
        await anyio.sleep(1.0)
        assert guess.barrier.state.value == "denied"
        assert "was held at the seam 'posts' for 3.0 s" in guess.barrier.reason
    assert effects == []
    assert seam.counts == SeamCounts(held=1, expired=1)


async def test_a_flush_at_the_very_moment_that_a_hold_ends_is_not_lost():
    seam, effects = Seam("posts", max_hold=3.0), []
    async with ToolCallSpeculator(posting(seam, effects), "{}") as guess:
        await anyio.wait_all_tasks_blocked()

        async def flush_at_the_end():
            await anyio.sleep_until(start + 3.0)
            return guess.barrier.flush()

        start = anyio.current_time()
        flushed = await flush_at_the_end()
        assert flushed is (guess.barrier.state.value == "flushed")
        await guess.wait_until_ended()
    assert len(effects) == flushed
    assert seam.counts.flushed == flushed
    assert seam.counts.expired == (not flushed)


async def test_a_tool_that_swallows_the_end_of_its_hold_is_not_adopted_without_its_effect():
    seam, effects = Seam("posts", max_hold=3.0), []

    async def post() -> str:
        try:
            async with seam.hold("a post"):
                effects.append("posted")
        except WriteDenied:
            pass
        return "posted"

    model = ScriptedModel([[("post", {})], "Done."], delay=5.0)
    expects = RulePredictor([rule("Go", "post")])
    agent = Agent(model, [tool_of(post)], predictors=[expects])
    result = await agent.run("Go.")
    assert result.text == "Done."
    assert effects == ["posted"]
    assert seam.counts.expired == 1


async def test_a_tool_whose_own_time_limit_ends_its_hold_is_not_adopted_without_its_effect():
    seam, effects = Seam("posts"), []

    async def post() -> str:
        with anyio.move_on_after(1.0):
            async with seam.hold("a post"):
                effects.append("posted")
            return "posted"
        return "The post office took too long."

    model = ScriptedModel([[("post", {})], "Done."], delay=5.0)
    expects = RulePredictor([rule("Go", "post")])
    agent = Agent(model, [tool_of(post)], predictors=[expects])
    result = await agent.run("Go.")
    assert result.messages[-2].content == "posted"
    assert effects == ["posted"]
    assert seam.counts == SeamCounts(held=1, cancelled=1)


async def test_a_confirmed_call_waits_for_its_conditions_as_long_as_they_take():
    seam, effects = Seam("posts", max_hold=3.0), []
    approval = WriteBarrier(name="approval")
    made = posting(seam, effects)
    async with ToolCallSpeculator(made, "{}", conditions=[approval]) as guess:
        guess.confirm()
        await anyio.sleep(10.0)
        assert effects == []
        approval.flush()
        assert await guess.wait() == "posted"
    assert len(effects) == 1
    assert seam.counts == SeamCounts(held=1, flushed=1)


async def test_a_condition_that_is_refused_denies_the_effect():
    seam, effects = Seam("posts"), []
    approval = WriteBarrier(name="approval")
    made = posting(seam, effects)
    async with ToolCallSpeculator(made, "{}", conditions=[approval]) as guess:
        guess.confirm()
        await anyio.wait_all_tasks_blocked()
        approval.deny("a person said no")
        with pytest.raises(WriteDenied) as caught:
            await guess.wait()
    assert caught.value.reason == "a person said no"
    assert effects == []
    assert seam.counts == SeamCounts(held=1, denied=1)


async def test_an_effect_that_cannot_be_held_gives_its_call_up():
    seam, effects = Seam("copies"), []

    async def post() -> str:
        seam.refuse("a COPY", "the driver gives no place to wait")
        effects.append("copied")
        return "copied"

    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        await guess.wait_until_ended()
        assert isinstance(guess.error, WriteDenied)
        assert guess.barrier.state.value == "denied"
        assert "a COPY could not be held" in guess.barrier.reason
    assert effects == []
    assert seam.counts == SeamCounts(refused=1)
    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        assert await guess.adopt() == "copied"
    await post()
    assert effects == ["copied", "copied"]
    assert seam.counts == SeamCounts(refused=1)


async def test_a_call_that_was_discarded_meets_a_refusal_everywhere():
    seam, effects = Seam("copies"), []

    async def post() -> str:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(5.0)
        for attempt in (seam.refuse, seam.wait_blocking):
            with pytest.raises(WriteDenied):
                attempt("a COPY") if attempt != seam.refuse else attempt("a COPY", "no")
        with anyio.CancelScope(shield=True), pytest.raises(WriteDenied):
            await seam.wait("a COPY")
        effects.append("none")
        return "copied"

    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        await anyio.sleep(1.0)
        guess.cancel()
        await guess.wait_until_ended()
    assert effects == ["none"]


async def test_what_cannot_be_held_says_so_where_only_a_condition_is_open():
    seam = Seam("copies")

    async def post() -> str:
        seam.refuse("a COPY", "the driver gives no place to wait")
        return "copied"

    approval = WriteBarrier(name="approval")
    made = tool_of(post)
    async with ToolCallSpeculator(made, "{}", conditions=[approval]) as guess:
        guess.confirm()
        with pytest.raises(UsageError, match="a condition of the call"):
            await guess.wait()
        approval.flush()


async def test_a_blocking_hold_in_an_event_loop_gives_its_call_up_instead_of_blocking():
    effects = []

    async def post() -> str:
        with hold_blocking("a post"):
            effects.append("posted")
        return "posted"

    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        await guess.wait_until_ended()
        assert isinstance(guess.error, WriteDenied)
        assert "block the event loop" in guess.barrier.reason
    assert effects == []


@pytest.mark.parametrize("max_hold", [0, -1.0, float("nan")])
def test_a_seam_that_could_never_hold_is_refused(max_hold):
    with pytest.raises(UsageError, match="max_hold"):
        Seam("posts", max_hold=max_hold)


async def test_a_read_that_writes_through_a_seam_does_not_write_before_it_is_confirmed():
    effects = []

    @tool(effect=Effect.READ)
    async def search(word: str) -> str:
        async with hold("a log entry"):
            effects.append(word)
        return "found"

    async with ToolCallSpeculator(search, '{"word": "a"}') as guess:
        await anyio.sleep(1.0)
        assert effects == []
        assert await guess.adopt() == "found"
    assert effects == ["a"]


async def test_a_tool_may_give_its_own_call_up_before_it_is_confirmed_and_not_after():
    answers = []

    async def post(ctx: ToolContext) -> str:
        answers.append((ctx.discard("it needs a lock"), ctx.discarded))
        return "posted"

    made = tool_of(post)
    async with ToolCallSpeculator(made, "{}") as guess:
        await guess.wait_until_ended()
        assert guess.barrier.reason == "it needs a lock"
    async with ToolCallSpeculator(made, "{}") as guess:
        assert await guess.adopt() == "posted"
    assert answers == [(True, True), (False, False)]


async def test_a_tool_may_give_its_call_up_under_a_condition_that_stays_open():
    given_up = []

    async def post() -> str:
        given_up.append(current_context().discard("it needs a lock"))
        return "posted"

    guardrail = WriteBarrier(name="guardrail")
    made = tool_of(post)
    async with ToolCallSpeculator(made, "{}", conditions=[guardrail]) as guess:
        await guess.wait_until_ended()
    assert given_up == [True]
    assert guardrail.state.value == "held"
    guardrail.flush()


async def test_a_real_call_cannot_give_itself_up():
    given_up = []

    @tool(effect=Effect.GATED)
    async def post(ctx: ToolContext) -> str:
        given_up.append((ctx.discard("no"), ctx.discarded))
        return "posted"

    result = await Agent(ScriptedModel([[("post", {})], "Done."]), [post]).run("Go.")
    assert result.text == "Done."
    assert given_up == [(False, False)]


async def test_a_seam_may_wait_at_a_barrier_that_opens_before_the_verdict():
    seam, turn = Seam("turns", max_hold=3.0), WriteBarrier(name="turn")
    passed = []

    async def post() -> str:
        await seam.wait("a turn", at=turn)
        passed.append(anyio.current_time() - start)
        return "posted"

    start = anyio.current_time()
    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        await anyio.sleep(1.0)
        turn.flush()
        await guess.wait_until_ended()
        assert guess.barrier.state.value == "held"
    assert passed == [1.0]
    assert seam.counts == SeamCounts(held=1, flushed=1)


async def test_waiting_too_long_at_another_barrier_gives_the_call_up():
    seam, turn = Seam("turns", max_hold=3.0), WriteBarrier(name="turn")

    async def post() -> str:
        await seam.wait("a turn", at=turn)
        return "posted"

    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        await guess.wait_until_ended()
        assert guess.barrier.state.value == "denied"
    assert turn.state.value == "held"
    turn.flush()
