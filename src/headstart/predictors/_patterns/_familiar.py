"""What has been seen in several runs: only that may be remembered word for word."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast
from zlib import crc32

from headstart._errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

RUNS = 3
"""In so many runs a text was seen before it is remembered as it is."""
MAX_KNOWN = 4_000
_MAX_PENDING = 40_000


class Familiar:
    """Tells what several runs have in common from what belongs to one of them.

    What was seen in fewer runs is kept as a checksum, and never written to a file.
    """

    def __init__(self) -> None:
        self.known: set[str] = set()
        self._pending: dict[int, tuple[int, int]] = {}

    def note(self, text: str, run: int) -> bool:
        """Note that a run has it. Returns whether it is familiar by now.

        Args:
            text: What the run has.
            run: What it is about: runs about the same thing, such as repeats of one
                task, count once.
        """
        if text in self.known:
            return True
        check = crc32(text.encode("utf-8", "replace"))
        runs, newest = self._pending.get(check, (0, -1))
        if run == newest:
            return False
        if runs + 1 < RUNS:
            if len(self._pending) >= _MAX_PENDING:
                self._pending.clear()
            self._pending[check] = (runs + 1, run)
            return False
        self._pending.pop(check, None)
        if len(self.known) < MAX_KNOWN:
            self.known.add(text)
        return text in self.known

    def choose(self, texts: Iterable[str], run: int) -> list[str]:
        """Note that a run has these texts. Returns those that are familiar by now."""
        known = self.known
        return [text for text in texts if text in known or self.note(text, run)]

    def merge(self, other: Familiar) -> None:
        """Take over what is familiar to another."""
        for text in sorted(other.known):
            if len(self.known) < MAX_KNOWN:
                self.known.add(text)

    def read(self, data: object) -> None:
        """Fill in what is familiar.

        Raises:
            UsageError: It is no list of texts.
        """
        texts = cast("list[object]", data) if isinstance(data, list) else [None]
        for text in texts[:MAX_KNOWN]:
            if not isinstance(text, str):
                msg = "These are no patterns: their 'familiar' is a list of texts."
                raise UsageError(msg)
            self.known.add(text)
