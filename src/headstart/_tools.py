"""Tools: functions that a model may call, with what they touch declared."""

from __future__ import annotations

import enum
import inspect
import threading
from contextvars import ContextVar
from functools import partial
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

import anyio
import anyio.from_thread
import anyio.lowlevel
from pydantic import BaseModel, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError
from typing_extensions import TypeVar

from ._barrier import BarrierState
from ._calls import (
    IGNORED_PREFIXES,
    ToolCall,
    ToolResult,
    comparable_arguments,
    decode_arguments,
    same_value,
)
from ._errors import ToolDefinitionError
from ._resources import NOTHING, ResourceKeys, as_strings, read_templates, render_keys
from ._threads import in_own_thread, run_in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ._barrier import WriteBarrier

Deps = TypeVar("Deps", default=Any)


class Effect(enum.Enum):
    """What running a tool does to the world, as its author declares it."""

    READ = "read"
    """Changes nothing: it may run early and be thrown away."""
    GATED = "gated"
    """Awaits its barrier before each side effect: it may run early, up to there."""
    UNSAFE = "unsafe"
    """Anything else: it never runs early."""

    @classmethod
    def parse(cls, value: Effect | str, *, tool: str) -> Effect:
        """Take an effect, or its name in any case.

        Raises:
            ToolDefinitionError: There is no such effect.
        """
        if isinstance(value, Effect):
            return value
        try:
            return cls(value.lower())
        except (ValueError, AttributeError):
            msg = (
                f"The tool {tool!r} declares the effect {value!r}; it is one of "
                f"{', '.join(effect.name for effect in cls)}."
            )
            raise ToolDefinitionError(msg, tool=tool) from None


class ToolContext(Generic[Deps]):
    """What a running call knows of itself: a tool's first parameter, if it asks.

    Attributes:
        deps: The caller's own: identity, database, clients.
        call: The call, with the model's identifier once that is known.
        barrier: What a `GATED` tool awaits before each side effect.
    """

    __slots__ = (
        "_home",
        "_on_early_result",
        "_own",
        "_render",
        "barrier",
        "call",
        "deps",
    )

    def __init__(
        self,
        *,
        deps: Deps,
        call: ToolCall,
        barrier: WriteBarrier,
        on_early_result: Callable[[ToolResult], None] | None = None,
        own: WriteBarrier | None = None,
    ) -> None:
        self.deps = deps
        self.call = call
        self.barrier = barrier
        self._on_early_result = on_early_result
        self._own = own or barrier  # without the conditions that `barrier` has as well
        self._render: Callable[[Any], ToolResult] = ToolResult.from_value
        self._home: tuple[int, anyio.lowlevel.EventLoopToken] | None = None

    def adapt(self, render: Callable[[Any], ToolResult]) -> None:
        """Take a host's own way to show values, and its threads: for adapters."""
        self._render = render
        self._home = threading.get_ident(), anyio.lowlevel.current_token()

    @property
    def speculative(self) -> bool:
        """Whether the call is not confirmed (yet): its barrier is not open."""
        return self.barrier.effective_state is not BarrierState.FLUSHED

    def discard(self, reason: str) -> bool:
        """Give this call up if it was launched ahead and is not confirmed.

        For a tool that finds out that it cannot be held: the real call then runs as if
        nothing had been launched. From any task or thread; the tool is cancelled soon.

        Returns:
            Whether this gave it up. `False` says that the call is settled: it was given
            up before, or it is confirmed and goes on, once its conditions allow it.
        """
        return self._own.deny(reason)

    @property
    def discarded(self) -> bool:
        """Whether the call was given up: nothing will come of what it does now."""
        return self._own.effective_state is BarrierState.DENIED

    def early_result(self, value: object) -> None:
        """State the result before it is there, so that the model can go on with it.

        Call it when the result is certain but for the effect itself, such as before
        `await ctx.barrier.wait()`. It is checked: when the tool then returns something
        that the model would see otherwise, what was built on it is thrown away. From a
        sync tool it may be called in the tool's own thread.

        Raises:
            ValueError: The value cannot be rendered as a result.
        """
        result = self._render(value)
        if in_own_thread():
            anyio.from_thread.run_sync(self.receive_early_result, result)
        elif self._home is not None and self._home[0] != threading.get_ident():
            anyio.from_thread.run_sync(
                self.receive_early_result, result, token=self._home[1]
            )
        else:
            self.receive_early_result(result)

    def receive_early_result(self, result: ToolResult) -> None:
        """Take a rendered early result, in the event loop's own thread."""
        if self._on_early_result is not None:
            self._on_early_result(result)

    def end(self) -> None:
        """Take no early result any more: the call has ended."""
        self._on_early_result = None


_running: ContextVar[ToolContext[Any] | None]
_running = ContextVar("headstart_context", default=None)


class entered:  # noqa: N801 - reads as a statement, and is a class for its speed
    """Make a context the current one in a block."""

    __slots__ = ("_context", "_token")

    def __init__(self, context: ToolContext[Any]) -> None:
        self._context = context

    def __enter__(self) -> None:
        self._token = _running.set(self._context)

    def __exit__(self, *_: object) -> None:
        _running.reset(self._token)


def current_context() -> ToolContext[Any] | None:
    """The context of the tool call that is running here; `None` outside one.

    For tools whose signature is a framework's, or that are called without headstart as
    well. A `GATED` tool awaits its barrier:

    ```python
    async def pause(incident_id: int) -> str:
        "Pause an incident."
        if context := current_context():
            context.early_result("paused")
            await context.barrier.wait()
        ...
    ```

    It is a context variable: it reaches awaited code, tasks, and the threads of
    `asyncio.to_thread` and `anyio.to_thread`, where `barrier.wait_blocking()` is used;
    neither a plain `threading.Thread` nor an executor.
    """
    return _running.get()


class InvalidArgumentsError(ValueError):
    """What a model wrote as arguments does not fit the tool. Becomes its result."""


class Tool:
    """A function that a model may call.

    Made by `tool`. Constructed directly with `parameters`, a JSON schema from
    elsewhere, the function takes one dict of the decoded arguments instead (after the
    context, if it asks for it), and arguments are compared as JSON, or as `validate`
    reads them.

    A `Tool` is called like its function, which makes it easy to test.

    Attributes:
        name: What the model calls it.
        description: What the model is told of it.
        parameters: The JSON schema of its arguments.
        effect: What it does to the world.
        deterministic: Its result depends on the arguments alone, so that equal calls of
            a session share the first one's. For `READ` only.
        egress: Its arguments leave the system, so it is not launched on a guess.
        approval: Somebody has to approve each real call.
        max_age: Seconds that an early read stays usable; `None` for no limit.
        max_concurrency: No call is launched early beyond so many running ones.
        cost_usd: What one call costs, in US dollars.
        ignore_arguments: Top-level argument names that begin with one of these never
            decide whether two calls match.
        timeout: Seconds that a real call may take, or `None`.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        description: str | None = None,
        parameters: dict[str, Any] | None = None,
        validate: Callable[[str], dict[str, Any]] | None = None,
        effect: Effect | str = Effect.UNSAFE,
        reads: Sequence[str] | None = None,
        writes: Sequence[str] | None = None,
        deterministic: bool = False,
        egress: bool = False,
        approval: bool = False,
        max_age: float | None = 30.0,
        max_concurrency: int | None = None,
        cost_usd: float = 0.0,
        ignore_arguments: Sequence[str] = IGNORED_PREFIXES,
        timeout: float | None = None,
    ) -> None:
        self.name = name or getattr(function, "__name__", "")
        if not self.name or self.name == "<lambda>":
            msg = "A tool without a function name needs one: pass name=..."
            raise ToolDefinitionError(msg, tool=self.name)
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(
            function
        ):
            msg = f"The tool {self.name!r} yields: return one value, such as a list."
            raise ToolDefinitionError(msg, tool=self.name)
        self.function = function
        self.description = description or inspect.getdoc(function) or ""
        self.effect = Effect.parse(effect, tool=self.name)
        self.deterministic = deterministic
        self.egress = egress
        self.approval = approval
        self.max_age = max_age
        self.max_concurrency = max_concurrency
        self.cost_usd = cost_usd
        self.ignore_arguments = as_strings(
            ignore_arguments, "ignore_arguments", self.name
        )
        self.timeout = timeout
        self.is_async = inspect.iscoroutinefunction(function) or (
            inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
        )
        self._takes_context, fields = _read_signature(function, self.name)
        self._model: type[BaseModel] | None = None
        self._validate = validate
        if validate is not None and parameters is None:
            msg = f"The tool {self.name!r} has 'validate' and no 'parameters' for it."
            raise ToolDefinitionError(msg, tool=self.name)
        if parameters is None:
            self._names = tuple(
                (name, _FIELD.format(position)) for position, name in enumerate(fields)
            )
            self._model, parameters = _arguments_model(self.name, fields)
        self.parameters = parameters
        names = None if self._model is None else set(fields)
        self._reads = read_templates(reads, "reads", self.name, names)
        self._writes = read_templates(writes, "writes", self.name, names)
        if deterministic and self.effect is not Effect.READ:
            msg = f"The tool {self.name!r} is deterministic, so it has to be READ."
            raise ToolDefinitionError(msg, tool=self.name)
        if self.effect is Effect.READ and self._writes:
            msg = f"The tool {self.name!r} is READ and declares writes: one is wrong."
            raise ToolDefinitionError(msg, tool=self.name)

    def __repr__(self) -> str:
        return f"<Tool {self.name!r} {self.effect.name}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    @property
    def launchable(self) -> bool:
        """Whether its effect allows it to be launched before it is certain."""
        return self.effect is not Effect.UNSAFE

    def validate(self, arguments: str) -> dict[str, Any]:
        """Read an argument text into what the function is called with.

        Every call returns new objects.

        Raises:
            InvalidArgumentsError: It is no JSON object, or does not fit the parameters.
        """
        if self._model is None:
            decoded = decode_arguments(arguments)
            if decoded is None:
                msg = "The arguments are not a JSON object."
                raise InvalidArgumentsError(msg)
            if self._validate is None:
                return decoded
            try:
                return self._validate(arguments)
            except Exception as error:  # a validator may raise anything
                raise InvalidArgumentsError(str(error)) from error
        text = arguments if arguments and not arguments.isspace() else "{}"
        try:
            model: BaseModel = self._model.__pydantic_validator__.validate_json(text)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, detail['loc'])) or 'arguments'}: {detail['msg']}"
                for detail in error.errors(include_url=False, include_input=False)
            )
            raise InvalidArgumentsError(problems) from None
        except Exception as error:  # a validator may raise anything
            raise InvalidArgumentsError(f"{type(error).__name__}: {error}") from error
        values = vars(model)
        return {name: values[field] for name, field in self._names}

    def fingerprint(self, arguments: str) -> ArgumentsFingerprint | None:
        """What two argument texts are compared by; `None` matches nothing."""
        decodes = self._validate is not None  # what `validate` does for these first
        values = {} if decodes else comparable_arguments(arguments)
        if values is None:
            return None
        if self._model is not None or decodes:
            try:
                values = self.validate(arguments)
            except InvalidArgumentsError:
                if decodes:
                    comparable_arguments(arguments)  # logs what is no JSON object
                return None
        for prefix in self.ignore_arguments:
            for name in [name for name in values if name.startswith(prefix)]:
                if len(name) > len(prefix):
                    del values[name]
        return ArgumentsFingerprint(values)

    def read_keys(self, arguments: dict[str, Any]) -> ResourceKeys:
        """The resources that a call reads, or depends on before its effect."""
        return render_keys(self._reads, arguments)

    def write_keys(self, arguments: dict[str, Any]) -> ResourceKeys:
        """The resources that a call changes."""
        if self.effect is Effect.READ:
            return NOTHING
        return render_keys(self._writes, arguments)

    def invoke(
        self, context: ToolContext[Any], arguments: dict[str, Any]
    ) -> Awaitable[Any]:
        """Run the function: in this task if it is async, in a thread if it is not.

        Cancelling cancels an async function. A thread is let go (see
        `disowned_threads`), and the caller returns at once.
        """
        args = (context,) if self._takes_context else ()
        if self._model is None:
            bound = partial(self.function, *args, arguments)
        else:
            bound = partial(self.function, *args, **arguments)
        if self.is_async:
            return bound()
        return run_in_thread(bound, speculative=context.speculative)


class ArgumentsFingerprint:
    """The meaning of the arguments of one call, for comparison with another's.

    The values by the tool's own schema where it has one, and the JSON values elsewhere.
    """

    __slots__ = ("_values",)

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ArgumentsFingerprint):
            return NotImplemented
        return same_value(self._values, other._values)

    __hash__ = None  # type: ignore[assignment] # the values need not hash


def _read_signature(
    function: Callable[..., Any], name: str
) -> tuple[bool, dict[str, Any]]:
    """Whether the first parameter is a context, and the others as model fields."""
    try:
        signature = inspect.signature(function)
        target = function if inspect.isroutine(function) else type(function).__call__
        hints = get_type_hints(
            function.func if isinstance(function, partial) else target,
            include_extras=True,
        )
    except (TypeError, ValueError, NameError) as error:
        msg = f"The signature of the tool {name!r} cannot be read: {error}"
        raise ToolDefinitionError(msg, tool=name) from error
    takes_context = False
    fields: dict[str, Any] = {}
    for position, parameter in enumerate(signature.parameters.values()):
        hint = hints.get(parameter.name, parameter.empty)
        if position == 0 and (hint is ToolContext or get_origin(hint) is ToolContext):
            takes_context = True
            continue
        if parameter.kind not in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        ):
            msg = (
                f"The parameter {parameter.name!r} of the tool {name!r} has no name "
                "that a model could give it: use plain named parameters."
            )
            raise ToolDefinitionError(msg, tool=name)
        if ToolContext in (hint, get_origin(hint), *map(get_origin, get_args(hint))):
            msg = f"The context is the first parameter of the tool {name!r}, or none."
            raise ToolDefinitionError(msg, tool=name)
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hint, default)
    return takes_context, fields


_FIELD = "parameter_{}"


def _arguments_model(
    name: str, fields: dict[str, Any]
) -> tuple[type[BaseModel], dict[str, Any]]:
    # The fields are numbered and the parameters' names their aliases, since a field
    # cannot be called `copy`, `model_config` or `_id`, and a parameter can.
    numbered: dict[str, Any] = {}
    for position, (field, (hint, default)) in enumerate(fields.items()):
        if hint is inspect.Parameter.empty:
            msg = f"The parameter {field!r} of the tool {name!r} has no type: add one."
            raise ToolDefinitionError(msg, tool=name)
        plain, *metadata = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        aliased = Annotated[(plain, Field(alias=field), *metadata)]
        numbered[_FIELD.format(position)] = (aliased, default)
    try:
        model = create_model(name, **numbered)
        return model, model.model_json_schema()
    except (PydanticUserError, NameError, TypeError, ValueError) as error:
        msg = f"The parameters of the tool {name!r} have no JSON schema: {error}"
        raise ToolDefinitionError(msg, tool=name) from error


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    effect: Effect | str = Effect.UNSAFE,
    reads: Sequence[str] | None = None,
    writes: Sequence[str] | None = None,
    deterministic: bool = False,
    egress: bool = False,
    approval: bool = False,
    max_age: float | None = 30.0,
    max_concurrency: int | None = None,
    cost_usd: float = 0.0,
    ignore_arguments: Sequence[str] = IGNORED_PREFIXES,
    timeout: float | None = None,
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None, /, **options: Any
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a function a tool. Without an effect it is `UNSAFE` and never runs early.

    ```python
    @tool(effect=Effect.READ, reads=["incident:{incident_id}"])
    async def get_incident(ctx: ToolContext[Deps], incident_id: int) -> dict:
        "The incident's title, severity and state."
        return await ctx.deps.incidents.get(incident_id)
    ```

    The schema comes from the signature, by pydantic, and the description from the
    docstring. An async function runs in the caller's task, any other in a thread. A
    first parameter typed `ToolContext` receives the context and is not shown to the
    model. `reads` and `writes` name resources by templates over the arguments; `a`
    covers `a:b`. A tool that does not declare them touches everything. The other
    options are the attributes of `Tool`.

    Raises:
        ToolDefinitionError: The function or an option cannot work; the message says
            which and why.
    """
    if function is not None:
        return Tool(function)

    def make(decorated: Callable[..., Any]) -> Tool:
        return Tool(decorated, **options)

    return make
