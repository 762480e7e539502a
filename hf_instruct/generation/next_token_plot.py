"""The plot of the next token: its probabilities, what top-k and top-p keep, and what temperature does."""

from typing import TYPE_CHECKING

from hf_instruct.generation.exploring import TEMPERATURES, NextTokens
from hf_instruct.plots import COLORS, build_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST_LABEL = 18
# By whether top-k and whether top-p keep a token: the bar's label and its role in `plots.COLORS`.
_KEPT = {
    (True, True): ("kept by top-k and top-p", "tuned"),
    (True, False): ("kept by top-k only", "train"),
    (False, True): ("kept by top-p only", "batch"),
    (False, False): ("kept by neither", "base"),
}


def draw_next_token_plot(found: NextTokens, *, title: str | None = None) -> "Figure":
    """Return the plot of the next token.

    On the left a bar a token at the temperature asked for, coloured by what top-k and top-p keep; on the right its
    probability at each of some temperatures.

    Args:
        found: Which tokens may come next.
        title: A line above the plot, taken literally.
    """
    tokens = found.tokens
    figure = build_figure((8.2, 1.5 + 0.23 * len(tokens)), title and _printable(title, longest=90))
    left, right = figure.subplots(1, 2, sharey=True)
    for kept, (label, color) in _KEPT.items():
        rows = [row for row, token in enumerate(tokens) if (token.in_top_k, token.in_top_p) == kept]
        if rows:
            left.barh(rows, [100 * tokens[row].tempered for row in rows], 0.72, color=COLORS[color], label=label)
    left.set_yticks(range(len(tokens)), [_printable(token.text) for token in tokens], parse_math=False)
    left.set_ylim(len(tokens) - 0.4, -0.6)
    left.set_xlabel("probability of the next token, %")
    for index, (temperature, marker) in enumerate(zip(TEMPERATURES, "v^os", strict=True)):
        # On a logarithmic axis what is all but impossible would squeeze the rest.
        points = [(100 * token.at[index], row) for row, token in enumerate(tokens) if token.at[index] >= 1e-6]
        shape = {"marker": marker, "markersize": 4.5, "linewidth": 0.8}
        right.plot(*zip(*points, strict=True), **shape, label=f"{temperature:g}")
    right.set_xscale("log")
    right.set_xlabel("probability at each temperature, % (logarithmic)")
    for axes, name, corner in ((left, None, "lower right"), (right, "temperature", "best")):
        style_axes(axes, grid="x")
        axes.tick_params(which="both", labelsize=8, pad=4)
        axes.legend(loc=corner, frameon=False, fontsize=8, title=name, title_fontsize=8, labelcolor=COLORS["text"])
    return figure


def _printable(text: str, *, longest: int = _LONGEST_LABEL) -> str:
    """Return a label cut to length, with characters that the font lacks as their numbers."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    label = "".join(character if ord(character) in known else f"U+{ord(character):04X}" for character in text)
    return label if len(label) <= longest else label[: longest - 1] + "…"
