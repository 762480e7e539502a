"""Plots of a run: losses during training and scores of the answers.

Every plot is drawn on its own `Figure`, without pyplot, a backend or global state. The colors are the Okabe-Ito set,
which is distinguishable with common forms of color blindness. Source:
https://jfly.uni-koeln.de/color/ (Okabe and Ito, "Color Universal Design")
"""

import re
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_instruct.console import format_points
from hf_instruct.records import write_bytes
from hf_instruct.schema import MODELS, TrainingRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# By role: `format_inline_svg` turns each into a CSS variable named after its role.
COLORS = {
    "text": "#3b4048",
    "grid": "#dfe2e6",
    "batch": "#e9c59a",
    "train": "#d55e00",
    "validation": "#0072b2",
    "untuned": "#8b929b",
    "SFT": "#56b4e8",
    "tuned": "#0072b3",
}
BACKGROUND = "#ffffff"
# Small, so that labels stay legible when the figure is scaled to the width of a phone.
_SIZE_INCHES = (4.8, 3.1)
_PNG_DOTS_PER_INCH = 220
_SCORE_BINS = range(0, 101, 10)
DASHED = (0, (4, 3))
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 9, "labelcolor": COLORS["text"]}


def write_figure(figure: "Figure", path: Path) -> None:
    """Save a figure atomically, in the format of the suffix of `path` (`.png` or `.svg`); creates its folder."""
    image = BytesIO()
    figure.savefig(image, format=path.suffix.lower().removeprefix("."), dpi=_PNG_DOTS_PER_INCH)
    write_bytes(path, image.getvalue())


def draw_loss_plot(rows: Sequence[TrainingRow], *, title: str | None = None) -> "Figure":
    """Return a plot of the losses or rewards in a training log over steps (lower axis) and tokens (upper axis)."""
    figure, axes = _build_axes(title)
    has_rewards = any(row.reward is not None for row in rows)
    # A resumed run may log a step again; the later row belongs to the final model.
    ordered = [row for _, row in sorted({(row.step, row.kind): row for row in rows}.items())]
    series = (
        ("training batches", "reward" if has_rewards else "loss", "batch", 1.0),
        ("train", "train_loss", "train", 1.8),
        ("validation", "measured", "validation", 2.2),
    )
    for label, field, color, width in series:
        wanted = [row for row in ordered if (row.kind == "train") == (color == "batch")]
        points = [(row.step, value) for row in wanted if (value := getattr(row, field)) is not None]
        if points:
            # A line with a single point is invisible, so draw a dot.
            style: dict[str, Any] = {"color": COLORS[color], "linewidth": width, "clip_on": False}
            axes.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) == 1 else None, **style)
    axes.set(xlabel="step", ylabel="mean reward" if has_rewards else "loss (nats per label token)")
    if axes.lines:
        axes.set_xlim(0, max(axes.get_xlim()[1], 1))
        axes.locator_params(axis="x", integer=True)
        _add_token_axis(axes, ordered)
        axes.legend(loc="upper right", handlelength=1.4, **LEGEND)
    else:
        axes.text(0.5, 0.5, "no losses were logged", transform=axes.transAxes, ha="center", color=COLORS["text"])
    return figure


def draw_score_histogram(
    scores: Mapping[str, Sequence[int]], *, label: Callable[[str], str] = str, title: str | None = None
) -> "Figure":
    """Return a histogram of scores by model (`schema.MODELS`), in bins of ten points, the last one 90 to 100.

    Args:
        scores: The scores of each model.
        label: Returns what a model is called.
        title: A line above the plot, taken literally.
    """
    figure, axes = _build_axes(title)
    if sides := [name for name in MODELS if scores.get(name)]:
        means = [sum(scores[name]) / len(scores[name]) for name in sides]
        axes.hist(
            [list(scores[name]) for name in sides],
            bins=_SCORE_BINS,
            rwidth=0.84,
            color=[COLORS[name] for name in sides],
            label=[f"{label(name)} (mean {format_points(mean)})" for name, mean in zip(sides, means, strict=True)],
        )
        for name, mean in zip(sides, means, strict=True):
            axes.axvline(mean, color=COLORS[name], linewidth=1.2, linestyle=DASHED)
        # Outside the plot, where it hides no bar.
        figure.legend(loc="outside upper right", ncols=3, handlelength=1.0, **LEGEND)
    else:
        axes.text(50, 0.5, "no scores", ha="center", color=COLORS["text"])
    axes.set(xlim=(0, 100), xticks=_SCORE_BINS[::2], xlabel="score", ylabel="answers")
    axes.locator_params(axis="y", integer=True)
    return figure


def count_scores(scores: Sequence[int]) -> list[int]:
    """Return the number of scores in each of the ten bins; 100 belongs to the last.

    >>> count_scores([0, 9, 10, 85, 100])
    [2, 1, 0, 0, 0, 0, 0, 0, 1, 1]
    """
    import numpy as np

    return [int(count) for count in np.histogram(scores, _SCORE_BINS)[0]]


def format_inline_svg(figure: "Figure", prefix: str) -> str:
    """Return a figure as an `<svg>` element for an HTML page.

    Text stays text, the background is transparent, and each color is a CSS variable (such as `--plot-validation`) with
    the usual color as its default, so that the page's light and dark themes apply. The prefix is put before every id,
    because ids must be unique on a page.
    """
    import matplotlib

    stream = StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    text = stream.getvalue()
    svg = text[text.index("<svg") :]
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    # With a fixed size, the figure would not shrink in a narrow window; `viewBox` defines its aspect ratio.
    for size in ("width", "height"):
        svg = re.sub(rf'(<svg [^>]*?) ?\b{size}="[^"]*"', r"\1", svg, count=1)
    for role, color in COLORS.items():
        svg = svg.replace(color, f"var(--plot-{role}, {color})")
    return svg.strip()


def build_figure(size_inches: tuple[float, float], title: str | None = None) -> "Figure":
    """Return an empty figure of a width and height, with a title that is not parsed as math."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)  # inches
    figure = Figure(figsize=size_inches, layout=layout, facecolor=BACKGROUND)
    if title:
        figure.suptitle(title, color=COLORS["text"], fontsize=10.5, parse_math=False)
    return figure


def _build_axes(title: str | None) -> "tuple[Figure, Axes]":
    figure = build_figure(_SIZE_INCHES, title)
    axes = figure.add_subplot()
    axes.locator_params(axis="y", nbins=6)
    style_axes(axes, grid="y")
    return figure, axes


def style_axes(axes: "Axes", *, grid: Literal["x", "y"]) -> None:
    """Apply our colors and sizes to axes, with grid lines behind the plot for the ticks of one axis."""
    axes.grid(axis=grid, color=COLORS["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(COLORS["grid"])
    axes.tick_params(which="both", colors=COLORS["text"], length=0, labelsize=9, pad=5)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=COLORS["text"], fontsize=9)


def _add_token_axis(axes: "Axes", rows: Sequence[TrainingRow]) -> None:
    """Add an upper axis with round numbers of tokens at the steps where they were reached."""
    import numpy as np
    from matplotlib.ticker import EngFormatter, MaxNLocator

    steps, tokens = [row.step for row in rows], [row.tokens_seen for row in rows]
    if max(tokens) <= 0:
        return
    marks = [mark for mark in MaxNLocator(5).tick_values(0, max(tokens)) if 0 <= mark <= max(tokens)]
    if min(steps) > 0:
        steps, tokens = [0, *steps], [0, *tokens]
    above = axes.secondary_xaxis("top")
    above.set_xticks(np.interp(marks, tokens, steps), [EngFormatter(sep="")(mark) for mark in marks])
    above.set_xlabel("example tokens seen", color=COLORS["text"], fontsize=9)
    above.tick_params(colors=COLORS["text"], length=0, labelsize=9)
    above.spines["top"].set_visible(False)
