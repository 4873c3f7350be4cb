"""Cross-validation of a predictor on recorded runs."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from headstart._errors import UsageError
from headstart.replay import Latency
from headstart.replay._recorded import make_tools

from ._clock import cpu_seconds
from ._decisions import Examiner, Scoring
from ._gain import GainMeter
from ._learning import read_tools, teach
from ._predictors import EvaluatedPredictor, Seat, Taught, check_predictor
from ._report import EvaluationReport
from ._runs import Corpus, GroupedRun, deal_folds, read_corpus

if TYPE_CHECKING:
    from pathlib import Path

    from headstart.replay import ToolDeclaration
    from headstart.replay._recorded import RecordedTool

Progress: TypeAlias = Callable[[str, int, int], None]

LATENCIES = (1.0, 2.0, 5.0)
"""Seconds of every tool that the gain is stated for, unless others are given."""


def evaluate_files(
    files: Sequence[str | Path],
    predictor: Callable[[], EvaluatedPredictor],
    *,
    tools: str | Path | Mapping[str, ToolDeclaration] | None = None,
    folds: int = 5,
    group_by: str = "task",
    group_key: str | None = None,
    tool_latencies: Sequence[Latency | str | float] = LATENCIES,
    model_latency: Latency | str | float = 2.0,
    beside: float = 0.15,
    learn_within_runs: bool = True,
    seed: int = 0,
    limit: int | None = None,
    on_progress: Progress | None = None,
) -> EvaluationReport:
    """Learn from some of the recorded runs, and predict the others, fold by fold.

    Blocks until all is done, without network or model; interrupting it leaves nothing
    behind. Not to be called in a running event loop. Files without any good line give a
    report of 0 runs.

    Args:
        files: Files of recorded runs: a JSON object with chat `messages` a line.
        predictor: Makes an untaught predictor, such as `PatternPredictor` itself.
        tools: A `tools.json`, or what was read from it. Tools that it does not name are
            `UNSAFE`.
        folds: Into how many parts the runs are dealt. Each is predicted once, by what
            was learned from the others.
        group_by: The field of a run by which runs belong together, or `none`.
        group_key: A regular expression: runs in which it finds the same belong
            together, too.
        tool_latencies: Seconds of every tool call, each for a replay; none for none.
        model_latency: Seconds of the answers whose time the files do not say.
        beside: From which probability of the predicted answer on the request after it
            is sent beside the running one, in the replays.
        learn_within_runs: Whether the predictor is told of each answer of a tested run
            once it has predicted it, as in production; it forgets them with the run.
        seed: Of the folds, their order, and drawn latencies.
        limit: How many runs to read at most, of all files.
        on_progress: Called with what is being done, how much of it is, and of how much.

    Raises:
        TraceFormatError: A file cannot be read.
        UsageError: An option is wrong, or there are too few groups.
    """
    if not beside >= 0:
        raise UsageError(f"A probability is not negative: beside is not {beside!r}.")
    latencies = [Latency.parse(each) for each in tool_latencies]
    model = Latency.parse(model_latency)
    corpus = read_corpus(files, group_by=group_by, group_key=group_key, limit=limit)
    made = make_tools([each.run for each in corpus.runs], read_tools(tools))
    dealt = deal_folds(corpus.runs, folds, seed=seed) if corpus.runs else []
    meter = GainMeter(
        corpus.runs,
        made,
        model_latency=model,
        tool_latencies=latencies,
        beside=beside,
        seed=seed,
    )
    work = _Work(
        corpus,
        dealt,
        made,
        meter,
        learns=learn_within_runs,
        seed=seed,
        on_progress=on_progress,
    )
    work.do(predictor)
    return EvaluationReport(
        files=tuple(map(str, files)),
        options={
            "folds": folds,
            "group_by": group_by,
            "group_key": group_key,
            "tool_latencies": [str(each) for each in latencies],
            "model_latency": str(model),
            "beside": beside,
            "learn_within_runs": learn_within_runs,
            "seed": seed,
            "limit": limit,
        },
        runs=len(corpus.runs),
        groups=corpus.groups,
        without_group=corpus.without_group,
        folds=len(dealt),
        skipped=corpus.skipped,
        effects={tool.name: tool.effect.value.upper() for tool in made},
        scoring=work.scoring,
        learning_s=work.learning_s,
        learned_runs=work.learned_runs,
        gains=meter.gains,
    )


class _Work:
    """The folds, one after the other."""

    def __init__(
        self,
        corpus: Corpus,
        dealt: list[list[GroupedRun]],
        tools: Sequence[RecordedTool],
        meter: GainMeter,
        *,
        learns: bool,
        seed: int,
        on_progress: Progress | None,
    ) -> None:
        self._learns = learns
        self.scoring = Scoring()
        self.learning_s = 0.0
        self.learned_runs = 0
        self._runs = corpus.runs
        self._dealt = dealt
        self._tools = {tool.name: tool for tool in tools}
        self._meter = meter
        self._seed = seed
        self._on_progress = on_progress
        self._done: dict[str, int] = {}
        self._totals = {
            "learning": len(self._runs) * (len(dealt) - 1),
            "predicting": len(self._runs),
            "replaying": meter.replays,
        }

    def do(self, make_predictor: Callable[[], EvaluatedPredictor]) -> None:
        """Learn and predict every fold, and replay all."""
        for fold in self._dealt:
            tested = {id(each) for each in fold}
            # In the order of the files: what is decayed should be what is oldest.
            training = [each for each in self._runs if id(each) not in tested]
            predictor = make_predictor()
            check_predictor(predictor)
            self._learn(predictor, training)
            taught = Taught(predictor, learns=self._learns)
            examiner = Examiner(self._tools, training, self.scoring)
            source = random.Random(f"{self._seed} order")  # noqa: S311 - no secrets
            for each in source.sample(fold, len(fold)):
                seat = Seat(taught)
                examiner.examine(each, seat)
                self._note("predicting")
                self._meter.replay_predicted(
                    each, seat, on_run=lambda: self._note("replaying")
                )
        self._meter.replay_controls(lambda: self._note("replaying"))

    def _learn(
        self, predictor: EvaluatedPredictor, training: Sequence[GroupedRun]
    ) -> None:
        for each in training:
            started = cpu_seconds()
            try:
                teach(predictor, each.run, self._tools)
            except Exception as error:  # noqa: BLE001 - contained, as in a session
                self.scoring.failures.note(error)
            self.learning_s += cpu_seconds() - started
            self.learned_runs += 1
            self._note("learning")

    def _note(self, what: str) -> None:
        self._done[what] = self._done.get(what, 0) + 1
        if self._on_progress is not None:
            self._on_progress(what, self._done[what], self._totals[what])
