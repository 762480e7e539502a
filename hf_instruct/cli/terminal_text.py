"""Text of a model on a terminal, in columns while it grows."""

import unicodedata
from collections.abc import Iterator, Sequence

from hf_instruct.console import clean_text

_BORDER = " | "


def iterate_columns(columns: Sequence[Iterator[str]], width: int) -> Iterator[str]:
    """Yield lines that show several growing texts side by side, each as soon as all columns are that far.

    Args:
        columns: The pieces of each text.
        width: Longest line, in terminal cells.
    """
    inner = (width - len(_BORDER) * (len(columns) - 1)) // len(columns)
    texts, growing = [""] * len(columns), [True] * len(columns)
    shown = 0
    while any(growing):
        for place, pieces in enumerate(columns):
            piece = next(pieces, None) if growing[place] else None
            growing[place] = piece is not None
            texts[place] += clean_text(piece or "")
        wrapped = [wrap_text(text, inner) for text in texts]
        # The last line of a text that grows may still change.
        whole = [len(lines) - 1 for lines, grows in zip(wrapped, growing, strict=True) if grows]
        ready = min(whole) if whole else max(map(len, wrapped))
        for number in range(shown, ready):
            cells = [lines[number] if number < len(lines) else "" for lines in wrapped]
            yield _BORDER.join(pad_text(cell, inner) for cell in cells).rstrip()
        shown = max(shown, ready)


def wrap_text(text: str, width: int) -> list[str]:
    """Return the lines of a text, none wider than so many terminal cells.

    More text changes the last line only: a word too long for a line begins on a new one.

    >>> wrap_text("one two  three\\n\\nabcdefgh", 5)
    ['one', 'two', 'three', '', 'abcde', 'fgh']
    """
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            joined = f"{line} {word}" if line else word
            if count_cells(joined) <= width:
                line = joined
                continue
            if line:
                lines.append(line.rstrip())
            *full, line = _break_word(word, width)
            lines += full
        lines.append(line.rstrip())
    return lines


def _break_word(word: str, width: int) -> list[str]:
    parts = [""]
    for char in word:
        if parts[-1] and count_cells(parts[-1] + char) > width:
            parts.append("")
        parts[-1] += char
    return parts


def pad_text(text: str, width: int) -> str:
    """Return a text filled with spaces to so many terminal cells, or cut to them with an ellipsis.

    >>> pad_text("dog", 5), pad_text("東京タワー", 7)
    ('dog  ', '東京タ…')
    """
    while count_cells(text) > width:
        text = text.removesuffix("…")[:-1] + "…"
    return text + " " * (width - count_cells(text))


def count_cells(text: str) -> int:
    """Return how many cells of a terminal a text takes: East Asian characters two, marks on others none."""
    shown = [char for char in text if unicodedata.category(char) not in ("Mn", "Me", "Cf")]
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in shown)
