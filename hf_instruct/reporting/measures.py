"""What was measured of a run besides the judge's scores: reference metrics, benchmark tasks, the check of the judge."""

import dataclasses

from hf_instruct.console import format_interval, format_signed
from hf_instruct.evaluation.intervals import measure_difference
from hf_instruct.evaluation.metrics import METRICS, QUOTIENTS, SHARES, format_metric, label_metric
from hf_instruct.evaluation.probes import name_kind
from hf_instruct.reporting.facts import RunFacts
from hf_instruct.schema import Interval, MeanDifference, MetricValue


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
    base: MetricValue | None
    tuned: MetricValue | None
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
    sides = [side.metrics.metrics for side in (facts.base, facts.tuned)]
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
    rows = []
    for check in facts.self_check.checks if facts.self_check else ():
        if check.difference is None:
            continue
        ends = f" ({format_interval(check.interval, signed=True)})" if check.interval else ""
        result = "" if check.passed is None else "passed" if check.passed else "failed"
        pair = f"{name_kind(check.first)} - {check.second}"
        rows.append(CheckRow(pair, check.expected, f"{format_signed(check.difference)}{ends}", result))
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
    rows = []
    for result in facts.benchmarks:
        if result.value is None:
            continue
        error, difference = result.standard_error, result.difference
        ends = f"{difference.mean:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})" if difference else ""
        rows.append(
            TaskRow(
                task=result.task,
                metric=result.metric,
                value=f"{result.value:.3f}" + (f" ± {error:.3f}" if error is not None else ""),
                difference=ends,
                n=f"{result.n}" + (f" of {result.total:,}" if result.total else ""),
            )
        )
    return rows


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
        if summary.win_rate is None:
            continue
        share = summary.consistency.share
        controlled = summary.length_controlled_win_rate, summary.length_controlled_win_rate_interval
        rows.append(
            PairRow(
                baseline=summary.second,
                win_rate=_format_rate(summary.win_rate, summary.win_rate_interval),
                at_equal_length=_format_rate(*controlled),
                consistency="" if share is None else f"{100 * share:.0f} %",
                n=summary.n,
                judge=summary.judge.model,
            )
        )
    return rows


def _format_rate(rate: float | None, interval: Interval | None) -> str:
    if rate is None:
        return ""
    ends = f" ({100 * interval.low:.1f} to {100 * interval.high:.1f})" if interval else ""
    return f"{100 * rate:.1f} %{ends}"
