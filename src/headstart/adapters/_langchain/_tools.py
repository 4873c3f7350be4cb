"""What has to be known of langchain's tools."""

from __future__ import annotations

import inspect
import json
from typing import Any, cast, get_args, get_type_hints

from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.messages.tool import ToolOutputMixin
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool, Tool as SimpleTool, tool
from langchain_core.tools.base import TOOL_MESSAGE_BLOCK_TYPES

_GIVEN_BY_NAME = {"callbacks", "runtime"}
"""Parameters that langchain and langgraph fill in whatever their annotation says."""


def as_base_tool(offered: Any) -> BaseTool | None:
    """The tool that something stands for which was bound to a model, if it does."""
    if isinstance(offered, BaseTool):
        return offered
    return tool(offered) if inspect.isroutine(offered) else None


def same_tool(offered: object, called: object) -> bool:
    """Whether two tools are one: functions become tools anew wherever they are given."""
    if offered is called:
        return True
    return (
        isinstance(offered, StructuredTool)
        and isinstance(called, StructuredTool)
        and offered.func is called.func
        and offered.coroutine is called.coroutine
    )


def runs_in_a_thread_whole(tool: BaseTool) -> bool:
    """Whether langchain runs the tool in a thread together with all that is around it."""
    method: Any = cast("Any", type(tool)).ainvoke
    return method in (
        cast("Any", StructuredTool).ainvoke,
        cast("Any", SimpleTool).ainvoke,
    )


def needs_more(tool: BaseTool) -> bool:
    """Whether a tool takes what is not known before langchain runs it.

    That is state, a store, a runtime, a configuration, the call's identifier. Where it
    cannot be told, it is taken to be so.
    """
    any_tool: Any = tool
    if isinstance(tool, SimpleTool) or any_tool._injected_args_keys:
        return True
    if not isinstance(tool.args_schema, dict):
        shown: Any = tool.tool_call_schema
        whole: Any = tool.get_input_schema()
        if set(whole.model_fields) != set(shown.model_fields):
            return True
    functions = (any_tool._run, any_tool._arun)
    if isinstance(tool, StructuredTool):
        functions = tuple(each for each in (tool.func, tool.coroutine) if each)
    return any(map(_takes_more, functions))


def _takes_more(function: Any) -> bool:
    try:
        hints = get_type_hints(function)
        names = inspect.signature(function).parameters
    except (NameError, TypeError, ValueError):
        return True
    return bool(_GIVEN_BY_NAME & set(names)) or any(
        hint is RunnableConfig or RunnableConfig in get_args(hint)
        for hint in hints.values()
    )


def as_message(tool: BaseTool, value: Any, call_id: str) -> ToolMessage | None:
    """What langchain makes of a tool's value; `None` where it is more than a message."""
    content, artifact = value, None
    if tool.response_format == "content_and_artifact":
        try:
            content, artifact = value
        except (TypeError, ValueError):
            return None
    items = cast("list[Any]", content) if isinstance(content, (list, tuple)) else None
    if isinstance(content, ToolOutputMixin) or (
        items and any(isinstance(item, ToolOutputMixin) for item in items)
    ):
        return None
    if not isinstance(content, str):
        blocks = items is not None and all(map(_is_block, items))
        content = list(items or ()) if blocks else _write(content)
    return ToolMessage(
        cast("Any", content), artifact=artifact, name=tool.name, tool_call_id=call_id
    )


def content_of(message: BaseMessage) -> str:
    """A message's content as text, whatever it is made of."""
    content = cast("Any", message.content)
    return content if isinstance(content, str) else _write(content)


def _is_block(item: Any) -> bool:
    if isinstance(item, dict):
        return cast("dict[str, Any]", item).get("type") in TOOL_MESSAGE_BLOCK_TYPES
    return isinstance(item, str)


def _write(content: Any) -> str:
    try:
        return json.dumps(content, ensure_ascii=False)
    except Exception:  # noqa: BLE001 - as langchain does
        return str(content)
