"""What every adapter shares: the options, and one run of a framework beside its session.

Rules of this file:

1. A call that the framework asks for runs in the framework's own way, in its own task,
   with its own hooks. Only launches run another way.
2. What the framework would see of a call, value or exception, it sees.
3. Nothing is declared for a tool: it is `UNSAFE` then, and never launched.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeAlias, cast

import anyio

from headstart._calls import ToolCall, ToolResult, decode_arguments
from headstart._errors import UsageError
from headstart._policy import Experience
from headstart._session import Session
from headstart._tools import Effect, Tool, ToolContext

if TYPE_CHECKING:
    from types import TracebackType

    from headstart._barrier import WriteBarrier
    from headstart._events import Sink
    from headstart._policy import Policy
    from headstart._session import Permit
    from headstart.predictors import Predictor

Declaration: TypeAlias = Effect | str | Mapping[str, Any]
"""What is declared of a tool: its effect, or a mapping of `Tool`'s options, such as
`{"effect": "READ", "reads": ["order:{order_id}"]}`."""

METADATA_KEY = "headstart"
"""Where a tool's own metadata holds its declaration."""

_HARMLESS = (
    "function",
    "namespace",
    "custom",
    "tool_search",
    "file_search",
    "web_search",
    "web_fetch",
    "x_search",
    "memory",
    "computer",
    "bash",
    "text_editor",
    "local_shell",
    "apply_patch",
)
"""Kinds of tools that this process runs, or that only look something up."""


def may_act(tool: object) -> bool:
    """Whether a provider may change something by a tool while it answers.

    It would do so for a request that is run ahead, too, and there is no barrier there. So
    it is taken to be so of every kind that is not known.

    Args:
        tool: A tool as the provider is told of it, or the kind of one.
    """
    if isinstance(tool, Mapping):
        tool = cast("Mapping[str, object]", tool).get("type")
    return isinstance(tool, str) and not tool.startswith(_HARMLESS)


class Speculation:
    """What an adapter may start early, and by whose word: the options of all adapters.

    One object serves any number of runs, and what its policy learns is shared by them:
    give each tenant its own.

    Args:
        effects: What is declared of tools, by name. It takes precedence over what a
            tool's own metadata declares under `"headstart"`. All others are `UNSAFE`.
        predictors: Who guesses calls.
        policy: Which guesses are launched; `ValuePolicy()` if not given.
        experience: What the policy goes by; one of its own if not given.
        sink: Who is told what happened.
        permit: Says, for each real call that would adopt a launch, whether it may run
            now; see `Session`.
        conditions: Barriers that must be open before any effect.
        speculate: False runs everything as without headstart, but for events.

    Raises:
        ToolDefinitionError: A declaration names no effect.
    """

    def __init__(
        self,
        *,
        effects: Mapping[str, Declaration] | None = None,
        predictors: Sequence[Predictor] = (),
        policy: Policy | None = None,
        experience: Experience | None = None,
        sink: Sink | None = None,
        permit: Permit | None = None,
        conditions: Sequence[WriteBarrier] = (),
        speculate: bool = True,
    ) -> None:
        self.effects = {
            name: _read_declaration(name, declared)
            for name, declared in (effects or {}).items()
        }
        self.predictors = tuple(predictors)
        self.policy = policy
        self.experience = experience if experience is not None else Experience()
        self.sink = sink
        self.permit = permit
        self.conditions = tuple(conditions)
        self.speculate = speculate

    def options_of(self, name: str, metadata: object = None) -> dict[str, Any]:
        """What is declared of a tool: options of `Tool`, `effect` among them or not."""
        declared = self.effects.get(name)
        if declared is not None:
            return declared
        if isinstance(metadata, Mapping) and METADATA_KEY in metadata:
            own = cast("Mapping[str, object]", metadata)
            return _read_declaration(name, own[METADATA_KEY])
        return {}

    def open_run(
        self,
        *,
        deps: Any = None,
        conditions: Sequence[WriteBarrier] = (),
        ordered: bool = False,
        name: str | None = None,
    ) -> HostRun:
        """One run of an agent, to be used in `async with` by an adapter."""
        session = Session[Any](
            deps=deps,
            predictors=self.predictors,
            policy=self.policy,
            experience=self.experience,
            sink=self.sink,
            permit=self.permit,
            conditions=(*self.conditions, *conditions),
            ordered=ordered,
            speculate=self.speculate,
            foreign=True,
            name=name,
        )
        return HostRun(self, session)


@dataclass(frozen=True, slots=True)
class Returned:
    """What a tool of the framework gave: the `value` of an adapter's `ToolResult`."""

    value: Any


Early: TypeAlias = Callable[[ToolContext[Any], dict[str, Any]], Awaitable[Any]]
Show: TypeAlias = Callable[[Any], ToolResult]


class HostRun:
    """One run of a framework's agent, and the session beside it: for adapters.

    An async context manager, left in the task that entered it.

    Attributes:
        session: The session: ask it where the framework sends a request.
    """

    def __init__(self, speculation: Speculation, session: Session[Any]) -> None:
        self.session = session
        self._speculation = speculation
        self._offered: dict[str, tuple[object, Tool]] = {}
        self._real: dict[int, Callable[[], Awaitable[Any]]] = {}  # by task
        self._shows: dict[str, Show] = {}

    async def __aenter__(self) -> Self:
        await self.session.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.session.__aexit__(kind, error, traceback)

    def tool(
        self,
        name: str,
        *,
        identity: object,
        early: Early,
        show: Show,
        parameters: dict[str, Any],
        description: str = "",
        validate: Callable[[str], dict[str, Any]] | None = None,
        metadata: object = None,
        never_early: bool = False,
    ) -> Tool:
        """The `Tool` that stands for one of the framework's, for `offer`.

        Args:
            name: What the model calls it.
            identity: Equal as long as the tool is the same; then the `Tool` is, too.
            early: Runs a launch: it is given the context and the arguments.
            show: What the model is told of the value that the framework's tool gives.
            parameters: The JSON schema of its arguments.
            description: What the model is told of it.
            validate: Reads an argument text as the framework does.
            metadata: The tool's own, which may hold a declaration.
            never_early: The framework wants a say in each call, as with approvals.
        """
        known = self._offered.get(name)
        if known is not None and known[0] == identity:
            return known[1]
        options = self._speculation.options_of(name, metadata)
        if never_early:
            never: dict[str, Any] = {"effect": Effect.UNSAFE, "deterministic": False}
            options = {**options, **never}

        def render(value: Any) -> ToolResult:
            shown = show(value)
            return ToolResult(shown.content, shown.is_error, value=Returned(value))

        async def function(context: ToolContext[Any], arguments: dict[str, Any]) -> Any:
            real = self._real.get(anyio.get_current_task().id)
            context.adapt(render)
            if real is None:
                return render(await early(context, arguments))
            return render(await real())

        made = Tool(
            function,
            name=name,
            description=description or name,
            parameters=parameters,
            validate=validate,
            **options,
        )
        self._offered[name] = (identity, made)
        return made

    def offer(self, tools: Iterable[Tool]) -> tuple[Tool, ...]:
        """Say which tools the next request offers."""
        offered = tuple(tools)
        if offered != self.session.tools:
            self.session.use_tools(offered)
        return offered

    def hold(self, *conditions: WriteBarrier) -> None:
        """Let effects wait for these, and for those of the options, from now on."""
        self.session.use_conditions((*self._speculation.conditions, *conditions))

    async def call(self, call: ToolCall, real: Callable[[], Awaitable[Any]]) -> Any:
        """Run a call that the framework asks for, or adopt its launch.

        Args:
            call: One of the calls of the last answer.
            real: Runs it as the framework does. It is awaited once at most, in this
                task.

        Returns:
            What the framework's tool gave.

        Raises:
            BaseException: What it raised.
        """
        known = any(tool.name == call.name for tool in self.session.tools)
        if not known or decode_arguments(call.arguments) is None:
            return await real()
        task = anyio.get_current_task().id
        self._real[task] = real
        try:
            result = await self.session.call(call)
        finally:
            del self._real[task]
        if result.error is not None:
            raise result.error
        if isinstance(result.value, Returned):
            return result.value.value
        return await real()  # it did not run: the framework says why in its own words


def _read_declaration(name: str, declared: object) -> dict[str, Any]:
    if isinstance(declared, (Effect, str)):
        options: dict[str, Any] = {"effect": declared}
    elif isinstance(declared, Mapping):
        options = {**cast("Mapping[str, Any]", declared)}
    else:
        kind = type(declared).__name__
        msg = (
            f"What is declared of the tool {name!r} is an effect or a mapping of "
            f"options such as {{'effect': 'READ'}}, not {kind}."
        )
        raise UsageError(msg)
    try:  # what cannot work is said now, and not when the first run begins
        Tool(_nothing, name=name, parameters={}, **options)
    except TypeError as error:
        msg = f"What is declared of the tool {name!r} is no option of a tool: {error}"
        raise UsageError(msg) from error
    return options


async def _nothing(arguments: dict[str, Any]) -> None:
    del arguments
