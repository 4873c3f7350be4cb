"""What both APIs of the `openai` SDK have in common: its client."""

from __future__ import annotations

from typing import Any

import openai

from headstart._errors import UsageError
from headstart.adapters._provider import ProviderModel


class OpenAIProvider(ProviderModel):
    """A model behind the SDK's asynchronous client."""

    def __init__(
        self, client: openai.AsyncOpenAI, *, stream: bool = True, **settings: Any
    ) -> None:
        if isinstance(client, openai.OpenAI):
            msg = "The client is a synchronous one: use openai.AsyncOpenAI."
            raise UsageError(msg)
        super().__init__(client, stream=stream, **settings)
