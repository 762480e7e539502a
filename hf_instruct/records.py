"""The typed rows of every JSON Lines file in a run folder, and the only code that reads or writes them.

A row is written whole or not at all: a killed process can leave at most one torn last line, which `recover_rows` cuts
off before a stage goes on.
"""

import codecs
import dataclasses
import hashlib
import json
import os
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic_core import from_json

from hf_instruct.errors import DataError


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


@dataclasses.dataclass(frozen=True)
class Response:
    """A model's answer to one example, with the example's own fields so that the file can be judged alone.

    Attributes:
        response: Generated text: no prompt, no special tokens.
        stopped: Whether the model ended the answer itself; None where that is not known (files made elsewhere).
        num_tokens: Generated tokens, the end-of-text token included; None where that is not known.
        reference_nll: Loss of the reference as a completion, under the same model: the sum over its tokens, the one
            that ends it included, in nats. None where that is not known, or the reference does not fit the context.
        reference_tokens: How many tokens that sum is over.
        further_responses: What else was generated for the example, where several answers were asked for; never judged.
    """

    id: str
    instruction: str
    input: str
    output: str
    response: str
    category: str | None = None
    stopped: bool | None = None
    num_tokens: int | None = None
    reference_nll: float | None = None
    reference_tokens: int | None = None
    further_responses: list[str] | None = None


@dataclasses.dataclass(frozen=True)
class Judgment:
    """The record of judging one response.

    Attributes:
        id: The example's id.
        score: Integer from 0 to 100, or None when no verdict could be read.
        replies: The judge's raw replies, one for each attempt that brought any; the last one is empty if the last
            attempt brought none after one that did.
        judge: Which judge, exactly: `backend`, `model`, `digest`, `server_version`, `options`.
        rubric: Name of the rubric.
        prompt_sha256: Hash of what the judge was asked: messages, reply schema, levels.
        seconds: Time the judge took, all attempts together; 0 when the judgment came from the cache.
        failure: Why there is no score; None when there is one.
        reasons: The judge's reasons, where the rubric asks for them.
        cached: Whether an earlier, equal call answered.
    """

    id: str
    score: int | None
    replies: list[str]
    judge: dict[str, Any]
    rubric: str
    prompt_sha256: str
    seconds: float
    failure: str | None = None
    reasons: str | None = None
    cached: bool = False

    def __post_init__(self) -> None:
        if self.score is not None and (isinstance(self.score, bool) or not 0 <= self.score <= 100):
            raise ValueError(f"`score` is {repr(self.score)[:20]}; allowed are null and the integers from 0 to 100")


@dataclasses.dataclass(frozen=True)
class Preference:
    """Which of two responses to one example a judge or a person prefers.

    Attributes:
        id: The example's id.
        first: Name of the one set of responses, such as its run folder.
        second: Name of the other.
        score: 1 for the first, 0 for the second, 0.5 for a tie; None when no verdict could be read.
        judge: Who prefers, exactly: as in `Judgment`; `backend` is `person` for a vote.
        rubric: Name of what was asked.
        orders: The score by each order shown, the first response first, then the second first; empty for a vote.
        replies: The judge's raw replies, in the order of `orders`; empty for a vote.
        first_length: Characters of the first response.
        second_length: Characters of the second.
        prompt_sha256: Hash of all that was asked; empty for a vote.
        seconds: From the first question to the verdict.
        failure: Why there is no verdict.
        category: The example's category, where it has one.
    """

    id: str
    first: str
    second: str
    score: float | None
    judge: dict[str, Any]
    rubric: str
    orders: list[float | None]
    replies: list[str]
    first_length: int
    second_length: int
    prompt_sha256: str = ""
    seconds: float = 0.0
    failure: str | None = None
    category: str | None = None


@dataclasses.dataclass(frozen=True)
class TrainingRow:
    """One line of `training.jsonl`: what was known at an optimizer step.

    Attributes:
        step: Optimizer steps done.
        epoch: Passes over the training examples done, as a fraction.
        tokens_seen: Example tokens (prompt and completion, no padding) trained on so far.
        kind: `train` (mean loss since the last such row), `evaluation` (losses on fixed examples) or `samples`.
        loss: Mean training loss in nats a label token; None on other kinds.
        train_loss: Loss on a fixed part of the training examples; on `evaluation` rows.
        validation_loss: Loss on the validation examples; on `evaluation` rows.
        learning_rate: On `train` rows.
        tokens_per_second: Example tokens a second since the last `train` row.
        seconds: Time trained so far, evaluation and interrupted parts included.
        samples: On `samples` rows, each with `id`, `instruction`, `input`, `output`, `response`.
    """

    step: int
    epoch: float
    tokens_seen: int
    kind: str
    loss: float | None = None
    train_loss: float | None = None
    validation_loss: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    seconds: float | None = None
    samples: list[dict[str, str]] | None = None


Row = TypeVar("Row", Example, Response, Judgment, Preference, TrainingRow)


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
    types = {name: _plain_types(hint) for name, hint in get_type_hints(row_type).items()}
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        try:
            fields = {name: value for name, value in parse_json(line).items() if name in types}
            # Now, as a text where a number is due would fail only later, and anywhere.
            if odd := [name for name, value in fields.items() if not isinstance(value, types[name])]:
                raise TypeError(f"`{odd[0]}` is of type {type(fields[odd[0]]).__name__}")
            if odd := [
                name for name, value in fields.items() if isinstance(value, int | float) and not _is_finite(value)
            ]:
                raise ValueError(f"`{odd[0]}` is a number too large to compute with")
            rows.append(row_type(**fields))
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(
                f"`{path}` line {number} is not a {row_type.__name__} row ({error}); "
                "mend the line, or delete the file and run the stage again."
            ) from error
    return rows


def _plain_types(hint: Any) -> tuple[type, ...]:
    """Return the classes that `isinstance` takes for a hint: of `list[str] | None`, `list` and that of None.

    >>> _plain_types(float | None)
    (<class 'float'>, <class 'NoneType'>, <class 'int'>)
    """
    parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return tuple(get_origin(part) or part for part in parts) + ((int,) if float in parts else ())


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


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a run folder, or an empty one where there is no file.

    Raises:
        DataError: The file holds something else.
    """
    if not path.is_file():
        return {}
    try:
        value = parse_json(_read_bytes(path))
    except ValueError as error:
        raise DataError(
            f"`{path}` is not JSON ({error}); delete the file and run the stage that writes it again."
        ) from error
    if not isinstance(value, dict):
        raise DataError(
            f"`{path}` holds a {type(value).__name__}, not an object with named values; "
            "delete the file and run the stage that writes it again."
        )
    return value


def as_number(value: Any) -> float | None:
    """Return a finite number of a JSON file as a float, and None for anything else.

    >>> as_number(3), as_number(True), as_number("3"), as_number(float("nan")), as_number(10**400)
    (3.0, None, None, None, None)
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)
    return float(value) if is_number else None


def _is_finite(value: float) -> bool:
    # As `math.isfinite`, which cannot take an integer of 400 digits.
    return abs(value) <= sys.float_info.max


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole, indented, UTF-8; readers see the old file or the new one, never a part."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


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


def format_row(row: Row) -> str:
    """Return a row as its line in a JSON Lines file."""
    fields = {name: value for name, value in dataclasses.asdict(row).items() if value is not None or name == "score"}
    return json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n"
