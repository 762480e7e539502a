"""Compare runs example by example: paired differences with intervals, over the examples that all runs have."""

import statistics
from collections.abc import Sequence
from os.path import normpath
from pathlib import Path
from typing import Any

from hf_instruct.errors import ConfigError, DataError
from hf_instruct.evaluation.intervals import bootstrap_mean, difference_interval, sign_test
from hf_instruct.evaluation.metrics import SHARES
from hf_instruct.evaluation.runs import ScoredRun, describe_judge, find_judging_differences, load_run
from hf_instruct.evaluation.score_summary import Leading, choose_leading, find_weakness
from hf_instruct.evaluation.table import Breakdown, Comparison, Difference, Row
from hf_instruct.evaluation.verdict_files import Key

_SHOWN_KEYS = 3
# Below this the bootstrap's intervals are much too narrow.
_FEWEST = 10
_LEAST_CONSTANT = 5


def compare_runs(runs: Sequence[Any], *, baseline: Any = None, force: bool = False) -> Comparison:
    """Return runs side by side, each against a baseline on the examples that all of them have a score for.

    Args:
        runs: Two or more: run folders (`RUN/base` is the untuned side), `judgments.jsonl` files, other files of scores,
            or scores in memory: numbers, or a mapping of ids to numbers. Files without ids are joined by their order.
        baseline: Which run the differences are from; the first by default, and added where it is not among them.
        force: Compare runs that were judged differently; the comparison then says so.

    Raises:
        ConfigError: There are fewer than two runs.
        DataError: Scores cannot be read, were given by different judges or rubrics, or belong to no common examples.
    """
    sources = list(runs)
    place = 0
    if baseline is not None:
        places = [place for place, source in enumerate(sources) if _is_same(source, baseline)]
        sources = sources if places else [baseline, *sources]
        place = places[0] if places else 0
    if len(sources) < 2:
        raise ConfigError(
            "A comparison needs two runs or more; name another one, such as `RUN/base`, the untuned side of a run."
        )
    loaded = [
        load_run(source, name=None if isinstance(source, str | Path) else f"scores {number}")
        for number, source in enumerate(sources, start=1)
    ]
    return _compare(loaded, baseline=place, force=force)


def _compare(runs: Sequence[ScoredRun], *, baseline: int = 0, force: bool = False) -> Comparison:
    """Return loaded runs side by side; see `compare_runs`.

    Args:
        runs: Two or more.
        baseline: Place of the run that the differences are from.
        force: Compare runs that were judged differently.

    Raises:
        DataError: They were judged differently, or have no examples in common.
    """
    judged_differently = find_judging_differences(runs)
    if judged_differently and not force:
        raise DataError(
            "The runs were judged differently, so their scores cannot be compared. Judge them alike (`hf-instruct "
            "judge RUN --judge … --model … --rubric …`), or add `--force` to compare all the same, labelled. They "
            "differ in:",
            judged_differently,
        )
    runs = _join(runs)
    keys = _find_common(runs)
    union = {key for run in runs for key in run.known}
    leading = choose_leading((_find_weakness(run) for run in runs), set.intersection(*map(_name_metrics, runs)))
    order = _rank(runs, keys, leading)
    values = [[runs[place].known[key] for key in keys] for place in order]
    base = order.index(baseline)
    rows = [
        _build_row(runs[place], column, values[base] if number != base else None)
        for number, (place, column) in enumerate(zip(order, values, strict=True))
    ]
    ordered = [runs[place] for place in order]
    return Comparison(
        rows=rows,
        baseline=runs[baseline].name,
        n=len(keys),
        num_dropped=len(union) - len(keys),
        keyed=runs[0].keyed,
        judge=_describe_judging(ordered),
        judging_differences=judged_differently,
        categories=_break_down(ordered, keys, values, base),
        metrics=_compare_metrics(ordered, base),
        leading=leading,
        notes=_list_notes(ordered, num_dropped=len(union) - len(keys), n=len(keys)),
    )


def compare_values(values: Sequence[float], baseline: Sequence[float], *, is_share: bool = False) -> Difference:
    """Return how far values exceed a baseline's values of the same examples, one at least.

    Args:
        values: One for each example.
        baseline: The baseline's.
        is_share: Whether each value is a yes (1) or a no (0).

    >>> found = compare_values([50.0, 70.0, 20.0, 20.0], [10.0, 20.0, 20.0, 30.0])
    >>> found.mean, found.wins, found.ties, found.losses, found.p_value, found.is_shown
    (20.0, 2, 1, 1, 1.0, False)
    """
    differences = [one - other for one, other in zip(values, baseline, strict=True)]
    wins, losses = sum(gain > 0 for gain in differences), sum(gain < 0 for gain in differences)
    ties = len(differences) - wins - losses
    mean = statistics.fmean(differences)
    interval = difference_interval(differences, is_share=is_share)
    return Difference(mean, interval, wins, ties, losses, sign_test(differences))


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, str | Path) and isinstance(other, str | Path):
        return normpath(one) == normpath(other)
    return one is other


def _join(runs: Sequence[ScoredRun]) -> list[ScoredRun]:
    """Return runs with keys of one kind: ids, or places where a run has no ids."""
    if all(run.keyed for run in runs):
        return list(runs)
    lengths = {run.name: len(run.scores) for run in runs}
    if len(set(lengths.values())) > 1:
        raise DataError(
            "Scores without ids are joined by their order, so there have to be equally many; those with ids "
            "(`judgments.jsonl`) are joined by id. The numbers of scores are:",
            [f"`{name}`: {length}" for name, length in lengths.items()],
        )
    return [run.by_place() for run in runs]


def _find_common(runs: Sequence[ScoredRun]) -> list[Key]:
    """Return the keys that all runs have a score for, in the order of the first run."""
    rest = [run.known for run in runs[1:]]
    keys = [key for key in runs[0].known if all(key in known for known in rest)]
    if not keys:
        faults = []
        for run in runs:
            shown = ", ".join(f"`{key}`" for key in list(run.known)[:_SHOWN_KEYS]) if run.keyed else "no ids"
            faults.append(f"`{run.name}`: {len(run.known)} of {len(run.scores)} examples have a score ({shown}, …)")
        raise DataError(
            "There is no example that all of the runs have a score for, so nothing can be compared:", faults
        )
    for run in runs[1:]:
        first = runs[0].examples
        wrong = [key for key in keys if key in first and run.examples.get(key, first[key]) != first[key]]
        if wrong:
            raise DataError(
                f"`{runs[0].name}` and `{run.name}` are of different data: {len(wrong)} of {len(keys)} ids stand for "
                f"another example in each, such as `{wrong[0]}`. Compare runs over the same test examples."
            )
    return keys


def _find_weakness(run: ScoredRun) -> str:
    return find_weakness(run.judge, [str(name) for name in (run.self_check or {}).get("failed") or ()])


def _name_metrics(run: ScoredRun) -> set[str]:
    return {name for values in run.metrics.values() for name in values}


def _rank(runs: Sequence[ScoredRun], keys: Sequence[Key], leading: Leading) -> list[int]:
    """Return the places of the runs, highest mean of the leading measure first; in their order where nothing leads."""
    columns: Sequence[Sequence[float]] = [[0.0] for _ in runs]
    if leading.is_metric:
        columns = _list_columns(runs, leading.name) or columns
    elif leading.name:
        columns = [[run.known[key] for key in keys] for run in runs]
    return sorted(range(len(runs)), key=lambda place: -statistics.fmean(columns[place]))


def _list_columns(runs: Sequence[ScoredRun], name: str) -> list[list[float]]:
    """Return each run's values of a metric over the examples that all have one for; empty where there are none."""
    columns = [{key: values[name] for key, values in run.metrics.items() if name in values} for run in runs]
    keys = [key for key in columns[0] if all(key in column for column in columns)]
    return [[column[key] for key in keys] for column in columns] if keys else []


def _build_row(run: ScoredRun, values: Sequence[float], baseline: Sequence[float] | None) -> Row:
    known, total = list(run.known.values()), len(run.scores)
    failures = total - len(known)
    return Row(
        name=run.name,
        mean=statistics.fmean(values),
        interval=bootstrap_mean(values),
        n=len(known),
        failures=failures,
        mean_failures_as_0=sum(known) / total,
        mean_failures_as_100=(sum(known) + 100 * failures) / total,
        difference=None if baseline is None else compare_values(values, baseline),
        validation_loss=run.validation_loss,
        repeats=run.repeats,
        self_check=run.self_check,
    )


def _break_down(
    runs: Sequence[ScoredRun], keys: Sequence[Key], values: Sequence[Sequence[float]], base: int
) -> list[Breakdown]:
    """Return the scores by category, where the common examples have two at least."""
    category_of: dict[Key, str] = {}
    for run in reversed(runs):
        category_of |= run.categories
    groups: dict[str, list[int]] = {}
    for number, key in enumerate(keys):
        if key in category_of:
            groups.setdefault(category_of[key], []).append(number)
    if len(groups) < 2:
        return []
    return [
        _build_breakdown(name, [[column[i] for i in groups[name]] for column in values], base)
        for name in sorted(groups)
    ]


def _compare_metrics(runs: Sequence[ScoredRun], base: int) -> list[Breakdown]:
    """Return the reference metrics that all runs have, over the examples that all have a value for."""
    names = list(dict.fromkeys(name for values in runs[0].metrics.values() for name in values))
    found = []
    for name in names:
        if values := _list_columns(runs, name):
            found.append(_build_breakdown(name, values, base, is_share=name in SHARES))
    return found


def _build_breakdown(name: str, columns: Sequence[Sequence[float]], base: int, *, is_share: bool = False) -> Breakdown:
    differences = [
        None if number == base else compare_values(column, columns[base], is_share=is_share)
        for number, column in enumerate(columns)
    ]
    return Breakdown(name, len(columns[0]), [statistics.fmean(column) for column in columns], differences)


def _describe_judging(runs: Sequence[ScoredRun]) -> str:
    shown = {describe_judge(run.judge, run.rubric, run.rubric_sha256): None for run in runs if run.judge}
    if not shown:
        return "unknown judge"
    names = [f"`{run.name}`" for run in runs if not run.judge]
    hidden = f"; {', '.join(names)} {'does' if len(names) == 1 else 'do'} not tell who judged" if names else ""
    return "; ".join(shown) + hidden


def _list_notes(runs: Sequence[ScoredRun], *, num_dropped: int, n: int) -> list[str]:
    """Return what limits the comparison; how the runs were judged is told elsewhere."""
    notes = []
    if num_dropped:
        what, them = ("example was", "it") if num_dropped == 1 else ("examples were", "them")
        notes.append(
            f"{num_dropped} {what} dropped, because only some of the runs have a score for {them}; means and "
            f"differences are over the {n} left."
        )
    if n < _FEWEST:
        notes.append(f"Examples compared: only {n}. The intervals of so few are too narrow.")
    for run in runs:
        scores = set(run.known.values())
        if len(run.known) >= _LEAST_CONSTANT and len(scores) == 1:
            notes.append(f"All {len(run.known)} scores of {run.name} are {scores.pop():g}: they tell no answer apart.")
    if not runs[0].keyed:
        notes.append("The scores are joined by their order, because not all of the files have ids.")
    versions = dict.fromkeys(str(run.judge.get("server_version")) for run in runs if run.judge)
    if len(versions) > 1:
        notes.append(f"The judges' servers are of different versions: {', '.join(versions)}.")
    if len({run.repeats for run in runs}) > 1:
        times = ", ".join(f"`{run.name}` {run.repeats}" for run in runs)
        notes.append(f"Not all runs were judged equally often ({times} times).")
    if len(runs) > 2:
        notes.append(
            f"Each of the {len(runs) - 1} intervals holds alone at 95 %: with many runs, some exclude 0 by chance."
        )
    return notes
