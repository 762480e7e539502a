"""What the runs tab shows, read from the run folders: one set of answers a model, and losses a run."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_instruct.errors import InstructError
from hf_instruct.evaluation.intervals import Interval, MeanDifference, bootstrap_mean, measure_difference
from hf_instruct.evaluation.score_summary import Leading, choose_leading
from hf_instruct.records import Response, TrainingRow, as_number
from hf_instruct.ui.sources import Source

if TYPE_CHECKING:
    from hf_instruct.reporting.facts import RunFacts, Side


@dataclasses.dataclass(frozen=True)
class AnswerSet:
    """The answers of one model to the test split, and what is known of them.

    Attributes:
        label: Which model's.
        responses: By the example's id, in the order of the test split.
        scores: Score from 0 to 100 by the example's id; None for a failure.
        mean: Mean score; None where nothing was judged.
        interval: Its 95 % interval.
        num_failures: Answers judged without a readable verdict.
        judge: Who judged by which rubric, in words; empty where nobody did.
        metrics: Means of the reference metrics by name.
        values: Values of the reference metrics by name and example id.
        weakness: Why its judge's scores should not lead, in a clause; empty where they may.
        validation_loss: Of the model, in nats a token; None where it is not known.
    """

    label: str
    responses: dict[str, Response]
    scores: dict[str, int | None]
    mean: float | None
    interval: Interval | None
    num_failures: int
    judge: str
    metrics: dict[str, float]
    values: dict[str, dict[str, float]]
    weakness: str
    validation_loss: float | None

    @property
    def known(self) -> dict[str, int]:
        """The scores without the failures."""
        return {id: score for id, score in self.scores.items() if score is not None}


@dataclasses.dataclass(frozen=True)
class RunsView:
    """All that the runs tab shows.

    Attributes:
        sets: Of each run the untuned model's answers, then the tuned one's; those that are there.
        logs: Training log of each run that has one, by label.
        faults: What could not be read, in words.
        data: Hash of the data of each run that tells it, by label.
    """

    sets: list[AnswerSet]
    logs: dict[str, list[TrainingRow]]
    faults: list[str]
    data: dict[str, str]

    @property
    def examples(self) -> dict[str, Response]:
        """Every example that any model answered, by id, as the first of them has it."""
        found: dict[str, Response] = {}
        for answers in self.sets:
            for id, response in answers.responses.items():
                found.setdefault(id, response)
        return found

    @property
    def leading(self) -> Leading:
        """Which measure the tab shows first and sorts by."""
        answered = [set(answers.values) for answers in self.sets if answers.responses]
        metrics = set.intersection(*answered) if answered else set[str]()
        return choose_leading((answers.weakness for answers in self.sets), metrics)

    def difference(self, answers: AnswerSet) -> MeanDifference | None:
        """Return by how much a set scores above the first, on the examples that both have a score for.

        Returns:
            The difference in points; None for the first set itself, where the two were judged differently, or for
            fewer than two common examples.
        """
        first = self.sets[0]
        if answers is first or answers.judge != first.judge or not answers.judge:
            return None
        return measure_difference(first.known, answers.known)


def read_runs(sources: Sequence[Source]) -> RunsView:
    """Return what the folders of the runs hold now; a file that cannot be read is told, not raised."""
    from hf_instruct.reporting.facts import read_facts

    view = RunsView([], {}, [], {})
    for source in sources:
        if source.folder is None or source.experiment is None:
            continue
        try:
            _add_run(view, source.label, read_facts(source.folder, source.experiment))
        except InstructError as error:
            view.faults.append(f"{source.label}: {error}")
    return view


def _add_run(view: RunsView, label: str, facts: "RunFacts") -> None:
    evaluations = facts.evaluations
    if facts.training_rows:
        view.logs[label] = facts.training_rows
    if digest := facts.provenance.get("data_sha256"):
        view.data[label] = str(digest)
    before = evaluations[0].validation_loss if evaluations and evaluations[0].step == 0 else None
    after = evaluations[-1].validation_loss if evaluations else None
    sides = [(f"{label}, untuned", facts.base, before), (label, facts.tuned, after)]
    for name, side, loss in sides:
        # A run that has only been trained has a row too: its losses.
        if side.responses or side.scores or (side is facts.tuned and loss is not None):
            view.sets.append(_build_set(name, side, loss))


def _build_set(label: str, side: "Side", loss: float | None) -> AnswerSet:
    from hf_instruct.evaluation.verdict_table import describe_judge

    scores = {id: judgment.score for id, judgment in side.judgments.items()}
    summary = side.scores
    means = side.metrics.get("metrics")
    known = {
        str(name): mean
        for name, values in (means.items() if isinstance(means, dict) else ())
        if isinstance(values, dict) and (mean := as_number(values.get("mean"))) is not None
    }
    interval = summary.interval if summary else None
    return AnswerSet(
        label=label,
        responses={response.id: response for response in side.responses},
        scores=scores,
        mean=summary.mean if summary else None,
        interval=interval or bootstrap_mean([score for score in scores.values() if score is not None]),
        num_failures=summary.failures if summary else 0,
        judge=describe_judge(summary.judge, summary.rubric, summary.rubric_sha256) if summary else "",
        metrics=known,
        values=side.values,
        weakness=summary.weakness if summary else "",
        validation_loss=loss,
    )
