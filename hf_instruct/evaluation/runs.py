"""Read what is compared: the scores of a run or a file, and all that says whether they can be compared."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import DataError
from hf_instruct.evaluation.metrics import QUOTIENTS
from hf_instruct.evaluation.scores import JUDGE_IDENTITY
from hf_instruct.evaluation.verdict_table import SCORES, load_verdicts
from hf_instruct.records import build_example_id, read_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import TUNED, CheckOutcome, JudgeIdentity, Response, TrainingRow

if TYPE_CHECKING:
    import pandas


@dataclasses.dataclass(frozen=True)
class ScoredRun:
    """The scores of one set of answers.

    Attributes:
        name: As the user named it.
        rows: One for each example judged, by id (or by index, from 0): `score` from 0 to 100, NaN for a failure (where
            the answers were judged several times, the mean), and, where the answers lie beside the scores, `example`
            (the hash of the example) and `category`.
        metrics: Values of the reference metrics, by id and name; those of `QUOTIENTS` are left out.
        keyed: Whether the rows are by id.
        judge: The judge; None where the file does not tell.
        rubric: Name of the rubric; empty where the file does not tell.
        rubric_sha256: Hash of what it asks; empty where that is not known.
        repeats: How often each answer was judged.
        self_check: What a check of the judge found; None where there was none.
        validation_loss: Of the model that answered, in nats per token; None where that is not known.
    """

    name: str
    rows: "pandas.DataFrame"
    metrics: "pandas.DataFrame"
    keyed: bool = True
    judge: JudgeIdentity | None = None
    rubric: str = ""
    rubric_sha256: str = ""
    repeats: int = 1
    self_check: CheckOutcome | None = None
    validation_loss: float | None = None

    @property
    def known(self) -> "pandas.Series[float]":
        """The scores without the failures."""
        return self.rows["score"].dropna()

    def by_index(self) -> "ScoredRun":
        """Return the same with indices, from 0, as keys."""
        metrics = self.metrics.reindex(self.rows.index).reset_index(drop=True)
        return dataclasses.replace(self, keyed=False, rows=self.rows.reset_index(drop=True), metrics=metrics)


def load_run(source: Any, *, name: str | None = None) -> ScoredRun:
    """Return the scores of a run folder (its tuned model; `RUN/untuned` is the other), of a file, or in memory.

    Args:
        source: A folder with `judgments.jsonl`, such a file, another file of scores as `hf-instruct agree` takes it, a
            sequence of numbers, or a mapping of ids to numbers.
        name: What to call it; by default the path.

    Raises:
        DataError: There are no scores, they are not from 0 to 100, or judging has not finished.
    """
    import pandas

    verdicts = load_verdicts(source, name)
    if verdicts.kind != SCORES:
        raise DataError(
            f"`{verdicts.name}` holds preferences, not scores; `hf-instruct rate` rates models by preferences, and "
            "`hf-instruct agree` compares those who prefer."
        )
    scores = verdicts.by_example()
    if wrong := [score for score in scores if score < 0 or score > 100]:
        raise DataError(f"`{verdicts.name}` holds {len(wrong)} score(s) outside 0 to 100; the first is {wrong[0]:g}.")
    rows = pandas.DataFrame({"score": scores, "example": None, "category": None})
    run = ScoredRun(verdicts.name, rows, pandas.DataFrame(index=rows.index), verdicts.keyed)
    if not verdicts.judgments or verdicts.file is None:
        return run
    last = verdicts.judgments[-1]
    run = dataclasses.replace(run, judge=last.judge, rubric=last.rubric, rubric_sha256=last.rubric_sha256)
    if verdicts.file.name != "judgments.jsonl":
        return run
    is_folder = Path(source) != verdicts.file
    return _add_run_files(run, RunFolder(verdicts.file.parent), last.model, is_folder=is_folder)


def _average_repeats(run: ScoredRun, folder: RunFolder, model: str, count: int) -> ScoredRun:
    """Return a run with the means over the repeats that its scores are of."""
    import pandas

    columns = [
        pandas.Series({row.id: row.score for row in folder.read_judgments(model, repeat=number)}, dtype=float)
        for number in range(1, count + 1)
    ]
    scores = pandas.concat(columns, axis=1).mean(axis=1).reindex(run.rows.index)
    return dataclasses.replace(run, rows=run.rows.assign(score=scores), repeats=count)


def _add_run_files(run: ScoredRun, folder: RunFolder, model: str, *, is_folder: bool) -> ScoredRun:
    """Return a run with what lies beside its judgments: the scores, the answers' examples, metrics, validation loss."""
    import pandas

    responses: list[Response] = []
    with contextlib.suppress(DataError):
        responses = folder.read_responses(model)
    scores = folder.read_scores(model)
    if is_folder and scores is None and len(run.rows) < len(responses):
        raise DataError(
            f"`{run.name}` is not judged to the end ({len(run.rows)} of {len(responses)} answers); "
            f"`hf-instruct judge` continues it."
        )
    if scores and scores.repeats:
        run = _average_repeats(run, folder, model, scores.repeats.count)
    examples = {row.id: build_example_id(row.instruction, row.input, row.output) for row in responses}
    categories = {row.id: row.category for row in responses if row.category}
    values = folder.read_metrics(model).examples
    metrics = {
        id: {name: value for name, value in each.items() if name not in QUOTIENTS} for id, each in values.items()
    }
    return dataclasses.replace(
        run,
        rows=run.rows.assign(example=run.rows.index.map(examples), category=run.rows.index.map(categories)),
        metrics=pandas.DataFrame.from_dict(metrics, orient="index", dtype=float),
        rubric_sha256=run.rubric_sha256 or (scores.rubric.sha256 if scores else ""),
        self_check=scores.self_check if scores else None,
        validation_loss=_find_validation_loss(folder, model),
    )


def _find_validation_loss(folder: RunFolder, model: str) -> float | None:
    """Return the last validation loss of a run, or, of the untuned model, that before the first step."""
    if not folder.training_log.is_file():
        return None
    rows = [row for row in read_rows(folder.training_log, TrainingRow) if row.validation_loss is not None]
    found = [row.validation_loss for row in rows if model == TUNED or row.step == 0]
    return found[-1] if found else None


def find_judging_differences(runs: Sequence[ScoredRun]) -> list[str]:
    """Return in what the runs were judged differently, each with the values seen; empty where nothing is known.

    A run that does not tell its judge, or the hash of its rubric, is not held against the others.
    """
    judges = [(run, run.judge) for run in runs if run.judge]
    seen: dict[str, list[tuple[str, Any]]] = {
        f"judge.{name}": [(run.name, getattr(judge, name)) for run, judge in judges] for name in JUDGE_IDENTITY
    }
    # Options that all have alike are not shown.
    names = sorted({name for _, judge in judges for name in judge.options})
    differing = [name for name in names if len({str(judge.options.get(name)) for _, judge in judges}) > 1]
    seen["judge.options"] = [
        (run.name, ", ".join(f"{name} {judge.options.get(name)}" for name in differing)) for run, judge in judges
    ]
    seen["rubric"] = [(run.name, run.rubric) for run, _ in judges]
    if len({run.rubric for run, _ in judges}) == 1:
        # Another name says it already: another rubric always has another hash.
        seen["rubric (SHA-256)"] = [(run.name, run.rubric_sha256[:7]) for run, _ in judges if run.rubric_sha256]
    differences = []
    for name, pairs in seen.items():
        owners: dict[str, list[str]] = {}
        for owner, value in pairs:
            owners.setdefault(str(value), []).append(owner)
        if len(owners) > 1:
            values = "; ".join(f"{value} ({', '.join(names)})" for value, names in owners.items())
            differences.append(f"`{name}`: {values}")
    return differences
