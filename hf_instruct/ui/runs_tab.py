"""The runs tab: the table of `hf-instruct compare`, and each run's report in a frame; read anew when it is opened."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hf_instruct.console import format_interval, format_points, format_signed
from hf_instruct.errors import InstructError
from hf_instruct.ui.model_pool import Source
from hf_instruct.ui.pages import QUICK, format_notice

if TYPE_CHECKING:
    from hf_instruct.evaluation.comparison import Comparison

_HEADS = [
    "answers of",
    "mean score",
    "95 % interval",
    "n",
    "failures",
    "difference",
    "95 % interval",
    "validation loss",
]


class RunsTab:
    """The parts of the tab, and what its controls do.

    Args:
        gradio: The module.
        sources: Those that are runs, one at least; the report of each is at `/report/0` and so on, in this order.
        tab: The `gradio.Tab` that holds it.
    """

    def __init__(self, gradio: Any, sources: Sequence[Source], tab: Any) -> None:
        self._gradio, self._sources = gradio, sources
        notice = gradio.HTML(format_notice(""), elem_id="hi-runs-notice")
        table = gradio.Dataframe(interactive=False, visible=False, wrap=True, buttons=[], elem_id="hi-runs-table")
        plot = gradio.Plot(show_label=False, visible=False, elem_id="hi-runs-plot")
        labels = [source.label for source in sources]
        run = gradio.Dropdown(labels, value=labels[0], label="Report of", visible=len(labels) > 1, elem_id="hi-report")
        frame = gradio.HTML(elem_id="hi-report-frame")
        tab.select(self._show, [run], [notice, table, plot, frame], **QUICK)
        run.input(self._show_report, [run], [frame], **QUICK)

    def _show(self, label: str) -> list[Any]:
        update = self._gradio.update
        try:
            comparison = _compare(self._sources)
        except InstructError as error:
            return [format_notice(str(error)), update(visible=False), update(visible=False), self._show_report(label)]
        from hf_instruct.plots import draw_comparison_plot

        notice = "\n".join([f"{comparison.judge}.", *comparison.judging_differences, *comparison.notes])
        plot = draw_comparison_plot(comparison.list_plot_rows())
        table = {"headers": _HEADS, "data": _list_rows(comparison)}
        return [
            format_notice(notice),
            update(value=table, visible=True),
            update(value=plot, visible=True),
            self._show_report(label),
        ]

    def _show_report(self, label: str) -> str:
        number = next(number for number, source in enumerate(self._sources) if source.label == label)
        # Without an origin of its own, the report's script reaches nothing of this page.
        return f'<iframe class="report" title="report" sandbox="allow-scripts" src="/report/{number}"></iframe>'


def list_reports(sources: Sequence[Source]) -> list[Callable[[], str]]:
    """Return what renders each run's report as its folder is now."""

    def render(source: Source) -> str:
        from hf_instruct.reporting.facts import read_facts
        from hf_instruct.reporting.page import render_page

        assert source.run is not None
        try:
            return render_page(read_facts(source.run, source.run.load_experiment()))
        except InstructError as error:
            return format_notice(f"The run cannot be read: {error}")

    return [lambda source=source: render(source) for source in sources]  # type: ignore[misc]


def _compare(sources: Sequence[Source]) -> "Comparison":
    """Return the judged answers of the runs side by side, the untuned model's of each before the tuned one's.

    Raises:
        InstructError: Fewer than two sets of answers are judged, or they cannot be compared.
    """
    from hf_instruct.evaluation.comparison import compare_runs

    runs = [source.run for source in sources if source.run is not None]
    judged = [folder.path for run in runs for folder in (run.base, run) if folder.judgments.is_file()]
    return compare_runs(judged, baseline=judged[0] if judged else None, force=True)


def _list_rows(comparison: "Comparison") -> list[list[str]]:
    rows = []
    for row in comparison.rows:
        gain = row.difference
        rows.append(
            [
                row.name,
                format_points(row.mean),
                format_interval(row.interval) if row.interval else "",
                str(row.n),
                str(row.failures),
                format_signed(gain.mean) if gain else "baseline",
                format_interval(gain.interval, signed=True) if gain and gain.interval else "",
                "" if row.validation_loss is None else f"{row.validation_loss:.3f}",
            ]
        )
    return rows
