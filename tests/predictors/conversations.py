"""Small conversations, written in a line each, for the tests of predictors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anyio

from headstart import (
    Effect,
    EventLog,
    Message,
    ModelResponse,
    Tool,
    ToolCall,
    ToolContext,
    tool,
)
from headstart.predictors import Conversation

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def make_tool(name, effect=Effect.READ, **options):
    """A tool that takes any arguments, and is never run."""

    def function(ctx: ToolContext, arguments: dict[str, Any]) -> None:
        raise AssertionError(name)

    return Tool(
        function, name=name, effect=effect, parameters={"type": "object"}, **options
    )


def said(text: str) -> Message:
    return Message(role="user", content=text)


def answered(text: str) -> Message:
    return Message(role="assistant", content=text)


def called(*calls: tuple[str, dict[str, Any] | str], start: int = 0) -> Message:
    """An assistant message that asks for calls, numbered from `start`."""
    return Message(
        role="assistant",
        tool_calls=tuple(
            ToolCall(f"c{number}", name, _text(arguments))
            for number, (name, arguments) in enumerate(calls, start)
        ),
    )


def _text(arguments: dict[str, Any] | str) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments)


def gave(number: int, result: object) -> Message:
    """The tool message that answers call number so and so."""
    content = result if isinstance(result, str) else json.dumps(result)
    return Message(role="tool", content=content, tool_call_id=f"c{number}")


def steps(
    *happened: tuple[str, dict[str, Any] | str, object], text: str = "Please."
) -> list[Message]:
    """What a user said, and calls one after the other, each with its result."""
    messages = [said(text)]
    for number, (name, arguments, result) in enumerate(happened):
        messages.append(called((name, arguments), start=number))
        messages.append(gave(number, result))
    return messages


def talk(
    messages: Sequence[Message], tools: Iterable[Tool], *, deps: object = None
) -> Conversation:
    return Conversation(
        messages=tuple(messages), tools={tool.name: tool for tool in tools}, deps=deps
    )


def teach(learner, messages, tools, *, deps=None):
    """Tell a learner of each answer of a conversation, as a session does."""
    for position, message in enumerate(messages):
        if message.role == "assistant":
            response = ModelResponse(
                text=message.content, tool_calls=message.tool_calls
            )
            learner.learn(talk(messages[:position], tools, deps=deps), response)
    learner.learn(talk(messages, tools, deps=deps), ModelResponse(text="Done."))


def call(name: str, arguments: dict[str, Any] | str, call_id: str = "new") -> ToolCall:
    return ToolCall(call_id, name, _text(arguments))


def contents(stated) -> list[str]:
    return [each.result.content for each in stated]


@tool(effect=Effect.READ, reads=["row:{row}"])
async def look(ctx: ToolContext[dict], row: int) -> dict[str, Any]:
    """Tell a row, after two seconds."""
    seen = ctx.deps.get(row, "new")
    await anyio.sleep(2)
    return {"row": row, "state": seen}


@tool(effect=Effect.GATED, reads=["row:{row}"], writes=["row:{row}"])
async def change(ctx: ToolContext[dict], row: int) -> dict[str, Any]:
    """Change a row, after two seconds."""
    await ctx.barrier.wait()
    await anyio.sleep(2)
    ctx.deps[row] = "changed"
    return {"row": row, "state": "changed"}


async def play(agent, text="Go.", **options):
    """Run an agent on rows of its own: the result, its seconds and its events."""
    log, began = EventLog(), anyio.current_time()
    async with agent.open_session(deps={}, sink=log, **options) as session:
        result = await agent.run(text, session=session)
        seconds = anyio.current_time() - began
    return result, seconds, log.events


async def play_both(agent, text="Go."):
    """Run it without and with speculation: the same result, and the seconds of both."""
    without, off, _ = await play(agent, text, speculate=False)
    result, on, events = await play(agent, text)
    assert result == without
    return off, on, events
