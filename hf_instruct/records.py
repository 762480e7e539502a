"""Read and write the files of a run folder atomically, so that a killed process leaves no partial file.

Appending can leave at most one incomplete last line, which `recover_rows` removes before a stage continues.
"""

import codecs
import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_jsonable_python

from hf_instruct.errors import DataError
from hf_instruct.schema import Record
from hf_instruct.validation import describe_problem, describe_syntax


@dataclasses.dataclass(frozen=True)
class Example:
    """One dataset row."""

    id: str  # its own `id` if it has one, else a hash of its text
    instruction: str  # the task, never empty
    input: str  # the text the task is about; often empty
    output: str  # the reference answer
    category: str | None = None  # a label to group scores by
    prompt: str | None = None  # the complete prompt, used without a prompt format
    messages: list[dict[str, str]] | None = None  # a conversation, whose last turns are the instruction and the output
    prompt_turns: int | None = None  # number of turns in the prompt, if the row had a prompt and a completion

    @classmethod
    def of(cls, row: "Example | Mapping[str, Any]") -> "Example":
        """Return a row of a `Dataset` as an example; an example is returned unchanged."""
        if isinstance(row, Example):
            return row
        texts = ("id", "instruction", "input", "output")
        values: dict[str, Any] = {field.name: row.get(field.name) for field in dataclasses.fields(cls)}
        return cls(**{**values, **{name: values[name] or "" for name in texts}})

    def format_task(self) -> str:
        """Return the instruction for judges and readers, preceded by earlier turns, if there are any."""
        *asked, _ = self.messages or [{}]
        if len(asked) < 2:
            return self.instruction
        return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in asked)


SPLIT_NAMES = ("train", "test", "validation")


Row = TypeVar("Row", bound=Record | Example)
File = TypeVar("File")


def build_example_id(*texts: str) -> str:
    """Return the first 12 hex digits of the SHA-256 of an example's texts, joined by NUL.

    >>> build_example_id("Name a color.", "", "Red.")
    'afd331bf07dd'
    """
    return hashlib.sha256("\0".join(texts).encode("utf-8")).hexdigest()[:12]


def read_rows(path: Path, row_type: type[Row]) -> list[Row]:
    """Return the rows of a JSON Lines file, in file order.

    An incomplete last line, left by a killed process, is skipped; one that only lacks its newline is read.

    Raises:
        DataError: The file is missing, or a line is not a row of this type (file and line are named).
    """
    return _parse_rows(path, _read_bytes(path), row_type)[0]


def recover_rows(path: Path, row_type: type[Row]) -> list[Row]:
    """Return the rows of a file to append to, and remove an incomplete last line; a missing file has no rows.

    Raises:
        DataError: A complete line is not a row of this type.
    """
    if not path.exists():
        return []
    content = _read_bytes(path)
    rows, torn = _parse_rows(path, content, row_type)
    if torn:
        os.truncate(path, len(content) - len(torn))
    elif content and not content.endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")
    return rows


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"`{path}` does not exist; run the stage that writes it first.") from error
    except OSError as error:
        raise DataError(f"`{path}` cannot be read: {error.strerror}.") from error


def _parse_rows(path: Path, content: bytes, row_type: type[Row]) -> tuple[list[Row], bytes]:
    """Return the rows of complete lines, and an incomplete last line, which is never JSON."""
    *lines, last = content.split(b"\n")
    try:
        parse_json(last)
        lines, torn = [*lines, last], b""
    except ValueError:
        torn = last
    adapter = TypeAdapter(row_type)
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(adapter.validate_json(line.removeprefix(codecs.BOM_UTF8)))
        except ValidationError as error:
            raise DataError(
                f"`{path}` line {number} is not a {row_type.__name__} row ({describe_problem(error)}); "
                "fix the line, or delete the file and run the stage again."
            ) from error
    return rows, torn


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Append rows to a JSON Lines file in one write, and wait until they are on disk."""
    data = "".join(map(format_row, rows)).encode("utf-8")
    if not data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        start = os.fstat(file.fileno()).st_size
        try:
            written = 0
            while written < len(data):
                written += os.write(file.fileno(), data[written:])
            os.fsync(file.fileno())
        except OSError:
            # On a full disk, only a part may have been written: remove it, so that the file only has complete rows.
            os.ftruncate(file.fileno(), start)
            raise


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a JSON Lines file atomically: readers see the old file or the new one, never a partial one."""
    _replace(path, (format_row(row).encode("utf-8") for row in rows))


def format_row(row: Record | Example) -> str:
    """Return a row as its line in a JSON Lines file; fields that are None are left out, except for `score`."""
    values = to_jsonable_python(row)
    fields = {name: value for name, value in values.items() if value is not None or name == "score"}
    return json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n"


def parse_json(content: bytes | str) -> Any:
    """Return the value of a JSON text; a byte order mark at the start of UTF-8 bytes is left out.

    This uses pydantic's parser: Python's raises RecursionError for deeply nested values, and accepts NaN, lone
    surrogates and UTF-16.

    Raises:
        ValueError: It is not JSON (the message has the position), or it is nested more than 200 levels deep.

    >>> parse_json(b'{"score": 80}')
    {'score': 80}
    """
    if isinstance(content, bytes):
        content = content.removeprefix(codecs.BOM_UTF8)
    try:
        return from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(describe_syntax(str(error))) from error


def read_file(path: Path, file_type: type[File]) -> File | None:
    """Return the contents of a JSON file in a run folder, or None if there is no file.

    Raises:
        DataError: The file contains something else.
    """
    if not path.is_file():
        return None
    try:
        return TypeAdapter(file_type).validate_json(_read_bytes(path).removeprefix(codecs.BOM_UTF8))
    except ValidationError as error:
        raise DataError(
            f"`{path}` cannot be read ({describe_problem(error)}); it is damaged or from another version. Delete it "
            "and run the stage that writes it again."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write plain values and records to a JSON file atomically, indented and in UTF-8."""
    text = json.dumps(to_jsonable_python(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically, with unchanged line endings; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: a temporary file is renamed over it. Creates the folder."""
    _replace(path, [content])


def _replace(path: Path, parts: Iterable[bytes]) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            # The user knows only the name of the final file.
            error.filename = str(path)
        raise
