"""`python -m benchmarks.coverage`: how often 95 % intervals of a mean contain it, by method, for values such as ours.

For each kind of values and each number of them, intervals of 1,500 samples are compared with the mean of a very large
one. The figures are in docs/evaluation.md; `hf_instruct.evaluation.intervals.bootstrap_mean` is the expanded one. A
second table has judges whose mean is corrected by people's scores of some answers (`hf_instruct.evaluation.people`).
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy
from scipy import stats

from hf_instruct.evaluation.intervals import expanded_tail
from hf_instruct.evaluation.people import Labelled

SAMPLES, RESAMPLES = 1_500, 1_000
COUNTS = (10, 20, 50, 110)
METHODS = ("Student's t", "percentile", "expanded", "BCa")

_draws = numpy.random.default_rng(0)
Values = "numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float64]]"
POPULATIONS: dict[str, Callable[[int], Values]] = {
    "scores in two heaps": lambda n: numpy.where(
        _draws.random(n) < 0.55, _draws.choice([85, 90, 95, 100], n), _draws.choice([0, 5, 10, 20, 40], n)
    ),
    "scores, 80 % of them 100": lambda n: numpy.where(_draws.random(n) < 0.8, 100.0, _draws.choice([0, 20, 60], n)),
    "scores, 90 % of them 100": lambda n: numpy.where(_draws.random(n) < 0.9, 100.0, _draws.choice([0, 20, 60], n)),
    "scores around 50": lambda n: numpy.clip(numpy.round(_draws.normal(50, 15, n)), 0, 100),
    "differences, 40 % of them 0": lambda n: numpy.where(
        _draws.random(n) < 0.4, 0.0, numpy.round(_draws.normal(3, 40, n))
    ),
    "differences, 85 % of them 0": lambda n: numpy.where(_draws.random(n) < 0.85, 0.0, _draws.choice([-20, 40, 80], n)),
    "lengths": lambda n: numpy.round(numpy.exp(_draws.normal(3, 0.8, n))),
}


JUDGES: dict[str, Callable[[Values], Values]] = {
    "15 points too high, sd 10": lambda y: numpy.clip(numpy.round(y + 15 + _draws.normal(0, 10, len(y))), 0, 100),
    "60 plus a third of what it is worth, sd 8": lambda y: numpy.round(
        60 + (y - 50) / 3 + _draws.normal(0, 8, len(y))
    ).clip(0, 100),
    "knows nothing": lambda y: numpy.clip(numpy.round(_draws.normal(50, 20, len(y))), 0, 100),
}
JUDGED = ("scores in two heaps", "scores around 50", "scores, 80 % of them 100")
LABELS = ((110, 10), (110, 20), (110, 40), (1_000, 40))


class Coverage(NamedTuple):
    """How often intervals contain the mean of people's scores of all answers there could be, and their half width."""

    judge: float  # fraction, of the judge's own intervals
    corrected: float  # fraction
    half_width: float  # of the corrected ones, in points
    people_half_width: float  # of people's scores alone


def measure_corrected(values: str, judge: str, count: int, labels: int, *, samples: int = SAMPLES) -> Coverage:
    """Return how often a judge's mean over `count` answers is covered, `labels` of them scored by people."""
    mean, found = POPULATIONS[values](2_000_000).mean(), []
    for _ in range(samples):
        truth = POPULATIONS[values](count).astype(float)
        judged = JUDGES[judge](truth)
        error = stats.t.ppf(0.975, count - 1) * judged.std(ddof=1) / math.sqrt(count)
        people = truth[:labels]
        alone = stats.t.ppf(0.975, labels - 1) * people.std(ddof=1) / math.sqrt(labels)
        keyed = {str(number): score for number, score in enumerate(judged.tolist())}
        corrected = Labelled(keyed, dict(zip(keyed, people.tolist(), strict=False))).correct()
        assert corrected
        assert corrected.interval
        low, high = corrected.interval
        found.append((abs(judged.mean() - mean) <= error, low <= mean <= high, (high - low) / 2, alone))
    return Coverage(*numpy.mean(found, axis=0).tolist())


def measure_coverage(draw: "Callable[[int], Values]", count: int) -> list[float]:
    """Return the share of samples of `count` values whose interval contains the mean, for each of `METHODS`."""
    mean = draw(2_000_000).mean()
    covered = [0] * len(METHODS)
    for _ in range(SAMPLES):
        sample = draw(count).astype(float)
        error = stats.t.ppf(0.975, count - 1) * sample.std(ddof=1) / math.sqrt(count)
        means = sample[_draws.integers(count, size=(RESAMPLES, count))].mean(axis=1)
        ends = [(sample.mean() - error, sample.mean() + error)]
        ends += [tuple(numpy.quantile(means, (tail, 1 - tail))) for tail in (0.025, expanded_tail(count))]
        ends.append(_bias_corrected(sample, means))
        covered = [
            number + (low - 1e-9 <= mean <= high + 1e-9) for number, (low, high) in zip(covered, ends, strict=True)
        ]
    return [number / SAMPLES for number in covered]


def _bias_corrected(sample: "Values", means: "Values") -> tuple[float, float]:
    deviations = sample - sample.mean()
    if not deviations.any():
        return sample[0], sample[0]
    below = (means < sample.mean()).mean() + (means == sample.mean()).mean() / 2
    shift = stats.norm.ppf(numpy.clip(below, 1e-4, 1 - 1e-4))
    skew = (deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5)
    ends = shift + numpy.array([-1.96, 1.96])
    low, high = numpy.quantile(means, stats.norm.cdf(shift + ends / (1 - skew * ends)))
    return low, high


def main() -> None:
    """Print two Markdown tables: a row for each kind of values and number of them, a column for each method."""
    print("| values | n | " + " | ".join(METHODS) + " |\n|---|---" + "|---" * len(METHODS) + "|")
    for name, draw in POPULATIONS.items():
        for count in COUNTS:
            shares = " | ".join(f"{100 * share:.1f} %" for share in measure_coverage(draw, count))
            print(f"| {name} | {count} | {shares} |", flush=True)
    heads = ("judge", "people's scores", "answers", "by people", "its interval", "corrected", "±", "± people alone")
    print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for judge, values in itertools.product(JUDGES, JUDGED):
        for count, labels in LABELS:
            found = measure_corrected(values, judge, count, labels)
            shares = f"{100 * found.judge:.1f} % | {100 * found.corrected:.1f} %"
            widths = f"{found.half_width:.1f} | {found.people_half_width:.1f}"
            print(f"| {judge} | {values} | {count} | {labels} | {shares} | {widths} |", flush=True)


if __name__ == "__main__":
    main()
