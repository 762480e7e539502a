"""What the preferences between two sets of answers amount to: numbers in, numbers and a few lines of text out."""

import hashlib
from collections.abc import Sequence

from hf_instruct.evaluation.pairs import RUBRIC, RUBRIC_SHA256, JoinedPairs
from hf_instruct.evaluation.ratings import length_controlled_win_rate, win_rate
from hf_instruct.evaluation.scores import label_judge
from hf_instruct.schema import (
    Consistency,
    JudgeIdentity,
    Lengths,
    PairSummary,
    Position,
    Preference,
    RubricName,
)

# Rules for a judge of pairs, by effect; `python -m benchmarks.judges` shows whom they find. Fewer pairs say too little.
_FEWEST = 10
# Of the pairs, judged alike in both orders; a coin reaches a half.
_LEAST_CONSISTENCY = 0.7
# By how much the answer shown first may be preferred more often than a half of the time, or less.
_MOST_PULL = 0.1
# Of the verdicts, ties; and of the longer answers, preferred.
_MOST_TIES, _MOST_LONGER = 0.9, 0.9
_FEWEST_LONGER = 5


def build_pair_scores(preferences: Sequence[Preference], joined: JoinedPairs, judge: JudgeIdentity) -> PairSummary:
    """Return the summary of a judge's preferences between two sets of answers that were joined so."""
    scores = [row.score for row in preferences if row.score is not None]
    n, total = len(scores), len(preferences)
    plain, controlled = win_rate(preferences), length_controlled_win_rate(preferences)
    return PairSummary(
        first=joined.names[0],
        second=joined.names[1],
        win_rate=plain.rate if plain else None,
        win_rate_interval=plain.interval if plain else None,
        lowest=sum(scores) / total if total else None,
        highest=(sum(scores) + total - n) / total if total else None,
        length_controlled_win_rate=controlled.rate if controlled else None,
        length_controlled_win_rate_interval=controlled.interval if controlled else None,
        one_sided_lengths=controlled.one_sided if controlled else None,
        mean_length=Lengths(
            first=sum(row.first_length for row in preferences) / total,
            second=sum(row.second_length for row in preferences) / total,
        ),
        n=n,
        failures=total - n,
        total=total,
        wins=scores.count(1),
        ties=scores.count(0.5),
        losses=scores.count(0),
        identical=sum(row.is_identical for row in preferences),
        consistency=_measure_consistency(preferences),
        position=_measure_position(preferences),
        longer_share=_measure_length_bias(preferences),
        joined_by=joined.by,
        without_counterpart=joined.alone,
        judge=judge,
        rubric=RubricName(name=RUBRIC, sha256=RUBRIC_SHA256),
        prompts_sha256=hashlib.sha256("\n".join(row.prompt_sha256 for row in preferences).encode()).hexdigest(),
        seconds=round(sum(row.seconds for row in preferences), 3),
    )


def _list_orders(preferences: Sequence[Preference]) -> list[list[float | None]]:
    return [row.orders for row in preferences if not row.is_identical and len(row.orders) == 2]


def _measure_consistency(preferences: Sequence[Preference]) -> Consistency:
    both = [orders for orders in _list_orders(preferences) if None not in orders]
    same = sum(one == two for one, two in both)
    return Consistency(share=same / len(both) if both else None, pairs=len(both))


def _measure_position(preferences: Sequence[Preference]) -> Position:
    # The score of the answer shown first: in the second order that is the second answer.
    shown_first = [
        score if order == 0 else 1 - score
        for row in _list_orders(preferences)
        for order, score in enumerate(row)
        if score is not None
    ]
    first, second = shown_first.count(1), shown_first.count(0)
    share = first / (first + second) if first + second else None
    return Position(first=first, second=second, ties=shown_first.count(0.5), first_share=share)


def _measure_length_bias(preferences: Sequence[Preference]) -> float | None:
    """Return the share of longer answers preferred, the smaller of both sides; None with fewer than 5 of either."""
    decided = [row for row in preferences if row.score in (0, 1) and row.first_length != row.second_length]
    shares = []
    for winner in (1, 0):
        longer = [row.score == winner for row in decided if (row.first_length > row.second_length) == (winner == 1)]
        if len(longer) < _FEWEST_LONGER:
            return None
        shares.append(sum(longer) / len(longer))
    return min(shares)


def find_pair_problems(scores: PairSummary) -> list[str]:
    """Return what the verdicts themselves say against the judge, a sentence each with its figures; mostly none."""
    consistency, position, problems = scores.consistency, scores.position, list[str]()
    verdicts = position.first + position.second + position.ties
    n = consistency.pairs
    if n < _FEWEST or consistency.share is None:
        return []
    if position.ties >= _MOST_TIES * verdicts:
        problems.append(f"The judge called {position.ties} of {verdicts} verdicts a tie: it does not discriminate.")
        return problems
    if consistency.share < _LEAST_CONSISTENCY:
        problems.append(
            f"The judge gave the same verdict in both orders in {_percent(consistency.share)} of {n} pairs "
            f"({100 * _LEAST_CONSISTENCY:.0f} % are needed): its win rate says little."
        )
    if position.first_share is not None and abs(position.first_share - 0.5) >= _MOST_PULL:
        where = "first" if position.first_share > 0.5 else "second"
        share, decided = max(position.first_share, 1 - position.first_share), position.first + position.second
        problems.append(
            f"The judge preferred the answer shown {where} in {_percent(share)} of its {decided} verdicts that are no "
            "tie: it goes by the order."
        )
    if scores.longer_share is not None and scores.longer_share >= _MOST_LONGER:
        problems.append(
            f"The longer answer won in {_percent(scores.longer_share)} of the decided pairs or more, whichever side it "
            "was on: the judge goes by the length."
        )
    return problems


def format_pair_scores(scores: PairSummary) -> str:
    """Return a win rate with everything that it should not be quoted without, in aligned lines."""
    counts = f"{scores.total} pairs joined by {scores.joined_by}, {scores.failures} failed"
    alone = ((scores.first, scores.without_counterpart.first), (scores.second, scores.without_counterpart.second))
    dropped = [f"{count} of {name} without a counterpart" for name, count in alone if count]
    lines = [f"{scores.first} against {scores.second}", "; ".join((counts, *dropped)), ""]
    lines += _format_rates(scores)
    consistency, position = scores.consistency, scores.position
    lines.append(
        f"{'same verdict in both orders':<29}{_percent(consistency.share):>8}   of {consistency.pairs} pairs; "
        "the others are ties"
    )
    lines.append(
        f"{'shown first and preferred':<29}{_percent(position.first_share):>8}   of "
        f"{position.first + position.second} verdicts that are no tie; fair is 50.0 %"
    )
    return "\n".join([*lines, f"judge {label_judge(scores.judge, scores.rubric)}", *_find_notes(scores)])


def _format_rates(scores: PairSummary) -> list[str]:
    lengths = scores.mean_length
    verdicts = f"won {scores.wins}, tied {scores.ties}, lost {scores.losses}"
    shown = f"mean length {lengths.first:.0f} and {lengths.second:.0f} characters"
    controlled = scores.length_controlled_win_rate, scores.length_controlled_win_rate_interval
    lines = []
    for title, rate, ends, note in (
        ("win rate", scores.win_rate, scores.win_rate_interval, verdicts),
        ("win rate at equal length", *controlled, shown),
    ):
        interval = f"95 % interval {100 * ends.low:.1f} to {_percent(ends.high)}" if ends else "no interval"
        lines.append(f"{title:<29}{_percent(rate):>8}   {interval}; {note}")
    if scores.failures and scores.total:
        bounds = f"{_percent(scores.lowest)} to {_percent(scores.highest)}"
        lines.append(f"{'with every failure':<29}{'':>8}   lost or won: {bounds}")
    return lines


def _find_notes(scores: PairSummary) -> list[str]:
    """Return what a reader should know before quoting the win rate."""
    notes = []
    if scores.identical:
        notes.append(f"{scores.identical} pairs of identical answers count as ties; the judge was not asked.")
    if scores.win_rate_interval and scores.win_rate_interval.spans(0.5):
        notes.append("No difference shown: the interval of the win rate spans 50 %.")
    if scores.one_sided_lengths:
        longer = scores.first if scores.mean_length.first > scores.mean_length.second else scores.second
        notes.append(
            f"Every answer of {longer} is the longer one, so no pair shows what equal lengths would give; what "
            "length can explain is put down to length."
        )
    notes += find_pair_problems(scores)
    return [f"! {note}" for note in notes]


def _percent(fraction: float | None) -> str:
    return "none" if fraction is None else f"{100 * fraction:.1f} %"
