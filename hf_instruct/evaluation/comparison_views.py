"""Views of a comparison: tables that fit the terminal, each difference in a sentence, and the plot."""

import functools
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hf_instruct.console import align, format_interval, format_points, format_signed, pluralize, text_width
from hf_instruct.evaluation.intervals import FEWEST
from hf_instruct.evaluation.metrics import SHARES, format_metric, label_metric
from hf_instruct.evaluation.scores import SCORE
from hf_instruct.plots import COLORS, DASHED, build_figure, style_axes
from hf_instruct.schema import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hf_instruct.evaluation.comparison import Breakdown, Comparison
    from hf_instruct.evaluation.intervals import Difference

_SHORTEST_NAME = 16
_LONGEST_PLOT_NAME = 32
_MAX_COLUMNS = 9
# The differences for which the required number of examples is shown: in points, or in the unit of a metric.
_ASKED_POINTS = 5.0
_ASKED = dict.fromkeys(("exact_match", "token_f1", "rouge_l", *SHARES), 0.05) | {"chrf": 5.0, SCORE: _ASKED_POINTS}


def format_comparison(comparison: "Comparison") -> str:
    """Return a comparison as text: who judged, the table, each difference in words, categories, metrics, notes."""
    what = f"{pluralize(comparison.n, 'example')} that all runs have {'a score for' if comparison.is_scored else ''}"
    parts = [_wrap(f"{comparison.judge}; {what}")]
    if comparison.judging_differences:
        differences = "; ".join(comparison.judging_differences)
        parts.insert(0, _wrap(f"NOT COMPARABLE: judged differently, compared with `--force`. {differences}"))
    metrics = _format_breakdowns("metric", comparison.metrics, comparison)
    categories = _format_breakdowns("by category", comparison.categories, comparison)
    if not comparison.is_scored:
        parts += [_align(list_rows(comparison, comparison.leading.name), name_column=1), metrics]
    elif reason := comparison.leading.reason:
        # Differences by such a judge are not described in words.
        if comparison.leading.is_metric and metrics:
            parts.append(_align(list_rows(comparison, comparison.leading.name), name_column=1))
        table = _align(list_rows(comparison), name_column=1)
        parts += [metrics, _wrap(f"Scores that say little, because {reason}:"), table, categories]
    else:
        differences = "\n".join(
            _wrap(describe_difference(row.name, comparison.baseline, row.difference), indent="  ")
            for row in comparison.rows
            if row.difference is not None
        )
        parts += [_align(list_rows(comparison), name_column=1), differences, metrics, categories]
    parts.append("\n".join(_wrap(line, indent="  ") for line in list_corrected(comparison)))
    notes = [_wrap(f"! {note}", indent="  ") for note in [*comparison.notes, *_note_failures(comparison)]]
    return "\n\n".join(part for part in [*parts, "\n".join(notes)] if part)


def list_corrected(comparison: "Comparison") -> list[str]:
    """Return the means and differences corrected by people's scores, one sentence each."""
    lines = [f"{row.name}, corrected by people: {row.corrected.describe()}" for row in comparison.rows if row.corrected]
    for row in comparison.rows:
        corrected = row.corrected_difference
        if corrected and corrected.mean is not None and corrected.interval:
            text = corrected.describe("examples on both sides", signed=True)
            verdict = "higher" if corrected.mean > 0 else "lower"
            if corrected.interval.spans(0.0):
                verdict = "no difference shown"
            lines.append(f"{row.name} - {comparison.baseline}, corrected by people: {text}: {verdict}")
    return lines


def describe_difference(name: str, baseline: str, difference: "Difference") -> str:
    """Return a run's difference from the baseline in one sentence."""
    start, n = f"{name} - {baseline}: {difference}", difference.n
    if difference.interval is None:
        return f"{start} on a single example, which is not enough."
    counts = f"higher on {difference.wins}, equal on {difference.ties}, lower on {difference.losses} of {n}"
    if (p := difference.p_value) is not None:
        counts += f"; sign test p {'< 0.001' if p < 0.001 else f'{p:.3f}'}"
    verdict = difference.verdict
    if bounds := difference.bounds:
        verdict += f"; with failed judgments counted as worst or best it is {format_interval(bounds, signed=True)}"
    if difference.interval.spans(0.0) and (least := difference.smallest_found):
        verdict += f". {n} examples show differences of {format_points(least)} points or more 8 times out of 10"
        verdict += f"; {_ASKED_POINTS:g} points would need about {difference.count_needed(_ASKED_POINTS):,}"
    return f"{start} ({counts}): {verdict}."


def format_power(comparison: "Comparison") -> str:
    """Return, for each measure, the smallest difference shown 8 times out of 10, and the examples needed for less."""
    table = [["measure", "run", "n", "shown 8 times out of 10", "needs about"]]
    for part in (comparison.find(SCORE), *comparison.metrics):
        show = functools.partial(_show, part.name)
        target = _ASKED.get(part.name)
        for row, difference in zip(comparison.rows, part.differences, strict=True):
            if difference and difference.smallest_found:
                needed = f"{difference.count_needed(target):,} for {show(target)}" if target else ""
                cells = str(difference.n), show(difference.smallest_found), needed
                table.append([label_metric(part.name), row.name, *cells])
    return "Required number of examples (95 % intervals, 80 % power):\n" + _align(table, name_column=1)


def list_rows(comparison: "Comparison", measure: str = SCORE) -> list[list[str]]:
    """Return the cells of the table of runs, header first, by a reference metric or by the scores."""
    show = functools.partial(_show, measure)
    show_signed = functools.partial(show, signed=True)
    part = comparison.find(measure)
    table = [["#", "run", label_metric(measure), "95 % interval", "difference", "95 % interval"]]
    columns = zip(comparison.rows, part.means, part.intervals, part.differences, strict=True)
    for number, (row, mean, ends, difference) in enumerate(columns, start=1):
        last = ["baseline", ""]
        if difference:
            last = [show_signed(difference.mean), _show_ends(difference.interval, show_signed)]
        table.append([str(number), row.name, show(mean), _show_ends(ends, show), *last])
    if measure != SCORE:
        return table
    scored = [f"{row.n} of {row.total}" for row in comparison.rows]
    losses = ["" if row.validation_loss is None else f"{row.validation_loss:.3f}" for row in comparison.rows]
    has_failures = any(row.failures for row in comparison.rows)
    for head, values, is_shown in (("scored", scored, has_failures), ("val. loss", losses, any(losses))):
        if is_shown:
            table = [[*line, cell] for line, cell in zip(table, [head, *values], strict=True)]
    return table


def _show(measure: str, value: float, *, signed: bool = False) -> str:
    if measure != SCORE:
        return format_metric(measure, value, signed=signed)
    return format_signed(value) if signed else format_points(value)


def _show_ends(ends: Interval | None, show: Callable[[float], str]) -> str:
    if ends is None:
        return "-"
    return "none: all equal" if ends[0] == ends[1] else " to ".join(map(show, ends))


def _align(table: Sequence[list[str]], *, name_column: int) -> str:
    """Return rows as aligned lines: names left-aligned and cut to the remaining width, all else right-aligned."""
    others = [column for column in range(len(table[0])) if column != name_column]
    rest = sum(max(len(line[column]) for line in table) + 2 for column in others)
    width = max(_SHORTEST_NAME, text_width() - rest)
    for line in table:
        line[name_column] = _shorten(line[name_column], width)
    return "\n".join(align(table, right=others))


def _shorten(name: str, width: int) -> str:
    """Return a name truncated at its start, because paths of runs differ at the end."""
    name = "".join(character if character.isprintable() else "?" for character in name)
    return name if len(name) <= width else "…" + name[len(name) - width + 1 :]


def _format_breakdowns(title: str, breakdowns: "Sequence[Breakdown]", comparison: "Comparison") -> str:
    """Return a table of means by run, with the difference if there are two; differences that are shown are marked."""
    count = len(comparison.rows)
    if not breakdowns:
        return ""
    if count > _MAX_COLUMNS:
        return f"{title}: {len(breakdowns)} rows for {count} runs do not fit; use `--json` to see them."
    base = next(number for number, difference in enumerate(breakdowns[0].differences) if difference is None)
    shown = [part for part in breakdowns if title == "metric" or part.n >= FEWEST]
    table = [[title, "n", *(str(number) for number in range(1, count + 1))]]
    if count == 2:
        table[0] += [f"{2 - base} - {base + 1}", "95 % interval"]
    any_marked = False
    for part in shown:
        is_metric = title == "metric"
        show = functools.partial(_show, part.name if is_metric else SCORE)
        # The bootstrap interval of a few values that happen to have the same sign always excludes 0.
        is_marked = part.n >= FEWEST and (is_metric or not comparison.leading.reason)
        marks = ["*" if is_marked and each and each.is_shown else " " for each in part.differences]
        any_marked |= "*" in marks
        line = [label_metric(part.name) if is_metric else part.name, str(part.n)]
        if (difference := part.differences[1 - base]) and count == 2:
            interval = " to ".join(show(end, signed=True) for end in difference.interval or ()) or "-"
            line += [*map(show, part.means), show(difference.mean, signed=True), interval + marks[1 - base]]
        else:
            line += [show(mean) + mark for mean, mark in zip(part.means, marks, strict=True)]
        table.append(line)
    lines = [_align(table, name_column=0)] if shown else []
    if any_marked:
        alone = f"; not corrected for {len(shown)} rows" if len(shown) > 1 else ""
        lines.append(f"* the interval of the difference from {base + 1} excludes 0{alone}")
    if hidden := len(breakdowns) - len(shown):
        lines.append(f"{hidden} of {len(breakdowns)} categories have fewer than {FEWEST} examples; `--json` has them.")
    return "\n".join(lines)


def draw_comparison_plot(comparison: "Comparison", *, title: str | None = None) -> "Figure":
    """Return the plot of a comparison by its leading measure: means on the left, differences on the right.

    Differences are paired, so their intervals are narrower than those of the means suggest. Differences with
    `is_shown` have another color. Runs are drawn from top to bottom.
    """
    figure = build_figure((7.7, 1.2 + 0.32 * len(comparison.rows)), title)
    left, right = figure.subplots(1, 2, sharey=True)
    right.axvline(0, color=COLORS["untuned"], linewidth=1.2, linestyle=DASHED)
    part = comparison.find(comparison.leading.name)
    for row, (mean, ends, difference) in enumerate(zip(part.means, part.intervals, part.differences, strict=True)):
        _draw_interval(left, row, mean, ends, COLORS["tuned" if difference else "untuned"])
        if difference:
            color = COLORS["tuned" if difference.is_shown else "untuned"]
            _draw_interval(right, row, difference.mean, difference.interval, color)
        else:
            right.text(0, row, "baseline ", ha="right", va="center", color=COLORS["text"], fontsize=9)
    names = [_shorten(row.name, _LONGEST_PLOT_NAME) for row in comparison.rows]
    left.set_yticks(range(len(names)), names, parse_math=False)
    left.set_ylim(len(names) - 0.5, -0.5)
    left.set_xlabel(f"mean {comparison.leading.label or SCORE}, 95 % interval")
    right.set_xlabel("difference from the baseline, 95 % interval")
    for axes in (left, right):
        style_axes(axes, grid="x")
        axes.locator_params(axis="x", nbins=6)
    return figure


def _draw_interval(axes: "Axes", row: int, mean: float, ends: Interval | None, color: str) -> None:
    if ends is not None:
        axes.plot(ends, [row, row], color=color, linewidth=2.2, solid_capstyle="butt")
    axes.plot([mean], [row], color=color, marker="o", markersize=5)


def _note_failures(comparison: "Comparison") -> list[str]:
    return [
        f"{pluralize(row.failures, 'answer')} of {row.name} "
        f"{'has' if row.failures == 1 else 'have'} no score: counted as 0 or as 100, its mean would be "
        f"{format_points(row.mean_failures_as_0)} or {format_points(row.mean_failures_as_100)}."
        for row in comparison.rows
        if row.failures
    ]


def _wrap(text: str, *, indent: str = "") -> str:
    return textwrap.fill(text, text_width(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
