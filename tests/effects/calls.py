"""What the tests of seams have in common: a tool that is launched, and waiting for it."""

from __future__ import annotations

import anyio

from headstart import Agent, Effect, Tool
from headstart.predictors import Prediction
from headstart.testing import ScriptedModel


def tool_of(function, **options):
    return Tool(function, name="post", effect=Effect.GATED, **options)


async def until(condition):
    while not condition():  # noqa: ASYNC110 - what servers see has no event
        await anyio.sleep(0.001)


class Guess:
    """Predicts one call of the tool, which the model may then ask for or not."""

    async def predict(self, conversation):
        if conversation.messages[-1].role != "user":
            return []
        return [Prediction(tool="post", arguments={}, probability=0.9)]


class HeldModel:
    """A model that says nothing before the guess is held, or has ended."""

    def __init__(self, script, condition):
        self._model = ScriptedModel(script)
        self._condition = condition
        self._asked = False

    async def respond(self, request, on_delta):
        if not self._asked:
            self._asked = True
            await until(self._condition)
        return await self._model.respond(request, on_delta)


async def run_agent(function, condition, *, right):
    script = [[("post", {})], "Done."] if right else ["Done."]
    model = HeldModel(script, condition)
    agent = Agent(model, [tool_of(function)], predictors=[Guess()])
    return await agent.run("Go.")
