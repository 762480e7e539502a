"""Format text for the terminal, and remove escape sequences and secrets from output, errors and logs.

Answers, server replies, files and names may contain escape sequences, which control the terminal. They are only removed
when text is printed; progress bars bypass this, because they need their own. Secrets are removed from text that is
shown or written.
"""

import contextlib
import json
import logging
import math
import os
import re
import sys
import textwrap
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from typing import Any, TextIO, cast

# Joiners, which are part of several scripts and emoji; they are harmless.
_JOINERS = "\u200c\u200d"
# Hub tokens, and keys in OpenAI's format. Names such as `hf_finetuning_experiments` do not match.
_TOKEN = re.compile(r"\b(?:hf_[A-Za-z0-9]{20,}|sk[_-][A-Za-z0-9_-]*[A-Za-z0-9]{16}[A-Za-z0-9_-]*)")
# Everything before the last `@` of a host part: a password may contain an `@`. `git@` is not a secret.
_USER = re.compile(r"://(?!git@[^/\s@]*(?:[/\s]|$))[^/\s]+@")


def redact(value: Any) -> Any:
    """Return a plain value without passwords in URLs and without Hub or API tokens."""
    if isinstance(value, dict):
        return {key: redact(part) for key, part in value.items()}
    if isinstance(value, list):
        return [redact(part) for part in value]
    if not isinstance(value, str):
        return value
    return _TOKEN.sub("[token removed]", _USER.sub("://", value))


def clean_text(text: str) -> str:
    r"""Return a text without terminal control characters; tabs and unusual spaces become spaces.

    >>> clean_text("a\n\tb \x1b[31mred\u202e\xa0c")
    'a\n    b [31mred c'
    """
    return text if text.isprintable() else "".join(_clean_char(char) for char in text)


def _clean_char(char: str) -> str:
    if char == "\n" or char in _JOINERS or char.isprintable():
        return char
    if char == "\t":
        return "    "
    return " " if unicodedata.category(char) == "Zs" else ""


def clean_message(text: str) -> str:
    """Return a message for display, without control characters, passwords in URLs and tokens.

    >>> clean_message("https://me:secret@example.com answers \\x1b[2J")
    'https://example.com answers [2J'
    """
    return clean_text(str(redact(text)))


def format_json(values: Any) -> str:
    r"""Return plain values as indented JSON that is safe to print: control characters are escaped.

    >>> print(format_json({"é": "\x9b31m\u202e"}))
    {
      "é": "\u009b31m\u202e"
    }
    """
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    return "".join(char if char == "\n" or char.isprintable() else json.dumps(char)[1:-1] for char in text)


class MessageFormatter(logging.Formatter):
    """Formats log records with `clean_message`, and wraps them if standard error is a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return wrap(clean_message(super().format(record)), sys.stderr)


class _CleanStream:
    """A text stream that cleans text before writing it to another stream."""

    def __init__(self, below: TextIO) -> None:
        self._below = below

    def write(self, text: str) -> int:
        self._below.write(clean_text(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)


@contextlib.contextmanager
def clean_output() -> Iterator[None]:
    """Clean everything that is printed to standard output inside the block."""
    with contextlib.redirect_stdout(cast("TextIO", _CleanStream(sys.stdout))):
        yield


def format_points(number: float) -> str:
    """Format points with one decimal, rounding halves up (means of integers are often halves).

    >>> format_points(49.45), format_points(0.25), format_points(-0.04)
    ('49.5', '0.3', '0.0')
    """
    # Rounded to ten decimals first, because 49.45 is slightly smaller in binary.
    return f"{math.floor(round(number * 10, 9) + 0.5) / 10:.1f}"


def format_signed(number: float) -> str:
    """Format points with a sign and one decimal, rounding symmetrically: halves away from zero.

    >>> format_signed(0.25), format_signed(-0.25), format_signed(0), format_signed(-0.04)
    ('+0.3', '-0.3', '+0.0', '+0.0')
    """
    text = format_points(abs(number))
    return f"-{text}" if number < 0 and text != "0.0" else f"+{text}"


def format_interval(ends: Sequence[float], *, signed: bool = False) -> str:
    """Format an interval in points, with signs if `signed` (for differences).

    An interval of width zero comes from resampling equal values and does not mean certainty, so it is not shown.

    >>> format_interval((49.45, 51)), format_interval((-0.5, 1), signed=True), format_interval((50, 50))
    ('49.5 to 51.0', '-0.5 to +1.0', 'none: all equal')
    """
    if ends[0] == ends[1]:
        return "none: all equal"
    return " to ".join(map(format_signed if signed else format_points, ends))


def pluralize(count: int, noun: str, nouns: str | None = None) -> str:
    """Format a count with its noun in the singular or plural.

    >>> pluralize(1, "row"), pluralize(1100, "row")
    ('1 row', '1,100 rows')
    """
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def format_seconds(seconds: float) -> str:
    """Format a duration in its two largest units.

    >>> format_seconds(8.24), format_seconds(314), format_seconds(11_782)
    ('8.2 s', '5 min 14 s', '3 h 16 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def text_width(longest: int = 100) -> int:
    """Return the text width in characters: the terminal's, but at most `longest`, or `longest` without a terminal."""
    return min(longest, _count_columns(sys.stdout) or longest)


def wrap(text: str, stream: TextIO | None = None) -> str:
    """Return a text wrapped between words to the terminal's width; unchanged if the stream is not a terminal.

    Args:
        text: One or more lines.
        stream: The stream that it is printed to; standard output by default.
    """
    columns = _count_columns(stream or sys.stdout)
    if columns is None:
        return text
    lines = []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip())] + "  "
        wrapper = textwrap.TextWrapper(
            columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
        lines.append(wrapper.fill(line) if len(line) > columns else line)
    return "\n".join(lines)


def _count_columns(stream: TextIO) -> int | None:
    """Return the width of a terminal in characters; None if it is unknown or the stream is not a terminal."""
    return os.get_terminal_size(stream.fileno()).columns or None if stream.isatty() else None


def align(table: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> list[str]:
    """Format rows with the same number of cells as lines with aligned columns, those in `right` right-aligned.

    >>> align([["task", "n"], ["arc", "100"]], right={1})
    ['task    n', 'arc   100']
    """
    columns = []
    for number, column in enumerate(zip(*table, strict=True)):
        width = max(map(len, column))
        columns.append([cell.rjust(width) if number in right else cell.ljust(width) for cell in column])
    return ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]
