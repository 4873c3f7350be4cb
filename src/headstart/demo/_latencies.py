"""How long the demo's model and tools take: the only such figures there are."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolLatency:
    """What one call of a tool takes.

    Attributes:
        preparation_s: Seconds before its effect; of a read, all of it.
        effect_s: Seconds from the barrier to the end.
    """

    preparation_s: float
    effect_s: float = 0.0


TOOL_LATENCIES: Mapping[str, ToolLatency] = MappingProxyType(
    {
        # A database behind an internal API.
        "get_incident": ToolLatency(preparation_s=0.6),
        "list_open_incidents": ToolLatency(preparation_s=0.7),
        "get_on_call": ToolLatency(preparation_s=0.4),
        # An embedding of the query, and a vector search.
        "search_runbooks": ToolLatency(preparation_s=1.1),
        # Metrics of the last minutes, over HTTP.
        "get_service_health": ToolLatency(preparation_s=1.3),
        # Look-up, permission and policy; then the provider of paging, or chat.
        "pause_incident": ToolLatency(preparation_s=0.9, effect_s=1.0),
        "set_severity": ToolLatency(preparation_s=0.7, effect_s=0.9),
        "post_update": ToolLatency(preparation_s=0.6, effect_s=0.9),
    }
)
"""Chosen as a production copilot has them: between 0.3 and 2 s a call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """What the demo's model and tools take.

    Attributes:
        first_token_s: Seconds from a request to the first token of its answer.
        tokens_per_s: How fast the other tokens come.
        tools: Each tool's latency, by name.
    """

    first_token_s: float = 0.6
    tokens_per_s: float = 80.0
    tools: Mapping[str, ToolLatency] = field(default_factory=lambda: TOOL_LATENCIES)

    def effect_share(self, tool: str) -> float:
        """How much of a call's time comes after its barrier, from 0 to 1."""
        latency = self.tools.get(tool)
        if latency is None or not latency.effect_s:
            return 0.0
        return latency.effect_s / (latency.preparation_s + latency.effect_s)

    def faster(self, speed: float) -> Latencies:
        """The same, everything `speed` times as fast."""
        return Latencies(
            first_token_s=self.first_token_s / speed,
            tokens_per_s=self.tokens_per_s * speed,
            tools={
                name: ToolLatency(
                    preparation_s=latency.preparation_s / speed,
                    effect_s=latency.effect_s / speed,
                )
                for name, latency in self.tools.items()
            },
        )
