"""The demo: an incident copilot, run without and with speculation, and compared."""

try:
    import aiosqlite as aiosqlite
    import httpx2 as httpx2
    import openai as openai
    import sqlalchemy as sqlalchemy
except ImportError as error:
    msg = f'Please install `{error.name}`: pip install "headstart[demo]"'
    raise ImportError(msg, name=error.name) from error

from ._bound import (
    BoundCall as BoundCall,
    BoundTurn as BoundTurn,
    bound_seconds as bound_seconds,
    serial_seconds as serial_seconds,
)
from ._copilot import USER_MESSAGES as USER_MESSAGES
from ._latencies import (
    TOOL_LATENCIES as TOOL_LATENCIES,
    Latencies as Latencies,
    ToolLatency as ToolLatency,
)
from ._outcome import DemoOutcome as DemoOutcome, MessageOutcome as MessageOutcome
from ._run import Progress as Progress, run_demo as run_demo

__all__ = (
    "TOOL_LATENCIES",
    "USER_MESSAGES",
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
