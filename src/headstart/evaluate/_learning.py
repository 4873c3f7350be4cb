"""Teaches a predictor what recorded runs hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from headstart.predictors import Conversation, Learner
from headstart.replay import ToolDeclaration, read_declarations
from headstart.replay._recorded import make_tools

from ._clock import cpu_seconds
from ._runs import NO_GROUPS, SkippedLine, read_corpus
from ._scores import rounded, share

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headstart._tools import Tool
    from headstart.replay import RecordedRun

    ToolsFile: TypeAlias = "str | Path | Mapping[str, ToolDeclaration] | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningReport:
    """What was learned from.

    Attributes:
        files: The files.
        runs: Runs that were read.
        answers: Answers in them.
        calls: Calls in those.
        seconds: Seconds of the processor that learning took, without reading.
        skipped: Lines that hold no run.
    """

    files: tuple[str, ...]
    runs: int
    answers: int
    calls: int
    seconds: float
    skipped: tuple[SkippedLine, ...] = ()

    @property
    def runs_per_second(self) -> float:
        """How many runs were learned from in a second."""
        return share(self.runs, self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {
            "files": list(self.files),
            "runs": self.runs,
            "answers": self.answers,
            "calls": self.calls,
            "seconds": rounded(self.seconds),
            "runs_per_second": rounded(self.runs_per_second),
            "bad_lines": [each.to_dict() for each in self.skipped],
        }


def learn_files(
    files: Sequence[str | Path],
    predictor: Learner,
    *,
    tools: ToolsFile = None,
    limit: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> LearningReport:
    """Teach a predictor the runs of files, in their order.

    What it knows already stays, so that a file of patterns that was read goes on
    learning. Interrupting it leaves the predictor with what it was told so far.

    Args:
        files: Files of recorded runs: a JSON object with chat `messages` a line.
        predictor: Whom, such as a `PatternPredictor`.
        tools: A `tools.json`, or what was read from it: which tools change nothing.
            Those that it does not name are taken to change everything.
        limit: How many runs to read at most, of all files.
        on_progress: Called after each run with how many are done, and of how many.

    Raises:
        TraceFormatError: A file cannot be read.
        UsageError: No file is named.
    """
    corpus = read_corpus(files, group_by=NO_GROUPS, limit=limit)
    runs = [each.run for each in corpus.runs]
    by_name = {tool.name: tool for tool in make_tools(runs, read_tools(tools))}
    seconds = 0.0
    for done, run in enumerate(runs, 1):
        started = cpu_seconds()
        teach(predictor, run, by_name)
        seconds += cpu_seconds() - started
        if on_progress is not None:
            on_progress(done, len(runs))
    return LearningReport(
        files=tuple(map(str, files)),
        runs=len(runs),
        answers=sum(len(run.turns) for run in runs),
        calls=sum(1 for run in runs for _ in run.calls()),
        seconds=seconds,
        skipped=corpus.skipped,
    )


def teach(predictor: Learner, run: RecordedRun, tools: Mapping[str, Tool]) -> None:
    """Tell a predictor every answer of a run, in order, as a session does."""
    for turn in run.turns.values():
        conversation = Conversation(messages=run.messages[: turn.position], tools=tools)
        predictor.learn(conversation, turn.response)
    if isinstance(predictor, Settles):
        predictor.settle()


@runtime_checkable
class Settles(Protocol):
    """A learner that wants to know that all its conversations have ended."""

    def settle(self) -> None: ...


def read_tools(tools: ToolsFile) -> Mapping[str, ToolDeclaration]:
    """The declarations of tools, read where they are a file."""
    if tools is None:
        return {}
    return read_declarations(Path(tools)) if isinstance(tools, str | Path) else tools
