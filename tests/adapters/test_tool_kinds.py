"""The frameworks' own tools, of many kinds: with speculation as without.

Every call is expected, so each tool that may be launched runs before the model has asked
for it. What a user of the framework sees of it is compared with the framework alone.
"""

import importlib

import pytest

from headstart import EventLog, Session
from headstart.predictors import Prediction
from headstart.testing import ScriptedModel

from .tool_kinds import KINDS


def load(module):
    """A framework and what its own tests have; `None` where it is not installed."""
    try:
        return importlib.import_module(f".{module}", __package__)
    except pytest.skip.Exception:
        return None


RIGS = {
    "pydantic-ai": load("test_pydantic_ai"),
    "openai-agents": load("test_openai_agents"),
    "langchain": load("langchain_rig"),
    "mcp": load("test_mcp"),
}


class Expected:
    """Expects every call as soon as the user has spoken."""

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    async def predict(self, conversation):
        if conversation.messages[-1].role != "user":
            return []
        return [
            Prediction(tool=self.name, arguments=arguments, probability=0.9)
            for arguments in self.calls
        ]


def prepare(kind, log):
    """The name, the script of the model, and the options of ours where there are any."""
    name = kind.function.__name__
    calls = [(name, arguments) for arguments in kind.calls]
    model = ScriptedModel([calls, "Done."], delay=2)
    expected = [Expected(name, kind.calls)]
    return name, model, {"predictors": expected, "sink": log}


async def play_pydantic_ai(rig, kind, log):
    name, model, options = prepare(kind, log)
    ours = [] if log is None else [rig.Speculation(effects={name: "READ"}, **options)]
    agent = rig.Agent(rig.Scripted(model), tools=[kind.function], capabilities=ours)
    return rig.plain((await agent.run("Go.")).all_messages())


async def play_openai_agents(rig, kind, log):
    name, model, options = prepare(kind, log)
    tool = rig.function_tool(kind.function, strict_mode=False)
    agent = rig.Agent(name="agent", model=rig.Scripted(model), tools=[tool])
    ours = None
    if log is not None:
        ours = rig.Speculation(effects={name: "READ"}, **options)
    return (await rig.play(agent, ours)).to_input_list()


async def play_langchain(rig, kind, log):
    name, model, options = prepare(kind, log)
    ours = rig.Speculation(effects={name: "READ"}, **options)
    agent = rig.create_agent(
        rig.Scripted(script=model),
        [rig.tool(kind.function)],
        middleware=[] if log is None else [ours.middleware()],
    )
    given = {"messages": [rig.HumanMessage("Go.")]}
    async with rig.nothing() if log is None else ours.run():
        state = await agent.ainvoke(given)
    return [rig.told(message) for message in state["messages"]]


async def play_mcp(rig, kind, log):
    name, model, options = prepare(kind, log)
    server = rig.MCPServer("kinds", log_level="CRITICAL")
    server.add_tool(kind.function)
    async with rig.Client(server) as client:
        if log is None:
            return [
                read_mcp(await client.call_tool(name, arguments))
                for arguments in kind.calls
            ]
        tools = await rig.mcp_tools(client, effects={name: "READ"})
        async with Session(tools, **options) as session:
            request = rig.ModelRequest([{"role": "user", "content": "Go."}], tools)

            async def respond(request, on_delta):  # in one piece, as in the other plays
                return await model.respond(request, lambda delta: None)

            response = await session.ask(request, respond)
            results = await session.call_all(response.tool_calls)
    return [
        read_mcp(result.value) if result.error is None else ("failed", result.content)
        for result in results
    ]


def read_mcp(result):
    """A result of the SDK's, as far as both ways have it."""
    if result.is_error:
        return "failed", "\n".join(block.text for block in result.content)
    return "gave", result.model_dump()


PLAYERS = {
    "pydantic-ai": play_pydantic_ai,
    "openai-agents": play_openai_agents,
    "langchain": play_langchain,
    "mcp": play_mcp,
}


@pytest.fixture(autouse=True)
def traces_without_threads():
    """Langsmith has a thread for each hook of a middleware, traced or not."""
    try:
        import langsmith
    except ImportError:
        yield
        return

    async def inline(default, context, function, /, *args, **kwargs):
        return context.run(function, *args, **kwargs)

    langsmith.set_runtime_overrides(aio_to_thread=inline)
    yield
    langsmith.set_runtime_overrides()


async def see(framework, kind, log):
    """What is seen of a run."""
    try:
        return await PLAYERS[framework](RIGS[framework], kind, log)
    except Exception as error:
        return type(error), str(error)


@pytest.mark.requirement("engine:same-transcript")
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("framework", PLAYERS)
@pytest.mark.parametrize("name", KINDS)
async def test_a_tool_of_a_framework_is_seen_as_without(framework, name):
    if RIGS[framework] is None:
        pytest.skip(f"needs headstart[{framework}]")
    kind, log = KINDS[name], EventLog()
    alone = await see(framework, kind, None)
    assert await see(framework, kind, log) == alone
    adopted = [event.event for event in log.events].count("speculation_adopted")
    assert adopted == kind.adopted
