"""What a run's files tell of its model's answers, read for the model card; what was not measured is simply absent."""

import dataclasses
import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_instruct.evaluation.intervals import measure_difference
from hf_instruct.evaluation.score_summary import (
    FEW_ANSWERS,
    find_weakness_of,
    format_judge_details,
    has_unknown_size,
)
from hf_instruct.evaluation.scores import format_bounds
from hf_instruct.records import read_file, read_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import (
    JudgeIdentity,
    Judgment,
    MeanDifference,
    Metrics,
    MetricValue,
    Preflight,
    Scores,
    TrainingSummary,
)

_LEAST_STOPPED = 0.9


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the files of a run hold.

    Attributes:
        scores: `scores.json`; None where there is none.
        base_scores: The untuned model's.
        metrics: The reference metrics by name; empty where there are none.
        base_metrics: The untuned model's.
        preflight: What was found in the data.
        training: What fine-tuning took; None where that is not known.
        difference: Mean of the tuned scores less the base scores of the same examples, and its 95 % interval, in
            points; None where they were not judged by the same judge.
    """

    scores: Scores | None
    base_scores: Scores | None
    metrics: dict[str, MetricValue]
    base_metrics: dict[str, MetricValue]
    preflight: Preflight
    training: TrainingSummary | None
    difference: MeanDifference | None = None

    @property
    def judges_agree(self) -> bool:
        """Whether the same judge scored both sides under the same rubric."""
        return self.scores is not None and self.base_scores is not None and self.scores.judged_as(self.base_scores)


def read_measured(run: RunFolder) -> Measured:
    """Return what the run's files tell.

    Raises:
        DataError: A file is there but is not a JSON object.
    """
    measured = Measured(
        scores=read_file(run.scores, Scores),
        base_scores=read_file(run.base.scores, Scores),
        metrics=_read_metrics(run.metrics),
        base_metrics=_read_metrics(run.base.metrics),
        preflight=read_file(run.preflight, Preflight) or Preflight(),
        training=read_file(run.training_summary, TrainingSummary),
    )
    if measured.judges_agree:
        return dataclasses.replace(measured, difference=_measure_difference(run))
    return measured


def describe_judge(judge: JudgeIdentity) -> str:
    """Return a judge's model, backend and digest; a model that is a local folder stays unnamed.

    >>> describe_judge(JudgeIdentity(model="llama3", backend="ollama", digest="sha256:365c0bd3c000a25d"))
    'llama3 (ollama, digest 365c0bd3c000)'
    """
    return public_name(judge.model, "a model of the publisher's own") + format_judge_details(judge)


def public_name(name: Any, instead: str) -> str:
    """Return a name, or `instead` where it is the path of a local file or folder, or missing."""
    text = str(name or "")
    is_path = text.startswith((".", "/", "~")) or "\\" in text or text.count("/") > 1
    return instead if not text or is_path or ("/" in text and Path(text).exists()) else text


def escape(text: Any) -> str:
    """Return a text of others as one line of Markdown that shows it and does nothing else.

    >>> escape("<b>`llama3`\\n---\\n| a_b |")
    '&lt;b&gt;\\\\`llama3\\\\` --- | a_b |'
    """
    line = html.escape(" ".join(str(text).split()), quote=False)
    # The card's tables escape `|` themselves.
    return re.sub(r"([\\`*\[\]~])", r"\\\1", line)


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Return named values of a JSON file, and empty ones for anything else."""
    return value if isinstance(value, Mapping) else {}


def list_limits(measured: Measured) -> list[str]:
    """Return what the numbers do not say: a sentence or two each."""
    return [
        *_note_leaks(measured.preflight),
        *(_note_judge(measured.scores) if measured.scores else ["Its answers were not scored by a judge."]),
        *_note_difference(measured),
        *_note_failures("", measured.scores),
        *_note_failures("base model's ", measured.base_scores),
        *_note_stopped(measured.metrics),
    ]


def _note_leaks(preflight: Preflight) -> list[str]:
    total = preflight.examples.get("test")
    of = f" of the {total:,}" if total else ""
    seen, near = preflight.count_leaks()
    notes = []
    if seen:
        notes.append(
            f"{seen}{of} test examples have the same instruction and input as a training example: the scores flatter "
            "the model."
        )
    if near:
        are = "is a near-duplicate" if near == 1 else "are near-duplicates"
        notes.append(f"{near}{of} test examples {are} of a training example.")
    return notes


def _note_judge(scores: Scores) -> list[str]:
    notes = []
    if weakness := find_weakness_of(scores):
        text = escape(f"{weakness[0].upper()}{weakness[1:]}")
        notes.append(f"**{text}**: its scores do not tell good answers from bad ones.")
    if scores.constant:
        notes.append("The judge gave every answer the same score, which tells nothing.")
    if has_unknown_size(scores.judge):
        notes.append("The judge was a local model whose name does not tell its size; a small one scores roughly.")
    if scores.n < FEW_ANSWERS:
        notes.append(f"Only {scores.n} answers have a score, so the interval itself is uncertain.")
    return notes


def _note_difference(measured: Measured) -> list[str]:
    if measured.scores and measured.base_scores and not measured.judges_agree:
        return ["The two models were judged by different judges or rubrics; their scores cannot be compared."]
    difference = measured.difference
    is_weak = any(scores and find_weakness_of(scores) for scores in (measured.scores, measured.base_scores))
    if is_weak or difference is None or difference.low > 0:
        return []
    if difference.high < 0:
        return [f"The judge scores this model lower than its base model: {difference}."]
    return [f"The scores show no difference from the base model: {difference}."]


def _note_failures(owner: str, scores: Scores | None) -> list[str]:
    if scores is None or not scores.failures:
        return []
    ends = format_bounds(scores, " or ")
    bounds = f"; counted as 0 or as 100 they would make the mean {ends}" if ends else ""
    return [f"The judge gave no readable verdict on {scores.failures} of {scores.total} {owner}answers{bounds}."]


def _note_stopped(metrics: Mapping[str, MetricValue]) -> list[str]:
    if "stopped" not in metrics or metrics["stopped"].mean >= _LEAST_STOPPED:
        return []
    return [f"{100 * (1 - metrics['stopped'].mean):.0f} % of its answers did not end by themselves and were cut off."]


def _measure_difference(run: RunFolder) -> MeanDifference | None:
    if not (run.judgments.is_file() and run.base.judgments.is_file()):
        return None
    # A later row of an example takes the place of an earlier one, with or without a score.
    latest = ({row.id: row.score for row in read_rows(folder.judgments, Judgment)} for folder in (run.base, run))
    base, tuned = ({id: score for id, score in scores.items() if score is not None} for scores in latest)
    return measure_difference(base, tuned)


def _read_metrics(path: Path) -> dict[str, MetricValue]:
    return (read_file(path, Metrics) or Metrics()).metrics
