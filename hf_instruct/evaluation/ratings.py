"""Bradley–Terry ratings of several sets of answers, by the preferences between them."""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from os.path import normpath
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_instruct.console import align
from hf_instruct.errors import DataError, quote_names
from hf_instruct.evaluation.intervals import estimate
from hf_instruct.evaluation.verdict_table import PERSON, describe_judge, load_preferences
from hf_instruct.schema import Interval, Preference

if TYPE_CHECKING:
    import numpy
    import pandas

# Prior standard deviation of a rating, in nats: 10 is 1,737 points. It keeps a run that won everything finite, and
# moves a rating by less than 0.1 point where 100 comparisons went 75 to 25.
_RATING_PRIOR = 10.0
_MEAN_RATING = 1000.0
# Ten to one is 400 points, as in chess.
_POINTS_PER_NAT = 400 / math.log(10)


class Rating(NamedTuple):
    """One set of responses on the common scale.

    Attributes:
        name: Of the set of responses.
        rating: In points; the mean over all sets is 1000, and 100 points more win 64 % of the time.
        interval: Its 95 % bootstrap interval over examples; None where the examples are too few.
        comparisons: Verdicts that it was part of.
        wins: Those for it.
        ties: Those for neither.
        losses: Those for the other.
    """

    name: str
    rating: float
    interval: Interval | None
    comparisons: int
    wins: int
    ties: int
    losses: int


@dataclasses.dataclass(frozen=True)
class RatingTable:
    """The ratings of several sets of answers.

    Attributes:
        ratings: Best first.
        judges: Who preferred, in words; more than one only where that was forced.
        verdicts: Preferences that the ratings are by.
        failures: Preferences without a verdict, which are left out.
        examples: Different examples among the verdicts.
        notices: What a reader should know.
    """

    ratings: list[Rating]
    judges: list[str]
    verdicts: int
    failures: int
    examples: int
    notices: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the table as plain values, for JSON."""
        return {**dataclasses.asdict(self), "ratings": [row._asdict() for row in self.ratings]}

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
            "Mean 1000; 100 points more are preferred 64 % of the time, 200 points more 76 %.",
        ]
        return "\n".join([*lines, *(f"! {notice}" for notice in self.notices)])


def rate_preferences(
    sources: Iterable[Path | str | Preference], *, force: bool = False, resamples: int = 1000
) -> RatingTable:
    """Return the Bradley–Terry ratings of all sets of answers that preferences compare.

    Args:
        sources: Run folders, files of preferences or votes, and `Preference` rows.
        force: Put together the preferences of different judges, or of judges and people; the table then says so.
        resamples: Bootstrap draws for the intervals.

    Raises:
        DataError: A file cannot be read, judges differ, or the sets are not all joined by comparisons.
    """
    rows = [
        row.model_copy(update={"first": normpath(row.first), "second": normpath(row.second)})
        for row in load_preferences(sources)
    ]
    judges = _list_judges(rows)
    if len(judges) > 1 and not force:
        raise DataError(
            f"The preferences are by {len(judges)} different judges, whose tastes may differ. Name the files of one of "
            "them, or put them together with `--force`:",
            judges,
        )
    itself = sum(row.first == row.second for row in rows)
    kept = [row for row in rows if row.score is not None and row.first != row.second]
    ratings = bradley_terry(kept, resamples=resamples)
    notices = [f"{itself} preferences compare a set with itself and are left out."] if itself else []
    if len(judges) > 1:
        notices.append(f"{len(judges)} different judges are put together (`--force`): " + "; ".join(judges) + ".")
    for rating in ratings:
        if rating.comparisons in (rating.wins, rating.losses):
            what, side = ("won", "high") if rating.wins else ("lost", "low")
            notices.append(
                f"{rating.name} {what} every comparison: its rating could be any further that way, and how {side} it "
                "stands is the doing of the prior."
            )
    failures = sum(row.score is None for row in rows)
    return RatingTable(ratings, judges, len(kept), failures, len({row.id for row in kept}), notices)


def _list_judges(rows: Sequence[Preference]) -> list[str]:
    """Return those who preferred, in words; all people are one."""
    people = sorted({row.judge.model for row in rows if row.judge.backend == PERSON})
    more = f" and {len(people) - 3} more" if len(people) > 3 else ""
    judges = {f"people ({', '.join(people[:3])}{more})": 1} if people else {}
    seen: dict[str, set[str]] = {}
    for row in rows:
        if row.judge.backend != PERSON:
            options = {name: value for name, value in row.judge.options.items() if name != "equal_answers"}
            seen.setdefault(describe_judge(row.judge, row.rubric), set()).add(json.dumps(options, sort_keys=True))
    # Two that read alike differ in their options.
    return [*judges, *(f"{text}, options {each}" if len(o) > 1 else text for text, o in seen.items() for each in o)]


def fit_logistic(columns: "numpy.ndarray", wins: "numpy.ndarray", losses: "numpy.ndarray") -> "numpy.ndarray":
    """Return the coefficients, [features], of a ridge logistic regression without a free intercept.

    Args:
        columns: Features of each row, [rows, features], each in units of its prior standard deviation.
        wins: Weight of the outcome 1 in each row, [rows].
        losses: Weight of the outcome 0 in each row, [rows].
    """
    import numpy
    from scipy.special import expit, log_expit

    def loss(found: "numpy.ndarray") -> float:
        odds = columns @ found
        return float(found @ found / 2 - wins @ log_expit(odds) - losses @ log_expit(-odds))

    # Newton's method: thousands of these fits are for one interval, where scikit-learn's checks took most of the time.
    weights, found = wins + losses, numpy.zeros(columns.shape[1])
    for _ in range(100):
        shares = expit(columns @ found)
        gradient = found + columns.T @ (weights * shares - wins)
        curvature = numpy.eye(len(found)) + (columns.T * (weights * shares * (1 - shares))) @ columns
        step = numpy.linalg.solve(curvature, gradient)
        while loss(found - step) > loss(found) + 1e-9:
            step /= 2
        found = found - step
        if abs(step).max() < 1e-8:
            break
    return found


def bradley_terry(preferences: Sequence[Preference], *, resamples: int = 1000) -> list[Rating]:
    """Return the ratings of all sets of responses in the preferences, best first.

    In the Bradley–Terry model a set with rating a is preferred to one with rating b with probability
    1 / (1 + 10^((b - a) / 400)); the ratings are the likeliest ones under a wide normal prior. A tie is half a win for
    each. Intervals draw examples with all of their comparisons, because the same hard example meets every set.

    Source: Bradley and Terry, Rank Analysis of Incomplete Block Designs, Biometrika 39, 1952. Fitted as a logistic
    regression, as in https://github.com/lm-sys/FastChat/blob/0e6d3e4/fastchat/serve/monitor/elo_analysis.py

    Args:
        preferences: Of any pairs of sets. Those without a verdict, and those of a set with itself, are left out.
        resamples: Bootstrap draws for the intervals.

    Raises:
        DataError: There is no verdict between two sets, or the sets fall into groups without a comparison between them.

    >>> from hf_instruct.schema import JudgeIdentity
    >>> known = {"first": "a", "second": "b", "judge": JudgeIdentity(), "rubric": "", "orders": [], "replies": []}
    >>> lengths = {"first_length": 0, "second_length": 0}
    >>> rows = [Preference(id=str(i), score=float(i < 3), **known, **lengths) for i in range(4)]
    >>> [(row.name, round(row.rating), row.wins, row.losses) for row in bradley_terry(rows, resamples=1)]
    [('a', 1095, 3, 1), ('b', 905, 1, 3)]
    """
    import numpy
    import pandas

    frame = pandas.DataFrame(
        [(row.id, row.first, row.second, row.score) for row in preferences if row.first != row.second],
        columns=["id", "first", "second", "score"],
    ).dropna()
    if frame.empty:
        raise DataError(
            "No verdict compares two different sets of responses, so there is nothing to rate. "
            "`hf-instruct judge pairwise RUN --baseline RUN` makes such verdicts."
        )
    names = sorted({*frame["first"], *frame["second"]})
    games = _Games(frame, names)
    groups = games.group(numpy.ones(len(games.pairs), dtype=bool))
    if groups.max():
        parts = [[name for name, own in zip(names, groups, strict=True) if own == group] for group in set(groups)]
        listed = "; ".join(map(quote_names, sorted(parts, key=lambda part: (-len(part), part))))
        raise DataError(
            f"The {len(names)} sets of responses fall into {len(parts)} groups without a comparison between them: "
            f"{listed}. Ratings need a chain of comparisons from each set to each; judge a pair across the groups with "
            "`hf-instruct judge pairwise RUN --baseline RUN`, or rate each group alone."
        )
    found = []
    for name, (rating, interval) in zip(
        names, estimate(games.rate, games.num_examples, resamples=resamples), strict=True
    ):
        assert rating is not None
        won = [*frame["score"][frame["first"] == name], *(1 - frame["score"][frame["second"] == name])]
        counts = [won.count(score) for score in (1, 0.5, 0)]
        found.append(Rating(name, rating, interval, len(won), *counts))
    return sorted(found, key=lambda row: (-row.rating, row.name))


class _Games:
    """Verdicts between sets, so that the ratings of any examples are a few array operations away.

    Args:
        frame: Verdicts: `id`, `first`, `second`, `score`.
        names: The sets, sorted; ratings are in their order.
    """

    def __init__(self, frame: "pandas.DataFrame", names: Sequence[str]) -> None:
        import numpy

        self._examples, ids = frame["id"].factorize()
        self.num_examples = len(ids)
        sides = numpy.stack([numpy.searchsorted(names, frame[side]) for side in ("first", "second")], axis=1)
        # [pairs, 2]: the two sets of a pair. Of each verdict [verdicts]: its pair, and the win of that pair's first.
        self.pairs, self._pair = numpy.unique(sides, axis=0, return_inverse=True)
        self._won = frame["score"].to_numpy()
        # [pairs, sets]: 1 for the pair's first, -1 for its second.
        self._columns = numpy.eye(len(names))[self.pairs[:, 0]] - numpy.eye(len(names))[self.pairs[:, 1]]

    def group(self, met: "numpy.ndarray") -> "numpy.ndarray":
        """Return the number, [sets], of the group that each set is joined to by the pairs that met, [pairs]."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        size = self._columns.shape[1]
        graph = coo_array((met[met], tuple(self.pairs[met].T)), shape=(size, size))
        groups: numpy.ndarray = connected_components(graph, directed=False)[1]
        return groups

    def rate(self, drawn: "numpy.ndarray") -> "numpy.ndarray":
        """Return the ratings, [sets], by the examples at the given positions; NaN where these do not join all sets."""
        import numpy

        times = numpy.bincount(drawn, minlength=self.num_examples)[self._examples]
        wins, losses = (
            numpy.bincount(self._pair, weights=times * won, minlength=len(self.pairs))
            for won in (self._won, 1 - self._won)
        )
        if self.group(wins + losses > 0).max():
            return numpy.full(self._columns.shape[1], numpy.nan)
        strengths = _RATING_PRIOR * fit_logistic(_RATING_PRIOR * self._columns, wins, losses)
        ratings: numpy.ndarray = _MEAN_RATING + _POINTS_PER_NAT * (strengths - strengths.mean())
        return ratings
