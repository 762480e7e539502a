"""Statistics of examples: counts, categories and lengths."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_instruct.data.examples import find_repeats
from hf_instruct.plots import COLORS, LEGEND, build_figure, style_axes, write_figure
from hf_instruct.prompts import CHAT, PromptFormat

if TYPE_CHECKING:
    from datasets import Dataset

Encode = Callable[[Mapping[str, Any]], tuple[Sequence[int], Sequence[int]]]
"""Converts an example into the token ids of its prompt and of its completion."""


class TextLengths(NamedTuple):
    """The lengths of one text of every example, in one unit."""

    text: str  # `prompt`, `completion`, or `both` for the row that is trained on
    unit: str  # `characters`, `words` or `tokens`
    values: list[int]

    def summarize(self) -> dict[str, float]:
        """Return `mean`, `median`, `percentile_95` (at least 95 % of the examples are no longer) and `max`."""
        import numpy as np

        values = np.asarray(self.values)
        return {
            "mean": float(values.mean()),
            "median": float(np.median(values)),
            "percentile_95": int(np.percentile(values, 95, method="inverted_cdf")),
            "max": int(values.max()),
        }


class DataStatistics(NamedTuple):
    """The statistics that `data stats` shows."""

    num_examples: int
    num_with_input: int
    num_repeated_prompts: int  # instruction + input pairs on more than one row
    categories: dict[str, int]  # examples by category, most frequent first; empty if the data has none
    lengths: list[TextLengths]  # of prompts and completions; in tokens only if encoded


def compute_statistics(
    examples: "Dataset", *, prompt_format: PromptFormat, encode: Encode | None = None
) -> DataStatistics:
    """Return counts and lengths of examples.

    Args:
        examples: The examples, at least one.
        prompt_format: The format of the prompts. The text of `chat` depends on the tokenizer, so its prompts only have
            a length in tokens.
        encode: Adds lengths in tokens, including the end-of-text token.
    """
    texts = {"completion": examples["output"][:]}
    if prompt_format.name != CHAT:
        pairs = zip(examples["instruction"][:], examples["input"][:], strict=True)
        texts = {"prompt": [prompt_format.format_prompt(*pair) for pair in pairs], **texts}
    lengths = [TextLengths(name, "characters", [len(text) for text in values]) for name, values in texts.items()]
    lengths += [TextLengths(name, "words", [len(text.split()) for text in values]) for name, values in texts.items()]
    if encode is not None:
        counts = [(len(prompt), len(completion)) for prompt, completion in map(encode, examples)]
        named = {
            "prompt": [prompt for prompt, _ in counts],
            "completion": [completion for _, completion in counts],
            "both": [sum(both) for both in counts],
        }
        lengths += [TextLengths(name, "tokens", values) for name, values in named.items()]
    categories = Counter(category for category in examples["category"][:] if category is not None)
    return DataStatistics(
        num_examples=len(examples),
        num_with_input=len(examples) - examples["input"][:].count(""),
        num_repeated_prompts=len(find_repeats(examples)),
        categories=dict(categories.most_common()),
        lengths=lengths,
    )


def plot_lengths(result: DataStatistics, path: Path, *, title: str = "") -> None:
    """Draw the lengths of prompts and completions as histograms, in tokens if known, else in characters.

    `path` ends in `.png` or `.svg`.
    """
    from matplotlib.ticker import MaxNLocator

    unit = result.lengths[-1].unit if result.lengths[-1].unit == "tokens" else "characters"
    shown = [lengths for lengths in result.lengths if lengths.unit == unit and lengths.text != "both"]
    figure = build_figure((4.6 * len(shown), 3.6), title)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, lengths, color in zip(panels, shown, (COLORS["validation"], COLORS["train"]), strict=False):
        summary = lengths.summarize()
        # One bin for each length while that is legible, because lengths are integers.
        low, high = min(lengths.values), max(lengths.values)
        width = max(1, math.ceil((high - low + 1) / 40))
        axes.hist(lengths.values, bins=[edge - 0.5 for edge in range(low, high + width + 1, width)], color=color)
        for name, key, style in (("median", "median", "-"), ("95 %", "percentile_95", "--")):
            label = f"{name} {summary[key]:g}"
            axes.axvline(summary[key], color=COLORS["text"], linewidth=1, linestyle=style, label=label)
        axes.set_title(f"{lengths.text} (longest {high:,})", fontsize=10)
        axes.set_xlabel(unit)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
        style_axes(axes, grid="y")
        axes.legend(**LEGEND)
    panels[0].set_ylabel("examples")
    write_figure(figure, path)
