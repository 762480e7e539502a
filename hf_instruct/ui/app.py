"""The web page of `hf-instruct ui` and its tabs."""

import contextlib
import dataclasses
import functools
import socket
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import InstructError
from hf_instruct.evaluation.comparison_views import draw_comparison_plot, list_rows
from hf_instruct.evaluation.scores import SCORE
from hf_instruct.schema import MODELS, TUNED
from hf_instruct.ui.model_pool import ModelPool, Source
from hf_instruct.ui.pages import QUICK, format_notice, format_plot, serve_page
from hf_instruct.ui.vote_tab import VoteTab

if TYPE_CHECKING:
    from hf_instruct.evaluation.comparison import Comparison


def serve_ui(
    sources: Sequence[Source], server: socket.socket, *, hosts: Iterable[str], trust_remote_code: bool = False
) -> None:
    """Serve the page on a bound socket until interrupted.

    Args:
        sources: From `find_sources`.
        server: From `hf_instruct.local_server.open_socket`.
        hosts: From `hf_instruct.local_server.list_hosts`.
        trust_remote_code: Run code that comes with the models.

    Raises:
        KeyboardInterrupt: The server was interrupted.
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
                with gradio.Tab("Explore", id="explore") as tab:
                    build_explore_tab(gradio, pool, tab)
                if runs:
                    with gradio.Tab("Runs", id="runs") as tab:
                        _build_runs_tab(gradio, runs, tab)
                if votes.sides:
                    with gradio.Tab("Vote", id="vote"):
                        votes.build(gradio, blocks)

        title = f"hf-instruct: {', '.join(source.label for source in sources)}"
        reports = [functools.partial(render_report, source) for source in runs]
        serve_page(title, build, server, hosts=hosts, reports=reports)


def _build_runs_tab(gradio: Any, sources: Sequence[Source], tab: Any) -> None:
    """Add the table of `hf-instruct compare` and a run's report in a frame; both are read again when the tab is opened.

    Args:
        gradio: The module.
        sources: The runs; their reports are at `/report/0` and so on, in this order.
        tab: The `gradio.Tab` that contains the components.
    """
    labels = [source.label for source in sources]
    notice = gradio.HTML(format_notice(""), elem_id="hi-runs-notice")
    fixed = {"interactive": False, "visible": False, "wrap": True, "buttons": []}
    metric = gradio.Dataframe(elem_id="hi-runs-metric", **fixed)
    table = gradio.Dataframe(elem_id="hi-runs-table", **fixed)
    plot = gradio.HTML(visible=False, elem_id="hi-runs-plot")
    run = gradio.Dropdown(labels, value=labels[0], label="Report of", visible=len(labels) > 1, elem_id="hi-report")
    frame = gradio.HTML(elem_id="hi-report-frame")

    def show_report(label: str) -> str:
        # In a sandbox without an origin, the report's script cannot access this page.
        source = f"/report/{labels.index(label)}"
        return f'<iframe class="report" title="report" sandbox="allow-scripts" src="{source}"></iframe>'

    def show(label: str) -> list[Any]:
        try:
            comparison = _compare(sources)
        except InstructError as error:
            return [format_notice(str(error)), *[gradio.update(visible=False)] * 3, show_report(label)]
        leading = comparison.leading
        weak = [f"The scores say little, because {leading.reason}."] if leading.reason else []
        judge = f"{comparison.judge[0].upper()}{comparison.judge[1:]}."
        lines = [judge, *weak, *comparison.judging_differences, *comparison.notes]
        tables: list[Any] = []
        for measure in (leading.name if leading.is_metric else None, SCORE if comparison.is_scored else None):
            if measure is None:
                tables.append(gradio.update(visible=False))
                continue
            heads, *rows = [cells for _, *cells in list_rows(comparison, measure)]
            tables.append(gradio.update(value={"headers": heads, "data": rows}, visible=True))
        plot = gradio.update(value=format_plot(draw_comparison_plot(comparison), "runs"), visible=True)
        return [format_notice("\n".join(lines).replace("`", "")), *tables, plot, show_report(label)]

    tab.select(show, [run], [notice, metric, table, plot, frame], **QUICK)
    run.input(show_report, [run], [frame], **QUICK)


def _compare(sources: Sequence[Source]) -> "Comparison":
    """Return the comparison of all models of the runs, under their labels.

    It includes the models whose answers were judged or, if there are none, those whose answers were measured.
    """
    from hf_instruct.evaluation.comparison import compare_runs

    models = [(source, source.run, model) for source in sources if source.run for model in MODELS]
    judged = [entry for entry in models if entry[1].read_judgments(entry[2])]
    names = {}
    for source, run, model in judged or [entry for entry in models if entry[1].read_metrics(entry[2]).examples]:
        is_tuned = model == TUNED
        path = run.path if is_tuned else run.path / model
        names[str(path)] = source.label if is_tuned else f"{source.label}, {run.read_provenance().label(model)}"
    comparison = compare_runs(list(names), baseline=next(iter(names), None), force=True)
    rows = [dataclasses.replace(row, name=names[row.name]) for row in comparison.rows]
    return dataclasses.replace(comparison, rows=rows)


def render_report(source: Source) -> str:
    """Return a run's report from the current files of its folder."""
    from hf_instruct.reporting.page import render_page
    from hf_instruct.reporting.results import read_results

    try:
        assert source.run is not None
        return render_page(read_results(source.run))
    except InstructError as error:
        return format_notice(f"The run cannot be read: {error}")
