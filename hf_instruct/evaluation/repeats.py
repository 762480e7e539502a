"""What judging the same responses several times shows of the judge itself: numbers in, numbers and text out."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from hf_instruct.console import format_interval, format_points
from hf_instruct.evaluation.intervals import bootstrap_mean
from hf_instruct.records import Judgment


def build_repeats(repeats: Sequence[Sequence[Judgment]], *, seeds: Sequence[int | None]) -> dict[str, Any]:
    """Return what stands under `repeats` in `scores.json`.

    Args:
        repeats: The judgments of each repeat, the same responses in the same order.
        seeds: The seed of each repeat; None where it was left to the server.

    Returns:
        `count` and `seeds`; `means`, `n` and `failures` of each repeat; `mean` and `interval` (95 %) over the examples'
        own means over their repeats; and the judge's own spread: `spread`, the standard deviation of an example's
        scores over the repeats, in points, as root mean square over the examples with two scores at least; `changed`,
        the fraction of examples whose verdicts are not all the same, a failure being a verdict of its own;
        `means_standard_deviation`, of the repeats' means, in points.

    >>> rows = [[Judgment("a", s, [], {}, "", "", 0.0), Judgment("b", 50, [], {}, "", "", 0.0)] for s in (60, 80)]
    >>> found = build_repeats(rows, seeds=[1, 2])
    >>> found["means"], found["mean"], found["spread"], found["changed"], found["means_standard_deviation"]
    ([55.0, 65.0], 60.0, 10.0, 0.5, 7.0710678118654755)
    """
    scored = [[row.score for row in rows if row.score is not None] for rows in repeats]
    means = [statistics.fmean(scores) if scores else None for scores in scored]
    by_example = [[row.score for row in rows] for rows in zip(*repeats, strict=True)]
    scores_by_example = [[score for score in scores if score is not None] for scores in by_example]
    example_means = [statistics.fmean(scores) for scores in scores_by_example if scores]
    variances = [statistics.variance(scores) for scores in scores_by_example if len(scores) > 1]
    interval = bootstrap_mean(example_means)
    known = [mean for mean in means if mean is not None]
    return {
        "count": len(repeats),
        "seeds": list(seeds),
        "means": means,
        "n": [len(scores) for scores in scored],
        "failures": [len(rows) - len(scores) for rows, scores in zip(repeats, scored, strict=True)],
        "mean": statistics.fmean(example_means) if example_means else None,
        "interval": list(interval) if interval else None,
        "spread": math.sqrt(statistics.fmean(variances)) if variances else None,
        "changed": sum(len(set(scores)) > 1 for scores in by_example) / len(by_example) if by_example else None,
        "means_standard_deviation": statistics.stdev(known) if len(known) > 1 else None,
    }


def format_repeats(scores: Mapping[str, Any]) -> str:
    """Return the repeats in the content of a `scores.json` as lines of text; empty where there are none."""
    repeats = scores.get("repeats")
    if not repeats:
        return ""
    means = ", ".join("no score" if mean is None else format_points(mean) for mean in repeats["means"])
    seeds = ", ".join("the server's own" if seed is None else str(seed) for seed in repeats["seeds"])
    lines = [f"{repeats['count']} repeats (seeds {seeds}): means {means}"]
    if repeats["mean"] is not None:
        interval = repeats["interval"]
        ends = f", 95 % interval {format_interval(interval)}" if interval else ""
        lines.append(f"mean over the repeats {format_points(repeats['mean'])}{ends}")
    if repeats["spread"] is not None:
        spread = f"the judge's own spread: {format_points(repeats['spread'])} points an example"
        if repeats["means_standard_deviation"] is not None:
            spread += f", {format_points(repeats['means_standard_deviation'])} points a mean"
        lines.append(f"{spread}; {100 * repeats['changed']:.0f} % of the verdicts changed")
        lines += [note] if (note := _note_determinism(scores["judge"])) else []
    return "\n".join(lines)


def _note_determinism(judge: Mapping[str, Any]) -> str:
    if judge.get("backend") == "local":
        return "The local judge draws nothing at random, so its repeats are equal: one is enough."
    if judge.get("options", {}).get("temperature") == 0:
        return (
            "At temperature 0 the spread shows only what the server itself leaves to chance; "
            "`--judge.temperature 0.7` shows how sure the judge is."
        )
    return ""
