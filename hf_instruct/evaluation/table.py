"""The result of a comparison: its numbers, and aligned tables of them that fit a terminal of 100 columns."""

import dataclasses
import functools
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_instruct.console import format_interval, format_points, format_signed
from hf_instruct.evaluation.intervals import Interval
from hf_instruct.evaluation.metrics import format_metric, label_metric
from hf_instruct.evaluation.score_summary import Leading

if TYPE_CHECKING:
    from hf_instruct.plots import ComparisonRow

WIDTH = 100
_GAP = "  "
_SHORTEST_NAME = 16
_MOST_COLUMNS = 9
# Examples from which on a difference in one category is marked.
_FEWEST = 10


@dataclasses.dataclass(frozen=True)
class Difference:
    """A run's values less the baseline's, example by example.

    Attributes:
        mean: In the values' unit.
        interval: Its 95 % interval, a score interval for shares, else bootstrapped; None for a single example.
        wins: Examples on which the run's value is higher.
        ties: Examples on which both are equal.
        losses: Examples on which the baseline's is higher.
        p_value: Of the two-sided sign test; None where all values are equal.
    """

    mean: float
    interval: Interval | None
    wins: int
    ties: int
    losses: int
    p_value: float | None

    @property
    def is_shown(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval is not None and not self.interval.spans(0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**dataclasses.asdict(self), "interval": _plain(self.interval), "is_shown": self.is_shown}


@dataclasses.dataclass(frozen=True)
class Row:
    """One run of a comparison.

    Attributes:
        name: The run.
        mean: Of its scores of the common examples.
        interval: 95 % bootstrap interval of that mean; None for a single example.
        n: Its examples with a score, common or not.
        failures: Its examples without one.
        mean_failures_as_0: Mean over all its examples with each failure counted as 0.
        mean_failures_as_100: The same with each failure counted as 100.
        difference: From the baseline, on the common examples; None for the baseline itself.
        validation_loss: Of the model, in nats a token; None where that is not known.
        repeats: How often each answer was judged.
        self_check: What a check of its judge found; None where there was none.
    """

    name: str
    mean: float
    interval: Interval | None
    n: int
    failures: int
    mean_failures_as_0: float
    mean_failures_as_100: float
    difference: Difference | None
    validation_loss: float | None
    repeats: int
    self_check: dict[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        difference = self.difference.to_dict() if self.difference else None
        total = self.n + self.failures
        coverage = {"total": total, "coverage": self.n / total}
        return {**values, **coverage, "interval": _plain(self.interval), "difference": difference}


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """The runs on a part of the examples, or by another measure.

    Attributes:
        name: The category, or the metric.
        n: Examples that all runs have a value for.
        means: Mean of each run, in the order of the comparison's rows.
        differences: From the baseline, in that order; None for the baseline itself.
    """

    name: str
    n: int
    means: list[float]
    differences: list[Difference | None]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        differences = [difference.to_dict() if difference else None for difference in self.differences]
        return {"name": self.name, "n": self.n, "means": self.means, "differences": differences}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        rows: One a run, highest mean of the leading measure first.
        baseline: The run that the differences are from.
        n: Examples that all runs have a score for; means and differences are over these.
        num_dropped: Examples that only some of the runs have a score for.
        keyed: Whether examples were joined by id, rather than by their order.
        judge: Who judged, in words.
        judging_differences: In what the runs were judged differently, where that was forced; mostly empty.
        categories: The scores by category, where examples have one.
        metrics: The reference metrics that all runs have.
        leading: Which measure the rows are sorted by, and why, where that is not the score.
        notes: What a reader should know before quoting the numbers.
    """

    rows: list[Row]
    baseline: str
    n: int
    num_dropped: int
    keyed: bool
    judge: str
    judging_differences: list[str]
    categories: list[Breakdown]
    metrics: list[Breakdown]
    leading: Leading
    notes: list[str]

    def __str__(self) -> str:
        return format_comparison(self)

    def list_plot_rows(self) -> "list[ComparisonRow]":
        """Return what `draw_comparison_plot` draws."""
        drawn: list[ComparisonRow] = []
        for row in self.rows:
            difference = (row.difference.mean, row.difference.interval) if row.difference else None
            drawn.append((row.name, row.mean, row.interval, difference))
        return drawn

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as `--json` prints them."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        parts = {name: [part.to_dict() for part in values[name]] for name in ("rows", "categories", "metrics")}
        return {**values, **parts, "leading": self.leading._asdict(), "alike": not self.judging_differences}


def _plain(interval: Interval | None) -> list[float] | None:
    return list(interval) if interval else None


def format_comparison(comparison: Comparison) -> str:
    """Return a comparison as text: who judged, the table, each difference in words, categories, metrics, notes."""
    what = "examples" if comparison.n > 1 else "example"
    intro = f"{comparison.judge}; {comparison.n:,} {what} that all runs have a score for"
    parts = []
    if comparison.judging_differences:
        differences = "; ".join(comparison.judging_differences)
        parts.append(_wrap(f"NOT COMPARABLE: judged differently, compared with `--force`. {differences}"))
    metrics = _format_breakdowns("metric", comparison.metrics, comparison, is_score=False)
    categories = _format_breakdowns("by category", comparison.categories, comparison, is_score=True)
    table, reason = _format_table(comparison), comparison.leading.reason
    if reason:
        # What such a judge finds higher or lower is not put in words.
        parts += [_wrap(intro), *metrics, _wrap(f"Scores that say little, because {reason}:"), table, *categories]
    else:
        parts += [_wrap(intro), table, *_list_differences(comparison), *categories, *metrics]
    notes = [_wrap(f"! {note}", indent="  ") for note in [*comparison.notes, *_note_failures(comparison.rows)]]
    return "\n\n".join(part for part in [*parts, "\n".join(notes)] if part)


def _show_ends(difference: Difference) -> str:
    return format_interval(difference.interval, signed=True) if difference.interval else "-"


def describe_difference(name: str, baseline: str, difference: Difference) -> str:
    """Return a run's difference from the baseline in one sentence."""
    n = difference.wins + difference.ties + difference.losses
    counts = f"higher on {difference.wins}, equal on {difference.ties}, lower on {difference.losses} of {n}"
    if difference.interval is None:
        return f"{name} less {baseline}: {format_signed(difference.mean)} points on one example, which shows nothing."
    p_value = "" if difference.p_value is None else f"; sign test p {_format_p(difference.p_value)}"
    verdict = ("higher" if difference.mean > 0 else "lower") if difference.is_shown else "no difference shown"
    return (
        f"{name} less {baseline}: {format_signed(difference.mean)} points, 95 % interval "
        f"{format_interval(difference.interval, signed=True)} ({counts}{p_value}): {verdict}."
    )


def _format_p(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _format_table(comparison: Comparison) -> str:
    header = ["#", "run", "mean", "95 % interval", "difference", "95 % interval", "scored", "validation loss"]
    table = [header]
    for number, row in enumerate(comparison.rows, start=1):
        difference = row.difference
        table.append(
            [
                str(number),
                row.name,
                format_points(row.mean),
                format_interval(row.interval) if row.interval else "-",
                format_signed(difference.mean) if difference else "baseline",
                _show_ends(difference) if difference else "",
                f"{row.n} of {row.n + row.failures}",
                f"{row.validation_loss:.3f}" if row.validation_loss is not None else "",
            ]
        )
    if not any(line[-1] for line in table[1:]):
        table = [line[:-1] for line in table]
    return _align(table, name_column=1)


def _align(table: Sequence[Sequence[str]], *, name_column: int) -> str:
    """Return rows as aligned lines; names are cut to what the width leaves, and stand left, all else right."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    rest = sum(widths) - widths[name_column] + len(_GAP) * (len(widths) - 1)
    widths[name_column] = min(widths[name_column], max(_SHORTEST_NAME, WIDTH - rest))
    lines = []
    for line in table:
        cells = [
            _shorten(cell, width).ljust(width) if column == name_column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append(_GAP.join(cells).rstrip())
    return "\n".join(lines)


def _shorten(name: str, width: int) -> str:
    """Return a name without what does not fit, cut at its start: runs differ at the end of their paths."""
    name = "".join(character if character.isprintable() else "?" for character in name)
    return name if len(name) <= width else "…" + name[len(name) - width + 1 :]


def _list_differences(comparison: Comparison) -> list[str]:
    lines = [
        _wrap(describe_difference(row.name, comparison.baseline, row.difference), indent="  ")
        for row in comparison.rows
        if row.difference is not None
    ]
    return ["\n".join(lines)]


def _format_breakdowns(
    title: str, breakdowns: Sequence[Breakdown], comparison: Comparison, *, is_score: bool
) -> list[str]:
    """Return a table of means by run, with the difference for two runs, and marks for it for several."""
    if not breakdowns:
        return []
    count = len(comparison.rows)
    base = next(number for number, row in enumerate(comparison.rows) if row.difference is None)
    if count > _MOST_COLUMNS:
        return [f"{title}: {len(breakdowns)} rows for {count} runs do not fit here; `--json` has them."]
    header = [title, "n", *(str(number) for number in range(1, count + 1))]
    if two := count == 2:
        header += [f"{2 - base} less {base + 1}", "95 % interval"]
    table = [header]
    any_marked = False
    for part in breakdowns:
        show, show_signed, label = format_points, format_signed, part.name
        if not is_score:
            show = functools.partial(format_metric, part.name)
            show_signed, label = functools.partial(show, signed=True), label_metric(part.name)
        # The bootstrap of a handful of values that happen to have one sign always excludes 0.
        marks = [
            part.n >= _FEWEST and difference is not None and difference.is_shown for difference in part.differences
        ]
        any_marked |= any(marks)
        if two:
            (difference,) = [difference for difference in part.differences if difference is not None]
            ends = difference.interval
            interval = f"{show_signed(ends.low)} to {show_signed(ends.high)}" if ends else "-"
            extra = [show_signed(difference.mean), interval + ("*" if any(marks) else " ")]
            table.append([label, str(part.n), *map(show, part.means), *extra])
        else:
            means = [show(mean) + ("*" if mark else " ") for mean, mark in zip(part.means, marks, strict=True)]
            table.append([label, str(part.n), *means])
    text = _align(table, name_column=0)
    return [f"{text}\n* the interval of the difference from {base + 1} excludes 0" if any_marked else text]


def _note_failures(rows: Sequence[Row]) -> list[str]:
    return [
        f"{row.failures} {'answer' if row.failures == 1 else 'answers'} of {row.name} "
        f"{'has' if row.failures == 1 else 'have'} no score: counted as 0 or as 100, its mean would be "
        f"{format_points(row.mean_failures_as_0)} or {format_points(row.mean_failures_as_100)}."
        for row in rows
        if row.failures
    ]


def _wrap(text: str, *, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
