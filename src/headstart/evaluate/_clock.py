"""What a predictor costs: time of the processor, which no neighbour can lengthen."""

from __future__ import annotations

import time

_COARSE_S = 1e-5

cpu_seconds = (
    time.thread_time
    if time.get_clock_info("thread_time").resolution < _COARSE_S
    else time.perf_counter
)
"""A clock for what never waits; the wall's where the processor's is too coarse."""
