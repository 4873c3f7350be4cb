"""Commands to a real redis: what it receives, and when."""

import asyncio
import contextlib
import threading

import anyio
import pytest

from headstart import (
    Agent,
    DiscardedError,
    Effect,
    Tool,
    ToolCallSpeculator,
    UsageError,
    WriteBarrier,
    WriteDenied,
)
from headstart.effects import SeamCounts, run_in_thread
from headstart.predictors import RulePredictor, rule
from headstart.testing import ScriptedModel

redis = pytest.importorskip("redis")

from headstart.effects.redis import hold_commands  # noqa: E402

pytestmark = pytest.mark.real_time

KEY = "headstart-test"
SETUP = {
    "HELLO",
    "AUTH",
    "SELECT",
    "CLIENT",
    "COMMAND",
}  # of a connection, not of calls


def tool_of(function, **options):
    return Tool(function, name="post", effect=Effect.GATED, **options)


async def until_held(seam, count=1):
    with anyio.fail_after(15):
        while seam.counts.holding < count:  # noqa: ASYNC110 - a seam has no event
            await anyio.sleep(0.001)


class Rig:
    """A held client with a small pool, and a look at what the server receives."""

    def __init__(self, url, **options):
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url, max_connections=5, timeout=10
        )
        self.url = url
        self.client = redis.asyncio.Redis.from_pool(pool)
        self.held = hold_commands(self.client, **options)
        self.seam = self.held.seam
        self.outside = redis.asyncio.Redis.from_url(url, decode_responses=True)
        self.markers = 0

    async def __aenter__(self):
        self.monitor = self.outside.monitor()
        await self.monitor.__aenter__()
        for sort in ("", "-list", "-stream", "-log"):
            await self.outside.delete(KEY + sort)
        await self.outside.set(KEY + "-stream-not", "a string")
        await self.outside.set(KEY, "before")
        await self.received()
        return self

    async def __aexit__(self, *_):
        for sort in ("", "-list", "-stream", "-log", "-stream-not"):
            await self.outside.delete(KEY + sort)
        await self.monitor.__aexit__(None, None, None)
        await self.outside.aclose()
        await self.client.aclose()

    async def received(self):
        """The commands that reached the server since this was last asked."""
        self.markers += 1
        marker = f"marker-{id(self)}-{self.markers}"
        await self.outside.echo(marker)
        commands = []
        while True:
            command = (await self.monitor.next_command())["command"]
            if command == f"ECHO {marker}":
                return commands
            if command.split()[0].upper() not in SETUP:
                commands.append(command)

    async def until_held(self, count=1):
        await until_held(self.seam, count)

    def connections_in_use(self):
        return len(self.client.connection_pool._in_use_connections)


@pytest.fixture
async def rig(redis_url):
    async with Rig(redis_url) as made:
        yield made


async def set_it(client):
    return await client.set(KEY, "after")


async def pipeline(client):
    async with client.pipeline(transaction=False) as pipe:
        return await pipe.get(KEY).set(KEY, "after").execute()


async def transaction(client):
    async with client.pipeline() as pipe:
        return await pipe.set(KEY, "after").get(KEY).execute()


async def watched(client):
    async def change(pipe):
        before = await pipe.get(KEY)
        pipe.multi()
        pipe.set(KEY, before + b" and after")

    return await client.transaction(change, KEY)


async def script(client):
    return await client.eval("return redis.call('SET', KEYS[1], 'after')", 1, KEY)


async def registered_script(client):
    run = client.register_script("return redis.call('SET', KEYS[1], ARGV[1])")
    return await run([KEY], ["after"])


async def script_in_a_pipeline(client):
    run = client.register_script("return redis.call('SET', KEYS[1], ARGV[1])")
    async with client.pipeline() as pipe:
        await run([KEY], ["after"], client=pipe)
        return await pipe.execute()


async def publish(client):
    return await client.publish(KEY, "after")


async def lock(client):
    async with client.lock(KEY + "-list", timeout=5):
        return "locked"


async def block(client):
    return await client.blpop([KEY + "-list"], timeout=0.01)


async def read_and_delete(client):
    return await client.getdel(KEY)


async def store_sorted(client):
    return await client.sort(KEY + "-list", store=KEY)


async def count_distinct(client):
    return await client.pfcount(KEY + "-list")


async def touch(client):
    return await client.touch(KEY)


async def wait_for_a_stream(client):
    return await client.xread({KEY + "-stream": "$"}, block=10)


async def name_the_connection(client):
    return await client.client_kill_filter(_id="99999999")


async def configure(client):
    return await client.config_set("maxmemory-samples", 5)


async def change_the_database(client):
    return await client.execute_command("SELECT", 0)


async def bytes_of_a_command(client):
    return await client.execute_command(b"set", KEY, "after")


async def words_of_a_command(client):
    return await client.execute_command(f"SET {KEY}", "after")


async def a_command_that_is_none(client):
    with contextlib.suppress(redis.ResponseError):
        await client.execute_command("NOSUCH", KEY)


async def subscribe(client):
    async with client.pubsub() as subscription:
        await subscription.subscribe(KEY)
        return await subscription.get_message(timeout=1)


async def watch_the_server(client):
    async with client.monitor():
        return "watching"


async def one_connection(client):
    async with client.client() as single:
        return await single.set(KEY, "after")


async def one_connection_without_a_block(client):
    single = client.client()
    try:
        await single.get(KEY)
        return await single.set(KEY, "after")
    finally:
        await single.aclose()


async def another_client_of_the_pool(client):
    return await redis.asyncio.Redis.from_pool(client.connection_pool).set(KEY, "after")


async def a_pipeline_past_the_client(client):
    pipe = redis.asyncio.client.Pipeline(client.connection_pool, {}, True, None)
    return await pipe.set(KEY, "after").execute()


async def a_pipeline_of_a_pipeline(client):
    return await client.pipeline().pipeline().set(KEY, "after").execute()


EFFECTS = [
    set_it,
    pipeline,
    transaction,
    watched,
    script,
    registered_script,
    script_in_a_pipeline,
    publish,
    lock,
    block,
    read_and_delete,
    store_sorted,
    touch,
    count_distinct,
    wait_for_a_stream,
    name_the_connection,
    configure,
    change_the_database,
    bytes_of_a_command,
    words_of_a_command,
    a_command_that_is_none,
    subscribe,
    watch_the_server,
    one_connection,
    one_connection_without_a_block,
    another_client_of_the_pool,
    a_pipeline_past_the_client,
    a_pipeline_of_a_pipeline,
]


async def received_when_real(rig, work):
    for _ in range(2):  # a script is sent the first time only
        await rig.received()
        await work(rig.client)
        await rig.outside.set(KEY, "before")
    return (await rig.received())[:-1]


@pytest.mark.parametrize("work", EFFECTS)
async def test_an_effect_reaches_the_server_when_its_call_is_confirmed_and_once(
    rig, work
):
    real = await received_when_real(rig, work)

    async def post():
        return await work(rig.client)

    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        await rig.until_held()
        assert await rig.received() == []
        assert rig.connections_in_use() == 0
        await guess.adopt()
    once = await rig.received()
    assert sorted(map(shape, once)) == sorted(map(shape, real))
    assert rig.connections_in_use() == 0
    assert rig.seam.counts.flushed == rig.seam.counts.held == 1


def shape(command):
    """A command without what differs each time: a lock's token."""
    return command.split()[0].upper()


@pytest.mark.parametrize("end", ["discarded", "cancelled"])
@pytest.mark.parametrize("work", EFFECTS)
async def test_an_effect_of_a_discarded_call_never_reaches_the_server(rig, work, end):
    await rig.client.ping()
    await rig.received()

    async def post():
        return await work(rig.client)

    with anyio.CancelScope() as scope:
        async with ToolCallSpeculator(tool_of(post), "{}"):
            await rig.until_held()
            if end == "cancelled":
                scope.cancel()
                await anyio.sleep_forever()
    assert await rig.received() == []
    assert rig.connections_in_use() == 0
    assert rig.seam.counts.holding == 0


async def get(client):
    return await client.get(KEY)


async def get_many(client):
    async with client.pipeline(transaction=False) as pipe:
        return await pipe.get(KEY).strlen(KEY).execute()


async def get_many_at_once(client):
    async with client.pipeline() as pipe:
        return await pipe.get(KEY).ttl(KEY).execute()


async def get_with_a_script(client):
    return await client.eval_ro("return redis.call('GET', KEYS[1])", 1, KEY)


async def describe(client):
    return await client.object("ENCODING", KEY)


async def size(client):
    return await client.memory_usage(KEY)


async def scan(client):
    return [key async for key in client.scan_iter(KEY + "*")]


async def read_a_stream(client):
    return await client.xread({KEY + "-stream": "0"})


async def is_it_locked(client):
    return await client.lock(KEY + "-list").locked()


async def greet(client):
    return await client.ping()


async def subscribers(client):
    return await client.pubsub_numsub(KEY)


async def bytes_of_a_read(client):
    return await client.execute_command(b"get", KEY)


READS = [
    get,
    get_many,
    get_many_at_once,
    get_with_a_script,
    describe,
    size,
    scan,
    read_a_stream,
    is_it_locked,
    greet,
    subscribers,
    bytes_of_a_read,
]


@pytest.mark.parametrize("work", READS)
async def test_a_read_of_a_call_that_is_not_confirmed_is_answered_at_once(rig, work):
    async def post():
        return repr(await work(rig.client))

    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        early = await guess.wait()
        assert guess.barrier.state.value == "held"
    assert early == repr(await work(rig.client))
    assert rig.seam.counts == SeamCounts()


async def test_a_script_that_only_reads_by_its_name_cannot_write(rig):
    async def post():
        call = "return redis.call('SET', KEYS[1], 'after')"
        return await rig.client.eval_ro(call, 1, KEY)

    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        with pytest.raises(redis.ResponseError):
            await guess.wait()
    assert await rig.outside.get(KEY) == "before"


async def test_reads_go_on_until_the_first_write(rig):
    async def post():
        before = await rig.client.get(KEY)
        await rig.client.set(KEY, before + b" and after")
        return await rig.client.get(KEY)

    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        await rig.until_held()
        assert await rig.received() == [f"GET {KEY}"]
        assert await guess.adopt() == b"before and after"
    assert await rig.received() == [f"SET {KEY} before and after", f"GET {KEY}"]


async def test_the_server_is_asked_once_for_each_command(redis_url):
    async with Rig(redis_url) as rig:
        asked = []
        ask = rig.held._ask

        async def counting(*args):
            asked.append(args[2])
            return await ask(*args)

        rig.held._ask = counting

        async def post():
            for _ in range(3):
                await rig.client.get(KEY)
                await rig.client.object("ENCODING", KEY)
                await rig.client.object("REFCOUNT", KEY)
            return "read"

        for _ in range(2):
            async with ToolCallSpeculator(tool_of(post), "{}") as guess:
                assert await guess.wait() == "read"
        assert asked == ["GET", "OBJECT"]


async def forbidden(*_):
    raise redis.exceptions.NoPermissionError("no permissions to run 'command|info'")


async def unreachable(*_):
    raise redis.ConnectionError("gone")


async def nonsense(*_):
    return "what?"


async def unknown(*_):
    return [None]


@pytest.mark.parametrize("answer", [forbidden, unreachable, nonsense, unknown])
async def test_where_the_server_does_not_tell_everything_waits(rig, answer):
    rig.held._ask = answer

    async def post():
        return await rig.client.get(KEY)

    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        await rig.until_held()
        assert await guess.adopt() == b"before"


async def test_a_server_that_could_not_be_asked_is_asked_again(rig):
    ask, rig.held._ask = rig.held._ask, unreachable

    async def post():
        return await rig.client.get(KEY)

    async with ToolCallSpeculator(tool_of(post), "{}"):
        await rig.until_held()
    rig.held._ask = ask
    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        assert await guess.wait() == b"before"


async def test_commands_that_the_user_vouches_for_pass(redis_url):
    async with Rig(redis_url, reads=["object  help"]) as rig:

        async def post():
            await rig.client.execute_command("OBJECT HELP")
            await rig.client.object("ENCODING", KEY)
            await rig.client.set(KEY, "after")

        async with ToolCallSpeculator(tool_of(post), "{}"):
            await rig.until_held()
            assert await rig.received() == ["OBJECT HELP", f"OBJECT ENCODING {KEY}"]
        assert await rig.received() == []


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("decode_responses", [False, True])
async def test_the_servers_flags_are_read_in_each_protocol(
    redis_url, protocol, decode_responses
):
    options = {"protocol": protocol, "decode_responses": decode_responses}
    client = redis.asyncio.Redis.from_url(redis_url, **options)
    seam = hold_commands(client).seam

    async def post():
        await client.execute_command("OBJECT HELP")
        return "helped"

    async def read():
        await client.get(KEY)
        await client.xinfo_groups(KEY + "-none")

    async with ToolCallSpeculator(tool_of(read), "{}") as guess:
        with pytest.raises(redis.ResponseError):  # no such stream: it was asked
            await guess.wait()
    async with ToolCallSpeculator(tool_of(post), "{}"):
        await until_held(seam)  # OBJECT HELP is not said to read
    await client.aclose()


async def test_two_hundred_held_calls_leave_the_pool_to_real_ones(rig):
    async def post():
        await rig.client.get(KEY)
        work = works[next(numbers) % len(works)]
        return await work(rig.client)

    works = [set_it, transaction, watched, subscribe, one_connection, lock]
    numbers = iter(range(200))
    async with contextlib.AsyncExitStack() as stack:
        made = tool_of(post)
        for _ in range(200):
            await stack.enter_async_context(ToolCallSpeculator(made, "{}"))
        await rig.until_held(200)
        assert rig.connections_in_use() == 0
        async with anyio.create_task_group() as tasks:  # more than the pool's five
            for number in range(20):
                tasks.start_soon(rig.client.set, KEY, number)
        assert await rig.client.get(KEY) is not None
    assert rig.seam.counts == SeamCounts(held=200, denied=200)
    assert rig.connections_in_use() == 0


async def test_a_connection_that_a_pipeline_kept_from_before_waits_as_well(rig):
    async with rig.client.pipeline() as pipe:
        await pipe.watch(KEY)

        async def post():
            before = await pipe.get(KEY)
            await pipe.set(KEY, "after")
            return before

        await rig.received()
        async with ToolCallSpeculator(tool_of(post), "{}"):
            await rig.until_held()
            assert await rig.received() == [f"GET {KEY}"]
        assert await rig.received() == []

        async def finish():
            pipe.multi()
            pipe.set(KEY, "after")
            return await pipe.execute()

        async with ToolCallSpeculator(tool_of(finish), "{}"):
            await rig.until_held()
            assert await rig.received() == []
        assert await rig.received() == ["UNWATCH"]  # the connection goes back clean


async def test_a_client_of_one_connection_waits_as_well(rig):
    async with rig.client.client() as single:

        async def post():
            before = await single.get(KEY)
            await single.set(KEY, "after")
            return before

        async with ToolCallSpeculator(tool_of(post), "{}"):
            await rig.until_held()
        assert await rig.received() == [f"GET {KEY}"]


async def test_a_call_that_is_not_confirmed_takes_no_message_from_others(rig):
    subscription = rig.client.pubsub(ignore_subscribe_messages=True)
    await subscription.subscribe(KEY)
    await subscription.get_message(timeout=5)
    await rig.client.publish(KEY, "a message")

    async def post():
        return await subscription.get_message(timeout=5)

    async with ToolCallSpeculator(tool_of(post), "{}"):
        await rig.until_held()
    assert (await subscription.get_message(timeout=5))["data"] == b"a message"
    await subscription.aclose()


async def test_a_command_that_waits_too_long_gives_its_call_up(redis_url):
    async with Rig(redis_url, max_hold=0.01) as rig:

        async def post():
            with contextlib.suppress(WriteDenied):
                await rig.client.set(KEY, "after")
            return "posted"

        async with ToolCallSpeculator(tool_of(post), "{}") as guess:
            await guess.wait_until_ended()
            assert guess.barrier.state.value == "denied"
            assert "redis SET was held" in guess.barrier.reason
        assert await rig.received() == []
        assert rig.seam.counts == SeamCounts(held=1, expired=1)


async def test_a_condition_holds_the_commands_of_a_confirmed_call(rig):
    approval = WriteBarrier(name="approval")

    async def post():
        return await rig.client.set(KEY, "after")

    made = tool_of(post)
    async with ToolCallSpeculator(made, "{}", conditions=[approval]) as guess:
        guess.confirm()
        await rig.until_held()
        assert await rig.outside.get(KEY) == "before"
        approval.flush()
        assert await guess.wait() is True
    assert await rig.outside.get(KEY) == "after"


@pytest.mark.parametrize("asked", ["a", "b"])
async def test_an_agent_writes_once_what_the_model_asked_for_and_no_guess(rig, asked):
    async def post(word: str) -> str:
        await rig.client.rpush(KEY + "-log", word)
        return "posted"

    class SlowModel(ScriptedModel):
        async def respond(self, request, on_delta):
            if len(request.messages) == 1:
                await rig.until_held()
                assert await rig.outside.lrange(KEY + "-log", 0, -1) == []
            return await super().respond(request, on_delta)

    model = SlowModel([[("post", {"word": asked})], "Done."])
    expects = RulePredictor([rule("Go", "post", word="a")])
    agent = Agent(model, [tool_of(post)], predictors=[expects])
    assert (await agent.run("Go.")).text == "Done."
    assert await rig.outside.lrange(KEY + "-log", 0, -1) == [asked]


@pytest.mark.parametrize("step", range(12))
async def test_cancelling_at_any_step_of_a_held_pipeline_leaves_all_or_nothing(
    rig, step
):
    async def post():
        async with rig.client.pipeline() as pipe:
            await pipe.set(KEY, "after").rpush(KEY + "-list", "after").execute()

    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        await rig.until_held()
        before = asyncio.create_task(asyncio.sleep(0))
        for _ in range(step):
            await asyncio.sleep(0)
        if step % 2:
            guess.confirm()
        guess.cancel("changed my mind")
        await before
        await guess.wait_until_ended()
    wanted = ("after", ["after"]) if step % 2 else ("before", [])
    found = await rig.outside.get(KEY), await rig.outside.lrange(KEY + "-list", 0, -1)
    assert found == wanted
    assert rig.connections_in_use() == 0


# The client for threads


@pytest.fixture
def threaded(redis_url):
    pool = redis.BlockingConnectionPool.from_url(
        redis_url, max_connections=5, timeout=10
    )
    client = redis.Redis.from_pool(pool)
    yield client, hold_commands(client).seam
    client.close()


def sync_set(client):
    return client.set(KEY, "after")


def sync_pipeline(client):
    with client.pipeline() as pipe:
        return pipe.get(KEY).set(KEY, "after").execute()


def sync_watched(client):
    return client.transaction(lambda pipe: pipe.multi() or pipe.set(KEY, "after"), KEY)


def sync_script(client):
    run = client.register_script("return redis.call('SET', KEYS[1], ARGV[1])")
    return run([KEY], ["after"])


def sync_subscribe(client):
    with client.pubsub() as subscription:
        subscription.subscribe(KEY)
        return subscription.get_message(timeout=1)


def sync_one_connection(client):
    with client.client() as single:
        return single.set(KEY, "after")


def sync_past_the_client(client):
    return redis.Redis.from_pool(client.connection_pool).set(KEY, "after")


def sync_watch_the_server(client):
    with client.monitor():
        return "watching"


SYNC = [
    sync_set,
    sync_pipeline,
    sync_watched,
    sync_script,
    sync_subscribe,
    sync_one_connection,
    sync_past_the_client,
    sync_watch_the_server,
]


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("work", SYNC)
async def test_a_sync_tool_is_held_in_its_thread(rig, threaded, work, wanted):
    client, seam = threaded
    outcomes, ended = [], threading.Event()
    await anyio.to_thread.run_sync(sync_get, client)
    await rig.received()

    def post():
        try:
            sync_get(client)
            outcomes.append(work(client))
        except BaseException as error:
            outcomes.append(error)
            raise
        finally:
            ended.set()
        return "posted"

    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        await until_held(seam)
        assert await rig.received() == [f"GET {KEY}", f"STRLEN {KEY}"]
        if wanted:
            assert await guess.adopt() == "posted"
    await anyio.to_thread.run_sync(ended.wait)
    if wanted:
        assert seam.counts == SeamCounts(held=1, flushed=1)
    else:
        assert [type(error) for error in outcomes] == [DiscardedError]
        assert await rig.received() == []
        assert seam.counts == SeamCounts(held=1, denied=1)


def sync_get(client):
    with client.pipeline(transaction=False) as pipe:
        return [client.get(KEY), pipe.strlen(KEY).execute()]


async def test_a_sync_client_in_an_event_loop_gives_its_call_up_at_a_write(threaded):
    client, seam = threaded

    async def post():
        return client.set(KEY, "after")

    async with ToolCallSpeculator(tool_of(post), "{}") as guess:
        await guess.wait_until_ended()
        assert "block the event loop" in guess.barrier.reason
    assert seam.counts == SeamCounts(refused=1)


async def test_forty_held_threads_leave_the_pool_to_real_ones(threaded):
    client, seam = threaded
    made = tool_of(lambda: sync_set(client))
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(40):
            await stack.enter_async_context(ToolCallSpeculator(made, "{}"))
        await until_held(seam, 40)
        assert await run_in_thread(client.set, KEY, "real")
    while seam.counts.holding:  # noqa: ASYNC110 - threads end a little later
        await anyio.sleep(0.001)
    assert seam.counts == SeamCounts(held=40, denied=40)


# What cannot be held


def a_cluster():
    # Unlike its constructor, this asks no server.
    return object.__new__(redis.asyncio.RedisCluster)


def a_sentinel():
    return redis.asyncio.Sentinel([])


def a_pipeline():
    return redis.asyncio.Redis().pipeline()


@pytest.mark.parametrize("make", [a_cluster, a_sentinel, a_pipeline, object])
async def test_what_cannot_be_held_whole_is_refused(make):
    with pytest.raises(UsageError, match="hold_commands takes"):
        hold_commands(make())


async def test_a_client_is_held_once(rig):
    with pytest.raises(UsageError, match="held already"):
        hold_commands(rig.client)


async def test_two_clients_of_a_pool_are_each_held(rig):
    other = redis.asyncio.Redis.from_pool(rig.client.connection_pool)
    other.auto_close_connection_pool = False
    seam = hold_commands(other).seam

    async def post():
        await other.get(KEY)
        await other.set(KEY, "after")

    async with ToolCallSpeculator(tool_of(post), "{}"):
        await until_held(seam)
    assert rig.seam.counts == SeamCounts()


async def test_what_a_sentinel_finds_is_held(redis_url):
    """Its pool is of another class: one that asks a sentinel where the server is."""
    sentinel = redis.asyncio.Sentinel([])
    host, port = (
        redis.asyncio.connection.parse_url(redis_url)[name] for name in ("host", "port")
    )

    async def discover_master(_):
        return host, port

    sentinel.discover_master = discover_master
    client = sentinel.master_for("any")
    seam = hold_commands(client).seam

    async def post():
        await client.get(KEY)
        await client.set(KEY, "after")

    async with ToolCallSpeculator(tool_of(post), "{}"):
        await until_held(seam)
    assert seam.counts == SeamCounts(held=1, denied=1)
    await client.aclose()
