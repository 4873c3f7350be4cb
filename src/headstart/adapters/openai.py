"""A loop of one's own over the `openai` SDK: chat completions, and responses."""

from __future__ import annotations

try:
    import openai  # noqa: F401  # pyright: ignore[reportUnusedImport]
except ImportError as missing:
    message = 'Please install `openai`: pip install "headstart[openai]"'
    raise ImportError(message, name="openai") from missing

from ._openai._chat import ChatCompletions as ChatCompletions
from ._openai._responses import Responses as Responses

__all__ = ("ChatCompletions", "Responses")
