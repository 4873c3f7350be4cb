"""Headstart: start an agent's work before it is certain, hold its effects until it is."""

from ._barrier import (
    BarrierState as BarrierState,
    WriteBarrier as WriteBarrier,
    current_barrier as current_barrier,
)
from ._calls import ToolCall as ToolCall, ToolResult as ToolResult
from ._tools import (
    Effect as Effect,
    Tool as Tool,
    ToolContext as ToolContext,
    tool as tool,
)
