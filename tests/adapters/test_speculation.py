"""The options and the run that all adapters share."""

import threading

import anyio
import anyio.to_thread
import pytest

from headstart import (
    Effect,
    Message,
    ModelRequest,
    ToolCall,
    ToolDefinitionError,
    ToolResult,
    UsageError,
    current_context,
)
from headstart.adapters import Returned, Speculation
from headstart.testing import ScriptedModel


class Framework:
    """A framework of one tool, as small as one can be."""

    def __init__(self, run, function, **options):
        self.run = run
        self.function = function
        self.real = self.early = 0
        self.tool = run.tool(
            "look",
            identity=1,
            early=self.launch,
            show=lambda value: ToolResult(str(value)),
            parameters={},
            **options,
        )
        run.offer([self.tool])

    async def launch(self, context, arguments):
        self.early += 1
        return await self.function()

    async def execute(self):
        self.real += 1
        return await self.function()

    async def answer(self, model, *messages):
        request = ModelRequest([Message(role="user", content="Go."), *messages])
        return await self.run.session.ask(request, model.respond)


class Sealed:
    """A model that writes one call of `look`, and then goes on for a second."""

    def __init__(self, text="{}"):
        self.model = ScriptedModel(
            [[("look", text), ("other", "{}")], "Done."], seconds_per_delta=1
        )

    async def respond(self, request, on_delta):
        return await self.model.respond(request, on_delta)


async def nothing():
    return None


async def test_a_real_call_runs_as_the_framework_does():
    async with Speculation().open_run() as run:
        framework = Framework(run, nothing)
        response = await framework.answer(ScriptedModel([[("look", {})]]))
        assert await run.call(response.tool_calls[0], framework.execute) is None
    assert (framework.real, framework.early) == (1, 0)


async def test_an_adopted_launch_gives_the_value_itself():
    found = object()

    async def find():
        return found

    async with Speculation(effects={"look": "READ"}).open_run() as run:
        framework = Framework(run, find)
        response = await framework.answer(Sealed())
        assert await run.call(response.tool_calls[0], framework.execute) is found
    assert (framework.real, framework.early) == (0, 1)


async def test_an_exception_reaches_the_framework_as_it_was_raised():
    error = LookupError("gone")

    async def fail():
        raise error

    async with Speculation(effects={"look": "READ"}).open_run() as run:
        framework = Framework(run, fail)
        response = await framework.answer(Sealed())
        with pytest.raises(LookupError) as caught:
            await run.call(response.tool_calls[0], framework.execute)
    assert caught.value is error
    assert (framework.real, framework.early) == (1, 1)


@pytest.mark.parametrize(
    ("name", "text"), [("other", "{}"), ("look", "not JSON"), ("look", '{"row": 9}')]
)
async def test_what_headstart_cannot_run_is_left_to_the_framework(name, text):
    def validate(arguments):
        if "9" in arguments:
            raise ValueError(arguments)
        return {}

    async with Speculation(effects={"look": "READ"}).open_run() as run:
        framework = Framework(run, nothing, validate=validate)
        await framework.answer(ScriptedModel([[(name, text)], "Done."]))
        assert await run.call(ToolCall("a", name, text), framework.execute) is None
    assert (framework.real, framework.early) == (1, 0)


async def test_nothing_is_run_ahead_on_a_call_that_the_framework_answers_itself():
    model = ScriptedModel([[("other", {})], "Done."])
    async with Speculation().open_run() as run:
        framework = Framework(run, nothing)
        await framework.answer(model)
        await anyio.sleep(1)
    assert len(model.records) == 1


async def test_the_effect_comes_from_the_options_or_the_tools_own_metadata():
    named = Speculation(effects={"look": "GATED"})
    metadata = {"headstart": {"effect": "READ", "reads": ["row:{row}"]}}
    for speculation, effect in ((named, Effect.GATED), (Speculation(), Effect.READ)):
        async with speculation.open_run() as run:
            framework = Framework(run, nothing, metadata=metadata)
            assert framework.tool.effect is effect
    assert framework.tool.read_keys({"row": 7}) == {"row:7"}


async def test_nothing_declared_or_a_say_of_the_framework_means_never_early():
    async with Speculation().open_run() as run:
        assert Framework(run, nothing).tool.effect is Effect.UNSAFE
    async with Speculation(effects={"look": "READ"}).open_run() as run:
        framework = Framework(run, nothing, never_early=True)
        assert framework.tool.effect is Effect.UNSAFE


async def test_the_same_tool_stays_the_same_and_another_does_not():
    async with Speculation().open_run() as run:
        tools = [
            run.tool("look", identity=identity, early=nothing, show=str, parameters={})
            for identity in (1, 1, 2)
        ]
        assert tools[0] is tools[1]
        assert tools[0] is not tools[2]


async def test_early_results_come_from_threads_of_the_framework_too():
    stated = []

    def work(context):
        context.early_result("changed")
        context.barrier.wait_blocking()

    async def change():
        context = current_context()
        thread = threading.Thread(target=work, args=(context,))
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
        return "changed"

    class Ahead(ScriptedModel):
        async def respond(self, request, on_delta):
            stated.extend(
                message.native for message in request.history if message.role == "tool"
            )
            return await super().respond(request, on_delta)

    async with Speculation(effects={"look": "GATED"}).open_run() as run:
        framework = Framework(run, change)
        response = await framework.answer(Ahead([[("look", {})], "Done."]))
        await run.call(response.tool_calls[0], framework.execute)
        await anyio.sleep(1)
    assert stated == [ToolResult("changed")]
    assert stated[0].value == Returned("changed")


@pytest.mark.parametrize(
    ("declared", "error", "message"),
    [
        ("rad", ToolDefinitionError, "it is one of"),
        (7, UsageError, "an effect or a mapping"),
        ({"colour": "READ"}, UsageError, "no option of a tool"),
        ({"effect": "READ", "writes": ["a"]}, ToolDefinitionError, "one is wrong"),
    ],
)
def test_a_declaration_that_cannot_work_is_refused_at_once(declared, error, message):
    with pytest.raises(error, match=message):
        Speculation(effects={"look": declared})


async def test_there_is_no_context_outside_of_a_call():
    assert current_context() is None
