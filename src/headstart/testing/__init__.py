"""What tests of agents are made of: virtual time, and a model that follows a script."""

from ._clock import VirtualLoop, run_virtual
from ._conformance import AdapterConformance, Outcome, Scene, Stage, StageTool
from ._model import Fault, ModelRecord, ScriptedModel, ScriptedResponse

__all__ = (
    "AdapterConformance",
    "Fault",
    "ModelRecord",
    "Outcome",
    "Scene",
    "ScriptedModel",
    "ScriptedResponse",
    "Stage",
    "StageTool",
    "VirtualLoop",
    "run_virtual",
)
