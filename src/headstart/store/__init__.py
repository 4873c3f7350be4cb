"""Stores of events: what happened in a session, kept for later, in a file.

Each is a `headstart.TraceStore`: a sink for agents and sessions, and a reader of what it
has kept. `headstart.testing.StoreConformance` is the suite for those of your own.
"""

from ._jsonl import JsonlTraceStore
from ._sqlite import SqliteTraceStore

__all__ = ("JsonlTraceStore", "SqliteTraceStore")
