"""Bradley–Terry ratings: exact numbers, and a search without shortcuts."""

import math

import numpy
import pytest
from rows import preference

from hf_instruct.errors import DataError
from hf_instruct.evaluation.ratings import Rating, rate_preferences
from hf_instruct.schema import Preference


def rated(rows: list[Preference], resamples: int = 1) -> dict[str, Rating]:
    return {row.name: row for row in rate_preferences(rows, resamples=resamples).ratings}


def play(games: dict[tuple[str, str], tuple[int, int, int]]) -> list[Preference]:
    """Return preferences with so many wins, ties and losses of the first of each pair."""
    rows = []
    for (first, second), counts in games.items():
        scores = [score for score, count in zip((1.0, 0.5, 0.0), counts, strict=True) for _ in range(count)]
        rows += [preference(str(number), score, first=first, second=second) for number, score in enumerate(scores)]
    return rows


def test_ratings_are_the_likeliest_ones() -> None:
    """Against a plain minimisation of the negative log-likelihood, written out pair by pair, with the prior."""
    from scipy.optimize import minimize

    games = {("a", "b"): (12, 3, 5), ("b", "c"): (9, 0, 11), ("a", "c"): (7, 4, 9), ("d", "a"): (2, 2, 16)}
    names = ["a", "b", "c", "d"]

    def loss(strengths: numpy.ndarray, prior: float) -> float:
        total = prior * float((strengths**2).sum()) / 200
        for (first, second), (wins, ties, losses) in games.items():
            lead = strengths[names.index(first)] - strengths[names.index(second)]
            total += (wins + ties / 2) * math.log1p(math.exp(-lead)) + (losses + ties / 2) * math.log1p(math.exp(lead))
        return total

    table = rated(play(games))
    for prior, tolerance in ((1.0, 0.02), (0.0, 1.0)):
        found = minimize(loss, numpy.zeros(4), args=(prior,), method="BFGS", options={"gtol": 1e-9}).x
        points = 1000 + 400 / math.log(10) * (found - found.mean())
        assert [table[name].rating for name in names] == pytest.approx(list(points), abs=tolerance)


def test_interval_is_over_examples() -> None:
    """The same verdict in three comparisons of one example is one observation, not three."""
    rows = play({("a", "b"): (14, 0, 6)})
    single, tripled = rated(rows, resamples=200)["a"].interval, rated(rows * 3, resamples=200)["a"].interval
    assert single is not None
    assert tripled is not None
    assert tripled == pytest.approx(single, rel=0.01)


def test_sets_that_never_met_are_an_error_that_names_the_groups() -> None:
    rows = play({("a", "b"): (1, 0, 1), ("c", "d"): (1, 0, 1), ("c", "e"): (1, 0, 1)})
    with pytest.raises(DataError) as caught:
        rate_preferences(rows)
    assert "2 groups without a comparison between them: `c`, `d`, `e`; `a`, `b`." in str(caught.value)


def test_nothing_to_rate_is_an_error() -> None:
    for rows in ([preference("0", None), preference("1", 0.5, first="a", second="a")], []):
        with pytest.raises(DataError, match="No verdict compares two different sets of responses"):
            rate_preferences(rows)


def test_an_example_that_joins_the_sets_alone_leaves_no_interval() -> None:
    rows = [*play({("a", "b"): (5, 0, 5)}), preference("only", 1.0, first="b", second="c")]
    assert rated(rows, resamples=50)["c"].interval is None
