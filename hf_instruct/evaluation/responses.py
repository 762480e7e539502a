"""Responses to judge or to measure: of a run, of a file such as the course's, or of a user's own rows."""

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, AliasChoices, Field, ValidationError, field_validator

from hf_instruct.errors import DataError, RunError
from hf_instruct.records import build_example_id, describe_problem, parse_json
from hf_instruct.run_folder import RunFolder, split_model
from hf_instruct.schema import MODELS, TUNED, Response


def _check_text(text: str) -> str:
    if not text.strip():
        raise ValueError("it is empty")
    return text


_Text = Annotated[str, AfterValidator(_check_text)]


class _Row(Response):
    """A response as other programs write it: the id may be missing, and the answer is called as in the course."""

    id: str | None = None  # type: ignore[assignment]  # one is built where it is missing
    instruction: _Text
    output: _Text
    response: str = Field(validation_alias=AliasChoices("response", "model_response"))

    @field_validator("instruction", "input", "output", "response")
    @classmethod
    def _check_characters(cls, text: str) -> str:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError("half of a surrogate pair in it is no character; fix or remove it")
        return text


def choose_folder(source: Path, out: Path | None) -> RunFolder:
    """Return where the judgments of a file of responses go: `out`, else beside the file.

    Raises:
        RunError: Nothing can be written there.
    """
    folder = out or source.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The only sure test: permissions do not show a read-only file system, or a full one.
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=".hf-instruct.")
        os.close(descriptor)
        Path(name).unlink()
    except OSError as error:
        raise RunError(
            f"Nothing can be written in `{folder}` ({error.strerror}), where the judgments of `{source}` would go. "
            "Name another folder with `--out DIR`."
        ) from error
    return RunFolder(folder)


def load_responses(path: Path) -> list[Response]:
    """Return the responses of one model: of a run, or of a file such as the course's.

    Args:
        path: A run folder, whose tuned model is meant; `RUN/untuned`; a `responses.jsonl`; or a JSON list. Each object
            in a file holds `instruction`, `input`, `output` and `response` or `model_response`; `id`, `category` and
            the other fields of a `Response` are kept where they are.

    Raises:
        DataError: The file cannot be read, or holds problems; all of them are listed.
        RunError: The run is of an older version.
    """
    folder, model = split_model(path)
    if folder.is_dir():
        responses = RunFolder(folder).read_responses(model)
        if not responses:
            raise DataError(f"`{folder}` has no answers of the {model} model; `hf-instruct generate` makes them.")
        return responses
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"`{path}` does not exist; name a run folder or a file of responses.") from error
    except OSError as error:
        raise DataError(f"`{path}` cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"`{path}` is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    if not text.strip():
        raise DataError(f"`{path}` is empty; it should hold a JSON list of responses, or one object a line.")
    rows, problems = _parse_lines(text) if path.suffix == ".jsonl" else (_parse_list(text, path), [])
    # The file of a run has those of both models.
    chosen = {
        place: row
        for place, row in rows.items()
        if not (isinstance(row, dict) and row.get("model") in MODELS and row["model"] != model)
    }
    return _build_responses(chosen, problems, where=f"`{path}`")


def _parse_lines(text: str) -> tuple[dict[str, Any], list[str]]:
    rows, problems = {}, []
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                rows[f"line {number}"] = parse_json(line)
        except ValueError as error:
            # A last line without its newline was torn when its writer was killed.
            problems += [f"line {number} is not JSON: {error}"] * (number < len(lines))
    return rows, problems


def _parse_list(text: str, path: Path) -> dict[str, Any]:
    try:
        rows = parse_json(text)
    except ValueError as error:
        raise DataError(f"`{path}` is not JSON: {error}. It should hold a list of responses.") from error
    if not isinstance(rows, list):
        kind = "object" if isinstance(rows, dict) else type(rows).__name__
        raise DataError(f"`{path}` holds one JSON {kind}; it should hold a list of objects.")
    return _number(rows)


def _number(rows: Iterable[Any]) -> dict[str, Any]:
    return {f"row {number}": row for number, row in enumerate(rows, start=1)}


def build_responses(rows: Any, *, where: str = "the responses") -> list[Response]:
    """Return responses from what a user has: a `Dataset`, other rows, or the path of what `load_responses` reads.

    Raises:
        DataError: All problems found.
    """
    if isinstance(rows, str | Path):
        return load_responses(Path(rows))
    if isinstance(rows, Mapping) or not isinstance(rows, Iterable):
        raise DataError(
            f"There is a `{type(rows).__name__}` where {where} should be: give a `Dataset`, a list of mappings, a run "
            "folder or a file of responses."
        )
    return _build_responses(_number(rows), [], where=where)


def _build_responses(rows: Mapping[str, Any], problems: list[str], *, where: str) -> list[Response]:
    """Return the responses of rows by what to call their place, or raise with everything that is wrong with them."""
    taken: dict[str, str] = {}
    copies: Counter[str] = Counter()
    responses: list[Response] = []
    for place, row in rows.items():
        try:
            response = row if isinstance(row, Response) else _build_response(row, taken, copies)
        except ValidationError as error:
            problems += [f"{place}: {describe_problem(error, index)}" for index in range(error.error_count())]
            continue
        if response.id in taken:
            problems.append(f"{place} has the id `{response.id}` of {taken[response.id]}; ids must differ")
        taken[response.id] = place
        responses.append(response)
    if problems:
        raise DataError.listing(problems, f"in {where}")
    if not responses:
        raise DataError(f"There are no responses in {where}.")
    return responses


def _build_response(row: Any, taken: Mapping[str, str], copies: Counter[str]) -> Response:
    checked = _Row.model_validate(dict(row) if isinstance(row, Mapping) else row)
    identifier = checked.id
    if not identifier:
        identifier = base = build_example_id(checked.instruction, checked.input, checked.output)
        # The same example may occur twice, answered differently. Counted: from 2 up each time would be quadratic.
        while identifier in taken:
            copies[base] += 1
            identifier = f"{base}-{copies[base] + 1}"
    # What other programs call their model says nothing here.
    model = checked.model if checked.model in MODELS else TUNED
    return Response(**{**checked.model_dump(), "id": identifier, "model": model})
