"""What a run folder holds, read for the report; whatever a stage has not written yet is simply absent."""

import dataclasses
import functools
from pathlib import Path

from hf_instruct.config import Experiment
from hf_instruct.evaluation.intervals import measure_difference
from hf_instruct.evaluation.score_summary import Leading, choose_leading, find_weakness_of
from hf_instruct.records import read_file, read_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import (
    TUNED,
    BenchmarkResult,
    Judgment,
    MeanDifference,
    Metrics,
    PairSummary,
    Preflight,
    Provenance,
    Response,
    Scores,
    SelfCheck,
    TrainingRow,
    TrainingSummary,
)


@dataclasses.dataclass(frozen=True)
class Side:
    """The answers of one model, tuned or base, and what the judge said of them.

    Attributes:
        responses: In the order of the test split.
        judgments: By the example's id; the latest where there are several.
        scores: None when the judge has not finished.
        metrics: The reference metrics.
    """

    responses: list[Response]
    judgments: dict[str, Judgment]
    scores: Scores | None
    metrics: Metrics = dataclasses.field(default_factory=Metrics)

    @functools.cached_property
    def values(self) -> dict[str, dict[str, float]]:
        """The reference metrics' values by name and example id."""
        return self.metrics.by_metric()

    @property
    def score_by_id(self) -> dict[str, int]:
        """The scores by the example's id, failures left out."""
        known = {response.id for response in self.responses}
        return {id: j.score for id, j in self.judgments.items() if j.score is not None and (not known or id in known)}

    @property
    def stopped_share(self) -> float | None:
        """Share of the answers that the model ended itself, a fraction; None where that is not known."""
        known = [response.stopped for response in self.responses if response.stopped is not None]
        return sum(known) / len(known) if known else None


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """All that the report says, as read.

    Attributes:
        folder: The run folder.
        experiment: What the run is of.
        provenance: `run.yaml` without the experiment: command, versions, commit, time.
        preflight: What the data stage found.
        split_sizes: Examples in each split that is there.
        training_rows: The training log.
        training: Seconds, memory, tokens and device of fine-tuning.
        tuned: The tuned model's answers.
        base: The untuned model's answers.
        self_check: What the judge made of answers of known worth; None where it was not checked.
        benchmarks: Results on tasks of lm-eval; empty where it was not asked.
        pairwise: Summaries of pairwise judging, one for each baseline.
    """

    folder: RunFolder
    experiment: Experiment
    provenance: Provenance
    preflight: Preflight
    split_sizes: dict[str, int]
    training_rows: list[TrainingRow]
    training: TrainingSummary | None
    tuned: Side
    base: Side
    self_check: SelfCheck | None = None
    benchmarks: list[BenchmarkResult] = dataclasses.field(default_factory=list)
    pairwise: list[PairSummary] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        """The run folder's own name."""
        return self.folder.path.resolve().name

    @functools.cached_property
    def difference(self) -> MeanDifference | None:
        """By how much the tuned model scores higher; None where the two sides were not both judged, and alike."""
        tuned, base = self.tuned.scores, self.base.scores
        if tuned is None or base is None or not tuned.judged_as(base):
            return None
        return measure_difference(self.base.score_by_id, self.tuned.score_by_id)

    @functools.cached_property
    def leading(self) -> Leading:
        """Which measure the report shows first and sorts by."""
        sides = [side for side in (self.base, self.tuned) if side.responses or side.scores or side.metrics.total]
        metrics = set.intersection(*(set(side.values) for side in sides)) if sides else set()
        return choose_leading((find_weakness_of(side.scores) for side in sides if side.scores), metrics)

    @property
    def evaluations(self) -> list[TrainingRow]:
        """The rows with a validation loss, by step."""
        rows = {row.step: row for row in self.training_rows if row.validation_loss is not None}
        return [rows[step] for step in sorted(rows)]


def read_facts(run: RunFolder, experiment: Experiment) -> RunFacts:
    """Return what the run folder holds.

    Raises:
        DataError: A file is there but cannot be read as what it should be.
    """
    return RunFacts(
        folder=run,
        experiment=experiment,
        provenance=run.read_provenance(),
        preflight=read_file(run.preflight, Preflight) or Preflight(),
        split_sizes={
            name: _count_lines(run.split(name)) for name in ("train", "validation", "test") if run.split(name).is_file()
        },
        training_rows=read_rows(run.training_log, TrainingRow) if run.training_log.is_file() else [],
        training=read_file(run.training_summary, TrainingSummary),
        tuned=_read_side(run),
        base=_read_side(run.base),
        self_check=read_file(run.self_check, SelfCheck),
        benchmarks=(read_file(run.benchmarks, dict[str, list[BenchmarkResult]]) or {}).get(TUNED, []),
        pairwise=[found for path in sorted(run.pairwise.glob("*.json")) if (found := read_file(path, PairSummary))],
    )


def _read_side(run: RunFolder) -> Side:
    judgments = read_rows(run.judgments, Judgment) if run.judgments.is_file() else []
    return Side(
        responses=read_rows(run.responses, Response) if run.responses.is_file() else [],
        judgments={judgment.id: judgment for judgment in judgments},
        scores=read_file(run.scores, Scores),
        metrics=read_file(run.metrics, Metrics) or Metrics(),
    )


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if line.endswith(b"\n"))
