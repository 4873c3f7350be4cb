"""A seam for redis: commands that are not proven to read wait at the barrier.

Rules of this file:

1. A command reads if the server says so of it. What the server does not say, it writes.
2. Whoever takes a connection from the pool waits before it has one, unless a command
   that reads takes it. So nothing held uses a connection up, and what goes past the
   client's own methods (a module's pipeline, another client of the pool) waits as well.
3. What may have a connection already (a pipeline that watches, a subscription, a client
   of one connection) waits in its own methods, too.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakSet

from headstart._errors import UsageError
from headstart._seams import MAX_HOLD, Seam
from headstart._thread_guard import passing, unconfirmed_call

try:
    import redis
    import redis.asyncio
    from redis.asyncio.client import Pipeline as AsyncPipeline
    from redis.client import Pipeline
    from redis.exceptions import ResponseError
except ImportError as missing:
    message = 'Please install `redis`: pip install "headstart[redis]"'
    raise ImportError(message, name="redis") from missing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

__all__ = ("HeldCommands", "hold_commands")

Client: TypeAlias = redis.asyncio.Redis | redis.Redis
Arguments: TypeAlias = "tuple[Any, ...]"

# They change nothing, though their flags do not say so.
_READS = frozenset(
    {
        "PING",
        "ECHO",
        "TIME",
        "INFO",
        "COMMAND",
        "PUBSUB CHANNELS",
        "PUBSUB NUMPAT",
        "PUBSUB NUMSUB",
        "PUBSUB SHARDCHANNELS",
        "PUBSUB SHARDNUMSUB",
        "SCRIPT EXISTS",
    }
)
# `readonly` by their flags: the one renews what it names, the other stores what it counted.
_WRITES = frozenset({"TOUCH", "PFCOUNT"})
_EFFECTS = frozenset({"write", "admin", "pubsub", "may_replicate", "blocking"})
_NAME = re.compile(r"[A-Z0-9._-]{1,40}( [A-Z0-9._-]{1,40})?")
_SUBCOMMANDS = 9  # where in a command's description they stand, since redis 7


def hold_commands(
    client: Client, *, reads: Iterable[str] = (), max_hold: float | None = MAX_HOLD
) -> HeldCommands:
    """Hold the commands of a redis client in calls that are not confirmed.

    ```python
    client = redis.asyncio.Redis()
    hold_commands(client)
    ```

    Commands that read pass, by the flags that the server gives each of them; the server
    is asked once for each command, when an unconfirmed call first uses it. Everything
    else waits, whole pipelines and transactions at once. What waits has no connection
    of the pool. Of the methods of `redis.Redis`, in threads, the same is true.

    Args:
        client: A client of one server, or what `Sentinel.master_for` returns. Its pool
            is held, too: other clients of it wait with all they do, unless they are given
            to `hold_commands` themselves.
        reads: Further commands that only read, such as `"FT.SEARCH"` or `"CONFIG GET"`.
        max_hold: Seconds that a command waits at most: see `Seam`.

    Raises:
        UsageError: It is a client of a cluster or of several servers, a pipeline, or
            no client, or it is held already.
    """
    kind = f"{type(client).__module__}.{type(client).__name__}"
    if isinstance(client, AsyncPipeline | Pipeline) or not isinstance(
        client,  # pyright: ignore[reportUnnecessaryIsInstance]
        redis.asyncio.Redis | redis.Redis,
    ):
        msg = (
            "hold_commands takes a redis.asyncio.Redis or a redis.Redis, such as "
            f"Sentinel.master_for gives, and not {kind!r}. Clients of clusters and of "
            "several databases are not supported: declare tools that use them UNSAFE, or "
            "put `async with hold():` around what writes."
        )
        raise UsageError(msg)
    if client in _held:
        msg = f"The commands of this {kind!r} are held already: call it once a client."
        raise UsageError(msg)
    return HeldCommands(client, reads=reads, max_hold=max_hold)


class HeldCommands:
    """What `hold_commands` did to a client.

    Attributes:
        seam: Where its commands wait, with counts.
    """

    def __init__(
        self, client: Any, *, reads: Iterable[str], max_hold: float | None
    ) -> None:
        self.seam = Seam("redis", max_hold=max_hold)
        self._reads = _READS | {" ".join(name.upper().split()) for name in reads}
        self._flags: dict[str, frozenset[str] | None] = {}
        self._ask: Any = client.execute_command
        self._install(client)

    def __repr__(self) -> str:
        return f"<HeldCommands {self.seam!r}>"

    def _install(self, client: Any) -> Any:
        in_threads = not isinstance(client, redis.asyncio.Redis)
        _held.add(client)
        if client.connection_pool not in _held_pools:
            _held_pools.add(client.connection_pool)
            hold_pool = _hold_pool_blocking if in_threads else _hold_pool
            hold_pool(self.seam, client.connection_pool)
        make_client, make_pipeline = client.client, client.pipeline
        make_pubsub = client.pubsub

        def client_of_one_connection() -> Any:
            return self._install(make_client())

        def pipeline(*args: Any, **options: Any) -> Any:
            hold = self._hold_pipeline_blocking if in_threads else self._hold_pipeline
            return hold(make_pipeline(*args, **options))

        def pubsub(**options: Any) -> Any:
            hold = _hold_pubsub_blocking if in_threads else _hold_pubsub
            return hold(self.seam, make_pubsub(**options))

        execute: Any = client.execute_command
        if in_threads:
            hold = self._command_blocking(execute)
        else:
            hold = self._command(execute, client)
        client.execute_command = hold
        client.client = client_of_one_connection
        client.pipeline = pipeline
        client.pubsub = pubsub
        return client

    # What is known of commands

    def _known(self, command: str, subcommand: str) -> frozenset[str] | None:
        """The flags of a command that was asked for; `None` if it has none."""
        if command in self._flags:
            return self._flags[command]
        return self._flags.get(f"{command} {subcommand}")

    def _reading(self, args: Arguments) -> bool | None:
        """Whether a command reads; `None` if the server has to be asked."""
        command, subcommand = _name_of(args)
        full = f"{command} {subcommand}"
        if command in self._reads or full in self._reads:
            return True
        if command in _WRITES or not _NAME.fullmatch(command):
            return False
        if command not in self._flags and f"{command} ?" not in self._flags:
            return None
        flags = self._known(command, subcommand)
        if flags is None or "readonly" not in flags:
            return False
        effects = flags & _EFFECTS
        if command == "XREAD":
            # It may block, if told to. It waits then, for it would keep a connection.
            return not any(_word(argument) == "BLOCK" for argument in args[1:])
        return not effects

    def _learn(self, command: str, reply: Any) -> None:
        """Note the flags of a command, or of its subcommands."""
        try:
            (entry,) = reply
            subcommands = entry[_SUBCOMMANDS] if len(entry) > _SUBCOMMANDS else ()
            flags = frozenset(_text(flag) for flag in entry[2])
            found = {
                _text(each[0]).upper().replace("|", " "): frozenset(
                    _text(flag) for flag in each[2]
                )
                for each in subcommands
            }
        except (TypeError, ValueError, IndexError):  # unknown to it, or to us
            self._flags[command] = None
            return
        if found:
            self._flags[f"{command} ?"] = None
            self._flags.update(found)
        else:
            self._flags[command] = flags

    def _unknown(self, commands: Sequence[Arguments]) -> list[str]:
        """The names to ask the server for, if all the others read."""
        verdicts = [(self._reading(args), args) for args in commands]
        if any(verdict is False for verdict, _ in verdicts):
            return []
        return sorted({_name_of(args)[0] for verdict, args in verdicts if not verdict})

    # redis.asyncio

    async def _all_read(self, commands: Sequence[Arguments]) -> bool:
        for name in self._unknown(commands):
            try:
                with _reading_now():
                    # As bytes: the reply as it came, whatever the client makes of others.
                    reply = await self._ask(b"COMMAND", b"INFO", name)
            except ResponseError:  # it may not be asked
                reply = ()
            except (redis.RedisError, OSError):
                return False  # for now
            self._learn(name, reply)
        return all(self._reading(args) for args in commands)

    def _command(
        self, execute: Callable[..., Awaitable[Any]], client: Any = None
    ) -> Callable[..., Awaitable[Any]]:
        async def execute_command(*args: Any, **options: Any) -> Any:
            if unconfirmed_call() is None:
                return await execute(*args, **options)
            if not _would_keep_connection(client) and await self._all_read([args]):
                with _reading_now():
                    return await execute(*args, **options)
            await self.seam.wait(_effect(args))
            return await execute(*args, **options)

        return execute_command

    def _hold_pipeline(self, pipeline: Any) -> Any:
        run = pipeline.execute

        async def execute(raise_on_error: bool = True) -> Any:  # noqa: FBT001, FBT002
            if unconfirmed_call() is None or _is_empty(pipeline):
                return await run(raise_on_error)
            if not pipeline.scripts and await self._all_read(_queued(pipeline)):
                with _reading_now():
                    return await run(raise_on_error)
            try:
                await self.seam.wait(_pipeline_effect(pipeline))
            except BaseException:
                await pipeline.reset()
                raise
            return await run(raise_on_error)

        pipeline.execute = execute
        pipeline.immediate_execute_command = self._command(
            pipeline.immediate_execute_command
        )
        return pipeline

    # redis.Redis, in threads

    def _all_read_blocking(self, commands: Sequence[Arguments]) -> bool:
        for name in self._unknown(commands):
            try:
                with _reading_now():
                    reply = self._ask(b"COMMAND", b"INFO", name)
            except ResponseError:
                reply = ()
            except (redis.RedisError, OSError):
                return False
            self._learn(name, reply)
        return all(self._reading(args) for args in commands)

    def _command_blocking(self, execute: Callable[..., Any]) -> Callable[..., Any]:
        def execute_command(*args: Any, **options: Any) -> Any:
            if unconfirmed_call() is None:
                return execute(*args, **options)
            if self._all_read_blocking([args]):
                with _reading_now():
                    return execute(*args, **options)
            self.seam.wait_blocking(_effect(args))
            return execute(*args, **options)

        return execute_command

    def _hold_pipeline_blocking(self, pipeline: Any) -> Any:
        run = pipeline.execute

        def execute(raise_on_error: bool = True) -> Any:  # noqa: FBT001, FBT002
            if unconfirmed_call() is None or _is_empty(pipeline):
                return run(raise_on_error)
            if not pipeline.scripts and self._all_read_blocking(_queued(pipeline)):
                with _reading_now():
                    return run(raise_on_error)
            try:
                self.seam.wait_blocking(_pipeline_effect(pipeline))
            except BaseException:
                pipeline.reset()
                raise
            return run(raise_on_error)

        pipeline.execute = execute
        pipeline.immediate_execute_command = self._command_blocking(
            pipeline.immediate_execute_command
        )
        return pipeline


_held: WeakSet[Any] = WeakSet()
_held_pools: WeakSet[Any] = WeakSet()
_reads_now: ContextVar[bool] = ContextVar("headstart_redis_reads", default=False)
_CONNECTION = "taking a redis connection, not by a command known to read"
_SUBSCRIPTION = "using a redis subscription"


class _reading_now:  # noqa: N801 - reads as a statement
    """Let what a block does have a connection, and say so to the tripwire."""

    __slots__ = ("_passing", "_token")

    def __enter__(self) -> None:
        self._token = _reads_now.set(True)
        self._passing = passing()
        self._passing.__enter__()

    def __exit__(self, *_: object) -> None:
        self._passing.__exit__()
        _reads_now.reset(self._token)


def _hold_pool(seam: Seam, pool: Any) -> None:
    take = pool.get_connection

    async def get_connection(*args: Any, **options: Any) -> Any:
        if unconfirmed_call() is not None and not _reads_now.get():
            await seam.wait(_CONNECTION)
        return await take(*args, **options)

    pool.get_connection = get_connection


def _hold_pool_blocking(seam: Seam, pool: Any) -> None:
    take = pool.get_connection

    def get_connection(*args: Any, **options: Any) -> Any:
        if unconfirmed_call() is not None and not _reads_now.get():
            seam.wait_blocking(_CONNECTION)
        return take(*args, **options)

    pool.get_connection = get_connection


def _hold_pubsub(seam: Seam, pubsub: Any) -> Any:
    """Hold what is sent, and what is received: a message is received once."""
    send, receive = pubsub.execute_command, pubsub.parse_response

    async def execute_command(*args: Any, **options: Any) -> Any:
        await seam.wait(_SUBSCRIPTION)
        return await send(*args, **options)

    async def parse_response(*args: Any, **options: Any) -> Any:
        await seam.wait(_SUBSCRIPTION)
        return await receive(*args, **options)

    pubsub.execute_command, pubsub.parse_response = execute_command, parse_response
    return pubsub


def _hold_pubsub_blocking(seam: Seam, pubsub: Any) -> Any:
    send, receive = pubsub.execute_command, pubsub.parse_response

    def execute_command(*args: Any, **options: Any) -> Any:
        seam.wait_blocking(_SUBSCRIPTION)
        return send(*args, **options)

    def parse_response(*args: Any, **options: Any) -> Any:
        seam.wait_blocking(_SUBSCRIPTION)
        return receive(*args, **options)

    pubsub.execute_command, pubsub.parse_response = execute_command, parse_response
    return pubsub


def _text(value: Any) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


def _word(argument: Any) -> str:
    if isinstance(argument, bytes):
        return argument.decode("ascii", "replace").upper()
    return argument.upper() if isinstance(argument, str) else ""


def _name_of(args: Arguments) -> tuple[str, str]:
    """A command and what may be its subcommand, split as the client sends them."""
    words = _word(args[0]).split() if args else []
    if len(words) == 1:
        words += [_word(argument) for argument in args[1:2]]
    command, subcommand = (*words, "", "")[:2]
    return command, subcommand


def _effect(args: Arguments) -> str:
    name = " ".join(_word(args[0]).split()) if args else ""
    return f"redis {name}" if _NAME.fullmatch(name) else "a redis command"


def _pipeline_effect(pipeline: Any) -> str:
    return f"a redis pipeline of {len(pipeline.command_stack)} commands"


def _is_empty(pipeline: Any) -> bool:
    return not pipeline.command_stack and not pipeline.watching


def _queued(pipeline: Any) -> list[Arguments]:
    return [args for args, _ in pipeline.command_stack]


def _would_keep_connection(client: Any) -> bool:
    """Whether any command makes this client take a connection for itself."""
    return (
        client is not None
        and client.single_connection_client
        and client.connection is None
    )
