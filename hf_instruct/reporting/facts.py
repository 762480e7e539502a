"""What a run folder holds, read for the report; whatever a stage has not written yet is simply absent."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_instruct.config import Experiment
from hf_instruct.evaluation.intervals import MeanDifference, measure_difference
from hf_instruct.evaluation.score_summary import Leading, Scores, choose_leading, read_scores
from hf_instruct.records import Judgment, Response, TrainingRow, as_number, read_json_object, read_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.yaml_text import read_yaml


@dataclasses.dataclass(frozen=True)
class Side:
    """The answers of one model, tuned or base, and what the judge said of them.

    Attributes:
        responses: In the order of the test split.
        judgments: By the example's id; the latest where there are several.
        scores: None when the judge has not finished.
        metrics: What `metrics.json` holds; empty where it is not there.
    """

    responses: list[Response]
    judgments: dict[str, Judgment]
    scores: Scores | None
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def values(self) -> dict[str, dict[str, float]]:
        """The reference metrics' values by name and example id; without those that cannot be read."""
        examples, found = self.metrics.get("examples"), dict[str, dict[str, float]]()
        for id, values in examples.items() if isinstance(examples, Mapping) else ():
            for name, value in values.items() if isinstance(values, Mapping) else ():
                if (number := as_number(value)) is not None:
                    found.setdefault(str(name), {})[str(id)] = number
        return found

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
        self_check: What the judge made of answers of known worth; empty where it was not checked.
        benchmarks: Results on tasks of lm-eval; empty where it was not asked.
        pairwise: Summaries of pairwise judging, one for each baseline.
    """

    folder: RunFolder
    experiment: Experiment
    provenance: dict[str, Any]
    preflight: dict[str, Any]
    split_sizes: dict[str, int]
    training_rows: list[TrainingRow]
    training: dict[str, Any]
    tuned: Side
    base: Side
    self_check: dict[str, Any] = dataclasses.field(default_factory=dict)
    benchmarks: dict[str, Any] = dataclasses.field(default_factory=dict)
    pairwise: list[dict[str, Any]] = dataclasses.field(default_factory=list)

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
        sides = [side for side in (self.base, self.tuned) if side.responses or side.scores or side.metrics]
        metrics = set.intersection(*(set(side.values) for side in sides)) if sides else set()
        return choose_leading((side.scores.weakness for side in sides if side.scores), metrics)

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
    provenance = read_yaml(run.config) if run.config.is_file() else {}
    provenance.pop("experiment", None)
    return RunFacts(
        folder=run,
        experiment=experiment,
        provenance=provenance,
        preflight=read_json_object(run.preflight),
        split_sizes={
            name: _count_lines(run.split(name)) for name in ("train", "validation", "test") if run.split(name).is_file()
        },
        training_rows=read_rows(run.training_log, TrainingRow) if run.training_log.is_file() else [],
        training=read_json_object(run.training_summary),
        tuned=_read_side(run),
        base=_read_side(run.base),
        self_check=read_json_object(run.self_check),
        benchmarks=read_json_object(run.benchmarks),
        pairwise=[read_json_object(path) for path in sorted(run.pairwise.glob("*.json"))],
    )


def _read_side(run: RunFolder) -> Side:
    judgments = read_rows(run.judgments, Judgment) if run.judgments.is_file() else []
    return Side(
        responses=read_rows(run.responses, Response) if run.responses.is_file() else [],
        judgments={judgment.id: judgment for judgment in judgments},
        scores=read_scores(run.scores),
        metrics=read_json_object(run.metrics),
    )


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if line.endswith(b"\n"))
