"""Ends a process whose program does not end: it may be in an endless loop."""

from __future__ import annotations

import signal

PATIENCE = 60
"""Real seconds that a program may take."""


def watch(seed: int) -> None:
    """Give up, and say where, if the program that begins takes too long."""

    def give_up(*_: object) -> None:
        msg = f"The program of seed {seed} goes on for {PATIENCE} s."
        raise SystemExit(msg)

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE)


def stop_watching() -> None:
    """No program runs now."""
    signal.alarm(0)
