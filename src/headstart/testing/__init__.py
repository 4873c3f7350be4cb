"""What tests of agents are made of: virtual time, a scripted model, a tripwire."""

from headstart._tripwire import Finding, tripwire

from ._clock import VirtualLoop, run_virtual
from ._conformance import AdapterConformance, Outcome, Scene, Stage, StageTool
from ._model import Fault, ModelRecord, ScriptedModel, ScriptedResponse

__all__ = (
    "AdapterConformance",
    "Fault",
    "Finding",
    "ModelRecord",
    "Outcome",
    "Scene",
    "ScriptedModel",
    "ScriptedResponse",
    "Stage",
    "StageTool",
    "VirtualLoop",
    "run_virtual",
    "tripwire",
)
