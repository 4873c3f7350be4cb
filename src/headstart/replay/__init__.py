"""Recorded runs, replayed through the real engine in virtual time."""

from ._arms import ARMS, replay_file
from ._latency import Latency
from ._recorded import ToolDeclaration, declare_tools, read_declarations
from ._report import ArmReport, ReplayReport
from ._traces import (
    BadLine,
    RecordedCall,
    RecordedRun,
    RecordedTurn,
    read_run,
    read_runs,
)

__all__ = (
    "ARMS",
    "ArmReport",
    "BadLine",
    "Latency",
    "RecordedCall",
    "RecordedRun",
    "RecordedTurn",
    "ReplayReport",
    "ToolDeclaration",
    "declare_tools",
    "read_declarations",
    "read_run",
    "read_runs",
    "replay_file",
)
