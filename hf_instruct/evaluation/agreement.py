"""Agreement of two judges, or of a judge and people: numbers with intervals over the examples that both judged."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_instruct.console import align, format_points, format_signed
from hf_instruct.errors import DataError
from hf_instruct.evaluation.intervals import Estimate, bootstrap_mean, estimate, share_interval
from hf_instruct.evaluation.verdict_table import SCORES, Order, Verdicts, load_verdicts
from hf_instruct.run_folder import RunFolder

if TYPE_CHECKING:
    import numpy
    import pandas

# Scores from 0 to 100 within this distance count as similar.
NEAR = 10
LABELS = ("loss", "tie", "win")
# With fewer examples, bootstrap intervals are too narrow.
_FEW = 20


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two sets of verdicts."""

    name: str  # name of the file
    judge: str  # label of the judge; empty if unknown
    total: int  # number of examples
    failed: int  # examples without a verdict
    alone: int  # examples that the other side does not have
    mean: float | None  # mean score where both sides have a verdict, in points; None for preferences


@dataclasses.dataclass(frozen=True)
class Agreement:
    """The agreement of two sets of verdicts.

    `estimates` are by name. For scores: `pearson`, `spearman`, `kendall` (tau-b), from -1 to 1; `mean_difference`
    (second - first) and `mean_absolute_difference`, in points; `within_10`, a fraction. For preferences: `agreement`, a
    fraction; `kappa` (Cohen's), at most 1.
    """

    kind: str  # `scores` or `preferences`
    first: Side
    second: Side
    joined_by: str  # `id` or `order`
    n: int  # examples that both have a verdict on
    estimates: Mapping[str, Estimate]
    counts: list[list[int]] | None  # for preferences: how often each pair of `LABELS` occurs, [first, second]
    notices: list[str]  # caveats, a sentence each

    def to_dict(self) -> dict[str, Any]:
        """Return the agreement as plain values, for JSON."""
        estimates = {name: estimate._asdict() for name, estimate in self.estimates.items()}
        return {**dataclasses.asdict(self), "estimates": estimates}

    def __str__(self) -> str:
        return "\n".join(_format_lines(self))


def measure_agreement(
    first: Any, second: Any, *, voters: tuple[str | None, str | None] = (None, None), seed: int = 0
) -> Agreement:
    """Return the agreement of two judges, or of a judge and people, on the same answers.

    Args:
        first: A run folder or a file of verdicts (a path), a list of numbers, a mapping of ids to numbers, or
            `Judgment` or `Preference` rows.
        second: The other side, of the same kind.
        voters: For each side, use only the votes of this voter.
        seed: Seed of the bootstrap.

    Raises:
        DataError: A side cannot be read, one has scores and the other preferences, or fewer than two examples have both
            verdicts.

    >>> agreement = measure_agreement([10, 50, 90], [20, 40, 95])
    >>> agreement.n, agreement.estimates["spearman"].value, agreement.estimates["mean_difference"].value
    (3, 1.0, 1.6666666666666667)
    """
    import numpy
    import pandas

    a, b = load_verdicts(first, "A", voter=voters[0]), load_verdicts(second, "B", voter=voters[1])
    if a.kind != b.kind:
        raise DataError(f"`{a.name}` contains {a.kind} and `{b.name}` {b.kind}; pass two files of the same kind.")
    order: Order = {}
    a, _ = a.oriented(order)
    b, turned = b.oriented(order)
    scores = a.by_example(), b.by_example()
    both = pandas.concat(scores, axis=1, join="inner", keys=("a", "b"))
    pairs = both.dropna()
    _check_joined(a, b, scores, both)
    is_scores = a.kind == SCORES
    means = pairs.mean().tolist() if is_scores else (None, None)
    sides = [
        Side(side.name, side.judge, len(values), int(values.isna().sum()), len(values) - len(both), mean)
        for side, values, mean in zip((a, b), scores, means, strict=True)
    ]
    notices = [*a.list_notices(), *b.list_notices(), *_note_other_answers(a, b, both.index)]
    if turned:
        notices.append(f"{b.name} has the two sets in the opposite order; its wins are counted as losses.")
    if len(pairs) < _FEW:
        notices.append(f"Only {len(pairs)} examples: the intervals are too narrow.")
    x, y = pairs["a"].to_numpy(), pairs["b"].to_numpy()
    counts: list[list[int]] | None = None
    if is_scores:
        notices += _note_scales(sides, x, y)
        estimates = _measure_scores(x, y, seed)
    else:
        counts = numpy.bincount((6 * x + 2 * y).astype(int), minlength=9).reshape(3, 3).tolist()
        estimates = _measure_preferences(x, y, seed)
        if estimates["kappa"].value is None:
            notices.append("All verdicts of both sides are equal, so kappa is not defined.")
    return Agreement(a.kind, sides[0], sides[1], "id" if a.keyed else "order", len(pairs), estimates, counts, notices)


def _check_joined(
    first: Verdicts, second: Verdicts, scores: "Sequence[pandas.Series[float]]", both: "pandas.DataFrame"
) -> None:
    if first.keyed != second.keyed:
        with_ids, without = (first, second) if first.keyed else (second, first)
        raise DataError(
            f"`{with_ids.name}` has ids and `{without.name}` has none; add ids to both, or pass two lists in the "
            "same order."
        )
    if not first.keyed and len(scores[0]) != len(scores[1]):
        raise DataError(
            f"`{first.name}` has {len(scores[0])} scores and `{second.name}` {len(scores[1])}, without ids to join "
            "them by; add ids, or pass lists of the same length and order."
        )
    if both.empty:
        one, two = (scored.index[0] for scored in scores)
        raise DataError(
            f"`{first.name}` and `{second.name}` have nothing in common (the first are {one} and {two}); use "
            "verdicts on the same examples, and preferences between the same two sets."
        )
    if (common := len(both.dropna())) < 2:
        raise DataError(
            f"`{first.name}` and `{second.name}` share {len(both)} examples, {common} of them with a verdict on both "
            "sides; agreement needs at least 2."
        )


def _note_other_answers(first: Verdicts, second: Verdicts, keys: "pandas.Index") -> list[str]:
    """Add a notice if the judged answers are stored with both files, and differ."""
    answers: list[dict[str, str]] = []
    for side in (first, second):
        if side.file is not None and side.judgments:
            with contextlib.suppress(DataError):
                rows = RunFolder(side.file.parent).read_responses(side.judgments[0].model)
                answers.append({row.id: row.response for row in rows})
    if len(answers) < 2 or not all(answers):
        return []
    different = sum(answers[0].get(key) != answers[1].get(key) for key in keys)
    if not different:
        return []
    return [f"The answers differ in {different} of {len(keys)} examples: the verdicts are on different answers."]


def _note_scales(sides: Sequence[Side], a: "numpy.ndarray", b: "numpy.ndarray") -> list[str]:
    notices = [
        f"{side.name} gives {values[0]:g} to every example, so no correlation is defined."
        for side, values in zip(sides, (a, b), strict=True)
        if values.min() == values.max()
    ]
    small, large = sorted(((a.max(), sides[0].name), (b.max(), sides[1].name)))
    if 0 < small[0] <= NEAR < large[0] / 2:
        notices.append(
            f"{small[1]} goes up to {small[0]:g} and {large[1]} to {large[0]:g}: the scales differ, so the "
            f"differences and the share within {NEAR} points are meaningless."
        )
    return notices


def _measure_scores(a: "numpy.ndarray", b: "numpy.ndarray", seed: int) -> dict[str, Estimate]:
    from scipy.stats import kendalltau, rankdata

    # The p value is not used. The asymptotic one is the fastest, but is not defined for two examples.
    method = "asymptotic" if len(a) > 2 else "exact"

    def correlate(at: "numpy.ndarray") -> list[float]:
        x, y = a[at], b[at]
        tau = kendalltau(x, y, method=method).statistic
        return [_correlate(x, y), _correlate(rankdata(x), rankdata(y)), tau]

    differences = b - a
    correlations = estimate(correlate, len(a), seed=seed)
    estimates = dict(zip(("pearson", "spearman", "kendall"), correlations, strict=True))
    for name, values in (("mean_difference", differences), ("mean_absolute_difference", abs(differences))):
        estimates[name] = Estimate(float(values.mean()), bootstrap_mean(values, seed=seed))
    return estimates | {f"within_{NEAR}": _estimate_share(abs(differences) <= NEAR)}


def _estimate_share(hits: "numpy.ndarray") -> Estimate:
    return Estimate(float(hits.mean()), share_interval(hits.astype(float).tolist()))


def _correlate(a: "numpy.ndarray", b: "numpy.ndarray") -> float:
    """Return Pearson's correlation; NaN if one side is constant. SciPy's takes 10 times as long for 110 values."""
    import numpy

    # Compare the values, because the mean of equal numbers may have a rounding error.
    if a.min() == a.max() or b.min() == b.max():
        return numpy.nan
    a, b = a - a.mean(), b - b.mean()
    return float(numpy.clip((a @ b) / numpy.sqrt((a @ a) * (b @ b)), -1, 1))


def _measure_preferences(a: "numpy.ndarray", b: "numpy.ndarray", seed: int) -> dict[str, Estimate]:
    (kappa,) = estimate(lambda at: [_compute_kappa(a[at], b[at])], len(a), seed=seed)
    return {"agreement": _estimate_share(a == b), "kappa": kappa}


def _compute_kappa(a: "numpy.ndarray", b: "numpy.ndarray") -> float:
    """Return Cohen's kappa of preferences; NaN if all verdicts of both sides are equal.

    scikit-learn's takes 25 times as long. Source: Cohen, A Coefficient of Agreement for Nominal Scales, 1960.
    """
    expected = sum((a == score).mean() * (b == score).mean() for score in (0, 0.5, 1))
    return float("nan") if expected == 1 else float(((a == b).mean() - expected) / (1 - expected))


def _format_percent(share: float) -> str:
    return f"{100 * share:.0f} %"


# The name and the format of each number.
_SHOWN: dict[str, tuple[str, Callable[[float], str]]] = {
    "pearson": ("Pearson", "{:.3f}".format),
    "spearman": ("Spearman", "{:.3f}".format),
    "kendall": ("Kendall tau-b", "{:.3f}".format),
    "mean_difference": ("mean of B - A, points", format_signed),
    "mean_absolute_difference": ("mean distance, points", format_points),
    f"within_{NEAR}": (f"within {NEAR} points", _format_percent),
    "agreement": ("same preference", _format_percent),
    "kappa": ("Cohen's kappa", "{:.3f}".format),
}


def _format_lines(agreement: Agreement) -> list[str]:
    lines = []
    for letter, side in (("A", agreement.first), ("B", agreement.second)):
        facts = [f"{side.total} {agreement.kind}"]
        if side.failed:
            facts.append(f"{side.failed} of them failed")
        if side.alone:
            facts.append(f"{side.alone} without a counterpart")
        if side.mean is not None:
            facts.append(f"mean {format_points(side.mean)} where both have one")
        lines += [f"{letter}  {side.name}", *([f"   {side.judge}"] if side.judge else []), f"   {'; '.join(facts)}"]
    table = [[f"{agreement.n} examples, joined by {agreement.joined_by}", "value", "95 % interval"]]
    for name, (value, interval) in agreement.estimates.items():
        label, show = _SHOWN[name]
        ends = " to ".join(map(show, interval)) if interval else ""
        table.append([label, "not defined" if value is None else show(value), ends])
    lines += ["", *align(table, right={1})]
    if agreement.counts:
        counts = [[f"A {label}", *map(str, row)] for label, row in zip(LABELS, agreement.counts, strict=True)]
        lines += ["", *align([["", *(f"B {label}" for label in LABELS)], *counts], right={1, 2, 3})]
    return [*lines, *([""] if agreement.notices else []), *(f"! {notice}" for notice in agreement.notices)]
