import logging
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hf_instruct.plots import (
    COLORS,
    count_scores,
    draw_loss_plot,
    draw_score_histogram,
    format_inline_svg,
    write_figure,
)
from hf_instruct.schema import TrainingRow

ROWS = [
    TrainingRow(step=0, epoch=0.0, tokens_seen=0, kind="evaluation", train_loss=1.2, validation_loss=1.3),
    TrainingRow(step=5, epoch=0.5, tokens_seen=1_000, kind="train", loss=1.0),
    TrainingRow(step=10, epoch=1.0, tokens_seen=2_000, kind="evaluation", train_loss=0.8, validation_loss=0.9),
    TrainingRow(step=10, epoch=1.0, tokens_seen=2_000, kind="samples", samples=[]),
]


def test_loss_plot_draws_one_line_a_series() -> None:
    axes = draw_loss_plot(ROWS).axes[0]
    lines = {line.get_label(): [tuple(map(float, point)) for point in line.get_xydata()] for line in axes.lines}
    assert lines == {
        "training batches": [(5, 1.0)],
        "train": [(0, 1.2), (10, 0.8)],
        "validation": [(0, 1.3), (10, 0.9)],
    }
    above = axes.child_axes[0]
    assert [label.get_text() for label in above.get_xticklabels()] == ["0", "400", "800", "1.2k", "1.6k", "2k"]
    assert [round(float(place), 6) for place in above.get_xticks()] == [0, 2, 4, 6, 8, 10]


def test_a_resumed_step_is_drawn_once_as_last_logged() -> None:
    again = [*ROWS, TrainingRow(step=5, epoch=0.5, tokens_seen=1_000, kind="train", loss=0.95)]
    (batches,) = [line for line in draw_loss_plot(again).axes[0].lines if line.get_label() == "training batches"]
    assert [tuple(map(float, point)) for point in batches.get_xydata()] == [(5, 0.95)]


@pytest.mark.parametrize("rows", [[], ROWS[:1], ROWS[1:2], ROWS[3:]])
def test_loss_plot_of_little(rows: list[TrainingRow], tmp_path: Path) -> None:
    write_figure(draw_loss_plot(rows), tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_title_is_not_mathematics(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        write_figure(draw_loss_plot(ROWS, title=r"a $\nope$ <b>"), tmp_path / "loss.svg")
    assert ElementTree.parse(tmp_path / "loss.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert caplog.text == ""


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Format 'nope' is not supported"):
        write_figure(draw_loss_plot(ROWS), tmp_path / "loss.nope")
    assert list(tmp_path.iterdir()) == []
    write_figure(draw_score_histogram({"tuned": [50]}, title="t"), tmp_path / "scores.png")
    assert [path.name for path in tmp_path.iterdir()] == ["scores.png"]


def test_histogram_stands_base_and_tuned_side_by_side() -> None:
    figure = draw_score_histogram({"tuned": [0, 9, 100], "untuned": [10]})
    heights = [int(bar.get_height()) for bar in figure.axes[0].patches]
    assert heights == [*count_scores([10]), *count_scores([0, 9, 100])]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["untuned (mean 10.0)", "tuned (mean 36.3)"]
    assert [text.get_text() for text in draw_score_histogram({}).axes[0].texts] == ["no scores"]


def test_inline_svg_follows_the_page() -> None:
    svg = format_inline_svg(draw_loss_plot(ROWS), "loss")
    root = ElementTree.fromstring(svg)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert all(name.startswith("loss-") for name in ids if name)
    assert root.get("viewBox")
    assert root.get("width") is None
    assert f"var(--plot-validation, {COLORS['validation']})" in svg
    assert ">validation</text>" in svg
    assert svg == format_inline_svg(draw_loss_plot(ROWS), "loss")


def test_drawing_leaves_no_settings_behind_and_colors_differ() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    format_inline_svg(draw_score_histogram({"untuned": [1]}), "x")
    assert dict(matplotlib.rcParams) == before
    # The page swaps each for a variable of its own.
    assert len(set(COLORS.values())) == len(COLORS)
