"""Intervals of means, shares and differences, and the sign test."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from hf_instruct.schema import Interval, MeanDifference

if TYPE_CHECKING:
    import numpy

Key = TypeVar("Key", bound=Hashable)

LEVEL = 0.95
# What every view of intervals says once, where they are read.
SCOPE = (
    "The intervals only cover the choice of test examples; training seed, decoding and judge are fixed. With "
    "another seed the numbers may vary more; `hf-instruct sweep EXPERIMENT.yaml --set train.seed=1,2,3` shows by "
    "how much."
)
# The ends of an interval over 110 scores move by about 0.05 of 100 from seed to seed at this many.
_RESAMPLES = 10_000
# A statistic that Python computes costs more than a mean.
_SLOW_RESAMPLES = 1_000
# Values drawn for one mean in all. Beyond 1,000 values there are fewer resamples, 1,000 at least: the ends, in the
# values' unit, still move no more from seed to seed than those of 1,000 values.
_MOST_DRAWN = 10_000_000
# Quantile of the normal distribution for the level.
_Z = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)
# And for a power of 80 %.
_Z_POWER = statistics.NormalDist().inv_cdf(0.8)
# Halvings of an interval of length 2 or less: to its last digits.
_HALVINGS = 60
# Resampled values held at once: they fit the cache.
_BLOCK = 200_000


class Estimate(NamedTuple):
    """A number and its 95 % interval; None if the examples do not define it."""

    value: float | None
    interval: Interval | None


@dataclasses.dataclass(frozen=True)
class Difference:
    """A run's values - the baseline's, example by example, in the values' unit."""

    mean: float
    interval: Interval | None  # 95 %: a score interval for shares, else bootstrapped; None for a single example
    wins: int  # examples on which the run's value is higher
    ties: int
    losses: int
    p_value: float | None  # of the two-sided sign test; None if all values are equal
    is_shown: bool  # whether the interval excludes zero, and `bounds` too
    # The smallest difference shown 8 times out of 10 with this many examples; None for a single example.
    smallest_found: float | None = None
    # The mean over all examples where each failed judgment is the worst or the best score; None without any.
    bounds: Interval | None = None

    @property
    def n(self) -> int:
        """How many examples were compared."""
        return self.wins + self.ties + self.losses

    def count_needed(self, difference: float) -> int | None:
        """Return the number of examples that show a difference 8 times out of 10, to two digits; None if unknown."""
        if not self.smallest_found:
            return None
        needed = self.n * (self.smallest_found / difference) ** 2
        return max(1, int(float(f"{needed:.1e}")))


def bootstrap_mean(values: Sequence[float], *, seed: int = 0) -> Interval | None:
    """Return the expanded percentile bootstrap interval of a mean; None for fewer than two values.

    Examples are drawn with replacement, as often as there are any, 10,000 times over (fewer times for more than 1,000
    values); the interval holds the middle 95 % of the means, and some more for few values, by as much as Student's
    interval is wider than the normal one. The same values give the same interval. For values of yes and no,
    `share_interval` is right: resampling values that happen to be equal shows no spread.

    Source: Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69, 2015, section 4.3;
    of the methods that `python -m benchmarks.coverage` compares it covers best.

    >>> bootstrap_mean([50.0, 50.0, 50.0])
    Interval(low=50.0, high=50.0)
    """
    count = len(values)
    if count < 2:
        return None
    # As `scipy.stats.bootstrap(method="percentile")`, which takes half a second to import and more lines to call.
    import numpy

    sample, generator = numpy.asarray(values, dtype=float), numpy.random.default_rng(seed)
    means: list[numpy.ndarray] = []
    left = min(_RESAMPLES, max(_SLOW_RESAMPLES, _MOST_DRAWN // count))
    while left:
        rounds = min(left, max(1, _BLOCK // count))
        means.append(sample[generator.integers(count, size=(rounds, count))].mean(axis=1))
        left -= rounds
    return _middle(numpy.concatenate(means), tail=expanded_tail(count))


def expanded_tail(count: int) -> float:
    """Return which fraction of bootstrapped means of so many values is left out on each side.

    >>> round(expanded_tail(10), 4), round(expanded_tail(10_000), 4)
    (0.0086, 0.025)
    """
    from scipy.special import stdtrit

    quantile = float(stdtrit(count - 1, (1 + LEVEL) / 2))
    return statistics.NormalDist().cdf(-math.sqrt(count / (count - 1)) * quantile)


def _middle(values: "Sequence[float] | numpy.ndarray", *, tail: float = (1 - LEVEL) / 2) -> Interval:
    """Return the values that leave out a fraction on each side."""
    import numpy

    return Interval(*map(float, numpy.percentile(values, [100 * tail, 100 * (1 - tail)])))


def share_interval(values: Sequence[float]) -> Interval | None:
    """Return the score interval of a share: of the mean of 0 (no), 1 (yes) and 0.5 (a tie); None for fewer than two.

    Without ties it is Wilson's. Ties narrow it, but it always has a width: 0 of 100 may be 3.7 %.

    >>> share_interval([0.0] * 100)
    Interval(low=0.0, high=0.03699...)
    """
    difference = share_difference_interval([2 * value - 1 for value in values])
    return difference and Interval(*((1 + end) / 2 for end in difference))


def share_difference_interval(differences: Sequence[float]) -> Interval | None:
    """Return the score interval of a mean of paired differences of yes (1) and no (0); None for fewer than two.

    Source: Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design, Statistics in Medicine 17, 1998.

    >>> share_difference_interval([0.0] * 100)
    Interval(low=-0.03699..., high=0.03699...)
    """
    gains, losses = sum(value > 0 for value in differences), sum(value < 0 for value in differences)
    count = len(differences)
    if count < 2:
        return None
    low, high = -_bound_difference(losses, gains, count), _bound_difference(gains, losses, count)
    return Interval(low, high)


def _bound_difference(gains: int, losses: int, count: int) -> float:
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


def estimate(
    statistics: Callable[["numpy.ndarray"], "Sequence[float] | numpy.ndarray"],
    count: int,
    *,
    seed: int = 0,
    resamples: int = _SLOW_RESAMPLES,
) -> list[Estimate]:
    """Return any numbers computed from examples, with their percentile bootstrap intervals.

    Args:
        statistics: Computes the numbers from the examples at the given positions, [count], some of them several times;
            NaN if these do not define one.
        count: How many examples there are.
        seed: Of the draws.
        resamples: How many draws; none for no intervals.

    Returns:
        An estimate for each number. It has no interval for fewer than two examples, nor where more than one draw in
        twenty does not define the number.
    """
    import numpy

    generator = numpy.random.default_rng(seed)
    rows = [statistics(numpy.arange(count))]
    rows += [statistics(generator.integers(count, size=count)) for _ in range(resamples if count > 1 else 0)]
    found = []
    for value, *drawn in numpy.array(rows, dtype=float).T.tolist():
        defined = [number for number in drawn if not math.isnan(number)]
        interval = _middle(defined) if defined and len(defined) >= LEVEL * len(drawn) else None
        found.append(Estimate(None, None) if math.isnan(value) else Estimate(value, interval))
    return found


def difference_interval(differences: Sequence[float], *, is_share: bool = False) -> Interval | None:
    """Return the interval of a mean of paired differences; None for fewer than two.

    Args:
        differences: One for each example.
        is_share: Whether they are differences of yes (1) and no (0).
    """
    if is_share and {-1, 0, 1}.issuperset(differences):
        return share_difference_interval(differences)
    return bootstrap_mean(differences)


def measure_difference(
    base: Mapping[Key, float], other: Mapping[Key, float], *, is_share: bool = False
) -> MeanDifference | None:
    """Return the paired difference from a baseline; None for fewer than two common examples.

    Examples differ in difficulty far more than two models do, so pairing them narrows the interval.

    Args:
        base: The baseline's numbers.
        other: The numbers.
        is_share: Whether each number is a yes (1) or a no (0).

    >>> str(measure_difference({"a": 10, "b": 20, "c": 5}, {"a": 50, "b": 70, "d": 1}))
    '+45.0 points, 95 % interval +40.0 to +50.0'
    """
    gains = [other[id] - number for id, number in base.items() if id in other]
    interval = difference_interval(gains, is_share=is_share)
    return interval and MeanDifference(statistics.fmean(gains), *interval, len(gains))


def compare_values(values: Sequence[float], baseline: Sequence[float], *, is_share: bool = False) -> Difference:
    """Return the difference of values from a baseline's values of the same examples (at least one).

    Args:
        values: One for each example.
        baseline: The baseline's.
        is_share: Whether each value is a yes (1) or a no (0).

    >>> found = compare_values([50.0, 70.0, 20.0, 20.0], [10.0, 20.0, 20.0, 30.0])
    >>> found.mean, found.wins, found.ties, found.losses, found.p_value, found.is_shown
    (20.0, 2, 1, 1, 1.0, False)
    """
    differences = [one - other for one, other in zip(values, baseline, strict=True)]
    wins, losses = sum(gain > 0 for gain in differences), sum(gain < 0 for gain in differences)
    interval = difference_interval(differences, is_share=is_share)
    return Difference(
        mean=statistics.fmean(differences),
        interval=interval,
        wins=wins,
        ties=len(differences) - wins - losses,
        losses=losses,
        p_value=sign_test(differences),
        is_shown=interval is not None and not interval.spans(0.0),
        smallest_found=smallest_found(differences),
    )


def smallest_found(differences: Sequence[float]) -> float | None:
    """Return the smallest difference shown 8 times out of 10 with this many examples; None for fewer than two.

    That is (1.96 + 0.84) standard errors: then the interval excludes 0 with a probability of 80 %. A difference half as
    large takes four times as many examples.

    Source: Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988, chapter 2.

    >>> round(smallest_found([10.0, -10.0] * 50), 1)
    2.8
    """
    if len(differences) < 2:
        return None
    return (_Z + _Z_POWER) * statistics.stdev(differences) / math.sqrt(len(differences))


def sign_test(differences: Sequence[float]) -> float | None:
    """Return the two-sided p value of the exact sign test, equal pairs left out; None if all pairs are equal.

    >>> sign_test([1, 2, 3, -1, 0]), sign_test([0, 0])
    (0.625, None)
    """
    from scipy.stats import binomtest

    positive = sum(difference > 0 for difference in differences)
    count = positive + sum(difference < 0 for difference in differences)
    return float(binomtest(positive, count).pvalue) if count else None
