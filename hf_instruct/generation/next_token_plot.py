"""The plot of the next token: its probabilities, what can be sampled, and the effect of temperature."""

from typing import TYPE_CHECKING

from hf_instruct.generation.exploring import TEMPERATURES, NextTokens
from hf_instruct.plots import COLORS, LEGEND, build_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST_LABEL = 18
# What happens to a token in `generate()`, which applies top-k before top-p; and the key of its color in `plots.COLORS`.
_FATES = {"can be drawn": "tuned", "cut by top-p": "train", "cut by top-k": "untuned"}


def draw_next_token_plot(found: NextTokens, *, title: str | None = None) -> "Figure":
    """Return the plot of the next token.

    On the left, a bar for each token at the requested temperature, colored by whether sampling can draw it; on the
    right, its probability at several temperatures.

    Args:
        found: The distribution of the next token.
        title: A line above the plot, shown literally.
    """
    tokens = found.tokens
    figure = build_figure((8.2, 1.5 + 0.23 * len(tokens)), title and _printable(title, longest=90))
    left, right = figure.subplots(1, 2, sharey=True)
    fates = ["can be drawn" if token.drawn else f"cut by top-{'p' if token.in_top_k else 'k'}" for token in tokens]
    for fate, color in _FATES.items():
        rows = [row for row, token_fate in enumerate(fates) if token_fate == fate]
        if rows:
            left.barh(rows, [100 * tokens[row].tempered for row in rows], 0.72, color=COLORS[color], label=fate)
    left.set_yticks(range(len(tokens)), [_printable(token.text) for token in tokens], parse_math=False)
    left.set_ylim(len(tokens) - 0.4, -0.6)
    left.set_xlabel("probability of the next token, %")
    for index, (temperature, marker) in enumerate(zip(TEMPERATURES, "v^os", strict=True)):
        # On a logarithmic axis, nearly impossible tokens would leave little room for the rest.
        points = [(100 * token.at[index], row) for row, token in enumerate(tokens) if token.at[index] >= 1e-6]
        shape = {"marker": marker, "markersize": 4.5, "linewidth": 0.8}
        right.plot(*zip(*points, strict=True), **shape, label=f"{temperature:g}")
    right.set_xscale("log")
    right.set_xlabel("probability at each temperature, % (logarithmic)")
    for axes, name, corner in ((left, None, "lower right"), (right, "temperature", "best")):
        style_axes(axes, grid="x")
        axes.tick_params(which="both", labelsize=8, pad=4)
        legend = axes.legend(loc=corner, title=name, title_fontsize=8, **{**LEGEND, "fontsize": 8})
        legend.get_title().set_color(COLORS["text"])
    return figure


def _printable(text: str, *, longest: int = _LONGEST_LABEL) -> str:
    """Return a label truncated to a maximum length, with characters that the font does not have as code points."""
    from matplotlib.font_manager import findfont, get_font

    charmap = get_font(findfont("DejaVu Sans")).get_charmap()
    label = "".join(character if ord(character) in charmap else f"U+{ord(character):04X}" for character in text)
    return label if len(label) <= longest else label[: longest - 1] + "…"
