"""What reaches the terminal: the command line's output, its errors and the log, harmless whoever wrote the text.

Answers, servers' replies, files and names may hold escape sequences, by which a text steers the terminal that shows it.
They are taken out where text is printed, and nowhere else. Progress bars write their own codes around this.
"""

import contextlib
import json
import logging
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any, TextIO, cast

from hf_instruct.redaction import redact

# Joiners that several scripts and emoji are spelt with; they steer nothing.
_JOINERS = "\u200c\u200d"


def clean_text(text: str) -> str:
    r"""Return a text without what could steer a terminal: line breaks stay, tabs and odd spaces become spaces.

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
    """Return a message as it is shown: clean, and without a password in an address or a token.

    >>> clean_message("https://me:secret@example.com answers \\x1b[2J")
    'https://example.com answers [2J'
    """
    return clean_text(str(redact(text)))


def format_json(values: Any) -> str:
    r"""Return plain values as indented JSON that steers no terminal and yet reads back as the same values.

    >>> print(format_json({"é": "\x9b31m\u202e"}))
    {
      "é": "\u009b31m\u202e"
    }
    """
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    return "".join(char if char == "\n" or char.isprintable() else json.dumps(char)[1:-1] for char in text)


class MessageFormatter(logging.Formatter):
    """Formats what is logged as `clean_message`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return clean_message(super().format(record))


class _CleanStream:
    """A stream of text that is clean when it arrives in the one below."""

    def __init__(self, below: TextIO) -> None:
        self._below = below

    def write(self, text: str) -> int:
        self._below.write(clean_text(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)


@contextlib.contextmanager
def clean_output() -> Iterator[None]:
    """Clean all that is printed to standard output in the block."""
    with contextlib.redirect_stdout(cast("TextIO", _CleanStream(sys.stdout))):
        yield
