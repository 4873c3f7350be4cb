"""Results that follow from arguments and earlier results, learned by example."""

from ._learned_results import LearnedResults as LearnedResults

__all__ = ("LearnedResults",)
