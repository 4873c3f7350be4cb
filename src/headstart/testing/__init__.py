"""What tests of agents are made of: virtual time, and a model that follows a script."""

from ._clock import VirtualLoop, run_virtual
from ._model import Fault, ModelRecord, ScriptedModel, ScriptedResponse

__all__ = (
    "Fault",
    "ModelRecord",
    "ScriptedModel",
    "ScriptedResponse",
    "VirtualLoop",
    "run_virtual",
)
