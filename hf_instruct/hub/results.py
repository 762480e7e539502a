"""What a model card says of what was measured: what may be public, and what the numbers do not say."""

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_instruct.evaluation.score_summary import (
    FEW_ANSWERS,
    find_weakness_of,
    format_judge_details,
    has_unknown_size,
)
from hf_instruct.evaluation.scores import format_bounds
from hf_instruct.reporting.facts import RunFacts
from hf_instruct.schema import JudgeIdentity, MetricValue, Preflight, Scores

_LEAST_STOPPED = 0.9


def find_comparable(facts: RunFacts) -> Scores | None:
    """Return the untuned model's scores, where the same judge scored both sides under the same rubric."""
    base, tuned = facts.base.scores, facts.tuned.scores
    return base if base is not None and tuned is not None and tuned.judged_as(base) else None


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
    '&lt;b&gt;\\\\`llama3\\\\` --- \\\\| a_b \\\\|'
    """
    line = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*\[\]~|])", r"\\\1", line)


def list_limits(facts: RunFacts) -> list[str]:
    """Return what the numbers do not say: a sentence or two each."""
    scores = facts.tuned.scores
    return [
        *_note_leaks(facts.preflight),
        *(_note_judge(scores) if scores else ["Its answers were not scored by a judge."]),
        *_note_difference(facts),
        *_note_failures("", scores),
        *_note_failures("base model's ", facts.base.scores),
        *_note_stopped(facts.tuned.metrics.metrics),
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


def _note_difference(facts: RunFacts) -> list[str]:
    sides, difference = [side.scores for side in (facts.base, facts.tuned) if side.scores], facts.difference
    if len(sides) == 2 and find_comparable(facts) is None:
        return ["The two models were judged by different judges or rubrics; their scores cannot be compared."]
    if any(map(find_weakness_of, sides)) or difference is None or difference.low > 0:
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
