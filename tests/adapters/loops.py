"""The scenes of the conformance suite in a loop of one's own, over a provider's SDK."""

from abc import abstractmethod

import anyio

from headstart import Session, TextDelta, Tool, ToolResult
from headstart.testing import AdapterConformance
from headstart.testing._conformance import Outcome

from .endpoints import Endpoint


def make_tools(stage, declared):
    return [make_tool(each, declared.get(each.name, {})) for each in stage.tools]


def make_tool(tool, declared):
    plain = Tool(tool.function)

    async def function(arguments):
        return await tool.function(**arguments)

    return Tool(
        function,
        name=tool.name,
        parameters=plain.parameters,
        description=plain.description,
        approval=tool.approval,
        **declared,
    )


class _LeftError(Exception):
    """The user has read enough."""


class Loop(AdapterConformance):
    """What is to be written of a provider: its SDK's client, and a loop without us."""

    dialect: type

    @abstractmethod
    def connect(self, http, *, stream):
        """Our model over the SDK's client."""

    @abstractmethod
    async def ask_bare(self, client, messages, tools, say, *, stream):
        """Ask with the SDK alone; gives what is appended, the calls, and the usage."""

    def tidy(self, messages):
        """What can be compared of a conversation."""
        return [{k: v for k, v in each.items() if v} for each in messages]

    async def run(self, scene, stage, model, options):
        endpoint = Endpoint(model, self.dialect)
        async with endpoint.open() as http:
            api = self.connect(http, stream=scene.stream)
            if options is None:
                return await self.run_bare(api, scene, stage)
            outcome = await self.converse(api, scene, stage, dict(options))
        assert endpoint.streaming == 0
        return outcome

    async def run_bare(self, api, scene, stage):
        outcome = Outcome()
        tools = {tool.name: tool for tool in make_tools(stage, {})}
        described = [api.describe(tool) for tool in tools.values()]
        messages = [{"role": "user", "content": scene.user}]

        def say(text):
            if scene.stream:
                outcome.seen.append(text)
            if scene.stream and len(outcome.seen) == scene.read:
                raise _LeftError

        async def perform(call):
            tool = tools[call.name]
            if tool.approval and not scene.approve:
                return ToolResult("The call was not approved.", is_error=True)
            try:
                return ToolResult.from_value(
                    await tool.function(tool.validate(call.arguments))
                )
            except LookupError as error:
                return ToolResult.from_error(error)

        async def perform_all(calls):
            results = {}

            async def keep(index, call):
                results[index] = await perform(call)

            async with anyio.create_task_group() as group:
                for index, call in enumerate(calls):
                    group.start_soon(keep, index, call)
            return [results[index] for index in range(len(calls))]

        try:
            while True:
                new, calls, usage = await self.ask_bare(
                    api.client, messages, described, say, stream=scene.stream
                )
                outcome.usage += usage
                messages += new
                if not calls:
                    break
                messages += api.results(calls, await perform_all(calls))
        except _LeftError:
            return outcome
        outcome.messages = self.tidy(messages)
        return outcome

    async def converse(self, api, scene, stage, options):
        async def approve(call, deps):
            return scene.approve

        outcome = Outcome()
        tools = make_tools(stage, options.pop("effects"))
        messages = [{"role": "user", "content": scene.user}]
        async with Session(tools, approve=approve, **options) as session:
            while True:
                request = api.request(messages, session.tools)
                if scene.stream:
                    async with session.stream(request, api.respond) as answer:
                        async for delta in answer:
                            if isinstance(delta, TextDelta):
                                outcome.seen.append(delta.text)
                                if len(outcome.seen) == scene.read:
                                    return outcome
                    response = answer.response
                else:
                    response = await session.ask(request, api.respond)
                outcome.usage += response.usage
                messages += api.reply(response)
                if not response.tool_calls:
                    break
                results = await session.call_all(response.tool_calls)
                messages += api.results(response.tool_calls, results)
        outcome.messages = self.tidy(messages)
        return outcome
