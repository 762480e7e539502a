"""How far two judges, or a judge and people, agree: numbers with intervals over the examples that both judged."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_instruct.console import format_points, format_signed
from hf_instruct.errors import DataError
from hf_instruct.evaluation.intervals import Interval, bootstrap_mean, bootstrap_statistic, share_interval
from hf_instruct.evaluation.verdict_files import PREFERENCES, SCORES, Key, Verdicts, build_verdicts

if TYPE_CHECKING:
    import numpy

# Scores of 0 to 100 that differ by no more than this are called alike.
NEAR = 10
LABELS = ("loss", "tie", "win")
# Below this an interval from resampling is too narrow.
_FEW = 20


class Estimate(NamedTuple):
    """A number and its 95 % interval; None where the examples do not define it."""

    value: float | None
    interval: Interval | None


class Side(NamedTuple):
    """One of the two whose agreement is measured.

    Attributes:
        name: Its file.
        judge: Who judged, in words; empty where unknown.
        total: Examples it has.
        failed: Of these, how many without a verdict.
        alone: Of these, how many the other side does not have.
        mean: Mean score over the examples both have a verdict on, in points; None for preferences.
    """

    name: str
    judge: str
    total: int
    failed: int
    alone: int
    mean: float | None


@dataclasses.dataclass(frozen=True)
class Agreement:
    """The agreement of two sets of verdicts.

    Attributes:
        kind: `scores` or `preferences`.
        first, second: The two sides.
        joined_by: `id` or `order`.
        n: Examples that both have a verdict on.
        estimates: By name. Of scores: `pearson`, `spearman`, `kendall` (tau-b), from -1 to 1; `mean_difference` (second
            less first) and `mean_absolute_difference`, in points; `within_10`, a fraction. Of preferences: `agreement`,
            a fraction; `kappa` (Cohen's), at most 1.
        counts: For preferences: how often first and second say `loss`, `tie` and `win`, [first, second].
        notices: What a reader should know.
    """

    kind: str
    first: Side
    second: Side
    joined_by: str
    n: int
    estimates: Mapping[str, Estimate]
    counts: tuple[tuple[int, ...], ...]
    notices: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the agreement as plain values, for JSON."""
        estimates = {
            name: {"value": value, "interval": list(interval) if interval else None}
            for name, (value, interval) in self.estimates.items()
        }
        plain = dataclasses.asdict(self) | {"estimates": estimates}
        plain |= {"first": self.first._asdict(), "second": self.second._asdict(), "notices": list(self.notices)}
        return plain | {"counts": [list(row) for row in self.counts] or None}

    def __str__(self) -> str:
        return "\n".join(_format_lines(self))


def measure_agreement(first: Any, second: Any, *, seed: int = 0) -> Agreement:
    """Return how far two judges, or a judge and people, agree on the same answers.

    Args:
        first: A run folder or a file of verdicts (a path), a list of numbers, a mapping of ids to numbers, or
            `Judgment` or `Preference` rows.
        second: The other, of the same kind.
        seed: Of the resampling behind the intervals.

    Raises:
        DataError: A side cannot be read, one has scores and the other preferences, or fewer than two examples have a
            verdict of both.

    >>> agreement = measure_agreement([10, 50, 90], [20, 40, 95])
    >>> agreement.n, agreement.estimates["spearman"].value, agreement.estimates["mean_difference"].value
    (3, 1.0, 1.6666666666666667)
    """
    return compare_verdicts(build_verdicts(first, "A"), build_verdicts(second, "B"), seed=seed)


def compare_verdicts(first: Verdicts, second: Verdicts, *, seed: int = 0) -> Agreement:
    """Return the agreement of verdicts that are read already; see `measure_agreement`.

    Raises:
        DataError: As there.
    """
    import numpy

    if first.kind != second.kind:
        raise DataError(
            f"`{first.name}` holds {first.kind} and `{second.name}` {second.kind}; give two files of the same kind."
        )
    second, flipped = _orient(second, first)
    keys = _join(first, second)
    pairs = [(one, two) for key in keys if None not in (one := first.values[key], two := second.values[key])]
    if len(pairs) < 2:
        raise DataError(
            f"`{first.name}` and `{second.name}` share {len(keys)} examples, {len(pairs)} of them with a verdict on "
            "both sides; agreement takes at least 2."
        )
    a, b = numpy.array(pairs, dtype=float).T
    scored = first.kind == SCORES
    sides = _describe(first, keys, a if scored else None), _describe(second, keys, b if scored else None)
    counts: tuple[tuple[int, ...], ...] = ()
    notices = [*first.notices, *second.notices, *_find_notices(first, second, keys)]
    if flipped:
        notices.append(f"{second.name} names the two sets the other way round; its wins are counted as losses.")
    if len(pairs) < _FEW:
        notices.append(f"Only {len(pairs)} examples: the intervals are too narrow, and the numbers say little.")
    if scored:
        notices += _find_scale_notices(sides, a, b)
        estimates = _measure_scores(a, b, seed)
    else:
        counts = _count_labels(a, b)
        estimates = _measure_preferences(a, b, seed)
        if estimates["kappa"].value is None:
            notices.append("Both say one and the same thing throughout, so kappa is not defined.")
    joined_by = "id" if first.keyed else "order"
    return Agreement(first.kind, *sides, joined_by, len(pairs), estimates, counts, tuple(notices))


def _orient(verdicts: Verdicts, like: Verdicts) -> tuple[Verdicts, bool]:
    """Return preferences that count for the first set of each pair as `like` does, and whether any were turned."""
    turned = {(two, one) for one, two in like.pairs} & set(verdicts.pairs)
    if not turned:
        return verdicts, False
    values: dict[Key, float | None] = {}
    for key, value in verdicts.values.items():
        if isinstance(key, tuple) and key[1:] in turned:
            values[(key[0], key[2], key[1])] = value if value is None else 1 - value
        else:
            values[key] = value
    pairs = tuple((pair[1], pair[0]) if pair in turned else pair for pair in verdicts.pairs)
    return dataclasses.replace(verdicts, values=values, pairs=pairs), True


def _join(first: Verdicts, second: Verdicts) -> list[Key]:
    """Return the keys that both have, in the first's order.

    Raises:
        DataError: They cannot be joined, or have none in common.
    """
    if first.keyed != second.keyed:
        with_ids, without = (first, second) if first.keyed else (second, first)
        raise DataError(
            f"`{with_ids.name}` has ids and `{without.name}` has none; give both ids, or two lists in the same order."
        )
    if not first.keyed and len(first.values) != len(second.values):
        raise DataError(
            f"`{first.name}` has {len(first.values)} scores and `{second.name}` {len(second.values)}, without ids to "
            "join them by; give ids, or lists of the same length and order."
        )
    keys = [key for key in first.values if key in second.values]
    if keys:
        return keys
    if first.kind == PREFERENCES and not set(first.pairs) & set(second.pairs):
        one, two = (" and ".join(f"`{a}` with `{b}`" for a, b in side.pairs) for side in (first, second))
        raise DataError(f"`{first.name}` compares {one}, `{second.name}` {two}; name two files on the same pair.")
    one, two = (_show_id(next(iter(side.values))) for side in (first, second))
    raise DataError(
        f"`{first.name}` and `{second.name}` have no id in common (the first are {one} and {two}); name verdicts on "
        "the same examples."
    )


def _show_id(key: Key) -> str:
    return f"`{key[0] if isinstance(key, tuple) else key}`"


def _describe(verdicts: Verdicts, keys: Sequence[Key], values: "numpy.ndarray | None") -> Side:
    total = len(verdicts.values)
    failed = sum(value is None for value in verdicts.values.values())
    mean = None if values is None else float(values.mean())
    return Side(verdicts.name, verdicts.judge, total, failed, total - len(keys), mean)


def _find_notices(first: Verdicts, second: Verdicts, keys: Sequence[Key]) -> list[str]:
    if first.answers is None or second.answers is None:
        return []
    different = sum(first.answers.get(str(key)) != second.answers.get(str(key)) for key in keys)
    if not different:
        return []
    return [
        f"The answers differ in {different} of {len(keys)} examples: these are verdicts on other answers, not two "
        "opinions on the same ones."
    ]


def _find_scale_notices(sides: Sequence[Side], a: "numpy.ndarray", b: "numpy.ndarray") -> list[str]:
    notices = []
    for side, values in zip(sides, (a, b), strict=True):
        if values.min() == values.max():
            notices.append(f"{side.name} gives {values[0]:g} to every example, so no correlation is defined.")
    small, large = sorted(((a.max(), sides[0].name), (b.max(), sides[1].name)))
    if 0 < small[0] <= NEAR < large[0] / 2:
        notices.append(
            f"{small[1]} goes up to {small[0]:g} and {large[1]} to {large[0]:g}: on two scales, the differences and "
            f"the share within {NEAR} points mean nothing."
        )
    return notices


def _measure_scores(a: "numpy.ndarray", b: "numpy.ndarray", seed: int) -> dict[str, Estimate]:
    from scipy.stats import kendalltau, rankdata

    count = len(a)
    differences = b - a
    estimates = {
        "pearson": _estimate(lambda at: _correlate(a[at], b[at]), count, seed),
        "spearman": _estimate(lambda at: _correlate(rankdata(a[at]), rankdata(b[at])), count, seed),
        "kendall": _estimate(lambda at: kendalltau(a[at], b[at], method="asymptotic").statistic, count, seed),
    }
    for name, values in (
        ("mean_difference", differences),
        ("mean_absolute_difference", abs(differences)),
    ):
        estimates[name] = Estimate(float(values.mean()), bootstrap_mean(values, seed=seed))
    return estimates | {f"within_{NEAR}": _estimate_share(abs(differences) <= NEAR)}


def _estimate_share(hits: "numpy.ndarray") -> Estimate:
    return Estimate(float(hits.mean()), share_interval(hits.astype(float).tolist()))


def _estimate(statistic: Callable[["numpy.ndarray"], float], count: int, seed: int) -> Estimate:
    import numpy

    value = float(statistic(numpy.arange(count)))
    if numpy.isnan(value):
        return Estimate(None, None)
    return Estimate(value, bootstrap_statistic(statistic, count, seed=seed))


def _correlate(a: "numpy.ndarray", b: "numpy.ndarray") -> float:
    """Return Pearson's correlation; NaN where one side is constant."""
    import numpy

    # Asked of the values: the mean of equal numbers may miss them by a rounding error.
    if a.min() == a.max() or b.min() == b.max():
        return numpy.nan
    a, b = a - a.mean(), b - b.mean()
    return float(numpy.clip((a @ b) / numpy.sqrt((a @ a) * (b @ b)), -1, 1))


def _count_labels(a: "numpy.ndarray", b: "numpy.ndarray") -> tuple[tuple[int, ...], ...]:
    import numpy

    table = numpy.bincount((2 * a * 3 + 2 * b).astype(int), minlength=9).reshape(3, 3)
    return tuple(tuple(int(count) for count in row) for row in table)


def _measure_preferences(a: "numpy.ndarray", b: "numpy.ndarray", seed: int) -> dict[str, Estimate]:
    return {
        "agreement": _estimate_share(a == b),
        "kappa": _estimate(lambda at: compute_kappa(_count_labels(a[at], b[at])), len(a), seed),
    }


def compute_kappa(counts: Sequence[Sequence[int]]) -> float:
    """Return Cohen's kappa of a square table of counts; NaN where both sides say one and the same thing throughout.

    Source: Cohen, A Coefficient of Agreement for Nominal Scales, 1960.

    >>> round(compute_kappa([[20, 5], [10, 15]]), 12)
    0.4
    """
    total = sum(map(sum, counts))
    observed = sum(row[place] for place, row in enumerate(counts)) / total
    columns = zip(*counts, strict=True)
    expected = sum(sum(row) * sum(column) for row, column in zip(counts, columns, strict=True)) / total**2
    return float("nan") if expected == 1 else (observed - expected) / (1 - expected)


_TEXTS = {
    "pearson": "Pearson",
    "spearman": "Spearman",
    "kendall": "Kendall tau-b",
    "mean_difference": "mean of B less A, points",
    "mean_absolute_difference": "mean distance, points",
    f"within_{NEAR}": f"within {NEAR} points",
    "agreement": "same preference",
    "kappa": "Cohen's kappa",
}
_PERCENT = (f"within_{NEAR}", "agreement")


def _format_lines(agreement: Agreement) -> list[str]:
    lines = []
    for letter, side in (("A", agreement.first), ("B", agreement.second)):
        facts = [f"{side.total} {agreement.kind}"] + [f"{side.failed} of them failed"] * bool(side.failed)
        facts += [f"{side.alone} without a counterpart"] * bool(side.alone)
        facts += [] if side.mean is None else [f"mean {format_points(side.mean)} where both have one"]
        lines += [f"{letter}  {side.name}", *([f"   {side.judge}"] if side.judge else []), f"   {'; '.join(facts)}"]
    lines += [f"\n{f'{agreement.n} examples, joined by {agreement.joined_by}':<34}{'value':>12}    95 % interval"]
    for name, (value, interval) in agreement.estimates.items():
        shown = "not defined" if value is None else _format_number(name, value)
        ends = f"{_format_number(name, interval.low)} to {_format_number(name, interval.high)}" if interval else ""
        lines.append(f"{_TEXTS[name]:<34}{shown:>12}    {ends}".rstrip())
    if agreement.counts:
        lines += ["", f"{'':<12}" + "".join(f"{'B ' + label:>9}" for label in LABELS)]
        for label, row in zip(LABELS, agreement.counts, strict=True):
            lines.append(f"{'A ' + label:<12}" + "".join(f"{count:>9}" for count in row))
    return [*lines, *([""] if agreement.notices else []), *(f"! {notice}" for notice in agreement.notices)]


def _format_number(name: str, value: float) -> str:
    if name in _PERCENT:
        return f"{100 * value:.0f} %"
    if name == "mean_difference":
        return format_signed(value)
    return format_points(value) if name == "mean_absolute_difference" else f"{value:.3f}"
