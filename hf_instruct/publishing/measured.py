"""What a run's files tell of its model's answers, read for the model card; what was not measured is simply absent."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_instruct.intervals import MeanDifference, format_points, measure_difference
from hf_instruct.models import parse_num_parameters
from hf_instruct.records import Judgment, as_number, read_json_object, read_rows
from hf_instruct.run_folder import RunFolder

_FEW_ANSWERS = 30
_SMALL_JUDGE_PARAMETERS = 3e9
_LEAST_STOPPED = 0.9


@dataclasses.dataclass(frozen=True)
class Measured:
    """The files of a run, each an object of named values or empty where there is no such file.

    Attributes:
        scores: `scores.json`.
        base_scores: The untuned model's.
        metrics: `metrics.json`.
        base_metrics: The untuned model's.
        preflight: What was found in the data.
        self_check: What the judge made of answers of known worth.
        training: What fine-tuning took.
        difference: Mean of the tuned scores less the base scores of the same examples, and its 95 % interval, in
            points; None where they were not judged by the same judge.
    """

    scores: dict[str, Any]
    base_scores: dict[str, Any]
    metrics: dict[str, Any]
    base_metrics: dict[str, Any]
    preflight: dict[str, Any]
    self_check: dict[str, Any]
    training: dict[str, Any]
    difference: MeanDifference | None = None

    @property
    def judges_agree(self) -> bool:
        """Whether the same judge scored both sides under the same rubric."""
        return bool(self.base_scores) and _identify(self.scores) == _identify(self.base_scores)


def read_measured(run: RunFolder) -> Measured:
    """Return what the run's files tell.

    Raises:
        DataError: A file is there but is not a JSON object.
    """
    measured = Measured(
        scores=read_json_object(run.scores),
        base_scores=read_json_object(run.base.scores),
        metrics=_read_metrics(run.metrics),
        base_metrics=_read_metrics(run.base.metrics),
        preflight=read_json_object(run.preflight),
        self_check=read_json_object(run.self_check),
        training=read_json_object(run.training_summary),
    )
    if measured.scores and measured.judges_agree:
        return dataclasses.replace(measured, difference=_measure_difference(run))
    return measured


def describe_judge(judge: Mapping[str, Any]) -> str:
    """Return a judge's model, backend and digest; a model that is a local folder stays unnamed.

    >>> describe_judge({"model": "llama3", "backend": "ollama", "digest": "sha256:365c0bd3c000a25d"})
    'llama3 (ollama, digest 365c0bd3c000)'
    """
    details = [str(judge["backend"])] if judge.get("backend") else []
    if judge.get("digest"):
        details.append(f"digest {str(judge['digest']).removeprefix('sha256:')[:12]}")
    return public_name(judge.get("model"), "a model of the publisher's own") + (
        f" ({', '.join(details)})" if details else ""
    )


def public_name(name: Any, instead: str) -> str:
    """Return a name, or `instead` where it is the path of a local file or folder, or missing."""
    text = str(name or "")
    is_path = text.startswith((".", "/", "~")) or "\\" in text or text.count("/") > 1
    return instead if not text or is_path or ("/" in text and Path(text).exists()) else text


def list_limits(measured: Measured) -> list[str]:
    """Return what the numbers do not say: a sentence or two each."""
    scores = measured.scores
    return [
        *_note_leaks(measured.preflight),
        *(_note_judge(scores, measured.self_check) if scores else ["Its answers were not scored by a judge."]),
        *_note_difference(measured),
        *_note_failures([("", scores), ("base model's ", measured.base_scores)]),
        *_note_stopped(measured.metrics),
    ]


def _note_leaks(preflight: Mapping[str, Any]) -> list[str]:
    sizes = preflight.get("examples")
    total = sizes.get("test") if isinstance(sizes, Mapping) else None
    of = f" of the {total}" if total else ""
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
    found = preflight.get(name)
    rows = found.get("test") if isinstance(found, Mapping) else None
    return len(rows) if isinstance(rows, list) else 0


def _note_judge(scores: Mapping[str, Any], self_check: Mapping[str, Any]) -> list[str]:
    notes = []
    known = scores.get("self_check")
    failed = (known.get("failed") if isinstance(known, Mapping) else None) or self_check.get("failed")
    if isinstance(failed, list) and failed:
        notes.append(
            f"**The judge failed its self-check** ({', '.join(map(str, failed))}): its scores do not tell good answers "
            "from bad ones as they should."
        )
    if scores.get("constant") is True:
        notes.append("The judge gave every answer the same score, which tells nothing.")
    judge = scores.get("judge")
    judge = judge if isinstance(judge, Mapping) else {}
    size = parse_num_parameters(str(judge.get("model") or ""))
    if size is not None and size < _SMALL_JUDGE_PARAMETERS:
        unit = f"{size / 1e9:.3g} billion" if size >= 1e9 else f"{size / 1e6:.3g} million"
        notes.append(f"The judge is a small model ({unit} parameters), so its scores are rough.")
    elif size is None and judge.get("backend") == "local":
        notes.append("The judge was a local model whose name does not tell its size; a small one scores roughly.")
    n = as_number(scores.get("n")) or 0
    if n < _FEW_ANSWERS:
        notes.append(f"Only {n:.0f} answers have a score, so the interval itself is uncertain.")
    return notes


def _note_difference(measured: Measured) -> list[str]:
    if measured.scores and measured.base_scores and not measured.judges_agree:
        return ["The two models were judged by different judges or rubrics; their scores cannot be compared."]
    difference = measured.difference
    if difference is None or difference.low > 0:
        return []
    if difference.high < 0:
        return [f"The judge scores this model lower than its base model: {difference}."]
    return [f"The scores show no difference from the base model: {difference}."]


def _note_failures(sides: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    notes = []
    for owner, scores in sides:
        if failures := as_number(scores.get("failures")):
            ends = [as_number(scores.get(f"mean_failures_as_{worth}")) for worth in (0, 100)]
            low, high = ends
            bounds = ""
            if low is not None and high is not None:
                bounds = (
                    f"; counted as 0 or as 100 they would make the mean {format_points(low)} or {format_points(high)}"
                )
            notes.append(
                f"The judge gave no readable verdict on {failures:.0f} of {scores.get('total')} {owner}answers{bounds}."
            )
    return notes


def _note_stopped(metrics: Mapping[str, Any]) -> list[str]:
    values = metrics.get("stopped")
    share = as_number(values.get("mean")) if isinstance(values, Mapping) else None
    if share is None or share >= _LEAST_STOPPED:
        return []
    return [f"{1 - share:.0%} of its answers did not end by themselves and were cut off."]


def _measure_difference(run: RunFolder) -> MeanDifference | None:
    if not (run.judgments.is_file() and run.base.judgments.is_file()):
        return None
    tuned, base = (
        {row.id: row.score for row in read_rows(folder.judgments, Judgment) if row.score is not None}
        for folder in (run, run.base)
    )
    return measure_difference(base, tuned)


def _identify(scores: Mapping[str, Any]) -> tuple[Any, ...]:
    judge = scores.get("judge")
    judge = judge if isinstance(judge, Mapping) else {}
    return (*(judge.get(name) for name in ("backend", "model", "digest", "options")), scores.get("rubric"))


def _read_metrics(path: Path) -> dict[str, Any]:
    metrics = read_json_object(path).get("metrics")
    return metrics if isinstance(metrics, dict) else {}
