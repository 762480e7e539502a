"""What judging the same responses several times shows of the judge itself: numbers in, numbers and text out."""

import math
import statistics
from collections.abc import Sequence

from hf_instruct.console import format_interval, format_points
from hf_instruct.evaluation.intervals import bootstrap_mean
from hf_instruct.schema import JudgeIdentity, Judgment, Repeats, Scores


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
