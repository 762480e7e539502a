"""What was measured of a run besides the judge's scores: reference metrics, benchmark tasks, the check of the judge."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from hf_instruct.console import format_interval, format_signed
from hf_instruct.evaluation.intervals import Interval, MeanDifference, measure_difference, parse_interval
from hf_instruct.evaluation.metrics import METRICS, QUOTIENTS, SHARES, format_metric, label_metric
from hf_instruct.records import as_number
from hf_instruct.reporting.facts import RunFacts, Side


@dataclasses.dataclass(frozen=True)
class Measure:
    """One number of a model's answers.

    Attributes:
        mean: In the metric's own unit; None where it is not known.
        interval: Its 95 % interval; None where it has none.
        n: How many answers it is over.
    """

    mean: float | None
    interval: Interval | None
    n: int


@dataclasses.dataclass(frozen=True)
class MetricRow:
    """One reference metric, before and after.

    Attributes:
        name: As in `metrics.json`.
        label: As shown.
        meaning: What it says, in a few words.
        base: Of the untuned model's answers.
        tuned: Of the tuned model's answers.
        difference: Of the same examples, tuned less base; None where one side lacks them.
    """

    name: str
    label: str
    meaning: str
    base: Measure | None
    tuned: Measure | None
    difference: MeanDifference | None

    def show(self, value: float, *, signed: bool = False) -> str:
        """Return a value of this metric as it is printed."""
        return format_metric(self.name, value, signed=signed)

    def show_difference(self) -> str:
        """Return the paired difference with its interval; empty where there is none."""
        if self.difference is None:
            return ""
        ends = " to ".join(self.show(end, signed=True) for end in (self.difference.low, self.difference.high))
        return f"{self.show(self.difference.mean, signed=True)} ({ends})"


def list_metrics(facts: RunFacts) -> list[MetricRow]:
    """Return the reference metrics that either side has, in a fixed order; those that are not ours come last."""
    sides = [_read_measures(side) for side in (facts.base, facts.tuned)]
    found = dict.fromkeys([*METRICS, *sides[0], *sides[1]])
    rows = []
    for name in found:
        base, tuned = (measures.get(name) for measures in sides)
        if base is None and tuned is None:
            continue
        meaning = METRICS[name].meaning if name in METRICS else ""
        difference = None
        if name not in QUOTIENTS:
            values = (side.values.get(name, {}) for side in (facts.base, facts.tuned))
            difference = measure_difference(*values, is_share=name in SHARES)
        rows.append(MetricRow(name, label_metric(name), meaning, base, tuned, difference))
    return rows


def _read_measures(side: Side) -> dict[str, Measure]:
    metrics = side.metrics.get("metrics")
    rows = metrics.items() if isinstance(metrics, Mapping) else ()
    return {
        str(name): Measure(mean, parse_interval(values.get("interval")), int(as_number(values.get("n")) or 0))
        for name, values in rows
        if isinstance(values, Mapping) and (mean := as_number(values.get("mean"))) is not None
    }


@dataclasses.dataclass(frozen=True)
class CheckRow:
    """One thing that was checked of the judge.

    Attributes:
        pair: Which two kinds of answers it scored.
        expected: Where the first should lie.
        seen: Where it lay, in points, with the interval.
        result: `passed`, `failed`, or empty where nothing was expected.
    """

    pair: str
    expected: str
    seen: str
    result: str


def list_checks(facts: RunFacts) -> list[CheckRow]:
    """Return what the judge made of answers of known worth; empty where it was not checked."""
    checks = facts.self_check.get("checks")
    rows = []
    for check in checks if isinstance(checks, list) else ():
        if not isinstance(check, Mapping) or (mean := as_number(check.get("difference"))) is None:
            continue
        interval = parse_interval(check.get("interval"))
        ends = f" ({format_interval(interval, signed=True)})" if interval else ""
        pair = f"{str(check.get('first', '')).removeprefix('injection:')} less {check.get('second', '')}"
        passed = check.get("passed")
        result = "passed" if passed is True else "failed" if passed is False else ""
        rows.append(CheckRow(pair, str(check.get("expected") or ""), f"{format_signed(mean)}{ends}", result))
    return rows


@dataclasses.dataclass(frozen=True)
class TaskRow:
    """The tuned model's result on one task of lm-eval.

    Attributes:
        task: The task's name.
        metric: What was measured of it.
        value: With its standard error.
        difference: From the base model's, with its 95 % interval; empty where that was not asked.
        n: Questions asked.
    """

    task: str
    metric: str
    value: str
    difference: str
    n: str


def list_tasks(facts: RunFacts) -> list[TaskRow]:
    """Return the tuned model's results on tasks of lm-eval; empty where it was not asked."""
    results = facts.benchmarks.get("results")
    rows = []
    for result in results if isinstance(results, list) else ():
        if not isinstance(result, Mapping) or (value := as_number(result.get("value"))) is None:
            continue
        error, total = as_number(result.get("standard_error")), as_number(result.get("total"))
        asked, of = f"{result.get('n', '')}", f" of {total:,.0f}" if total else ""
        rows.append(
            TaskRow(
                task=str(result.get("task") or ""),
                metric=str(result.get("metric") or ""),
                value=f"{value:.3f}" + (f" ± {error:.3f}" if error is not None else ""),
                difference=_format_task_difference(result.get("difference")),
                n=asked + of,
            )
        )
    return rows


def _format_task_difference(value: Any) -> str:
    if not isinstance(value, Mapping):
        return ""
    mean, low, high = (as_number(value.get(name)) for name in ("mean", "low", "high"))
    if mean is None or low is None or high is None:
        return ""
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


@dataclasses.dataclass(frozen=True)
class PairRow:
    """How often the tuned model's answers were preferred to those of one baseline.

    Attributes:
        baseline: The other answers.
        win_rate: Ties as halves, with its 95 % interval.
        at_equal_length: The same with the effect of length taken out.
        consistency: Share of pairs with the same verdict in both orders; empty where none was asked.
        n: Pairs with a verdict.
        judge: Who judged.
    """

    baseline: str
    win_rate: str
    at_equal_length: str
    consistency: str
    n: int
    judge: str


def list_pairs(facts: RunFacts) -> list[PairRow]:
    """Return the results of pairwise judging, one for each baseline; empty where there was none."""
    rows = []
    for summary in facts.pairwise:
        consistency, judge = summary.get("consistency"), summary.get("judge")
        share = as_number(consistency.get("share")) if isinstance(consistency, Mapping) else None
        if not (rate := _format_rate(summary, "win_rate")):
            continue
        rows.append(
            PairRow(
                baseline=str(summary.get("second") or ""),
                win_rate=rate,
                at_equal_length=_format_rate(summary, "length_controlled_win_rate"),
                consistency="" if share is None else f"{100 * share:.0f} %",
                n=int(as_number(summary.get("n")) or 0),
                judge=str(judge.get("model") or "") if isinstance(judge, Mapping) else "",
            )
        )
    return rows


def _format_rate(summary: Mapping[str, Any], name: str) -> str:
    rate, interval = as_number(summary.get(name)), parse_interval(summary.get(f"{name}_interval"))
    if rate is None:
        return ""
    ends = f" ({100 * interval.low:.1f} to {100 * interval.high:.1f})" if interval else ""
    return f"{100 * rate:.1f} %{ends}"
