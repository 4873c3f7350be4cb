"""Tools: what a model is shown of a function, what is refused, and how it runs."""

import threading
from datetime import date
from enum import Enum, StrEnum
from functools import partial, wraps
from typing import Annotated, Any, Literal

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from pydantic import BaseModel, Field

from headstart import (
    Effect,
    Tool,
    ToolCall,
    ToolContext,
    ToolResult,
    WriteBarrier,
    current_barrier,
    tool,
)
from headstart._barrier import running_in
from headstart._errors import ToolDefinitionError
from headstart._resources import EVERYTHING, NOTHING, overlaps
from headstart._threads import _ThreadCall, disowned_threads
from headstart._tools import InvalidArgumentsError


def context(barrier=None, **options):
    options = {"deps": None, "call": ToolCall("call_1", "it"), **options}
    return ToolContext(barrier=barrier or WriteBarrier(), **options)


def make(function, **options):
    return Tool(function, **options)


# --- what the model is shown -------------------------------------------------------


class Severity(StrEnum):
    LOW = "low"
    HIGH = "high"


class Window(BaseModel):
    start: date
    hours: int = 1


def test_name_and_description_come_from_the_function():
    @tool(effect=Effect.READ)
    async def get_incident(incident_id: int) -> str:
        """The incident's title.

        And more.
        """
        return str(incident_id)

    assert get_incident.name == "get_incident"
    assert get_incident.description == "The incident's title.\n\nAnd more."
    assert get_incident.effect is Effect.READ
    assert get_incident.launchable
    assert get_incident.is_async


def test_name_and_description_can_be_given():
    made = make(lambda x: x, name="echo", description="Echo.", parameters={})
    assert (made.name, made.description) == ("echo", "Echo.")
    assert not make(lambda: 0, name="zero").description


def test_a_bare_decorator_makes_an_unsafe_tool():
    @tool
    def send(text: str) -> None: ...

    assert send.effect is Effect.UNSAFE
    assert not send.launchable
    assert not send.is_async
    assert repr(send) == "<Tool 'send' UNSAFE>"


def test_a_tool_is_called_like_its_function():
    @tool
    def double(x: int) -> int:
        return 2 * x

    assert double(4) == double(x=4) == 8


def test_the_schema_comes_from_the_signature():
    @tool
    async def update(
        ctx: ToolContext[int],
        incident_id: int,
        severity: Severity,
        note: str | None = None,
        tags: list[str] = ["new"],  # noqa: B006 - pydantic copies it
        *,
        kind: Literal["a", "b"] = "a",
        window: Window | None = None,
        score: Annotated[float, Field(ge=0, description="How sure.")] = 0.5,
    ) -> None: ...

    schema = update.parameters
    assert schema["type"] == "object"
    assert schema["required"] == ["incident_id", "severity"]
    assert list(schema["properties"]) == [
        *("incident_id", "severity", "note", "tags", "kind", "window", "score"),
    ]
    assert schema["properties"]["incident_id"] == {
        "title": "Incident Id",
        "type": "integer",
    }
    assert schema["properties"]["score"] == {
        "default": 0.5,
        "description": "How sure.",
        "minimum": 0,
        "title": "Score",
        "type": "number",
    }
    assert schema["properties"]["tags"]["default"] == ["new"]
    assert schema["$defs"]["Severity"]["enum"] == ["low", "high"]


def test_a_tool_without_parameters_has_an_empty_object():
    made = make(lambda: 0, name="zero")
    assert made.parameters["properties"] == {}
    assert made.validate("") == made.validate("{}") == {}


@pytest.mark.parametrize(
    "name",
    ["copy", "json", "schema", "model_config", "model_extra", "_id", "self", "cls"],
)
def test_a_parameter_may_have_any_name(name):
    space = {}
    exec(f"def f({name}: int): return {name}", space)
    made = make(space["f"])
    assert list(made.parameters["properties"]) == [name]
    assert made.validate(f'{{"{name}": 3}}') == {name: 3}


def test_an_alias_is_what_the_model_writes():
    @tool
    def get(incident_id: Annotated[int, Field(alias="incidentId")]) -> None: ...

    assert list(get.parameters["properties"]) == ["incidentId"]
    assert get.validate('{"incidentId": 7}') == {"incident_id": 7}


def test_a_field_as_default_describes_the_parameter():
    @tool
    def get(limit: int = Field(5, ge=1, description="How many.")) -> None: ...

    assert get.parameters["properties"]["limit"]["description"] == "How many."
    assert get.validate("{}") == {"limit": 5}
    with pytest.raises(InvalidArgumentsError, match="limit"):
        get.validate('{"limit": 0}')


def test_methods_partials_and_callable_objects_are_tools():
    class Incidents:
        def get(self, incident_id: int) -> int:
            return incident_id

        async def __call__(self, ctx: ToolContext, incident_id: int) -> int:
            return incident_id

    def add(left: int, right: int) -> int:
        return left + right

    async def add_later(left: int, right: int) -> int:
        return left + right

    for made in (
        make(Incidents().get),
        make(Incidents(), name="get"),
        make(partial(add, 1), name="add_one"),
        make(partial(add_later, 1), name="add_one"),
    ):
        assert len(made.parameters["required"]) == 1
    assert make(Incidents(), name="get").is_async
    assert make(partial(add_later, 1), name="add_one").is_async
    assert not make(partial(add, 1), name="add_one").is_async


# --- what is refused ---------------------------------------------------------------


def untyped(x): ...


def star(*values: int): ...


def double_star(**values: int): ...


def positional(x: int, /): ...


def unknown_type(x: "Nowhere"): ...  # noqa: F821


def late_context(x: int, ctx: ToolContext): ...


def optional_late_context(x: int, ctx: ToolContext[int] | None = None): ...


def impossible_type(x: threading.Lock): ...


def no_schema(x: "type(print)"): ...


def callback(x: "__import__('typing').Callable[[], int]"): ...


def yields():
    yield 1


async def yields_later():
    yield 1


def fine(incident_id: int): ...


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (untyped, {}),
        (star, {}),
        (double_star, {}),
        (positional, {}),
        (unknown_type, {}),
        (late_context, {}),
        (optional_late_context, {}),
        (impossible_type, {}),
        (no_schema, {}),
        (callback, {}),
        (yields, {}),
        (yields_later, {}),
        (lambda: 0, {}),
        (partial(fine, 1), {}),
        (7, {}),
        (7, {"name": "seven"}),
        (fine, {"effect": "reads"}),
        (fine, {"effect": None}),
        (fine, {"reads": "incident:{incident_id}"}),
        (fine, {"writes": "incident"}),
        (fine, {"ignore_arguments": "debug_"}),
        (fine, {"reads": ["incident:{id}"]}),
        (fine, {"reads": ["incident:{}"]}),
        (fine, {"reads": ["incident:{0}"]}),
        (fine, {"reads": ["incident:{incident_id.real}"]}),
        (fine, {"reads": ["incident:{incident_id"]}),
        (fine, {"writes": ["}"]}),
        (fine, {"effect": "read", "writes": ["incident:{incident_id}"]}),
    ],
)
def test_what_cannot_be_a_tool_is_a_definition_error_that_names_it(function, options):
    with pytest.raises(ToolDefinitionError) as caught:
        make(function, **options)
    assert caught.value.tool == options.get("name", getattr(function, "__name__", ""))
    assert str(caught.value).endswith((".", "...")) or ": " in str(caught.value)


@pytest.mark.parametrize(
    ("value", "effect"),
    [("read", "READ"), ("Gated", "GATED"), ("UNSAFE", "UNSAFE"), (Effect.READ, "READ")],
)
def test_an_effect_may_be_named_in_any_case(value, effect):
    assert make(fine, effect=value).effect is Effect[effect]


# --- validation --------------------------------------------------------------------


def test_validation_converts_and_fills_in_defaults():
    @tool
    def get(day: date, limit: int = 10, severity: Severity = Severity.LOW) -> None: ...

    assert get.validate('{"day": "2030-01-02", "limit": "3"}') == {
        "day": date(2030, 1, 2),
        "limit": 3,
        "severity": Severity.LOW,
    }


def test_every_validation_returns_new_objects():
    @tool
    def get(tags: list[str] = ["a"]) -> None: ...  # noqa: B006

    for text in ("{}", '{"tags": ["a"]}'):
        first, second = get.validate(text), get.validate(text)
        first["tags"].append("b")
        assert second == {"tags": ["a"]}
        assert get.validate(text) == {"tags": ["a"]}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "arguments: "),
        ("[]", "arguments: "),
        ("{}", "incident_id: "),
        ('{"incident_id": "x"}', "incident_id: "),
        ('{"incident_id": null}', "incident_id: "),
        ('{"incident_id": "\\ud800"}', "arguments: "),
    ],
)
def test_arguments_that_do_not_fit_are_an_error_that_says_where(text, problem):
    made = make(fine)
    with pytest.raises(InvalidArgumentsError) as caught:
        made.validate(text)
    assert str(caught.value).startswith(problem)
    assert made.fingerprint(text) is None


def test_whatever_a_validator_raises_makes_the_arguments_invalid():
    class Picky(BaseModel):
        x: int

        def model_post_init(self, _: Any) -> None:
            raise LookupError("not today")

    @tool
    def get(picky: Picky) -> None: ...

    with pytest.raises(InvalidArgumentsError, match="not today"):
        get.validate('{"picky": {"x": 1}}')
    assert get.fingerprint('{"picky": {"x": 1}}') is None


def test_a_tool_with_a_schema_from_elsewhere_gets_the_decoded_object():
    schema = {"type": "object", "properties": {"x": {"type": "number"}}}
    made = make(lambda arguments: arguments, name="echo", parameters=schema)
    assert made.parameters is schema
    assert made.validate('{"x": 1.0, "y": [2]}') == {"x": 1, "y": [2]}
    for text in ("[]", "{", '{"x": NaN}'):
        with pytest.raises(InvalidArgumentsError):
            made.validate(text)


# --- when two calls match ----------------------------------------------------------


def matches(made, left, right):
    fingerprint = made.fingerprint(left)
    return fingerprint is not None and fingerprint == made.fingerprint(right)


def test_validated_arguments_decide_where_there_is_a_schema():
    @tool
    def get(count: int, share: float = 1.0, flag: bool = False) -> None: ...

    base = '{"count": 1}'
    for text in (
        '{"count": 1.0}',
        '{"count": "1"}',
        '{"share": 1, "count": 1}',
        '{"count": 1, "flag": false, "share": 1.0}',
        '{"count": 1, "unknown": 7}',
        '{"count": 1, "debug_trace": 7}',
    ):
        assert matches(made := get, base, text), (made, text)
    for text in (
        '{"count": 2}',
        '{"count": 1, "flag": true}',
        '{"count": 1, "share": 2}',
        '{"count": 1.5}',
        '{"count": true, "flag": 1, "share": "x"}',
        "{}",
        "[]",
    ):
        assert not matches(get, base, text), text


def test_json_arguments_decide_where_the_schema_is_from_elsewhere():
    made = make(lambda arguments: arguments, name="get", parameters={})
    assert matches(made, '{"x": 1, "y": 2}', '{"y": 2.0, "x": 1}')
    assert not matches(made, '{"x": 1}', '{"x": true}')
    assert not matches(made, '{"x": 1}', '{"x": 1, "y": null}')
    assert not matches(made, "[]", "[]")


def test_ignored_arguments_are_ignored_on_both_sides_even_where_they_are_parameters():
    def get(x: int, debug_level: int = 0, debug_: int = 0) -> None: ...

    assert matches(make(get), '{"x": 1, "debug_level": 2}', '{"x": 1}')
    assert not matches(make(get), '{"x": 1, "debug_": 2}', '{"x": 1}')
    strict = make(get, ignore_arguments=[])
    assert not matches(strict, '{"x": 1, "debug_level": 2}', '{"x": 1}')


def test_a_fingerprint_is_equal_to_fingerprints_only():
    fingerprint = make(fine).fingerprint('{"incident_id": 7}')
    assert fingerprint != '{"incident_id":7}'
    with pytest.raises(TypeError):
        hash(fingerprint)


# --- resources ---------------------------------------------------------------------


def keys(*names):
    return frozenset(names)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (keys("incident:7"), keys("incident:7"), True),
        (keys("incident:7"), keys("incident:8"), False),
        (keys("incident"), keys("incident:7"), True),
        (keys("incident:7"), keys("incident"), True),
        (keys("incident:7"), keys("incident:7:note:1"), True),
        (keys("incident:7"), keys("incident:77"), False),
        (keys("incident"), keys("incidents:7"), False),
        (keys("a", "b:1"), keys("c", "b"), True),
        (EVERYTHING, keys("incident:7"), True),
        (keys("incident:7"), EVERYTHING, True),
        (EVERYTHING, EVERYTHING, True),
        (EVERYTHING, NOTHING, False),
        (NOTHING, NOTHING, False),
        (NOTHING, keys("incident"), False),
    ],
)
def test_keys_overlap_when_one_covers_the_other(left, right, expected):
    assert overlaps(left, right) is expected
    assert overlaps(right, left) is expected


def test_resource_keys_are_rendered_from_the_arguments():
    def move(incident_id: int, team: str | None = None) -> None: ...

    made = make(
        move,
        effect=Effect.GATED,
        reads=["team", "incident:{incident_id}"],
        writes=["incident:{incident_id}:team:{team}"],
    )
    assert made.read_keys({"incident_id": 7}) == keys("team", "incident:7")
    assert made.write_keys({"incident_id": 7, "team": "a"}) == keys("incident:7:team:a")
    assert made.write_keys({"incident_id": 7, "team": None}) == EVERYTHING
    assert made.write_keys({}) == EVERYTHING


def test_a_tool_that_declares_no_keys_touches_everything():
    for effect in Effect:
        made = make(fine, effect=effect)
        assert made.read_keys({"incident_id": 7}) == EVERYTHING
        writes = NOTHING if effect is Effect.READ else EVERYTHING
        assert made.write_keys({"incident_id": 7}) == writes


def test_a_tool_that_declares_an_empty_list_touches_nothing():
    made = make(fine, effect=Effect.GATED, reads=[], writes=[])
    assert made.read_keys({}) == made.write_keys({}) == NOTHING


class Region(str, Enum):  # noqa: UP042 - its text differs from its value
    EU = "eu"


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("eu", "r:eu"),
        pytest.param(Region.EU, "r:eu", id="enum"),
        (7, "r:7"),
        (7.0, "r:7"),
    ],
)
def test_equal_resources_have_equal_keys_whatever_type_a_tool_declares(value, key):
    made = make(lambda region: 0, name="get", parameters={}, reads=["r:{region}"])
    assert made.read_keys({"region": value}) == keys(key)


def test_a_key_that_cannot_be_rendered_covers_everything():
    made = make(lambda x: 0, name="get", parameters={}, reads=["x:{x:d}"])
    assert made.read_keys({"x": 7}) == keys("x:7")
    assert made.read_keys({"x": "seven"}) == EVERYTHING


# --- the context -------------------------------------------------------------------


def test_a_context_says_whether_the_call_is_confirmed():
    turn = WriteBarrier()
    barrier = turn.child()
    ctx = context(barrier)
    assert ctx.speculative
    barrier.flush()
    assert ctx.speculative
    turn.flush()
    assert not ctx.speculative


async def test_a_context_reaches_the_tool_that_asks_for_it_and_no_other():
    async def with_context(ctx: ToolContext[str], x: int):
        return ctx.deps, ctx.call.id, x

    async def without(x: int):
        return x

    ctx = context(deps="database")
    assert await make(with_context).invoke(ctx, {"x": 1}) == ("database", "call_1", 1)
    assert await make(without).invoke(ctx, {"x": 1}) == 1


async def test_a_context_reaches_a_tool_with_a_schema_from_elsewhere():
    async def proxy(ctx: ToolContext, arguments: dict) -> object:
        return ctx.deps, arguments

    made = make(proxy, parameters={})
    assert await made.invoke(context(deps=1), {"x": 2}) == (1, {"x": 2})


async def test_an_early_result_is_rendered_and_given_at_once():
    given = []
    ctx = context(on_early_result=given.append)
    ctx.early_result({"paused": True})
    assert given == [ToolResult('{"paused":true}')]
    with pytest.raises(ValueError):  # noqa: PT011
        ctx.early_result(object())
    context().early_result("nobody listens")


# --- sync tools in threads ---------------------------------------------------------


@pytest.mark.real_time
async def test_a_sync_tool_runs_in_a_thread_of_its_own():
    def where(x: int):
        return x, threading.get_ident()

    result = await make(where).invoke(context(), {"x": 1})
    assert result[0] == 1
    assert result[1] != threading.get_ident()


@pytest.mark.real_time
async def test_a_sync_tool_sees_its_barrier():
    barrier = WriteBarrier()

    def look():
        return current_barrier()

    with running_in(barrier):
        assert await make(look).invoke(context(barrier), {}) is barrier


@pytest.mark.real_time
async def test_a_sync_tool_waits_at_its_barrier_in_its_thread():
    effects = []

    def write(ctx: ToolContext):
        ctx.barrier.wait_blocking()
        effects.append("written")

    with WriteBarrier() as barrier:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(make(write).invoke, context(barrier), {})
            await anyio.wait_all_tasks_blocked()
            assert effects == []
            barrier.flush()
    assert effects == ["written"]


@pytest.mark.real_time
async def test_an_early_result_from_a_thread_arrives_in_the_event_loop():
    given = []

    def note(result):
        given.append((result, threading.get_ident()))

    def pause(ctx: ToolContext):
        ctx.early_result("paused")
        return len(given)

    assert await make(pause).invoke(context(on_early_result=note), {}) == 1
    assert given == [(ToolResult("paused"), threading.get_ident())]


@pytest.mark.real_time
async def test_what_a_sync_tool_raises_arrives():
    def fail():
        raise KeyError("id")

    with pytest.raises(KeyError):
        await make(fail).invoke(context(), {})


@pytest.mark.real_time
async def test_cancelling_a_sync_tool_lets_its_thread_go_and_counts_it():
    started, release, ended = (threading.Event() for _ in range(3))
    before = disowned_threads()

    def hang():
        started.set()
        release.wait()
        ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(make(hang).invoke, context(), {})
        await anyio.to_thread.run_sync(started.wait)
        tasks.cancel_scope.cancel()
    assert disowned_threads() == before + 1
    release.set()
    await anyio.to_thread.run_sync(ended.wait)
    while disowned_threads() != before:
        await anyio.lowlevel.checkpoint()


@pytest.mark.real_time
async def test_a_call_that_is_cancelled_before_its_thread_starts_never_runs(
    monkeypatch,
):
    monkeypatch.setattr("headstart._threads.THREADS", 1)
    started, release = threading.Event(), threading.Event()
    runs = []

    def hang(number: int):
        runs.append(number)
        started.set()
        release.wait()

    made = make(hang)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(made.invoke, context(), {"number": 1})
        await anyio.to_thread.run_sync(started.wait)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as inner:
                inner.start_soon(made.invoke, context(), {"number": 2})
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        release.set()
    assert runs == [1]
    assert disowned_threads() == 0


def test_a_thread_that_comes_to_a_call_already_let_go_does_not_run_it():
    runs = []
    call = _ThreadCall(lambda: runs.append("run"))
    call.abandon()
    call()
    assert runs == []
    assert disowned_threads() == 0


@pytest.mark.real_time
async def test_launched_calls_cannot_take_the_threads_of_real_ones(monkeypatch):
    monkeypatch.setattr("headstart._threads.THREADS", 2)
    release = threading.Event()

    def hang():
        release.wait()
        return "done"

    def quick():
        return "quick"

    open_barrier = WriteBarrier()
    open_barrier.flush()
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(make(hang).invoke, context(WriteBarrier()), {})
        await anyio.wait_all_tasks_blocked()
        assert await make(quick).invoke(context(open_barrier), {}) == "quick"
        release.set()


@pytest.mark.real_time
async def test_an_async_function_in_a_plain_decorator_is_awaited():
    def logged(function):
        @wraps(function)
        def call(*args, **kwargs):
            return function(*args, **kwargs)

        return call

    @tool
    @logged
    async def get(x: int) -> int:
        await anyio.lowlevel.checkpoint()
        return x

    assert await get.invoke(context(), {"x": 3}) == 3
