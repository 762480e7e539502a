"""What the preferences between two sets of answers amount to: numbers in, numbers and a few lines of text out."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from hf_instruct.evaluation.pairing import JoinedPairs, is_identical
from hf_instruct.evaluation.pairs import RUBRIC, RUBRIC_SHA256
from hf_instruct.evaluation.ratings import WinRate, length_controlled_win_rate, win_rate
from hf_instruct.evaluation.scores import format_judge
from hf_instruct.records import Preference

_SHOWN_DIGEST_CHARACTERS = 7
# Below this share of pairs judged alike in both orders, most of what a win rate shows is the order.
_CONSISTENT_ENOUGH = 0.5


def build_pair_scores(
    preferences: Sequence[Preference], *, names: tuple[str, str], joined: JoinedPairs, judge: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the summary of the preferences between two sets of answers.

    Win rates are fractions of the first set's wins, ties half, over the `n` pairs with a verdict. `consistency` and
    `position` are over what the judge was asked, so without identical answers; `position.first_share` is the share of
    the answer shown first among verdicts that are not ties, one half for a judge without a liking for a place.

    Args:
        preferences: One for each pair.
        names: Of the first and the second set.
        joined: How the sets were joined.
        judge: The judge's identity.
    """
    scores = [row.score for row in preferences if row.score is not None]
    n, total = len(scores), len(preferences)
    equal = win_rate(preferences), length_controlled_win_rate(preferences)
    return {
        "first": names[0],
        "second": names[1],
        **_plain("win_rate", equal[0]),
        "lowest": sum(scores) / total if total else None,
        "highest": (sum(scores) + total - n) / total if total else None,
        **_plain("length_controlled_win_rate", equal[1]),
        "one_sided_lengths": equal[1].one_sided if equal[1] else None,
        "mean_length": {
            "first": sum(row.first_length for row in preferences) / total,
            "second": sum(row.second_length for row in preferences) / total,
        },
        "n": n,
        "failures": total - n,
        "total": total,
        "wins": scores.count(1),
        "ties": scores.count(0.5),
        "losses": scores.count(0),
        "identical": sum(is_identical(row) for row in preferences),
        **_measure_orders(preferences),
        "joined_by": joined.by,
        "without_counterpart": {"first": joined.first_alone, "second": joined.second_alone},
        "judge": dict(judge),
        "rubric": {"name": RUBRIC, "sha256": RUBRIC_SHA256},
        "prompts_sha256": hashlib.sha256("\n".join(row.prompt_sha256 for row in preferences).encode()).hexdigest(),
        "seconds": round(sum(row.seconds for row in preferences), 3),
    }


def _plain(name: str, rate: WinRate | None) -> dict[str, Any]:
    interval = list(rate.interval) if rate and rate.interval else None
    return {name: rate.rate if rate else None, f"{name}_interval": interval}


def _measure_orders(preferences: Sequence[Preference]) -> dict[str, Any]:
    """Return how often both orders gave one verdict, and how often the answer shown first was preferred."""
    asked = [row.orders for row in preferences if not is_identical(row) and len(row.orders) == 2]
    both = [orders for orders in asked if None not in orders]
    same = sum(one == two for one, two in both)
    # The score of the answer shown first: in the second order that is the second answer.
    places = [
        score if place == 0 else 1 - score for row in asked for place, score in enumerate(row) if score is not None
    ]
    first, second = places.count(1), places.count(0)
    return {
        "consistency": {"share": same / len(both) if both else None, "pairs": len(both)},
        "position": {
            "first": first,
            "second": second,
            "ties": places.count(0.5),
            "first_share": first / (first + second) if first + second else None,
        },
    }


def format_pair_scores(scores: Mapping[str, Any]) -> str:
    """Return a win rate with everything that it should not be quoted without, in aligned lines."""
    alone = scores["without_counterpart"]
    counts = f"{scores['total']} pairs joined by {scores['joined_by']}, {scores['failures']} failed"
    dropped = [f"{count} of {scores[side]} without a counterpart" for side, count in alone.items() if count]
    lines = [f"{scores['first']} against {scores['second']}", "; ".join((counts, *dropped)), ""]
    lines += _format_rates(scores)
    consistency, position = scores["consistency"], scores["position"]
    lines.append(
        f"{'same verdict in both orders':<29}{_percent(consistency['share']):>8}   of {consistency['pairs']} pairs; "
        "the others are ties"
    )
    lines.append(
        f"{'shown first and preferred':<29}{_percent(position['first_share']):>8}   of "
        f"{position['first'] + position['second']} verdicts that are no tie; fair is 50.0 %"
    )
    rubric = f"{scores['rubric']['name']}@{scores['rubric']['sha256'][:_SHOWN_DIGEST_CHARACTERS]}"
    return "\n".join([*lines, f"judge {format_judge(scores['judge'])}, rubric {rubric}", *_find_notes(scores)])


def _format_rates(scores: Mapping[str, Any]) -> list[str]:
    lengths = scores["mean_length"]
    verdicts = f"won {scores['wins']}, tied {scores['ties']}, lost {scores['losses']}"
    shown = f"mean length {lengths['first']:.0f} and {lengths['second']:.0f} characters"
    lines = []
    for title, name, note in (
        ("win rate", "win_rate", verdicts),
        ("win rate at equal length", "length_controlled_win_rate", shown),
    ):
        ends = scores[f"{name}_interval"]
        interval = f"95 % interval {100 * ends[0]:.1f} to {_percent(ends[1])}" if ends else "no interval"
        lines.append(f"{title:<29}{_percent(scores[name]):>8}   {interval}; {note}")
    if scores["failures"] and scores["total"]:
        bounds = f"{_percent(scores['lowest'])} to {_percent(scores['highest'])}"
        lines.append(f"{'with every failure':<29}{'':>8}   lost or won: {bounds}")
    return lines


def _find_notes(scores: Mapping[str, Any]) -> list[str]:
    """Return what a reader should know before quoting the win rate."""
    notes = []
    if scores["identical"]:
        notes.append(f"{scores['identical']} pairs of identical answers count as ties; the judge was not asked.")
    ends = scores["win_rate_interval"]
    if ends and ends[0] <= 0.5 <= ends[1]:
        notes.append("No difference shown: the interval of the win rate spans 50 %.")
    if scores["one_sided_lengths"]:
        longer = "first" if scores["mean_length"]["first"] > scores["mean_length"]["second"] else "second"
        notes.append(
            f"Every answer of {scores[longer]} is the longer one, so no pair shows what equal lengths would give; what "
            "length can explain is put down to length."
        )
    share = scores["consistency"]["share"]
    if share is not None and share < _CONSISTENT_ENOUGH:
        notes.append("The judge mostly contradicts itself when the order changes: its win rate says little.")
    return [f"! {note}" for note in notes]


def _percent(fraction: float | None) -> str:
    return "none" if fraction is None else f"{100 * fraction:.1f} %"
