"""Win rates, win rates at equal length, and what is said against a judge of pairs."""

import math

import numpy
import pytest
from rows import preference

from benchmarks import judges
from hf_instruct.evaluation import pair_scores
from hf_instruct.evaluation.pair_scores import (
    build_pair_scores,
    find_pair_problems,
    format_pair_scores,
    has_one_sided_lengths,
    length_controlled_win_rate,
    win_rate,
)
from hf_instruct.evaluation.people import Corrected
from hf_instruct.evaluation.responses import JoinedPairs
from hf_instruct.schema import JudgeIdentity, Preference, Unpaired


def prefer(number: int | str, score: float | None, *, lengths: tuple[int, int] = (10, 10)) -> Preference:
    return preference(str(number), score, first_length=lengths[0], second_length=lengths[1])


def controlled(rows: list[Preference]) -> float:
    return length_controlled_win_rate(rows, resamples=20).value


def test_win_rate_counts_ties_half_and_leaves_failures_out() -> None:
    rate = win_rate([prefer(0, 1), prefer(1, 0.5), prefer(2, 0.5), prefer(3, 1), prefer(4, None)])
    assert rate == (0.75, pytest.approx((0.383, 0.925), abs=0.001))
    assert win_rate([prefer(0, None)]) == length_controlled_win_rate([prefer(0, None)]) == (None, None)
    assert win_rate([prefer(0, 1)]) == (1.0, None)


def test_a_set_against_itself_is_exactly_one_half() -> None:
    rows = [prefer(number, 0.5, lengths=(7 * number, 7 * number)) for number in range(30)]
    # 30 ties leave room for a set that wins one time in nine.
    assert win_rate(rows) == (0.5, pytest.approx((0.443, 0.557), abs=0.001))
    assert length_controlled_win_rate(rows, resamples=50) == (0.5, (0.5, 0.5))
    assert has_one_sided_lengths(rows) is False


@pytest.mark.parametrize("padding", [lambda n: 60, lambda n: 1 + 37 * n % 80, lambda n: 20 + 5 * n])
@pytest.mark.parametrize("every", [1, 5])
def test_padding_gains_nothing_at_equal_length(padding: "object", every: int) -> None:
    """Whether the judge always takes the longer answer, or ties on four of five."""
    assert callable(padding)
    rows = [
        prefer(n, 1.0 if n % every == 0 else 0.5, lengths=(20 + 5 * n + padding(n), 20 + 5 * n)) for n in range(100)
    ]
    assert win_rate(rows).value == (1.0 if every == 1 else 0.6)
    assert length_controlled_win_rate(rows) == (pytest.approx(0.5, abs=0.03 if every == 1 else 0.08), None)
    assert has_one_sided_lengths(rows) is True


@pytest.mark.parametrize(
    ("n", "others", "expected"), [(100, 9, True), (100, 10, False), (300, 29, True), (12, 6, True)]
)
def test_few_pairs_of_the_other_length_give_no_interval(n: int, others: int, expected: bool) -> None:
    rows = [prefer(k, k % 2, lengths=(20, 30 if k < others else 10)) for k in range(n)]
    assert has_one_sided_lengths(rows) is expected
    assert (length_controlled_win_rate(rows, resamples=50).interval is None) is expected


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
    assert win_rate(rows).value > 0.75
    assert controlled(rows) == pytest.approx(1 / (1 + math.exp(-0.8)), abs=0.02)


def test_swapping_the_sets_turns_the_rate_round() -> None:
    rows = [prefer(n, [1.0, 0.5, 0.0, 1.0][n % 4], lengths=(30 + 7 * n % 40, 30 + 11 * n % 50)) for n in range(60)]
    swapped = [prefer(row.id, 1 - float(row.score or 0), lengths=(row.second_length, row.first_length)) for row in rows]
    assert controlled(rows) + controlled(swapped) == pytest.approx(1, abs=1e-9)


def test_equal_verdicts_stay_finite() -> None:
    rows = [prefer(n, 1.0, lengths=(30 + 7 * n % 40, 30 + 11 * n % 50)) for n in range(40)]
    assert 0.97 < controlled(rows) < 1


@pytest.mark.parametrize("name", [*judges.USEFUL_OF_PAIRS, *judges.USELESS_OF_PAIRS])
def test_judges_of_pairs_that_go_by_something_else_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A thousand fits for an interval that the rules do not look at.
    monkeypatch.setattr(pair_scores, "length_controlled_win_rate", win_rate)
    ask = {**judges.USEFUL_OF_PAIRS, **judges.USELESS_OF_PAIRS}[name]
    share = judges.warned_rate(ask, 60, draws=10)
    assert share <= 0.1 if name in judges.USEFUL_OF_PAIRS else share >= 0.9


def test_what_is_said_against_a_judge_of_pairs_names_its_figures() -> None:
    generator = numpy.random.default_rng(1)
    (problem,) = find_pair_problems(judges.draw_pairs(lambda *_: 0.5, generator, 20))
    assert problem == "The judge called 40 of 40 verdicts a tie: it does not discriminate."
    problems = find_pair_problems(judges.draw_pairs(lambda *_: 1.0, generator, 20))
    assert problems[0].startswith("The judge gave the same verdict in both orders in 0.0 % of 20 pairs")
    assert problems[1].startswith("The judge preferred the answer shown first in 100.0 % of its 40 verdicts")
    assert len(problems) == 2
    # Nine pairs say too little.
    assert find_pair_problems(judges.draw_pairs(lambda *_: 1.0, generator, 9)) == []


def test_votes_are_asked_for_only_where_they_are_too_few() -> None:
    rows = [prefer(number, None) for number in range(20)]
    scores = build_pair_scores(rows, JoinedPairs([], ("a", "b"), "id", Unpaired(first=0, second=0)), JudgeIdentity())
    for votes, asked in ((9, 1), (10, 0)):
        text = format_pair_scores(scores, Corrected(None, None, votes, 20, None))
        assert (text.count("10 votes are needed"), text.count("no interval")) == (asked, 3 - asked)
