"""The explore tab: how a model continues a text."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import InstructError
from hf_instruct.ui.model_pool import ModelPool
from hf_instruct.ui.pages import format_notice, format_plot

if TYPE_CHECKING:
    from hf_instruct.generation.chat_model import ChatModel
    from hf_instruct.generation.exploring import TextTable

_AS_IT_IS = "continue it"
_AS_QUESTION = "treat it as an instruction"
# In pixels: a narrow screen scrolls to the numbers instead of breaking their words.
_TEXT_WIDTHS = ["90px", "540px", "80px", "90px", "115px", "120px"]
# More would keep other users waiting for minutes, and nobody reads that much.
_MAX_BEAMS, _MAX_STEPS, _MAX_TOKENS = 10, 30, 200


def build_explore_tab(gradio: Any, pool: ModelPool, tab: Any) -> None:
    """Add the components of the tab; it shows the next token when it is opened.

    Args:
        gradio: The module.
        pool: The models.
        tab: The `gradio.Tab` that contains the components.
    """
    from hf_instruct.generation.strategies import (
        EXPLORED_STRATEGIES,
        EXPLORED_TEXT,
        EXPLORED_TOP_K,
        EXPLORED_TOP_P,
        load_strategies,
    )

    labels, wide = pool.labels, {"min_width": 180}
    with gradio.Row():
        model = gradio.Dropdown(labels, value=labels[0], label="Model", min_width=240, elem_id="hi-explored")
        ways = [_AS_IT_IS, _AS_QUESTION]
        way = gradio.Radio(ways, value=_AS_IT_IS, label="What to do with the text", min_width=260, elem_id="hi-way")
    text = gradio.Textbox(EXPLORED_TEXT, show_label=False, lines=2, max_lines=8, container=False, elem_id="hi-prompt")

    def add_button(label: str, name: str) -> tuple[Any, Any]:
        button = gradio.Button(label, variant="primary", elem_id=f"hi-{name}-go")
        return button, gradio.HTML(format_notice(""), elem_id=f"hi-{name}-notice")

    def add_table(name: str, widths: list[str] | None = None) -> Any:
        fixed = {"interactive": False, "visible": False, "wrap": True, "buttons": [], "max_height": 1200}
        return gradio.Dataframe(column_widths=widths, elem_id=f"hi-{name}-table", **fixed)

    def connect(
        button: Any, notice: Any, settings: list[Any], outputs: list[Any], show: Callable[..., Any], *others: Any
    ) -> None:
        """On a click or another event, fill the notice and the outputs with the values that `show` returns."""

        def run(label: str, way: str, text: str, *values: Any) -> Iterator[dict[Any, Any]]:
            from hf_instruct.generation.token_text import check_text, encode_raw_prompt

            try:
                text = check_text(text, what="text")
                yield {notice: format_notice("Working …" if pool.is_loaded(label) else f"Loading {label} …")}
                with pool.acquire(label) as chat_model, chat_model.exclusively():
                    prompt = chat_model.encode(text.strip()) if way == _AS_QUESTION else text
                    room = 0 if show is show_next else int(values[1])
                    ids = encode_raw_prompt(chat_model.model, chat_model.tokenizer, prompt, room=room)
                    summary, *results = show(chat_model, ids, *values)
                yield {notice: format_notice(summary), **dict(zip(outputs, results, strict=True))}
            except InstructError as error:
                yield {notice: format_notice(str(error))}

        # One at a time, because each uses all cores.
        limits = {"concurrency_id": "explore", "concurrency_limit": 1, "show_progress": "hidden"}
        for event in (button.click, *others):
            event(run, [model, way, text, *settings], [notice, *outputs], api_visibility="private", **limits)

    def fill(table: "TextTable", *, text_second: bool = False) -> Any:
        heads, rows, _ = table
        order = [0, -1, *range(1, len(heads) - 1)] if text_second else range(len(heads))
        headers, *data = ([row[index] for index in order] for row in (heads, *rows))
        return gradio.update(value={"headers": headers, "data": data}, visible=True)

    def show_next(
        model: "ChatModel", ids: list[int], temperature: float, top_k: float, top_p: float, top: float
    ) -> Any:
        from hf_instruct.generation.exploring import explore_next
        from hf_instruct.generation.next_token_plot import draw_next_token_plot

        settings: dict[str, Any] = {"temperature": temperature, "top_k": int(top_k), "top_p": top_p}
        following = explore_next(model.model, model.tokenizer, ids, top=int(top), **settings)
        tokens = [(token, str(index % 2)) for index, token in enumerate(following.prompt_tokens)]
        plot = format_plot(draw_next_token_plot(following), "next")
        return str(following), tokens, plot, fill(following.to_table())

    def show_beams(model: "ChatModel", ids: list[int], num_beams: float, length: float) -> Any:
        from hf_instruct.generation.exploring import explore_beams, tabulate_texts

        tree = explore_beams(model.model, model.tokenizer, ids, num_beams=int(num_beams), length=int(length))
        return (
            "The tokens that beam search kept, and the texts that it found.",
            fill(tree.to_table()),
            fill(tabulate_texts(tree.texts), text_second=True),
        )

    def show_strategies(model: "ChatModel", ids: list[int], names: list[str], length: float, seed: float | None) -> Any:
        from hf_instruct.generation.exploring import compare_strategies, tabulate_texts

        settings: dict[str, Any] = {"max_new_tokens": int(length), "seed": int(seed or 0), "end_id": model.end_id}
        texts = compare_strategies(model.model, model.tokenizer, ids, names=names, **settings)
        return "Repeats: share of 4-grams of tokens that occurred earlier in the text.", fill(
            tabulate_texts(texts), text_second=True
        )

    with gradio.Tabs():
        with gradio.Tab("Next token", id="next"):
            with gradio.Row():
                temperature = {"label": "temperature", "elem_id": "hi-next-temperature"}
                settings = [
                    gradio.Slider(0.1, 2, 1, step=0.05, **temperature, **wide),
                    gradio.Slider(0, 100, EXPLORED_TOP_K, step=1, label="top-k", info="0: all", **wide),
                    gradio.Slider(0.05, 1, EXPLORED_TOP_P, step=0.05, label="top-p", info="1: all", **wide),
                    gradio.Slider(5, 50, 15, step=5, label="tokens shown", **wide),
                ]
            parts = add_button("Show the next token", "next")
            colors = {"color_map": {"0": "#2f7fd133", "1": "#e69f0044"}, "show_inline_category": False}
            tokens = gradio.HighlightedText(label="The prompt in tokens", elem_id="hi-next-prompt", **colors)
            plot = gradio.HTML(elem_id="hi-next-plot")
            connect(*parts, settings, [tokens, plot, add_table("next")], show_next, tab.select)
        with gradio.Tab("Beams", id="beams"):
            with gradio.Row():
                settings = [
                    gradio.Slider(2, _MAX_BEAMS, 3, step=1, label="beams", **wide),
                    gradio.Slider(1, _MAX_STEPS, 6, step=1, label="new tokens", **wide),
                ]
            parts = add_button("Run beam search", "beams")
            connect(*parts, settings, [add_table("beams"), add_table("beam-texts", _TEXT_WIDTHS)], show_beams)
        with gradio.Tab("Strategies", id="strategies"):
            shown = {"value": list(EXPLORED_STRATEGIES), "label": "Strategies", "elem_id": "hi-strategies"}
            settings = [gradio.CheckboxGroup(list(load_strategies()), **shown)]
            with gradio.Row():
                settings.append(gradio.Slider(5, _MAX_TOKENS, 40, step=5, label="new tokens", **wide))
                settings.append(gradio.Number(123, precision=0, label="seed for sampling", **wide))
            parts = add_button("Generate with each", "strategies")
            connect(*parts, settings, [add_table("strategies", _TEXT_WIDTHS)], show_strategies)
