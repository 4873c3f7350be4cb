"""Predictors: who guesses the next call."""

from ._combination import Combination as Combination
from ._drafter import Drafter as Drafter
from ._memory import ResultMemory as ResultMemory
from ._patterns import PatternPredictor as PatternPredictor
from ._predictor import (
    Conversation as Conversation,
    Learner as Learner,
    Prediction as Prediction,
    Predictor as Predictor,
    ResultPrediction as ResultPrediction,
    ResultPredictor as ResultPredictor,
    ToolCheck as ToolCheck,
)
from ._results import LearnedResults as LearnedResults
from ._rule import Rule as Rule, rule as rule
from ._rules import RulePredictor as RulePredictor

__all__ = (
    "Combination",
    "Conversation",
    "Drafter",
    "LearnedResults",
    "Learner",
    "PatternPredictor",
    "Prediction",
    "Predictor",
    "ResultMemory",
    "ResultPrediction",
    "ResultPredictor",
    "Rule",
    "RulePredictor",
    "ToolCheck",
    "rule",
)
