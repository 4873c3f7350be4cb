"""The agent that never speculates: what every run is compared with."""

from __future__ import annotations

import anyio

from headstart import Message, ModelRequest, ToolContext, ToolResult, WriteBarrier


async def run_plain(program, messages, world):
    """Answer the last message: ask, run the calls at once, ask again."""
    while True:
        request = ModelRequest(messages, program.tools)
        response = await program.respond(request, lambda _: None)
        messages = (*messages, response.message)
        if not response.tool_calls:
            return messages
        results: dict[int, ToolResult] = {}

        async def run(index, call):
            results[index] = await run_call(program, call, world)

        async with anyio.create_task_group() as group:
            for index, call in enumerate(response.tool_calls):
                group.start_soon(run, index, call)
        answers = (results[index] for index in range(len(results)))
        messages += tuple(map(Message.for_result, response.tool_calls, answers))


async def run_call(program, call, world):
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
    barrier = WriteBarrier()
    barrier.flush()
    try:
        context = ToolContext(deps=world, call=call, barrier=barrier)
        return ToolResult.from_value(await tool.invoke(context, arguments))
    except Exception as error:
        return ToolResult.from_error(error)
