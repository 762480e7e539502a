"""Compare runs example by example: paired differences with intervals, over the examples that all runs have."""

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from os.path import normpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.console import pluralize
from hf_instruct.errors import ConfigError, DataError, quote_names
from hf_instruct.evaluation.intervals import (
    FEWEST,
    SCOPE,
    Difference,
    bootstrap_mean,
    bound_difference,
    compare_values,
    describe_groups,
    share_interval,
)
from hf_instruct.evaluation.metrics import SHARES
from hf_instruct.evaluation.people import Corrected
from hf_instruct.evaluation.runs import ScoredRun, find_judging_differences, load_run
from hf_instruct.evaluation.scores import MIN_CONSTANT, SCORE, Leading, choose_leading, describe_check, find_weakness
from hf_instruct.evaluation.verdict_table import describe_judge
from hf_instruct.schema import Interval

if TYPE_CHECKING:
    import pandas

_SHOWN_KEYS = 3
_UNJUDGED = (
    "`{0}` has no scores, and not all runs have ROUGE-L to compare them by; judge it first (`hf-instruct judge {0}`), "
    "or measure the runs (`hf-instruct judge metrics RUN`)."
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One run of a comparison."""

    name: str
    mean: float | None  # mean score on the common examples; None if not all runs were judged
    interval: Interval | None  # 95 %, by bootstrap; None for a single example
    n: int  # examples with a score, common or not
    failures: int  # examples without a score
    total: int
    coverage: float  # n / total
    mean_failures_as_0: float  # over all examples of the run
    mean_failures_as_100: float
    difference: Difference | None  # on the common examples; None for the baseline itself
    corrected: Corrected | None  # mean over all examples of the run, corrected by people's scores of some of them
    corrected_difference: Corrected | None  # from the baseline, by people's scores of the same examples in both
    validation_loss: float | None  # of the model, in nats per token; None if unknown
    repeats: int  # how often each answer was judged
    self_check: dict[str, Any] | None  # result of the judge's check; None if it was not checked


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """The results of the runs in one category, or by one measure; lists are in the order of the comparison's rows."""

    name: str  # name of the category or the measure
    n: int  # examples that all runs have a value for
    means: list[float]
    intervals: list[Interval | None]  # 95 %, of the means; None for a single example
    differences: list[Difference | None]  # None for the baseline itself


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A comparison of runs."""

    rows: list[Row]  # two runs in the given order; more by the mean of the leading measure, highest first
    baseline: str  # the run that the others are compared with
    n: int  # examples that all runs have a score for, or were measured on; means and differences are over these
    num_dropped: int  # examples that only some of the runs have
    keyed: bool  # whether examples were joined by id, rather than by their order
    judge: str  # label of the judges
    judging_differences: list[str]  # how the runs were judged differently, if `force` allowed that
    categories: list[Breakdown]  # the scores by category, if the examples have categories
    metrics: list[Breakdown]  # the reference metrics that all runs have
    leading: Leading  # the measure that the rows are sorted by, and why if it is not the score
    notes: list[str]  # caveats to read before quoting the numbers

    @property
    def is_scored(self) -> bool:
        """Whether all runs were judged; otherwise they are compared by the reference metrics alone."""
        return self.rows[0].mean is not None

    def __str__(self) -> str:
        from hf_instruct.evaluation.comparison_views import format_comparison

        return format_comparison(self)

    def find(self, measure: str) -> Breakdown:
        """Return the results by a reference metric or, for any other name, by the scores."""
        for part in self.metrics:
            if part.name == measure:
                return part
        means = [row.mean for row in self.rows if row.mean is not None]
        intervals, differences = [row.interval for row in self.rows], [row.difference for row in self.rows]
        return Breakdown(SCORE, self.n, means, intervals, differences)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as `--json` prints them."""
        alike = not self.judging_differences
        return {**dataclasses.asdict(self), "leading": self.leading._asdict(), "alike": alike}


def compare_runs(runs: Sequence[Any], *, baseline: Any = None, force: bool = False) -> Comparison:
    """Compare runs with a baseline, on the examples that all of them have a score for.

    Unless all runs were judged, they are compared by the reference metrics alone.

    Args:
        runs: Two or more: run folders (`RUN/untuned` is the untuned model), `judgments.jsonl` files, other files of
            scores, or scores in memory: numbers, or a mapping of ids to numbers. Files without ids are joined by their
            order.
        baseline: The baseline of the differences; the first run by default. Added to `runs` if it is not among them.
        force: Compare runs that were judged differently; the result says so.

    Raises:
        ConfigError: There are fewer than two runs.
        DataError: Scores cannot be read, were given by different judges or rubrics, or have no examples in common.
    """
    sources = list(runs) if isinstance(runs, Iterable) and not isinstance(runs, str) else [runs]
    keys, base = [_identify(source) for source in sources], _identify(baseline)
    if baseline is not None and base not in keys:
        sources, keys = [baseline, *sources], [base, *keys]
    if len(sources) < 2:
        raise ConfigError(
            "A comparison needs at least two runs; add another one, such as `RUN/untuned`, the untuned model of a run."
        )
    loaded = [load_run(source, f"scores {number}") for number, source in enumerate(sources, start=1)]
    judged_differently = find_judging_differences(loaded) if all(run.is_scored for run in loaded) else []
    if judged_differently and not force:
        raise DataError(
            "The runs were judged differently, so their scores cannot be compared. Judge them in the same way "
            "(`hf-instruct judge RUN --judge … --model … --rubric …`), or add `--force` to compare them anyway, "
            "with a label. They differ in:",
            judged_differently,
        )
    return _compare(_join(loaded), 0 if baseline is None else keys.index(base), judged_differently)


def _compare(runs: Sequence[ScoredRun], baseline: int, judged_differently: list[str]) -> Comparison:
    import pandas

    is_scored = all(run.is_scored for run in runs)
    shared = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    joined = {name: _put_side_by_side(run.metrics[name] for run in runs) for name in shared}
    metrics = {name: values for name, table in joined.items() if len(values := table.dropna())}
    weaknesses = (find_weakness(run.judge, run.self_check) for run in runs if run.judge)
    leading = choose_leading(weaknesses, shared, is_scored=is_scored)
    if is_scored:
        table = _put_side_by_side(run.rows["score"] for run in runs)
    elif leading.name:
        table = joined[leading.name]
    else:
        raise DataError(_UNJUDGED.format(next(run.name for run in runs if not run.is_scored)))
    common = table.dropna()
    _check_common(runs, common.index)
    leads = metrics.get(leading.name) if leading.is_metric else common if leading.name else None
    order = list(range(len(runs)))
    # Two runs keep their order, so that "2 - 1" means what the reader expects.
    if leads is not None and len(runs) > 2:
        order.sort(key=lambda i: -leads[i].mean())
    ordered, base = [runs[number] for number in order], order.index(baseline)
    facts = pandas.concat([run.rows[["task", "category"]] for run in ordered]).groupby(level=0).first()
    # A row without a known instruction forms its own group.
    tasks = facts["task"].fillna(pandas.Series(facts.index, facts.index))
    scores = _break_down(SCORE, common[order], base, tasks) if is_scored else None
    categories = facts["category"].reindex(common.index)
    groups = common[order].groupby(categories)
    has_categories = is_scored and groups.ngroups > 1
    alike = ""
    if len(runs) == 2 and leads is not None:
        by_category = list(facts["category"].reindex(leads.index)) if groups.ngroups > 1 else []
        alike = describe_groups(list(leads[1] - leads[0]), list(tasks.reindex(leads.index)), by_category)
    num_dropped = len(table) - len(common)
    return Comparison(
        rows=[_build_row(run, scores, number, runs[baseline]) for number, run in enumerate(ordered)],
        baseline=runs[baseline].name,
        n=len(common),
        num_dropped=num_dropped,
        keyed=runs[0].keyed,
        judge=_describe_judging(ordered) if is_scored else "compared by reference metrics, without a judge",
        judging_differences=judged_differently,
        categories=[_break_down(name, part, base, tasks) for name, part in groups] if has_categories else [],
        metrics=[
            _break_down(name, values[order], base, tasks, is_share=name in SHARES) for name, values in metrics.items()
        ],
        leading=leading,
        notes=[*filter(None, [alike]), *_list_notes(ordered, num_dropped=num_dropped, n=len(common))],
    )


def _put_side_by_side(values: "Iterable[pandas.Series[float]]") -> "pandas.DataFrame":
    """Return a table with a column per run and a row per example that any run has a value for."""
    import pandas

    columns = list(values)
    return pandas.concat(columns, axis=1, keys=range(len(columns))).dropna(how="all")


def _identify(source: Any) -> Any:
    return normpath(source) if isinstance(source, str | Path) else id(source)


def _join(runs: Sequence[ScoredRun]) -> list[ScoredRun]:
    """Return runs with keys of one kind: ids, or indices if a run has no ids."""
    if all(run.keyed for run in runs):
        return list(runs)
    lengths = {run.name: len(run.rows) for run in runs}
    if len(set(lengths.values())) > 1:
        raise DataError(
            "Scores without ids are joined by their order, so all runs need the same number; scores with ids "
            "(`judgments.jsonl`) are joined by id. The numbers of scores are:",
            [f"`{name}`: {length}" for name, length in lengths.items()],
        )
    return [run.by_index() for run in runs]


def _check_common(runs: Sequence[ScoredRun], keys: "pandas.Index") -> None:
    """Refuse runs without a common example, and those in which an id refers to different examples."""
    if keys.empty:
        problems = []
        for run in runs:
            ids = quote_names(run.known.index[:_SHOWN_KEYS]) if run.keyed else "no ids"
            problems.append(f"`{run.name}`: {len(run.known)} of {len(run.rows)} examples have a score ({ids}, …)")
        raise DataError("There is no example with a score in all runs, so nothing can be compared:", problems)
    first = runs[0].rows["example"].reindex(keys)
    for run in runs[1:]:
        other = run.rows["example"].reindex(keys)
        wrong = keys[(first != other) & first.notna() & other.notna()]
        if len(wrong):
            raise DataError(
                f"`{runs[0].name}` and `{run.name}` have different data: {len(wrong)} of {len(keys)} ids refer to "
                f"different examples, such as `{wrong[0]}`. Compare runs over the same test examples."
            )


def _build_row(run: ScoredRun, scores: Breakdown | None, number: int, baseline: ScoredRun) -> Row:
    """Return a run's row; `scores` has its results at index `number`, and is None if not all runs were judged."""
    known, total = run.known, len(run.rows)
    failures = total - len(known) if run.is_scored else 0
    difference = scores.differences[number] if scores else None
    if difference and run.judge and baseline.judge:
        # A failed judgment could have had any score.
        bounds = bound_difference(run.labelled.judged, baseline.labelled.judged)
        difference = dataclasses.replace(difference, bounds=bounds)
    return Row(
        name=run.name,
        mean=scores.means[number] if scores else None,
        interval=scores.intervals[number] if scores else None,
        n=len(known),
        failures=failures,
        total=total,
        coverage=len(known) / total,
        mean_failures_as_0=float(known.sum()) / total,
        mean_failures_as_100=(float(known.sum()) + 100 * failures) / total,
        difference=difference,
        corrected=run.labelled.correct(),
        corrected_difference=run.labelled.subtract(baseline.labelled).correct() if difference else None,
        validation_loss=run.validation_loss,
        repeats=run.repeats,
        self_check=run.self_check.to_dict() if run.self_check else None,
    )


def _break_down(
    name: str, values: "pandas.DataFrame", base: int, tasks: "pandas.Series[str]", *, is_share: bool = False
) -> Breakdown:
    """Return the means and differences of values, one column per run; rows with one instruction count as one draw."""
    groups = list(tasks.reindex(values.index))
    columns = [values[column].tolist() for column in values]
    differences = [
        None if number == base else compare_values(column, columns[base], groups, is_share=is_share)
        for number, column in enumerate(columns)
    ]
    interval = share_interval if is_share else bootstrap_mean
    intervals = [interval(column, groups) for column in columns]
    return Breakdown(name, len(values), list(map(statistics.fmean, columns)), intervals, differences)


def _describe_judging(runs: Sequence[ScoredRun]) -> str:
    judges = {describe_judge(run.judge, run.rubric, run.rubric_sha256): None for run in runs if run.judge}
    if not judges:
        return "unknown judge"
    names = quote_names(run.name for run in runs if not run.judge)
    passed = [describe_check(check) for run in runs[:1] if (check := run.self_check) and check.passed]
    facts = [*judges, *passed, *filter(None, [max(run.references for run in runs)[1]])]
    return "; ".join(facts) + (f"; the judge of {names} is unknown" if names else "")


def _list_notes(runs: Sequence[ScoredRun], *, num_dropped: int, n: int) -> list[str]:
    """Return the limits of the comparison, other than how the runs were judged."""
    notes = []
    if num_dropped:
        notes.append(
            f"{pluralize(num_dropped, 'example was', 'examples were')} dropped, because only some of the runs have a "
            f"score for {'it' if num_dropped == 1 else 'them'}; means and differences are over the other {n}."
        )
    if n < FEWEST:
        notes.append(f"Only {pluralize(n, 'example is', 'examples are')} compared: the intervals are too narrow.")
    for run in runs:
        if len(run.known) >= MIN_CONSTANT and run.known.nunique() == 1:
            notes.append(
                f"All {len(run.known)} scores of {run.name} are {run.known.iloc[0]:g}: the judge does not discriminate."
            )
    if not runs[0].keyed:
        notes.append("The scores are joined by order, because not all of the files have ids.")
    versions = dict.fromkeys(str(run.judge.server_version) for run in runs if run.judge)
    if len(versions) > 1:
        notes.append(f"The judges' servers have different versions: {', '.join(versions)}.")
    if all(run.length is not None for run in runs):
        lengths = ", ".join(f"`{run.name}` {run.length:.2f}" for run in runs)
        notes.append(f"Lengths of the answers, as multiples of their references': {lengths}.")
    if len({run.repeats for run in runs}) > 1:
        times = ", ".join(f"`{run.name}` {run.repeats}" for run in runs)
        notes.append(f"The runs were judged a different number of times ({times}).")
    if len(runs) > 2:
        notes.append(
            f"Each of the {len(runs) - 1} intervals is a separate 95 % interval: with many runs, some exclude 0 by "
            "chance."
        )
    notes.append(SCOPE)
    return notes
