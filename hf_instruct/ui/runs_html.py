"""The runs tab as HTML: a table of answer sets, the losses, the answers to one example."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hf_instruct.console import format_interval, format_points, format_signed
from hf_instruct.evaluation.metrics import METRICS, format_metric, label_metric
from hf_instruct.records import TrainingRow
from hf_instruct.ui.html import escape, format_card, format_cards, format_dot, format_table, series_color
from hf_instruct.ui.runs import AnswerSet, RunsView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE_INCHES = (7.2, 3.2)
_NONE = "–"


def format_runs_tables(view: RunsView) -> str:
    """Return the tables of all answer sets, the one with the leading measure first: scores and losses, and metrics."""
    if not view.sets:
        return ""
    heads = ["answers of", "mean score (95 %)", "n", f"difference from {view.sets[0].label} (95 %)", "validation loss"]
    rows = []
    for answers in view.sets:
        loss = _NONE if answers.validation_loss is None else f"{answers.validation_loss:.3f}"
        cells = [_format_label(view, answers), _format_score(answers), _format_count(answers)]
        rows.append([*cells, _format_difference(view, answers), loss])
    tables = [format_table([_keep_together(head) for head in heads], rows), _format_metrics(view)]
    return "".join(reversed(tables) if view.leading.reason else tables)


def _format_metrics(view: RunsView) -> str:
    names = [name for name in METRICS if any(name in answers.metrics for answers in view.sets)]
    if not names:
        return ""
    rows = [
        [
            _format_label(view, answers),
            *(format_metric(name, answers.metrics[name]) if name in answers.metrics else _NONE for name in names),
        ]
        for answers in view.sets
        if answers.metrics
    ]
    return format_table(["reference metrics", *(_keep_together(label_metric(name)) for name in names)], rows)


def _keep_together(head: str) -> str:
    """Return a column's head that breaks between words only."""
    return head.replace("95 %", "95\u00a0%").replace("-", "\u2011")


def describe_comparability(view: RunsView) -> str:
    """Return who judged, and which numbers of different runs cannot be compared, as text."""
    owners: dict[str, list[str]] = {}
    for answers in view.sets:
        if answers.judge:
            owners.setdefault(answers.judge, []).append(answers.label)
    said = []
    if len(owners) > 1:
        seen = "; ".join(f"{judge} ({', '.join(labels)})" for judge, labels in owners.items())
        said.append(f"Judged differently, so these scores cannot be compared: {seen}.")
    else:
        said += [f"{judge[0].upper()}{judge[1:]}." for judge in owners]
    if reason := view.leading.reason:
        said.append(f"These scores say little: {reason}.")
    data: dict[str, list[str]] = {}
    for label, digest in view.data.items():
        data.setdefault(digest, []).append(label)
    if len(data) > 1:
        groups = " | ".join(", ".join(labels) for labels in data.values())
        said.append(f"The runs are of different data ({groups}): compare scores and losses within a group only.")
    return " ".join(said)


def format_losses(logs: Mapping[str, Sequence[TrainingRow]]) -> str:
    """Return the losses of all runs as an SVG element; empty where none was logged."""
    from hf_instruct.plots import format_inline_svg

    if not any(_points(rows, "validation_loss") or _points(rows, "loss") for rows in logs.values()):
        return ""
    return f'<div class="hi-plot">{format_inline_svg(_draw_losses(logs), "runs")}</div>'


def format_answers(view: RunsView, id: str) -> str:
    """Return one example and every model's answer to it."""
    example = view.examples.get(id)
    if example is None:
        return ""
    cards = [format_card("Instruction", example.instruction, aside=example.category or "")]
    if example.input:
        cards.append(format_card("Input", example.input))
    cards.append(format_card("Reference", example.output))
    answered = []
    for answers in view.sets:
        response = answers.responses.get(id)
        if response is None:
            continue
        cut = "" if response.stopped is not False else "cut off"
        verdict = "" if id not in answers.scores else f"score {_show_score(answers.scores[id])}"
        aside = ", ".join(filter(None, (cut, verdict)))
        answered.append(format_card(answers.label, response.response, aside=aside, dot=_format_run_dot(view, answers)))
    return format_cards(cards) + format_cards(answered)


def _show_score(score: int | None) -> str:
    return "unreadable" if score is None else str(score)


def _format_label(view: RunsView, answers: AnswerSet) -> str:
    return f"{_format_run_dot(view, answers)}{escape(answers.label)}"


def _format_run_dot(view: RunsView, answers: AnswerSet) -> str:
    """Return the dot of the run's colour in the plot; an untuned model has no line there, and none here."""
    labels = list(view.logs)
    return format_dot(labels.index(answers.label)) if answers.label in labels else ""


def _format_score(answers: AnswerSet) -> str:
    if answers.mean is None:
        return _NONE
    if answers.interval is None:
        return format_points(answers.mean)
    low, high = answers.interval
    ends = f"<small>({format_interval(answers.interval)})</small>"
    # As long as the interval, but visible.
    bar = f'<i style="left:{low:.1f}%;width:{max(high - low, 1):.1f}%"></i>'
    return f'{format_points(answers.mean)} {ends}<div class="hi-track">{bar}</div>'


def _format_count(answers: AnswerSet) -> str:
    count = str(len(answers.known)) if answers.scores else _NONE
    return f"{count} <small>({answers.num_failures} failed)</small>" if answers.num_failures else count


def _format_difference(view: RunsView, answers: AnswerSet) -> str:
    found = view.difference(answers)
    if found is None:
        return _NONE
    ends = format_interval((found.low, found.high), signed=True)
    return f"{format_signed(found.mean)} <small>({ends})</small>"


def _points(rows: Sequence[TrainingRow], name: str) -> list[tuple[int, float]]:
    """Return a loss over example tokens seen; of a step that a resumed run logged twice, the later row."""
    found = {row.step: (row.tokens_seen, value) for row in rows if (value := getattr(row, name)) is not None}
    return [found[step] for step in sorted(found)]


def _draw_losses(logs: Mapping[str, Sequence[TrainingRow]]) -> "Figure":
    from hf_instruct.plots import COLORS, build_figure, style_axes

    figure = build_figure(_SIZE_INCHES)
    axes = figure.add_subplot()
    style_axes(axes, grid="y")
    for place, (label, rows) in enumerate(logs.items()):
        _draw_run(axes, label, rows, color=series_color(place))
    axes.set_xlabel("example tokens seen")
    axes.set_ylabel("loss (nats a label token)")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    legend = axes.legend(loc="upper right", frameon=False, fontsize=9, labelcolor=COLORS["text"], handlelength=1.6)
    for text in legend.get_texts():
        # A run may be called anything, dollar signs included.
        text.set_parse_math(False)
    return figure


def _draw_run(axes: "Axes", label: str, rows: Sequence[TrainingRow], *, color: str) -> None:
    batches, validation = _points(rows, "loss"), _points(rows, "validation_loss")
    if batches:
        axes.plot(*zip(*batches, strict=True), color=color, linewidth=1, alpha=0.35, clip_on=False)
    if validation:
        # A lone point is a line of no length: show it as a dot.
        marker = "o" if len(validation) == 1 else None
        axes.plot(
            *zip(*validation, strict=True),
            clip_on=False,
            color=color,
            linewidth=2.2,
            marker=marker,
            label=f"{label}, validation",
        )
    elif batches:
        axes.plot([], [], color=color, linewidth=1, label=f"{label}, training batches")
