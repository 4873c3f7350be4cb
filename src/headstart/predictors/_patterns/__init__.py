"""A predictor that learns which calls follow what, and where their arguments come from."""

from ._pattern_predictor import PatternPredictor as PatternPredictor

__all__ = ("PatternPredictor",)
