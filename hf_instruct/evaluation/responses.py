"""Load responses to judge or measure from a run, a file such as the course's, or a user's rows; join two sets."""

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import AliasChoices, Field, ValidationError, ValidationInfo, field_validator

from hf_instruct.data.problems import Problem
from hf_instruct.data.readers import read_text_file
from hf_instruct.errors import DataError, RunError
from hf_instruct.records import build_example_id
from hf_instruct.run_folder import RunFolder, split_model
from hf_instruct.schema import MODELS, TUNED, Response, Unpaired
from hf_instruct.validation import describe_problem

_MAX_FAULTS = 20
_SHOWN_CHARACTERS = 60
_ANSWERS = {"response", "model_response"}


class _Row(Response):
    """A response as other programs write it: the id may be missing, and the answer may have the course's field name."""

    id: str | None = None  # type: ignore[assignment]  # one is built if it is missing
    response: str = Field(validation_alias=AliasChoices("response", "model_response"))

    @field_validator("instruction", "input", "output", "response")
    @classmethod
    def _check_text(cls, text: str, info: ValidationInfo) -> str:
        if info.field_name in ("instruction", "output") and not text.strip():
            raise ValueError("it is empty")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError("it contains a lone surrogate; fix or remove it")
        return text


def choose_folder(source: Path, out: Path | None) -> RunFolder:
    """Return the folder for judgments of a file of responses: `out`, otherwise the file's folder.

    Raises:
        RunError: The folder is not writable.
    """
    folder = out or source.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The only reliable test: permissions do not show a read-only or a full file system.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunError(
            f"Nothing can be written in `{folder}` ({error.strerror}), where the judgments of `{source}` would be "
            "saved. Use another folder with `--out DIR`."
        ) from error
    return RunFolder(folder)


def load_responses(path: Path) -> list[Response]:
    """Return the responses of one model, from a run or from a file such as the course's.

    Args:
        path: A run folder, for its tuned model; `RUN/untuned`; or a `.json`, `.jsonl` or `.csv` file. Each row of a
            file contains `instruction`, `input`, `output` and `response` or `model_response`; `id`, `category` and the
            other fields of a `Response` are kept if present.

    Raises:
        DataError: The file cannot be read, or has problems; all of them are listed.
        RunError: The run is from an older version.
    """
    folder, model = split_model(path)
    if folder.is_dir():
        responses = RunFolder(folder).read_responses(model)
        if not responses:
            raise DataError(f"`{folder}` has no answers of the {model} model; create them with `hf-instruct generate`.")
        return responses
    if not path.exists():
        raise DataError(f"`{path}` does not exist; use a run folder or a file of responses.")
    all_problems: list[Problem] = []
    rows = list(read_text_file(path, file=str(path), problems=all_problems))
    # A last line without its newline is incomplete because its writer was killed.
    last = "line " + str(path.read_bytes().count(b"\n") + 1) if path.suffix == ".jsonl" else ""
    problems = [str(item) for item in all_problems if item.row != last or not item.what.startswith("is not JSON")]
    # A run's file contains the responses of all its models.
    other_models = [name for name in MODELS if name != model]
    chosen = {row.where: row.fields for row in rows if row.fields.get("model") not in other_models}
    return _build_responses(chosen, problems, where=f"`{path}`")


def build_responses(rows: Any, *, where: str = "the responses") -> list[Response]:
    """Return responses from a `Dataset`, other rows, or a path that `load_responses` accepts.

    Raises:
        DataError: The rows have problems; all of them are listed.
    """
    if isinstance(rows, str | Path):
        return load_responses(Path(rows))
    if isinstance(rows, Mapping) or not isinstance(rows, Iterable):
        raise DataError(
            f"{where} cannot be a `{type(rows).__name__}`; pass a `Dataset`, a list of mappings, a run folder or a "
            "file of responses."
        )
    return _build_responses({f"row {number}": row for number, row in enumerate(rows)}, [], where=where)


def _build_responses(rows: Mapping[str, Any], problems: list[str], *, where: str) -> list[Response]:
    """Return the responses in rows, which are keyed by their position in the source, or raise with all problems."""
    if rows and not any(isinstance(row, Response) or _ANSWERS & set(row) for row in rows.values()):
        raise DataError(
            f"No row in {where} has a `response` or `model_response`; `hf-instruct generate` answers examples."
        )
    taken: dict[str, str] = {}
    copies: Counter[str] = Counter()
    responses: list[Response] = []
    for position, row in rows.items():
        try:
            response = row if isinstance(row, Response) else _build_response(row, taken, copies)
        except ValidationError as error:
            problems += [f"{position}: {describe_problem(error, index)}" for index in range(error.error_count())]
            continue
        if response.id in taken:
            problems.append(f"{position} has the id `{response.id}` of {taken[response.id]}; ids must differ")
        taken[response.id] = position
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
        # The same example may occur twice with different answers. The counter avoids a quadratic search for free ids.
        while identifier in taken:
            copies[base] += 1
            identifier = f"{base}-{copies[base] + 1}"
    # Model names of other programs are ignored.
    model = checked.model if checked.model in MODELS else TUNED
    return Response(**{**checked.model_dump(), "id": identifier, "model": model})


class Pair(NamedTuple):
    """Two answers to one example."""

    example: Response  # the first answer, with its example
    first: str
    second: str

    @property
    def id(self) -> str:
        """The example's id."""
        return self.example.id

    @property
    def is_identical(self) -> bool:
        """Whether the answers are equal except for surrounding white space, so that there is nothing to choose."""
        return self.first.strip() == self.second.strip()


class JoinedPairs(NamedTuple):
    """The answers of two sets to the examples in both, in the order of the first set."""

    pairs: list[Pair]
    names: tuple[str, str]  # of the two sets
    by: str  # `id`, or `order` if the ids differ but the examples do not
    alone: Unpaired  # answers without a counterpart


def join_responses(first: Sequence[Response], second: Sequence[Response], names: tuple[str, str]) -> JoinedPairs:
    """Return the answers of two sets to the same examples, joined by id, or by order if no id is in both.

    Raises:
        DataError: The sets have no example in common, or give one id to different examples.
    """
    by_id = {response.id: response for response in second}
    joined = [(response, by_id[response.id]) for response in first if response.id in by_id]
    by = "id"
    if not joined and [_task(row) for row in first] == [_task(row) for row in second]:
        joined, by = list(zip(first, second, strict=True)), "order"
    if not joined:
        raise DataError(
            f"`{names[0]}` ({len(first)} answers) and `{names[1]}` ({len(second)}) have no example in common: no id "
            f"is in both (the first are `{first[0].id}` and `{second[0].id}`), and the instructions differ. Use "
            "answers to the same examples."
        )
    faults = [
        f"`{left.id}` asks {left.instruction[:_SHOWN_CHARACTERS]!r} in `{names[0]}` and "
        f"{right.instruction[:_SHOWN_CHARACTERS]!r} in `{names[1]}`"
        for left, right in joined
        if _task(left) != _task(right)
    ]
    if faults:
        raise DataError(
            f"{len(faults)} id(s) refer to different examples in the two sets of answers; use answers to the same "
            "examples, or leave the ids out:",
            faults[:_MAX_FAULTS],
        )
    pairs = [
        Pair(left.model_copy(update={"category": left.category or right.category}), left.response, right.response)
        for left, right in joined
    ]
    alone = Unpaired(first=len(first) - len(pairs), second=len(second) - len(pairs))
    return JoinedPairs(pairs, names, by, alone)


def _task(response: Response) -> tuple[str, str]:
    return response.instruction, response.input
