"""What the judgments of one set of responses amount to, judged once or several times: numbers and text."""

import hashlib
import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from hf_instruct.console import format_interval, format_points
from hf_instruct.evaluation.intervals import bootstrap_mean
from hf_instruct.evaluation.rubrics import Rubric
from hf_instruct.evaluation.score_summary import describe_check, describe_references, label_judge
from hf_instruct.schema import JudgeIdentity, Judgment, Repeats, RubricName, Scores, ScoreSummary

# Fewer equal scores in a row may well be chance.
_LEAST_CONSTANT = 5


def build_scores(
    judgments: Sequence[Judgment],
    *,
    rubric: Rubric,
    judge: JudgeIdentity,
    categories: Mapping[str, str | None] | None = None,
    equal: Collection[str] = (),
) -> Scores:
    """Return what judgments amount to.

    Args:
        judgments: One for each response.
        rubric: What the judge was asked.
        judge: The judge.
        categories: Category of each example id, for the scores by category.
        equal: Ids of the answers that equal their reference.

    >>> known = {"replies": [], "judge": JudgeIdentity(), "rubric": "course", "prompt_sha256": "", "seconds": 0.0}
    >>> rows = [Judgment(id=str(i), score=s, **known) for i, s in enumerate([80, 60, None])]
    >>> rubric = Rubric(name="course", prompt="{{ instruction }} {{ input }} {{ output }} {{ response }}")
    >>> scores = build_scores(rows, rubric=rubric, judge=JudgeIdentity(backend="local", model="m"))
    >>> scores.mean, scores.standard_error, scores.n, scores.failures, scores.total
    (70.0, 10.0, 2, 1, 3)
    """
    groups: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        if category := (categories or {}).get(judgment.id):
            groups.setdefault(category, []).append(judgment)
    known = [judgment.score for judgment in judgments if judgment.id in equal and judgment.score is not None]
    asked = "\n".join(judgment.prompt_sha256 for judgment in judgments)
    return Scores(
        **_summarize(judgments),
        constant=_is_constant(judgments),
        equal_mean=statistics.fmean(known) if known else None,
        equal_n=len(known),
        judge=judge,
        rubric=RubricName(name=rubric.name, sha256=rubric.sha256),
        prompts_sha256=hashlib.sha256(asked.encode()).hexdigest(),
        cached=sum(judgment.cached for judgment in judgments),
        seconds=round(sum(judgment.seconds for judgment in judgments), 3),
        by_category={name: ScoreSummary(**_summarize(groups[name])) for name in sorted(groups)},
    )


def _summarize(judgments: Iterable[Judgment]) -> dict[str, Any]:
    all_scores = [judgment.score for judgment in judgments]
    scores = [score for score in all_scores if score is not None]
    n, total = len(scores), len(all_scores)
    return {
        "mean": statistics.fmean(scores) if scores else None,
        # Of the mean: sample standard deviation over the root of n.
        "standard_error": statistics.stdev(scores) / math.sqrt(n) if n > 1 else None,
        "interval": bootstrap_mean(scores),
        "mean_failures_as_0": sum(scores) / total if total else None,
        "mean_failures_as_100": (sum(scores) + 100 * (total - n)) / total if total else None,
        "n": n,
        "failures": total - n,
        "total": total,
        "coverage": n / total if total else None,
        "minimum": min(scores, default=None),
        "median": statistics.median(scores) if scores else None,
        "maximum": max(scores, default=None),
    }


def _is_constant(judgments: Sequence[Judgment]) -> bool:
    scores = [judgment.score for judgment in judgments if judgment.score is not None]
    return len(scores) >= _LEAST_CONSTANT and len(set(scores)) == 1


def format_scores(scores: Scores) -> str:
    """Return a score with everything that it should not be quoted without, in one line.

    >>> from hf_instruct.schema import Interval
    >>> judge = JudgeIdentity(model="phi3", digest="365c0bd3c000")
    >>> format_scores(Scores(mean=49.45, standard_error=2.88, interval=Interval(43.8, 55.01), n=110, total=110,
    ...                      judge=judge, rubric=RubricName(name="course")))
    '49.5 ± 2.9 (standard error; 95 % interval 43.8 to 55.0; n 110 of 110, 0 failed; judge phi3@365c0bd, rubric course)'
    """
    if scores.mean is None:
        value, about = "no score", ["no verdict could be read"]
    elif scores.standard_error is None:
        value, about = format_points(scores.mean), ["one verdict has no standard error"]
    else:
        value = f"{format_points(scores.mean)} ± {format_points(scores.standard_error)}"
        about = ["standard error"]
    if scores.interval:
        about.append(f"95 % interval {format_interval(scores.interval)}")
    about.append(f"n {scores.n} of {scores.total}, {scores.failures} failed")
    if bounds := format_bounds(scores):
        about.append(f"{bounds} with each failure counted as 0 or as 100")
    if scores.constant:
        about.append("every answer got the same score")
    if references := describe_references(scores):
        about.append(references)
    about.append(f"judge {label_judge(scores.judge, scores.rubric)}")
    if scores.self_check:
        about.append(f"the judge {describe_check(scores.self_check)}")
    return f"{value} ({'; '.join(about)})"


def format_bounds(scores: ScoreSummary, joint: str = " to ") -> str:
    """Return between what the mean can lie, with every failure counted as 0 and as 100; empty without failures."""
    ends = scores.mean_failures_as_0, scores.mean_failures_as_100
    if not scores.failures or None in ends:
        return ""
    return joint.join(format_points(end) for end in ends if end is not None)


def build_repeats(repeats: Sequence[Sequence[Judgment]], *, seeds: Sequence[int | None]) -> Repeats:
    """Return what the judgments of several repeats show of the judge.

    Args:
        repeats: The judgments of each repeat, the same responses in the same order.
        seeds: The seed of each repeat; None where it was left to the server.

    >>> known = {"replies": [], "judge": JudgeIdentity(), "rubric": "", "prompt_sha256": "", "seconds": 0.0}
    >>> rows = [[Judgment(id="a", score=s, **known), Judgment(id="b", score=50, **known)] for s in (60, 80)]
    >>> found = build_repeats(rows, seeds=[1, 2])
    >>> found.means, found.mean, found.spread, found.changed, found.means_standard_deviation
    ([55.0, 65.0], 60.0, 10.0, 0.5, 7.0710678118654755)
    """
    scored = [[row.score for row in rows if row.score is not None] for rows in repeats]
    means = [statistics.fmean(scores) if scores else None for scores in scored]
    by_example = [[row.score for row in rows] for rows in zip(*repeats, strict=True)]
    scores_by_example = [[score for score in scores if score is not None] for scores in by_example]
    example_means = [statistics.fmean(scores) for scores in scores_by_example if scores]
    variances = [statistics.variance(scores) for scores in scores_by_example if len(scores) > 1]
    known = [mean for mean in means if mean is not None]
    return Repeats(
        count=len(repeats),
        seeds=list(seeds),
        means=means,
        n=[len(scores) for scores in scored],
        failures=[len(rows) - len(scores) for rows, scores in zip(repeats, scored, strict=True)],
        mean=statistics.fmean(example_means) if example_means else None,
        interval=bootstrap_mean(example_means),
        spread=math.sqrt(statistics.fmean(variances)) if variances else None,
        changed=sum(len(set(scores)) > 1 for scores in by_example) / len(by_example) if by_example else None,
        means_standard_deviation=statistics.stdev(known) if len(known) > 1 else None,
    )


def format_repeats(scores: Scores) -> str:
    """Return the repeats of scores as lines of text; empty where there are none."""
    repeats = scores.repeats
    if not repeats:
        return ""
    means = ", ".join("no score" if mean is None else format_points(mean) for mean in repeats.means)
    seeds = ", ".join("the server's own" if seed is None else str(seed) for seed in repeats.seeds)
    lines = [f"{repeats.count} repeats (seeds {seeds}): means {means}"]
    if repeats.mean is not None:
        ends = f", 95 % interval {format_interval(repeats.interval)}" if repeats.interval else ""
        lines.append(f"mean over the repeats {format_points(repeats.mean)}{ends}")
    if repeats.spread is not None:
        spread = f"the judge's own spread: {format_points(repeats.spread)} points an example"
        if repeats.means_standard_deviation is not None:
            spread += f", {format_points(repeats.means_standard_deviation)} points a mean"
        lines.append(f"{spread}; {100 * (repeats.changed or 0):.0f} % of the verdicts changed")
        lines += [note] if (note := _note_determinism(scores.judge)) else []
    return "\n".join(lines)


def _note_determinism(judge: JudgeIdentity) -> str:
    if judge.backend == "local":
        return "The local judge draws nothing at random, so its repeats are equal: one is enough."
    if judge.options.get("temperature") == 0:
        return (
            "At temperature 0 the spread shows only what the server itself leaves to chance; "
            "`--judge.temperature 0.7` shows how sure the judge is."
        )
    return ""
