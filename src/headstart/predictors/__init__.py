"""Predictors: who guesses the next call."""

from ._predictor import (
    Conversation as Conversation,
    Learner as Learner,
    Prediction as Prediction,
    Predictor as Predictor,
    ResultPrediction as ResultPrediction,
    ResultPredictor as ResultPredictor,
    ToolCheck as ToolCheck,
)
from ._rule import Rule as Rule, rule as rule
from ._rules import RulePredictor as RulePredictor

__all__ = (
    "Conversation",
    "Learner",
    "Prediction",
    "Predictor",
    "ResultPrediction",
    "ResultPredictor",
    "Rule",
    "RulePredictor",
    "ToolCheck",
    "rule",
)
