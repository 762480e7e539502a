"""Summarize preferences between two sets of answers, as numbers and text."""

import hashlib
import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_instruct.console import align
from hf_instruct.evaluation.intervals import FEWEST, Estimate, estimate, share_interval
from hf_instruct.evaluation.people import Corrected
from hf_instruct.evaluation.ratings import fit_logistic
from hf_instruct.evaluation.responses import JoinedPairs
from hf_instruct.evaluation.rubrics import PAIR_RUBRIC
from hf_instruct.evaluation.scores import label_judge
from hf_instruct.schema import Consistency, Interval, JudgeIdentity, Lengths, PairSummary, Position, Preference

if TYPE_CHECKING:
    import numpy

# Thresholds for warnings about a judge of pairs; `python -m benchmarks.judges` shows which judges they detect.
# Share of pairs judged alike in both orders; a coin reaches a half.
_MIN_CONSISTENCY = 0.7
# Deviation from one half of how often the answer shown first is preferred.
_MAX_PULL = 0.1
# Share of ties among the verdicts; share of the longer answers that were preferred.
_MAX_TIES, _MAX_LONGER = 0.9, 0.9
_FEWEST_LONGER = 5
# Prior standard deviations of the length-controlled model, in nats. The first is wide compared with what a dozen pairs
# show; the second is hardly a penalty, so a judge that always prefers the longer answer does not become an advantage.
_ADVANTAGE_PRIOR = 3.0
_LENGTH_PRIOR = 1000.0


def build_pair_scores(preferences: Sequence[Preference], joined: JoinedPairs, judge: JudgeIdentity) -> PairSummary:
    """Return the summary of a judge's preferences between two joined sets of answers."""
    scores = [row.score for row in preferences if row.score is not None]
    n, total = len(scores), len(preferences)
    plain, controlled = win_rate(preferences), length_controlled_win_rate(preferences)
    consistency, position = _measure_orders(preferences)
    return PairSummary(
        first=joined.names[0],
        second=joined.names[1],
        win_rate=plain.value,
        win_rate_interval=plain.interval,
        lowest=sum(scores) / total,
        highest=(sum(scores) + total - n) / total,
        length_controlled_win_rate=controlled.value,
        length_controlled_win_rate_interval=controlled.interval,
        one_sided_lengths=has_one_sided_lengths(preferences),
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
        consistency=consistency,
        position=position,
        longer_share=_measure_length_bias(preferences),
        joined_by=joined.by,
        without_counterpart=joined.alone,
        judge=judge,
        rubric=PAIR_RUBRIC,
        prompts_sha256=hashlib.sha256("\n".join(row.prompt_sha256 for row in preferences).encode()).hexdigest(),
        seconds=round(sum(row.seconds for row in preferences), 3),
    )


def win_rate(preferences: Sequence[Preference]) -> Estimate:
    """Return the fraction of verdicts that prefer the first set of responses to the second; ties count half.

    Args:
        preferences: Preferences on one pair of sets. Those without a verdict are left out; report their number too.
    """
    scores = [row.score for row in preferences if row.score is not None]
    return Estimate(statistics.fmean(scores), share_interval(scores)) if scores else Estimate(None, None)


def length_controlled_win_rate(preferences: Sequence[Preference], *, resamples: int = 1000) -> Estimate:
    """Return the win rate that the first set of responses would have if its answers were as long as the second's.

    A logistic model explains each verdict by the first set's own advantage (the intercept) and by two effects of d, the
    difference of the two lengths in characters: tanh(d / root mean square of d), for how much longer the answer is, and
    the sign of d, for whether it is longer at all. The rate is the model's prediction at d = 0. A tie counts as half a
    win and half a loss. Swapping the two sets gives one minus the rate; a set against itself gives exactly one half.

    Simplified from AlpacaEval 2: there is no term for the difficulty of an instruction, which takes many models to
    estimate. AlpacaEval separates out the effect of length with deliberately verbose and concise answers of its
    baseline. Here a ridge penalty does it, weak on the advantage and weaker on length: effects that the pairs cannot
    separate are attributed to length, and the fit stays finite if all verdicts agree. The sign of d is our addition: a
    judge may prefer any longer answer, whether it is longer by a word or a page. If one set is always longer, the sign
    widens the interval (by two fifths if the mean of d is twice its spread). d is scaled around 0 and not around its
    mean, because the same padding on every answer has no spread around the mean.

    Source: Dubois et al., Length-Controlled AlpacaEval, 2024, https://arxiv.org/abs/2404.04475, and
    https://github.com/tatsu-lab/alpaca_eval/blob/cd543a1/src/alpaca_eval/metrics/glm_winrate.py

    Args:
        preferences: Preferences on one pair of sets. Those without a verdict are left out.
        resamples: Bootstrap draws for the interval; there is no interval if `has_one_sided_lengths` is true.
    """
    import numpy

    rows = [(row.score, row.first_length - row.second_length) for row in preferences if row.score is not None]
    if not rows:
        return Estimate(None, None)
    scores, differences = numpy.array(rows, dtype=float).T

    def rate(drawn: "numpy.ndarray") -> list[float]:
        won, longer = scores[drawn], differences[drawn]
        scale = math.sqrt(float((longer**2).mean()))
        effects = [numpy.tanh(longer / scale) if scale else longer, numpy.sign(longer)]
        columns = [numpy.full_like(longer, _ADVANTAGE_PRIOR), *(_LENGTH_PRIOR * effect for effect in effects)]
        advantage = _ADVANTAGE_PRIOR * fit_logistic(numpy.stack(columns, axis=1), won, 1 - won)[0]
        return [1 / (1 + math.exp(-advantage))]

    # If nearly all pairs favor one side in length, an interval would only reflect the model's assumption.
    return estimate(rate, len(rows), resamples=0 if has_one_sided_lengths(preferences) else resamples)[0]


def has_one_sided_lengths(preferences: Sequence[Preference]) -> bool | None:
    """Return whether one set's answers are longer in so many pairs that the rest cannot show the effect of length.

    The rest is too small with fewer than 10 pairs, or 10 % of all. Pairs without a verdict are left out; None if there
    are no others.
    """
    differences = [row.first_length - row.second_length for row in preferences if row.score is not None]
    longer, shorter = sum(gap > 0 for gap in differences), sum(gap < 0 for gap in differences)
    others = len(differences) - max(longer, shorter)
    return others < max(FEWEST, len(differences) / 10) if differences else None


def _measure_orders(preferences: Sequence[Preference]) -> tuple[Consistency, Position]:
    """Return the agreement of the two orders, and how often the answer shown first is preferred."""
    orders = [row.orders for row in preferences if not row.is_identical and len(row.orders) == 2]
    both = [scores for scores in orders if None not in scores]
    # The score of the answer shown first: in the second order that is the second answer.
    shown_first = [score for score, _ in orders] + [None if score is None else 1 - score for _, score in orders]
    first, second, ties = (shown_first.count(score) for score in (1, 0, 0.5))
    share = first / (first + second) if first + second else None
    same = sum(scores[0] == scores[1] for scores in both) / len(both) if both else None
    position = Position(first=first, second=second, ties=ties, first_share=share)
    return Consistency(share=same, pairs=len(both)), position


def _measure_length_bias(preferences: Sequence[Preference]) -> float | None:
    """Return the share of longer answers preferred, the smaller one of the sides; None with fewer than 5 on either."""
    decided = [(row.score, row.first_length - row.second_length) for row in preferences if row.score in (0, 1)]
    first = [score == 1 for score, longer in decided if longer > 0]
    second = [score == 0 for score, longer in decided if longer < 0]
    if min(len(first), len(second)) < _FEWEST_LONGER:
        return None
    return min(sum(first) / len(first), sum(second) / len(second))


def find_pair_problems(scores: PairSummary) -> list[str]:
    """Return warnings about the judge that follow from its verdicts, with figures."""
    consistency, position, problems = scores.consistency, scores.position, list[str]()
    verdicts = position.first + position.second + position.ties
    n = consistency.pairs
    if n < FEWEST or consistency.share is None:
        return []
    if position.ties >= _MAX_TIES * verdicts:
        return [f"The judge called {position.ties} of {verdicts} verdicts a tie: it does not discriminate."]
    if consistency.share < _MIN_CONSISTENCY:
        problems.append(
            f"The judge gave the same verdict in both orders in {_percent(consistency.share)} of {n} pairs "
            f"({100 * _MIN_CONSISTENCY:.0f} % are needed): its win rate is not reliable."
        )
    if position.first_share is not None and abs(position.first_share - 0.5) >= _MAX_PULL:
        where = "first" if position.first_share > 0.5 else "second"
        share, decided = max(position.first_share, 1 - position.first_share), position.first + position.second
        problems.append(
            f"The judge preferred the answer shown {where} in {_percent(share)} of its {decided} verdicts without "
            "ties: it prefers by position."
        )
    if scores.longer_share is not None and scores.longer_share >= _MAX_LONGER:
        problems.append(
            f"The longer answer won in {_percent(scores.longer_share)} of the decided pairs or more, on either side: "
            "the judge prefers by length."
        )
    return problems


def format_pair_scores(scores: PairSummary, corrected: Corrected | None = None) -> str:
    """Return a win rate with everything needed to quote it, in aligned lines.

    Args:
        scores: The summary of a judge's preferences.
        corrected: The win rate corrected by people's votes; None without votes.
    """
    lengths, consistency, position = scores.mean_length, scores.consistency, scores.position
    counts = [f"{scores.total} pairs joined by {scores.joined_by}, {scores.failures} failed"]
    alone = ((scores.first, scores.without_counterpart.first), (scores.second, scores.without_counterpart.second))
    counts += [f"{count} of {name} without a counterpart" for name, count in alone if count]
    verdicts = f"won {scores.wins}, tied {scores.ties}, lost {scores.losses}"
    means = f"mean length {lengths.first:.0f} and {lengths.second:.0f} characters"
    table = [["win rate", _percent(scores.win_rate), f"{_describe(scores.win_rate_interval)}; {verdicts}"]]
    if corrected:
        interval = f"{FEWEST} votes are needed" if corrected.n < FEWEST else _describe(corrected.interval)
        voted = f"votes on {corrected.n} of {corrected.total} pairs"
        table.append(["win rate, corrected by people", _percent(corrected.mean), f"{interval}; {voted}"])
    interval = _describe(scores.length_controlled_win_rate_interval)
    table.append(["win rate at equal length", _percent(scores.length_controlled_win_rate), f"{interval}; {means}"])
    if scores.failures:
        table.append(
            ["with every failure", "", f"lost or won: {_percent(scores.lowest)} to {_percent(scores.highest)}"]
        )
    same = f"of {consistency.pairs} pairs; the others are ties"
    fair = f"of {position.first + position.second} verdicts without ties; fair is 50.0 %"
    table += [
        ["same verdict in both orders", _percent(consistency.share), same],
        ["shown first and preferred", _percent(position.first_share), fair],
    ]
    names, judge = f"{scores.first} against {scores.second}", f"judge {label_judge(scores.judge, scores.rubric)}"
    return "\n".join([names, "; ".join(counts), "", *align(table, right={1}), judge, *_find_notes(scores)])


def _find_notes(scores: PairSummary) -> list[str]:
    """Return notes to read before quoting the win rate."""
    notes = []
    if scores.identical:
        notes.append(f"{scores.identical} pairs of identical answers count as ties without asking the judge.")
    if scores.win_rate_interval and scores.win_rate_interval.spans(0.5):
        notes.append("No difference shown: the interval of the win rate contains 50 %.")
    if scores.one_sided_lengths:
        sides = (scores.second, scores.first)
        shorter, longer = sides if scores.mean_length.first > scores.mean_length.second else sides[::-1]
        notes.append(
            f"Too few answers of {shorter} (under {FEWEST}, or 10 %) are as long as those of {longer} to estimate "
            "the win rate at equal length: whatever length can explain is attributed to length, and there is no "
            "interval."
        )
    notes += find_pair_problems(scores)
    return [f"! {note}" for note in notes]


def _describe(interval: Interval | None) -> str:
    return f"95 % interval {100 * interval.low:.1f} to {_percent(interval.high)}" if interval else "no interval"


def _percent(fraction: float | None) -> str:
    return "none" if fraction is None else f"{100 * fraction:.1f} %"
