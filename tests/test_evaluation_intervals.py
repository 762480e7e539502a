"""Bootstrap intervals and the sign test, against what is known of them."""

import math
import random
import tracemalloc

import numpy
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binom, binomtest

from hf_instruct.console import format_interval
from hf_instruct.evaluation.intervals import (
    bootstrap_mean,
    compare_values,
    describe_groups,
    design_effect,
    estimate,
    share_difference_interval,
    share_interval,
    sign_test,
)
from hf_instruct.schema import Interval


def test_the_interval_of_a_mean_is_near_the_normal_one() -> None:
    draw = random.Random(1)
    values = [draw.gauss(50, 20) for _ in range(400)]
    mean = numpy.mean(values)
    error = numpy.std(values, ddof=1) / math.sqrt(400)
    interval = bootstrap_mean(values)
    assert interval is not None
    assert interval.low == pytest.approx(mean - 1.96 * error, abs=0.15)
    assert interval.high == pytest.approx(mean + 1.96 * error, abs=0.15)
    assert interval == bootstrap_mean(values)
    assert interval != bootstrap_mean(values, seed=1)


def test_many_values_are_drawn_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [float(n % 7) for n in range(100)]
    whole = bootstrap_mean(values)
    monkeypatch.setattr("hf_instruct.evaluation.intervals._BLOCK", 350)
    assert bootstrap_mean(values) == whole


def test_many_values_take_little_memory() -> None:
    """All draws of 20,000 values at once take 3.2 GB."""
    values = [float(n % 101) for n in range(20_200)]
    bootstrap_mean(values[:10])
    tracemalloc.start()
    try:
        interval = bootstrap_mean(values)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert interval == pytest.approx((50 - 0.402, 50 + 0.402), abs=0.03)
    assert peak < 20_000_000


@pytest.mark.parametrize(("yes", "count"), [(0, 100), (100, 100), (18, 100), (1, 20), (97, 110), (1, 2)])
def test_the_interval_of_a_share_is_wilsons(yes: int, count: int) -> None:
    interval = share_interval([1.0] * yes + [0.0] * (count - yes))
    assert interval == pytest.approx(tuple(binomtest(yes, count).proportion_ci(method="wilson")), abs=1e-12)
    assert interval is not None
    assert interval.low < interval.high


@pytest.mark.parametrize("count", [20, 110])
def test_the_interval_of_a_share_covers_what_it_claims(count: int) -> None:
    """Where 95 % is claimed, the bootstrap covers 0.97 in 43 % of samples of 20, and in 83 % of 110."""

    def covers(interval: Interval | None) -> bool:
        return interval is not None and interval.spans(0.97)

    samples = [[1.0] * yes + [0.0] * (count - yes) for yes in range(count + 1)]
    chance = sum(binom.pmf(yes, count, 0.97) for yes in range(count + 1) if covers(share_interval(samples[yes])))
    assert chance > 0.87


@pytest.mark.parametrize(("gains", "losses", "count"), [(12, 2, 44), (5, 9, 60), (0, 0, 100), (1, 0, 10)])
def test_a_paired_difference_of_shares_ends_where_the_score_test_does(gains: int, losses: int, count: int) -> None:
    """The likelihood is maximized by a search here."""
    interval = share_difference_interval([1.0] * gains + [-1.0] * losses + [0.0] * (count - gains - losses))
    assert interval is not None
    assert interval.low < (gains - losses) / count < interval.high
    for end in interval:

        def unlikelihood(lost: float, end: float = end) -> float:
            parts = ((gains, lost + end), (losses, lost), (count - gains - losses, 1 - 2 * lost - end))
            return -sum(number * math.log(max(share, 1e-300)) for number, share in parts if number)

        lost = minimize_scalar(unlikelihood, bounds=(max(0, -end), (1 - end) / 2), options={"xatol": 1e-12}).x
        statistic = (gains - losses - count * end) / math.sqrt(count * (2 * lost + end - end**2))
        assert abs(statistic) == pytest.approx(1.959964, abs=1e-3)


def test_only_what_is_declared_a_share_gets_the_interval_of_one() -> None:
    alike = [1.0] * 100
    assert compare_values(alike, alike, is_share=True).interval == share_difference_interval([0.0] * 100)
    assert compare_values(alike, alike).interval == Interval(0.0, 0.0)
    assert format_interval((0.0, 0.0), signed=True) == "none: all equal"
    # What a file says is a share may be none.
    assert compare_values([0.4, 0.0], [0.0, 0.0], is_share=True).interval == bootstrap_mean([0.4, 0.0])


@pytest.mark.parametrize("values", [[], [1.0]])
def test_too_few_values_have_no_interval(values: list[float]) -> None:
    assert bootstrap_mean(values) is None
    assert share_interval(values) is None
    assert estimate(lambda places: [0.0], len(values)) == [(0.0, None)]


def test_a_number_that_is_seldom_defined_has_no_interval() -> None:
    draws = iter(range(1, 1002))
    assert estimate(lambda places: [math.nan if next(draws) % 10 == 0 else 1.0], 5) == [(1.0, None)]
    draws = iter(range(1, 1002))
    assert estimate(lambda places: [math.nan if next(draws) % 100 == 0 else 1.0], 5) == [(1.0, (1.0, 1.0))]


def test_the_sign_test_leaves_out_equal_pairs() -> None:
    assert sign_test([1.0] * 5 + [0.0] * 90) == pytest.approx(2 / 32)
    assert sign_test([1.0] * 10 + [-1.0] * 10) == 1.0
    assert sign_test([-1.0] * 200) == pytest.approx(2 / 2**200)
    assert sign_test([1.0, -1.0] * 5000) == 1.0
    assert sign_test([1.0] * 9_900 + [-1.0] * 10_100) == pytest.approx(binomtest(9_900, 20_000).pvalue, rel=1e-9)


def test_rows_of_one_group_count_as_one_draw() -> None:
    values, groups = [float(number // 5 % 7) for number in range(200)], [number // 5 for number in range(200)]
    # Five copies of each value are worth one of each: the variance is 5 times that of 200 draws.
    assert design_effect(values, groups) == pytest.approx(5, rel=0.03)
    assert design_effect(values, range(200)) == design_effect(values, [0] * 200) == design_effect(values, ()) == 1.0
    alone, alike = bootstrap_mean(values), bootstrap_mean(values, groups)
    once = bootstrap_mean(values[::5])
    assert alone
    assert alike
    assert once
    assert alike.high - alike.low == pytest.approx(once.high - once.low, rel=0.06)
    shares = [float(value > 3) for value in values]
    assert share_interval(shares, groups) == pytest.approx(share_interval(shares[::5]), abs=0.005)
    found = [compare_values(values, [3.0] * 200, given) for given in ((), groups)]
    assert found[1].smallest_found == pytest.approx(5**0.5 * found[0].smallest_found, rel=0.03)
    assert compare_values(values, [0.0] * 200, groups).interval == pytest.approx(alike)


def test_alike_rows_are_spoken_of_where_they_matter() -> None:
    values = [float(number // 10) for number in range(200)]
    categories = [number // 10 for number in range(200)]
    said = describe_groups(values, [f"task {number // 2}" for number in range(200)], categories)
    assert said.startswith("200 examples have 100 instructions; those with the same one count as one draw. Examples of")
    assert said.endswith("the interval of the difference would be 2.3 times as wide.")
    assert (
        describe_groups(values, range(200), ())
        == describe_groups([float(i % 2) for i in range(200)], range(200), categories)
        == ""
    )
