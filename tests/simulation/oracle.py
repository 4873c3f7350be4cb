"""The agent that never speculates: what every run is compared with."""

from __future__ import annotations

import math

import anyio

from headstart import Effect, ToolContext, ToolResult, WriteBarrier, WriteDenied


async def run_call(program, conditions, world, call):
    """Run one call, and say what the model is told of it."""
    named = {tool.name: tool for tool in program.tools}
    tool = named.get(call.name)
    if tool is None:
        known = ", ".join(named)
        text = f"There is no tool {call.name!r}. The tools are: {known}."
        return ToolResult(text, is_error=True)
    try:
        arguments = tool.validate(call.arguments)
    except ValueError as error:
        text = f"The arguments of {call.name!r} are invalid: {error}"
        return ToolResult(text, is_error=True)
    if tool.approval and not await program.approve(call, world):
        return ToolResult("The call was not approved.", is_error=True)
    barrier = Guardrails(*conditions)
    barrier.flush()
    scope = barrier.scope = anyio.CancelScope()
    context = ToolContext(deps=world, call=call, barrier=barrier)
    try:
        if tool.effect is Effect.UNSAFE:
            await barrier.wait()
        scope.deadline = anyio.current_time() + (tool.timeout or math.inf)
        with scope:
            return ToolResult.from_value(await tool.invoke(context, arguments))
        raise TimeoutError(f"The tool {tool.name!r} took over {tool.timeout} s.")
    except WriteDenied as error:
        return ToolResult(f"The call was refused: {error.reason}.", is_error=True)
    except Exception as error:
        return ToolResult.from_error(error)


class Guardrails(WriteBarrier):
    """Conditions alone. Time that they take is not the tool's own."""

    async def wait(self):
        began = anyio.current_time()
        deadline, self.scope.deadline = self.scope.deadline, math.inf
        await super().wait()
        self.scope.deadline = deadline + anyio.current_time() - began
