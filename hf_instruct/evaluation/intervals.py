"""Intervals of means, shares and differences, and the sign test."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from hf_instruct.console import format_interval, format_signed
from hf_instruct.schema import Interval

if TYPE_CHECKING:
    import numpy

Key = TypeVar("Key", bound=Hashable)

LEVEL = 0.95
# With fewer examples nothing is concluded: their intervals are much too narrow.
FEWEST = 10
# Shown once in every view with intervals.
SCOPE = (
    "The intervals only cover the choice of test examples; training seed, decoding and judge are fixed. With "
    "another seed the numbers may vary more; `hf-instruct sweep EXPERIMENT.yaml --set train.seed=1,2,3` shows by "
    "how much."
)
# With this many resamples, the ends of an interval over 110 scores vary by about 0.05 points between seeds.
_RESAMPLES = 10_000
# A statistic computed in Python is slower than a mean.
_SLOW_RESAMPLES = 1_000
# Total number of values drawn for one interval. For more than 1,000 values there are fewer resamples, at least 1,000;
# the ends still vary no more between seeds than those of 1,000 values.
_MAX_DRAWN = 10_000_000
# Quantile of the normal distribution for the level.
_Z = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)
# Quantile of the normal distribution for a power of 80 %.
_Z_POWER = statistics.NormalDist().inv_cdf(0.8)
# Bisection steps: enough for the last digit of an interval of length 2.
_HALVINGS = 60
# An interval over categories is mentioned if it is wider by this factor.
_NOTABLE = 1.1
# Resampled values in memory at a time; they fit into the cache.
_BLOCK = 200_000


class Estimate(NamedTuple):
    """A number and its 95 % interval; None if the examples do not define it."""

    value: float | None
    interval: Interval | None


@dataclasses.dataclass(frozen=True)
class Difference:
    """The paired difference of a run's values from the baseline's, in the unit of the values."""

    mean: float
    interval: Interval | None  # 95 %: a score interval for shares, otherwise bootstrap; None for a single example
    wins: int  # examples on which the run's value is higher
    ties: int
    losses: int
    p_value: float | None  # of the two-sided sign test; None if all values are equal
    is_shown: bool = dataclasses.field(init=False)  # whether the interval excludes zero, and `bounds` too
    # The smallest difference shown 8 times out of 10 with this many examples; None for a single example.
    smallest_found: float | None
    # The mean over all examples if each failed judgment counts as the worst or the best score; None without failures.
    bounds: Interval | None = None

    def __post_init__(self) -> None:
        ranges = [ends for ends in (self.interval, self.bounds) if ends]
        is_shown = self.interval is not None and not any(ends.spans(0.0) for ends in ranges)
        object.__setattr__(self, "is_shown", is_shown)

    def __str__(self) -> str:
        ends = f", 95 % interval {format_interval(self.interval, signed=True)}" if self.interval else ""
        return f"{format_signed(self.mean)} points{ends}"

    @property
    def n(self) -> int:
        """Number of examples compared."""
        return self.wins + self.ties + self.losses

    @property
    def verdict(self) -> str:
        """The conclusion: `higher`, `lower` or `no difference shown`."""
        return ("higher" if self.mean > 0 else "lower") if self.is_shown else "no difference shown"

    def count_needed(self, difference: float) -> int | None:
        """Return the number of examples needed to show a difference 8 times out of 10, to two digits; None if unknown.

        It is at least `FEWEST`, because nothing is concluded from fewer examples.
        """
        if not self.smallest_found:
            return None
        needed = self.n * (self.smallest_found / difference) ** 2
        return max(FEWEST, int(float(f"{needed:.1e}")))


def design_effect(values: Sequence[float], groups: Sequence[Hashable]) -> float:
    """Return the factor by which the variance of a mean grows if rows of one group count as one draw; at least 1.

    It is 1 if no two rows share a group, or if there are fewer than 10 groups, which are too few to estimate it.

    Source: Miller, Adding Error Bars to Evals, 2024, https://arxiv.org/abs/2411.00640, section 2.2.

    >>> design_effect([0.0] * 40 + [1.0] * 40, [number // 4 for number in range(80)])
    4.1...
    """
    import numpy

    codes = {group: code for code, group in enumerate(dict.fromkeys(groups))}
    if len(codes) < FEWEST or len(codes) == len(values):
        return 1.0
    deviations = numpy.asarray(values, dtype=float) - statistics.fmean(values)
    sums = numpy.bincount([codes[group] for group in groups], deviations)
    clustered, plain = numpy.square(sums).sum() / (1 - 1 / len(sums)), numpy.square(deviations).sum()
    return max(1.0, float(clustered / plain) * (1 - 1 / len(values))) if plain else 1.0


def bootstrap_mean(values: Sequence[float], groups: Sequence[Hashable] = (), *, seed: int = 0) -> Interval | None:
    """Return the expanded percentile bootstrap interval of a mean; None for fewer than two values.

    There are 10,000 resamples with replacement (fewer for more than 1,000 values). The interval contains the middle
    95 % of their means. For few values it contains more, by as much as Student's interval is wider than the normal
    one. The same values give the same interval. Use `share_interval` for yes/no values: resampling values that happen
    to be equal shows no spread. With the group of each value, such as its instruction, the interval is widened by the
    square root of the design effect.

    Source: Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69, 2015, section 4.3.
    Of the methods that `python -m benchmarks.coverage` compares, it has the best coverage.

    >>> bootstrap_mean([50.0, 50.0, 50.0])
    Interval(low=50.0, high=50.0)
    """
    count = len(values)
    if count < 2:
        return None
    # Same as `scipy.stats.bootstrap(method="percentile")`, which takes half a second to import and more lines to call.
    import numpy

    sample, generator = numpy.asarray(values, dtype=float), numpy.random.default_rng(seed)
    means: list[numpy.ndarray] = []
    left = min(_RESAMPLES, max(_SLOW_RESAMPLES, _MAX_DRAWN // count))
    while left:
        rounds = min(left, max(1, _BLOCK // count))
        means.append(sample[generator.integers(count, size=(rounds, count))].mean(axis=1))
        left -= rounds
    low, high = _middle(numpy.concatenate(means), tail=expanded_tail(count))
    widening, mean = math.sqrt(design_effect(values, groups)), float(sample.mean())
    return (
        Interval(mean + widening * (low - mean), mean + widening * (high - mean))
        if widening > 1
        else Interval(low, high)
    )


def expanded_tail(count: int) -> float:
    """Return the fraction of the bootstrapped means of `count` values that is left out on each side.

    >>> round(expanded_tail(10), 4), round(expanded_tail(10_000), 4)
    (0.0086, 0.025)
    """
    from scipy.special import stdtrit

    quantile = float(stdtrit(count - 1, (1 + LEVEL) / 2))
    return statistics.NormalDist().cdf(-math.sqrt(count / (count - 1)) * quantile)


def _middle(values: "Sequence[float] | numpy.ndarray", *, tail: float = (1 - LEVEL) / 2) -> Interval:
    """Return the interval that leaves out a fraction of the values on each side."""
    import numpy

    return Interval(*map(float, numpy.percentile(values, [100 * tail, 100 * (1 - tail)])))


def share_interval(values: Sequence[float], groups: Sequence[Hashable] = ()) -> Interval | None:
    """Return the score interval of a share, the mean of 0 (no), 1 (yes) and 0.5 (tie); None for fewer than two values.

    Without ties it is Wilson's interval. Ties narrow it, but it always has a width: 0 of 100 may be 3.7 %.

    >>> share_interval([0.0] * 100)
    Interval(low=0.0, high=0.03699...)
    """
    difference = share_difference_interval([2 * value - 1 for value in values], groups)
    return difference and Interval(*((1 + end) / 2 for end in difference))


def share_difference_interval(differences: Sequence[float], groups: Sequence[Hashable] = ()) -> Interval | None:
    """Return the score interval of the mean of paired differences of yes (1) and no (0); None for fewer than two.

    Source: Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design, Statistics in Medicine 17, 1998.

    >>> share_difference_interval([0.0] * 100)
    Interval(low=-0.03699..., high=0.03699...)
    """
    gains, losses = sum(value > 0 for value in differences), sum(value < 0 for value in differences)
    count = len(differences)
    if count < 2:
        return None
    # The effective sample size.
    counts = [number / design_effect(differences, groups) for number in (gains, losses, count)]
    low, high = -_bound_difference(counts[1], counts[0], counts[2]), _bound_difference(*counts)
    return Interval(low, high)


def _bound_difference(gains: float, losses: float, count: float) -> float:
    """Return the largest difference that the score test does not reject."""
    below, above = (gains - losses) / count, 1.0
    for _ in range(_HALVINGS):
        difference = (below + above) / 2
        # The most likely share of losses if this is the difference.
        linear = (2 * count - gains + losses) * difference - gains - losses
        root = math.sqrt(linear**2 + 8 * count * losses * difference * (1 - difference))
        variance = (root - linear) / (2 * count) + difference * (1 - difference)
        if (gains - losses - count * difference) ** 2 > _Z**2 * count * variance:
            above = difference
        else:
            below = difference
    return above


def bounded_interval(mean: float, variance: float, n: int, scale: Interval) -> Interval:
    """Return the interval of an estimate on a bounded scale; it never exceeds the bounds.

    It is Wilson's interval for the number of values at which a share would have that variance. It is therefore
    asymmetric near a bound, and has a width even if all values are equal.

    Args:
        mean: The estimate.
        variance: Its variance.
        n: Number of values; Student's quantile has `n - 2` degrees of freedom.
        scale: The smallest and the largest possible value.

    >>> bounded_interval(100.0, 0.0, 40, Interval(0.0, 100.0))
    Interval(low=91.2..., high=99.99...)
    """
    from scipy.special import stdtrit

    width = scale.high - scale.low
    share = (mean - scale.low) / width
    spread = share * (1 - share)
    ratio = _Z**2 / n
    if variance and spread:
        ratio = float(stdtrit(n - 2, (1 + LEVEL) / 2)) ** 2 * variance / width**2 / spread
    middle, reach = share + ratio / 2, math.sqrt(spread * ratio + ratio**2 / 4)
    low, high = ((middle - reach) / (1 + ratio), (middle + reach) / (1 + ratio))
    return Interval(scale.low + width * low, scale.low + width * high)


def describe_groups(differences: Sequence[float], tasks: Sequence[Hashable], categories: Sequence[Hashable]) -> str:
    """Describe how similar rows widen the interval of a mean difference; empty if they hardly do.

    Args:
        differences: Difference of each example.
        tasks: Instruction of each example; rows with the same one count as one draw in every interval.
        categories: Category of each example; empty if there are none.
    """
    sentences = []
    if FEWEST <= (count := len(set(tasks))) < len(tasks):
        sentences.append(f"{len(tasks)} examples have {count} instructions; those with the same one count as one draw.")
    widening = math.sqrt(design_effect(differences, categories) / design_effect(differences, tasks))
    if widening >= _NOTABLE:
        sentences.append(
            "Examples of one category are alike: if each category counted as one draw, the interval of the difference "
            f"would be {widening:.1f} times as wide."
        )
    return " ".join(sentences)


def estimate(
    statistics: Callable[["numpy.ndarray"], "Sequence[float] | numpy.ndarray"],
    count: int,
    *,
    seed: int = 0,
    resamples: int = _SLOW_RESAMPLES,
) -> list[Estimate]:
    """Return numbers computed from examples, with their percentile bootstrap intervals.

    Args:
        statistics: Computes the numbers from the examples at the given indices, [count], which may repeat; NaN if a
            number is not defined for them.
        count: Number of examples.
        seed: Seed of the draws.
        resamples: Number of draws; 0 for no intervals.

    Returns:
        An estimate for each number. It has no interval if there are fewer than two examples, or if the number is not
        defined for more than one draw in twenty.
    """
    import numpy

    generator = numpy.random.default_rng(seed)
    rows = [statistics(numpy.arange(count))]
    rows += [statistics(generator.integers(count, size=count)) for _ in range(resamples if count > 1 else 0)]
    estimates = []
    for value, *drawn in numpy.array(rows, dtype=float).T.tolist():
        defined = [number for number in drawn if not math.isnan(number)]
        interval = _middle(defined) if defined and len(defined) >= LEVEL * len(drawn) else None
        estimates.append(Estimate(None, None) if math.isnan(value) else Estimate(value, interval))
    return estimates


def compare_values(
    values: Sequence[float], baseline: Sequence[float], groups: Sequence[Hashable] = (), *, is_share: bool = False
) -> Difference:
    """Return the difference of values from a baseline's values on the same examples (at least one).

    Examples differ in difficulty far more than two models do, so pairing them narrows the interval.

    Args:
        values: Value of each example.
        baseline: Value of each example for the baseline.
        groups: Group of each example, such as its instruction; rows of one group count as one draw.
        is_share: Whether the values are yes (1) or no (0); their difference has a score interval.

    >>> found = compare_values([50.0, 70.0, 20.0, 20.0], [10.0, 20.0, 20.0, 30.0])
    >>> found.mean, found.wins, found.ties, found.losses, found.p_value, found.is_shown
    (20.0, 2, 1, 1, 1.0, False)
    >>> str(compare_values([50.0, 70.0], [10.0, 20.0]))
    '+45.0 points, 95 % interval +40.0 to +50.0'
    """
    differences = [value - base for value, base in zip(values, baseline, strict=True)]
    wins, losses = sum(gain > 0 for gain in differences), sum(gain < 0 for gain in differences)
    # A share that was read from a file may have other values.
    is_share = is_share and {-1, 0, 1}.issuperset(differences)
    return Difference(
        mean=statistics.fmean(differences),
        interval=(share_difference_interval if is_share else bootstrap_mean)(differences, groups),
        wins=wins,
        ties=len(differences) - wins - losses,
        losses=losses,
        p_value=sign_test(differences),
        smallest_found=smallest_found(differences, groups),
    )


def bound_difference(scores: Mapping[Key, float | None], base: Mapping[Key, float | None]) -> Interval | None:
    """Return the range of a mean difference of scores if failed judgments (None) may have any score from 0 to 100.

    None if no judgment failed on the examples that both have.

    >>> bound_difference({"a": 60.0, "b": None}, {"a": 50.0, "b": 50.0})
    Interval(low=-20.0, high=30.0)
    """
    pairs = [(score, base[id]) for id, score in scores.items() if id in base]
    if not any(None in pair for pair in pairs):
        return None
    ends = [
        statistics.fmean((bad if one is None else one) - (good if two is None else two) for one, two in pairs)
        for bad, good in ((0, 100), (100, 0))
    ]
    return Interval(*ends)


def smallest_found(differences: Sequence[float], groups: Sequence[Hashable] = ()) -> float | None:
    """Return the smallest difference shown 8 times out of 10 with this many examples; None for fewer than two.

    It is (1.96 + 0.84) standard errors, at which the interval excludes 0 with a probability of 80 %. A difference half
    as large needs four times as many examples.

    Source: Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988, chapter 2.

    >>> round(smallest_found([10.0, -10.0] * 50), 1)
    2.8
    """
    if len(differences) < 2:
        return None
    error = statistics.stdev(differences) * math.sqrt(design_effect(differences, groups) / len(differences))
    return (_Z + _Z_POWER) * error


def sign_test(differences: Sequence[float]) -> float | None:
    """Return the two-sided p value of the exact sign test without equal pairs; None if all pairs are equal.

    >>> sign_test([1, 2, 3, -1, 0]), sign_test([0, 0])
    (0.625, None)
    """
    # Same as `scipy.stats.binomtest`, which takes half a second to import.
    from scipy.special import bdtr

    positive, negative = sum(gain > 0 for gain in differences), sum(gain < 0 for gain in differences)
    if not positive + negative:
        return None
    return min(1.0, 2 * float(bdtr(min(positive, negative), positive + negative, 0.5)))
