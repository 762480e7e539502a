"""Bootstrap intervals and the sign test, against what is known of them."""

import math
import random

import numpy
import pytest

from hf_instruct.intervals import Interval, bootstrap_mean, bootstrap_statistic, sign_test


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
    monkeypatch.setattr("hf_instruct.intervals._BLOCK", 350)
    assert bootstrap_mean(values) == whole


@pytest.mark.parametrize("values", [[], [1.0]])
def test_too_few_values_have_no_interval(values: list[float]) -> None:
    assert bootstrap_mean(values) is None
    assert bootstrap_statistic(lambda places: 0.0, len(values)) is None


def test_any_number_has_an_interval() -> None:
    values = numpy.arange(100.0)
    interval = bootstrap_statistic(lambda places: float(numpy.median(values[places])), 100)
    assert interval is not None
    assert interval.spans(49.5)
    assert 25 < interval.low < 49.5 < interval.high < 75


def test_a_number_that_is_seldom_defined_has_no_interval() -> None:
    draws = iter(range(1000))
    assert bootstrap_statistic(lambda places: math.nan if next(draws) % 10 == 0 else 1.0, 5) is None
    draws = iter(range(1000))
    assert bootstrap_statistic(lambda places: math.nan if next(draws) % 100 == 0 else 1.0, 5) == Interval(1.0, 1.0)


def test_the_sign_test_leaves_out_equal_pairs() -> None:
    assert sign_test([1.0] * 5 + [0.0] * 90) == pytest.approx(2 / 32)
    assert sign_test([1.0] * 10 + [-1.0] * 10) == 1.0
    assert sign_test([-1.0] * 200) == pytest.approx(2 / 2**200)
    assert sign_test([1.0, -1.0] * 5000) == 1.0
