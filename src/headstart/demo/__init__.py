"""The demo: an incident copilot, run without and with speculation, and compared."""

try:
    import aiosqlite as _aiosqlite  # noqa: F401
    import httpx2 as _httpx2  # noqa: F401
    import openai as _openai  # noqa: F401
    import sqlalchemy as _sqlalchemy  # noqa: F401
except ImportError as error:
    msg = f'Please install `{error.name}`: pip install "headstart[demo]"'
    raise ImportError(msg, name=error.name) from error

from ._bound import (
    BoundCall as BoundCall,
    BoundTurn as BoundTurn,
    bound_seconds as bound_seconds,
    serial_seconds as serial_seconds,
)
from ._latencies import (
    TOOL_LATENCIES as TOOL_LATENCIES,
    Latencies as Latencies,
    ToolLatency as ToolLatency,
)
from ._outcome import DemoOutcome as DemoOutcome, MessageOutcome as MessageOutcome
from ._run import Progress as Progress, run_demo as run_demo

__all__ = (
    "TOOL_LATENCIES",
    "BoundCall",
    "BoundTurn",
    "DemoOutcome",
    "Latencies",
    "MessageOutcome",
    "Progress",
    "ToolLatency",
    "bound_seconds",
    "run_demo",
    "serial_seconds",
)
