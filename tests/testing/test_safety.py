"""Each kind of careless tool is caught, in its phase; each careful one is not."""

import asyncio
import pickle
import uuid

import anyio
import pytest
import trio

from headstart import Effect, Tool, ToolContext, UsageError, WriteDenied, tool
from headstart._threads import run_in_thread
from headstart.effects import Seam, hold, hold_blocking
from headstart.testing import UnsafeToolError, assert_speculation_safe


class World:
    """What the tools of these tests change, in two parts that are observed."""

    def __init__(self):
        self.posts = []
        self.count = 0

    def observed(self):
        return [self.seen_posts, self.seen_count]

    def seen_posts(self):
        return self.posts

    def seen_count(self):
        return {"value": self.count}

    def reset(self):
        self.posts.clear()
        self.count = 0


@pytest.fixture
def world():
    return World()


def gated(function):
    return Tool(function, name="post", effect=Effect.GATED)


async def check(world, made, **options):
    return await assert_speculation_safe(made, observe=world.observed(), **options)


async def refused(world, made, **options):
    with pytest.raises(UnsafeToolError) as caught:
        await check(world, made, **options)
    assert caught.value.tool == made.name
    assert caught.value.advice
    assert f"phase:  {caught.value.phase}" in str(caught.value)
    return caught.value


def careful(world):
    async def post(ctx: ToolContext) -> str:
        await anyio.sleep(1.0)
        await anyio.sleep(1.0)
        ctx.early_result("posted")
        await ctx.barrier.wait()
        await anyio.sleep(1.0)
        world.posts.append("hi")
        return "posted"

    return gated(post)


async def test_a_tool_that_waits_at_its_barrier_is_safe(world):
    safety = await check(world, careful(world))
    assert safety.held
    assert (safety.cancelled, safety.cancelled_after) == (3, 1)
    assert [change.observer for change in safety.effect] == ["seen_posts"]
    assert safety.notes == ()
    assert len(world.posts) == 4  # flushed, twice plain, and cancelled too late
    assert str(safety).startswith("'post' is safe: held, thrown away, cancelled at 3")


async def test_a_tool_whose_effect_stands_behind_a_seam_is_safe(world):
    async def post() -> str:
        await anyio.sleep(1.0)
        async with hold("a post"):
            world.posts.append("hi")
        return "posted"

    assert (await check(world, gated(post))).held


async def test_a_read_that_reads_is_safe(world):
    @tool(effect=Effect.READ)
    async def look() -> int:
        await anyio.sleep(1.0)
        return world.count

    safety = await check(world, look)
    assert not safety.held
    assert (safety.cancelled, safety.effect) == (1, ())


async def test_an_effect_before_the_barrier_is_seen_while_the_call_is_held(world):
    async def post(ctx: ToolContext) -> str:
        await anyio.sleep(1.0)
        world.posts.append("hi")
        await ctx.barrier.wait()
        return "posted"

    error = await refused(world, gated(post))
    assert error.phase == "held"
    assert error.observers == ("seen_posts",)
    assert [change.after for change in error.changes] == ["hi"]
    assert "    + 'hi'" in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.changes) == (str(error), error.changes)
    assert str(copy.changes[0]) == "+ 'hi'"


async def test_a_tool_that_never_waits_is_told_so(world):
    async def post() -> str:
        world.count += 1
        return "posted"

    error = await refused(world, gated(post))
    assert error.phase == "thrown away"
    assert error.observers == ("seen_count",)
    assert "never waited at its barrier, and changed something" in str(error)
    assert "~ value: 0 -> 1" in str(error)


async def test_a_file_written_too_early_is_named_by_its_line(world, tmp_path):
    async def post(ctx: ToolContext) -> str:
        await anyio.sleep(1.0)
        (tmp_path / "note.txt").write_text("hi")
        world.posts.append("hi")
        await ctx.barrier.wait()
        return "posted"

    error = await refused(world, gated(post))
    [finding] = error.findings
    line = post.__code__.co_firstlineno + 2
    assert (finding.event, finding.line) == ("open", line)
    assert f"{__file__}:{line} was {finding.what}" in str(error)
    assert pickle.loads(pickle.dumps(error)).findings == error.findings


@pytest.mark.real_time
async def test_a_connection_that_a_package_opens_is_named_by_the_tool_s_line(world):
    async def post() -> str:
        await asyncio.sleep(0)
        async with await anyio.connect_tcp("127.0.0.1", port):
            world.posts.append("hi")
        return "posted"

    async def accept(stream) -> None:
        await stream.aclose()

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.start_soon(listener.serve, accept)
        error = await refused(world, gated(post))
        tasks.cancel_scope.cancel()
    line = post.__code__.co_firstlineno + 2
    assert {(it.file, it.line) for it in error.findings} == {(__file__, line)}


async def test_what_a_safe_call_does_once_confirmed_is_no_finding(world, tmp_path):
    async def post(ctx: ToolContext) -> str:
        await ctx.barrier.wait()
        (tmp_path / "note.txt").write_text("hi")
        world.posts.append(object())
        return str(len(world.posts))

    error = await refused(world, gated(post))
    assert error.phase == "flushed"
    assert error.findings == ()


async def test_a_read_that_writes_is_seen_when_it_is_thrown_away(world):
    @tool(effect=Effect.READ)
    async def look() -> int:
        world.posts.append("somebody looked")
        return world.count

    error = await refused(world, look)
    assert error.phase == "thrown away"
    assert "Declare Effect.GATED" in error.advice


async def test_a_tool_that_goes_on_after_its_denial_is_seen(world):
    async def post(ctx: ToolContext) -> str:
        try:
            await ctx.barrier.wait()
        except BaseException:
            world.posts.append("failed")
            raise
        return "posted"

    assert (await refused(world, gated(post))).phase == "thrown away"


async def test_a_tool_that_takes_a_refusal_for_a_failure_is_seen(world):
    async def post(ctx: ToolContext) -> str:
        try:
            await ctx.barrier.wait()
        except WriteDenied:
            await anyio.sleep(1.0)  # a call that is thrown away is cancelled here
            world.posts.append("by another way")
        return "posted"

    assert (await refused(world, gated(post))).phase == "refused"


async def test_a_tool_that_has_its_effect_when_it_is_cancelled_is_seen(world):
    async def post(ctx: ToolContext) -> str:
        await anyio.sleep(1.0)
        try:
            await anyio.sleep(1.0)
        except anyio.get_cancelled_exc_class():
            world.posts.append("given up")
            raise
        await ctx.barrier.wait()
        world.posts.append("hi")
        return "posted"

    error = await refused(world, gated(post))
    assert error.phase == "cancelled at await 2"
    assert "when it was cancelled" in str(error)


async def test_a_tool_that_swallows_a_cancellation_on_its_way_is_seen(world):
    async def post(ctx: ToolContext) -> str:
        try:
            await anyio.sleep(1.0)
        except anyio.get_cancelled_exc_class():
            world.count += 1  # it takes it for a time limit of its own
        await ctx.barrier.wait()
        world.posts.append("hi")
        return "posted"

    assert (await refused(world, gated(post))).phase == "cancelled at await 1"


async def test_a_task_that_is_left_behind_is_seen(world):
    async with anyio.create_task_group() as background:

        async def post_later():
            await anyio.sleep(0.08)
            world.posts.append("late")

        @tool(effect=Effect.READ)
        async def look(ctx: ToolContext) -> str:
            background.start_soon(post_later)
            return "looked"

        error = await refused(world, look)
    assert error.phase == "thrown away" or error.phase.startswith("cancelled")
    assert error.observers == ("seen_posts",)


async def test_an_effect_that_is_done_twice_when_it_was_held_is_seen(world):
    async def post(ctx: ToolContext) -> str:
        ahead = ctx.speculative
        await ctx.barrier.wait()
        world.posts.append("hi")
        if ahead:
            world.posts.append("hi")
        return "posted"

    error = await refused(world, gated(post))
    assert error.phase == "flushed"
    assert "2 added, but seen_posts: 1 added in a plain run" in str(error)


async def test_a_number_that_is_counted_up_twice_is_seen(world):
    async def post(ctx: ToolContext) -> str:
        ahead = ctx.speculative
        await ctx.barrier.wait()
        world.count += 2 if ahead else 1
        return "posted"

    error = await refused(world, gated(post))
    assert (error.phase, error.observers) == ("flushed", ("seen_count",))
    assert (await refused(world, gated(post), reset=world.reset)).phase == "flushed"


async def test_an_effect_that_is_lost_when_it_was_held_is_seen(world):
    async def post(ctx: ToolContext) -> str:
        ahead = ctx.speculative
        await ctx.barrier.wait()
        if not ahead:
            world.posts.append("hi")
        return "posted"

    error = await refused(world, gated(post))
    assert error.phase == "flushed"
    assert "seen_posts: 0 added" in str(error)


async def test_another_effect_of_the_same_size_is_seen_where_the_world_is_reset(world):
    async def post(ctx: ToolContext) -> str:
        text = "early" if ctx.speculative else "hi"
        await ctx.barrier.wait()
        world.posts.append(text)
        return "posted"

    error = await refused(world, gated(post), reset=world.reset)
    assert error.phase == "flushed"
    assert "only in a plain run" in str(error)


async def test_half_an_effect_is_seen_when_the_confirmed_call_is_cancelled(world):
    async def post(ctx: ToolContext) -> str:
        await ctx.barrier.wait()
        world.posts.append("hi")
        await anyio.sleep(1.0)
        world.count += 1
        return "posted"

    error = await refused(world, gated(post))
    assert error.phase == "cancelled at await 1 after the flush"
    assert "seen_count / value: 0 more, but seen_count / value: 1 more" in str(error)
    assert "atomic=False" in error.advice
    assert (await check(world, gated(post), atomic=False)).cancelled_after == 0


async def test_a_shielded_effect_is_whole(world):
    async def post(ctx: ToolContext) -> str:
        await ctx.barrier.wait()
        with anyio.CancelScope(shield=True):
            world.posts.append("hi")
            await anyio.sleep(1.0)
            world.count += 1
        await anyio.sleep(1.0)
        return "posted"

    assert (await check(world, gated(post))).cancelled_after == 2


async def test_an_await_that_is_shielded_is_not_interrupted(world, anyio_backend):
    on_trio = anyio_backend[0] == "trio"
    lock = trio.Lock() if on_trio else anyio.Lock()

    async def post(ctx: ToolContext) -> str:
        async with lock:  # whoever is cancelled when it has it must let go of it
            await anyio.sleep(1.0)
        await ctx.barrier.wait()
        async with lock:
            world.posts.append("hi")
        return "posted"

    for _ in range(5):  # trio's tasks take turns in a random order
        assert (await check(world, gated(post))).held


async def test_awaits_beyond_the_limit_are_noted(world):
    async def post(ctx: ToolContext) -> str:
        for _ in range(5):
            await anyio.sleep(0.5)
        await ctx.barrier.wait()
        for _ in range(5):
            await anyio.sleep(0.5)
        world.posts.append("hi")
        return "posted"

    safety = await check(world, gated(post), max_awaits=3)
    assert (safety.cancelled, safety.cancelled_after) == (3, 3)
    assert len(safety.notes) == 2
    assert all("max_awaits=" in note for note in safety.notes)
    safety = await check(world, gated(post))
    assert (safety.cancelled, safety.cancelled_after) == (6, 5)
    assert safety.notes == ()


async def test_generated_keys_and_texts_are_not_compared(world):
    rows = {}

    async def post(ctx: ToolContext) -> str:
        await ctx.barrier.wait()
        rows[uuid.uuid4().hex] = {"text": "hi", "token": uuid.uuid4().hex}
        return "posted"

    made = gated(post)
    safety = await assert_speculation_safe(made, observe=lambda: rows, reset=rows.clear)
    assert len(safety.effect) == 1
    await assert_speculation_safe(made, observe=lambda: rows)


async def test_a_tool_that_can_be_run_once_only_needs_a_reset(world):
    async def post(ctx: ToolContext) -> str:
        await ctx.barrier.wait()
        if world.posts:
            raise LookupError("It is posted already.")
        world.posts.append("hi")
        return "posted"

    error = await refused(world, gated(post))
    assert error.phase == "plain"
    assert "reset=" in error.advice
    assert isinstance(error.__cause__, LookupError)
    assert (await check(world, gated(post), reset=world.reset)).notes == ()


async def test_an_effect_that_repeats_itself_unseen_is_noted_unless_there_is_a_reset():
    row = {"state": "open"}

    async def pause(ctx: ToolContext) -> str:
        await ctx.barrier.wait()
        row["state"] = "paused"
        return "paused"

    async def reset():
        row["state"] = "open"

    async def seen():
        return row

    made = gated(pause)
    safety = await assert_speculation_safe(made, observe=seen, reset=reset)
    assert safety.notes == ()
    assert str(safety.effect[0]) == "~ state: 'open' -> 'paused'"
    row["state"] = "open"
    safety = await assert_speculation_safe(made, observe=seen)
    assert "once could not be told from twice" in safety.notes[0]


async def test_what_a_reset_returns_is_given_to_the_tool():
    worlds = []

    def reset():
        worlds.append(World())
        return worlds[-1]

    async def post(ctx: ToolContext[World]) -> str:
        await ctx.barrier.wait()
        ctx.deps.posts.append("hi")
        return "posted"

    made = gated(post)
    await assert_speculation_safe(
        made, observe=lambda: worlds[-1].posts if worlds else [], reset=reset
    )
    assert len(worlds) > 4


async def test_a_read_that_writes_only_when_it_is_real_is_seen(world):
    @tool(effect=Effect.READ)
    async def look(ctx: ToolContext) -> int:
        if not ctx.speculative:
            world.count += 1
        return world.count

    assert (await refused(world, look)).phase == "plain"


async def test_a_wrong_early_result_is_noted(world):
    async def post(ctx: ToolContext) -> str:
        ctx.early_result("sent")
        await ctx.barrier.wait()
        world.posts.append("hi")
        return "posted"

    assert "early result" in (await check(world, gated(post))).notes[0]


async def test_a_call_that_its_seam_gives_up_is_safe_and_noted(world):
    copies = Seam("copies")

    async def post() -> str:
        copies.refuse("a COPY", "the driver gives no place to wait")
        world.posts.append("hi")
        return "posted"

    safety = await check(world, gated(post))
    assert "a COPY could not be held" in safety.notes[0]
    assert world.posts == []


async def test_where_nothing_was_checked_nothing_is_safe(world):
    async def post(ctx: ToolContext) -> str:
        return "posted"

    async def post_elsewhere(ctx: ToolContext) -> str:
        await ctx.barrier.wait()
        return "posted"

    async def fail(ctx: ToolContext) -> str:
        raise LookupError("There is no such channel.")

    error = await refused(world, gated(post))
    assert "nothing was checked" in str(error)
    error = await refused(world, gated(post_elsewhere))
    assert error.phase == "flushed"
    assert "Observe what it changes" in error.advice
    error = await refused(world, gated(fail))
    assert "There is no such channel." in str(error)
    assert isinstance(error.__cause__, LookupError)


async def test_what_can_never_be_checked_is_said_at_once(world):
    async def post(text: str) -> str:
        return text

    with pytest.raises(UsageError, match="UNSAFE"):
        await check(world, Tool(post), arguments={"text": "hi"})
    with pytest.raises(UsageError, match="use @tool"):
        await check(world, post)
    with pytest.raises(UsageError, match="do not fit the tool 'post'"):
        await check(world, gated(post), arguments={"words": "hi"})
    with pytest.raises(UsageError, match="nothing is seen"):
        await assert_speculation_safe(gated(post), {"text": "hi"}, observe=[])
    with pytest.raises(UsageError, match="A int cannot be observed"):
        await assert_speculation_safe(gated(post), {"text": "hi"}, observe=[3])


async def test_a_tool_that_hangs_is_given_up_and_told_in_which_phase(world):
    async def post(ctx: ToolContext) -> str:
        await anyio.sleep_forever()

    async def post_and_hang(ctx: ToolContext) -> str:
        await ctx.barrier.wait()
        world.posts.append("hi")
        await anyio.sleep_forever()

    start = anyio.current_time()
    error = await refused(world, gated(post), timeout=5.0)
    assert error.phase == "thrown away"
    assert anyio.current_time() == start + 5.0
    assert (await refused(world, gated(post_and_hang))).phase == "flushed"


async def test_a_tool_that_swallows_every_cancellation_is_ended(world):
    async def post(ctx: ToolContext) -> str:
        while True:
            try:
                await anyio.sleep(1.0)
            except anyio.get_cancelled_exc_class():
                continue

    async def hold_and_post(ctx: ToolContext) -> str:
        try:
            await ctx.barrier.wait()
        finally:
            await post(ctx)

    error = await refused(world, gated(post))
    assert "did not reach its barrier, or end, within 10.0 s" in str(error)
    error = await refused(world, gated(hold_and_post))
    assert "swallows its cancellation" in str(error)


async def test_a_held_tool_that_keeps_a_lock_that_others_need_is_told_so(world):
    lock = anyio.Lock()

    async def post(ctx: ToolContext) -> str:
        async with lock:
            await ctx.barrier.wait()
            world.posts.append("hi")
        return "posted"

    async def seen():
        async with lock:
            return world.posts

    with pytest.raises(UnsafeToolError, match="keeps a lock") as caught:
        await assert_speculation_safe(gated(post), observe=seen)
    assert caught.value.phase == "thrown away"


async def test_an_effect_that_comes_after_the_end_is_told_apart(world):
    async with anyio.create_task_group() as background:

        async def post_later():
            await anyio.sleep(0.08)
            world.posts.append("late")

        async def post(ctx: ToolContext) -> str:
            await ctx.barrier.wait()
            background.start_soon(post_later)
            return "posted"

        error = await refused(world, gated(post))
        assert error.phase in ("flushed", "plain")
        assert (await check(world, gated(post), settle=0.2)).held
    assert "comes after it has returned" in str(error) or error.phase == "flushed"


async def test_cancelling_the_check_ends_the_call(world):
    with anyio.move_on_after(0.5) as scope:
        await check(world, careful(world))
    assert scope.cancelled_caught
    assert world.posts == []


async def test_what_an_observer_raises_is_raised_as_it_is(world):
    looks = []

    def seen():
        looks.append(None)
        if len(looks) == 2:
            raise OSError("no such database")
        return 0

    with pytest.raises(OSError, match="no such database"):
        await assert_speculation_safe(careful(world), observe=seen)


@pytest.mark.real_time
async def test_a_sync_tool_that_holds_its_effect_is_safe(world):
    def post() -> str:
        with hold_blocking("a post"):
            world.posts.append("hi")
        return "posted"

    safety = await check(world, gated(post))
    assert (safety.held, safety.cancelled) == (True, 0)
    assert "in a thread" in safety.notes[0]


@pytest.mark.real_time
async def test_a_sync_tool_with_an_effect_before_its_barrier_is_seen(world):
    def post(ctx: ToolContext) -> str:
        world.posts.append("hi")
        ctx.barrier.wait_blocking()
        return "posted"

    assert (await refused(world, gated(post))).phase == "held"


@pytest.mark.real_time
async def test_a_thread_that_goes_on_after_its_discard_is_waited_for_and_seen(world):
    def post(ctx: ToolContext) -> str:
        try:
            ctx.barrier.wait_blocking()
        except WriteDenied:
            world.posts.append("by another way")
        return "posted"

    assert (await refused(world, gated(post))).phase == "thrown away"


@pytest.mark.real_time
async def test_an_async_tool_that_is_held_in_a_thread_is_safe(world):
    def post_now():
        with hold_blocking("a post"):
            world.posts.append("hi")

    async def post() -> str:
        await run_in_thread(post_now, speculative=True)
        return "posted"

    async def post_by_asyncio() -> str:
        import asyncio

        await asyncio.to_thread(post_now)
        return "posted"

    for function in (post, post_by_asyncio):
        assert (await check(world, gated(function))).held
