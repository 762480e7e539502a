from pathlib import Path

import pytest

from hf_instruct.errors import ConfigError
from hf_instruct.generation.exploring import NextToken, NextTokens
from hf_instruct.generation.next_token_plot import check_plot_path, draw_next_token_plot
from hf_instruct.plots import write_figure

ROWS = [
    ("␣dog", 0.5, True, True, (0.9, 0.4, 0.4, 0.4)),
    ("東京$x$", 0.25, True, False, (0.1, 0.3, 0.3, 0.3)),
    ("a" * 30, 0.1, False, True, (1e-9, 0.2, 0.2, 0.2)),
    ("\\n", 0.0, False, False, (0.0, 0.1, 0.1, 0.1)),
]
FOUND = NextTokens(
    ["I"],
    9,
    1.0,
    2,
    0.6,
    num_top_k=2,
    share_top_k=0.75,
    num_top_p=2,
    share_top_p=0.6,
    num_drawn=1,
    temperatures=[],
    tokens=[
        NextToken(rank, 7, text, 0.3, tempered, at, 0.5, in_top_k, in_top_p, 0.1)
        for rank, (text, tempered, in_top_k, in_top_p, at) in enumerate(ROWS, start=1)
    ],
)


def test_bars_are_the_probabilities_and_say_what_is_kept() -> None:
    figure = draw_next_token_plot(FOUND, title="a $title$")
    left, right = figure.axes
    assert {round(bar.get_y() + bar.get_height() / 2): bar.get_width() for bar in left.patches} == {
        0: 50,
        1: 25,
        2: 10,
        3: 0,
    }
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == ["kept by top-k and top-p", "kept by top-k only", "kept by top-p only", "kept by neither"]
    assert [line.get_xdata().tolist() for line in right.lines[:2]] == [
        pytest.approx([90, 10]),  # what is all but impossible is left out
        pytest.approx([40, 30, 20, 10]),
    ]
    names = [label.get_text() for label in left.get_yticklabels()]
    # What the font lacks would be drawn as empty boxes, with a warning for each.
    assert names == ["␣dog", "U+6771U+4EAC$x$", "a" * 17 + "…", "\\n"]


@pytest.mark.parametrize("name", ["a.png", "b.SVG"])
def test_files_of_both_kinds(tmp_path: Path, name: str) -> None:
    write_figure(draw_next_token_plot(FOUND, title="x"), check_plot_path(tmp_path / name))
    assert (tmp_path / name).read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")


def test_paths_that_cannot_be_plots(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not end in \.png or \.svg"):
        check_plot_path(tmp_path / "a.jpg")
    (tmp_path / "b.png").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        check_plot_path(tmp_path / "b.png")
