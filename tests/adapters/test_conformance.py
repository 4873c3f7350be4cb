"""The suite for adapters, run on our own host: what it asks for can be had."""

from headstart.testing._conformance import _Reference


class TestAgent(_Reference):
    """Our own `Agent`."""
