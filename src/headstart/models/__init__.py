"""Models: clients of chat endpoints, each with its own optional dependency."""

from ._openai import OpenAIModel as OpenAIModel

__all__ = ("OpenAIModel",)
