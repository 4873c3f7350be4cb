"""Headstart in the frameworks that agents are already written with.

A module a framework, each behind an extra of the framework's name. An adapter
translates between the framework and a `Session`, and decides nothing. This package itself
loads no framework.
"""

from ._speculation import (
    Declaration as Declaration,
    HostRun as HostRun,
    Returned as Returned,
    Speculation as Speculation,
)

__all__ = ("Declaration", "HostRun", "Returned", "Speculation")
