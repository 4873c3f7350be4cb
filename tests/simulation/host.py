"""A host that drives a model and tools by hand, with whims; with headstart or without."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from headstart import Message, ModelError, ModelRequest, ToolResult

if TYPE_CHECKING:
    from .program import Program


async def answer(program: Program, messages, ask, call, receive):
    """Answer the last message: ask, run the calls, ask again."""
    while True:
        whim = program.whim(messages)
        if whim == "forget":  # an old result is long
            messages = _without_an_old_result(messages)
        settings = {"short": True} if whim == "settings" else {}
        request = ModelRequest(messages, program.tools, settings)
        if whim == "interrupt":  # the user talks on before the model can have answered
            with anyio.move_on_after(1 / 16), suppress(ModelError):
                await ask(request, lambda _: None)
            messages = (*messages, Message(role="user", content="Never mind."))
            continue
        response = await ask(request, receive)
        messages = (*messages, response.message)
        if not response.tool_calls:
            return messages
        results = await _run(program, response.tool_calls, call)
        messages += tuple(map(Message.for_result, response.tool_calls, results))


async def _run(program: Program, calls, call) -> list[ToolResult]:
    results: dict[int, ToolResult] = {}

    async def run(index: int) -> None:
        patience = program.patience(calls[index])
        if patience == math.inf:
            results[index] = await call(calls[index])
            return
        # Whether it was in time is a matter of speed, so nobody looks at the result.
        results[index] = ToolResult("given up", is_error=True)
        with anyio.CancelScope(deadline=anyio.current_time() + patience) as scope:
            if not patience:
                scope.cancel()
            await call(calls[index])

    if program.in_order:
        for index in range(len(calls)):
            await run(index)
    else:
        async with anyio.create_task_group() as group:
            for index in range(len(calls)):
                group.start_soon(run, index)
    return [results[index] for index in range(len(calls))]


def _without_an_old_result(messages):
    for position, message in enumerate(messages):
        if message.role == "tool" and message.content != "[...]":
            shorter = replace(message, content="[...]")
            return (*messages[:position], shorter, *messages[position + 1 :])
    return messages
