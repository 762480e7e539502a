"""Reading and writing the files of a run folder, so that a kill leaves none of them half written.

A row is written whole or not at all: a killed process can leave at most one torn last line, which `recover_rows` cuts
off before a stage goes on.
"""

import codecs
import dataclasses
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json

from hf_instruct.errors import DataError
from hf_instruct.schema import Record


@dataclasses.dataclass(frozen=True)
class Example:
    """One dataset row.

    Attributes:
        id: Stable name of the row: its own `id` where it has one, else a hash of its text.
        instruction: The task, never empty.
        input: The text the task is about; often empty.
        output: The reference answer.
        category: A label to group scores by, where the data has one.
    """

    id: str
    instruction: str
    input: str
    output: str
    category: str | None = None


SPLIT_NAMES = ("train", "test", "validation")


@dataclasses.dataclass(frozen=True, repr=False)
class Splits:
    """Examples by what they are for; no example is in two of them.

    Attributes:
        train: What a model learns from.
        test: What it is asked at the end, and scored on.
        validation: What the loss is followed on while it learns.
    """

    train: list[Example]
    test: list[Example]
    validation: list[Example]

    def named(self) -> dict[str, list[Example]]:
        """Return the splits by name, in the order of `SPLIT_NAMES`."""
        return {name: getattr(self, name) for name in SPLIT_NAMES}

    def __repr__(self) -> str:
        # A notebook would print every example.
        return f"Splits({', '.join(f'{name}: {len(rows):,} examples' for name, rows in self.named().items())})"


Row = TypeVar("Row", bound=Record | Example)
File = TypeVar("File")


def build_example_id(instruction: str, input: str, output: str) -> str:
    """Return the first 12 hex digits of the SHA-256 of the three texts, joined by NUL.

    >>> build_example_id("Name a color.", "", "Red.")
    'afd331bf07dd'
    """
    text = "\0".join((instruction, input, output))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]


def read_rows(path: Path, row_type: type[Row]) -> list[Row]:
    """Return the rows of a JSON Lines file, in file order.

    A last line that a kill has torn is left out; one that only lacks its newline, as other programs write it, is not.

    Raises:
        DataError: The file is missing, or a line is not a row of this type (file and line are named).
    """
    lines, _ = _split_lines(_read_bytes(path))
    return _parse_lines(path, lines, row_type)


def recover_rows(path: Path, row_type: type[Row]) -> list[Row]:
    """Make a file ready for more rows, a torn last line cut off, and return its rows; an absent file has none.

    Raises:
        DataError: A whole line is not a row of this type.
    """
    if not path.exists():
        return []
    content = _read_bytes(path)
    lines, torn = _split_lines(content)
    rows = _parse_lines(path, lines, row_type)
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


def _split_lines(content: bytes) -> tuple[list[bytes], bytes]:
    """Return the whole lines, and what is left of a torn one: that is never JSON, as a line begins with a brace."""
    *lines, last = content.split(b"\n")
    try:
        parse_json(last)
    except ValueError:
        return lines, last
    return [*lines, last], b""


def _parse_lines(path: Path, lines: Iterable[bytes], row_type: type[Row]) -> list[Row]:
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
    return rows


def describe_problem(error: ValidationError, index: int = 0) -> str:
    """Return the first thing that pydantic found wrong, or another, in a clause that names the field."""
    first = error.errors(include_url=False)[index]
    # A name in the file may be of any length and hold anything.
    place = " ".join(".".join(str(part) for part in first["loc"]).split())[:80]
    text = (
        first["msg"].replace("recursion limit exceeded", "nested too deeply").replace(" at line 1 column", " at column")
    )
    text = text.removeprefix("Value error, ")
    text = text[0].lower() + text[1:] if first["type"] != "json_invalid" else text.removeprefix("Invalid JSON: ")
    return f"`{place}`: {text}" if place else text


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Append rows to a JSON Lines file in one write, and wait until they are on disk."""
    text = "".join(format_row(row) for row in rows)
    if not text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        start = os.fstat(descriptor).st_size
        data = text.encode("utf-8")
        try:
            written = 0
            while written < len(data):
                written += os.write(descriptor, data[written:])
            os.fsync(descriptor)
        except OSError:
            # A full disk may have taken half of the rows: take them back, so that the file holds whole rows only.
            os.ftruncate(descriptor, start)
            raise
    finally:
        os.close(descriptor)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a JSON Lines file whole; readers see the old file or the new one, never a part."""
    write_text(path, "".join(format_row(row) for row in rows))


def parse_json(content: bytes | str) -> Any:
    """Return the value of a JSON text; a byte order mark at the start of UTF-8 bytes is left out.

    This is pydantic's parser: Python's ends in a RecursionError where a value is nested deeply, and takes NaN, halves
    of surrogate pairs and UTF-16.

    Raises:
        ValueError: It is not JSON, with the position; or it is nested over 200 levels.

    >>> parse_json(b'{"score": 80}')
    {'score': 80}
    """
    try:
        return from_json(
            content.removeprefix(codecs.BOM_UTF8) if isinstance(content, bytes) else content, allow_inf_nan=False
        )
    except ValueError as error:
        reason = (
            str(error)
            .replace("recursion limit exceeded", "nested too deeply")
            .replace(" at line 1 column", " at column")
        )
        raise ValueError(reason) from error


def read_file(path: Path, file_type: type[File]) -> File | None:
    """Return what a JSON file of a run folder holds, or None where there is no file.

    Raises:
        DataError: The file holds something else.
    """
    if not path.is_file():
        return None
    try:
        return TypeAdapter(file_type).validate_json(_read_bytes(path).removeprefix(codecs.BOM_UTF8))
    except ValidationError as error:
        raise DataError(
            f"`{path}` cannot be read ({describe_problem(error)}); it is damaged or of another version. Delete it and "
            "run the stage that writes it again."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole, indented, UTF-8; readers see the old file or the new one, never a part."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_by_model(path: Path, values: Mapping[str, Record | Sequence[Record]]) -> None:
    """Write a JSON file of a record, or a list of records, for each model."""
    plain = {
        model: value.to_dict() if isinstance(value, Record) else [record.to_dict() for record in value]
        for model, value in values.items()
    }
    write_json(path, plain)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole, with the line ends as they are; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole: into a temporary file beside it, then renamed over it; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def format_row(row: Record | Example) -> str:
    """Return a row as its line in a JSON Lines file; what is not known is left out, but for a score."""
    values = row.to_dict() if isinstance(row, Record) else dataclasses.asdict(row)
    fields = {name: value for name, value in values.items() if value is not None or name == "score"}
    return json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n"
