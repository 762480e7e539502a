"""Problems in data, and how they are shown."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hf_instruct.errors import DataError, quote_names

MAX_PRINTED = 50


class Problem(NamedTuple):
    """A problem in the data, and how to fix it."""

    file: str  # the source as the user named it
    row: str | None  # `line 4` of a text file, from 1; `row 3` of a list or table, from 0; None for the whole source
    field: str | None  # the column, by the source's name
    what: str  # what is wrong, with the value seen
    remedy: str  # what to do

    def __str__(self) -> str:
        where = f"`{self.file}`{f' {self.row}' if self.row else ''}{f', `{self.field}`' if self.field else ''}"
        return f"{where} {self.what}; {self.remedy}"


class RawRow(NamedTuple):
    """One row as it was read: its location, as in `Problem.row`, and its columns."""

    where: str
    fields: Mapping[str, Any]


def raise_problems(problems: Sequence[Problem]) -> None:
    """Raise one error with all problems of a source, if there are any; at most 50 are printed.

    Raises:
        DataError: There are problems.
    """
    if problems:
        raise DataError.listing([str(problem) for problem in problems], f"in `{problems[0].file}`", most=MAX_PRINTED)


def list_names(names: Sequence[str]) -> str:
    """Return column names for a message, at most 12."""
    more = f" and {len(names) - 12:,} more" if len(names) > 12 else ""
    return quote_names(map(shorten_text, names[:12])) + more


def shorten_text(text: str, length: int = 40) -> str:
    """Return a text for one line of a message, truncated, with control characters and lone surrogates escaped.

    >>> shorten_text("two\\nlines")
    'two\\\\nlines'
    """
    visible = text if text.isprintable() else repr(text[: length + 1])[1:-1]
    return visible if len(visible) <= length else visible[: length - 1] + "…"


def describe_type(value: Any) -> str:
    """Describe a value in JSON's terms, with the value itself if it is short.

    >>> describe_type(42), describe_type({"a": 1}), describe_type(True)
    ('a number (42)', 'an object', 'a boolean (true)')
    """
    if isinstance(value, bool):
        return f"a boolean ({str(value).lower()})"
    if isinstance(value, int | float):
        return f"a number ({shorten_text(str(value))})"
    if isinstance(value, str):
        return f'text ("{shorten_text(value)}")'
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, Sequence) and not isinstance(value, bytes) else f"a {type(value).__name__}"
