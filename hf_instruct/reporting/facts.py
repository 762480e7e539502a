"""What a run folder holds, read for the report; whatever a stage has not written yet is simply absent."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_instruct.config import Experiment, read_yaml
from hf_instruct.intervals import Interval, parse_interval
from hf_instruct.records import Judgment, Response, TrainingRow, as_number, read_json_object, read_rows
from hf_instruct.run_folder import RunFolder

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Scores:
    """One `scores.json`, or one category in it.

    Attributes:
        mean: Mean score from 0 to 100; None when no answer has a score.
        standard_error: Of the mean; None when fewer than two answers have a score.
        n: Answers with a score.
        failures: Answers judged without a readable verdict.
        total: Answers to judge.
        judge: `backend`, `model`, `digest` and the like.
        rubric: Name of the rubric.
        rubric_sha256: Hash of what the rubric asks.
        prompts_sha256: Hash of all prompts that the judge was sent.
        by_category: The same numbers for each category, where the examples have one.
        interval: Ends of the mean's 95 % interval.
        as_zero: Mean with every failure counted as 0; None where that is not known.
        as_full: Mean with every failure counted as 100.
        failed_checks: What this judge failed when it was checked itself.
        constant: The score that the judge gave to every answer; None where it did tell them apart.
        repeats: How often each answer was judged, and what differed; empty for once.
    """

    mean: float | None
    standard_error: float | None
    n: int
    failures: int
    total: int
    judge: dict[str, Any] = dataclasses.field(default_factory=dict)
    rubric: str = ""
    rubric_sha256: str = ""
    prompts_sha256: str = ""
    by_category: "dict[str, Scores]" = dataclasses.field(default_factory=dict)
    interval: Interval | None = None
    as_zero: float | None = None
    as_full: float | None = None
    failed_checks: tuple[str, ...] = ()
    constant: float | None = None
    repeats: dict[str, Any] = dataclasses.field(default_factory=dict)


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
        split_sizes={name: _count_lines(run.split(name)) for name in SPLITS if run.split(name).is_file()},
        training_rows=read_rows(run.training_log, TrainingRow) if run.training_log.is_file() else [],
        training=read_json_object(run.training_summary),
        tuned=_read_side(run),
        base=_read_side(run.base),
        self_check=read_json_object(run.self_check),
        benchmarks=read_json_object(run.benchmarks),
        pairwise=[read_json_object(path) for path in sorted(run.path.glob("pairwise/*.json"))],
    )


def parse_scores(values: Mapping[str, Any]) -> Scores:
    """Return the numbers of a `scores.json`; what is missing or of another type counts as unknown.

    >>> parse_scores({"mean": 50, "n": 3, "total": 4, "failures": 1}).mean
    50.0
    """
    judge, rubric, categories, check = (values.get(n) for n in ("judge", "rubric", "by_category", "self_check"))
    if not isinstance(rubric, Mapping):
        rubric = {"name": rubric}
    n, failures = (_whole(values.get(name)) for name in ("n", "failures"))
    return Scores(
        mean=as_number(values.get("mean")),
        standard_error=as_number(values.get("standard_error")),
        n=n,
        failures=failures,
        total=max(_whole(values.get("total")), n + failures),
        judge=dict(judge) if isinstance(judge, Mapping) else {},
        rubric=str(rubric.get("name") or ""),
        rubric_sha256=str(rubric.get("sha256") or ""),
        prompts_sha256=str(values.get("prompts_sha256") or ""),
        by_category={
            str(name): parse_scores(numbers)
            for name, numbers in (categories.items() if isinstance(categories, Mapping) else ())
            if isinstance(numbers, Mapping)
        },
        interval=parse_interval(values.get("interval")),
        as_zero=as_number(values.get("mean_failures_as_0")),
        as_full=as_number(values.get("mean_failures_as_100")),
        constant=as_number(values.get("mean")) if values.get("constant") is True else None,
        repeats=dict(repeats) if isinstance(repeats := values.get("repeats"), Mapping) else {},
        failed_checks=tuple(map(str, check.get("failed") or ())) if isinstance(check, Mapping) else (),
    )


def _whole(value: Any) -> int:
    number = as_number(value)
    return int(number) if number is not None else 0


def _read_side(run: RunFolder) -> Side:
    judgments = read_rows(run.judgments, Judgment) if run.judgments.is_file() else []
    return Side(
        responses=read_rows(run.responses, Response) if run.responses.is_file() else [],
        judgments={judgment.id: judgment for judgment in judgments},
        scores=parse_scores(read_json_object(run.scores)) if run.scores.is_file() else None,
        metrics=read_json_object(run.metrics),
    )


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if line.endswith(b"\n"))
