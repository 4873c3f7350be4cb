"""What tests of agents are made of: virtual time, a model that follows a script, and proof.

`assert_speculation_safe` runs one call of a tool in every way that speculation may, and
`SpeculationLab` a whole agent with and without.
"""

from headstart._tripwire import Finding, tripwire

from ._changes import ABSENT, Change
from ._clock import VirtualLoop, run_virtual
from ._conformance import AdapterConformance, Outcome, Scene, Stage, StageTool
from ._http_sink import HTTPSink, SinkRequest
from ._lab import LabReport, SpeculationDiffersError, SpeculationLab
from ._model import Fault, ModelRecord, ScriptedModel, ScriptedResponse
from ._observers import (
    CallableObserver,
    DatabaseObserver,
    FileObserver,
    Observer,
    RedisObserver,
)
from ._safety import Safety, assert_speculation_safe
from ._store_conformance import StoreConformance
from ._trials import UnsafeToolError

__all__ = (
    "ABSENT",
    "AdapterConformance",
    "CallableObserver",
    "Change",
    "DatabaseObserver",
    "Fault",
    "FileObserver",
    "Finding",
    "HTTPSink",
    "LabReport",
    "ModelRecord",
    "Observer",
    "Outcome",
    "RedisObserver",
    "Safety",
    "Scene",
    "ScriptedModel",
    "ScriptedResponse",
    "SinkRequest",
    "SpeculationDiffersError",
    "SpeculationLab",
    "Stage",
    "StageTool",
    "StoreConformance",
    "UnsafeToolError",
    "VirtualLoop",
    "assert_speculation_safe",
    "run_virtual",
    "tripwire",
)
