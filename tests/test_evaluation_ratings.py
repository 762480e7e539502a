"""Win rates, win rates at equal length, and Bradley–Terry ratings: exact numbers, and a search without shortcuts."""

import math

import numpy
import pytest
from rows import preference

from hf_instruct.errors import DataError
from hf_instruct.evaluation.ratings import Rating, bradley_terry, length_controlled_win_rate, win_rate
from hf_instruct.schema import Preference


def prefer(
    number: int | str, score: float | None, *, first: str = "a", second: str = "b", lengths: tuple[int, int] = (10, 10)
) -> Preference:
    sides = {"first": first, "second": second, "first_length": lengths[0], "second_length": lengths[1]}
    return preference(str(number), score, **sides)


def controlled(rows: list[Preference]) -> float:
    rate = length_controlled_win_rate(rows, resamples=20)
    assert rate is not None
    return rate.rate


def test_win_rate_counts_ties_half_and_leaves_failures_out() -> None:
    rate = win_rate([prefer(0, 1), prefer(1, 0.5), prefer(2, 0.5), prefer(3, 1), prefer(4, None)])
    assert rate is not None
    assert (rate.rate, rate.n) == (0.75, 4)
    assert rate.interval == pytest.approx((0.383, 0.925), abs=0.001)
    assert win_rate([prefer(0, None)]) is None
    assert win_rate([prefer(0, 1)]) == (1.0, None, 1, None)


def test_a_set_against_itself_is_exactly_one_half() -> None:
    rows = [prefer(number, 0.5, lengths=(7 * number, 7 * number)) for number in range(30)]
    rate = win_rate(rows)
    assert rate is not None
    assert rate.rate == 0.5
    # 30 ties leave room for a set that wins one time in nine.
    assert rate.interval == pytest.approx((0.443, 0.557), abs=0.001)
    assert length_controlled_win_rate(rows, resamples=50) == (0.5, (0.5, 0.5), 30, False)


@pytest.mark.parametrize("padding", [lambda n: 60, lambda n: 1 + 37 * n % 80, lambda n: 20 + 5 * n])
@pytest.mark.parametrize("every", [1, 5])
def test_padding_gains_nothing_at_equal_length(padding: "object", every: int) -> None:
    """Whether the judge always takes the longer answer, or ties on four of five."""
    assert callable(padding)
    rows = [
        prefer(n, 1.0 if n % every == 0 else 0.5, lengths=(20 + 5 * n + padding(n), 20 + 5 * n)) for n in range(100)
    ]
    raw = win_rate(rows)
    assert raw is not None
    assert raw.rate == (1.0 if every == 1 else 0.6)
    rate = length_controlled_win_rate(rows, resamples=20)
    assert rate is not None
    assert rate.rate == pytest.approx(0.5, abs=0.03 if every == 1 else 0.08)
    assert rate.one_sided is True
    assert rate.interval is None


def test_known_advantage_and_length_effect_are_told_apart() -> None:
    """Pairs in which the first is longer on average, by a judge with an advantage of 0.8 nats for it and a bias."""
    generator = numpy.random.default_rng(0)
    differences = generator.normal(60, 80, 3000).astype(int)
    bias = 1.2 * numpy.tanh(differences / math.sqrt((differences.astype(float) ** 2).mean()))
    wins = generator.random(3000) < 1 / (1 + numpy.exp(-0.8 - bias))
    rows = [
        prefer(n, float(win), lengths=(500 + int(difference), 500))
        for n, (win, difference) in enumerate(zip(wins, differences, strict=True))
    ]
    raw = win_rate(rows)
    assert raw is not None
    assert raw.rate > 0.75
    assert controlled(rows) == pytest.approx(1 / (1 + math.exp(-0.8)), abs=0.02)


def test_swapping_the_sets_turns_the_rate_round() -> None:
    rows = [prefer(n, [1.0, 0.5, 0.0, 1.0][n % 4], lengths=(30 + 7 * n % 40, 30 + 11 * n % 50)) for n in range(60)]
    swapped = [prefer(row.id, 1 - float(row.score or 0), lengths=(row.second_length, row.first_length)) for row in rows]
    assert controlled(rows) + controlled(swapped) == pytest.approx(1, abs=1e-9)


def test_equal_verdicts_stay_finite() -> None:
    rows = [prefer(n, 1.0, lengths=(30 + 7 * n % 40, 30 + 11 * n % 50)) for n in range(40)]
    assert 0.97 < controlled(rows) < 1
    assert length_controlled_win_rate([prefer(0, None)]) is None


def rated(rows: list[Preference], resamples: int = 1) -> dict[str, Rating]:
    return {row.name: row for row in bradley_terry(rows, resamples=resamples)}


def play(games: dict[tuple[str, str], tuple[int, int, int]]) -> list[Preference]:
    """Return preferences with so many wins, ties and losses of the first of each pair."""
    rows = []
    for (first, second), counts in games.items():
        scores = [score for score, count in zip((1.0, 0.5, 0.0), counts, strict=True) for _ in range(count)]
        rows += [prefer(number, score, first=first, second=second) for number, score in enumerate(scores)]
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
        bradley_terry(rows)
    assert "2 groups without a comparison between them: `c`, `d`, `e`; `a`, `b`." in str(caught.value)


def test_nothing_to_rate_is_an_error() -> None:
    with pytest.raises(DataError, match="No verdict compares two different sets of responses"):
        bradley_terry([prefer(0, None), prefer(1, 0.5, first="a", second="a")])


def test_an_example_that_joins_the_sets_alone_leaves_no_interval() -> None:
    rows = [*play({("a", "b"): (5, 0, 5)}), prefer("only", 1.0, first="b", second="c")]
    assert rated(rows, resamples=50)["c"].interval is None
