"""The explore tab: how a model picks its words, for a text of the user's."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import InstructError
from hf_instruct.ui.model_pool import ModelPool
from hf_instruct.ui.pages import format_notice

if TYPE_CHECKING:
    from hf_instruct.generation.chat_model import ChatModel
    from hf_instruct.generation.strategies import Continuation

# Source: https://huggingface.co/blog/how-to-generate
_EXAMPLE = "I enjoy walking with my cute dog"
_AS_IT_IS = "continue it as it is"
_AS_QUESTION = "ask it as an instruction"
_SHOWN_STRATEGIES = ["greedy", "beam", "sample", "top-k", "top-p"]
_TEXT_WIDTHS = ["13%", "8%", "10%", "12%", "13%", "44%"]
# More would keep others waiting for minutes, and nobody reads them.
_MOST_BEAMS, _MOST_STEPS, _MOST_TOKENS = 10, 30, 200


class ExploreTab:
    """The parts of the tab, and what its buttons do.

    Args:
        gradio: The module.
        pool: The models.
    """

    def __init__(self, gradio: Any, pool: ModelPool) -> None:
        self._gradio, self._pool = gradio, pool
        labels = pool.labels
        with gradio.Row():
            model = gradio.Dropdown(labels, value=labels[0], label="Model", min_width=240, elem_id="hi-explored")
            ways = [_AS_IT_IS, _AS_QUESTION]
            way = gradio.Radio(ways, value=_AS_IT_IS, label="The text", min_width=260, elem_id="hi-way")
        text = gradio.Textbox(_EXAMPLE, show_label=False, lines=2, max_lines=8, elem_id="hi-prompt")
        chosen = [model, way, text]
        with gradio.Tabs():
            with gradio.Tab("Next token", id="next"):
                self._build_next(chosen)
            with gradio.Tab("Beams", id="beams"):
                self._build_beams(chosen)
            with gradio.Tab("Strategies", id="strategies"):
                self._build_strategies(chosen)

    def _build_next(self, chosen: list[Any]) -> None:
        slider, wide = self._gradio.Slider, {"min_width": 180}
        with self._gradio.Row():
            settings = [
                slider(0.1, 2, 1, step=0.05, label="temperature", elem_id="hi-next-temperature", **wide),
                slider(0, 100, 10, step=1, label="top-k", info="0: all", **wide),
                slider(0.05, 1, 0.7, step=0.05, label="top-p", info="1: all", **wide),
                slider(5, 50, 15, step=5, label="tokens shown", **wide),
            ]
        button, notice = self._add_button("Show the next token", "next")
        colors = {"0": "#2f7fd133", "1": "#e69f0044"}
        tokens = self._gradio.HighlightedText(
            label="The prompt in tokens", color_map=colors, show_inline_category=False, elem_id="hi-next-prompt"
        )
        plot = self._gradio.Plot(show_label=False, elem_id="hi-next-plot")
        self._connect(button, notice, [*chosen, *settings], [tokens, plot, self._add_table("next")], self._show_next)

    def _build_beams(self, chosen: list[Any]) -> None:
        with self._gradio.Row():
            settings = [
                self._gradio.Slider(2, _MOST_BEAMS, 3, step=1, label="beams", min_width=180),
                self._gradio.Slider(1, _MOST_STEPS, 6, step=1, label="tokens to write", min_width=180),
            ]
        button, notice = self._add_button("Search with beams", "beams")
        tables = [self._add_table("beams"), self._add_table("beam-texts", _TEXT_WIDTHS)]
        self._connect(button, notice, [*chosen, *settings], tables, self._show_beams)

    def _build_strategies(self, chosen: list[Any]) -> None:
        from hf_instruct.generation.strategies import STRATEGIES

        settings = [
            self._gradio.CheckboxGroup(
                list(STRATEGIES), value=_SHOWN_STRATEGIES, label="Strategies", elem_id="hi-strategies"
            )
        ]
        with self._gradio.Row():
            settings += [
                self._gradio.Slider(5, _MOST_TOKENS, 40, step=5, label="tokens to write", min_width=180),
                self._gradio.Number(123, precision=0, label="seed of those that draw", min_width=180),
            ]
        button, notice = self._add_button("Write with each", "strategies")
        self._connect(
            button, notice, [*chosen, *settings], [self._add_table("strategies", _TEXT_WIDTHS)], self._show_strategies
        )

    def _add_button(self, label: str, name: str) -> tuple[Any, Any]:
        button = self._gradio.Button(label, variant="primary", elem_id=f"hi-{name}-go")
        return button, self._gradio.HTML(format_notice(""), elem_id=f"hi-{name}-notice")

    def _add_table(self, name: str, widths: list[str] | None = None) -> Any:
        return self._gradio.Dataframe(
            interactive=False,
            visible=False,
            wrap=True,
            buttons=[],
            max_height=1200,
            column_widths=widths,
            elem_id=f"hi-{name}-table",
        )

    def _connect(
        self, button: Any, notice: Any, inputs: list[Any], outputs: list[Any], show: "Callable[..., list[Any]]"
    ) -> None:
        def run(label: str, way: str, text: str, *values: Any) -> Iterator[dict[Any, Any]]:
            """Yield what is being done, then the results; `show` returns a notice and a value for each output."""
            from hf_instruct.generation.token_text import check_text

            try:
                text = check_text(text, what="text")
                yield {notice: format_notice("Working …" if self._pool.is_loaded(label) else f"Loading {label} …")}
                with self._pool.acquire(label) as model:
                    prompt = model.encode(text.strip()) if way == _AS_QUESTION else text
                    said, *results = show(model, prompt, *values)
                yield {notice: format_notice(said), **dict(zip(outputs, results, strict=True))}
            except InstructError as error:
                yield {notice: format_notice(str(error))}

        # One at a time, for they take all cores.
        limits = {"concurrency_id": "explore", "concurrency_limit": 1}
        button.click(run, inputs, [notice, *outputs], show_progress="hidden", api_visibility="private", **limits)

    def _fill(self, heads: list[str], rows: list[list[str]]) -> Any:
        return self._gradio.update(value={"headers": heads, "data": rows}, visible=True)

    def _show_next(
        self, model: "ChatModel", prompt: Any, temperature: float, top_k: float, top_p: float, top: float
    ) -> list[Any]:
        from hf_instruct.generation.exploring import draw_next_token_plot, explore_next

        settings: dict[str, Any] = {"temperature": temperature, "top_k": int(top_k), "top_p": top_p}
        found = explore_next(model.model, model.tokenizer, prompt, top=int(top), **settings)
        tokens = [(token, str(index % 2)) for index, token in enumerate(found.prompt_tokens)]
        said = str(found)
        return [f"{said[0].upper()}{said[1:]}.", tokens, draw_next_token_plot(found), self._fill(*found.list_rows())]

    def _show_beams(self, model: "ChatModel", prompt: Any, num_beams: float, length: float) -> list[Any]:
        from hf_instruct.generation.exploring import explore_beams

        tree = explore_beams(model.model, model.tokenizer, prompt, num_beams=int(num_beams), length=int(length))
        return [
            "What beam search followed, and the texts that it found.",
            self._fill(*tree.list_rows()),
            self._fill_texts(tree.texts),
        ]

    def _show_strategies(
        self, model: "ChatModel", prompt: Any, names: list[str], length: float, seed: float | None
    ) -> list[Any]:
        from hf_instruct.generation.strategies import compare_strategies

        answers = compare_strategies(
            model.model,
            model.tokenizer,
            prompt,
            names=names,
            max_new_tokens=int(length),
            seed=int(seed or 0),
            end_id=None if isinstance(prompt, str) else model.end_id,
        )
        return ["Repeats: share of the runs of four tokens that stood in the text before.", self._fill_texts(answers)]

    def _fill_texts(self, answers: "list[Continuation]") -> Any:
        from hf_instruct.generation.strategies import TEXT_HEADS

        return self._fill(TEXT_HEADS, [answer.list_cells() for answer in answers])
