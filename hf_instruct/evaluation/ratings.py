"""Bradley–Terry ratings of several sets of answers, from preferences between them."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.console import align
from hf_instruct.errors import DataError, quote_names
from hf_instruct.evaluation.intervals import estimate
from hf_instruct.evaluation.verdict_table import load_preferences
from hf_instruct.schema import Interval, Preference

if TYPE_CHECKING:
    import numpy
    import pandas

# Prior standard deviation of a rating, in nats: 10 is 1,737 points. It keeps the rating of a run that won everything
# finite, and changes a rating by less than 0.1 points if 100 comparisons went 75 to 25.
_RATING_PRIOR = 10.0
_MEAN_RATING = 1000.0
# Odds of ten to one are 400 points, as in chess.
_POINTS_PER_NAT = 400 / math.log(10)


@dataclasses.dataclass(frozen=True)
class Rating:
    """One set of responses on the common scale."""

    name: str  # name of the set of responses
    rating: float  # in points; the mean over all sets is 1000, and 100 points more win 64 % of the time
    interval: Interval | None  # 95 % bootstrap interval over examples; None if there are too few examples
    comparisons: int  # verdicts that compare it with another set
    wins: int  # verdicts for it
    ties: int  # verdicts for neither
    losses: int  # verdicts for the other


@dataclasses.dataclass(frozen=True)
class RatingTable:
    """The ratings of several sets of answers."""

    ratings: list[Rating]  # best first
    judges: list[str]  # labels of the judges
    verdicts: int  # preferences that the ratings are computed from
    failures: int  # preferences without a verdict, which are left out
    examples: int  # distinct examples among the verdicts
    notices: list[str]  # caveats, a sentence each

    def to_dict(self) -> dict[str, Any]:
        """Return the table as plain values, for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        by = self.judges[0] if len(self.judges) == 1 else f"{len(self.judges)} judges"
        table = [["answers", "rating", "95 % interval", "verdicts", "wins", "ties", "losses"]]
        for row in self.ratings:
            interval = f"{row.interval.low:.0f} to {row.interval.high:.0f}" if row.interval else "none"
            counts = map(str, (row.comparisons, row.wins, row.ties, row.losses))
            table.append([row.name, f"{row.rating:.0f}", interval, *counts])
        lines = [
            f"{self.verdicts} verdicts on {self.examples} examples, {self.failures} failed; {by}",
            "",
            *align(table, right={1, 3, 4, 5, 6}),
            "",
            "The mean is 1000; 100 points more are preferred 64 % of the time, 200 points more 76 %.",
        ]
        return "\n".join([*lines, *(f"! {notice}" for notice in self.notices)])


def rate_preferences(
    sources: Iterable[Path | str | Preference], *, force: bool = False, resamples: int = 1000
) -> RatingTable:
    """Return the Bradley–Terry ratings of all sets of answers that preferences compare.

    Args:
        sources: Run folders, files of preferences or votes, and `Preference` rows.
        force: Combine the preferences of different judges, or of judges and people; the table then has a note.
        resamples: Bootstrap draws for the intervals.

    Raises:
        DataError: A file cannot be read, judges differ, or the sets are not all connected by comparisons.

    >>> from hf_instruct.schema import JudgeIdentity
    >>> known = {"first": "a", "second": "b", "judge": JudgeIdentity(), "rubric": "", "orders": [], "replies": []}
    >>> lengths = {"first_length": 0, "second_length": 0}
    >>> rows = [Preference(id=str(i), score=float(i < 3), **known, **lengths) for i in range(4)]
    >>> [(row.name, round(row.rating), row.wins, row.losses) for row in rate_preferences(rows, resamples=1).ratings]
    [('a', 1095, 3, 1), ('b', 905, 1, 3)]
    """
    rows = load_preferences(sources)
    judges = _list_judges(rows)
    if len(judges) > 1 and not force:
        raise DataError(
            f"The preferences are by {len(judges)} different judges, which may prefer different answers. Use the "
            "files of one of them, or combine them with `--force`:",
            judges,
        )
    is_itself, has_verdict = rows["first"] == rows["second"], rows["score"].notna()
    kept = rows[has_verdict & ~is_itself]
    ratings = bradley_terry(kept, resamples=resamples)
    notices = []
    if is_itself.any():
        notices.append(f"{is_itself.sum()} preferences compare a set with itself and are left out.")
    if len(judges) > 1:
        notices.append(f"{len(judges)} different judges are combined (`--force`): " + "; ".join(judges) + ".")
    for rating in ratings:
        if rating.comparisons in (rating.wins, rating.losses):
            what, side = ("won", "high") if rating.wins else ("lost", "low")
            notices.append(
                f"{rating.name} {what} every comparison: its rating has no limit in that direction, and how {side} "
                "it is only depends on the prior."
            )
    failures = int((~has_verdict).sum())
    return RatingTable(ratings, judges, len(kept), failures, kept["id"].nunique(), notices)


def _list_judges(rows: "pandas.DataFrame") -> list[str]:
    """Return labels of the judges; all people together have one."""
    people = sorted(rows.loc[rows["is_person"], "model"].unique())
    more = f" and {len(people) - 3} more" if len(people) > 3 else ""
    judges = [f"people ({', '.join(people[:3])}{more})"] if people else []
    for name, options in rows[~rows["is_person"]].groupby("judge", sort=False)["options"].unique().items():
        # Judges with the same label differ in their options.
        judges += [f"{name}, options {each}" for each in options] if len(options) > 1 else [str(name)]
    return judges


def fit_logistic(columns: "numpy.ndarray", wins: "numpy.ndarray", losses: "numpy.ndarray") -> "numpy.ndarray":
    """Return the coefficients, [features], of a ridge logistic regression without a free intercept.

    Args:
        columns: Features of each row, [rows, features], each multiplied by its prior standard deviation.
        wins: Weight of the outcome 1 in each row, [rows].
        losses: Weight of the outcome 0 in each row, [rows].
    """
    import numpy
    from scipy.special import expit, log_expit

    def loss(beta: "numpy.ndarray") -> float:
        odds = columns @ beta
        return float(beta @ beta / 2 - wins @ log_expit(odds) - losses @ log_expit(-odds))

    # Newton's method: one interval needs thousands of these fits, and scikit-learn spends most of its time on checks.
    weights, beta = wins + losses, numpy.zeros(columns.shape[1])
    for _ in range(100):
        shares = expit(columns @ beta)
        gradient = beta + columns.T @ (weights * shares - wins)
        curvature = numpy.eye(len(beta)) + (columns.T * (weights * shares * (1 - shares))) @ columns
        step = numpy.linalg.solve(curvature, gradient)
        while loss(beta - step) > loss(beta) + 1e-9:
            step /= 2
        beta = beta - step
        if abs(step).max() < 1e-8:
            break
    return beta


def bradley_terry(table: "pandas.DataFrame", *, resamples: int = 1000) -> list[Rating]:
    """Return the ratings of all sets of responses in the preferences, best first.

    In the Bradley–Terry model a set with rating a is preferred to one with rating b with probability 1 / (1 + 10^((b -
    a) / 400)); the ratings are the most likely ones under a wide normal prior. A tie is half a win for each. For the
    intervals, examples are drawn with all of their comparisons, because a hard example is the same for every set.

    Source: Bradley and Terry, Rank Analysis of Incomplete Block Designs, Biometrika 39, 1952. Fitted as a logistic
    regression, as in https://github.com/lm-sys/FastChat/blob/0e6d3e4/fastchat/serve/monitor/elo_analysis.py

    Args:
        table: Verdicts between different sets, as returned by `tabulate_preferences`.
        resamples: Bootstrap draws for the intervals.

    Raises:
        DataError: There is no verdict, or the sets fall into groups without a comparison between them.
    """
    import numpy

    names = sorted({*table["first"], *table["second"]})
    examples, ids = table["id"].factorize()
    # For each verdict, [verdicts]: its pair, and the score of the first set in that pair.
    pairs, pair = numpy.unique(numpy.searchsorted(names, table[["first", "second"]]), axis=0, return_inverse=True)
    won = table["score"].to_numpy()
    # [pairs, sets]: 1 for the pair's first, -1 for its second.
    columns = numpy.eye(len(names))[pairs[:, 0]] - numpy.eye(len(names))[pairs[:, 1]]
    _check_groups(names, columns)

    def rate(drawn: "numpy.ndarray") -> "numpy.ndarray":
        """Return the ratings, [sets], from the examples at these indices; NaN if they do not connect all sets."""
        times = numpy.bincount(drawn, minlength=len(ids))[examples]
        wins, losses = (numpy.bincount(pair, times * share, minlength=len(pairs)) for share in (won, 1 - won))
        if _group(columns[wins + losses > 0]).max():
            return numpy.full(len(names), numpy.nan)
        strengths = _RATING_PRIOR * fit_logistic(_RATING_PRIOR * columns, wins, losses)
        ratings: numpy.ndarray = _MEAN_RATING + _POINTS_PER_NAT * (strengths - strengths.mean())
        return ratings

    rows = []
    for name, (rating, interval) in zip(names, estimate(rate, len(ids), resamples=resamples), strict=True):
        assert rating is not None
        scores = [*table["score"][table["first"] == name], *(1 - table["score"][table["second"] == name])]
        rows.append(Rating(name, rating, interval, len(scores), *(scores.count(score) for score in (1, 0.5, 0))))
    return sorted(rows, key=lambda row: (-row.rating, row.name))


def _check_groups(names: Sequence[str], columns: "numpy.ndarray") -> None:
    """Refuse sets that are not connected by comparisons; see `_group` for `columns`."""
    if not names:
        raise DataError(
            "No verdict compares two different sets of responses, so there is nothing to rate. Run `hf-instruct "
            "judge pairwise RUN --baseline RUN` first."
        )
    groups = _group(columns)
    if groups.max():
        parts = [[name for name, part in zip(names, groups, strict=True) if part == group] for group in set(groups)]
        listed = "; ".join(map(quote_names, sorted(parts, key=lambda part: (-len(part), part))))
        raise DataError(
            f"The {len(names)} sets of responses fall into {len(parts)} groups without a comparison between them: "
            f"{listed}. Ratings need a chain of comparisons between all sets; judge a pair across the groups with "
            "`hf-instruct judge pairwise RUN --baseline RUN`, or rate each group separately."
        )


def _group(columns: "numpy.ndarray") -> "numpy.ndarray":
    """Return the group of each set, [sets], numbered from 0: sets that comparisons connect are in one group.

    Args:
        columns: Pairs of compared sets, [pairs, sets]: 1 for one set, -1 for the other and 0 for the rest.
    """
    from scipy.sparse.csgraph import connected_components

    groups: numpy.ndarray = connected_components(columns.T @ columns, directed=False)[1]
    return groups
