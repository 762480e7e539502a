"""What the judgments of one set of responses amount to: numbers in, numbers and one line of text out."""

import hashlib
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hf_instruct.judging.rubrics import Rubric
from hf_instruct.records import Judgment

_SHOWN_DIGEST_CHARACTERS = 7


def build_scores(
    judgments: Sequence[Judgment],
    *,
    rubric: Rubric,
    judge: Mapping[str, Any],
    categories: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Return the content of `scores.json`.

    Failures are counted and never averaged: `mean`, `standard_error` and the others are over the `n` judgments that
    hold a score, and are None where there are too few for them (1 for a mean, 2 for its error).

    Args:
        judgments: One for each response.
        rubric: What the judge was asked.
        judge: The judge's identity.
        categories: Category of each example id, for the scores by category.

    >>> from hf_instruct.judging.rubrics import Rubric
    >>> rows = [Judgment(str(i), s, [], {}, "course", "", 0.0) for i, s in enumerate([80, 60, None])]
    >>> scores = build_scores(rows, rubric=Rubric("course", ""), judge={"backend": "local", "model": "m"})
    >>> [scores[name] for name in ("mean", "standard_error", "n", "failures", "total")]
    [70.0, 10.0, 2, 1, 3]
    """
    groups: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        if category := (categories or {}).get(judgment.id):
            groups.setdefault(category, []).append(judgment)
    asked = "\n".join(judgment.prompt_sha256 for judgment in judgments)
    scores: dict[str, Any] = {
        **_summarize(judgments),
        "judge": dict(judge),
        "rubric": {"name": rubric.name, "sha256": rubric.sha256},
        "prompts_sha256": hashlib.sha256(asked.encode()).hexdigest(),
        "cached": sum(judgment.cached for judgment in judgments),
        "seconds": round(sum(judgment.seconds for judgment in judgments), 3),
    }
    if groups:
        scores["by_category"] = {category: _summarize(groups[category]) for category in sorted(groups)}
    return scores


def _summarize(judgments: Iterable[Judgment]) -> dict[str, Any]:
    all_scores = [judgment.score for judgment in judgments]
    scores = [score for score in all_scores if score is not None]
    n, total = len(scores), len(all_scores)
    return {
        "mean": statistics.fmean(scores) if scores else None,
        # Of the mean: sample standard deviation over the root of n.
        "standard_error": statistics.stdev(scores) / math.sqrt(n) if n > 1 else None,
        "n": n,
        "failures": total - n,
        "total": total,
        "coverage": n / total if total else None,
        "minimum": min(scores, default=None),
        "median": statistics.median(scores) if scores else None,
        "maximum": max(scores, default=None),
    }


def format_scores(scores: Mapping[str, Any]) -> str:
    """Return a score with everything that it should not be quoted without, in one line.

    >>> format_scores({"mean": 49.45, "standard_error": 2.88, "n": 110, "failures": 0, "total": 110,
    ...                "judge": {"model": "llama3", "digest": "365c0bd3c000"}, "rubric": {"name": "course"}})
    '49.5 ± 2.9 (standard error; n 110 of 110, 0 failed; judge llama3@365c0bd, rubric course)'
    """
    judge = scores["judge"]
    name = judge["model"] + (f"@{judge['digest'][:_SHOWN_DIGEST_CHARACTERS]}" if judge.get("digest") else "")
    if scores["mean"] is None:
        value, kind = "no score", "no verdict could be read"
    elif scores["standard_error"] is None:
        value, kind = _round(scores["mean"]), "one verdict has no standard error"
    else:
        value, kind = f"{_round(scores['mean'])} ± {_round(scores['standard_error'])}", "standard error"
    counts = f"n {scores['n']} of {scores['total']}, {scores['failures']} failed"
    return f"{value} ({kind}; {counts}; judge {name}, rubric {scores['rubric']['name']})"


def _round(value: float) -> str:
    """Return a number with one decimal, halves up, as the means of integers meet them often.

    >>> _round(49.45), _round(0.25)
    ('49.5', '0.3')
    """
    return f"{math.floor(round(value * 10, 9) + 0.5) / 10:.1f}"
