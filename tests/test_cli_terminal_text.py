"""Text of a model on a terminal: nothing steers it, and columns are the texts."""

import pytest

from hf_instruct.cli.terminal_text import iterate_columns, wrap_text
from hf_instruct.console import clean_text


def test_nothing_steers_the_terminal() -> None:
    assert clean_text("a\nb\tc") == "a\nb    c"
    assert clean_text("\x1b[2J\x1b]0;title\x07x\r\x08\x9b31m\u202e\u2066") == "[2J]0;titlex31m"
    # A family of emoji, Persian with its joiner, an odd space.
    assert clean_text("👩\u200d👧 می\u200cخواهم a\xa0b") == "👩\u200d👧 می\u200cخواهم a b"


@pytest.mark.parametrize("width", [5, 9, 20])
def test_more_text_changes_the_last_line_only(width: int) -> None:
    text = "one two  three\n\nabcdefghijklmnopqrstuvwxyz four 漢字漢字漢字漢字漢字 five\nsix "
    before: list[str] = []
    for length in range(len(text) + 1):
        lines = wrap_text(text[:length], width)
        assert lines[: len(before) - 1] == before[:-1]
        before = lines
    assert "".join("".join(before).split()) == "".join(text.split())
    assert wrap_text("漢字漢字", 5) == ["漢字", "漢字"]


def test_columns_show_lines_as_soon_as_both_have_them() -> None:
    taken = []

    def pieces(name: str, parts: list[str]):
        for part in parts:
            taken.append(name)
            yield part

    columns = [pieces("a", ["one ", "two ", "three ", "four"]), pieces("b", ["\x1b[1mleft\n", "right"])]
    lines = iterate_columns(columns, 17)
    assert next(lines) == "one two | [1mleft"
    assert taken.count("a") == 2
    assert list(lines) == ["three   | right", "four    |"]


def test_columns_of_nothing() -> None:
    assert list(iterate_columns([iter([]), iter([""])], 21)) == ["          |"]
