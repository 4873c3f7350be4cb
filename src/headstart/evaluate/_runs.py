"""Recorded runs for an evaluation: read, put into groups, and dealt into folds."""

from __future__ import annotations

import itertools
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from headstart._errors import TraceFormatError, UsageError
from headstart._messages import Usage
from headstart.replay import RecordedRun, read_run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

NO_GROUPS = "none"
"""The `group_by` that lets every run stand alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedLine:
    """A line that holds no run.

    Attributes:
        file: Its file.
        line: Its number, from 1.
        reason: What is wrong with it.
    """

    file: str
    line: int
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """The line as JSON values."""
        return {"file": self.file, "line": self.line, "reason": self.reason}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupedRun:
    """A recorded run, and with which others it belongs together.

    Attributes:
        run: The run.
        group: The number of its group: all runs of a group stand on one side of every
            split.
        usage: Tokens of each of its answers; `None` where the file does not say.
    """

    run: RecordedRun
    group: int
    usage: tuple[Usage | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """What was read.

    Attributes:
        runs: The runs, in the order of the files.
        skipped: Lines that hold no run.
        without_group: Runs that do not have the field they are grouped by. Each stands
            alone.
    """

    runs: tuple[GroupedRun, ...]
    skipped: tuple[SkippedLine, ...] = ()
    without_group: int = 0

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return len({each.group for each in self.runs})


def read_corpus(
    files: Sequence[str | Path],
    *,
    group_by: str = "task",
    group_key: str | None = None,
    limit: int | None = None,
) -> Corpus:
    """Read files of recorded runs, and find out which runs belong together.

    Args:
        files: Files with a JSON object with chat `messages` a line.
        group_by: The field of that object by which runs are grouped; `none` groups none.
        group_key: A regular expression. Runs in whose texts (that field, the messages,
            the calls' arguments) it finds the same belong together, too, and so do
            their groups. Where it has groups of its own, the first one counts.
        limit: How many runs to read at most, of all files.

    Raises:
        TraceFormatError: A file cannot be read.
        UsageError: There is no file, or the expression is none.
    """
    if not files:
        raise UsageError("Name one file of recorded runs at least.")
    pattern = _compile(group_key)
    families = _Families()
    read: list[tuple[RecordedRun, tuple[Usage | None, ...]]] = []
    skipped: list[SkippedLine] = []
    without_group = 0
    for run, fields in _read_files(files, skipped, limit):
        member = len(read)
        families.add(member)
        label = fields.get(group_by) if group_by != NO_GROUPS else None
        if label is not None:
            families.join(member, ("group", json.dumps(label, sort_keys=True)))
        else:
            without_group += 1
        if pattern is not None:
            for found in _keys(pattern, run, label):
                families.join(member, ("key", found))
        read.append((run, _usages(fields["messages"])))
    numbers: dict[int, int] = {}
    runs = tuple(
        GroupedRun(
            run=run,
            group=numbers.setdefault(families.root(member), len(numbers)),
            usage=usage,
        )
        for member, (run, usage) in enumerate(read)
    )
    return Corpus(
        runs=runs,
        skipped=tuple(skipped),
        without_group=0 if group_by == NO_GROUPS else without_group,
    )


def _read_files(
    files: Sequence[str | Path], skipped: list[SkippedLine], limit: int | None
) -> Iterator[tuple[RecordedRun, dict[str, Any]]]:
    count = 0
    for name, number, line in _lines(files):
        if limit is not None and count >= limit:
            return
        try:
            run = read_run(line, line=number)
        except TraceFormatError as error:
            skipped.append(SkippedLine(file=name, line=number, reason=str(error)))
            continue
        count += 1
        yield run, json.loads(line.decode("utf-8-sig"))


def _lines(files: Sequence[str | Path]) -> Iterator[tuple[str, int, bytes]]:
    for path in map(Path, files):
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield str(path), number, line
        except OSError as error:
            msg = f"The trace {str(path)!r} cannot be read: {error.strerror or error}."
            raise TraceFormatError(msg) from error


def deal_folds(
    runs: Sequence[GroupedRun], folds: int, *, seed: int
) -> list[list[GroupedRun]]:
    """Deal the runs into folds of about the same size, no group into two of them.

    Raises:
        UsageError: There are fewer groups than folds, or fewer than two folds.
    """
    by_group: dict[int, list[GroupedRun]] = {}
    for each in runs:
        by_group.setdefault(each.group, []).append(each)
    if folds < 2:
        raise UsageError(f"Two folds are the fewest there can be, not {folds}.")
    if len(by_group) < folds:
        msg = (
            f"{len(runs)} runs in {len(by_group)} groups cannot be dealt into {folds} "
            "folds: pass fewer folds, more runs, or another way to group them."
        )
        raise UsageError(msg)
    source = random.Random(f"{seed} folds")  # noqa: S311 - not for secrets
    groups = list(by_group.values())
    source.shuffle(groups)
    groups.sort(key=len, reverse=True)  # stable: what is of one size stays shuffled
    dealt: list[list[GroupedRun]] = [[] for _ in range(folds)]
    for group in groups:
        min(dealt, key=len).extend(group)
    return dealt


class _Families:
    """Who belongs together: members that share a mark, and the marks they share."""

    def __init__(self) -> None:
        self._parents: dict[int, int] = {}
        self._first: dict[tuple[str, str], int] = {}

    def add(self, member: int) -> None:
        self._parents[member] = member

    def join(self, member: int, mark: tuple[str, str]) -> None:
        first = self._first.setdefault(mark, member)
        left, right = self.root(member), self.root(first)
        self._parents[max(left, right)] = min(left, right)

    def root(self, member: int) -> int:
        while self._parents[member] != member:
            self._parents[member] = self._parents[self._parents[member]]
            member = self._parents[member]
        return member


def _compile(group_key: str | None) -> re.Pattern[str] | None:
    if group_key is None:
        return None
    try:
        return re.compile(group_key)
    except re.error as error:
        msg = f"The group key {group_key!r} is no regular expression: {error}."
        raise UsageError(msg) from error


def _keys(pattern: re.Pattern[str], run: RecordedRun, label: object) -> set[str]:
    texts: Iterable[str] = itertools.chain(
        () if label is None else (str(label),),
        (message.content for message in run.messages),
        (recorded.call.arguments for recorded in run.calls()),
    )
    found = {
        match[1 if pattern.groups else 0]
        for text in texts
        for match in pattern.finditer(text)
    }
    return {key for key in found if key}


def _usages(messages: list[dict[str, Any]]) -> tuple[Usage | None, ...]:
    return tuple(
        _usage(message.get("usage"))
        for message in messages
        if message.get("role") == "assistant"
    )


def _usage(data: object) -> Usage | None:
    if not isinstance(data, dict):
        return None
    fields = cast("dict[str, object]", data)
    tokens = [
        next(
            (fields[name] for name in names if isinstance(fields.get(name), int)), None
        )
        for names in (
            ("input_tokens", "prompt_tokens"),
            ("output_tokens", "completion_tokens"),
        )
    ]
    if not all(isinstance(count, int) and count >= 0 for count in tokens):
        return None
    return Usage(
        input_tokens=cast("int", tokens[0]), output_tokens=cast("int", tokens[1])
    )
