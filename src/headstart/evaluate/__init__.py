"""How well calls are predicted: cross-validation on recorded runs, and learning."""

from ._evaluation import LATENCIES, evaluate_files
from ._learning import LearningReport, learn_files
from ._pictures import draw_pictures, prepare_pictures
from ._predictors import EvaluatedPredictor, LearningPredictor, ProposingPredictor
from ._report import EvaluationReport
from ._runs import SkippedLine
from ._scores import LAUNCHED_FROM

__all__ = (
    "LATENCIES",
    "LAUNCHED_FROM",
    "EvaluatedPredictor",
    "EvaluationReport",
    "LearningPredictor",
    "LearningReport",
    "ProposingPredictor",
    "SkippedLine",
    "draw_pictures",
    "evaluate_files",
    "learn_files",
    "prepare_pictures",
)
