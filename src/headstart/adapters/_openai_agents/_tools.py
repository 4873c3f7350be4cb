"""The framework's function tools, and the copies of them that the runner is given.

Rules of this file: a real call runs and fails as it would by itself. A launch is never
told of a failure in the tool's own words: it raises, so that the call is run again.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agents.tool import (
    FunctionTool,
    default_tool_error_function,
    resolve_function_tool_failure_error_function,
    set_function_tool_failure_error_function,
    with_function_tool_failure_error_handler,
)

from headstart._calls import ToolCall, ToolResult

from ._items import render_output, write_output

if TYPE_CHECKING:
    from agents.run_context import RunContextWrapper
    from agents.tool_context import ToolContext
    from agents.usage import Usage

    from headstart._tools import ToolContext as Context

    from ._run import SpeculativeRun

_HANDLED = "_function_tool_default_failure_handled"


@dataclass(frozen=True, slots=True)
class Ran:
    """What a tool gave, with what else the run has to know of it."""

    value: Any
    is_error: bool = False
    usage: Usage | None = None


class WatchedTool:
    """A function tool, and the copy of it that the runner is given."""

    def __init__(self, run: SpeculativeRun, original: FunctionTool) -> None:
        self.original = original
        self.name = original.qualified_name
        self._run = run
        self._plain = copy.copy(original)
        self._raising = copy.copy(original)
        set_function_tool_failure_error_function(self._raising, None)
        self._listen_to_failures()
        self.watched = copy.copy(original)
        self.watched.on_invoke_tool = self._make_invoker()
        self.watched = copy.copy(self.watched)  # which binds the invoker to it

    def _listen_to_failures(self) -> None:
        told = resolve_function_tool_failure_error_function(self.original)
        if told is None or told is default_tool_error_function:
            return

        def tell(context: RunContextWrapper[Any], error: Exception) -> Any:
            self._run.failed.add(str(getattr(context, "tool_call_id", "")))
            return told(context, error)

        set_function_tool_failure_error_function(self._plain, tell)

    def _make_invoker(self) -> Any:
        """What the runner calls. A failure is told as the tool says, as ever."""
        invoker: Any = self.original.on_invoke_tool
        if getattr(invoker, "__agents_bind_function_tool__", None) is None:
            return self._invoke

        async def invoke(context: ToolContext[Any], arguments: str) -> Any:
            return await self._invoke(context, arguments)

        for name, value in (
            ("__agents_prepare_arguments__", invoker.prepare_arguments),
            (
                "__agents_function_tool_wrapped_callable__",
                getattr(self.original, "__wrapped__", None),
            ),
        ):
            if value is not None:
                setattr(invoke, name, value)
        return with_function_tool_failure_error_handler(invoke, _ignore)

    async def _invoke(self, context: ToolContext[Any], arguments: str) -> Any:
        if not self._run.takes_calls:
            return await self._plain.on_invoke_tool(context, arguments)
        call = ToolCall(context.tool_call_id, self.name, arguments)

        async def real() -> Ran:
            value = await self._plain.on_invoke_tool(context, arguments)
            failed = call.id in self._run.failed or getattr(context, _HANDLED, False)
            return Ran(value, is_error=bool(failed))

        return await self._run.call(call, context, real)

    async def early(self, context: Context[Any], arguments: dict[str, Any]) -> Ran:
        """A launch, for `HostRun.tool`. A failure is raised, so that it is run again."""
        del arguments  # the framework reads the text itself
        return await self._run.launch(context, self._raising, self.original.name)

    def show(self, value: Any) -> ToolResult:
        """What the model is told of a value that the tool gives."""
        shown = unpack(value)
        failed = isinstance(value, Ran) and value.is_error
        try:
            content = render_output(write_output(shown, self.original))
        except Exception:  # noqa: BLE001 - the runner will say so in its own words
            content = str(shown)
        return ToolResult(content, failed)


def _ignore(*_: object) -> None:
    """The real call has logged and traced its failure."""


def unpack(value: Any) -> Any:
    return value.value if isinstance(value, Ran) else value


def says_read(hints: object) -> bool:
    for name in ("read_only_hint", "readOnlyHint"):
        if getattr(hints, name, None) is True:
            return True
    return False
