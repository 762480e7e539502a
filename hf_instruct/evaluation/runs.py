"""Load the scores of a run or a file, with the facts that decide whether they can be compared."""

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import DataError
from hf_instruct.evaluation.metrics import QUOTIENTS
from hf_instruct.evaluation.people import Labelled, read_people
from hf_instruct.evaluation.scores import describe_references, identify_judge
from hf_instruct.evaluation.verdict_table import SCORES, load_verdicts
from hf_instruct.records import build_example_id, read_rows
from hf_instruct.run_folder import RunFolder, split_model
from hf_instruct.schema import TUNED, CheckOutcome, JudgeIdentity, Response, TrainingRow

if TYPE_CHECKING:
    import pandas


@dataclasses.dataclass(frozen=True)
class ScoredRun:
    """The scores of one set of answers.

    `rows` has one row per judged example, by id (or by index, from 0): `score` from 0 to 100 (NaN for a failure; the
    mean if the answers were judged several times) and, if the answers are stored with the scores, `example` (the hash
    of the example), `task` (its instruction) and `category`.
    """

    name: str  # as the user named it
    rows: "pandas.DataFrame"
    metrics: "pandas.DataFrame"  # values of the reference metrics except `QUOTIENTS`, by id and name
    keyed: bool = True  # whether the rows are by id
    judge: JudgeIdentity | None = None  # None if the file does not say
    rubric: str = ""  # name of the rubric; empty if the file does not say
    rubric_sha256: str = ""  # hash of the rubric's content; empty if unknown
    repeats: int = 1  # how often each answer was judged
    self_check: CheckOutcome | None = None  # result of the judge's check; None if it was not checked
    references: tuple[int, str] = (0, "")  # number of answers equal to the reference; scores of references, in words
    people: Mapping[str, float] = dataclasses.field(default_factory=dict)  # people's scores of some answers, by id
    validation_loss: float | None = None  # of the model that answered, in nats per token; None if unknown
    length: float | None = None  # characters of all answers divided by those of the references; None if unknown

    @property
    def is_scored(self) -> bool:
        """Whether anybody judged the answers."""
        return self.judge is not None or len(self.known) > 0

    @property
    def known(self) -> "pandas.Series[float]":
        """The scores without the failures."""
        return self.rows["score"].dropna()

    def by_index(self) -> "ScoredRun":
        """Return a copy with indices, from 0, as keys, and without people's scores."""
        metrics = self.metrics.reindex(self.rows.index).reset_index(drop=True)
        rows = self.rows.reset_index(drop=True)
        return dataclasses.replace(self, keyed=False, rows=rows, metrics=metrics, people={})

    @property
    def labelled(self) -> Labelled:
        """The judge's scores together with people's."""
        return Labelled(
            {id: None if math.isnan(score) else score for id, score in self.rows["score"].items()}, self.people
        )


def load_run(source: Any, name: str = "the scores") -> ScoredRun:
    """Return the scores of a run folder (its tuned model; `RUN/untuned` is the untuned one), of a file, or in memory.

    If the answers of a run were measured but not judged, there are only reference metrics.

    Args:
        source: A folder with `judgments.jsonl`, that file, another file of scores that `hf-instruct agree` accepts, a
            sequence of numbers, or a mapping of ids to numbers.
        name: Name of scores in memory; others are named by their path.

    Raises:
        DataError: There are no scores, they are not from 0 to 100, or judging has not finished.
    """
    import pandas

    if isinstance(source, str | Path):
        path, model = split_model(Path(source))
        folder = RunFolder(path)
        if (measured := folder.read_metrics(model).examples) and not folder.read_judgments(model):
            rows = pandas.DataFrame({"score": math.nan}, index=list(measured))
            run = ScoredRun(str(source), rows, pandas.DataFrame(index=rows.index))
            return _add_run_files(run, folder, model, is_folder=False)
    verdicts = load_verdicts(source, name)
    if verdicts.kind != SCORES:
        raise DataError(
            f"`{verdicts.name}` contains preferences, not scores; `hf-instruct rate` rates models by preferences, and "
            "`hf-instruct agree` compares those who prefer."
        )
    scores = verdicts.by_example()
    if wrong := [score for score in scores if score < 0 or score > 100]:
        raise DataError(
            f"`{verdicts.name}` contains {len(wrong)} score(s) outside 0 to 100; the first is {wrong[0]:g}."
        )
    rows = pandas.DataFrame({"score": scores, "example": None, "task": None, "category": None})
    run = ScoredRun(verdicts.name, rows, pandas.DataFrame(index=rows.index), verdicts.keyed)
    if not verdicts.judgments or verdicts.file is None:
        return run
    last = verdicts.judgments[-1]
    run = dataclasses.replace(run, judge=last.judge, rubric=last.rubric, rubric_sha256=last.rubric_sha256)
    if verdicts.file.name != "judgments.jsonl":
        return run
    is_folder = Path(source) != verdicts.file
    return _add_run_files(run, RunFolder(verdicts.file.parent), last.model, is_folder=is_folder)


def _add_run_files(run: ScoredRun, folder: RunFolder, model: str, *, is_folder: bool) -> ScoredRun:
    """Return a run with the other files of its folder: the scores, the answers' examples, metrics, validation loss."""
    import pandas

    responses: list[Response] = []
    with contextlib.suppress(DataError):
        responses = folder.read_responses(model)
    scores = folder.read_scores(model)
    if is_folder and scores is None and len(run.rows) < len(responses):
        raise DataError(
            f"`{run.name}` is only partly judged ({len(run.rows)} of {len(responses)} answers); continue with "
            "`hf-instruct judge`."
        )
    rows, repeats = run.rows, scores.repeats.count if scores and scores.repeats else 1
    if repeats > 1:
        judged = [folder.read_judgments(model, repeat=number) for number in range(1, repeats + 1)]
        columns = [pandas.Series({row.id: row.score for row in each}, dtype=float) for each in judged]
        rows = rows.assign(score=pandas.concat(columns, axis=1).mean(axis=1))
    examples = {row.id: build_example_id(row.instruction, row.input, row.output) for row in responses}
    tasks = {row.id: row.instruction for row in responses}
    categories = {row.id: row.category for row in responses if row.category}
    measured = folder.read_metrics(model)
    metrics = pandas.DataFrame.from_dict(measured.examples, orient="index", dtype=float)
    return dataclasses.replace(
        run,
        rows=rows.assign(
            example=rows.index.map(examples), task=rows.index.map(tasks), category=rows.index.map(categories)
        ),
        metrics=metrics.drop(columns=list(QUOTIENTS), errors="ignore"),
        rubric_sha256=run.rubric_sha256 or (scores.rubric.sha256 if scores else ""),
        repeats=repeats,
        self_check=scores.self_check if scores else None,
        references=(scores.equal_n, describe_references(scores)) if scores else run.references,
        people=read_people(folder, responses),
        validation_loss=_find_validation_loss(folder, model),
        length=measured.metrics["length_ratio"].mean if "length_ratio" in measured.metrics else None,
    )


def _find_validation_loss(folder: RunFolder, model: str) -> float | None:
    """Return the last validation loss of a run or, for a model other than `tuned`, the one before the first step."""
    if not folder.training_log.is_file():
        return None
    rows = [row for row in read_rows(folder.training_log, TrainingRow) if row.validation_loss is not None]
    # DPO's is in nats per pair.
    rows = [row for row in rows if row.reward_margin is None]
    losses = [row.validation_loss for row in rows if model == TUNED or row.step == 0]
    return losses[-1] if losses else None


def find_judging_differences(runs: Sequence[ScoredRun]) -> list[str]:
    """Return the differences in how runs were judged, each with the values; empty if nothing is known.

    Runs with an unknown judge, or an unknown hash of the rubric, are left out of that comparison.
    """
    judges = [(run, identify_judge(run.judge)) for run in runs if run.judge]
    names = dict.fromkeys(name for _, judge in judges for name in judge)
    all_options = {name for _, judge in judges for name in judge["options"]}
    differing = [
        name for name in sorted(all_options) if len({str(judge["options"].get(name)) for _, judge in judges}) > 1
    ]
    has_one_rubric = len({run.rubric for run, _ in judges}) == 1
    owners: dict[str, dict[str, list[str]]] = {}
    for run, judge in judges:
        facts = {f"judge.{name}": judge.get(name) for name in names}
        # Options that are the same for all runs are not shown.
        facts["judge.options"] = ", ".join(f"{name} {judge['options'].get(name)}" for name in differing)
        facts["rubric"] = run.rubric
        # Different names are enough: different rubrics always have different hashes.
        if has_one_rubric and run.rubric_sha256:
            facts["rubric (SHA-256)"] = run.rubric_sha256[:7]
        for name, value in facts.items():
            owners.setdefault(name, {}).setdefault(str(value), []).append(run.name)
    return [
        f"`{name}`: " + "; ".join(f"{value} ({', '.join(names)})" for value, names in values.items())
        for name, values in owners.items()
        if len(values) > 1
    ]
