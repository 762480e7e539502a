"""How sure a number is: bootstrap intervals and the sign test, for scores, differences, agreement and ratings alike."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from hf_instruct.records import as_number

if TYPE_CHECKING:
    import numpy

Key = TypeVar("Key", bound=Hashable)

LEVEL = 0.95
# The ends of an interval over 110 scores move by about 0.05 of 100 from seed to seed at this many.
_RESAMPLES = 10_000
# A statistic that Python computes costs more than a mean.
_SLOW_RESAMPLES = 1_000
# Resampled values held at once.
_BLOCK = 2_000_000


class Interval(NamedTuple):
    """The ends of a 95 % interval, in the unit of the number it belongs to."""

    low: float
    high: float

    def spans(self, value: float) -> bool:
        """Return whether a value lies in the interval, its ends included."""
        return self.low <= value <= self.high


def bootstrap_mean(values: Sequence[float], *, seed: int = 0) -> Interval | None:
    """Return the percentile bootstrap interval of a mean; None for fewer than two values.

    Examples are drawn with replacement, as often as there are any, 10,000 times over; the interval holds the middle
    95 % of the means. The same values give the same interval.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

    >>> bootstrap_mean([50.0, 50.0, 50.0])
    Interval(low=50.0, high=50.0)
    """
    import numpy

    count = len(values)
    if count < 2:
        return None
    sample = numpy.asarray(values, dtype=float)
    generator = numpy.random.default_rng(seed)
    means: list[numpy.ndarray] = []
    left = _RESAMPLES
    while left:
        rounds = min(left, max(1, _BLOCK // count))
        means.append(sample[generator.integers(count, size=(rounds, count))].mean(axis=1))
        left -= rounds
    return _middle(numpy.concatenate(means))


def bootstrap_statistic(
    statistic: Callable[["numpy.ndarray"], float], count: int, *, seed: int = 0, resamples: int = _SLOW_RESAMPLES
) -> Interval | None:
    """Return the percentile bootstrap interval of any number computed from examples; None for fewer than two.

    Args:
        statistic: Computes the number from the examples at the given positions, [count], some of them several times;
            NaN where these do not define it.
        count: How many examples there are.
        seed: Of the draws.
        resamples: How many draws.

    Returns:
        The interval, or None where more than one draw in twenty does not define the number.
    """
    import numpy

    if count < 2:
        return None
    generator = numpy.random.default_rng(seed)
    values = numpy.array([statistic(generator.integers(count, size=count)) for _ in range(resamples)], dtype=float)
    defined = values[~numpy.isnan(values)]
    return _middle(defined) if len(defined) >= LEVEL * resamples else None


def _middle(values: "numpy.ndarray") -> Interval:
    import numpy

    low, high = numpy.percentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Interval(float(low), float(high))


@dataclasses.dataclass(frozen=True)
class MeanDifference:
    """Mean of numbers less a baseline's over the examples that both have, and its 95 % interval, in their unit."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def is_shown(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        ends = format_interval((self.low, self.high), signed=True)
        return f"{format_signed(self.mean)} points, 95 % interval {ends}"


def measure_difference(base: Mapping[Key, float], other: Mapping[Key, float]) -> MeanDifference | None:
    """Return by how much numbers exceed a baseline's, by example; None for fewer than two common examples.

    Examples differ in difficulty far more than two models do, so pairing them narrows the interval.

    >>> str(measure_difference({"a": 10, "b": 20, "c": 5}, {"a": 50, "b": 70, "d": 1}))
    '+45.0 points, 95 % interval +40.0 to +50.0'
    """
    gains = [other[id] - number for id, number in base.items() if id in other]
    interval = bootstrap_mean(gains)
    return interval and MeanDifference(statistics.fmean(gains), *interval, len(gains))


def sign_test(differences: Sequence[float]) -> float | None:
    """Return the two-sided p value of the exact sign test, equal pairs left out; None where all pairs are equal.

    >>> sign_test([1, 2, 3, -1, 0]), sign_test([0, 0])
    (0.625, None)
    """
    positive = sum(difference > 0 for difference in differences)
    count = positive + sum(difference < 0 for difference in differences)
    if not count:
        return None
    tail = sum(math.comb(count, k) for k in range(min(positive, count - positive) + 1))
    # In whole numbers as far as they go: 2**count alone may be too large for a float.
    return float(min(Fraction(1), Fraction(2 * tail, 2**count)))


def parse_interval(value: Any) -> Interval | None:
    """Return a pair of numbers of a JSON file as the interval that it stands for, and None for anything else.

    >>> parse_interval([1, 2.5]), parse_interval([1]), parse_interval(None)
    (Interval(low=1.0, high=2.5), None, None)
    """
    ends = [as_number(end) for end in value] if isinstance(value, list) else []
    return Interval(*ends) if len(ends) == 2 and None not in ends else None  # type: ignore[arg-type]  # no None in it


def format_points(number: float) -> str:
    """Return a number of points with one decimal, halves up, as the means of whole scores often meet.

    >>> format_points(49.45), format_points(0.25), format_points(-0.04)
    ('49.5', '0.3', '0.0')
    """
    # Ten digits: 49.45 is a little less than that in binary.
    return f"{math.floor(round(number * 10, 9) + 0.5) / 10:.1f}"


def format_signed(number: float) -> str:
    """Return a number of points with its sign and one decimal, halves away from zero: a difference and its opposite.

    >>> format_signed(0.25), format_signed(-0.25), format_signed(0), format_signed(-0.04)
    ('+0.3', '-0.3', '+0.0', '+0.0')
    """
    text = format_points(abs(number))
    return f"-{text}" if number < 0 and text != "0.0" else f"+{text}"


def format_interval(ends: Sequence[float], *, signed: bool = False) -> str:
    """Return the two ends of an interval, in points; with `signed`, of a difference.

    >>> format_interval((49.45, 51)), format_interval((-0.5, 1), signed=True)
    ('49.5 to 51.0', '-0.5 to +1.0')
    """
    return " to ".join(map(format_signed if signed else format_points, ends))
