"""The runs tab: scores, losses and answers of the runs, read from their folders each time the tab is opened."""

import functools
from collections.abc import Sequence
from typing import Any

from hf_instruct.evaluation.score_summary import SCORE
from hf_instruct.ui.html import format_notice
from hf_instruct.ui.runs import RunsView, read_runs
from hf_instruct.ui.runs_html import describe_comparability, format_answers, format_losses, format_runs_tables
from hf_instruct.ui.sources import Source

_AS_IN_THE_DATA = "as in the test split"
_BY_GAIN = "largest difference first"
_BY_VALUE = "lowest first"
_ORDERS = (_AS_IN_THE_DATA, _BY_GAIN, _BY_VALUE)
_ALL = "all categories"
_SHOWN_CHARACTERS = 90


class RunsTab:
    """The parts of the tab, and what its controls do.

    Args:
        gradio: The module.
        sources: What the page is about; those that are runs are shown.
        tab: The `gradio.Tab` that holds it.
    """

    def __init__(self, gradio: Any, sources: Sequence[Source], tab: Any) -> None:
        self._gradio = gradio
        self._sources = sources
        self._notice = gradio.HTML(format_notice(""), elem_id="hi-runs-notice")
        self._table = gradio.HTML(elem_id="hi-runs-table", apply_default_css=False)
        self._losses = gradio.HTML(elem_id="hi-losses", apply_default_css=False)
        gradio.HTML('<div class="hi-title">Answers to one example</div>')
        with gradio.Row():
            self._category = gradio.Dropdown([_ALL], value=_ALL, label="Category", min_width=240, elem_id="hi-category")
            self._order = gradio.Dropdown(
                list(_ORDERS), value=_AS_IN_THE_DATA, label="Order", min_width=240, elem_id="hi-order"
            )
        with gradio.Row():
            self._example = gradio.Dropdown([], label="Example", scale=8, min_width=240, elem_id="hi-example")
            before = gradio.Button(
                "← Previous", size="sm", scale=1, min_width=100, elem_id="hi-before", elem_classes="hi-step"
            )
            after = gradio.Button(
                "Next →", size="sm", scale=1, min_width=100, elem_id="hi-after", elem_classes="hi-step"
            )
        self._answers = gradio.HTML(elem_id="hi-answers", apply_default_css=False)
        self._connect(tab, before, after)

    def _connect(self, tab: Any, before: Any, after: Any) -> None:
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        chosen = [self._category, self._order, self._example]
        whole = [self._notice, self._table, self._losses, self._category, self._example, self._answers]
        tab.select(self._show_all, chosen, whole, **quick)
        for dropdown in (self._category, self._order):
            dropdown.input(self._sort, chosen, [self._example, self._answers], **quick)
        self._example.input(self._show_example, [self._example], [self._answers], **quick)
        for button, by in ((before, -1), (after, 1)):
            button.click(functools.partial(self._step, by), chosen, [self._example, self._answers], **quick)

    def _show_all(self, category: str, order: str, id: str | None) -> dict[Any, Any]:
        view = read_runs(self._sources)
        missing = "" if view.sets or view.faults else "These runs have neither losses nor answers yet."
        notice = "\n".join(filter(None, (missing, describe_comparability(view), *view.faults)))
        categories = sorted({example.category for example in view.examples.values() if example.category})
        category = category if category in categories else _ALL
        choices = list_choices(view, category, order)
        ids = [value for _, value in choices]
        id = id if id in ids else next(iter(ids), None)
        update = self._gradio.update
        return {
            self._notice: format_notice(notice, error=bool(view.faults)),
            self._table: format_runs_tables(view),
            self._losses: format_losses(view.logs),
            self._category: update(choices=[_ALL, *categories], value=category, visible=bool(categories)),
            self._example: update(choices=choices, value=id),
            self._answers: format_answers(view, id) if id else "",
        }

    def _sort(self, category: str, order: str, id: str | None) -> dict[Any, Any]:
        """Show the examples of another category or in another order, the first of them in full."""
        view = read_runs(self._sources)
        choices = list_choices(view, category, order)
        first = choices[0][1] if choices else None
        return {
            self._example: self._gradio.update(choices=choices, value=first),
            self._answers: format_answers(view, first) if first else "",
        }

    def _step(self, by: int, category: str, order: str, id: str | None) -> dict[Any, Any]:
        view = read_runs(self._sources)
        choices = list_choices(view, category, order)
        ids = [value for _, value in choices]
        if not ids:
            return {self._answers: ""}
        next_id = ids[(ids.index(id) + by) % len(ids)] if id in ids else ids[0]
        # The choices too: a run may have answered more since.
        return {
            self._example: self._gradio.update(choices=choices, value=next_id),
            self._answers: format_answers(view, next_id),
        }

    def _show_example(self, id: str | None) -> str:
        return format_answers(read_runs(self._sources), id) if id else ""


def list_choices(view: RunsView, category: str, order: str) -> list[tuple[str, str]]:
    """Return the examples to choose from: what each is called, and its id.

    Args:
        view: The runs.
        category: Only of this one; anything that is none of the examples' stands for all.
        order: One of the tab's; by the leading measure.
    """
    examples = view.examples
    ids = [id for id, example in examples.items() if example.category == category] or list(examples)
    leading = view.leading.name
    known = [answers.known if leading == SCORE else answers.values.get(leading, {}) for answers in view.sets]
    values = {id: [of[id] for of in known if id in of] for id in ids}
    if order == _BY_GAIN:
        ids.sort(key=lambda id: -(max(values[id]) - min(values[id])) if values[id] else 1)
    elif order == _BY_VALUE:
        ids.sort(key=lambda id: min(values[id]) if values[id] else 101)
    place = {id: number for number, id in enumerate(examples, start=1)}
    return [(f"{place[id]}. {_shorten(examples[id].instruction)}", id) for id in ids]


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[: _SHOWN_CHARACTERS - 1]}…"
