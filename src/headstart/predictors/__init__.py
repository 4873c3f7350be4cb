"""Predictors: who guesses the next call."""

from ._predictor import (
    Conversation as Conversation,
    Learner as Learner,
    Prediction as Prediction,
    Predictor as Predictor,
    ResultPredictor as ResultPredictor,
)

__all__ = (
    "Conversation",
    "Learner",
    "Prediction",
    "Predictor",
    "ResultPredictor",
)
