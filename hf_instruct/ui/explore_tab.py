"""The explore tab: how a model picks its words, for a text of the user's."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import InstructError
from hf_instruct.ui.explore_html import format_beams, format_next_tokens, format_strategies
from hf_instruct.ui.html import format_notice
from hf_instruct.ui.model_pool import ModelShelf

if TYPE_CHECKING:
    from hf_instruct.generation.chat_model import ChatModel

# Source: https://huggingface.co/blog/how-to-generate
_EXAMPLE = "I enjoy walking with my cute dog"
_AS_IT_IS = "continue it as it is"
_AS_QUESTION = "ask it as an instruction"
_SHOWN_STRATEGIES = ("greedy", "beam", "sample", "top-k", "top-p")
# More would keep others waiting for minutes, and nobody reads them.
_MOST_BEAMS, _MOST_STEPS, _MOST_TOKENS = 10, 30, 200


class ExploreTab:
    """The parts of the tab, and what its buttons do.

    Args:
        gradio: The module.
        shelf: The models.
    """

    def __init__(self, gradio: Any, shelf: ModelShelf) -> None:
        self._shelf = shelf
        labels = shelf.labels
        with gradio.Row():
            model = gradio.Dropdown(
                labels, value=labels[0], label="Model", scale=2, min_width=240, elem_id="hi-explored"
            )
            way = gradio.Radio(
                [_AS_IT_IS, _AS_QUESTION], value=_AS_IT_IS, label="The text", scale=3, min_width=260, elem_id="hi-way"
            )
        text = gradio.Textbox(_EXAMPLE, show_label=False, lines=2, max_lines=8, elem_id="hi-prompt")
        chosen = [model, way, text]
        with gradio.Tabs():
            with gradio.Tab("Next token", id="next"):
                self._connect(self._build_next(gradio), chosen, self._show_next)
            with gradio.Tab("Beams", id="beams"):
                self._connect(self._build_beams(gradio), chosen, self._show_beams)
            with gradio.Tab("Strategies", id="strategies"):
                self._connect(self._build_strategies(gradio), chosen, self._show_strategies)

    def _build_next(self, gradio: Any) -> list[Any]:
        """Add the settings of the next token's distribution, and return them, the button and its output."""
        with gradio.Row():
            settings = [
                gradio.Slider(0.1, 2, 1, step=0.05, label="temperature", min_width=180, elem_id="hi-next-temperature"),
                gradio.Slider(0, 100, 10, step=1, label="top-k", info="0: all", min_width=180),
                gradio.Slider(0.05, 1, 0.9, step=0.05, label="top-p", info="1: all", min_width=180),
                gradio.Slider(5, 50, 15, step=5, label="tokens shown", min_width=180),
            ]
        return [*settings, *_build_result(gradio, "Show the next token", "next")]

    def _build_beams(self, gradio: Any) -> list[Any]:
        with gradio.Row():
            settings = [
                gradio.Slider(2, _MOST_BEAMS, 3, step=1, label="beams", min_width=180),
                gradio.Slider(1, _MOST_STEPS, 6, step=1, label="tokens to write", min_width=180),
            ]
        return [*settings, *_build_result(gradio, "Search with beams", "beams")]

    def _build_strategies(self, gradio: Any) -> list[Any]:
        from hf_instruct.generation.strategies import STRATEGIES

        chosen = [name for name in _SHOWN_STRATEGIES if name in STRATEGIES]
        names = gradio.CheckboxGroup(list(STRATEGIES), value=chosen, label="Strategies", elem_id="hi-strategies")
        with gradio.Row():
            settings = [
                names,
                gradio.Slider(5, _MOST_TOKENS, 40, step=5, label="tokens to write", min_width=180),
                gradio.Number(123, precision=0, label="seed of those that draw", min_width=180),
            ]
        return [*settings, *_build_result(gradio, "Write with each", "strategies")]

    def _connect(self, parts: list[Any], chosen: list[Any], show: "Callable[..., str]") -> None:
        *settings, button, result = parts

        def run(label: str, way: str, text: str, *values: Any) -> Iterator[str]:
            """Yield what is done, then the result."""
            from hf_instruct.generation.token_text import check_text

            try:
                text = check_text(text, what="text")
                wait = "Working …" if self._shelf.is_loaded(label) else f"Loading {label} …"
                yield format_notice(wait)
                with self._shelf.lend(label) as model:
                    prompt = model.encode(text.strip()) if way == _AS_QUESTION else text
                    yield format_notice("Working …")
                    yield show(model, prompt, *values)
            except InstructError as error:
                yield format_notice(str(error), error=True)

        # One at a time, for they take all cores.
        button.click(
            run,
            [*chosen, *settings],
            [result],
            concurrency_id="explore",
            concurrency_limit=1,
            show_progress="hidden",
            api_visibility="private",
        )

    def _show_next(
        self,
        model: "ChatModel",
        prompt: str | Sequence[int],
        temperature: float,
        top_k: float,
        top_p: float,
        top: float,
    ) -> str:
        from hf_instruct.generation.exploring import explore_next

        found = explore_next(
            model.model, model.tokenizer, prompt, top=int(top), temperature=temperature, top_k=int(top_k), top_p=top_p
        )
        return format_next_tokens(found)

    def _show_beams(self, model: "ChatModel", prompt: str | Sequence[int], num_beams: float, length: float) -> str:
        from hf_instruct.generation.beam_tree import explore_beams

        tree = explore_beams(model.model, model.tokenizer, prompt, num_beams=int(num_beams), length=int(length))
        return format_beams(tree)

    def _show_strategies(
        self, model: "ChatModel", prompt: str | Sequence[int], names: list[str], length: float, seed: float | None
    ) -> str:
        from hf_instruct.generation.exploring import compare_strategies

        answers = compare_strategies(
            model.model,
            model.tokenizer,
            prompt,
            names=names,
            max_new_tokens=int(length),
            seed=int(seed or 0),
            end_id=None if isinstance(prompt, str) else model.end_id,
        )
        return format_strategies(answers)


def _build_result(gradio: Any, label: str, name: str) -> list[Any]:
    """Add a button and the place of what it shows."""
    return [
        gradio.Button(label, variant="primary", elem_id=f"hi-{name}-go"),
        gradio.HTML(elem_id=f"hi-{name}-result", apply_default_css=False),
    ]
