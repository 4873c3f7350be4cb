"""The two seams of langchain, below its callbacks."""

from ._model import wrap_model as wrap_model
from ._run import Run as Run, current as current, running as running

__all__ = ("Run", "current", "running", "wrap_model")
