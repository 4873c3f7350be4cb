"""Off and on are compared under drawn interleavings, and what differs is told."""

import anyio
import pytest

from headstart import (
    Effect,
    ToolContext,
    UsageError,
    current_context,
    tool,
)
from headstart.effects import hold
from headstart.testing import SpeculationDiffersError, SpeculationLab
from headstart.testing._lab import _altered, _Drawn

rows = {}
log = []


def reset():
    rows.clear()
    rows.update({7: "open", 8: "open"})
    log.clear()


def seen_rows():
    return rows


def seen_log():
    return log


@tool(effect=Effect.READ, reads=["row:{row}"])
async def look(row: int) -> str:
    state = rows.get(row, "missing")
    await anyio.sleep(0.25)
    return f"{row} is {state}"


@tool(effect=Effect.GATED, reads=["row:{row}"], writes=["row:{row}"])
async def change(ctx: ToolContext, row: int, to: str) -> str:
    ctx.early_result(f"{row} is {to}")
    await ctx.barrier.wait()
    rows[row] = to
    log.append((row, to))
    return f"{row} is {to}"


SCRIPT = [
    [("look", {"row": 7}), ("look", {"row": 8})],
    [("change", {"row": 7, "to": "paused"})],
    [("look", {"row": 7})],
    [("change", {"row": 8, "to": "closed"}), ("change", {"row": 7, "to": "closed"})],
    "All is closed.",
]


def lab(*tools, script=SCRIPT, **options):
    return SpeculationLab(
        tools=tools,
        script=script,
        observe=[seen_rows, seen_log],
        reset=reset,
        **options,
    )


def differing(made, seeds=100):
    with pytest.raises(SpeculationDiffersError) as caught:
        made.run(seeds)
    return caught.value


def test_tools_that_keep_to_their_effects_are_the_same_off_and_on():
    report = lab(look, change).run(60)
    assert report.seeds == 60
    assert report.adopted > 60
    assert report.discarded > 60
    assert report.turns_ahead > 30
    assert len(report.effect) == 5
    assert str(report).startswith("60 seeds: same transcript and same effects.")


def test_a_tool_that_changes_something_before_its_barrier_is_found_by_its_effects():
    @tool(name="change", effect=Effect.GATED, writes=["row:{row}"])
    async def changes_early(ctx: ToolContext, row: int, to: str) -> str:
        log.append((row, to))
        await ctx.barrier.wait()
        rows[row] = to
        return f"{row} is {to}"

    error = differing(lab(look, changes_early))
    assert error.what == "effects"
    assert "seen_log" in error.differences[0]
    assert f"run(seeds=[{error.seed}])" in str(error)


def test_a_seed_repeats_what_it_found():
    @tool(name="look", effect=Effect.READ, reads=["another:{row}"])
    async def reads_what_it_does_not_say(row: int) -> str:
        return f"{row} is {rows.get(row)}"

    made = lab(reads_what_it_does_not_say, change)
    first = differing(made)
    assert first.what == "transcript"
    assert "message" in first.differences[0]
    again = differing(lab(reads_what_it_does_not_say, change), [first.seed])
    assert again.differences == first.differences


def test_a_read_that_leaves_something_behind_is_found():
    @tool(name="look", effect=Effect.READ, reads=["row:{row}"])
    async def looks_and_logs(row: int) -> str:
        log.append(("looked", row))
        return f"{row} is {rows.get(row)}"

    assert differing(lab(looks_and_logs, change)).what == "effects"


def test_a_tool_that_says_something_else_when_it_is_launched_is_found():
    @tool(name="look", effect=Effect.READ, reads=["row:{row}"])
    async def tells(row: int) -> str:
        context = current_context()
        return "guessed" if context.speculative else "asked"

    assert differing(lab(tells, change)).what == "transcript"


def test_effects_held_by_a_seam_are_the_same():
    @tool(name="change", effect=Effect.GATED, writes=["row:{row}"])
    async def changes(row: int, to: str) -> str:
        async with hold("a change"):
            rows[row] = to
            log.append((row, to))
        return f"{row} is {to}"

    assert lab(look, changes, wrong=[("change", {"row": 9, "to": "x"})]).run(40).adopted


@pytest.mark.real_time
def test_sync_tools_run_in_the_lab():
    @tool(name="look", effect=Effect.READ, reads=["row:{row}"])
    def looks(row: int) -> str:
        return f"{row} is {rows.get(row)}"

    assert lab(looks, change).run(15).launches > 15


def test_a_script_that_looks_at_the_conversation_is_followed():
    def answer(request):
        last = request.history[-1].content
        if last == "Go on.":
            return [("look", {"row": 7})]
        if last.endswith("open"):
            return [("change", {"row": 7, "to": "paused"})]
        return f"I see: {last}."

    assert lab(look, change, script=answer).run(30).launches > 30


def test_a_run_that_does_not_repeat_itself_is_refused():
    count = []

    @tool(name="look", effect=Effect.READ)
    async def counts(row: int) -> str:
        count.append(row)
        return f"{len(count)} looks"

    with pytest.raises(UsageError, match="Without speculation, two runs differ"):
        lab(counts, change).run(5)


def test_calls_of_one_turn_that_race_without_speculation_are_no_fault_of_it():
    @tool(name="look", effect=Effect.READ)
    async def looks(row: int) -> str:
        return f"{row} is {rows.get(row)}"

    script = [
        [("look", {"row": 7}), ("change", {"row": 7, "to": "paused"})],
        "It is done.",
    ]
    with pytest.raises(UsageError, match="which of its own turn ends first"):
        lab(looks, change, script=script).run(50)


def test_a_lab_without_a_reset_is_refused_where_something_changes():
    reset()
    made = SpeculationLab(tools=[look, change], script=SCRIPT, observe=seen_rows)
    with pytest.raises(UsageError, match="pass reset="):
        made.run(5)
    reading = [[("look", {"row": 7})], "It is open."]
    reset()
    made = SpeculationLab(tools=[look], script=reading, observe=seen_rows)
    assert made.run(10).effect == ()


async def test_in_an_async_test_seeds_are_awaited():
    made = lab(look, change)
    with pytest.raises(UsageError, match="await check_all"):
        made.run(5)
    assert (await made.check_all(range(10))).seeds == 10


async def test_what_a_reset_returns_is_what_the_tools_receive():
    made = []

    async def make():
        made.append([])
        return made[-1]

    @tool(effect=Effect.GATED)
    async def post(ctx: ToolContext[list], text: str) -> str:
        await ctx.barrier.wait()
        ctx.deps.append(text)
        return "posted"

    approved = []

    async def approve(call, deps):
        approved.append(call.name)
        return True

    report = await SpeculationLab(
        tools=[post],
        script=[[("post", {"text": "hi"})], "Done."],
        observe=lambda: made[-1] if made else [],
        reset=make,
        approve=approve,
    ).check_all(range(8))
    assert [change.after for change in report.effect] == ["hi"]
    assert len(made) == 2 * 8 + 1
    assert all(len(posts) == 1 for posts in made)


def test_other_arguments_are_of_the_same_types():
    rng = _Drawn(0, 1.0).pick("test")
    assert _altered('{"a": 1}', rng) in ('{"a": 2}', '{"a": 0}')
    assert _altered('{"a": true}', rng) == '{"a": false}'
    assert _altered('{"a": "b"}', rng) in ('{"a": "b?"}', '{"a": "b and more"}')
    assert _altered('{"a": null}', rng) == '{"a": null}'
    assert _altered("{}", rng) == "{}"
    assert _altered("{", rng) == "{"


def test_a_run_that_waits_for_ever_says_that_virtual_time_waits_for_nothing_real():
    @tool(name="look", effect=Effect.READ)
    async def waits(row: int) -> str:
        await anyio.sleep_forever()

    with pytest.raises(UsageError, match="await check_all"):
        lab(waits, change).run(1)
