"""The page of `hf-instruct ui`: one tab for each thing to do."""

import contextlib
import functools
import socket
from collections.abc import Iterable, Sequence
from typing import Any

from hf_instruct.errors import InstructError
from hf_instruct.schema import MODELS, TUNED
from hf_instruct.ui.model_pool import ModelPool, Source
from hf_instruct.ui.pages import QUICK, format_notice, serve_page
from hf_instruct.ui.vote_tab import VoteTab


def serve_ui(
    sources: Sequence[Source], server: socket.socket, *, hosts: Iterable[str], trust_remote_code: bool = False
) -> None:
    """Serve the page on a bound socket until interrupted.

    Args:
        sources: From `find_sources`.
        server: From `hf_instruct.addresses.open_socket`.
        hosts: From `hf_instruct.addresses.list_hosts`.
        trust_remote_code: Run code that comes with the models.

    Raises:
        KeyboardInterrupt: Somebody ended it.
    """
    runs = [source for source in sources if source.run]
    with contextlib.ExitStack() as stack:
        pool, votes = ModelPool(sources, trust_remote_code=trust_remote_code), VoteTab(sources, stack)

        def build(gradio: Any, blocks: Any) -> None:
            from hf_instruct.ui.chat_tab import ChatTab
            from hf_instruct.ui.explore_tab import build_explore_tab

            with gradio.Tabs():
                with gradio.Tab("Chat", id="chat"):
                    ChatTab(gradio, pool)
                with gradio.Tab("Explore", id="explore"):
                    build_explore_tab(gradio, pool)
                if runs:
                    with gradio.Tab("Runs", id="runs") as tab:
                        _build_runs_tab(gradio, runs, tab)
                if len(votes.sides) > 1:
                    with gradio.Tab("Vote", id="vote"):
                        votes.build(gradio, blocks)

        title = f"hf-instruct: {', '.join(source.label for source in sources)}"
        reports = [functools.partial(render_report, source) for source in runs]
        serve_page(title, build, server, hosts=hosts, reports=reports)


def _build_runs_tab(gradio: Any, sources: Sequence[Source], tab: Any) -> None:
    """Add the table of `hf-instruct compare` and a run's report in a frame; both are read again when it is opened.

    Args:
        gradio: The module.
        sources: Those that are runs; the report of each is at `/report/0` and so on, in this order.
        tab: The `gradio.Tab` that holds them.
    """
    labels = [source.label for source in sources]
    notice = gradio.HTML(format_notice(""), elem_id="hi-runs-notice")
    fixed = {"interactive": False, "visible": False, "wrap": True, "buttons": []}
    metric = gradio.Dataframe(elem_id="hi-runs-metric", **fixed)
    table = gradio.Dataframe(elem_id="hi-runs-table", **fixed)
    plot = gradio.Plot(show_label=False, visible=False, elem_id="hi-runs-plot")
    run = gradio.Dropdown(labels, value=labels[0], label="Report of", visible=len(labels) > 1, elem_id="hi-report")
    frame = gradio.HTML(elem_id="hi-report-frame")

    def show_report(label: str) -> str:
        # Without an origin of its own, the report's script reaches nothing of this page.
        source = f"/report/{labels.index(label)}"
        return f'<iframe class="report" title="report" sandbox="allow-scripts" src="{source}"></iframe>'

    def compare(label: str) -> list[Any]:
        """Return how the judged answers compare, the untuned model's of each run and the tuned one's."""
        from hf_instruct.evaluation.comparison import compare_runs
        from hf_instruct.evaluation.table import list_rows
        from hf_instruct.plots import draw_comparison_plot

        update = gradio.update
        runs = [source.run for source in sources if source.run is not None]
        sides = [(run, model) for run in runs for model in MODELS if run.read_judgments(model)]
        judged = [run.path if model == TUNED else run.path / model for run, model in sides]
        try:
            found = compare_runs(judged, baseline=judged[0] if judged else None, force=True)
        except InstructError as error:
            return [format_notice(str(error)), *[update(visible=False)] * 3, show_report(label)]
        leading = found.leading
        weak = [f"The scores say little, because {leading.reason}."] if leading.reason else []
        said = format_notice("\n".join([f"{found.judge}.", *weak, *found.judging_differences, *found.notes]))
        tables = [list_rows(found, leading.name) if leading.is_metric else [[]], list_rows(found)]
        tables[1][0][2] = "score"
        shown = [update(value={"headers": heads, "data": rows}, visible=bool(rows)) for heads, *rows in tables]
        drawn = draw_comparison_plot(found.list_plot_rows(), measure=leading.label or "score")
        return [said, *shown, update(value=drawn, visible=True), show_report(label)]

    tab.select(compare, [run], [notice, metric, table, plot, frame], **QUICK)
    run.input(show_report, [run], [frame], **QUICK)


def render_report(source: Source) -> str:
    """Return a run's report as its folder is now."""
    from hf_instruct.reporting.page import render_page
    from hf_instruct.reporting.results import read_results

    try:
        assert source.run is not None
        return render_page(read_results(source.run, source.run.load_experiment()))
    except InstructError as error:
        return format_notice(f"The run cannot be read: {error}")
