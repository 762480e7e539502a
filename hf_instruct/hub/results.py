"""What a run's files tell of its model's answers, read for the model card; what was not measured is simply absent."""

import dataclasses
import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_instruct.console import format_points
from hf_instruct.evaluation.intervals import MeanDifference, measure_difference
from hf_instruct.evaluation.score_summary import FEW_ANSWERS, Scores, read_scores
from hf_instruct.records import Judgment, as_number, read_json_object, read_rows
from hf_instruct.run_folder import RunFolder

_LEAST_STOPPED = 0.9


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the files of a run hold.

    Attributes:
        scores: `scores.json`; None where there is none.
        base_scores: The untuned model's.
        metrics: The reference metrics by name, as in `metrics.json`; empty where there is none.
        base_metrics: The untuned model's.
        preflight: What was found in the data; empty where that was not looked at.
        training: What fine-tuning took; empty where that is not known.
        difference: Mean of the tuned scores less the base scores of the same examples, and its 95 % interval, in
            points; None where they were not judged by the same judge.
    """

    scores: Scores | None
    base_scores: Scores | None
    metrics: dict[str, Any]
    base_metrics: dict[str, Any]
    preflight: dict[str, Any]
    training: dict[str, Any]
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
        scores=read_scores(run.scores),
        base_scores=read_scores(run.base.scores),
        metrics=_read_metrics(run.metrics),
        base_metrics=_read_metrics(run.base.metrics),
        preflight=read_json_object(run.preflight),
        training=read_json_object(run.training_summary),
    )
    if measured.judges_agree:
        return dataclasses.replace(measured, difference=_measure_difference(run))
    return measured


def describe_judge(scores: Scores) -> str:
    """Return a judge's model, backend and digest; a model that is a local folder stays unnamed.

    >>> judge = {"model": "llama3", "backend": "ollama", "digest": "sha256:365c0bd3c000a25d"}
    >>> describe_judge(Scores(50.0, None, 1, 0, 1, judge))
    'llama3 (ollama, digest 365c0bd3c000)'
    """
    return public_name(scores.judge.get("model"), "a model of the publisher's own") + scores.judge_details


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


def _note_leaks(preflight: Mapping[str, Any]) -> list[str]:
    total = as_number(as_mapping(preflight.get("examples")).get("test"))
    of = f" of the {total:,.0f}" if total else ""
    notes = []
    if seen := _count_test(preflight, "seen_in_train"):
        notes.append(
            f"{seen}{of} test examples have the same instruction and input as a training example: the scores flatter "
            "the model."
        )
    if near := _count_test(preflight, "near_duplicates"):
        are = "is a near-duplicate" if near == 1 else "are near-duplicates"
        notes.append(f"{near}{of} test examples {are} of a training example.")
    return notes


def _count_test(preflight: Mapping[str, Any], name: str) -> int:
    rows = as_mapping(preflight.get(name)).get("test")
    return len(rows) if isinstance(rows, list) else 0


def _note_judge(scores: Scores) -> list[str]:
    notes = []
    if weakness := scores.weakness:
        text = escape(f"{weakness[0].upper()}{weakness[1:]}")
        notes.append(f"**{text}**: its scores do not tell good answers from bad ones.")
    if scores.constant is not None:
        notes.append("The judge gave every answer the same score, which tells nothing.")
    if scores.has_unknown_judge:
        notes.append("The judge was a local model whose name does not tell its size; a small one scores roughly.")
    if scores.n < FEW_ANSWERS:
        notes.append(f"Only {scores.n} answers have a score, so the interval itself is uncertain.")
    return notes


def _note_difference(measured: Measured) -> list[str]:
    if measured.scores and measured.base_scores and not measured.judges_agree:
        return ["The two models were judged by different judges or rubrics; their scores cannot be compared."]
    difference = measured.difference
    is_weak = any(scores and scores.weakness for scores in (measured.scores, measured.base_scores))
    if is_weak or difference is None or difference.low > 0:
        return []
    if difference.high < 0:
        return [f"The judge scores this model lower than its base model: {difference}."]
    return [f"The scores show no difference from the base model: {difference}."]


def _note_failures(owner: str, scores: Scores | None) -> list[str]:
    if scores is None or not scores.failures:
        return []
    bounds = ""
    if scores.as_zero is not None and scores.as_full is not None:
        low, high = format_points(scores.as_zero), format_points(scores.as_full)
        bounds = f"; counted as 0 or as 100 they would make the mean {low} or {high}"
    return [f"The judge gave no readable verdict on {scores.failures} of {scores.total} {owner}answers{bounds}."]


def _note_stopped(metrics: Mapping[str, Any]) -> list[str]:
    share = as_number(as_mapping(metrics.get("stopped")).get("mean"))
    if share is None or share >= _LEAST_STOPPED:
        return []
    return [f"{100 * (1 - share):.0f} % of its answers did not end by themselves and were cut off."]


def _measure_difference(run: RunFolder) -> MeanDifference | None:
    if not (run.judgments.is_file() and run.base.judgments.is_file()):
        return None
    # A later row of an example takes the place of an earlier one, with or without a score.
    latest = ({row.id: row.score for row in read_rows(folder.judgments, Judgment)} for folder in (run.base, run))
    base, tuned = ({id: score for id, score in scores.items() if score is not None} for scores in latest)
    return measure_difference(base, tuned)


def _read_metrics(path: Path) -> dict[str, Any]:
    metrics = read_json_object(path).get("metrics")
    return metrics if isinstance(metrics, dict) else {}
