"""The runs tab: the table of `hf-instruct compare`, and each run's report in a frame; read again when it is opened."""

from collections.abc import Callable, Sequence
from typing import Any

from hf_instruct.errors import InstructError
from hf_instruct.schema import MODELS, TUNED
from hf_instruct.ui.model_pool import Source
from hf_instruct.ui.pages import QUICK, format_notice


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
        tab.select(
            lambda label: [*self._compare(), self._show_report(label)], [run], [notice, table, plot, frame], **QUICK
        )
        run.input(self._show_report, [run], [frame], **QUICK)

    def _compare(self) -> list[Any]:
        """Return what says how the judged answers compare, the untuned model's of each run and the tuned one's."""
        from hf_instruct.evaluation.comparison import compare_runs
        from hf_instruct.evaluation.table import list_rows
        from hf_instruct.plots import draw_comparison_plot

        update = self._gradio.update
        runs = [source.run for source in self._sources if source.run is not None]
        sides = [(run, model) for run in runs for model in MODELS if run.read_judgments(model)]
        judged = [run.path if model == TUNED else run.path / model for run, model in sides]
        try:
            found = compare_runs(judged, baseline=judged[0] if judged else None, force=True)
        except InstructError as error:
            return [format_notice(str(error)), update(visible=False), update(visible=False)]
        weak = [f"These scores say little, because {found.leading.reason}."] if found.leading.reason else []
        notice = format_notice("\n".join([f"{found.judge}.", *weak, *found.judging_differences, *found.notes]))
        heads, *rows = list_rows(found)
        plot = draw_comparison_plot(found.list_plot_rows())
        return [notice, update(value={"headers": heads, "data": rows}, visible=True), update(value=plot, visible=True)]

    def _show_report(self, label: str) -> str:
        number = [source.label for source in self._sources].index(label)
        # Without an origin of its own, the report's script reaches nothing of this page.
        return f'<iframe class="report" title="report" sandbox="allow-scripts" src="/report/{number}"></iframe>'


def list_reports(sources: Sequence[Source]) -> list[Callable[[], str]]:
    """Return what renders each run's report as its folder is now."""

    def render(source: Source) -> str:
        from hf_instruct.reporting.page import render_page
        from hf_instruct.reporting.results import read_results

        try:
            assert source.run is not None
            return render_page(read_results(source.run, source.run.load_experiment()))
        except InstructError as error:
            return format_notice(f"The run cannot be read: {error}")

    return [lambda source=source: render(source) for source in sources]  # type: ignore[misc]
